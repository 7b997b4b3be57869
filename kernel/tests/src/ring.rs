//! Sends through `io_uring`: one completion, when the pages are released; and what becomes of it
//! when nothing waits for it any more.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::str::FromStr;

use io_uring::squeue::Flags;
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use rustix::io::Errno;
use sendfile2_sys::module::{COPIED, Device, FEATURE_URING, RELEASED, SEND, flags};

use crate::lab::{
    PATIENCE, args, device, drain, file, fill, overwrite, pattern, read, read_ids, reset, stall,
    tcp, tcp_small, uses, wait_until, wrong,
};
use crate::{Done, Run, Test, sys};

pub(crate) const TESTS: &[Test] = &[
    ("ring_one_completion_at_the_release", Run::MaySkip(|| with(completion))),
    ("ring_no_completion_before_the_release", Run::MaySkip(|| with(no_earlier))),
    ("ring_errors_complete_at_once", Run::MaySkip(|| with(errors))),
    ("ring_a_small_entry_is_refused", Run::MaySkip(|| with(small_entry))),
    ("ring_an_entry_that_may_be_replaced_is_refused", Run::MaySkip(|| with(replaceable))),
    ("ring_entries_that_follow_at_once_replace_no_arguments", Run::MaySkip(|| with(replaced))),
    (
        "ring_of_a_process_that_is_killed_while_it_waits",
        Run::MaySkip(|| with(|| killed(Victim::Waits))),
    ),
    (
        "ring_of_a_process_that_is_killed_while_it_sends",
        Run::MaySkip(|| with(|| killed(Victim::Sends))),
    ),
];

fn with(test: fn()) -> Done {
    let query = device().query().expect("the query");
    if query.features & FEATURE_URING == 0 {
        return Done::Skipped("the kernel has no io_uring".into());
    }
    test();
    Done::Passed
}

pub(crate) fn ring() -> sys::Ring {
    IoUring::builder().build(8).expect("io_uring_setup")
}

fn entry(
    device: &Device,
    socket: &TcpStream,
    file: &File,
    count: usize,
    extra: u32,
) -> squeue::Entry128 {
    command(device, SEND, args(count, extra).command(socket.as_fd(), file.as_fd()))
}

fn command(device: &Device, op: u32, command: [u8; 80]) -> squeue::Entry128 {
    bare(device, op, command).flags(Flags::ASYNC)
}

/// Makes a command without `IOSQE_ASYNC`.
fn bare(device: &Device, op: u32, command: [u8; 80]) -> squeue::Entry128 {
    let on = Fd(device.as_fd().as_raw_fd());
    opcode::UringCmd80::new(on, op).cmd(command).build().user_data(7)
}

pub(crate) fn submit(
    ring: &mut sys::Ring,
    device: &Device,
    socket: &TcpStream,
    file: &File,
    count: usize,
) {
    sys::submit(ring, &entry(device, socket, file, count, 0));
}

/// Waits for the next completion; returns its result, and its state.
pub(crate) fn complete(ring: &mut sys::Ring) -> (i32, u64) {
    let limit = Timespec::from(PATIENCE);
    ring.submitter()
        .submit_with_args(1, &SubmitArgs::new().timespec(&limit))
        .expect("a completion");
    let done = ring.completion().next().expect("a completion");
    assert_eq!(done.user_data(), 7);
    (done.result(), done.big_cqe()[0])
}

fn done(ring: &mut sys::Ring) -> bool {
    // Runs what is due.
    ring.submit().expect("io_uring_enter");
    !ring.completion().is_empty()
}

fn completion() {
    const SIZE: usize = 1 << 20;
    let (device, mut ring, (tx, rx)) = (device(), ring(), tcp_small());
    let from = file(50, SIZE);
    let received = drain(rx);
    for round in 0..4 {
        overwrite(&from, 50 + round, SIZE);
        submit(&mut ring, &device, &tx, &from, SIZE);
        let (result, state) = complete(&mut ring);
        assert_eq!(result, i32::try_from(SIZE).expect("small"));
        assert_eq!(state, u64::from(RELEASED | COPIED), "loopback copies what it delivers");
    }
    overwrite(&from, 99, SIZE);
    let mut ids = Vec::new();
    read_ids(&tx, &mut ids);
    assert_eq!(ids, [], "it uses no ids");
    drop(tx);
    let expected: Vec<u8> = (0..4).flat_map(|round| pattern(50 + round, SIZE)).collect();
    assert_eq!(wrong(&received.join().expect("reader"), &expected), 0);
    assert!(!done(&mut ring), "a second completion");
}

fn no_earlier() {
    let (device, mut ring, (tx, rx)) = (device(), ring(), tcp_small());
    let from = file(51, 64 << 10);
    let before = stall(&tx);
    let unsent = sys::not_sent(&tx).expect("SIOCOUTQNSD");
    submit(&mut ring, &device, &tx, &from, 64 << 10);
    wait_until("the socket takes it", || sys::not_sent(&tx).expect("SIOCOUTQNSD") > unsent);
    // Twice as long as a call waits that the deadline ends.
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert!(!done(&mut ring), "the peer has not read it, and it is in no network");
    // So it can still be changed.
    overwrite(&from, !51, 64 << 10);
    let received = read(&rx, before + (64 << 10));
    assert_eq!(wrong(&received[before..], &pattern(!51, 64 << 10)), 0);
    assert_eq!(complete(&mut ring).0, 64 << 10);
}

fn errors() {
    let (device, mut ring, (tx, _rx)) = (device(), ring(), tcp());
    let from = file(52, 1 << 20);
    let mut expect = |entry: &squeue::Entry128, result: i32| {
        sys::submit(&mut ring, entry);
        assert_eq!(complete(&mut ring).0, result);
    };
    let failed = |errno: Errno| -errno.raw_os_error();
    let write_only = File::create("/dev/null").expect("/dev/null");
    expect(&entry(&device, &tx, &write_only, 10, 0), failed(Errno::BADF));
    expect(&entry(&device, &tx, &from, 10, flags::WAIT), failed(Errno::INVAL));
    expect(&entry(&device, &tx, &from, 0, 0), 0);
    let (unix, _peer) = std::os::unix::net::UnixStream::pair().expect("socketpair");
    let to_unix = args(10, 0).command(unix.as_fd(), from.as_fd());
    expect(&command(&device, SEND, to_unix), failed(Errno::OPNOTSUPP));
    expect(&command(&device, SEND + 1, to_unix), failed(Errno::NOTTY));
    fill(&device, tx.as_fd(), &from);
    expect(&entry(&device, &tx, &from, 10, flags::DONTWAIT), failed(Errno::AGAIN));
    tx.shutdown(std::net::Shutdown::Write).expect("shutdown");
    expect(&entry(&device, &tx, &from, 10, 0), failed(Errno::PIPE));
}

fn small_entry() {
    let device = device();
    let mut ring: IoUring<squeue::Entry, cqueue::Entry> =
        IoUring::builder().build(8).expect("io_uring_setup");
    let on = Fd(device.as_fd().as_raw_fd());
    sys::submit_small(&mut ring, &opcode::UringCmd16::new(on, SEND).cmd([0; 16]).build());
    ring.submit_and_wait(1).expect("a completion");
    let result = ring.completion().next().expect("a completion").result();
    assert_eq!(result, -Errno::INVAL.raw_os_error());
}

/// A command without `IOSQE_ASYNC` is refused: Linux has its arguments in the ring until a worker
/// reads them.
fn replaceable() {
    let (device, mut ring, (tx, rx)) = (device(), ring(), tcp());
    let from = file(55, 1000);
    let received = drain(rx);
    let arguments = args(1000, 0).command(tx.as_fd(), from.as_fd());
    sys::submit(&mut ring, &bare(&device, SEND, arguments));
    assert_eq!(complete(&mut ring).0, -Errno::INVAL.raw_os_error());
    drop(tx);
    assert_eq!(received.join().expect("reader"), [], "it has sent nothing");
}

/// Commands that replace each other: each is in the ring's only slot, and is submitted while the
/// one before it is only begun.
fn replaced() {
    const ENTRIES: usize = 200;
    let device = device();
    let from = file(56, ENTRIES);
    let mut ring: sys::Ring =
        IoUring::builder().setup_cqsize(256).build(1).expect("io_uring_setup");
    let (tx, rx) = tcp();
    let received = drain(rx);
    for count in 1..=ENTRIES {
        let entry = entry(&device, &tx, &from, count, 0).user_data(count as u64);
        sys::submit(&mut ring, &entry);
    }
    let mut left = ENTRIES;
    while left > 0 {
        ring.submit_and_wait(1).expect("a completion");
        for done in ring.completion() {
            assert_eq!(u64::try_from(done.result()), Ok(done.user_data()));
            left -= 1;
        }
    }
    drop(tx);
    let expected = ENTRIES * (ENTRIES + 1) / 2;
    assert_eq!(received.join().expect("reader").len(), expected);
}

/// The work of the process that is to be killed. It has the socket as its standard input.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Victim {
    /// The socket has taken it all; it waits for the release.
    Waits,
    /// The socket is full; a worker of the kernel's waits for space.
    Sends,
}

impl FromStr for Victim {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "waits" => Ok(Victim::Waits),
            "sends" => Ok(Victim::Sends),
            _ => Err(format!("no victim is called {name}")),
        }
    }
}

impl Victim {
    fn name(self) -> &'static str {
        match self {
            Victim::Waits => "waits",
            Victim::Sends => "sends",
        }
    }

    fn bytes(self) -> usize {
        match self {
            Victim::Waits => 64 << 10,
            Victim::Sends => 16 << 20,
        }
    }

    pub(crate) fn run(self) -> ! {
        let socket = TcpStream::from(std::io::stdin().as_fd().try_clone_to_owned().expect("dup"));
        let (device, mut ring) = (device(), ring());
        let from = file(53, self.bytes());
        let before = sys::not_sent(&socket).expect("SIOCOUTQNSD");
        submit(&mut ring, &device, &socket, &from, self.bytes());
        wait_until("the socket takes something", || {
            sys::not_sent(&socket).expect("SIOCOUTQNSD") > before
        });
        println!("ready");
        complete(&mut ring);
        panic!("a completion, though nobody reads");
    }
}

/// `kill -9` while the peer is stalled and another process, this one, keeps the socket.
fn killed(victim: Victim) {
    let idle = uses();
    let (tx, rx) = tcp_small();
    stall(&tx);
    let mut child = Command::new("/proc/self/exe")
        .args(["--victim", victim.name()])
        .stdin(OwnedFd::from(tx.try_clone().expect("dup")))
        .stdout(Stdio::piped())
        .spawn()
        .expect("spawn");
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().expect("piped")).read_line(&mut line).expect("read");
    assert_eq!(line.trim(), "ready");
    // Its device, and what it waits for.
    wait_until("the command waits", || uses() >= idle + 2);
    child.kill().expect("kill");
    child.wait().expect("wait");
    // The ring closes the device when the command is done with, and not before.
    wait_until("the ring ends", || uses() <= idle + 1);
    assert_eq!(uses(), idle + 1, "what counts the pages must outlive the ring");
    reset(rx);
    wait_until("the pages are released", || uses() == idle);
    let mut ids = Vec::new();
    read_ids(&tx, &mut ids);
    assert_eq!(ids, [], "nobody was promised an id");
}
