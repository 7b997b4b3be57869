//! Several origins: which of them are asked, and which are left alone.
#![allow(clippy::unwrap_used)]

mod origin;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use http::Request;
use origin::{Body, Origin, get, origins, response, until};
use sendfile2_cache::Cache;
use sendfile2_cache::proxy::{HealthCheck, Limits, Timeouts};
use sendfile2_cache::store::{Options, Store};

fn cache(urls: &[&str]) -> Cache {
    let limit = Duration::from_secs(20);
    let timeouts = Timeouts { connect: limit, head: limit, stall: limit };
    let (path, interval) = ("/well?x".into(), Duration::from_millis(20));
    let check = HealthCheck { path, interval, fails: 3, passes: 2 };
    let options = Options { size: 64 << 20, region: 2 << 20, ..Options::default() };
    let (store, _) = Store::open(&options).unwrap();
    Cache::new(store, origins(urls, timeouts).checked(check), Limits::default())
}

#[tokio::test]
async fn an_origin_that_is_not_well_is_left_alone_until_it_is() {
    let well = Arc::new(AtomicBool::new(true));
    let told = Arc::clone(&well);
    let first = Origin::new(move |seen| {
        let status = if seen.path == "/well?x" && !told.load(SeqCst) { 503 } else { 200 };
        async move { response(status, &[("cache-control", "no-store")], "first") }
    })
    .await;
    let second = Origin::new(|seen| async move {
        response(200, &[("cache-control", "no-store")], format!("second {}", seen.path))
    })
    .await;
    let cache = cache(&[&first.url, &second.url]);
    let checks = tokio::spawn(cache.check_origins());
    let up = || cache.origins().iter().map(|origin| origin.up).collect::<Vec<_>>();
    let asked = async |cache: Cache| {
        let mut bodies = Vec::new();
        for _ in 0..4 {
            bodies.push(get(&cache, "/", &[]).await.body);
        }
        bodies.iter().filter(|body| *body == "first").count()
    };
    assert_eq!(up(), [true, true]);
    assert_eq!(asked(cache.clone()).await, 2);
    well.store(false, SeqCst);
    until(|| up() == [false, true]).await;
    let failed = first.seen().iter().filter(|seen| seen.path == "/well?x").count();
    assert!(failed >= 3, "{failed}");
    assert_eq!(asked(cache.clone()).await, 0);
    well.store(true, SeqCst);
    until(|| up() == [true, true]).await;
    assert_eq!(asked(cache.clone()).await, 2);
    let checked = first.seen().into_iter().find(|seen| seen.path == "/well?x").unwrap();
    assert_eq!(checked.header("user-agent"), Some("sendfile2"));
    assert_eq!(checked.header("host"), first.url.strip_prefix("http://"));
    // The task ends with the cache.
    drop(cache);
    checks.await.unwrap();
}

#[tokio::test]
async fn where_all_are_down_they_are_asked_nevertheless() {
    let origin = Origin::new(|seen| async move {
        response(if seen.path == "/well?x" { 500 } else { 200 }, &[], "answer")
    })
    .await;
    let cache = cache(&[&origin.url]);
    let _checks = tokio::spawn(cache.check_origins());
    until(|| !cache.origins()[0].up).await;
    assert_eq!(get(&cache, "/", &[]).await.body, "answer");
}

/// A body of these pieces, each of which comes a while after the one before.
fn slowly(pieces: &'static [&'static str], each: Duration) -> Request<Body> {
    let (sender, answer) = origin::streaming(&[]);
    tokio::spawn(async move {
        for piece in pieces {
            tokio::time::sleep(each).await;
            if sender.send(piece).is_err() {
                return;
            }
        }
        // One that has no pieces never ends.
        if pieces.is_empty() {
            std::future::pending::<()>().await;
        }
    });
    let request = Request::builder().method("POST").uri("/").header("host", "h");
    request.body(answer.into_body()).unwrap()
}

/// A client's fault with its body is not the origin's.
#[tokio::test]
async fn an_upload_may_take_its_time_and_its_end_is_not_the_origins() {
    let origin = Origin::new(|seen| async move { response(200, &[], seen.body) }).await;
    let limit = Duration::from_secs(1);
    let timeouts = Timeouts { connect: limit, head: limit, stall: limit };
    let limits = Limits { request_body: 10, ..Limits::default() };
    let cache = origin::cache_with(&[&origin.url], timeouts, limits);
    // It takes longer than an answer may, in all.
    let answer = cache.answer(slowly(&["a", "b", "c", "d"], Duration::from_millis(400))).await;
    assert_eq!(origin::read(answer).await.body, "abcd");
    let asks = async |request: Request<Body>| cache.answer(request).await.status().as_u16();
    assert_eq!(asks(slowly(&["abcdef", "ghijkl"], Duration::ZERO)).await, 413);
    assert_eq!(asks(slowly(&[], Duration::ZERO)).await, 408);
    let broken = origin::pieces(&[], |n| match n {
        0 => Some(Ok("a".into())),
        _ => Some(Err(std::io::ErrorKind::BrokenPipe.into())),
    });
    let request = Request::builder().method("POST").uri("/").header("host", "h");
    assert_eq!(asks(request.body(broken.into_body()).unwrap()).await, 400);
    assert!(cache.origins()[0].up);
}
