//! The C examples, compiled and run as their readers do it, and what their clients receive.
#![allow(clippy::unwrap_used)]

#[path = "../../sendfile2/tests/common/example.rs"]
mod example;
mod installed;

use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use example::{PATIENCE, Server, named};
use installed::{installed, pkg_config, prefix, run};

fn start(name: &str, file: &Path) -> Server {
    let directory = prefix().join("tests");
    std::fs::create_dir_all(&directory).unwrap();
    // Tests run at once, and what runs cannot be written.
    let program = tempfile::Builder::new().prefix(name).tempfile_in(directory).unwrap();
    let program = program.into_temp_path();
    run(Command::new("cc")
        .args(["-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", "-O1", "-o"])
        .arg(&program)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name).with_extension("c"))
        .args(pkg_config(&["--cflags", "--libs"])));
    Server::run(installed(&program).arg("0").arg(file))
}

/// The file as it was before a server wrote into it.
fn bytes(len: u32) -> Vec<u8> {
    let byte = |i: u32| {
        let [a, b, c, _] = i.to_le_bytes();
        a.wrapping_mul(31) ^ b.wrapping_mul(17) ^ c.wrapping_mul(7) ^ 0x5a
    };
    (0..len).map(byte).collect()
}

/// Receives all that there is to be received, which is to be the file with this number in it.
#[track_caller]
fn expect(client: &mut BufReader<TcpStream>, number: u32, len: u32) {
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    let mut expected = bytes(len);
    expected[..8].copy_from_slice(format!("{number:07}\n").as_bytes());
    let first = got.iter().zip(&expected).position(|(a, b)| a != b);
    let number = String::from_utf8_lossy(&got[..got.len().min(8)]);
    assert_eq!((got.len(), first), (expected.len(), None), "(length, first wrong byte) {number:?}");
}

/// Waits until something arrives, or it surely would have.
fn look(client: &BufReader<TcpStream>) {
    client.get_ref().set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let _ = client.get_ref().peek(&mut [0]);
    client.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
}

/// Fits the sockets: the server has sent all of it before anything is received.
const SMALL: u32 = 50_000;
/// Does not fit.
const LARGE: u32 = (16 << 20) + 3;

fn one_after_another(start: impl Fn(&Path) -> Server) {
    let small = named(&bytes(SMALL));
    let server = start(small.path());
    let mut clients = [(); 3].map(|()| server.connect());
    // If the server has come to the second one, it has written into the file.
    look(&clients[1]);
    for (client, number) in clients.iter_mut().zip(1..) {
        expect(client, number, SMALL);
    }

    let large = named(&bytes(LARGE));
    let server = start(large.path());
    let mut clients = [(); 3].map(|()| server.connect());
    expect(&mut clients[0], 1, LARGE);
    // It goes away in the midst of it.
    let [_, mut gone, mut last] = clients;
    gone.read_exact(&mut [0; 8]).unwrap();
    drop(gone);
    expect(&mut last, 3, LARGE);
}

#[test]
fn blocking() {
    one_after_another(|file| start("blocking", file));
}

#[test]
fn sync() {
    one_after_another(|file| start("sync", file));
    who_stalls_is_cut_off(|file| start("sync", file));
}

#[test]
fn queue() {
    one_after_another(|file| start("queue", file));
    who_stalls_is_cut_off(|file| start("queue", file));
}

fn who_stalls_is_cut_off(start: impl Fn(&Path) -> Server) {
    let file = named(&bytes(LARGE));
    let server = start(file.path());
    let [mut stalled, mut client] = [(); 2].map(|()| server.connect());
    // Its turn comes when the server has lost its patience with the other one.
    client.get_ref().set_read_timeout(Some(4 * PATIENCE)).unwrap();
    expect(&mut client, 2, LARGE);
    let mut got = Vec::new();
    let end = stalled.read_to_end(&mut got);
    assert!(end.is_err(), "{} bytes, and then what looks like the end", got.len());
}

#[test]
fn epoll() {
    let file = named(&bytes(SMALL));
    let server = start("epoll", file.path());
    let mut first = server.connect();
    look(&first);
    let mut second = server.connect();
    look(&second);
    // The first one has not received it, so that the file had to stay as it was.
    expect(&mut first, 1, SMALL);
    expect(&mut second, 1, SMALL);

    let file = named(&bytes(LARGE));
    let mut server = start("epoll", file.path());
    let mut stalled = server.connect();
    stalled.read_exact(&mut [0]).unwrap();
    let mut gone = server.connect();
    gone.read_exact(&mut [0; 8]).unwrap();
    drop(gone);
    // The file is being sent to the first one, and stays as it is.
    expect(&mut server.connect(), 1, LARGE);
    let mut rest = Vec::new();
    stalled.read_to_end(&mut rest).unwrap();
    let mut all = bytes(LARGE);
    all[..8].copy_from_slice(b"0000001\n");
    assert!(rest == all[1..], "{} bytes, others than expected", rest.len());
    let mut line = String::new();
    while line != "0 clients are being sent the file\n" {
        line.clear();
        assert_ne!(server.printed.read_line(&mut line).unwrap(), 0, "it has ended");
    }
    expect(&mut server.connect(), 4, LARGE);
}

#[test]
fn each_is_run_and_short() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    example::each_is_run_and_short(&directory, include_str!("examples.rs"));
}
