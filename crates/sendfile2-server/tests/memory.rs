//! What a connection costs the server in each state: no client takes more than a bounded part of its
//! memory, whatever it does. docs/http.md has the figures, which this prints.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use common::{Server, certificate, connect, files, get, have, number, until};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

const ADDRESSES: [&str; 6] =
    ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--workers", "1"];

/// Has a server of its own for each state: memory that is given back is taken again unseen.
struct Cost<'a> {
    dir: &'a std::path::Path,
    more: &'a [&'a str],
    connections: u32,
    /// Requests that each of them makes, and that are answered.
    answers: u32,
}

impl Cost<'_> {
    /// Says what a connection of this kind costs, and that it is no more than `most` KiB.
    fn is<C>(&self, what: &str, most: u64, make: impl Fn(&str) -> C) {
        let server = Server::new(self.dir, &[&ADDRESSES, self.more].concat());
        let [public, admin] = &server.addresses[..] else { panic!("{:?}", server.addresses) };
        // What the first of them makes for all.
        drop(make(public));
        let there = |text: &str| number(text, "sendfile2_http_connections");
        until("nobody is there", || there(&get(admin, "/metrics")) == 0.0);
        let answered = |text: &str| number(text, "sendfile2_http_requests_total{status=\"200\"}");
        let (before, first) = (server.resident(), answered(&get(admin, "/metrics")));
        let clients: Vec<C> = (0..self.connections).map(|_| make(public)).collect();
        until("all are there", || {
            let text = get(admin, "/metrics");
            let answers = f64::from(self.connections * self.answers);
            there(&text) == f64::from(self.connections) && answered(&text) >= first + answers
        });
        // It has nothing more to do with them when it does not grow any more.
        let mut now = 0;
        until("it is at rest", || {
            let last = std::mem::replace(&mut now, server.resident());
            std::thread::sleep(Duration::from_millis(300));
            last == now && server.resident() == now
        });
        let each = now.saturating_sub(before) / u64::from(self.connections);
        println!("{what}: {each} KiB a connection");
        assert!(each <= most, "{what}: {each} KiB a connection");
        drop(clients);
    }
}

fn send(address: &str, bytes: &[u8]) -> TcpStream {
    let mut stream = connect(address);
    // What is on the way is not the server's.
    rustix::net::sockopt::set_socket_recv_buffer_size(&stream, 8 << 10).expect("a size");
    stream.write_all(bytes).expect("it reads");
    stream
}

#[test]
fn http1() {
    let dir = files();
    let cost = |answers| Cost { dir: dir.path(), more: &[], connections: 200, answers };
    cost(0).is("connected", 16, |address| send(address, b""));
    let request = b"GET /small HTTP/1.1\r\nhost: x\r\n\r\n";
    cost(1).is("answered", 48, |address| {
        let mut stream = send(address, request);
        stream.read_exact(&mut [0; 100]).expect("it answers");
        stream
    });
    let unfinished = format!("GET /small HTTP/1.1\r\nhost: x\r\nx: {}", "x".repeat(31 << 10));
    cost(0).is("unfinished headers", 80, |address| send(address, unfinished.as_bytes()));
    let request = b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n";
    cost(1).is("does not read", 80, |address| send(address, request));
}

/// A page that lists many names is in memory, once for all who ask.
#[test]
fn listings() {
    let dir = files();
    let many = dir.path().join("many");
    std::fs::create_dir(&many).expect("a directory");
    for i in 0..2000 {
        std::fs::write(many.join(format!("{i:0100}")), "").expect("a file");
    }
    let more = ["--list-directories"];
    let cost = Cost { dir: dir.path(), more: &more, connections: 2, answers: 100 };
    let what = "HTTP/2, 100 streams of a page of half a MiB, does not read";
    cost.is(what, 5000, |address| send(address, &http2("/many/", 0, 100)));
}

#[test]
fn tls() {
    if !have("openssl") {
        return;
    }
    let dir = files();
    let (cert, key) = certificate(dir.path());
    let more = ["--tls-cert", &*cert, "--tls-key", &*key];
    let cost = |answers| Cost { dir: dir.path(), more: &more, connections: 100, answers };
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&cert).expect("PEM")).expect("a certificate");
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let config = Arc::new(config);
    let secure = |address: &str, path: &str| {
        let name = "localhost".try_into().expect("a name");
        let tls = ClientConnection::new(Arc::clone(&config), name).expect("a client");
        let mut stream = StreamOwned::new(tls, send(address, b""));
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").expect("it reads");
        stream.read_exact(&mut [0; 100]).expect("it answers");
        stream
    };
    cost(0).is("TLS, no handshake", 48, |address| send(address, b"\x16\x03\x01"));
    cost(1).is("TLS, answered", 80, |address| secure(address, "/small"));
    cost(1).is("TLS, does not read", 160, |address| secure(address, "/large"));
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The beginning of a connection whose client gives each stream `window` bytes, and requests.
fn http2(path: &str, window: u32, requests: u32) -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[&[0, 4][..], &window.to_be_bytes()].concat()));
    bytes.extend(frame(8, 0, 0, &(1_u32 << 30).to_be_bytes()));
    for request in 0..requests {
        // GET, http, and the path and the authority literally.
        let len = [u8::try_from(path.len()).expect("short")];
        let headers = [b"\x82\x86\x04", &len[..], path.as_bytes(), b"\x01\x01x"].concat();
        bytes.extend(frame(1, 5, request * 2 + 1, &headers));
    }
    bytes
}

#[test]
fn http2_whatever_the_window() {
    let dir = files();
    let cost = |connections, answers| Cost { dir: dir.path(), more: &[], connections, answers };
    cost(100, 0).is("HTTP/2, connected", 80, |address| send(address, &http2("/large", 0, 0)));
    for (window, most) in [(0, 3000), (1, 5000), (1 << 20, 8000)] {
        let what = format!("HTTP/2, 100 streams of window {window}, does not read");
        cost(10, 100).is(&what, most, |address| send(address, &http2("/large", window, 100)));
    }
    // More at a time are refused.
    cost(10, 100)
        .is("HTTP/2, 1000 streams", 3000, |address| send(address, &http2("/large", 0, 1000)));
}

/// PINGs are bytes, too, and come for ever.
#[test]
fn what_does_not_move_ends_whatever_pings_say() {
    let dir = files();
    let times = ["--stall-timeout", "1s", "--idle-timeout", "1s"];
    let server = Server::new(dir.path(), &[&ADDRESSES[..], &times].concat());
    for (window, requests) in [(0, 0), (0, 10), (1, 10)] {
        let mut client = send(&server.addresses[0], &http2("/large", window, requests));
        let (mut resets, mut seen) = (0, Vec::new());
        until("the connection ends", || {
            let pinged = client.write_all(&frame(6, 0, 0, b"12345678"));
            client.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
            let mut bytes = [0; 4096];
            match client.read(&mut bytes) {
                Ok(0) => return true,
                Ok(read) => seen.extend_from_slice(&bytes[..read]),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return true,
            }
            pinged.is_err()
        });
        while let [a, b, c, kind, ..] = seen[..] {
            resets += u32::from(kind == 3);
            let len = u32::from_be_bytes([0, a, b, c]) as usize + 9;
            seen.drain(..len.min(seen.len()));
        }
        assert_eq!(resets, requests, "the streams were not ended before the connection");
    }
}

/// Who reads slowly has not stopped.
#[test]
fn a_stream_that_moves_slowly_does_not_end() {
    let dir = files();
    let times = ["--stall-timeout", "2s", "--idle-timeout", "1s"];
    let server = Server::new(dir.path(), &[&ADDRESSES[..], &times].concat());
    let mut client = send(&server.addresses[0], &http2("/large", 0, 1));
    for _ in 0..40 {
        // As much as the server reads at a time, and more slowly than both timeouts in all.
        client.write_all(&frame(8, 0, 1, &(16_384_u32).to_be_bytes())).expect("it reads");
        let mut got = 0;
        while got < 16_384 {
            let mut head = [0; 9];
            client.read_exact(&mut head).expect("it answers");
            let [a, b, c, kind, ..] = head;
            let len = u32::from_be_bytes([0, a, b, c]) as usize;
            client.read_exact(&mut vec![0; len]).expect("it answers");
            assert_ne!(kind, 3, "the stream was reset");
            got += if kind == 0 { len } else { 0 };
        }
        std::thread::sleep(Duration::from_millis(150));
    }
}

/// Lines that are long, and a log that is not read.
#[test]
fn an_access_log_that_nobody_reads_has_its_share() {
    let dir = files();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sendfile2-server"));
    command.stdout(std::process::Stdio::piped());
    let server =
        Server::by(command, dir.path(), &[&ADDRESSES[..], &["--access-log", "-"]].concat());
    let before = server.resident();
    let request = format!("HEAD /{} HTTP/1.1\r\nhost: x\r\n\r\n", "\u{e9}".repeat(15_000));
    let mut client = connect(&server.addresses[0]);
    let mut reader = client.try_clone().expect("a descriptor");
    std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
    for _ in 0..4500 {
        client.write_all(request.as_bytes()).expect("it reads");
    }
    until("all are answered", || {
        let text = get(&server.addresses[1], "/metrics");
        number(&text, "sendfile2_http_requests_total{status=\"404\"}") == 4500.0
    });
    let grown = server.resident().saturating_sub(before);
    println!("the log of 4500 long lines: {grown} KiB");
    assert!(grown < 16 << 10, "{grown} KiB");
}
