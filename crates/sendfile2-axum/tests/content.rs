//! What arrives, by every listener and engine, and whatever is between.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::ConnectInfo;
use axum::routing::get;
use common::{
    By, Client, SIZES, all, assert_same, files, http2, pattern, request, runtime, serve, told,
    zero_copy,
};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use sendfile2::{Engine, Options, Source};
use sendfile2_axum::{FileBody, Io, Listener, PeerAddr, ServeDir};
use tower_http::compression::CompressionLayer;
use tower_service::Service;

#[test]
fn files_of_all_sizes_on_one_connection() {
    let dir = files();
    for by in all() {
        let mut client = Client::new(serve(by, zero_copy(dir.path())));
        for _ in 0..3 {
            for size in SIZES {
                let got = client.get(&format!("/{size}"));
                assert_eq!((got.status, got.header("x-became")), (200, "mapped"), "{by:?} {size}");
                assert_same(&got.body, &pattern(1, 0..size), &format!("{size} by {by:?}"));
            }
        }
    }
}

/// What is not in memory is read in off the event loop, and right.
#[test]
fn cold_files() {
    let dir = files();
    let size: u64 = (5 << 20) + 3;
    let path = dir.path().join(size.to_string());
    for by in all() {
        let mut client = Client::new(serve(by, zero_copy(dir.path())));
        let file = std::fs::File::open(&path).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let source = Source::new(file).unwrap();
        match source.mapped(0..1 << 20).unwrap() {
            Some(mapped) if !mapped.is_resident() => {}
            _ => {
                println!("SKIP: the file cannot be made to leave the page cache here");
                return;
            }
        }
        let got = client.get(&format!("/{size}"));
        assert_eq!(got.header("x-became"), "mapped");
        assert_same(&got.body, &pattern(1, 0..size), &format!("cold by {by:?}"));
        assert!(source.mapped(0..1 << 20).unwrap().unwrap().is_resident(), "now it is there");
    }
}

/// What is not in memory is read in off the event loop: the connection is given no page that it
/// would wait for.
#[test]
fn cold_files_do_not_stall_the_event_loop() {
    const LEN: u64 = 16 << 20;
    let dir = files();
    let path = dir.path().join("cold");
    std::fs::write(&path, pattern(3, 0..LEN)).unwrap();
    let file = std::fs::File::open(&path).unwrap();
    file.sync_all().unwrap();
    let source = Source::new(file.try_clone().unwrap()).unwrap();
    let resident = |range| source.mapped(range).unwrap().unwrap().is_resident();
    let mut app = zero_copy(dir.path());
    runtime().block_on(async {
        let request = http::Request::get("/cold").body(Body::empty()).unwrap();
        let response = app.call(request).await.unwrap();
        assert_eq!(response.headers()["x-became"], "mapped");
        let mut body = response.into_body();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        if resident(0..1 << 20) {
            println!("SKIP: the file cannot be made to leave the page cache here");
            return;
        }
        let (mut at, mut waits) = (0, 0);
        let mut next = async |body: &mut Body| {
            let frame = std::future::poll_fn(|cx| {
                let frame = Pin::new(&mut *body).poll_frame(cx);
                waits += usize::from(frame.is_pending());
                frame
            });
            frame.await.map(|frame| frame.unwrap().into_data().unwrap())
        };
        while let Some(window) = next(&mut body).await {
            let end = at + window.len() as u64;
            assert!(resident(at..end), "{at}..{end} would be waited for");
            at = end;
        }
        assert_eq!(at, LEN);
        assert!(waits > 0, "it was read in by the event loop");
    });
}

/// Without axum: hyper's own builder, which knows HTTP/1 only.
#[test]
fn by_hyper_alone() {
    let dir = files();
    for engine in [Engine::Copy, Engine::Zerocopy, Engine::Auto] {
        let service = TowerToHyperService::new(zero_copy(dir.path()));
        let address = runtime().block_on(async {
            let listener = common::listen();
            listener.set_nonblocking(true).unwrap();
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let address = listener.local_addr().unwrap();
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let io = Io::new(stream, Options::new().engine(engine)).unwrap();
                    let http = hyper::server::conn::http1::Builder::new();
                    let served = http.serve_connection(TokioIo::new(io), service.clone());
                    tokio::spawn(async { served.await.unwrap() });
                }
            });
            address
        });
        let mut client = Client::new(address);
        for size in SIZES {
            let got = client.get(&format!("/{size}"));
            assert_eq!(got.header("x-became"), "mapped");
            assert_same(&got.body, &pattern(1, 0..size), &format!("{size} by {engine}"));
        }
    }
}

/// Bytes that are read are right, too.
#[test]
fn without_the_layer_bodies_are_read() {
    let dir = files();
    for by in all() {
        let app = Router::new().fallback_service(ServeDir::new(dir.path()).unwrap());
        let mut client = Client::new(serve(by, app));
        for size in SIZES {
            let got = client.get(&format!("/{size}"));
            assert_eq!((got.status, got.header("x-became")), (200, ""));
            assert_same(&got.body, &pattern(1, 0..size), &format!("{size} by {by:?}"));
        }
    }
}

#[test]
fn pipelined_requests_and_partial_writes() {
    let dir = files();
    for by in all() {
        let mut client = Client::new(serve(by, zero_copy(dir.path())));
        // All of them before anything is read: sockets are full, and writes are partial.
        for size in SIZES {
            client.ask("GET", &format!("/{size}"), "");
        }
        for size in SIZES {
            let got = client.answer("GET");
            assert_same(&got.body, &pattern(1, 0..size), &format!("{size} by {by:?}"));
        }
    }
}

#[test]
fn ranges_from_a_handler_and_unknown_length() {
    let dir = files();
    let source = Source::open(dir.path().join((5_u64 << 20 | 3).to_string())).unwrap();
    for by in all() {
        let (a, b) = (source.clone(), source.clone());
        let app = Router::new()
            .route("/part", get(|| async move { FileBody::new(a, 100_001..3_000_007) }))
            .route(
                "/chunked",
                get(|| async move {
                    // Without its size it is sent in chunks. It is not the layer's business any more.
                    let body = FileBody::new(b, 0..2 << 20);
                    axum::body::Body::new(body.map_frame(|frame| frame))
                }),
            );
        let mut client = Client::new(serve(by, told(app)));
        let got = client.get("/part");
        assert_eq!(got.header("x-became"), "mapped");
        assert_same(&got.body, &pattern(1, 100_001..3_000_007), &format!("a part by {by:?}"));
        let got = client.get("/chunked");
        assert_eq!((got.header("transfer-encoding"), got.header("x-became")), ("chunked", ""));
        assert_same(&got.body, &pattern(1, 0..2 << 20), &format!("chunks by {by:?}"));
    }
}

#[test]
fn what_has_touched_a_body_is_seen() {
    let dir = files();
    let size = 65_536;
    let files = || Router::new().fallback_service(ServeDir::new(dir.path()).unwrap());
    let gzip = "accept-encoding: gzip\r\n";
    for by in all() {
        // Inside of the layer: it compresses, and the layer leaves that alone.
        let mut inside = Client::new(serve(by, told(files().layer(CompressionLayer::new()))));
        let path = format!("/{size}");
        // No file type that tower-http would compress: it wraps the body, and does not touch it.
        let got = inside.with("GET", &path, gzip);
        assert_same(&unzip(&got), &pattern(1, 0..size), "compressed inside");
        let touched = got.header("content-encoding") == "gzip";
        assert_eq!(got.header("x-became"), if touched { "encoded" } else { "mapped" });
        assert!(touched, "nothing was compressed");
        // Outside, where it must not be: the bytes are right all the same.
        let mut outside =
            Client::new(serve(by, zero_copy(dir.path()).layer(CompressionLayer::new())));
        let got = outside.with("GET", &path, gzip);
        assert_eq!(got.header("content-encoding"), "gzip");
        assert_same(&unzip(&got), &pattern(1, 0..size), "compressed outside");
    }
}

fn unzip(got: &common::Got) -> Vec<u8> {
    if got.header("content-encoding") != "gzip" {
        return got.body.clone();
    }
    use std::io::{Read, Write};
    let mut gzip = std::process::Command::new("gzip")
        .arg("-dc")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let (mut input, body) = (gzip.stdin.take().unwrap(), got.body.clone());
    let feed = std::thread::spawn(move || input.write_all(&body));
    let mut all = Vec::new();
    gzip.stdout.take().unwrap().read_to_end(&mut all).unwrap();
    feed.join().unwrap().unwrap();
    gzip.wait().unwrap();
    all
}

#[test]
fn http2_is_read_and_right() {
    let dir = files();
    for by in [By::Ours(Engine::Zerocopy), By::Stock] {
        let address = serve(by, zero_copy(dir.path()));
        runtime().block_on(async {
            let mut client = http2(address).await;
            for size in SIZES {
                let response = client.send_request(request(&size.to_string())).await.unwrap();
                assert_eq!(response.headers()["x-became"], "not HTTP/1");
                let body = response.into_body().collect().await.unwrap().to_bytes();
                assert_same(&body, &pattern(1, 0..size), &format!("{size} by HTTP/2"));
            }
        });
    }
}

#[test]
fn connect_info_by_a_newtype() {
    let handler =
        |ConnectInfo(PeerAddr(peer)): ConnectInfo<PeerAddr>| async move { peer.to_string() };
    let app = Router::new().route("/", get(handler));
    let address = runtime().block_on(async {
        // In the place of the one that found it.
        let any = common::listen().local_addr().unwrap();
        let listener = Listener::bind(any).await.unwrap();
        let address = axum::serve::Listener::local_addr(&listener).unwrap();
        let app = app.into_make_service_with_connect_info::<PeerAddr>();
        tokio::spawn(async { axum::serve(listener, app).await.unwrap() });
        address
    });
    let mut client = Client::new(address);
    let mine = client.0.get_ref().local_addr().unwrap().to_string();
    assert_eq!(client.get("/").body, mine.as_bytes());
}

const LEN: u64 = 3 << 20;

/// Ends another thread's loop, also if this one panics: the test fails then, and does not hang.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Without a lease, responses of two generations are seen: the test below can fail.
#[test]
fn overwriting_in_place_without_leases_is_seen() {
    let dir = files();
    let path = dir.path().join("slab");
    let file = std::fs::File::create_new(&path).unwrap();
    file.set_len(LEN).unwrap();
    let source = sendfile2::Source::open(&path).unwrap();
    let handler = move || {
        let source = source.clone();
        async move { FileBody::new(source, 0..LEN) }
    };
    let app = Router::new().route("/", get(handler));
    let address = serve(By::Ours(Engine::Zerocopy), told(app));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut generation = 0_u8;
            while !stop.load(Ordering::Relaxed) {
                generation = generation.wrapping_add(1);
                file.write_all_at(&vec![generation; LEN as usize], 0).unwrap();
            }
        });
        let _stop = Stop(&stop);
        let mut client = Client::new(address);
        let mixed = (0..2000).any(|_| {
            let got = client.get("/");
            assert_eq!(got.header("x-became"), "mapped");
            got.body.iter().any(|byte| *byte != got.body[0])
        });
        assert!(mixed, "no response was of two generations");
    });
}

/// One response is of one generation, however it is overwritten meanwhile.
#[test]
fn overwriting_in_place_under_load() {
    let dir = files();
    let path = dir.path().join("slab");
    for by in all() {
        std::fs::write(&path, vec![0; LEN as usize]).unwrap();
        let slab = sendfile2::guard::GuardedFile::open(&path).unwrap();
        let guard = slab.clone();
        let app = Router::new().route(
            "/",
            get(move || {
                let slab = slab.clone();
                async move {
                    let lease = slab.lease_async(0..LEN).await.unwrap();
                    FileBody::leased(lease, 0..LEN).unwrap()
                }
            }),
        );
        let address = serve(by, told(app));
        let stop = AtomicBool::new(false);
        let stop = &stop;
        let generations = std::thread::scope(|scope| {
            let readers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(move || {
                        let mut client = Client::new(address);
                        let mut seen = std::collections::HashSet::new();
                        for _ in 0..30 {
                            let got = client.get("/");
                            assert_eq!(got.header("x-became"), "mapped");
                            let first = got.body[0];
                            let wrong = got.body.iter().filter(|byte| **byte != first).count();
                            assert_eq!((wrong, got.body.len() as u64), (0, LEN), "{by:?}");
                            seen.insert(first);
                        }
                        seen.len()
                    })
                })
                .collect();
            let writer = scope.spawn(move || {
                let mut generation = 0_u8;
                while !stop.load(Ordering::Relaxed) {
                    generation = generation.wrapping_add(1);
                    let soon = std::time::Instant::now() + std::time::Duration::from_secs(30);
                    guard.write_at(&vec![generation; LEN as usize], 0, soon).unwrap();
                }
            });
            let stopping = Stop(stop);
            let seen: usize =
                readers.into_iter().map(|reader| reader.join().unwrap()).max().unwrap();
            drop(stopping);
            writer.join().unwrap();
            seen
        });
        println!("{by:?}: {generations} generations seen");
        assert!(generations > 1, "nothing was overwritten");
    }
}
