//! Answers that are larger than a region of the store, through the proxy.
#![allow(clippy::unwrap_used)]

mod common;
mod origin;

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Body, Frame};
use origin::{Origin, request, response, until};
use sendfile2_cache::Cache;
use sendfile2_cache::proxy::{Limits, Timeouts};
use sendfile2_cache::store::{Ban, Options, Store};

const LEN: usize = 40 << 20;
const FRESH: [(&str, &str); 2] = [("cache-control", "max-age=1000"), ("etag", "\"a\"")];

fn cache(url: &str, path: &std::path::Path) -> Cache {
    let limit = Duration::from_secs(60);
    let timeouts = Timeouts { connect: limit, head: limit, stall: limit };
    let options = Options {
        path: Some(path.into()),
        size: 656 * common::MIB,
        region: 2 * common::MIB,
        ..Options::default()
    };
    let store = Store::open(&options).unwrap().0;
    Cache::new(store, origin::origins(&[url], timeouts), Limits::default())
}

struct Answer {
    status: u16,
    how: String,
    length: Option<usize>,
    body: Bytes,
}

async fn ask(cache: &Cache, method: &str, fields: &[(&str, &str)]) -> Answer {
    let response = cache.answer(request(method, "/large", fields)).await;
    let field = |name| response.headers().get(name).map(|v| v.to_str().unwrap().to_owned());
    let how = field("cache-status").unwrap();
    // What the server says where no field does.
    let hint = response.body().size_hint().exact().map(|len| usize::try_from(len).unwrap());
    let told = field("content-length").map(|len| len.parse().unwrap());
    let length = if method == "HEAD" { told } else { hint };
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    until(|| cache.filling() == 0).await;
    Answer { status, how, length, body }
}

#[tokio::test]
async fn a_large_answer_is_stored_and_answered_in_any_range() {
    let all = Bytes::from(common::body(1, LEN));
    for told in [true, false] {
        let bytes = all.clone();
        let origin = Origin::new(move |_| {
            let bytes = bytes.clone();
            async move {
                let mut answer = response(200, &FRESH, bytes.clone());
                if !told {
                    let pieces = bytes.chunks(1 << 20).map(Bytes::copy_from_slice);
                    let mut pieces = pieces.collect::<Vec<_>>().into_iter();
                    let stream = origin::futures_like(move |_| {
                        std::task::Poll::Ready(pieces.next().map(|p| Ok(Frame::data(p))))
                    });
                    *answer.body_mut() = BodyExt::boxed(StreamBody::new(stream));
                }
                answer
            }
        })
        .await;
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(&origin.url, &dir.path().join("store"));
        let first = ask(&cache, "GET", &[]).await;
        assert!(first.how.contains("stored") && first.body == all, "{}", first.how);
        assert_eq!(first.length, told.then_some(LEN));
        let hit = ask(&cache, "GET", &[]).await;
        assert!(hit.how.contains("hit") && hit.body == all, "{}", hit.how);
        let head = ask(&cache, "HEAD", &[]).await;
        assert_eq!((head.status, head.length), (200, Some(LEN)), "{}", head.how);
        assert!(head.body.is_empty());
        // Across the first border, within a part, over several, and the end.
        let part = (2 << 20) / 4 - 1024;
        for (from, to) in [
            (part - 1, part + 1),
            (part, part + 1),
            (10, 20),
            (part / 2, 9 * part + 7),
            (LEN - 3, LEN),
        ] {
            let asked = format!("bytes={from}-{}", to - 1);
            let answer = ask(&cache, "GET", &[("range", &asked)]).await;
            assert_eq!((answer.status, answer.length), (206, Some(to - from)), "{asked}");
            assert!(answer.how.contains("hit") && answer.body == all[from..to], "{asked}");
        }
        assert_eq!(origin.count(), 1);
        let id = "h/large";
        cache.ban(Ban::Prefix(id.into())).unwrap();
        let again = ask(&cache, "GET", &[]).await;
        assert!(again.how.contains("miss") && again.body == all, "{}", again.how);
        assert_eq!(origin.count(), 2);
        drop(cache);
    }
}

#[tokio::test]
async fn what_is_larger_than_a_sixteenth_is_passed_on_and_says_so() {
    let origin = Origin::new(|_| async { response(200, &FRESH, vec![7; 5 << 20]) }).await;
    let cache = origin::cache_of(&[&origin.url]);
    let answer = ask(&cache, "GET", &[]).await;
    assert!(
        answer.how.contains("detail=too-large") && answer.body.len() == 5 << 20,
        "{}",
        answer.how
    );
}
