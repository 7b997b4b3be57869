//! Parts: stored where they may be, put together, and taken from the whole.
#![allow(clippy::unwrap_used)]

mod origin;

use http::Response;
use origin::{Body, Origin, Seen, cache_of, get, request, response};

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

/// An origin may send less than what was asked for, or something else: a client can tell.
#[tokio::test]
async fn another_part_than_was_asked_for_is_passed_on_as_what_it_is() {
    let origin = Origin::new(|_| async {
        let fields =
            [("etag", "\"x\""), ("cache-control", "max-age=60"), ("content-range", "bytes 2-4/8")];
        response(206, &fields, "234")
    })
    .await;
    let cache = cache_of(&[&origin.url]);
    for (range, hit) in [("bytes=0-", false), ("bytes=2-", false), ("bytes=2-4", true)] {
        let answer = get(&cache, "/", &[("range", range)]).await;
        assert_eq!((answer.status.as_u16(), answer.is_hit()), (206, hit), "{range}: {answer:?}");
        assert_eq!(answer.header("content-range"), "bytes 2-4/8");
        assert_eq!((&*answer.body, answer.header("content-length")), ("234", "3"));
    }
    // Who has not asked for a part does not get one.
    assert_eq!(get(&cache, "/", &[]).await.status, 502);
}

#[tokio::test]
async fn parts_of_what_is_on_its_way_are_read_from_it() {
    let pieces = std::sync::Arc::new(std::sync::Mutex::new(None));
    let sender = std::sync::Arc::clone(&pieces);
    let origin = Origin::new(move |seen| {
        let fields = [("etag", "\"x\""), ("cache-control", "max-age=60"), ("content-length", "8")];
        let answer = if seen.method == http::Method::HEAD {
            response(200, &fields, "")
        } else {
            let (pieces, answer) = origin::streaming(&fields);
            pieces.send("0123").unwrap();
            *sender.lock().unwrap() = Some(pieces);
            answer
        };
        async { answer }
    })
    .await;
    let cache = cache_of(&[&origin.url]);
    let whole = cache.answer(request("GET", "/", &[])).await;
    let range = ("range", "bytes=2-5");
    let mut answers = Vec::new();
    for (fields, status) in [
        (&[range][..], 206),
        (&[range, ("if-range", "\"x\"")], 206),
        (&[range, ("if-range", "\"y\"")], 200),
        (&[range, ("if-range", "Sun, 01 Nov 2026 00:00:00 GMT")], 200),
        (&[("range", "bytes=9-")], 416),
        (&[("if-none-match", "\"x\"")], 304),
    ] {
        let answer = cache.answer(request("GET", "/", fields)).await;
        assert_eq!(answer.status().as_u16(), status, "{fields:?}");
        answers.push(answer);
    }
    let head = origin::read(cache.answer(request("HEAD", "/", &[])).await).await;
    assert_eq!((head.status.as_u16(), head.header("content-length"), &*head.body), (200, "8", ""));
    // The origin was asked by the first, and for the head.
    assert_eq!(origin.count(), 2);
    pieces.lock().unwrap().take().unwrap().send("4567").unwrap();
    assert_eq!(origin::read(whole).await.body, "01234567");
    for (answer, body) in answers.into_iter().zip(["2345", "2345", "01234567", "01234567", "", ""])
    {
        assert_eq!(origin::read(answer).await.body, body);
    }
}

/// A 304 says that the part is right, and not what is missing.
#[tokio::test]
async fn a_part_is_not_validated_for_who_wants_more() {
    let origin = Origin::new(|seen| async move {
        if seen.header("if-none-match") == Some("\"a\"") {
            return response(304, &[("etag", "\"a\""), ("cache-control", "max-age=1000")], "");
        }
        part(&seen, "\"a\"")
    })
    .await;
    for (fields, status, body) in [
        (&[][..], 200, WHOLE),
        (&[("cache-control", "no-cache")], 200, WHOLE),
        (&[("if-none-match", "\"b\"")], 200, WHOLE),
        (&[("range", "bytes=8-9"), ("cache-control", "no-cache")], 206, "89"),
        // What it has is validated.
        (&[("range", "bytes=0-3"), ("cache-control", "no-cache")], 206, "0123"),
    ] {
        let cache = cache_of(&[&origin.url]);
        get(&cache, "/", &[("range", "bytes=0-3")]).await;
        let answer = get(&cache, "/", fields).await;
        assert_eq!((answer.status.as_u16(), &*answer.body), (status, body), "{fields:?}");
        assert_eq!(answer.how().contains("fwd-status=304"), body == "0123", "{fields:?}");
    }
}

/// Parts, and that nothing has changed, are answers to who has asked for them.
#[tokio::test]
async fn nobody_gets_a_part_or_a_304_without_having_asked() {
    let weak = [("etag", "W/\"a\""), ("content-range", "bytes 0-3/10")];
    let plain = [("etag", "\"a\""), ("cache-control", "max-age=60")];
    for (status, fields) in [(206, &weak[..]), (206, &weak[1..]), (304, &plain)] {
        let fields: Vec<_> = fields.to_vec();
        let origin = Origin::new(move |_| {
            let answer = response(status, &fields, if status == 206 { "0123" } else { "" });
            async { answer }
        })
        .await;
        let cache = cache_of(&[&origin.url]);
        for method in ["GET", "HEAD", "GET"] {
            let answer = origin::ask(&cache, method, "/", &[]).await;
            assert_eq!(answer.status.as_u16(), 502, "{method} {status} {answer:?}");
        }
        let asked = [("range", "bytes=0-3"), ("if-none-match", "\"a\"")];
        assert_eq!(get(&cache, "/", &asked).await.status.as_u16(), status);
    }
}
