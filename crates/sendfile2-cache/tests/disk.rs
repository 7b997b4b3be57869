//! Nothing waits for a disk where requests are answered.
#![allow(clippy::unwrap_used)]

mod common;
mod origin;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use http_body_util::BodyExt;
use origin::{Origin, get, request, response, streaming};
use sendfile2_cache::Cache;
use sendfile2_cache::proxy::{Choice, Limits, Origins, Timeouts};
use sendfile2_cache::store::{Key, Options, Store};

const FRESH: (&str, &str) = ("cache-control", "max-age=1000");

/// A runtime that has one thread for what may wait.
fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().max_blocking_threads(1).build().unwrap()
}

/// Keeps that thread busy until what is returned is dropped.
async fn occupied() -> mpsc::Sender<()> {
    let (until, waits) = mpsc::channel::<()>();
    let (begins, begun) = tokio::sync::oneshot::channel();
    tokio::task::spawn_blocking(move || {
        begins.send(()).unwrap();
        let _ = waits.recv();
    });
    begun.await.unwrap();
    until
}

fn cache_in(path: &std::path::Path, url: &str) -> Cache {
    let limit = Duration::from_secs(20);
    let timeouts = Timeouts { connect: limit, head: limit, stall: limit };
    let origins = Origins::new(&[url.parse().unwrap()], Choice::RoundRobin, timeouts).unwrap();
    let options = Options { path: Some(path.into()), ..common::small() };
    Cache::new(Store::open(&options).unwrap().0, origins, Limits::default())
}

/// Waits until others have done what they could.
async fn others_had_their_turn(cache: &Cache) {
    for _ in 0..5 {
        let answer = cache.answer(request("GET", "/passes", &[])).await;
        assert_eq!(origin::read(answer).await.body, "passes");
    }
}

#[test]
fn what_is_on_disk_is_looked_up_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    runtime().block_on(async {
        let origin = Origin::new(|seen| async move {
            match &*seen.path {
                "/passes" => response(200, &[("cache-control", "no-store")], "passes"),
                _ => response(200, &[FRESH], "body"),
            }
        })
        .await;
        let cache = cache_in(&path, &origin.url);
        get(&cache, "/", &[]).await;
        assert!(get(&cache, "/", &[]).await.is_hit());
        drop(cache);
        let cache = cache_in(&path, &origin.url);
        let until = occupied().await;
        let asks = cache.clone();
        let asking = tokio::spawn(async move { get(&asks, "/", &[]).await });
        others_had_their_turn(&cache).await;
        assert!(!asking.is_finished());
        drop(until);
        let answer = asking.await.unwrap();
        assert!(answer.is_hit() && answer.body == "body", "{answer:?}");
        // Control: what was compared with its checksums is answered without that thread.
        let _until = occupied().await;
        assert!(get(&cache, "/", &[]).await.is_hit());
    });
}

#[test]
fn bodies_are_written_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let piece: &'static str = String::leak("0123456789".repeat(5000));
    runtime().block_on(async {
        let pieces = Arc::new(Mutex::new(None));
        let sender = Arc::clone(&pieces);
        let origin = Origin::new(move |seen| {
            let answer = if seen.path == "/passes" {
                response(200, &[("cache-control", "no-store")], "passes")
            } else {
                let (pieces, answer) = streaming(&[FRESH]);
                *sender.lock().unwrap() = Some(pieces);
                answer
            };
            async { answer }
        })
        .await;
        let cache = cache_in(&dir.path().join("store"), &origin.url);
        let mut body = cache.answer(request("GET", "/", &[])).await.into_body();
        let until = occupied().await;
        let pieces = pieces.lock().unwrap().take().unwrap();
        (0..10).for_each(|_| pieces.send(piece).unwrap());
        drop(pieces);
        let read = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&read);
        let reading = tokio::spawn(async move {
            while let Some(frame) = body.frame().await {
                counter.fetch_add(frame.unwrap().into_data().unwrap().len(), Ordering::SeqCst);
            }
        });
        origin::until(|| read.load(Ordering::SeqCst) > 0).await;
        others_had_their_turn(&cache).await;
        // What is larger is on its way to the disk.
        assert!(read.load(Ordering::SeqCst) <= 64 << 10);
        drop(until);
        reading.await.unwrap();
        assert_eq!(read.load(Ordering::SeqCst), 10 * piece.len());
        origin::until(|| cache.filling() == 0).await;
        assert!(get(&cache, "/", &[]).await.is_hit());
    });
}

#[test]
fn what_is_being_stored_is_read_from_the_disk_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = common::store(&Options { path: Some(path.clone()), ..common::small() });
    let body = common::body(1, 200_000);
    let mut fill = store.begin(Key::of(&[b"1"]), [0; 24], common::HEAD, None).unwrap();
    fill.write(&body).unwrap();
    let file = std::fs::File::open(path).unwrap();
    runtime().block_on(async {
        let mut reader = fill.reader();
        if !common::forget(&file) {
            return;
        }
        let until = occupied().await;
        let mut got = Vec::new();
        {
            let mut read = std::pin::pin!(reader.read());
            let once = std::future::poll_fn(|cx| {
                std::task::Poll::Ready(std::future::Future::poll(read.as_mut(), cx).is_pending())
            });
            assert!(once.await, "it waited");
            // Who gives up meanwhile, or ends, waits for no reader.
            fill.finish().unwrap();
            drop(until);
            got.extend_from_slice(&read.await.unwrap());
        }
        assert!(common::forget(&file));
        let until = occupied().await;
        let reading = async {
            while got.len() < body.len() {
                got.extend_from_slice(&reader.read().await.unwrap());
            }
            got
        };
        let mut reading = std::pin::pin!(reading);
        let once = std::future::poll_fn(|cx| {
            std::task::Poll::Ready(std::future::Future::poll(reading.as_mut(), cx).is_pending())
        });
        assert!(once.await, "it waited");
        drop(until);
        assert!(reading.await == body);
    });
}
