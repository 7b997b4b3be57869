//! The helpers that the tests share: files with known content, connected sockets, ids.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use sendfile2_sys::errqueue::{self, Entry};
use sendfile2_sys::module::{Args, Device, flags};

use crate::sys;

/// The limit of a wait that only a hang passes, also on a debug kernel under emulation.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// Returns bytes that differ from place to place; those of `pattern(seed)` and `pattern(!seed)`
/// differ everywhere.
pub(crate) fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| {
            let [a, b, c, ..] = i.to_le_bytes();
            seed ^ a.wrapping_mul(31) ^ b.wrapping_mul(17) ^ c.wrapping_mul(7)
        })
        .collect()
}

/// Makes a file with this pattern.
pub(crate) fn file(seed: u8, len: usize) -> File {
    let path = std::env::temp_dir().join(format!("kernel-tests-{}", unique()));
    let mut open = OpenOptions::new();
    let mut file = open.read(true).write(true).create_new(true).open(&path).expect("a file");
    std::fs::remove_file(path).expect("remove");
    file.write_all(&pattern(seed, len)).expect("write");
    std::io::Seek::rewind(&mut file).expect("rewind");
    file
}

fn unique() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

pub(crate) fn overwrite(file: &File, seed: u8, len: usize) {
    file.write_all_at(&pattern(seed, len), 0).expect("overwrite");
}

/// Returns a connection: its sending end, and its receiving end.
pub(crate) fn tcp() -> (TcpStream, TcpStream) {
    pair(None)
}

/// Returns a connection whose receiving end takes in little until it is read.
pub(crate) fn tcp_small() -> (TcpStream, TcpStream) {
    pair(Some(128 << 10))
}

fn pair(receive: Option<usize>) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("is the interface lo up?");
    if let Some(bytes) = receive {
        rustix::net::sockopt::set_socket_recv_buffer_size(&listener, bytes).expect("SO_RCVBUF");
    }
    let sender = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
    let (receiver, _) = listener.accept().expect("accept");
    receiver.set_read_timeout(Some(PATIENCE)).expect("SO_RCVTIMEO");
    (sender, receiver)
}

/// Resets the connection.
pub(crate) fn reset(socket: TcpStream) {
    rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::ZERO)).expect("SO_LINGER");
    drop(socket);
}

pub(crate) fn device() -> Device {
    Device::open().unwrap_or_else(|e| panic!("{}: {e}", Device::PATH))
}

/// Returns the arguments of a call that sends from the file's start.
pub(crate) fn args(count: usize, extra: u32) -> Args {
    let mut args = Args::default();
    args.count = count as u64;
    args.flags = flags::ZC | extra;
    args
}

pub(crate) fn send(
    device: &Device,
    socket: impl AsFd,
    file: impl AsFd,
    args: &mut Args,
) -> Result<usize, Errno> {
    device.send(socket.as_fd(), file.as_fd(), args)
}

/// Waits until nothing is on its way: what TCP has sent is acknowledged, and what it has not sent
/// waits for the peer to read.
pub(crate) fn settle(socket: impl AsFd) {
    wait_until("nothing is on its way", || {
        let unacknowledged = sendfile2_sys::socket::unacknowledged(&socket).expect("SIOCOUTQ");
        unacknowledged == sys::not_sent(&socket).expect("SIOCOUTQNSD")
    });
}

/// Sends from the file, again and again, until the socket has no space, and gets none unless the
/// peer reads; returns how often, and the bytes.
pub(crate) fn fill(device: &Device, socket: BorrowedFd<'_>, file: &File) -> (u32, usize) {
    let (mut calls, mut bytes) = (0, 0);
    loop {
        settle(socket);
        match device.send(socket, file.as_fd(), &mut args(1 << 20, flags::DONTWAIT)) {
            Ok(sent) => {
                assert!(sent > 0, "the file is empty");
                calls += 1;
                bytes += sent;
            }
            Err(Errno::AGAIN) => return (calls, bytes),
            Err(e) => panic!("filling the socket: {e}"),
        }
    }
}

/// Sends bytes of no file until the peer's window is closed; the socket has space for more, which
/// stays there until the peer reads. Returns the bytes.
pub(crate) fn stall(socket: &TcpStream) -> usize {
    rustix::net::sockopt::set_socket_send_buffer_size(socket, 208 << 10).expect("SO_SNDBUF");
    let mut bytes = 0;
    let flags = rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL;
    while sys::not_sent(socket).expect("SIOCOUTQNSD") == 0 {
        bytes += rustix::net::send(socket, &[7; 16384], flags).expect("room");
        settle(socket);
    }
    bytes
}

/// Returns whether a thread of this process sleeps.
pub(crate) fn asleep(thread: rustix::thread::Pid) -> bool {
    let path = format!("/proc/self/task/{}/stat", thread.as_raw_nonzero());
    let stat = std::fs::read_to_string(path).expect("is procfs mounted?");
    // The name, in parentheses, may have blanks.
    stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('S'))
}

/// Reads all ids there are by now.
pub(crate) fn read_ids(socket: impl AsFd, ids: &mut Vec<u32>) {
    let mut entries = Vec::new();
    while errqueue::read(socket.as_fd(), &mut entries).expect("the error queue") {}
    for entry in entries {
        match entry.expect("an error-queue message that can be understood") {
            Entry::Completion { lo, hi, .. } => ids.extend(lo..=hi),
            other => panic!("not a completion: {other:?}"),
        }
    }
}

/// Waits for at least so many ids.
pub(crate) fn wait_ids(socket: impl AsFd, ids: &mut Vec<u32>, count: usize) {
    let until = Instant::now() + PATIENCE;
    loop {
        read_ids(&socket, ids);
        if ids.len() >= count {
            return;
        }
        assert!(Instant::now() < until, "{} of {count} ids have come: {ids:?}", ids.len());
        let limit = Timespec { tv_sec: 1, tv_nsec: 0 };
        let mut fds = [PollFd::new(&socket, PollFlags::empty())];
        poll(&mut fds, Some(&limit)).expect("poll");
        // On a dead socket poll returns at once, for ever.
        std::thread::yield_now();
    }
}

/// Waits until something is so; panics with `what` if it never is.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < until, "it never came about: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Asserts that each id from 0 on has come exactly once.
#[track_caller]
pub(crate) fn assert_ids(mut ids: Vec<u32>, count: u32) {
    ids.sort_unstable();
    let wrong = ids.iter().zip(0..).find(|(id, expected)| **id != *expected);
    assert_eq!((ids.len(), wrong), (count as usize, None), "(ids, the first wrong one)");
}

/// Reads exactly so many bytes.
pub(crate) fn read(mut socket: &TcpStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    socket.read_exact(&mut bytes).expect("receive");
    bytes
}

/// Reads everything to the end, in a thread.
pub(crate) fn drain(mut socket: TcpStream) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        socket.read_to_end(&mut bytes).expect("receive");
        bytes
    })
}

/// Returns the number of bytes that differ.
#[track_caller]
pub(crate) fn wrong(got: &[u8], expected: &[u8]) -> usize {
    assert_eq!(got.len(), expected.len(), "length");
    got.iter().zip(expected).filter(|(a, b)| a != b).count()
}

/// Returns the module's use count: open devices, and structures that wait for pages.
pub(crate) fn uses() -> usize {
    let text = std::fs::read_to_string("/sys/module/sendfile2/refcnt").expect("is sysfs mounted?");
    text.trim().parse().expect("a number")
}

/// Nanoseconds of `CLOCK_MONOTONIC`, so far from now.
pub(crate) fn monotonic(from_now: Duration) -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let now = Duration::new(
        u64::try_from(now.tv_sec).expect("after the start"),
        u32::try_from(now.tv_nsec).expect("under a second"),
    );
    u64::try_from((now + from_now).as_nanos()).expect("within 584 years")
}
