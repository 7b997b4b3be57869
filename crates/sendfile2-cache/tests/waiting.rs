//! Requests that wait for one another, and those that do not.
#![allow(clippy::unwrap_used)]

mod origin;

use std::sync::{Arc, Mutex};

use http_body_util::BodyExt;
use origin::{Origin, cache_of, get, request, response, streaming};
use sendfile2_cache::Cache;
use sendfile2_cache::proxy::{Limits, Timeouts};
use sendfile2_cache::store::Ban;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

const FRESH: (&str, &str) = ("cache-control", "max-age=1000");

/// An origin whose answers wait until they are let go.
async fn held(fields: &'static [(&'static str, &'static str)]) -> (Origin, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    let waits = Arc::clone(&gate);
    let origin = Origin::new(move |seen| {
        let waits = Arc::clone(&waits);
        async move {
            waits.acquire().await.unwrap().forget();
            let who = seen.header("x").unwrap_or("-");
            response(200, fields, format!("{who} {}", seen.number))
        }
    })
    .await;
    (origin, gate)
}

/// Asks with each of these values of the field `x`, all at once.
fn all(cache: &Cache, values: &[&'static str]) -> JoinSet<(String, String)> {
    let mut all = JoinSet::new();
    for value in values {
        let (cache, value) = (cache.clone(), *value);
        all.spawn(async move {
            let answer = get(&cache, "/", &[("x", value)]).await;
            (answer.how().to_owned(), answer.body)
        });
    }
    all
}

#[tokio::test]
async fn one_asks_for_all() {
    let (origin, gate) = held(&[FRESH]).await;
    let cache = cache_of(&[&origin.url]);
    let asking = all(&cache, &["1"; 20]);
    origin::until(|| origin.count() == 1).await;
    // All have asked, or will be answered from the store.
    tokio::task::yield_now().await;
    gate.add_permits(100);
    let answers = asking.join_all().await;
    assert!(answers.iter().all(|(_, body)| body == "1 0"), "{answers:?}");
    assert!(answers.iter().any(|(how, _)| how == "fwd=uri-miss; collapsed"), "{answers:?}");
    assert_eq!(origin.count(), 1);
}

#[tokio::test]
async fn those_with_other_variants_ask_themselves() {
    let (origin, gate) = held(&[FRESH, ("vary", "x")]).await;
    let cache = cache_of(&[&origin.url]);
    let asking = all(&cache, &["1", "2", "1", "2", "3"]);
    origin::until(|| origin.count() == 1).await;
    gate.add_permits(100);
    for (how, body) in asking.join_all().await {
        assert!(!body.is_empty(), "{how}");
    }
    for value in ["1", "2", "3"] {
        let answer = get(&cache, "/", &[("x", value)]).await;
        assert!(answer.body.starts_with(value), "{value}: {}", answer.body);
    }
}

#[tokio::test]
async fn what_is_not_stored_is_waited_for_once() {
    let (origin, gate) = held(&[("cache-control", "no-store")]).await;
    let cache = cache_of(&[&origin.url]);
    let first = all(&cache, &["1"; 5]);
    origin::until(|| origin.count() == 1).await;
    gate.add_permits(1);
    // The others ask at once then, each for itself,
    origin::until(|| origin.count() == 5).await;
    gate.add_permits(4);
    first.join_all().await;
    // and those that come after do not wait for one another.
    let next = all(&cache, &["1"; 5]);
    origin::until(|| origin.count() == 10).await;
    gate.add_permits(5);
    next.join_all().await;
}

#[tokio::test]
async fn waiters_read_what_has_arrived_and_the_first_may_leave() {
    let pieces = Arc::new(Mutex::new(None));
    let sender = Arc::clone(&pieces);
    let origin = Origin::new(move |_| {
        let (pieces, response) = streaming(&[FRESH]);
        *sender.lock().unwrap() = Some(pieces);
        async { response }
    })
    .await;
    let cache = cache_of(&[&origin.url]);
    let send = |piece| pieces.lock().unwrap().as_ref().unwrap().send(piece).unwrap();
    let mut first = {
        let asking = cache.answer(request("GET", "/", &[]));
        asking.await.into_body()
    };
    let mut second = cache.answer(request("GET", "/", &[])).await.into_body();
    send("half ");
    for body in [&mut first, &mut second] {
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "half ");
    }
    drop(first);
    let third = cache.answer(request("GET", "/", &[])).await;
    send("whole");
    drop(pieces.lock().unwrap().take());
    assert_eq!(second.frame().await.unwrap().unwrap().into_data().unwrap(), "whole");
    assert!(second.frame().await.is_none());
    assert_eq!(origin::read(third).await.body, "half whole");
    origin::until(|| cache.filling() == 0).await;
    assert!(get(&cache, "/", &[]).await.is_hit());
    assert_eq!(origin.count(), 1);
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_nobodys() {
    let pieces = Arc::new(Mutex::new(None));
    let sender = Arc::clone(&pieces);
    let origin = Origin::new(move |seen| {
        let (pieces, mut answer) = streaming(&[FRESH]);
        pieces.send("half").unwrap();
        if seen.number == 0 {
            // More is promised than comes.
            answer.headers_mut().insert("content-length", "9".parse().unwrap());
            *sender.lock().unwrap() = Some(pieces);
        }
        async { answer }
    })
    .await;
    let cache = cache_of(&[&origin.url]);
    let mut broken = cache.answer(request("GET", "/", &[])).await.into_body();
    assert_eq!(broken.frame().await.unwrap().unwrap().into_data().unwrap(), "half");
    drop(pieces.lock().unwrap().take());
    assert!(broken.frame().await.unwrap().is_err());
    let answer = get(&cache, "/", &[]).await;
    assert!(!answer.is_hit() && answer.body == "half");
}

#[tokio::test]
async fn a_stale_answer_is_sent_while_it_is_validated() {
    let origin = Origin::new(|seen| async move {
        let fields =
            [("cache-control", "max-age=0, stale-while-revalidate=1000"), ("etag", "\"a\"")];
        if seen.number == 0 {
            return response(200, &fields, "old");
        }
        assert_eq!(seen.header("if-none-match"), Some("\"a\""));
        response(200, &[FRESH], "new")
    })
    .await;
    let cache = cache_of(&[&origin.url]);
    get(&cache, "/", &[]).await;
    let stale = get(&cache, "/", &[]).await;
    assert!(stale.is_hit() && stale.body == "old");
    // It is validated in the background, and none waits for that.
    loop {
        let answer = get(&cache, "/", &[]).await;
        assert!(answer.is_hit(), "{}", answer.how());
        if answer.body == "new" {
            break;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_ban_is_of_what_the_cache_before_asks_for_too() {
    // The second is the control: a cache that knows nothing of the one before.
    for (renewed, stored) in [(true, false), (false, true)] {
        let (origin, gate) = held(&[FRESH]).await;
        let (urls, limit) = ([&*origin.url], std::time::Duration::from_secs(20));
        let timeouts = Timeouts { connect: limit, head: limit, stall: limit };
        let before = cache_of(&urls);
        let (origins, limits) = (origin::origins(&urls, timeouts), Limits::default());
        let cache = match renewed {
            true => before.renewed(origins, limits),
            false => Cache::new(before.store().clone(), origins, limits),
        };
        let asking = all(&before, &["1"]);
        origin::until(|| origin.count() == 1).await;
        cache.ban(Ban::All).unwrap();
        gate.add_permits(2);
        asking.join_all().await;
        assert_eq!(get(&cache, "/", &[]).await.is_hit(), stored);
    }
}

/// Checks the age of an answer that was not sent for this request (RFC 9111, 4).
#[tokio::test]
async fn an_answer_that_was_waited_for_tells_its_age() {
    let (origin, gate) = held(&[FRESH]).await;
    let cache = cache_of(&[&origin.url]);
    let mut asking = JoinSet::new();
    for _ in 0..20 {
        let cache = cache.clone();
        asking.spawn(async move { get(&cache, "/", &[]).await });
    }
    origin::until(|| origin.count() == 1).await;
    tokio::task::yield_now().await;
    gate.add_permits(1);
    let answers = asking.join_all().await;
    let waited = answers.iter().filter(|answer| answer.how().ends_with("collapsed"));
    let ages: Vec<_> = waited.map(|answer| answer.header("age").parse::<u32>()).collect();
    assert!(!ages.is_empty() && ages.iter().all(Result::is_ok), "{answers:?}");
}

#[tokio::test]
async fn what_stands_for_an_error_stands_for_all_who_wait() {
    let gate = Arc::new(Semaphore::new(0));
    let waits = Arc::clone(&gate);
    let origin = Origin::new(move |seen| {
        let waits = Arc::clone(&waits);
        async move {
            if seen.number == 0 {
                let fields =
                    [("cache-control", "max-age=0, stale-if-error=1000"), ("etag", "\"a\"")];
                return response(200, &fields, "old");
            }
            waits.acquire().await.unwrap().forget();
            response(503, &[], "")
        }
    })
    .await;
    let cache = cache_of(&[&origin.url]);
    get(&cache, "/", &[]).await;
    let asking = all(&cache, &["1"; 20]);
    origin::until(|| origin.count() == 2).await;
    // All have asked: nothing else is to be done.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    gate.add_permits(100);
    let answers = asking.join_all().await;
    assert!(answers.iter().all(|(_, body)| body == "old"), "{answers:?}");
    let how = "fwd=stale; fwd-status=503; ttl=";
    assert!(answers.iter().all(|(it, _)| it.starts_with(how)), "{answers:?}");
    assert!(answers.iter().any(|(it, _)| it.ends_with("; collapsed")), "{answers:?}");
    assert_eq!(origin.count(), 2);
}

/// Each has its own 304, and all are about the same.
#[tokio::test]
async fn those_who_validate_at_once_do_not_fetch_it_anew() {
    let origin = Origin::new(|seen| async move {
        let number = seen.number.to_string();
        let fields = [("cache-control", "no-cache"), ("etag", "\"a\""), ("x-number", &*number)];
        let known = seen.header("if-none-match") == Some("\"a\"");
        response(if known { 304 } else { 200 }, &fields, if known { "" } else { "body" })
    })
    .await;
    let cache = cache_of(&[&origin.url]);
    get(&cache, "/", &[]).await;
    let answers = all(&cache, &["1"; 20]).join_all().await;
    let how = ("fwd=stale; fwd-status=304".to_owned(), "body".to_owned());
    assert!(answers.iter().all(|answer| *answer == how), "{answers:?}");
    let whole = origin.seen().iter().filter(|seen| seen.header("if-none-match").is_none()).count();
    assert_eq!(whole, 1);
}
