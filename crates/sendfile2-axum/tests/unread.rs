//! Requests that the app does not read to their end, and connections that are to speak something
//! else: the client reads its answer, and knows whether there will be another one.
#![allow(clippy::unwrap_used)]

mod common;

use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::routing::post;
use common::{Client, files, pattern, runtime, until};
use http::StatusCode;
use http_body::Frame;
use http_body_util::BodyExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use sendfile2_axum::{Listener, ServeDir};

const MEGABYTE: usize = 1_000_000;

/// Serves as an app does, whose client this is.
fn serve(ours: bool) -> (tempfile::TempDir, SocketAddr) {
    let dir = files();
    let echo = |request: Request| async { Body::new(request.into_body()) };
    let app = Router::new()
        .route("/read", post(|body: Bytes| async move { body.len().to_string() }))
        .route("/refused", post(|| async { StatusCode::FORBIDDEN }))
        .route("/echo", post(echo))
        .fallback_service(ServeDir::new(dir.path()).unwrap());
    let _entered = runtime().enter();
    let tcp = common::listen();
    tcp.set_nonblocking(true).unwrap();
    let address = tcp.local_addr().unwrap();
    let listener = Listener::new(tokio::net::TcpListener::from_std(tcp).unwrap());
    if ours {
        tokio::spawn(async { sendfile2_axum::serve(listener, app).await.unwrap() });
    } else {
        tokio::spawn(async { axum::serve(listener, app).await.unwrap() });
    }
    (dir, address)
}

/// Sends all of it before it reads anything, as many clients do.
fn post_all(client: &mut Client, path: &str, headers: &str) -> common::Got {
    let body = vec![b'x'; MEGABYTE];
    client.ask("POST", path, &format!("content-length: {MEGABYTE}\r\n{headers}"));
    // Where it is no longer listened to it says so when it reads.
    let _ = client.0.get_mut().write_all(&body);
    client.answer("POST")
}

const UPGRADE: &str = "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: \r\n";

#[test]
fn the_answer_can_be_read_and_says_that_it_is_the_last() {
    let (_dir, address) = serve(true);
    for (path, status) in [("/1", 405), ("/refused", 403), ("/none", 405)] {
        for headers in ["", UPGRADE, "expect: 100-continue\r\n"] {
            let got = post_all(&mut Client::new(address), path, headers);
            assert_eq!(
                (got.status, got.header("connection")),
                (status, "close"),
                "{path} {headers}"
            );
        }
    }
}

/// The control: axum's own way to serve does not say it.
#[test]
fn by_axum_alone_it_does_not_say_so() {
    let (_dir, address) = serve(false);
    let got = post_all(&mut Client::new(address), "/refused", "");
    assert_eq!((got.status, got.header("connection")), (403, ""));
}

#[test]
fn a_body_that_is_read_ends_no_connection() {
    let (_dir, address) = serve(true);
    let mut client = Client::new(address);
    for headers in ["", UPGRADE] {
        let got = post_all(&mut client, "/read", headers);
        assert_eq!((got.status, got.header("connection")), (200, ""), "{headers}");
        assert_eq!(got.body, MEGABYTE.to_string().as_bytes());
        // Without a body there is nothing to be read.
        let got = client.with("POST", "/refused", "content-length: 0\r\n");
        assert_eq!((got.status, got.header("connection")), (403, ""));
    }
    // While it is answered.
    client.ask("POST", "/echo", "content-length: 10\r\n");
    client.0.get_mut().write_all(b"01234").unwrap();
    let got = client.head();
    assert_eq!((got.status, got.header("connection")), (200, ""));
    client.0.get_mut().write_all(b"56789").unwrap();
    let mut echoed = [0; 10];
    client.0.read_exact(&mut echoed).unwrap();
    assert_eq!(&echoed, b"0123456789");
    assert_eq!(client.get("/1").body, pattern(1, 0..1));
}

/// A connection that could have become another one is ended by shutting it down, too: dropped with
/// something unread it would be reset.
#[test]
fn an_upgrade_that_nobody_takes_ends_as_any_connection() {
    let (_dir, address) = serve(true);
    for _ in 0..20 {
        let mut client = Client::new(address);
        client.ask("POST", "/refused", &format!("content-length: {MEGABYTE}\r\n{UPGRADE}"));
        assert_eq!(client.answer("POST").status, 403);
        // The server has ended its side by now, or will; nothing of this resets it.
        client.0.get_mut().write_all(&vec![b'x'; MEGABYTE]).unwrap();
        let mut rest = Vec::new();
        client.0.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty());
    }
}

/// A body of so many kilobytes that are still to be sent.
struct Kilobytes(Arc<AtomicUsize>);

impl http_body::Body for Kilobytes {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let left = self.0.load(Relaxed);
        self.0.store(left.saturating_sub(1), Relaxed);
        Poll::Ready((left > 0).then(|| Ok(Frame::data(Bytes::from_static(&[7; 1024])))))
    }
}

/// Over HTTP/2 the stream ends when all of it has come, and is not reset, with which some clients
/// lose the answer.
#[test]
fn over_http2_what_nobody_reads_is_taken_all_the_same() {
    let (_dir, address) = serve(true);
    runtime().block_on(async {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let io = TokioIo::new(stream);
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), io);
        let (mut client, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        for _ in 0..10 {
            let left = Arc::new(AtomicUsize::new(1000));
            let request = http::Request::post(format!("http://{address}/refused"));
            let request = request.body(Kilobytes(Arc::clone(&left))).unwrap();
            let answer = client.send_request(request).await.unwrap();
            assert_eq!(answer.status(), 403);
            assert!(!answer.headers().contains_key("connection"));
            answer.into_body().collect().await.unwrap();
            until("all of it is sent", || left.load(Relaxed) == 0);
        }
    });
}
