//! What the peer receives when the sending process dies.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::Stdio;

use common::{assert_same, deadline, fill, overwrite, pattern, wrong};
use sendfile2::{Engine, Options, SendFlags, Sender, Source};

const LEN: u64 = 4 << 20;

/// In the child: sends the file that its environment names to the address it names, by zerocopy,
/// as far as the socket takes it; says how far, and does as it is told on standard input.
fn send_in_child(reset_on_exit: bool) {
    send_in_child_held(reset_on_exit, false);
}

fn send_in_child_held(reset_on_exit: bool, held: bool) {
    let socket = TcpStream::connect(std::env::var("ADDRESS").unwrap()).unwrap();
    let options = Options::new().engine(Engine::Zerocopy).reset_on_exit(reset_on_exit);
    let mut sender = Sender::with(socket, options).unwrap();
    let source = Source::open(std::env::var("FILE").unwrap()).unwrap();
    let (_, sent) = fill(&mut sender, &source);
    if held {
        let_another_process_hold(&sender);
    }
    println!("SENT {sent}");
    let mut order = String::new();
    std::io::stdin().read_line(&mut order).unwrap();
    assert_eq!(order, "close\n");
    sender.close(deadline()).unwrap();
    // No destructor runs, and no buffer is flushed: as abrupt as an orderly end can be.
    std::process::exit(77);
}

/// The same by a ring, under a lease of a file that is not detached.
fn send_by_ring_in_child(held: bool) {
    let socket = TcpStream::connect(std::env::var("ADDRESS").unwrap()).unwrap();
    let file =
        std::fs::OpenOptions::new().read(true).write(true).open(std::env::var("FILE").unwrap());
    let guard = common::waiting(file.unwrap());
    let mut driver = sendfile2::uring::Driver::new().unwrap();
    let mut socket = driver.add(socket).unwrap();
    let lease = guard.try_lease(0..LEN).unwrap();
    for at in (0..LEN).step_by(64 << 10) {
        let ticket = socket.queue_lease(&lease, at..at + (64 << 10), SendFlags::NONE).unwrap();
        driver.submit().unwrap();
        driver.reap().unwrap();
        if ticket.wait_accepted(std::time::Instant::now()).is_err() {
            break;
        }
    }
    let accepted = socket.counters().accepted;
    assert!(accepted > 0 && socket.queued() > 0, "nothing is stuck");
    if held {
        let_another_process_hold(&socket);
    }
    println!("SENT {accepted}");
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

/// In the child: a program of its own keeps the socket, as a forked worker or a helper that was
/// started with it would. It ends when the test closes the child's standard input.
#[expect(clippy::zombie_processes, reason = "the child is killed before it, and init waits")]
fn let_another_process_hold(socket: &impl AsFd) {
    let held = socket.as_fd().try_clone_to_owned().unwrap();
    let mut cat = std::process::Command::new("cat");
    cat.stdin(Stdio::inherit()).stdout(Stdio::null()).stderr(held).spawn().unwrap();
}

struct Victim {
    child: std::process::Child,
    peer: TcpStream,
    file: tempfile::NamedTempFile,
    sent: u64,
}

fn victim(test: &str, role: &str) -> Victim {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::net::sockopt::set_socket_recv_buffer_size(listener.as_fd(), common::SMALL_WINDOW)
        .unwrap();
    let mut file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    file.write_all(&pattern(1, 0..LEN)).unwrap();
    let mut child = common::child(&[], test, role)
        .env("ADDRESS", listener.local_addr().unwrap().to_string())
        .env("FILE", file.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (peer, _) = listener.accept().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let sent = loop {
        let mut line = String::new();
        assert_ne!(output.read_line(&mut line).unwrap(), 0, "the child ended early");
        if let Some((_, sent)) = line.split_once("SENT ") {
            break sent.trim().parse().unwrap();
        }
    };
    Victim { child, peer, file, sent }
}

impl Victim {
    /// Kills the child, overwrites at once, and returns what the peer received.
    fn killed_and_overwritten(mut self) -> (Vec<u8>, std::io::Result<usize>) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        overwrite(self.file.as_file(), &pattern(!1, 0..LEN));
        let mut got = Vec::new();
        let end = self.peer.read_to_end(&mut got);
        (got, end)
    }

    /// The same, where another process holds the socket until the peer has received everything.
    fn killed_and_overwritten_while_held(mut self) -> Vec<u8> {
        // Child::wait would close it.
        let holder = self.child.stdin.take();
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        overwrite(self.file.as_file(), &pattern(!1, 0..LEN));
        let got = common::read(&mut self.peer, self.sent as usize);
        drop(holder);
        got
    }
}

#[test]
fn with_reset_on_exit_the_peer_sees_a_reset_and_no_wrong_byte() {
    let name = "with_reset_on_exit_the_peer_sees_a_reset_and_no_wrong_byte";
    if common::role().is_some() {
        return send_in_child(true);
    }
    let (got, end) = victim(name, "child").killed_and_overwritten();
    let kind = end.unwrap_err().kind();
    assert_eq!(kind, std::io::ErrorKind::ConnectionReset);
    assert_same(&got, &pattern(1, 0..got.len() as u64));
}

#[test]
fn what_a_ring_sends_under_a_lease_dies_with_the_process() {
    let name = "what_a_ring_sends_under_a_lease_dies_with_the_process";
    if common::role().is_some() {
        return send_by_ring_in_child(false);
    }
    if !common::has_uring() {
        return;
    }
    let (got, end) = victim(name, "child").killed_and_overwritten();
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert_same(&got, &pattern(1, 0..got.len() as u64));
}

/// The control: without the option the kernel goes on sending, from the overwritten file.
#[test]
fn control_without_it_the_peer_sees_wrong_bytes() {
    let name = "control_without_it_the_peer_sees_wrong_bytes";
    if common::role().is_some() {
        return send_in_child(false);
    }
    let (got, _) = victim(name, "child").killed_and_overwritten();
    assert!(wrong(&got, &pattern(1, 0..got.len() as u64)) > 0, "death looks harmless here");
}

/// A documented limit, and no promise: a death resets nothing while another process has the socket,
/// too, since the kernel closes it only with the last descriptor.
#[test]
fn limit_while_another_process_holds_the_socket_a_death_resets_nothing() {
    let name = "limit_while_another_process_holds_the_socket_a_death_resets_nothing";
    if common::role().is_some() {
        return send_in_child_held(true, true);
    }
    let got = victim(name, "child").killed_and_overwritten_while_held();
    let wrong = wrong(&got, &pattern(1, 0..got.len() as u64));
    println!("{wrong} of {} bytes are wrong", got.len());
    assert!(wrong > 0, "the documentation says that this is not safe, and it looks safe here");
}

/// The same by a ring, under a lease.
#[test]
fn limit_neither_does_it_what_a_ring_sends_under_a_lease() {
    let name = "limit_neither_does_it_what_a_ring_sends_under_a_lease";
    if common::role().is_some() {
        return send_by_ring_in_child(true);
    }
    if !common::has_uring() {
        return;
    }
    let got = victim(name, "child").killed_and_overwritten_while_held();
    assert!(wrong(&got, &pattern(1, 0..got.len() as u64)) > 0, "it looks safe here");
}

fn closes_and_exits(name: &str) {
    let mut victim = victim(name, "child");
    victim.child.stdin.take().unwrap().write_all(b"close\n").unwrap();
    let mut got = Vec::new();
    victim.peer.read_to_end(&mut got).unwrap();
    assert_eq!(victim.child.wait().unwrap().code(), Some(77));
    assert_same(&got, &pattern(1, 0..victim.sent));
}

#[test]
fn a_program_that_closes_with_a_deadline_and_exits_delivers_everything() {
    if common::role().is_some() {
        return send_in_child(false);
    }
    closes_and_exits("a_program_that_closes_with_a_deadline_and_exits_delivers_everything");
}

#[test]
fn and_with_reset_on_exit_too() {
    if common::role().is_some() {
        return send_in_child(true);
    }
    closes_and_exits("and_with_reset_on_exit_too");
}
