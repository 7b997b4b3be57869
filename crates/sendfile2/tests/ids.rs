//! What makes the kernel's count of notification ids differ from the sender's: a BPF sockmap,
//! `SO_ZEROCOPY` switched off, others who send. Nothing is released by ids that are not ours, and what
//! is held ends when the kernel has nothing any more.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

use common::{assert_same, deadline, file, pattern, read, sender, source};
use rustix::net::SendFlags;
use sendfile2::guard::{GuardedFile, TryWrite};
use sendfile2::uring::{Driver, send_file_sync};
use sendfile2::{Engine, Error, Options, Reason, Refusal, Sender, Sent, Status, Ticket};
use sendfile2_sys::errqueue::{self, Entry};

/// The program `sockmap.c`; `None`, and the reason, where it cannot be compiled.
fn helper() -> Option<&'static Path> {
    static HELPER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let compile = || {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sockmap");
        // Put in its place at once: another process of these tests may run it.
        let new = program.with_extension(std::process::id().to_string());
        let mut command = Command::new("cc");
        command.arg("-I").arg(tests.join("../../sendfile2-c/tests/c"));
        command.args(["-Wall", "-Werror", "-o"]).arg(&new).arg(tests.join("sockmap.c"));
        match command.output() {
            Ok(output) if output.status.success() => {
                std::fs::rename(new, &program).unwrap();
                Some(program)
            }
            Ok(output) => panic!("{}", String::from_utf8_lossy(&output.stderr)),
            Err(e) => {
                println!("SKIP: cc: {e}");
                None
            }
        }
    };
    HELPER.get_or_init(compile).as_deref()
}

/// Starts the program on `socket`; what it said, and what it says.
fn help(socket: impl AsFd, what: &str) -> Option<(Child, BufReader<ChildStdout>)> {
    let socket = socket.as_fd().try_clone_to_owned().unwrap();
    let mut child = Command::new(helper()?)
        .arg(what)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(socket)
        .spawn()
        .unwrap();
    let mut says = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    says.read_line(&mut line).unwrap();
    if line == "done\n" {
        return Some((child, says));
    }
    println!("SKIP: {}", line.trim());
    child.wait().unwrap();
    None
}

fn set_zerocopy(socket: impl AsFd, on: bool) -> Option<()> {
    let (mut child, _) = help(socket, if on { "1" } else { "0" })?;
    assert!(child.wait().unwrap().success());
    Some(())
}

/// A socket in a sockmap.
struct Sockmap(Child, BufReader<ChildStdout>);

impl Sockmap {
    fn put(socket: impl AsFd) -> Option<Self> {
        help(socket, "sockmap").map(|(child, says)| Sockmap(child, says))
    }

    fn take(mut self) {
        drop(self.0.stdin.take());
        let mut line = String::new();
        self.1.read_line(&mut line).unwrap();
        assert_eq!(line, "done\n");
        assert!(self.0.wait().unwrap().success());
    }
}

/// One send by `MSG_ZEROCOPY`, behind a sender's back.
fn stray(socket: BorrowedFd<'_>, bytes: &[u8]) {
    const MSG_ZEROCOPY: u32 = 0x400_0000;
    let flags = SendFlags::DONTWAIT | SendFlags::from_bits_retain(MSG_ZEROCOPY);
    assert_eq!(rustix::net::send(socket, bytes, flags).unwrap(), bytes.len());
}

/// The ids that the error queue of `socket` tells next, waiting for them.
fn ids(socket: impl AsFd, count: usize) -> Vec<u32> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut ids = Vec::new();
    while ids.len() < count {
        let limit = Timespec { tv_sec: 30, tv_nsec: 0 };
        let mut watched = [PollFd::new(&socket, PollFlags::empty())];
        assert_eq!(poll(&mut watched, Some(&limit)).unwrap(), 1, "no id comes");
        let mut entries = Vec::new();
        errqueue::read(socket.as_fd(), &mut entries).unwrap();
        for entry in entries {
            let Ok(Entry::Completion { lo, hi, .. }) = entry else { panic!("{entry:?}") };
            ids.extend(lo..=hi);
        }
    }
    ids
}

#[track_caller]
fn refused(error: &Error, by: Engine, why: Refusal) {
    let Error::Refused { engine, reason } = error else { panic!("{error}") };
    assert_eq!((*engine, *reason), (by, why));
}

fn accepted(sent: Result<Sent<Ticket>, Error>) -> (usize, Ticket) {
    let Sent::Accepted { bytes, ticket } = sent.unwrap() else { panic!("the socket is full") };
    (bytes, ticket)
}

/// What the refusal is for.
#[test]
fn control_in_a_sockmap_one_send_uses_many_ids() {
    let (tx, mut rx) = common::tcp_on_this_host();
    if set_zerocopy(&tx, true).is_none() {
        return;
    }
    let bytes = pattern(1, 0..256 << 10);
    stray(tx.as_fd(), &bytes);
    assert_same(&read(&mut rx, bytes.len()), &bytes);
    assert_eq!(ids(&tx, 1), [0]);
    let Some(map) = Sockmap::put(&tx) else { return };
    stray(tx.as_fd(), &bytes);
    assert_same(&read(&mut rx, bytes.len()), &bytes);
    let many = ids(&tx, 2);
    println!("one send: {} ids", many.len());
    map.take();
}

#[test]
fn in_a_sockmap_nothing_is_sent_by_reference() {
    let (tx, mut rx) = common::tcp_on_this_host();
    let file = file(2, 256 << 10);
    let source = source(&file);
    let mut sender = sender(tx, Engine::Zerocopy);
    // Before, as ever.
    let before =
        sender.send_file(&source, 0..100_000, sendfile2::SendFlags::NONE, deadline()).unwrap();
    assert_same(&read(&mut rx, 100_000), &pattern(2, 0..100_000));
    before.ticket.wait_released(deadline()).unwrap();
    let Some(map) = Sockmap::put(&sender) else { return };
    let error =
        sender.try_send_file(&source, 0..256 << 10, sendfile2::SendFlags::NONE).unwrap_err();
    refused(&error, Engine::Zerocopy, Refusal::Sockmap);
    // What the kernel copies is sent there, too.
    sender.send(b"copied", sendfile2::SendFlags::NONE, deadline()).unwrap();
    map.take();
    // Also out of it again: it has been seen to be a socket that others change.
    let error =
        sender.try_send_file(&source, 0..256 << 10, sendfile2::SendFlags::NONE).unwrap_err();
    refused(&error, Engine::Zerocopy, Refusal::Sockmap);
    assert_same(&read(&mut rx, 6), b"copied");
    let next = sender.into_socket(deadline()).unwrap().next_id;
    assert_eq!(next, 1);
}

#[test]
fn in_a_sockmap_auto_copies() {
    // Not by a local address: where auto would send by reference. (A user namespace has no BPF.)
    const UNSHARE: [&str; 3] = ["unshare", "--net", "--mount"];
    if common::role().is_none() {
        if common::can("a sockmap", &[&UNSHARE[..], &["true"]].concat()) {
            common::run_as(&UNSHARE, "in_a_sockmap_auto_copies", "inside");
        }
        return;
    }
    common::sh(&format!("ip link set lo up; {}", common::TWO_ADDRESSES));
    let file = file(3, 256 << 10);
    let source = source(&file);
    let (tx, mut rx) = common::tcp_between_two_addresses();
    let mut auto = sender(tx, Engine::Auto);
    let (first, ticket) =
        accepted(auto.try_send_file(&source, 0..100_000, sendfile2::SendFlags::NONE));
    assert_eq!(ticket.choice().engine, Engine::Zerocopy);
    assert_same(&read(&mut rx, first), &pattern(3, 0..first as u64));
    ticket.wait_released(deadline()).unwrap();
    let Some(map) = Sockmap::put(&auto) else { return };
    let (bytes, ticket) =
        accepted(auto.try_send_file(&source, 0..256 << 10, sendfile2::SendFlags::NONE));
    assert_eq!(ticket.choice().reason, Reason::Refused(Refusal::Sockmap));
    assert!(matches!(ticket.status(), Status::Released(_)));
    assert_same(&read(&mut rx, bytes), &pattern(3, 0..bytes as u64));
    map.take();
    auto.close(deadline()).unwrap();
}

#[test]
fn rings_and_native_refuse_a_sockmap() {
    let file = file(3, 256 << 10);
    let source = source(&file);
    if common::has(Engine::Native) {
        let (tx, _rx) = common::tcp_on_this_host();
        let mut native = sender(tx, Engine::Native);
        let Some(map) = Sockmap::put(&native) else { return };
        let error = native.try_send_file(&source, 0..1000, sendfile2::SendFlags::NONE).unwrap_err();
        refused(&error, Engine::Native, Refusal::NotSupported);
        map.take();
    }
    if !common::has_uring() {
        return;
    }
    let (tx, _rx) = common::tcp_on_this_host();
    let Some(map) = Sockmap::put(&tx) else { return };
    let refuses = |tx: &TcpStream| {
        let unfinished = send_file_sync(tx, &source, 0..256 << 10, deadline()).unwrap_err();
        refused(&unfinished.error, Engine::Uring, Refusal::NotSupported);
        assert_eq!(unfinished.transfer.bytes, 0);
    };
    refuses(&tx);
    map.take();
    refuses(&tx);
    let mut driver = Driver::new().unwrap();
    let mut socket = driver.add(tx).unwrap();
    let ticket = socket.queue_file(&source, 0..256 << 10, sendfile2::SendFlags::NONE).unwrap();
    driver.wait(2, deadline()).unwrap();
    let error = ticket.wait_accepted(deadline()).unwrap_err();
    refused(&error, Engine::Uring, Refusal::NotSupported);
    ticket.wait_released(deadline()).unwrap();
}

/// Bytes that somebody sends without saying so, with eight ids of the sender's counter.
const STRAY: usize = 8 << 10;

/// A guarded file, and sends under leases of it whose ids are shifted by eight others.
struct Shifted {
    file: GuardedFile,
    sender: Sender,
    peer: TcpStream,
    tickets: Vec<Ticket>,
    sent: u64,
}

const PART: u64 = 64 << 10;

fn shifted(strays: usize) -> Shifted {
    let (tx, peer) = common::tcp_small_window_on_this_host();
    let file = common::waiting(file(4, 64 << 20));
    let mut sender = sender(tx, Engine::Zerocopy);
    for _ in 0..strays {
        stray(sender.as_fd(), &[b'?'; STRAY]);
    }
    let (mut tickets, mut sent) = (Vec::new(), 0);
    loop {
        let lease = file.try_lease(sent..sent + PART).unwrap();
        match sender.try_send_lease(&lease, sent..sent + PART, sendfile2::SendFlags::NONE).unwrap()
        {
            Sent::Accepted { bytes, ticket } => {
                sent += bytes as u64;
                tickets.push(ticket);
            }
            _ => break,
        }
        // The next one would see that something is wrong.
        if tickets.len() == 15 {
            break;
        }
    }
    assert!(tickets.len() > strays, "{} sends", tickets.len());
    Shifted { file, sender, peer, tickets, sent }
}

/// Overwrites what the guard says is free; how many of the parts that is.
fn overwritten(shifted: &Shifted) -> usize {
    let parts = 0..shifted.sent / PART;
    let write = |part: &u64| {
        let range = part * PART..(part + 1) * PART;
        let written = shifted.file.try_write_at(&pattern(!4, range.clone()), range.start).unwrap();
        matches!(written, TryWrite::Written)
    };
    parts.filter(write).count()
}

#[test]
fn ids_of_others_release_nothing_that_the_peer_has_not() {
    for strays in [0, 8] {
        let mut it = shifted(strays);
        // All of the others' is with the peer, and hardly anything of ours.
        assert_same(&read(&mut it.peer, strays * STRAY), &vec![b'?'; strays * STRAY]);
        let told = match strays {
            0 => it.sender.reap().map(drop),
            _ => it.tickets[0].wait_released(deadline()).map(drop),
        };
        let status = it.tickets[0].status();
        let early = overwritten(&it);
        let total = usize::try_from(it.sent).unwrap();
        let got = read(&mut it.peer, total);
        let wrong = common::wrong(&got, &pattern(4, 0..it.sent));
        println!("{strays} ids of others: {early} writers let through, {wrong} wrong bytes");
        assert_eq!(wrong, 0);
        if strays > 0 {
            assert!(matches!(told, Err(Error::TooEarly { .. })), "{told:?}");
            assert_eq!(status, Status::Unknown);
        } else {
            told.unwrap();
        }
        // When the peer has all the kernel has nothing any more, and that ends all leases.
        it.file.write_at(&pattern(!4, 0..it.sent), 0, deadline()).unwrap();
        for ticket in &it.tickets {
            assert!(matches!(ticket.status(), Status::Released(_)));
        }
        assert_eq!(it.sender.in_flight().sends, 0);
        let after = it.sender.try_send_file(it.file.source(), 0..1000, sendfile2::SendFlags::NONE);
        assert_eq!(after.is_err(), strays > 0, "{after:?}");
    }
}

/// Put there while sends are in flight, and taken out again: what is in flight then is by reference.
#[test]
fn a_sockmap_in_between_releases_nothing_early() {
    let (tx, mut peer) = common::tcp_small_window_on_this_host();
    let file = common::waiting(file(8, 64 << 20));
    let mut sender = sender(tx, Engine::Zerocopy);
    let mut sent = 0;
    let send = |sender: &mut Sender, sent: &mut u64, bytes: u64| {
        let lease = file.try_lease(*sent..*sent + bytes).unwrap();
        let (bytes, ticket) = accepted(sender.try_send_lease(
            &lease,
            *sent..*sent + bytes,
            sendfile2::SendFlags::NONE,
        ));
        *sent += bytes as u64;
        ticket
    };
    send(&mut sender, &mut sent, 200_000);
    let Some(map) = Sockmap::put(&sender) else { return };
    send(&mut sender, &mut sent, 1 << 20);
    map.take();
    let start = sent;
    let last: Vec<_> = (0..10).map(|_| send(&mut sender, &mut sent, PART)).collect();
    // The peer reads what went by the sockmap, and nothing behind it.
    let (mut at, mut told) = (0, Ok(0));
    while at < start {
        let piece = at..start.min(at + PART);
        at = piece.end;
        let len = usize::try_from(piece.end - piece.start).unwrap();
        assert_same(&read(&mut peer, len), &pattern(8, piece));
        told = told.and_then(|_| sender.reap());
    }
    let mut early = 0;
    for at in (start..sent).step_by(64 << 10) {
        let bytes = pattern(!8, at..at + PART);
        early += usize::from(matches!(file.try_write_at(&bytes, at).unwrap(), TryWrite::Written));
    }
    let got = read(&mut peer, usize::try_from(sent - start).unwrap());
    let wrong = common::wrong(&got, &pattern(8, start..sent));
    println!("{early} writers let through, {wrong} wrong bytes; {told:?}");
    assert_eq!(wrong, 0);
    // That something is wrong shows, at the latest when an id comes that was not issued.
    let told = told
        .and_then(|_| last[9].wait_released(deadline()).map(|release| usize::from(release.copied)));
    assert!(matches!(told, Err(Error::TooEarly { .. } | Error::NotIssued(_))), "{told:?}");
    file.write_at(&pattern(!8, 0..sent), 0, deadline()).unwrap();
}

#[test]
fn leases_of_a_socket_that_is_gone_end_whatever_its_ids_were() {
    for strays in [0, 3, 8] {
        let it = shifted(strays);
        drop(it.peer);
        drop(it.tickets);
        drop(it.sender);
        it.file.write_at(&[0; 10], 0, deadline()).unwrap();
        it.file.write_at(&[0; 10], it.sent - 10, deadline()).unwrap();
    }
    sendfile2::reaper::drain(deadline()).unwrap();
}

#[test]
fn ids_that_somebody_has_taken_are_not_waited_for() {
    let (tx, mut rx) = common::tcp_on_this_host();
    let file = file(5, 5000);
    let mut sender = sender(tx, Engine::Zerocopy);
    let sent =
        sender.send_file(&source(&file), 0..5000, sendfile2::SendFlags::NONE, deadline()).unwrap();
    read(&mut rx, 5000);
    assert_eq!(ids(&sender, 1), [0]);
    sent.ticket.wait_released(deadline()).unwrap();
    let again =
        sender.send_file(&source(&file), 0..5000, sendfile2::SendFlags::NONE, deadline()).unwrap();
    read(&mut rx, 5000);
    again.ticket.wait_released(deadline()).unwrap();
    assert_eq!(sender.counters().released, 2);
}

#[test]
fn where_so_zerocopy_is_switched_off_nothing_is_sent_by_reference() {
    let (tx, mut rx) = common::tcp_on_this_host();
    let file = file(6, 100_000);
    let source = source(&file);
    let mut sender = sender(tx, Engine::Zerocopy);
    let mut expected = Vec::new();
    for round in 0..3 {
        if set_zerocopy(&sender, false).is_none() {
            return;
        }
        let error = sender.try_send_file(&source, 0..1000, sendfile2::SendFlags::NONE).unwrap_err();
        refused(&error, Engine::Zerocopy, Refusal::SwitchedOff);
        set_zerocopy(&sender, true).unwrap();
        let (bytes, _) =
            accepted(sender.try_send_file(&source, 0..1000 + round, sendfile2::SendFlags::NONE));
        expected.extend(pattern(6, 0..bytes as u64));
    }
    assert_same(&read(&mut rx, expected.len()), &expected);
    sender.drain(deadline()).unwrap();
    let sendfile2::ReturnedSocket { socket, next_id: next, .. } =
        sender.into_socket(deadline()).unwrap();
    assert_eq!(next, 3);
    // It is the kernel's count, too.
    stray(socket.as_fd(), b"!");
    read(&mut rx, 1);
    assert_eq!(ids(&socket, 1), [3]);
    // UDP counts likewise.
    let (tx, rx) = common::udp();
    let options = Options::new().engine(Engine::Zerocopy);
    let mut sender = Sender::with(tx, options).unwrap();
    set_zerocopy(&sender, false).unwrap();
    let error = sender.try_send_file(&source, 0..1000, sendfile2::SendFlags::NONE).unwrap_err();
    refused(&error, Engine::Zerocopy, Refusal::SwitchedOff);
    set_zerocopy(&sender, true).unwrap();
    let (_, ticket) = accepted(sender.try_send_file(&source, 0..1000, sendfile2::SendFlags::NONE));
    ticket.wait_released(deadline()).unwrap();
    let mut record = [0; 2000];
    assert_eq!(rx.recv(&mut record).unwrap(), 1000);
}

/// What the kernel does with what is sent then.
#[test]
fn control_switched_off_the_kernel_uses_no_id() {
    let (tx, mut rx) = common::tcp_on_this_host();
    for (on, bytes) in [(true, b"a"), (false, b"b"), (true, b"c")] {
        if set_zerocopy(&tx, on).is_none() {
            return;
        }
        stray(tx.as_fd(), bytes);
    }
    assert_eq!(read(&mut rx, 3), b"abc");
    assert_eq!(ids(&tx, 2), [0, 1]);
}

/// An id of somebody else's is not excused by what the application had sent before, once that is
/// acknowledged.
#[test]
fn application_sends_excuse_no_id_for_ever() {
    let (tx, mut peer) = common::tcp_small_window_on_this_host();
    let file = common::waiting(file(5, 4 << 20));
    let mut sender = sender(tx, Engine::Zerocopy);
    let (bytes, _) =
        accepted(sender.try_send_file(file.source(), 0..1 << 20, sendfile2::SendFlags::NONE));
    sender.application_sends(|_| ((), 0)).unwrap();
    read(&mut peer, bytes);
    sender.drain(deadline()).unwrap();
    stray(sender.as_fd(), &[b'?'; 4096]);
    let lease = file.try_lease(0..1 << 20).unwrap();
    let (bytes, ticket) =
        accepted(sender.try_send_lease(&lease, 0..1 << 20, sendfile2::SendFlags::NONE));
    drop(lease);
    // The stray one is delivered, and most of ours is not.
    read(&mut peer, 4096);
    let doubt = ticket.wait_released(deadline()).unwrap_err();
    let written = file.try_write_at(&pattern(!5, 0..1 << 20), 0).unwrap();
    let got = read(&mut peer, bytes);
    assert_eq!(common::wrong(&got, &pattern(5, 0..bytes as u64)), 0);
    assert!(matches!(doubt, Error::TooEarly { .. }), "{doubt}");
    assert!(matches!(written, TryWrite::Blocked(_)));
    file.write_at(b"free", 0, deadline()).unwrap();
}

/// After an abort TCP has nothing left to compare a completion with, and segments may still be in a
/// queueing discipline.
#[test]
fn ids_of_others_release_nothing_after_an_abort() {
    const LEN: u64 = 8688;
    let name = "ids_of_others_release_nothing_after_an_abort";
    if !common::inside(name, common::SLOW) {
        return;
    }
    common::sh("ip link set lo mtu 1500");
    for strays in [0, 1] {
        let (tx, mut peer) = common::tcp_on_this_host();
        common::sh("tc qdisc replace dev lo root tbf rate 64kbit burst 3k limit 64m");
        let file = common::waiting(file(9, LEN));
        let mut sender = sender(tx, Engine::Zerocopy);
        let reader = std::thread::spawn(move || {
            let mut got = Vec::new();
            // It ends with a reset.
            let _ = std::io::Read::read_to_end(&mut peer, &mut got);
            got
        });
        for _ in 0..strays {
            stray(sender.as_fd(), &[b'?'; 1400]);
        }
        let lease = file.try_lease(0..LEN).unwrap();
        let (bytes, _) =
            accepted(sender.try_send_lease(&lease, 0..LEN, sendfile2::SendFlags::NONE));
        drop(lease);
        let other = vec![b'!'; bytes];
        file.write_at_abort(&other, 0, std::time::Instant::now()).unwrap();
        let got = reader.join().unwrap();
        common::sh(common::SLOW);
        assert!(got.len() > 1400 * strays, "nothing arrived: this proves nothing");
        let expected = pattern(9, 0..(got.len() - 1400 * strays) as u64);
        assert_same(&got[1400 * strays..], &expected);
    }
}
