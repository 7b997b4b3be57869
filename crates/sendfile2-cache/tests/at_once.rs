//! Hits that take no waiting are what is answered else.
#![allow(clippy::unwrap_used)]

mod origin;

use http::{HeaderMap, Version};
use origin::{Origin, cache_of, get, read, request, response};

const TAG: (&str, &str) = ("etag", "\"a\"");
const FRESH: (&str, &str) = ("cache-control", "max-age=1000");

/// For each kind of answer and of request: what is answered at once is what is answered over HTTP/2,
/// for which nothing is. And what is fresh, and in no need of the origin, is answered at once.
#[tokio::test]
async fn what_is_answered_at_once_is_what_is_answered_else() {
    let long = "long ".repeat(10_000);
    let body = long.clone();
    let origin = Origin::new(move |seen| {
        let body = body.clone();
        async move {
            match &*seen.path {
                "/plain" => response(200, &[FRESH, TAG, ("set-cookie", "a=1")], "plain"),
                "/long" => response(200, &[FRESH, TAG], body),
                "/empty" => response(200, &[FRESH], ""),
                "/none" => response(404, &[FRESH], "none"),
                "/vary" => response(200, &[FRESH, ("vary", "accept-encoding, x-a")], "vary"),
                "/part" => {
                    let range = ("content-range", "bytes 0-3/10");
                    response(206, &[FRESH, TAG, range], "part")
                }
                "/stale" => response(200, &[TAG, ("cache-control", "max-age=0")], "stale"),
                _ => response(200, &[("cache-control", "no-store")], "other"),
            }
        }
    })
    .await;
    let cache = cache_of(&[&origin.url]);
    get(&cache, "/part", &[("range", "bytes=0-3")]).await;
    for path in ["/plain", "/long", "/empty", "/none", "/vary", "/stale"] {
        get(&cache, path, &[]).await;
    }
    let fields: [&[(&str, &str)]; 17] = [
        &[],
        &[("connection", "keep-alive")],
        &[("connection", "range"), ("range", "bytes=1-2")],
        &[("connection", "x-a, if-match"), ("x-a", "1"), ("if-match", "\"b\"")],
        &[("range", "bytes=1-2")],
        &[("range", "bytes=1000-")],
        &[("if-none-match", "\"a\"")],
        &[("if-modified-since", "Fri, 31 Dec 9999 23:59:59 GMT")],
        &[("host", "H:80")],
        // From here on not at once.
        &[("if-match", "\"a\"")],
        &[("cache-control", "no-cache")],
        &[("cache-control", "max-age=0")],
        &[("pragma", "no-cache")],
        &[("x-a", "1")],
        &[("accept-encoding", "gzip")],
        &[("host", "other")],
        &[("host", "h, i")],
    ];
    let whole: &[_] = &["/plain", "/long", "/empty", "/none", "/vary"];
    // Seconds may pass between the two.
    let plain = |headers: &HeaderMap| {
        let mut headers = headers.clone();
        for name in ["age", "cache-status"] {
            assert!(headers.remove(name).is_some(), "{name}");
        }
        headers
    };
    for path in ["/plain", "/long", "/empty", "/none", "/vary", "/part", "/stale", "/other"] {
        for (number, fields) in fields.iter().enumerate() {
            let what = format!("{path} {fields:?}");
            let at_once = cache.at_once(&mut request("GET", path, fields));
            let expected = match (path, number) {
                ("/part", _) => matches!(number, 4..=7),
                // They do not decide there.
                (_, 13 | 14) => whole.contains(&path) && path != "/vary",
                _ => whole.contains(&path) && number < 9,
            };
            assert_eq!(at_once.is_some(), expected, "{what}");
            let Some(at_once) = at_once else { continue };
            let mut else_ = request("GET", path, fields);
            *else_.version_mut() = Version::HTTP_2;
            let (one, two) = (read(at_once).await, read(cache.answer(else_).await).await);
            assert!(one.is_hit() && two.is_hit(), "{what} {one:?} {two:?}");
            assert_eq!((one.status, &one.body), (two.status, &two.body), "{what}");
            assert_eq!(plain(&one.headers), plain(&two.headers), "{what}");
        }
    }
    let seen = origin.count();
    for (method, version) in
        [("HEAD", Version::HTTP_11), ("POST", Version::HTTP_11), ("GET", Version::HTTP_2)]
    {
        let mut request = request(method, "/plain", &[]);
        *request.version_mut() = version;
        assert!(cache.at_once(&mut request).is_none(), "{method} {version:?}");
    }
    assert_eq!(origin.count(), seen);
}

/// A request that is not answered at once is not counted as if it had been asked twice.
#[tokio::test]
async fn a_look_at_what_is_not_there_counts_nothing() {
    let origin = Origin::new(|_| async { response(200, &[("cache-control", "max-age=0")], "x") });
    let origin = origin.await;
    let cache = cache_of(&[&origin.url]);
    for path in ["/a", "/a", "/b"] {
        assert!(cache.at_once(&mut request("GET", path, &[])).is_none());
        let counters = cache.store().counters();
        assert_eq!((counters.hits, counters.misses), (0, 0));
    }
}
