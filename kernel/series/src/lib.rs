//! The helpers that the tests of the patch series share: finding the series, connections, ids.
//!
//! The tests run on kernels that have the series; elsewhere they say that they are skipped, and
//! where `SENDFILE2_SERIES` is set they fail. What needs no more than one process and the loopback
//! device is also in the series' own selftest.
#![allow(clippy::missing_panics_doc, reason = "tests panic")]

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use sendfile2_sys::errqueue::{self, Entry};
use sendfile2_sys::syscall::{self, SENDFILE_ZC, Sendfile2};

/// The limit of a wait that only a hang passes, also on a debug kernel under emulation.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// Finds the system call, if this kernel has the series; else prints the reason.
pub fn series() -> Option<Sendfile2> {
    match syscall::probe().and_then(|()| Sendfile2::find()) {
        Ok(call) => Some(call),
        Err(e) if std::env::var_os("SENDFILE2_SERIES").is_none() => {
            println!("SKIP: no kernel with the patch series: {e}");
            None
        }
        Err(e) => panic!("the patch series is not in this kernel: {e}"),
    }
}

/// The path of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// The loopback device: the kernel copies when it delivers.
    Loopback,
    /// The network devices of `cargo xtask guest`, of which the peer's is in a namespace `peer`:
    /// nothing is copied, and root is needed.
    Devices,
}

/// The file of the peer's namespace.
const PEER: &str = "/run/netns/peer";

impl Via {
    /// Returns whether the path is there; else prints the reason.
    pub fn is_there(self) -> bool {
        if self == Via::Loopback {
            return true;
        }
        if !std::path::Path::new(PEER).exists() {
            println!("SKIP: {PEER} is missing: this is for guests with two network devices");
            return false;
        }
        if !rustix::process::geteuid().is_root() {
            println!("SKIP: only root may enter a network namespace");
            return false;
        }
        true
    }

    /// Returns the sending end, and the receiving end, which takes in so many bytes at most until
    /// it is read.
    pub fn connect(self, receive: Option<usize>) -> (TcpStream, TcpStream) {
        match self {
            Via::Loopback => connect(Ipv4Addr::LOCALHOST.into(), receive, |listen| listen()),
            Via::Devices => connect(Ipv4Addr::new(10, 8, 0, 2).into(), receive, |listen| {
                // A socket belongs to the namespace of the thread that makes it.
                std::thread::scope(|scope| {
                    let thread = scope.spawn(|| {
                        let peer = File::open(PEER).expect(PEER);
                        let kind = Some(rustix::thread::LinkNameSpaceType::Network);
                        rustix::thread::move_into_link_name_space(peer.as_fd(), kind)
                            .expect("enter the namespace");
                        listen()
                    });
                    thread.join().expect("listen")
                })
            }),
        }
    }
}

fn connect(
    address: IpAddr,
    receive: Option<usize>,
    listening: impl FnOnce(&(dyn Fn() -> TcpListener + Sync)) -> TcpListener,
) -> (TcpStream, TcpStream) {
    let listener = listening(&|| {
        let listener = TcpListener::bind(SocketAddr::new(address, 0)).expect("is the device up?");
        if let Some(bytes) = receive {
            rustix::net::sockopt::set_socket_recv_buffer_size(&listener, bytes).expect("SO_RCVBUF");
        }
        listener
    });
    let sender = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
    let (receiver, _) = listener.accept().expect("accept");
    receiver.set_read_timeout(Some(PATIENCE)).expect("SO_RCVTIMEO");
    sender.set_nodelay(true).expect("TCP_NODELAY");
    (sender, receiver)
}

/// Makes a file of so many bytes.
pub fn file(byte: u8, len: usize) -> File {
    let file = tempfile::tempfile().expect("a file");
    file.write_all_at(&vec![byte; len], 0).expect("write");
    file
}

/// Overwrites a file, in place.
pub fn overwrite(file: &File, byte: u8, len: usize) {
    file.write_all_at(&vec![byte; len], 0).expect("overwrite");
}

/// Calls sendfile2(2) from the start of a file, with a notification.
pub fn send(call: Sendfile2, socket: impl AsFd, file: &File, count: usize) -> Result<usize, Errno> {
    call.send(socket.as_fd(), file.as_fd(), Some(&mut 0), count, SENDFILE_ZC)
}

/// Makes a pipe with these bytes of a file.
pub fn piped(file: &File, count: usize) -> OwnedFd {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("pipe");
    let flags = rustix::pipe::SpliceFlags::empty();
    let put = rustix::pipe::splice(file, Some(&mut 0), &writer, None, count, flags);
    assert_eq!(put, Ok(count), "a pipe takes at least 64 KiB");
    reader
}

/// The notifications of a socket.
#[derive(Debug, Default)]
pub struct Ids {
    /// All ids, as they came.
    pub seen: Vec<u32>,
    /// The number of ids that came with COPIED.
    pub copied: usize,
}

impl Ids {
    /// Reads the notifications that are there.
    pub fn reap(&mut self, socket: impl AsFd) {
        let mut entries = Vec::new();
        while errqueue::read(socket.as_fd(), &mut entries).expect("the error queue") {}
        for entry in entries {
            match entry.expect("an error-queue message that can be understood") {
                Entry::Completion { lo, hi, copied } => {
                    self.copied += if copied { (hi - lo) as usize + 1 } else { 0 };
                    self.seen.extend(lo..=hi);
                }
                other => panic!("not a completion: {other:?}"),
            }
        }
    }

    /// Waits until there are so many ids.
    #[track_caller]
    pub fn wait(&mut self, socket: impl AsFd, count: usize) {
        let until = Instant::now() + PATIENCE;
        loop {
            self.reap(&socket);
            if self.seen.len() >= count {
                return;
            }
            assert!(Instant::now() < until, "{} of {count} ids have come", self.seen.len());
            wait(socket.as_fd(), PollFlags::empty(), 1);
            // On a dead socket poll returns at once, for ever.
            std::thread::yield_now();
        }
    }

    /// Asserts that each id from 0 on has come, once.
    #[track_caller]
    pub fn assert_each_once(mut self, count: usize) {
        self.seen.sort_unstable();
        let wrong = self.seen.iter().zip(0..).find(|(id, expected)| **id != *expected);
        assert_eq!((self.seen.len(), wrong), (count, None), "(ids, the first wrong one)");
    }
}

/// Waits for an event, at most so many seconds.
pub fn wait(socket: BorrowedFd<'_>, events: PollFlags, seconds: i64) {
    let limit = Timespec { tv_sec: seconds, tv_nsec: 0 };
    match poll(&mut [PollFd::new(&socket, events)], Some(&limit)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(e) => panic!("poll: {e}"),
    }
}

/// Returns whether a thread of this process sleeps.
pub fn asleep(thread: rustix::thread::Pid) -> bool {
    let path = format!("/proc/self/task/{}/stat", thread.as_raw_nonzero());
    let stat = std::fs::read_to_string(path).expect("is procfs mounted?");
    // The name, in parentheses, may have blanks.
    stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('S'))
}

/// Reads so many bytes, and counts those that differ from `byte`.
pub fn wrong(mut socket: &TcpStream, len: usize, byte: u8) -> usize {
    let mut bytes = vec![0; len];
    socket.read_exact(&mut bytes).expect("receive");
    bytes.iter().filter(|got| **got != byte).count()
}

/// Reads to the end, or to a reset, in a thread of its own.
pub fn drain(mut socket: TcpStream) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 18];
        loop {
            match socket.read(&mut buffer) {
                Ok(0) => return,
                Ok(_) => {}
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return,
                Err(e) => panic!("receive: {e}"),
            }
        }
    })
}

/// Closes the socket so that the peer gets a reset.
pub fn reset(socket: TcpStream) {
    rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::ZERO)).expect("SO_LINGER");
    drop(socket);
}
