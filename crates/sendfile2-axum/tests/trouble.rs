//! What others do to files and connections. The server, this process, lives.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::fs::OpenOptions;
use std::io::Read;
use std::time::Duration;

use axum::Router;
use common::{
    By, Client, all, assert_same, files, http2, pattern, request, runtime, serve, told, until,
    zero_copy,
};
use http_body_util::BodyExt;
use sendfile2::Engine;
use sendfile2_axum::ServeDir;
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
        for mapped in [true, false] {
            let file = big(dir.path());
            let service = Router::new().fallback_service(ServeDir::new(dir.path()).unwrap());
            let address = serve(by, if mapped { told(service) } else { service });
            let mut client = Client::new(address);
            client.ask("GET", "/big", "");
            let head = client.head();
            assert_eq!(head.header("content-length"), LEN.to_string());
            let mut body = vec![0; 100_000];
            client.0.read_exact(&mut body).unwrap();
            file.set_len(SHORT).unwrap();
            let _ = client.0.read_to_end(&mut body);
            assert!((body.len() as u64) < LEN, "{by:?} mapped: {mapped}: not closed");
            let whole = body.len() as u64 >= SHORT;
            let exact = matches!(by, By::Ours(_)) && mapped;
            assert!(whole || !exact, "{by:?} mapped: {mapped}: {} of {SHORT}", body.len());
            let valid = body.len().min(SHORT as usize);
            assert_same(&body[..valid], &pattern(5, 0..valid as u64), &format!("{by:?}"));
            // It lives, and serves what is left.
            let got = Client::new(address).get("/big");
            assert_eq!(got.body.len() as u64, SHORT);
        }
    }
}

/// Not closed short only: a connection never carries what does not belong to the response.
#[test]
fn pipelined_after_a_truncated_file_is_not_answered_out_of_step() {
    let dir = files();
    for by in all() {
        let file = big(dir.path());
        let mut client = Client::new(serve(by, zero_copy(dir.path())));
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
        let address = serve(by, told(service().layer(CompressionLayer::new())));
        let mut client = Client::new(address);
        client.ask("GET", "/big", "accept-encoding: gzip\r\n");
        let head = client.head();
        assert_eq!((head.header("content-encoding"), head.header("x-became")), ("gzip", "encoded"));
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
        let address = serve(by, zero_copy(dir.path()));
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
    let address = serve(By::Ours(Engine::Zerocopy), zero_copy(dir.path()));
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
        let mut client = Client::new(serve(by, zero_copy(dir.path())));
        client.ask("GET", "/5242883", "connection: close\r\n");
        let got = client.answer("GET");
        assert_same(&got.body, &pattern(1, 0..(5 << 20) + 3), &format!("{by:?}"));
        assert_eq!(client.0.read(&mut [0]).unwrap(), 0);
    }
}
