//! Parts: stored where they may be, put together, and taken from the whole.
#![allow(clippy::unwrap_used)]

mod origin;

use http::Response;
use origin::{Body, Origin, Seen, cache_of, get, response};

const WHOLE: &str = "0123456789";

/// Answers a range as it is asked for, with this entity tag.
fn part(seen: &Seen, tag: &str) -> Response<Body> {
    let fields = [("cache-control", "max-age=1000"), ("etag", tag)];
    let Some(range) = seen.header("range").and_then(|range| range.strip_prefix("bytes=")) else {
        return response(200, &fields, WHOLE);
    };
    let (first, last) = range.split_once('-').unwrap();
    let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap_or(9));
    let told = format!("bytes {first}-{last}/10");
    let fields = [fields[0], fields[1], ("content-range", &*told)];
    response(206, &fields, &WHOLE[first..=last])
}

#[tokio::test]
async fn parts_are_put_together() {
    for order in [["0-3", "4-9"], ["5-9", "0-5"], ["2-5", "0-9"]] {
        let origin = Origin::new(|seen| async move { part(&seen, "\"a\"") }).await;
        let cache = cache_of(&[&origin.url]);
        for range in order {
            let asked = format!("bytes={range}");
            let answer = get(&cache, "/", &[("range", &asked)]).await;
            let (first, last) = range.split_once('-').unwrap();
            let expected = &WHOLE[first.parse().unwrap()..=last.parse().unwrap()];
            assert_eq!((answer.status.as_u16(), &*answer.body), (206, expected), "{order:?}");
            assert_eq!(answer.header("content-range"), format!("bytes {range}/10"));
        }
        let whole = get(&cache, "/", &[]).await;
        assert!(whole.is_hit(), "{order:?}: {}", whole.how());
        assert_eq!((whole.status.as_u16(), &*whole.body), (200, WHOLE));
        assert_eq!((whole.header("content-length"), whole.header("content-range")), ("10", ""));
        let part = get(&cache, "/", &[("range", "bytes=3-6")]).await;
        assert!(part.is_hit() && part.body == "3456");
        assert_eq!(origin.count(), 2);
    }
}

#[tokio::test]
async fn a_part_answers_for_what_it_has_only() {
    let origin = Origin::new(|seen| async move { part(&seen, "\"a\"") }).await;
    let cache = cache_of(&[&origin.url]);
    get(&cache, "/", &[("range", "bytes=2-6")]).await;
    for (range, body) in [("bytes=3-5", "345"), ("bytes=2-6", "23456")] {
        let answer = get(&cache, "/", &[("range", range)]).await;
        assert!(answer.is_hit() && answer.status == 206, "{range} {}", answer.how());
        assert_eq!(answer.body, body);
    }
    let beyond = get(&cache, "/", &[("range", "bytes=10-")]).await;
    assert_eq!((beyond.status.as_u16(), beyond.header("content-range")), (416, "bytes */10"));
    assert_eq!(origin.count(), 1);
    let more = get(&cache, "/", &[("range", "bytes=5-8")]).await;
    assert_eq!((&*more.body, more.how()), ("5678", "fwd=partial; stored"));
    assert_eq!(get(&cache, "/", &[]).await.body, WHOLE, "the whole is not a part");
}

#[tokio::test]
async fn parts_of_different_responses_are_not_put_together() {
    for tags in [["\"a\"", "\"b\""], ["W/\"a\"", "W/\"a\""]] {
        let origin =
            Origin::new(move |seen| async move { part(&seen, tags[seen.number % 2]) }).await;
        let cache = cache_of(&[&origin.url]);
        for range in ["bytes=0-4", "bytes=5-9"] {
            get(&cache, "/", &[("range", range)]).await;
        }
        let whole = get(&cache, "/", &[]).await;
        assert!(!whole.is_hit(), "{tags:?}");
        assert_eq!(origin.seen()[2].header("range"), None);
    }
}

#[tokio::test]
async fn a_part_whose_lengths_do_not_fit_is_not_stored() {
    let origin = Origin::new(|_| async {
        let fields = [
            ("cache-control", "max-age=1000"),
            ("etag", "\"a\""),
            ("content-range", "bytes 4-9/10"),
        ];
        response(206, &fields, "01234")
    })
    .await;
    let cache = cache_of(&[&origin.url]);
    for _ in 0..2 {
        let answer = get(&cache, "/", &[("range", "bytes=-5")]).await;
        assert_eq!((answer.status.as_u16(), &*answer.body), (206, "01234"));
        assert_eq!(answer.how(), "fwd=uri-miss; detail=part");
    }
}
