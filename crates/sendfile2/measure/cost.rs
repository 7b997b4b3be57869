//! What a send costs in user instructions and system calls: a loop of sends and nothing else, to
//! be counted from outside. `docs/costs.md` has the commands and what they gave.
//!
//! ```sh
//! cargo build --release -p sendfile2 --example cost
//! valgrind --tool=callgrind --callgrind-out-file=/dev/null target/release/examples/cost copy 4096 100000
//! strace -fc target/release/examples/cost copy 4096 100000
//! ```
//!
//! Two runs of different counts, and the difference divided, leave out what starting costs. The
//! receiver is a `dd` of its own, which neither command counts. (`-f` is for the threads.)
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::fs::File;
use std::io::IoSliceMut;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recvmsg, send};
use sendfile2::guard::{GuardedFile, Lease};
use sendfile2::{Engine, Options, Sender, Sent, Source, Ticket};

const FILE: u64 = 8 << 20;
const USAGE: &str = "usage: cost bare-copy|bare-zerocopy|bare-sendfile|\
                     [leased-|leases-](copy|zerocopy|sendfile|auto) BYTES SENDS";

/// The lease that sends are made under: none, one for all, or one for each, as for responses.
#[derive(Clone, Copy, PartialEq)]
enum Leases {
    None,
    One,
    Each,
}

fn main() {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [way, bytes, sends] = &args[..] else { panic!("{USAGE}") };
    let (bytes, sends) = (bytes.parse().expect(USAGE), sends.parse().expect(USAGE));

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let peer = OwnedFd::from(listener.accept().unwrap().0);
    let mut dd = Command::new("dd");
    let mut receiver =
        dd.args(["bs=1M", "of=/dev/null", "status=none"]).stdin(peer).spawn().unwrap();
    match way.as_str() {
        "bare-copy" => {
            bare(&socket, SendFlags::empty(), bytes, sends);
            drop(socket);
        }
        "bare-zerocopy" => {
            // rustix has no SO_ZEROCOPY: a sender sets it, and gives the socket back.
            let sender = Sender::new(socket).unwrap();
            let socket = sender.into_socket(Instant::now()).unwrap().socket;
            let socket = socket.into();
            bare(&socket, SendFlags::from_bits_retain(0x400_0000), bytes, sends);
        }
        "bare-sendfile" => {
            bare_sendfile(&socket, bytes, sends);
            drop(socket);
        }
        way => library(socket, way, bytes, sends),
    }
    receiver.wait().unwrap();
}

fn library(socket: TcpStream, way: &str, bytes: u64, sends: u64) {
    let (leases, engine) = match way.split_once('-') {
        Some(("leased", engine)) => (Leases::One, engine),
        Some(("leases", engine)) => (Leases::Each, engine),
        _ => (Leases::None, way),
    };
    let engine: Engine = engine.parse().expect(USAGE);
    // As `auto` needs it to take `sendfile`.
    socket.set_nonblocking(true).unwrap();
    let mut sender = Sender::with(socket, Options::new().engine(engine)).unwrap();
    let file = file();
    let guarded = GuardedFile::new(file.try_clone().unwrap()).unwrap();
    let source = Source::new(file).unwrap();
    let lease = |range| guarded.try_lease(range).unwrap();
    let one = (leases == Leases::One).then(|| lease(0..FILE));
    let mut at = 0;
    for _ in 0..sends {
        at = if at + bytes > FILE { 0 } else { at };
        let each = (leases == Leases::Each).then(|| lease(at..at + bytes));
        while !once(&mut sender, &source, one.as_ref().or(each.as_ref()), at..at + bytes) {
            // The socket is full. The sender would wait itself; this waits as the bare loop does.
            poll(&mut [PollFd::new(&sender, PollFlags::OUT)], None).unwrap();
            sender.reap().unwrap();
        }
        at += bytes;
    }
    let counters = sender.counters();
    sender.close(Instant::now() + Duration::from_secs(60)).unwrap();
    eprintln!("{} sends, {} bytes accepted", sends, counters.accepted);
}

fn once(
    sender: &mut Sender,
    source: &Source,
    lease: Option<&Lease>,
    range: std::ops::Range<u64>,
) -> bool {
    let sent: Sent<Ticket> = match lease {
        Some(lease) => sender.try_send_lease(lease, range, sendfile2::SendFlags::NONE),
        None => sender.try_send_file(source, range, sendfile2::SendFlags::NONE),
    }
    .unwrap();
    matches!(sent, Sent::Accepted { .. })
}

fn file() -> File {
    let file = tempfile::tempfile().unwrap();
    rustix::io::pwrite(&file, &vec![7; FILE.try_into().unwrap()], 0).unwrap();
    file
}

/// The least that can be done: send, and for zerocopy read what is completed now and then.
fn bare(socket: &TcpStream, flags: SendFlags, bytes: u64, sends: u64) {
    let memory = vec![7; FILE.try_into().unwrap()];
    let bytes: usize = bytes.try_into().unwrap();
    let mut at = 0;
    for n in 0..sends {
        at = if at + bytes > memory.len() { 0 } else { at };
        loop {
            let flags = flags | SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match send(socket, &memory[at..at + bytes], flags) {
                Ok(_) => break,
                Err(Errno::AGAIN | Errno::NOBUFS) => {
                    poll(&mut [PollFd::new(socket, PollFlags::OUT)], None).unwrap();
                    completions(socket);
                }
                Err(e) => panic!("{e}"),
            }
        }
        if !flags.is_empty() && n % 16 == 15 {
            completions(socket);
        }
        at += bytes;
    }
}

/// The same by `sendfile(2)`.
fn bare_sendfile(socket: &TcpStream, bytes: u64, sends: u64) {
    socket.set_nonblocking(true).unwrap();
    let file = file();
    let mut at = 0;
    for _ in 0..sends {
        at = if at + bytes > FILE { 0 } else { at };
        loop {
            let mut from = at;
            match rustix::fs::sendfile(socket, &file, Some(&mut from), bytes.try_into().unwrap()) {
                Ok(_) => break,
                Err(Errno::AGAIN) => {
                    poll(&mut [PollFd::new(socket, PollFlags::OUT)], None).unwrap();
                }
                Err(e) => panic!("{e}"),
            }
        }
        at += bytes;
    }
}

fn completions(socket: &TcpStream) {
    let mut space = [std::mem::MaybeUninit::uninit(); 512];
    let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::ERRQUEUE | RecvFlags::DONTWAIT;
    while recvmsg(socket, &mut [IoSliceMut::new(&mut [])], &mut control, flags).is_ok() {}
}
