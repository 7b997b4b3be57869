//! Clients of a cache that do not read what is stored, so many that they hold all of its store.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Server, get, number, until};

/// More than the kernel takes for a client that does not read.
const LEN: usize = 7_000_000;

fn body(n: usize) -> Vec<u8> {
    (0..LEN).map(|at| u8::try_from((at / 1000 * 31 + n * 7) % 251).expect("a byte")).collect()
}

/// A cache with a store of 120 MiB, before this origin.
fn cache(origin: &str) -> Server {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sendfile2-server"));
    command.args(["cache", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--size", "128M"]);
    let mut child =
        command.args(["--origin", origin]).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
    let mut addresses = [const { String::new() }; 2];
    while addresses.iter().any(String::is_empty) {
        let mut line = String::new();
        assert_ne!(stderr.read_line(&mut line).expect("UTF-8"), 0, "it ended early");
        let address = line.trim().rsplit(' ').next().expect("an address").to_owned();
        if line.contains("metrics") {
            addresses[1] = address;
        } else if line.contains("listening") {
            addresses[0] = address;
        }
    }
    Server { child, addresses: addresses.into(), stderr }
}

/// Asks for a file and reads no more than the beginning.
fn begun(address: &str, n: usize) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
    let request = format!("GET /{n} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("it is sent");
    let mut first = [0; 12];
    stream.read_exact(&mut first).expect("an answer");
    assert_eq!(&first, b"HTTP/1.1 200");
    stream
}

#[test]
fn those_who_hold_all_of_a_store_are_cut_off_and_get_no_wrong_byte() {
    let dir = tempfile::tempdir().expect("a directory");
    let bodies: Vec<_> = (0..17).map(body).collect();
    for (n, body) in bodies.iter().enumerate() {
        std::fs::write(dir.path().join(n.to_string()), body).expect("written");
    }
    let files = ["--listen", "127.0.0.1:0", "--cache-control", "*=max-age=600"];
    let origin = Server::new(dir.path(), &files);
    let cache = cache(&format!("http://{}", origin.addresses[0]));
    let at = &cache.addresses[0];
    let is_hit = |n: usize| {
        let mut head = String::new();
        let request = format!("HEAD /{n} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let mut stream = TcpStream::connect(at).expect("it listens");
        stream.write_all(request.as_bytes()).expect("it is sent");
        stream.read_to_string(&mut head).expect("an answer");
        head.contains("cache-status: sendfile2; hit")
    };
    let store = |n: usize| {
        let mut all = Vec::new();
        begun(at, n).read_to_end(&mut all).expect("an answer");
        is_hit(n)
    };
    // As many as it has room for, each held by some.
    let mut slow = Vec::new();
    for n in 0..14 {
        until("it is stored", || store(n));
        slow.extend((0..3).map(|_| (n, begun(at, n))));
    }
    for n in 14..17 {
        until("another one is stored", || store(n));
    }
    let metrics = get(&cache.addresses[1], "/metrics");
    assert!(number(&metrics, "sendfile2_cache_leases_revoked_total") > 0.0, "{metrics}");
    let (mut whole, mut cut) = (0, 0);
    for (n, mut stream) in slow {
        let mut got = Vec::new();
        // It ends, or is reset.
        let _ = stream.read_to_end(&mut got);
        let head = got.windows(4).position(|bytes| bytes == b"\r\n\r\n").map_or(0, |at| at + 4);
        assert!(bodies[n].starts_with(&got[head..]), "wrong bytes of {n}");
        if got.len() - head == LEN { whole += 1 } else { cut += 1 }
    }
    println!("{whole} were sent all, {cut} were cut off");
    assert!(cut > 0);
}
