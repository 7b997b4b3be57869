//! Sends of 64 KiB on 32 sockets by one ring, in batches, to be counted from outside: how many
//! system calls does a send take? `docs/uring.md` has the command and what it gave.
//!
//! ```sh
//! cargo build --release -p sendfile2 --example uring_batch
//! strace -c target/release/examples/uring_batch 32 65536 100000
//! ```
//!
//! strace slows it down, and a slower sender finds more completions at a time; it prints how many
//! waits (a system call each, and one to look at the file's size) there were, also without strace.
//! The receiver is a process of its own, which strace does not follow.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use sendfile2::uring::Driver;
use sendfile2::{SendFlags, Source};

const FILE: u64 = 8 << 20;
const USAGE: &str = "usage: uring_batch SOCKETS BYTES SENDS";

fn main() {
    let args: Vec<_> = std::env::args().skip(1).collect();
    if let [role, address, sockets] = &args[..] {
        if role == "receive" {
            return receive(address, sockets.parse().expect(USAGE));
        }
    }
    let [sockets, bytes, sends] = &args[..] else { panic!("{USAGE}") };
    let bytes: u64 = bytes.parse().expect(USAGE);
    let mut left: u64 = sends.parse().expect(USAGE);

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let exe = std::env::current_exe().unwrap();
    let mut receiver = Command::new(exe).args(["receive", &address, sockets]).spawn().unwrap();

    let mut driver = Driver::new().unwrap();
    let mut sockets: Vec<_> = (0..sockets.parse().expect(USAGE))
        .map(|_| driver.add(listener.accept().unwrap().0).unwrap())
        .collect();
    let file = tempfile::tempfile().unwrap();
    rustix::io::pwrite(&file, &vec![7; FILE.try_into().unwrap()], 0).unwrap();
    let source = Source::new(file).unwrap();

    let deadline = Instant::now() + Duration::from_secs(600);
    let half = sockets.len().div_ceil(2);
    let (mut at, mut waits) = (0, 0);
    while left > 0 {
        for socket in &mut sockets {
            if left > 0 && socket.queued() == 0 {
                at = if at + bytes > FILE { 0 } else { at };
                socket.queue_file(&source, at..at + bytes, SendFlags::NONE).unwrap();
                at += bytes;
                left -= 1;
            }
        }
        // Submits, and sleeps until half as many completions are there.
        driver.wait(half, deadline).unwrap();
        waits += 1;
    }
    while driver.under_way() > 0 {
        driver.wait(usize::MAX, deadline).unwrap();
        waits += 1;
    }
    let accepted: u64 = sockets.iter().map(|socket| socket.counters().accepted).sum();
    eprintln!("{sends} sends in {waits} waits, {accepted} bytes accepted");
    drop(sockets);
    receiver.wait().unwrap();
}

fn receive(address: &str, sockets: usize) {
    let mut sockets: Vec<_> = (0..sockets).map(|_| TcpStream::connect(address).unwrap()).collect();
    let mut buffer = vec![0; 1 << 20];
    while !sockets.is_empty() {
        let mut ready: Vec<_> =
            sockets.iter().map(|socket| PollFd::new(socket, PollFlags::IN)).collect();
        poll(&mut ready, None).unwrap();
        let ready: Vec<_> = ready.iter().map(|one| !one.revents().is_empty()).collect();
        let mut ready = ready.into_iter();
        sockets
            .retain_mut(|socket| !ready.next().unwrap() || socket.read(&mut buffer).unwrap() > 0);
    }
}
