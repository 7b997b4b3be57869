//! Answers from the store, and those that are not: what a public suite does not ask.
#![allow(clippy::unwrap_used)]

mod origin;

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Version};
use http_body_util::Full;
use origin::{Origin, ask, cache_of, cache_with, get, read, request, response};
use sendfile2_cache::proxy::{Limits, Timeouts};
use sendfile2_cache::store::Ban;

const FRESH: (&str, &str) = ("cache-control", "max-age=1000");

#[tokio::test]
async fn the_second_answer_is_from_the_store_with_all_its_lines() {
    let origin = Origin::new(|_| async {
        let fields = [
            FRESH,
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("x", "1, 2"),
            ("content-encoding", "gzip"),
            ("connection", "x-hop"),
            ("x-hop", "1"),
        ];
        response(200, &fields, "body")
    })
    .await;
    let cache = cache_of(&[&origin.url]);
    let first = get(&cache, "/a?b", &[]).await;
    assert_eq!((first.how(), &*first.body), ("fwd=uri-miss; stored", "body"));
    let second = get(&cache, "/a?b", &[]).await;
    assert!(second.is_hit(), "{}", second.how());
    assert_eq!(
        (&*second.body, second.header("x"), second.header("content-encoding")),
        ("body", "1, 2", "gzip")
    );
    let cookies: Vec<_> = second.headers.get_all("set-cookie").iter().collect();
    assert_eq!(cookies, ["a=1", "b=2"]);
    assert!(!second.headers.contains_key("x-hop") && second.headers.contains_key("date"));
    assert_eq!(second.header("via"), "1.1 sendfile2");
    let seen = origin.seen();
    assert_eq!((seen.len(), &*seen[0].path, seen[0].header("host")), (1, "/a?b", Some("h")));
    assert!(!get(&cache, "/a?c", &[]).await.is_hit());
}

#[tokio::test]
async fn numbers_of_any_size_are_numbers() {
    let origin = Origin::new(|seen| async move {
        let (max, age) = match &*seen.path {
            "/old" => ("100", "18446744073709551615"),
            "/older" => ("100", "99999999999999999999999999999999"),
            "/long" => ("99999999999999999999999999999999", "0"),
            _ => ("4294967299", "4294967297"),
        };
        response(200, &[("cache-control", &format!("max-age={max}")), ("age", age)], "x")
    })
    .await;
    let cache = cache_of(&[&origin.url]);
    for (path, hit) in [("/old", false), ("/older", false), ("/long", true), ("/wraps", false)] {
        get(&cache, path, &[]).await;
        assert_eq!(get(&cache, path, &[]).await.is_hit(), hit, "{path}");
    }
    let odd = [("cache-control", "max-age=99999999999999999999, min-fresh=0")];
    assert!(get(&cache, "/long", &odd).await.is_hit());
}

#[tokio::test]
async fn fields_that_are_not_to_be_cached_take_the_whole_with_them() {
    let origin = Origin::new(|seen| async move {
        let value = match &*seen.path {
            "/no-cache" => "max-age=1000, no-cache=\"x\"",
            "/private" => "max-age=1000, private=\"set-cookie\"",
            _ => "max-age=1000, PRIVATE",
        };
        response(200, &[("cache-control", value), ("set-cookie", "secret")], "x")
    })
    .await;
    let cache = cache_of(&[&origin.url]);
    for path in ["/no-cache", "/private", "/PRIVATE"] {
        get(&cache, path, &[]).await;
        assert!(!get(&cache, path, &[]).await.is_hit(), "{path}");
    }
}

#[tokio::test]
async fn nobody_poisons_what_others_get_by_host() {
    let origin = Origin::new(|seen| async move {
        let told = seen.header("host").unwrap_or_default().to_owned();
        response(200, &[FRESH], told)
    })
    .await;
    let cache = cache_of(&[&origin.url]);
    assert_eq!(get(&cache, "/a", &[("host", "evil")]).await.body, "evil");
    assert_eq!(get(&cache, "/a", &[("host", "good")]).await.body, "good");
    // One in another form is the same.
    let same = get(&cache, "/a", &[("host", "GOOD:80")]).await;
    assert!(same.is_hit() && same.body == "good");
    let absolute = get(&cache, "http://good/a", &[("host", "evil")]).await;
    assert!(absolute.is_hit() && absolute.body == "good", "the target's own host counts");
    let seen = origin.count();
    for fields in [
        &[("host", "good"), ("host", "evil")][..],
        &[("host", "")],
        &[("host", "u@good")],
        &[("host", "good"), ("transfer-encoding", "chunked"), ("content-length", "3")],
    ] {
        assert_eq!(get(&cache, "/a", fields).await.status, 400, "{fields:?}");
    }
    assert_eq!(ask(&cache, "CONNECT", "good:80", &[]).await.status, 405);
    let mut old = Request::new(Full::<Bytes>::default());
    (*old.version_mut(), *old.uri_mut()) = (Version::HTTP_10, "/a".parse().unwrap());
    let old = read(cache.answer(old).await).await;
    assert_eq!(old.body, origin.url.trim_start_matches("http://"), "the origin's own");
    assert_eq!(origin.count(), seen + 1);
}

#[tokio::test]
async fn a_private_answer_stays_with_who_asked() {
    let origin = Origin::new(|seen| async move {
        let public = if seen.path == "/public" { "max-age=1000, public" } else { "max-age=1000" };
        let who = seen.header("authorization").unwrap_or("nobody").to_owned();
        response(200, &[("cache-control", public)], who)
    })
    .await;
    let cache = cache_of(&[&origin.url]);
    let of = |who: &'static str, path: &'static str| {
        let cache = cache.clone();
        async move { get(&cache, path, &[("authorization", who)]).await.body }
    };
    assert_eq!(of("a", "/x").await, "a");
    assert_eq!(of("b", "/x").await, "b");
    assert_eq!(get(&cache, "/x", &[]).await.body, "nobody");
    assert_eq!(of("a", "/public").await, "a");
    assert_eq!(of("b", "/public").await, "a");
}

#[tokio::test]
async fn conditions_are_the_clients_own() {
    let origin = Origin::new(|seen| async move {
        let fields = [("cache-control", "max-age=0"), ("etag", "\"v1\"")];
        if seen.header("if-none-match") == Some("\"v1\"") {
            return response(304, &[("etag", "\"v1\""), ("cache-control", "max-age=1000")], "");
        }
        response(200, &fields, "0123456789")
    })
    .await;
    let cache = cache_of(&[&origin.url]);
    // Neither the condition nor the part is of what is to be stored.
    let known = [("if-none-match", "\"v0\"")];
    assert_eq!(get(&cache, "/a", &known).await.body, "0123456789");
    let part = [("range", "bytes=2-3"), ("if-none-match", "\"v0\"")];
    let answer = get(&cache, "/a", &part).await;
    assert_eq!((answer.status.as_u16(), &*answer.body), (206, "23"));
    assert_eq!(answer.how(), "fwd=stale; fwd-status=304");
    let seen = origin.seen();
    assert_eq!(seen[0].header("if-none-match"), None);
    assert_eq!((seen[1].header("if-none-match"), seen[1].header("range")), (Some("\"v1\""), None));
    for (fields, status) in [
        (&[("if-none-match", "W/\"v1\"")][..], 304),
        (&[("if-none-match", "\"v0\""), ("range", "bytes=10-")], 416),
        (&[("range", "bytes=0-1"), ("if-range", "\"v0\"")], 200),
        (&[("range", "bytes=0-1"), ("if-range", "\"v1\"")], 206),
        (&[("range", "bytes=0-1,3-4")], 200),
    ] {
        let answer = get(&cache, "/a", fields).await;
        assert_eq!(answer.status.as_u16(), status, "{fields:?}");
        assert!(answer.is_hit(), "{fields:?}");
    }
    let unsatisfiable = get(&cache, "/a", &[("range", "bytes=10-")]).await;
    assert_eq!(unsatisfiable.header("content-range"), "bytes */10");
    assert!(unsatisfiable.body.is_empty() && !unsatisfiable.headers.contains_key("content-type"));
    assert_eq!(origin.count(), 2);
    // These are for the origin.
    get(&cache, "/a", &[("if-match", "\"v1\"")]).await;
    assert_eq!(origin.seen()[2].header("if-match"), Some("\"v1\""));
}

#[tokio::test]
async fn a_304_of_another_response_changes_nothing() {
    let origin = Origin::new(|seen| async move {
        match (seen.number, seen.header("if-none-match")) {
            (0, _) => response(200, &[("cache-control", "max-age=0"), ("etag", "\"a\"")], "a"),
            (_, Some(_)) => response(304, &[("etag", "\"b\""), FRESH], ""),
            (_, None) => response(200, &[("etag", "\"b\""), FRESH], "b"),
        }
    })
    .await;
    let cache = cache_of(&[&origin.url]);
    assert_eq!(get(&cache, "/", &[]).await.body, "a");
    assert_eq!(get(&cache, "/", &[]).await.body, "b");
    assert_eq!(origin.count(), 3);
    let hit = get(&cache, "/", &[]).await;
    assert!(hit.is_hit() && hit.body == "b");
}

#[tokio::test]
async fn a_change_makes_invalid_also_what_is_on_its_way() {
    let held = std::sync::Arc::new(tokio::sync::Notify::new());
    let wait = std::sync::Arc::clone(&held);
    let origin = Origin::new(move |seen| {
        let wait = std::sync::Arc::clone(&wait);
        async move {
            match (seen.method.as_str(), seen.number) {
                ("POST", _) => response(201, &[("location", "/b")], ""),
                (_, 1) => {
                    wait.notified().await;
                    response(200, &[FRESH], "before")
                }
                _ => response(200, &[FRESH], format!("number {}", seen.number)),
            }
        }
    })
    .await;
    let cache = cache_of(&[&origin.url]);
    assert_eq!(get(&cache, "/b", &[]).await.body, "number 0");
    let waiting = {
        let cache = cache.clone();
        tokio::spawn(async move { get(&cache, "/a", &[]).await.body })
    };
    origin::until(|| origin.count() == 2).await;
    ask(&cache, "POST", "/a", &[]).await;
    // A request after the change is not answered by what was asked before it.
    assert_eq!(get(&cache, "/a", &[]).await.body, "number 3");
    assert_eq!(get(&cache, "/b", &[]).await.body, "number 4");
    held.notify_one();
    assert_eq!(waiting.await.unwrap(), "before");
    let after = get(&cache, "/a", &[]).await.body;
    assert_ne!(after, "before", "it was banned before it came");
}

#[tokio::test]
async fn variants_go_when_their_target_changes() {
    let origin = Origin::new(|seen| async move {
        let body = format!("{} {}", seen.header("x").unwrap_or("-"), seen.number);
        response(200, &[FRESH, ("vary", "x")], body)
    })
    .await;
    let cache = cache_of(&[&origin.url]);
    assert_eq!(get(&cache, "/", &[("x", "1")]).await.body, "1 0");
    assert_eq!(get(&cache, "/", &[("x", "2")]).await.body, "2 1");
    assert_eq!(get(&cache, "/", &[("x", "1")]).await.body, "1 0");
    assert_eq!(get(&cache, "/", &[]).await.how(), "fwd=vary-miss; stored");
    ask(&cache, "DELETE", "/", &[]).await;
    assert_eq!(get(&cache, "/", &[("x", "2")]).await.body, "2 4");
    // One that was stored before does not come back with a new one beside it.
    assert_eq!(get(&cache, "/", &[("x", "1")]).await.body, "1 5");
}

#[tokio::test]
async fn trouble_is_bridged_where_that_is_allowed() {
    let origin = Origin::new(|seen| async move {
        let cc = match &*seen.path {
            "/allowed" => "max-age=0, stale-if-error=1000",
            "/strict" => "max-age=0, must-revalidate, stale-if-error=1000",
            _ => "max-age=0",
        };
        let again = seen.header("if-none-match").is_some();
        response(if again { 503 } else { 200 }, &[("cache-control", cc), ("etag", "\"a\"")], "x")
    })
    .await;
    let cache = cache_of(&[&origin.url]);
    for (path, status) in [("/allowed", 200), ("/strict", 503), ("/unsaid", 503)] {
        get(&cache, path, &[]).await;
        let answer = get(&cache, path, &[]).await;
        assert_eq!(answer.status.as_u16(), status, "{path} {}", answer.how());
    }
}

#[tokio::test]
async fn an_origin_that_is_gone_is_an_error_and_one_of_two_is_none() {
    let gone = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    assert_eq!(get(&cache_of(&[&gone]), "/", &[]).await.status, 502);
    assert_eq!(ask(&cache_of(&[&gone]), "POST", "/", &[]).await.status, 502);
    let origin = Origin::new(|_| async { response(200, &[], "x") }).await;
    let cache = cache_of(&[&gone, &origin.url]);
    for _ in 0..4 {
        assert_eq!(get(&cache, "/", &[]).await.status, 200);
    }
    let silent = Origin::new(|_| std::future::pending()).await;
    let timeouts = Timeouts { head: Duration::from_millis(50), ..Timeouts::default() };
    let cache = cache_with(&[&silent.url], timeouts, Limits::default());
    assert_eq!(get(&cache, "/", &[]).await.status, 504);
    assert_eq!(get(&cache, "/", &[("cache-control", "only-if-cached")]).await.status, 504);
    assert_eq!(silent.count(), 1);
}

#[tokio::test]
async fn a_head_tells_of_what_is_stored() {
    let origin = Origin::new(|seen| async move {
        let tag = if seen.path == "/same" || seen.number % 2 == 0 { "\"a\"" } else { "\"b\"" };
        let age = if seen.method == "HEAD" { "max-age=1000" } else { "max-age=0" };
        response(200, &[("cache-control", age), ("etag", tag)], "x")
    })
    .await;
    let cache = cache_of(&[&origin.url]);
    for (path, hit) in [("/other", false), ("/same", true)] {
        get(&cache, path, &[]).await;
        let head = ask(&cache, "HEAD", path, &[]).await;
        assert_eq!((head.status.as_u16(), &*head.body), (200, ""));
        assert_eq!(get(&cache, path, &[]).await.is_hit(), hit, "{path}");
    }
}

#[tokio::test]
async fn what_is_too_large_for_the_store_passes_whole() {
    let large = "0123456789abcdef".repeat(5 << 16); // 5 MiB; the store takes 4 MiB at most.
    let body = large.clone();
    let origin = Origin::new(move |seen| {
        let body = body.clone();
        async move {
            if seen.path == "/told" {
                return response(200, &[FRESH], body);
            }
            let (pieces, response) = origin::streaming(&[FRESH]);
            let body: &'static str = body.leak();
            let halves = body.split_at(body.len() / 2);
            for piece in [halves.0, halves.1] {
                let _ = pieces.send(piece);
            }
            response
        }
    })
    .await;
    let cache = cache_of(&[&origin.url]);
    for path in ["/told", "/untold"] {
        assert_eq!(get(&cache, path, &[]).await.body.len(), large.len(), "{path}");
        let again = get(&cache, path, &[]).await;
        assert!(!again.is_hit() && again.body == large, "{path}");
    }
    let limits = Limits { request_body: 3, ..Limits::default() };
    let cache = cache_with(&[&origin.url], Timeouts::default(), limits);
    let post = request("POST", "/told", &[]).map(|_| Full::new(Bytes::from_static(b"1234")));
    assert_eq!(cache.answer(post).await.status(), 413);
}

/// Bytes beyond ASCII are allowed in a field, and hide nothing beside them.
#[tokio::test]
async fn tags_and_locations_are_found_beside_any_bytes() {
    let origin = Origin::new(|seen| async move {
        let fields: &[_] = match (&seen.method, &*seen.path) {
            (&http::Method::POST, _) => &[("location", "/caf\u{e9}"), ("content-location", "/b")],
            (_, "/a") => &[("cache-control", "max-age=60"), ("surrogate-key", "caf\u{e9} one")],
            (_, "/b") => &[("cache-control", "max-age=60"), ("cache-tag", "caf\u{e9} two, three")],
            _ => &[("cache-control", "max-age=60")],
        };
        response(200, fields, "x")
    })
    .await;
    let cache = cache_of(&[&origin.url]);
    for (path, tag) in
        [("/a", "one"), ("/a", "caf\u{e9}"), ("/b", "three"), ("/b", "caf\u{e9} two")]
    {
        get(&cache, path, &[]).await;
        assert!(get(&cache, path, &[]).await.is_hit());
        cache.ban(Ban::Tag(tag.into())).unwrap();
        assert!(!get(&cache, path, &[]).await.is_hit(), "{tag} at {path}");
    }
    get(&cache, "/caf\u{e9}", &[]).await;
    assert!(get(&cache, "/caf\u{e9}", &[]).await.is_hit());
    ask(&cache, "POST", "/new", &[]).await;
    assert!(!get(&cache, "/caf\u{e9}", &[]).await.is_hit(), "the location");
    assert!(!get(&cache, "/b", &[]).await.is_hit(), "the other one");
}

/// RFC 6585 forbids it.
#[tokio::test]
async fn what_one_client_did_is_not_told_to_others() {
    let origin = Origin::new(|seen| async move {
        let fields = [("cache-control", "public, max-age=60"), ("etag", "\"a\"")];
        response(seen.path[1..].parse().unwrap(), &fields, "x")
    })
    .await;
    let cache = cache_of(&[&origin.url]);
    for status in ["/428", "/429", "/431", "/511"] {
        for _ in 0..2 {
            let answer = get(&cache, status, &[]).await;
            assert_eq!(answer.how(), "fwd=uri-miss; detail=status", "{status}");
        }
    }
    // A control.
    get(&cache, "/503", &[]).await;
    assert!(get(&cache, "/503", &[]).await.is_hit());
}

#[tokio::test]
async fn options_go_as_far_as_they_say() {
    let origin = Origin::new(|_| async { response(200, &[], "x") }).await;
    let cache = cache_of(&[&origin.url]);
    for (uri, forwards, status, seen) in [
        ("/a", "0", 204, None),
        ("*", "0", 204, None),
        ("/a", "1", 200, Some("0")),
        ("*", "8", 200, Some("7")),
        ("/a", "x", 200, Some("x")),
    ] {
        let before = origin.count();
        let answer = ask(&cache, "OPTIONS", uri, &[("max-forwards", forwards)]).await;
        assert_eq!(answer.status.as_u16(), status, "{uri} {forwards}");
        let all = origin.seen();
        let last = all[before..].last();
        assert_eq!(last.and_then(|last| last.header("max-forwards")), seen, "{uri} {forwards}");
        assert!(last.is_none_or(|last| last.path == uri), "{uri} is {last:?}");
    }
    // Of other methods it says nothing.
    assert_eq!(get(&cache, "/a", &[("max-forwards", "0")]).await.status, 200);
}

/// A date that is there twice is none (RFC 9110, 13.1.3).
#[tokio::test]
async fn a_condition_of_two_dates_is_none() {
    let origin = Origin::new(|_| async {
        let old = ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT");
        response(200, &[("cache-control", "max-age=60"), old], "x")
    })
    .await;
    let cache = cache_of(&[&origin.url]);
    let since = ("if-modified-since", "Sun, 06 Nov 1994 08:49:37 GMT");
    get(&cache, "/", &[]).await;
    assert_eq!(get(&cache, "/", &[since]).await.status, 304);
    assert_eq!(get(&cache, "/", &[since, since]).await.status, 200);
}
