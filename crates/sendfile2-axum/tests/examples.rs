//! The examples, run as their readers run them, and what their clients receive. `cargo test` builds
//! them, unless it is told which targets to test.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../../sendfile2/tests/common/example.rs"]
mod example;

use std::io::Write;
use std::path::Path;

use common::{Client, SIZES, assert_same, files, pattern};
use example::{Server, named};

#[test]
fn axum_files() {
    let directory = files();
    let server = Server::start("axum_files", directory.path());
    let mut client = Client::new(server.address);
    for size in SIZES {
        let got = client.get(&format!("/{size}"));
        assert_eq!(got.status, 200);
        assert_same(&got.body, &pattern(1, 0..size), &format!("a file of {size} bytes"));
    }
    let got = client.with("GET", "/1048577", "range: bytes=100-299999\r\n");
    assert_same(&got.body, &pattern(1, 100..300_000), "a range");
    assert_eq!(client.get("/health").body, b"well\n");
    assert_eq!(client.get("/nothing").status, 404);
}

#[test]
fn axum_slot() {
    let generation = |n: u8| vec![n; 65_536];
    let file = named(&[generation(0), generation(0), generation(0)].concat());
    let server = Server::start("axum_slot", file.path());
    let slot = |client: &mut Client| {
        let got = client.answer("GET").body;
        assert_same(&got, &generation(got[0]), "a slot, as one generation");
        got[0]
    };
    let get = |client: &mut Client, path: &str| {
        client.ask("GET", path, "");
        slot(client)
    };
    let put = |client: &mut Client, bytes: &[u8]| {
        client.ask("PUT", "/1", &format!("content-length: {}\r\n", bytes.len()));
        client.0.get_mut().write_all(bytes).unwrap();
    };
    let mut client = Client::new(server.address);
    // More than the sockets take in, so that it stalls in the midst of a slot; that others are
    // served meanwhile gives it the time.
    let mut stalled = Client::new(server.address);
    (0..300).for_each(|_| stalled.ask("GET", "/1", ""));
    assert!((0..100).all(|_| get(&mut client, "/0") == 0));
    let mut writer = Client::new(server.address);
    put(&mut writer, &generation(1));
    assert!((0..100).all(|_| get(&mut client, "/0") == 0));

    let mut last = 0;
    for _ in 0..300 {
        let got = slot(&mut stalled);
        assert!(got >= last, "{got} after {last}");
        last = got;
    }
    assert_eq!(last, 1, "what was stored meanwhile");
    assert_eq!(writer.head().status, 204);
    assert_eq!(["/0", "/1", "/2"].map(|path| get(&mut writer, path)), [0, 1, 0]);
    let got = writer.get("/3");
    assert_eq!((got.status, &*got.body), (404, &b"there are 3 slots\n"[..]));
    put(&mut writer, b"short");
    assert_eq!(writer.head().status, 400);
    let expected = [generation(0), generation(1), generation(0)].concat();
    assert_same(&std::fs::read(file.path()).unwrap(), &expected, "the file");
}

#[test]
fn hyper_body() {
    let bytes = pattern(5, 0..(5 << 20) + 3);
    let file = named(&bytes);
    let server = Server::start("hyper_body", file.path());
    let mut client = Client::new(server.address);
    for range in [0..0, 0..1, 4095..70_000, 1..bytes.len()] {
        let got = client.get(&format!("/{}-{}", range.start, range.end));
        assert_eq!(got.status, 200);
        assert_same(&got.body, &bytes[range], "a range");
    }
    assert_eq!(client.with("HEAD", "/0-1000", "").header("content-length"), "1000");
    assert_eq!(client.get(&format!("/0-{}", bytes.len() + 1)).status, 404);
    assert_eq!(client.with("DELETE", "/0-1", "").status, 405);
}

#[test]
fn each_is_run_and_short() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    example::each_is_run_and_short(&directory, include_str!("examples.rs"));
}
