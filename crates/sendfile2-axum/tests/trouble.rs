//! What others do to files and connections. The server, this process, lives.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::fs::OpenOptions;
use std::io::Read;
use std::time::Duration;

use axum::Router;
use common::{
    By, Client, all, assert_same, directory, files, http2, pattern, request, runtime, serve, told,
    until,
};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use sendfile2::{Engine, Options};
use sendfile2_axum::{Io, ServeDir};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower_http::compression::CompressionLayer;

const LEN: u64 = 48 << 20;
/// In the middle of a page, of a window, and well before what sockets can hold.
const SHORT: u64 = (20 << 20) + 40_961;

fn big(dir: &std::path::Path) -> std::fs::File {
    std::fs::write(dir.join("big"), pattern(5, 0..LEN)).unwrap();
    OpenOptions::new().write(true).open(dir.join("big")).unwrap()
}

/// HTTP/1: closed short, and with our listener everything that there is arrives. What the kernel
/// zeroes behind the new end, in the same folio, may have been sent before.
#[test]
fn a_file_truncated_while_it_is_sent_by_http1() {
    let dir = files();
    for by in all() {
        let file = big(dir.path());
        let address = serve(by, directory(dir.path()));
        let mut client = Client::new(address);
        client.ask("GET", "/big", "");
        let head = client.head();
        assert_eq!(head.header("content-length"), LEN.to_string());
        let mut body = vec![0; 100_000];
        client.0.read_exact(&mut body).unwrap();
        file.set_len(SHORT).unwrap();
        let _ = client.0.read_to_end(&mut body);
        assert!((body.len() as u64) < LEN, "{by:?}: not closed");
        let whole = body.len() as u64 >= SHORT;
        assert!(whole || !matches!(by, By::Ours(_)), "{by:?}: {} of {SHORT}", body.len());
        let valid = body.len().min(SHORT as usize);
        assert_same(&body[..valid], &pattern(5, 0..valid as u64), &format!("{by:?}"));
        // It lives, and serves what is left.
        let got = Client::new(address).get("/big");
        assert_eq!(got.body.len() as u64, SHORT);
    }
}

/// Not closed short only: a connection never carries what does not belong to the response.
#[test]
fn pipelined_after_a_truncated_file_is_not_answered_out_of_step() {
    let dir = files();
    for by in all() {
        let file = big(dir.path());
        let mut client = Client::new(serve(by, directory(dir.path())));
        client.ask("GET", "/big", "");
        client.ask("GET", "/65536", "");
        client.head();
        let mut body = vec![0; 100_000];
        client.0.read_exact(&mut body).unwrap();
        file.set_len(SHORT).unwrap();
        let _ = client.0.read_to_end(&mut body);
        assert!((body.len() as u64) < LEN);
        let next = body.windows(9).any(|w| w == b"HTTP/1.1 ");
        assert!(!next, "{by:?}: another response within the body");
    }
}

#[test]
fn a_file_truncated_while_it_is_compressed() {
    let dir = files();
    let service = || Router::new().fallback_service(ServeDir::new(dir.path()).unwrap());
    for by in all() {
        let file = big(dir.path());
        let address = serve(by, service().layer(CompressionLayer::new()));
        let mut client = Client::new(address);
        client.ask("GET", "/big", "accept-encoding: gzip\r\n");
        let head = client.head();
        assert_eq!(head.header("content-encoding"), "gzip");
        let became = head.header("x-became");
        assert!(matches!((by, became), (By::Ours(_), "encoded") | (_, "")), "{by:?}: {became}");
        let mut some = vec![0; 10_000];
        client.0.read_exact(&mut some).unwrap();
        file.set_len(SHORT).unwrap();
        let _ = client.0.read_to_end(&mut some);
        assert!(!some.ends_with(b"0\r\n\r\n"), "{by:?}: it ended as if it were whole");
        assert_same(&Client::new(address).get("/65536").body, &pattern(1, 0..65_536), "after");
    }
}

#[test]
fn a_file_truncated_while_it_is_sent_by_http2() {
    let dir = files();
    for by in [By::Stock, By::Ours(Engine::Zerocopy)] {
        let file = big(dir.path());
        let address = serve(by, directory(dir.path()));
        runtime().block_on(async {
            let mut client = http2(address).await;
            let mut response = client.send_request(request("big")).await.unwrap();
            let first = response.frame().await.unwrap().unwrap();
            assert!(first.is_data());
            file.set_len(SHORT).unwrap();
            let rest = response.into_body().collect().await;
            assert!(rest.is_err(), "{by:?}: it ended as if it were whole");
            // The same connection serves others.
            let response = client.send_request(request("65536")).await.unwrap();
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert_same(&body, &pattern(1, 0..65_536), "after");
        });
    }
}

/// Connects, gets, stalls, resets, closes: in the end everything issued is released, and nothing
/// is unknown.
#[test]
fn after_a_storm_nothing_is_unknown() {
    let dir = files();
    let address = serve(By::Ours(Engine::Zerocopy), directory(dir.path()));
    std::thread::scope(|scope| {
        for thread in 0..8 {
            scope.spawn(move || {
                for round in 0..30_usize {
                    let mut client = Client::new(address);
                    let close = if round % 2 == 0 { "connection: close\r\n" } else { "" };
                    client.ask("GET", "/5242883", close);
                    if (round + thread) % 5 != 0 {
                        client.head();
                        let mut some = vec![0; round * 40_000];
                        client.0.read_exact(&mut some).unwrap();
                    }
                    match (round + thread) % 3 {
                        0 => {
                            let stream = client.0.get_ref();
                            rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO))
                                .unwrap();
                        }
                        1 if round % 2 == 0 => drop(client.0.read_to_end(&mut Vec::new())),
                        _ => {}
                    }
                }
            });
        }
    });
    until("everything is released", || {
        sendfile2_axum::outstanding() == 0 && sendfile2_axum::in_flight().sends == 0
    });
    assert_same(&Client::new(address).get("/65536").body, &pattern(1, 0..65_536), "after");
}

/// Asked to close, it sends all and ends, by each engine.
#[test]
fn connection_close_sends_everything() {
    let dir = files();
    for by in all() {
        let mut client = Client::new(serve(by, directory(dir.path())));
        client.ask("GET", "/5242883", "connection: close\r\n");
        let got = client.answer("GET");
        assert_same(&got.body, &pattern(1, 0..(5 << 20) + 3), &format!("{by:?}"));
        assert_eq!(client.0.read(&mut [0]).unwrap(), 0);
    }
}

/// An app that is also served where its bodies are read: by a listener that is not ours, by a
/// connection that copies what it is given, as TLS does.
#[test]
fn an_app_that_is_served_by_others_too_is_read_there() {
    let dir = files();
    let file = big(dir.path());
    let app = directory(dir.path());
    let address = serve(By::Ours(Engine::Auto), app.clone());
    assert_eq!(Client::new(address).get("/big").header("x-became"), "mapped");
    read_by_a_connection_that_copies(&file, TowerToHyperService::new(app));
    assert_eq!(Client::new(address).get("/big").body.len() as u64, EARLY, "it lives");
}

/// In the first window that is mapped, and well before what the connection takes meanwhile.
const EARLY: u64 = 400_000;

/// In the environment of a process that is to be killed.
const MAPPED: &str = "SENDFILE2_TEST_MAPPED";

/// The control: where mapped bytes are read, the process dies.
#[test]
fn mapped_bytes_that_are_read_kill() {
    use std::os::unix::process::ExitStatusExt;
    if std::env::var_os(MAPPED).is_none() {
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", "mapped_bytes_that_are_read_kill"]).env(MAPPED, "1");
        let ended = again.output().unwrap().status;
        assert_eq!(ended.signal(), Some(7), "SIGBUS: {ended}");
        return;
    }
    let dir = files();
    let file = big(dir.path());
    let app = runtime().block_on(async {
        let (stream, _peer) = tokio::net::UnixStream::pair().unwrap();
        let io = Io::from_unix(stream, Options::new()).unwrap();
        told(&io, directory(dir.path()))
    });
    read_by_a_connection_that_copies(&file, TowerToHyperService::new(app));
}

fn read_by_a_connection_that_copies<S>(file: &std::fs::File, service: S)
where
    S: hyper::service::Service<
            http::Request<hyper::body::Incoming>,
            Response = axum::response::Response,
            Error = std::convert::Infallible,
            Future: Send,
        > + Send
        + 'static,
{
    runtime().block_on(async {
        let (mut client, stream) = tokio::io::duplex(64 << 10);
        let http = hyper::server::conn::http1::Builder::new();
        let served = tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
        client.write_all(b"GET /big HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut some = vec![0; 100_000];
        client.read_exact(&mut some).await.unwrap();
        file.set_len(EARLY).unwrap();
        let _ = client.read_to_end(&mut some).await;
        assert!((some.len() as u64) < LEN);
        assert!(served.await.unwrap().is_err(), "the body ended as if it were whole");
    });
}
