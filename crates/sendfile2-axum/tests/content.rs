//! What arrives, by every listener and engine, and whatever is between.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::net::SocketAddr;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::ConnectInfo;
use axum::routing::get;
use common::{
    By, Client, SIZES, all, assert_same, directory, files, http2, pattern, request, runtime, serve,
    told,
};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use sendfile2::guard::GuardedFile;
use sendfile2::{Engine, Error, Options, Source};
use sendfile2_axum::{FileBody, Io, Listener, Validators};
use tower_http::compression::CompressionLayer;
use tower_service::Service;

#[test]
fn files_of_all_sizes_on_one_connection() {
    let dir = files();
    for by in all() {
        let mut client = Client::new(serve(by, directory(dir.path())));
        for _ in 0..3 {
            for size in SIZES {
                let got = client.get(&format!("/{size}"));
                assert_eq!(
                    (got.status, got.header("x-became")),
                    (200, by.became()),
                    "{by:?} {size}"
                );
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
        let mut client = Client::new(serve(by, directory(dir.path())));
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
        assert_eq!(got.header("x-became"), by.became());
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
    runtime().block_on(async {
        let (stream, _peer) = tokio::net::UnixStream::pair().unwrap();
        let io = Io::from_unix(stream, Options::new()).unwrap();
        let mut app = told(&io, directory(dir.path()));
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
        let app = directory(dir.path());
        let address = runtime().block_on(async {
            let listener = common::listen();
            listener.set_nonblocking(true).unwrap();
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let address = listener.local_addr().unwrap();
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let io = Io::new(stream, Options::new().engine(engine)).unwrap();
                    let http = hyper::server::conn::http1::Builder::new();
                    let service = TowerToHyperService::new(told(&io, app.clone()));
                    let served = http.serve_connection(TokioIo::new(io), service);
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

#[test]
fn pipelined_requests_and_partial_writes() {
    let dir = files();
    for by in all() {
        let mut client = Client::new(serve(by, directory(dir.path())));
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
            .route("/part", get(|| async move { FileBody::new(a, 100_001..3_000_007).unwrap() }))
            .route(
                "/chunked",
                get(|| async move {
                    // Without its size it is sent in chunks. It is not the layer's business any more.
                    let body = FileBody::new(b, 0..2 << 20).unwrap();
                    axum::body::Body::new(body.map_frame(|frame| frame))
                }),
            );
        let mut client = Client::new(serve(by, app));
        let got = client.get("/part");
        assert_eq!(got.header("x-became"), by.became());
        assert_same(&got.body, &pattern(1, 100_001..3_000_007), &format!("a part by {by:?}"));
        let got = client.get("/chunked");
        assert_eq!((got.header("transfer-encoding"), got.header("x-became")), ("chunked", ""));
        assert_same(&got.body, &pattern(1, 0..2 << 20), &format!("chunks by {by:?}"));
    }
}

/// A file, and a slot of one under a lease, by handlers that have their own names for them.
#[test]
fn handlers_answer_ranges_and_conditions() {
    use axum::extract::Request;
    const SLOT: Range<u64> = 100_001..300_001;
    let dir = files();
    let path = dir.path().join("1048577");
    let (source, guard) = (Source::open(&path).unwrap(), GuardedFile::open(&path).unwrap());
    let file = move |request: Request| async move {
        let body = FileBody::new(source.clone(), 0..source.size().unwrap()).unwrap();
        let known = Validators::of(&source).unwrap();
        body.answer(request.method(), request.headers(), &known)
    };
    let slot = move |request: Request| async move {
        let lease = guard.lease_async(SLOT).await.unwrap();
        let known = Validators::new().etag("generation-7");
        let body = FileBody::leased(lease, SLOT).unwrap();
        body.answer(request.method(), request.headers(), &known)
    };
    let app = Router::new().route("/file", get(file)).route("/slot", get(slot));
    for by in all() {
        let mut client = Client::new(serve(by, app.clone()));
        for (path, all) in [("/file", 0..1_048_577), ("/slot", SLOT)] {
            let len = all.end - all.start;
            let whole = client.get(path);
            assert_same(&whole.body, &pattern(1, all.clone()), path);
            assert_eq!(whole.header("accept-ranges"), "bytes");
            let tag = whole.header("etag").to_owned();
            for (range, part) in [
                ("bytes=0-0", 0..1),
                ("bytes=1000-99999", 1000..100_000),
                ("bytes=-20000", len - 20_000..len),
                ("bytes=-99999999", 0..len),
                ("bytes=199999-", 199_999..len),
            ] {
                let headers = format!("range: {range}\r\nif-range: {tag}\r\n");
                let got = client.with("GET", path, &headers);
                assert_eq!((got.status, got.header("x-became")), (206, by.became()), "{range}");
                let told = format!("bytes {}-{}/{len}", part.start, part.end - 1);
                assert_eq!(got.header("content-range"), told);
                let part = all.start + part.start..all.start + part.end;
                assert_same(&got.body, &pattern(1, part), range);
            }
            let past = format!("range: bytes={len}-\r\n");
            let got = client.with("GET", path, &past);
            assert_eq!((got.status, got.body.len()), (416, 0));
            assert_eq!(got.header("content-range"), format!("bytes */{len}"));
            let got = client.with("GET", path, &format!("{past}if-range: \"other\"\r\n"));
            assert_eq!((got.status, got.body.len() as u64), (200, len));
            let got = client.with("GET", path, &format!("if-none-match: {tag}\r\n"));
            assert_eq!((got.status, got.header("etag")), (304, &*tag));
            assert_eq!(client.with("GET", path, "if-match: \"other\"\r\n").status, 412);
            let got = client.with("HEAD", path, "range: bytes=0-0\r\n");
            assert_eq!((got.status, got.header("content-length")), (200, &*len.to_string()));
        }
    }
}

/// It is seen where the body is made, while the answer can still say so.
#[test]
fn a_body_past_the_end_of_the_file_is_an_error() {
    let dir = files();
    let path = dir.path().join("65536");
    let source = Source::open(&path).unwrap();
    let guard = GuardedFile::open(&path).unwrap();
    for range in [0..65_537, 65_536..65_537, 70_000..80_000] {
        let lease = guard.try_lease(range.clone()).unwrap();
        for body in
            [FileBody::new(source.clone(), range.clone()), FileBody::leased(lease, range.clone())]
        {
            assert!(matches!(body, Err(Error::Truncated { at: 65_536, .. })), "{body:?}");
        }
    }
    for range in [0..65_536, 65_535..65_536, 65_536..65_536, 0..0] {
        assert!(FileBody::new(source.clone(), range.clone()).is_ok(), "{range:?}");
    }
}

#[test]
fn what_has_touched_a_body_is_seen() {
    let dir = files();
    let size = 65_536;
    let gzip = "accept-encoding: gzip\r\n";
    for by in all() {
        let app = directory(dir.path()).layer(CompressionLayer::new());
        let got = Client::new(serve(by, app)).with("GET", &format!("/{size}"), gzip);
        assert_same(&unzip(&got), &pattern(1, 0..size), "compressed");
        assert_eq!(got.header("content-encoding"), "gzip");
        let became = got.header("x-became");
        assert!(matches!((by, became), (By::Ours(_), "encoded") | (_, "")), "{by:?}: {became}");
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
        let address = serve(by, directory(dir.path()));
        runtime().block_on(async {
            let mut client = http2(address).await;
            for size in SIZES {
                let response = client.send_request(request(&size.to_string())).await.unwrap();
                let became = response.headers().get("x-became");
                let not = matches!(by, By::Ours(_)).then_some("not HTTP/1");
                assert_eq!(became.map(|why| why.to_str().unwrap()), not);
                let body = response.into_body().collect().await.unwrap().to_bytes();
                assert_same(&body, &pattern(1, 0..size), &format!("{size} by HTTP/2"));
            }
        });
    }
}

#[test]
fn connect_info_as_with_the_stock_listener() {
    let handler = |ConnectInfo(peer): ConnectInfo<SocketAddr>| async move { peer.to_string() };
    let app = Router::new().route("/", get(handler));
    let address = runtime().block_on(async {
        // In the place of the one that found it.
        let any = common::listen().local_addr().unwrap();
        let listener = Listener::bind(any).await.unwrap();
        let address = axum::serve::Listener::local_addr(&listener).unwrap();
        tokio::spawn(async { sendfile2_axum::serve(listener, app).await.unwrap() });
        address
    });
    let mut client = Client::new(address);
    let mine = client.0.get_ref().local_addr().unwrap().to_string();
    assert_eq!(client.get("/").body, mine.as_bytes());
}

/// A listener of unix sockets, and all that `serve` returns: it ends when it is told to.
#[test]
fn unix_sockets() {
    use std::os::unix::net::UnixStream;
    use tokio::net::unix;
    let dir = files();
    let path = dir.path().join("socket");
    let handler = |ConnectInfo(peer): ConnectInfo<unix::SocketAddr>| async move {
        format!("unnamed: {}", peer.is_unnamed())
    };
    let app = directory(dir.path()).route("/peer", get(handler));
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let entered = runtime().enter();
    let listener = Listener::bind_unix(&path).unwrap().engine(Engine::Copy);
    let served = sendfile2_axum::serve(listener, app);
    let served = served.with_graceful_shutdown(async { drop(ended.await) });
    let serving = tokio::spawn(async { served.await.unwrap() });
    drop(entered);
    let mut stream = UnixStream::connect(&path).unwrap();
    let mut ask = |path: &str, close: &str, len: usize| {
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n{close}\r\n");
        std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
        let mut got = Vec::new();
        while !got.windows(4).any(|w| w == b"\r\n\r\n") {
            let mut byte = [0];
            std::io::Read::read_exact(&mut stream, &mut byte).unwrap();
            got.push(byte[0]);
        }
        let mut body = vec![0; len];
        std::io::Read::read_exact(&mut stream, &mut body).unwrap();
        body
    };
    for size in SIZES {
        let got = ask(&format!("/{size}"), "", size as usize);
        assert_same(&got, &pattern(1, 0..size), "by a unix socket");
    }
    assert_eq!(ask("/peer", "connection: close\r\n", 13), b"unnamed: true");
    end.send(()).unwrap();
    runtime().block_on(serving).unwrap();
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
        async move { FileBody::new(source, 0..LEN).unwrap() }
    };
    let app = Router::new().route("/", get(handler));
    let address = serve(By::Ours(Engine::Zerocopy), app);
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
        let slab = GuardedFile::open(&path).unwrap();
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
        let address = serve(by, app);
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
                            assert_eq!(got.header("x-became"), by.became());
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
