//! The examples, run as their readers run them, and what their clients receive. `cargo test` builds
//! them, unless it is told which targets to test.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/example.rs"]
mod example;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::path::Path;

use common::{assert_same, pattern};
use example::{PATIENCE, Server, named};

fn answer(client: &mut BufReader<TcpStream>, expected: &[u8]) {
    let mut header = String::new();
    client.read_line(&mut header).unwrap();
    assert_eq!(header, format!("{}\n", expected.len()));
    let mut got = vec![0; expected.len()];
    client.read_exact(&mut got).unwrap();
    assert_same(&got, expected);
}

fn end(client: &mut BufReader<TcpStream>) {
    client.get_ref().shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0, "something follows the last answer");
}

/// What all examples do that answer lines.
fn ranges_are_served(start: impl FnOnce(&Path) -> Server) {
    let bytes = pattern(3, 0..(16 << 20) + 3);
    let file = named(&bytes);
    let server = start(file.path());
    // More than the sockets take in: it is stalled while others are served.
    let mut stalled = server.connect();
    stalled.get_mut().write_all(format!("0 {}\n", bytes.len()).as_bytes()).unwrap();

    let mut client = server.connect();
    for _ in 0..3 {
        // Several at once, and one in two pieces.
        client.get_mut().write_all(b"0 1\n4095 70000\n1 9\n123").unwrap();
        for range in [0..1, 4095..70_000, 1..9] {
            answer(&mut client, &bytes[range]);
        }
        client.get_mut().write_all(b"4 1048577\n").unwrap();
        answer(&mut client, &bytes[1234..1_048_577]);
    }
    end(&mut client);

    for wrong in ["what\n".into(), "5 5\n".into(), format!("0 {}\n", bytes.len() + 1)] {
        let mut client = server.connect();
        client.get_mut().write_all(wrong.as_bytes()).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "{wrong} is answered");
    }

    answer(&mut stalled, &bytes);
    end(&mut stalled);
}

#[test]
fn threaded_server() {
    ranges_are_served(|file| Server::start("threaded_server", file));
}

#[test]
fn epoll_loop() {
    ranges_are_served(|file| Server::start("epoll_loop", file));
}

#[test]
fn tokio_server() {
    if cfg!(not(feature = "tokio")) {
        return println!("SKIP: the example tokio_server: built without the feature tokio");
    }
    ranges_are_served(|file| Server::start("tokio_server", file));
}

#[test]
fn uring_server() {
    if cfg!(not(feature = "uring")) {
        return println!("SKIP: the example uring_server: built without the feature uring");
    }
    if common::has_uring() {
        ranges_are_served(|file| Server::start("uring_server", file));
    }
}

#[test]
fn udp() {
    let bytes = pattern(4, 0..200_000);
    let file = named(&bytes);
    let server = Server::start("udp", file.path());
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    for range in [0..1, 0..1200, 100_000..160_001, 190_000..200_000] {
        let request = format!("{} {}", range.start, range.end);
        client.send_to(request.as_bytes(), server.address).unwrap();
        let mut got = Vec::new();
        while got.len() < range.len() {
            let mut datagram = [0; 2000];
            let length = client.recv(&mut datagram).unwrap();
            assert_eq!(length, (range.len() - got.len()).min(1200));
            got.extend_from_slice(&datagram[..length]);
        }
        assert_same(&got, &bytes[range]);
    }
}

#[test]
fn overwriting_cache_slot() {
    let generation = |n: u8| vec![n; 65_536];
    let file = named(&[generation(0), generation(0), generation(0)].concat());
    let server = Server::start("overwriting_cache_slot", file.path());
    let slot = |client: &mut BufReader<TcpStream>| {
        let mut got = generation(0);
        client.read_exact(&mut got).unwrap();
        assert_same(&got, &generation(got[0])); // All of it is of one generation.
        got[0]
    };
    let get = |client: &mut BufReader<TcpStream>, n: u8| {
        client.get_mut().write_all(format!("get {n}\n").as_bytes()).unwrap();
        slot(client)
    };
    let mut client = server.connect();
    // More than the sockets take in, so that it stalls in the midst of a slot; that others are
    // served meanwhile gives it the time.
    let mut stalled = server.connect();
    stalled.get_mut().write_all("get 1\n".repeat(300).as_bytes()).unwrap();
    assert!((0..100).all(|_| get(&mut client, 0) == 0));
    let mut writer = server.connect();
    writer.get_mut().write_all(&[b"put 1\n", &*generation(1)].concat()).unwrap();
    assert!((0..100).all(|_| get(&mut client, 0) == 0));

    let mut last = 0;
    for _ in 0..300 {
        let got = slot(&mut stalled);
        assert!(got >= last, "{got} after {last}");
        last = got;
    }
    assert_eq!(last, 1, "what was stored meanwhile");
    end(&mut stalled);
    let mut line = String::new();
    writer.read_line(&mut line).unwrap();
    assert_eq!(line, "stored\n");
    assert_eq!([0, 1, 2].map(|n| get(&mut writer, n)), [0, 1, 0]);
    writer.get_mut().write_all(b"get 3\n").unwrap();
    assert_eq!(writer.read(&mut [0]).unwrap(), 0, "there is no fourth slot");
    let expected = [generation(0), generation(1), generation(0)].concat();
    assert_same(&std::fs::read(file.path()).unwrap(), &expected);
}

#[test]
fn each_is_run_and_short() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    example::each_is_run_and_short(&directory, include_str!("examples.rs"));
}
