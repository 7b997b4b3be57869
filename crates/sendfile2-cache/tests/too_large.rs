//! Bodies that turn out too large for the store, when several read them.
#![allow(clippy::unwrap_used)]

mod origin;

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use origin::{Origin, cache_of, get, pieces, request};
use sendfile2_cache::Cache;
use sendfile2_cache::proxy::CacheBody;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

const FRESH: (&str, &str) = ("cache-control", "max-age=1000");
const PIECE: usize = 64 << 10;
/// Many more bytes than the store takes, and than all the buffers on the way.
const PIECES: usize = 160;

fn piece(seed: usize, number: usize) -> Bytes {
    let mut bytes = vec![u8::try_from((seed * 101 + number) % 251).unwrap(); PIECE];
    bytes[..8].copy_from_slice(&(seed * PIECES + number).to_le_bytes());
    bytes.into()
}

/// An origin whose answer to request number n has the seed that `seed` gives for it.
async fn large(
    seed: fn(usize) -> usize,
    fields: &'static [(&'static str, &'static str)],
) -> Origin {
    Origin::new(move |seen| async move {
        let seed = seed(seen.number);
        pieces(fields, move |number| (number < PIECES).then(|| Ok(piece(seed, number))))
    })
    .await
}

/// Reads to the end, or to an error; returns how many bytes of the seed came, and that alone.
async fn read(mut body: CacheBody, seed: usize) -> Result<usize, (usize, std::io::Error)> {
    let (mut whole, mut number) = (Vec::new(), 0);
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let bytes = frame.map_err(|e| (length, e))?.into_data().unwrap();
        length += bytes.len();
        whole.extend_from_slice(&bytes);
        while whole.len() >= PIECE {
            assert!(whole[..PIECE] == piece(seed, number)[..], "piece {number} is another");
            whole.drain(..PIECE);
            number += 1;
        }
    }
    assert!(whole.is_empty(), "it ends in the midst of a piece");
    Ok(length)
}

async fn begun(cache: &Cache, readers: usize) -> Vec<CacheBody> {
    let mut bodies = Vec::new();
    for _ in 0..readers {
        bodies.push(cache.answer(request("GET", "/", &[])).await.into_body());
    }
    bodies
}

#[tokio::test]
async fn all_who_read_get_the_whole() {
    for readers in [1, 2, 10] {
        let origin = large(|_| 1, &[FRESH]).await;
        let cache = cache_of(&[&origin.url]);
        let mut all = JoinSet::new();
        for body in begun(&cache, readers).await {
            all.spawn(read(body, 1));
        }
        for read in all.join_all().await {
            assert_eq!(read.unwrap(), PIECE * PIECES);
        }
        assert_eq!(origin.count(), 1, "they read one answer");
        // It is known now: nobody waits, and nothing is put into the store for nothing.
        let answer = cache.answer(request("GET", "/", &[])).await;
        let how = answer.headers()["cache-status"].to_str().unwrap().to_owned();
        assert_eq!(how, "sendfile2; fwd=uri-miss; detail=too-large");
        assert_eq!(cache.store().counters().stored, 0);
    }
}

#[tokio::test]
async fn a_slow_reader_holds_up_nobody_and_is_not_cut_off() {
    for (fields, readers) in [(&[FRESH][..], 2), (&[FRESH, ("etag", "\"x\"")], 10)] {
        let origin = large(|_| 1, fields).await;
        let cache = cache_of(&[&origin.url]);
        let mut bodies = begun(&cache, readers).await;
        let mut slow = bodies.remove(0);
        let first = slow.frame().await.unwrap().unwrap().into_data().unwrap();
        assert!(piece(1, 0).starts_with(&first));
        let mut all = JoinSet::new();
        for body in bodies {
            all.spawn(read(body, 1));
        }
        for read in all.join_all().await {
            assert_eq!(read.unwrap(), PIECE * PIECES);
        }
        assert_eq!(origin.count(), 1);
        // It goes on when the others are through, by a request of its own.
        let rest = slow.collect().await.unwrap().to_bytes();
        assert_eq!(first.len() + rest.len(), PIECE * PIECES);
        let whole = [first, rest].concat();
        assert!(whole.chunks(PIECE).enumerate().all(|(n, bytes)| bytes == piece(1, n)));
        assert_eq!(origin.count(), 2);
    }
}

/// The control of that: if the origin sends other bytes by then, they are not put behind the first.
#[tokio::test]
async fn a_slow_reader_does_not_get_the_rest_of_another_answer() {
    for fields in [&[FRESH][..], &[FRESH, ("last-modified", "Sun, 01 Nov 2026 00:00:00 GMT")]] {
        let origin = large(|number| number, fields).await;
        let cache = cache_of(&[&origin.url]);
        let mut bodies = begun(&cache, 2).await;
        let mut slow = bodies.remove(0);
        let first = slow.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(read(bodies.remove(0), 0).await.unwrap(), PIECE * PIECES);
        assert!(piece(0, 0).starts_with(&first));
        assert!(slow.collect().await.is_err());
        assert_eq!(origin.count(), 2);
    }
}

/// One that reads a little now and then is not waited for each time.
#[tokio::test]
async fn a_trickling_reader_does_not_set_the_pace() {
    let origin = large(|_| 1, &[FRESH]).await;
    let cache = cache_of(&[&origin.url]);
    let mut bodies = begun(&cache, 2).await;
    let mut slow = bodies.remove(0);
    let fast = tokio::spawn(read(bodies.remove(0), 1));
    let mut frames = 0;
    while !fast.is_finished() {
        slow.frame().await.unwrap().unwrap();
        frames += 1;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(fast.await.unwrap().unwrap(), PIECE * PIECES);
    assert!(frames < PIECES / 2, "{frames} frames");
}

/// A late client asks alone, before anything was sent to it.
#[tokio::test]
async fn who_comes_late_and_who_leaves_are_in_nobodys_way() {
    let origin = large(|_| 1, &[FRESH]).await;
    let cache = cache_of(&[&origin.url]);
    let mut bodies = begun(&cache, 3).await;
    // The first leaves.
    drop(bodies.remove(0));
    let (mut second, third) = (bodies.remove(0), bodies.remove(0));
    let mut length = 0;
    while length < 4 << 20 {
        length += second.frame().await.unwrap().unwrap().into_data().unwrap().len();
    }
    drop(third);
    let late = cache.answer(request("GET", "/", &[])).await;
    assert_eq!(late.headers()["cache-status"], "sendfile2; fwd=uri-miss; detail=too-large");
    assert_eq!(read(late.into_body(), 1).await.unwrap(), PIECE * PIECES);
    let rest = second.collect().await.unwrap().to_bytes().len();
    assert_eq!(length + rest, PIECE * PIECES);
    assert_eq!(origin.count(), 2);
}

/// Those who wait for an answer of which the origin says that it is too large ask all at once.
#[tokio::test]
async fn what_says_that_it_is_too_large_is_not_waited_for_in_turn() {
    const READERS: usize = 6;
    // None is answered before all but the first have asked.
    let barrier = std::sync::Arc::new(Barrier::new(READERS - 1));
    let origin = Origin::new(move |seen| {
        let barrier = barrier.clone();
        async move {
            if seen.number > 0 {
                barrier.wait().await;
            }
            let mut answer =
                pieces(&[FRESH], move |number| (number < PIECES).then(|| Ok(piece(1, number))));
            answer.headers_mut().insert("content-length", (PIECE * PIECES).into());
            answer
        }
    })
    .await;
    let cache = cache_of(&[&origin.url]);
    let mut all = JoinSet::new();
    for _ in 0..READERS {
        let cache = cache.clone();
        all.spawn(async move {
            let answer = cache.answer(request("GET", "/", &[])).await;
            read(answer.into_body(), 1).await
        });
    }
    for read in all.join_all().await {
        assert_eq!(read.unwrap(), PIECE * PIECES);
    }
    assert_eq!(origin.count(), READERS);
}

/// An origin that breaks off is not asked again for each of them.
#[tokio::test]
async fn an_origin_that_breaks_off_does_so_for_all() {
    let origin = Origin::new(|_| async {
        pieces(&[FRESH], |n| match n {
            PIECES => Some(Err(std::io::ErrorKind::Other.into())),
            n => Some(Ok(piece(1, n))),
        })
    })
    .await;
    let cache = cache_of(&[&origin.url]);
    let mut all = JoinSet::new();
    for body in begun(&cache, 3).await {
        all.spawn(read(body, 1));
    }
    for read in all.join_all().await {
        assert!(read.is_err(), "{read:?}");
    }
    assert_eq!(origin.count(), 1);
}

#[tokio::test]
async fn a_smaller_one_is_stored_as_ever() {
    let origin =
        Origin::new(|_| async { pieces(&[FRESH], |n| (n < 3).then(|| Ok("abc".into()))) }).await;
    let cache = cache_of(&[&origin.url]);
    assert_eq!(get(&cache, "/", &[]).await.body, "abcabcabc");
    assert!(get(&cache, "/", &[]).await.is_hit());
}
