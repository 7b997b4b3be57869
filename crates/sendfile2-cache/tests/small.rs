//! Bodies that are read together with their heads, and those that are not: each answer has its bytes.
#![allow(clippy::unwrap_used)]

mod common;
mod origin;

use std::ops::Range;
use std::path::Path;

use bytes::Bytes;
use common::MIB;
use http::Response;
use http_body_util::BodyExt;
use hyper::body::Body as _;
use origin::{Body, Origin, Seen, request, response, until};
use sendfile2_cache::Cache;
use sendfile2_cache::proxy::{CacheBody, Limits, Timeouts};
use sendfile2_cache::store::{Hit, Key, Options, Store};

/// The most that is read with its head.
const MOST: usize = 16 << 10;
const TAG: (&str, &str) = ("etag", "\"a\"");
const FRESH: (&str, &str) = ("cache-control", "max-age=1000");

fn open(path: &Path) -> Store {
    let options =
        Options { path: Some(path.into()), size: 64 * MIB, region: 2 * MIB, ..Options::default() };
    common::store(&options)
}

fn cache(store: &Store, url: &str) -> Cache {
    Cache::new(store.clone(), origin::origins(&[url], Timeouts::default()), Limits::default())
}

/// The body of a path, which ends with its length.
fn body_of(path: &str) -> Bytes {
    let len: usize = path.rsplit('/').next().unwrap().parse().unwrap();
    common::body(u32::try_from(len).unwrap(), len).into()
}

/// Tells its length or not, and has a new head for what is there already.
fn answered(seen: &Seen) -> Response<Body> {
    let all = body_of(&seen.path);
    if seen.header("if-none-match").is_some() {
        return response(304, &[TAG, FRESH, ("x", "new")], "");
    }
    if let Some(range) = seen.header("range").and_then(|range| range.strip_prefix("bytes=")) {
        let (first, last) = range.split_once('-').unwrap();
        let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
        let told = format!("bytes {first}-{last}/{}", all.len());
        return response(206, &[TAG, FRESH, ("content-range", &told)], all.slice(first..=last));
    }
    match seen.path.split('/').nth(1).unwrap() {
        "chunked" => {
            let mut pieces =
                all.chunks(100_000).map(Bytes::copy_from_slice).collect::<Vec<_>>().into_iter();
            origin::pieces(&[TAG, FRESH], move |_| pieces.next().map(Ok))
        }
        "nothing" => response(204, &[TAG, FRESH], ""),
        "posted" => response(200, &[TAG, FRESH, ("content-location", &seen.path)], all),
        _ => response(200, &[TAG, FRESH], all),
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    how: String,
    x: String,
    with_head: bool,
    length: Option<u64>,
    body: Bytes,
}

async fn read(method: &str, response: Response<CacheBody>) -> Answer {
    let field = |name| response.headers().get(name).map_or("", |value| value.to_str().unwrap());
    let (how, x) = (field("cache-status").to_owned(), field("x").to_owned());
    let (status, hint) = (response.status().as_u16(), response.body().size_hint().exact());
    let length = if method == "HEAD" { field("content-length").parse().ok() } else { hint };
    let with_head = format!("{:?}", response.body()).starts_with("CacheBody(Text");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    Answer { status, how, x, with_head, length, body }
}

async fn ask(cache: &Cache, method: &str, path: &str, fields: &[(&str, &str)]) -> Answer {
    let answer = read(method, cache.answer(request(method, path, fields)).await).await;
    until(|| cache.filling() == 0).await;
    answer
}

/// All that can be asked of a body of so many bytes by ranges, and the answers.
fn ranges(len: usize) -> Vec<(String, u16, Range<usize>)> {
    // Of nothing there is no part.
    let beyond = if len == 0 { 200 } else { 416 };
    let mut all = vec![(format!("bytes={len}-"), beyond, 0..0)];
    if len > 0 {
        let (half, last) = (len / 2, len - 1);
        all.push(("bytes=0-0".into(), 206, 0..1));
        all.push(("bytes=0-".into(), 206, 0..len));
        all.push((format!("bytes={half}-{last}"), 206, half..len));
        all.push((format!("bytes={last}-{}", len + 99), 206, last..len));
        all.push(("bytes=-1".into(), 206, last..len));
        all.push((format!("bytes=-{len}"), 206, 0..len));
        all.push((format!("bytes=-{}", len + 1), 206, 0..len));
    }
    if len > 10 {
        all.push(("bytes=3-9".into(), 206, 3..10));
    }
    all
}

/// Asks for what is stored in all ways; by `x` it has this head.
async fn is_there(cache: &Cache, path: &str, x: &str, with_head: bool) {
    let all = body_of(path);
    let whole = ask(cache, "GET", path, &[]).await;
    assert!(whole.status == 200 && whole.how.contains("hit"), "{path}: {}", whole.how);
    assert!(whole.body == all, "{path} {x}: {} bytes", whole.body.len());
    assert_eq!((&*whole.x, whole.length), (x, Some(all.len() as u64)), "{path}");
    assert_eq!(whole.with_head, with_head, "{path} {x}");
    for (range, status, at) in ranges(all.len()) {
        let part = ask(cache, "GET", path, &[("range", &range)]).await;
        let length = Some(at.len() as u64);
        assert_eq!((part.status, part.length, &*part.x), (status, length, x), "{path} {range}");
        assert!(part.how.contains("hit") && part.body == all[at], "{path} {range}");
    }
    let other = ask(cache, "GET", path, &[("range", "bytes=0-0"), ("if-range", "\"b\"")]).await;
    assert!(other.status == 200 && other.body == all, "{path}");
    let same = ask(cache, "GET", path, &[("if-none-match", TAG.1)]).await;
    assert_eq!((same.status, &*same.body), (304, &b""[..]), "{path}");
    let head = ask(cache, "HEAD", path, &[]).await;
    assert!(head.how.contains("hit"), "{path}: {}", head.how);
    assert_eq!((head.status, head.length), (200, Some(all.len() as u64)), "{path}");
    assert!(head.body.is_empty(), "{path}");
}

#[tokio::test]
async fn small_or_not_each_hit_has_its_bytes() {
    let origin = Origin::new(|seen| async move { answered(&seen) }).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let (mut store, mut paths) = (open(&path), Vec::new());
    let mut cached = cache(&store, &origin.url);
    // The largest is in parts.
    for len in [0, 1, 11, MOST - 1, MOST, MOST + 1, 70_000, 3_000_000] {
        for how in ["told", "chunked", "posted"] {
            let path = format!("/{how}/{len}");
            let method = if how == "posted" { "POST" } else { "GET" };
            let first = ask(&cached, method, &path, &[]).await;
            assert!(first.how.contains("stored") && first.body == body_of(&path), "{first:?}");
            paths.push((path, len));
        }
    }
    let asked = origin.count();
    for (path, len) in &paths {
        is_there(&cached, path, "", *len <= MOST).await;
    }
    assert_eq!(origin.count(), asked, "all of them were hits");
    // A new head is elsewhere; of an empty body nothing is to be read there.
    for (path, len) in &paths {
        let answer = ask(&cached, "GET", path, &[("cache-control", "no-cache")]).await;
        assert!(answer.how.contains("fwd-status=304"), "{path}: {}", answer.how);
        assert!(answer.body == body_of(path), "{path}");
        is_there(&cached, path, "new", *len == 0).await;
    }
    // What another process has stored is compared first.
    drop((cached, store));
    store = open(&path);
    cached = cache(&store, &origin.url);
    for (path, len) in &paths {
        for _ in 0..2 {
            is_there(&cached, path, "new", *len == 0).await;
        }
    }
    assert_eq!(origin.count(), asked + paths.len());
}

#[tokio::test]
async fn a_part_and_nothing_are_what_they_are() {
    let origin = Origin::new(|seen| async move { answered(&seen) }).await;
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("store"));
    let cache = cache(&store, &origin.url);
    for len in [1000, MOST + 1000] {
        let path = format!("/told/{len}");
        let all = body_of(&path);
        for (from, to) in [(100, 700), (700, len), (0, 100)] {
            let range = format!("bytes={from}-{}", to - 1);
            for hit in [false, true] {
                let part = ask(&cache, "GET", &path, &[("range", &range)]).await;
                assert_eq!((part.status, part.how.contains("hit")), (206, hit), "{path} {range}");
                assert!(part.body == all[from..to], "{path} {range}");
            }
            let within = format!("bytes={}-{}", from + 1, from + 50);
            let part = ask(&cache, "GET", &path, &[("range", &within)]).await;
            assert!(part.how.contains("hit") && part.body == all[from + 1..=from + 50], "{within}");
            let suffix = ask(&cache, "GET", &path, &[("range", "bytes=-200")]).await;
            assert!(from == 100 || suffix.how.contains("hit") && suffix.body == all[len - 200..]);
        }
        is_there(&cache, &path, "", len <= MOST).await;
    }
    for hit in [false, true] {
        let nothing = ask(&cache, "GET", "/nothing/0", &[]).await;
        assert_eq!((nothing.status, &*nothing.body), (204, &b""[..]));
        assert_eq!(nothing.how.contains("hit"), hit, "{}", nothing.how);
    }
    assert_eq!(ask(&cache, "HEAD", "/nothing/0", &[]).await.status, 204);
}

/// An answer in hand stays whole, though the store overwrites its region meanwhile.
#[tokio::test]
async fn what_is_in_hand_stays_as_it_is() {
    let origin = Origin::new(|seen| async move { answered(&seen) }).await;
    let store = common::store(&Options { size: 64 * MIB, region: 2 * MIB, ..Options::default() });
    let cache = cache(&store, &origin.url);
    let mut in_hand = Vec::new();
    for path in ["/told/0", "/told/1000", "/told/16384", "/told/16385", "/chunked/3000000"] {
        ask(&cache, "GET", path, &[]).await;
        for range in [None, Some("bytes=0-")] {
            let fields: Vec<_> = range.iter().map(|range| ("range", *range)).collect();
            in_hand.push((path, cache.answer(request("GET", path, &fields)).await));
        }
    }
    for n in 0..1500 {
        common::put(&store, key(n), [0; 24], b"", &common::body(n, 60_000), None).unwrap();
    }
    assert!(store.counters().recycled > 40, "{:?}", store.counters());
    for (path, response) in in_hand {
        let answer = read("GET", response).await;
        assert!(answer.how.contains("hit") && answer.body == body_of(path), "{path}");
    }
}

fn key(n: u32) -> Key {
    Key::of(&[&n.to_le_bytes()])
}

/// Where the head of a body is: `None` behind it, else whether it is before it in the file.
fn head_before(hit: &Hit) -> Option<bool> {
    let (lease, at) = hit.leases(0..hit.len()).remove(0);
    let ranges = lease.ranges();
    (ranges.len() == 2).then(|| !ranges[0].contains(&at.start))
}

#[test]
fn a_head_may_be_before_its_body_or_behind_it() {
    let store = common::store(&common::small());
    let small_of = |n: u32| common::body(n, 500 + n as usize);
    let mut next = 1000;
    let mut others = |count: u32| {
        for _ in 0..count {
            let n = next;
            next += 1;
            common::put(&store, key(n), [0; 24], b"other", &common::body(n, 60_000), None).unwrap();
        }
    };
    let (mut together, mut before, mut behind) = (0, 0, 0);
    for n in 0..60 {
        let small = small_of(n);
        common::put(&store, key(n), [0; 24], b"old", &small, None).unwrap();
        for times in 0..3 {
            let hit = store.try_get(&key(n)).unwrap().unwrap();
            assert!(common::stored(&hit) == small, "{n}");
            let head = if times == 0 { "old".into() } else { format!("new {n} {times}") };
            assert_eq!(hit.head(), head.as_bytes(), "{n}");
            match head_before(&hit) {
                None => together += 1,
                Some(true) => before += 1,
                Some(false) => behind += 1,
            }
            others(37 * (n % 3));
            let head = format!("new {n} {}", times + 1);
            if store.refresh(&key(n), [1; 24], head.as_bytes()).is_err() {
                break;
            }
        }
    }
    assert!(together > 10 && before > 0 && behind > 10, "{together} {before} {behind}");
}
