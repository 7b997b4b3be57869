//! What a send holds is let go of when, and only when, the kernel has released it.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::io::Read;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use common::{
    Flagged, assert_same, deadline, file, fill, overwrite, pattern, read, sender, source, wrong,
};
use rustix::net::sockopt;
use sendfile2::{
    Acknowledgement, Engine, Error, Options, Release, SendBuffer, SendFlags, Sender, Sent, Status,
    reaper,
};

const PIECE: u64 = 64 << 10;

/// The control: over plain sendfile(2), overwriting when the call returns changes what the peer
/// receives. Without it, the tests below prove nothing.
#[test]
fn control_plain_sendfile_sends_what_is_written_later() {
    let (tx, mut rx) = common::tcp_on_this_host();
    let file = file(1, PIECE);
    let mut offset = 0;
    let sent = rustix::fs::sendfile(&tx, &file, Some(&mut offset), PIECE as usize).unwrap();
    assert_eq!(sent as u64, PIECE);
    overwrite(&file, &pattern(!1, 0..PIECE));
    let got = read(&mut rx, PIECE as usize);
    assert_eq!(wrong(&got, &pattern(1, 0..PIECE)), PIECE as usize, "sendfile(2) looks safe here");
}

/// A second control: an acknowledgement by a peer on this host frees nothing either.
#[test]
fn control_acknowledged_is_not_released() {
    let (tx, mut rx) = common::tcp_on_this_host();
    let file = file(1, PIECE);
    let mut sender = sender(tx, Engine::Copy);
    let mut offset = 0;
    rustix::fs::sendfile(&sender, &file, Some(&mut offset), PIECE as usize).unwrap();
    // A ticket behind it is acknowledged only after it.
    let after = sender.send(b"!", SendFlags::NONE, deadline()).unwrap();
    assert_eq!(after.ticket.wait_acknowledged(deadline()).unwrap(), Acknowledgement::Acknowledged);
    overwrite(&file, &pattern(!1, 0..PIECE));
    let got = read(&mut rx, PIECE as usize);
    assert_eq!(wrong(&got, &pattern(1, 0..PIECE)), PIECE as usize, "ACKed looks safe here");
}

#[test]
fn overwriting_at_release_changes_nothing() {
    for engine in common::engines() {
        let (tx, mut rx) = common::tcp();
        let mut sender = sender(tx, engine);
        for generation in 0..20 {
            let file = file(generation, PIECE);
            let sent =
                sender.send_file(&source(&file), 0..PIECE, SendFlags::NONE, deadline()).unwrap();
            sent.ticket.wait_released(deadline()).unwrap();
            overwrite(&file, &pattern(!generation, 0..PIECE));
            assert_same(&read(&mut rx, PIECE as usize), &pattern(generation, 0..PIECE));
        }
    }
}

/// The control of the one above: before the release, overwriting is seen by the peer.
#[test]
fn control_overwriting_before_release_is_seen() {
    for engine in [Engine::Zerocopy, Engine::Native] {
        if !common::has(engine) {
            continue;
        }
        let (tx, mut rx) = common::tcp_small_window();
        let mut sender = sender(tx, engine);
        let file = file(1, 4 << 20);
        let (_, sent) = fill(&mut sender, &source(&file));
        overwrite(&file, &pattern(!1, 0..4 << 20));
        let got = read(&mut rx, usize::try_from(sent).unwrap());
        assert!(
            wrong(&got, &pattern(1, 0..sent)) > 0,
            "{engine}: early overwriting looks safe here"
        );
    }
}

#[test]
fn a_buffer_is_held_until_its_release_though_all_handles_are_gone() {
    let (tx, mut rx) = common::tcp_small_window();
    let mut sender = sender(tx, Engine::Zerocopy);
    let (buffer, dropped) = Flagged::new(pattern(1, 0..1 << 20));
    let mut buffer = SendBuffer::new(buffer);
    sender.try_send_buffer(&mut buffer, SendFlags::NONE).unwrap();
    let (sent, ticket) = (buffer.sent(), buffer.ticket());
    assert_eq!(ticket.status(), Status::InFlight);
    let buffer = buffer.into_buffer().map(|_| ()).unwrap_err();
    drop(buffer);
    drop(ticket);
    sender.reap().unwrap();
    assert!(!dropped.load(SeqCst), "let go of in flight");
    let got = read(&mut rx, sent);
    assert_same(&got, &pattern(1, 0..sent as u64));
    sender.drain(deadline()).unwrap();
    assert!(dropped.load(SeqCst), "kept after its release");
}

#[test]
fn a_buffer_comes_back_and_its_rest_can_be_sent() {
    let (tx, mut rx) = common::tcp_small_window();
    let mut sender = sender(tx, Engine::Zerocopy);
    let len = 8 << 20;
    let mut buffer = SendBuffer::new(pattern(1, 0..len));
    let reader = std::thread::spawn(move || read(&mut rx, len as usize));
    let ticket = sender.send_buffer(&mut buffer, SendFlags::NONE, deadline()).unwrap();
    assert_eq!((ticket.bytes(), buffer.remaining()), (len, 0));
    ticket.wait_released(deadline()).unwrap();
    assert_same(&buffer.into_buffer().unwrap(), &pattern(1, 0..len));
    assert_same(&reader.join().unwrap(), &pattern(1, 0..len));
}

#[test]
fn a_dropped_sender_delivers_everything_and_the_end_and_holds_until_then() {
    let (tx, mut rx) = common::tcp_small_window();
    let mut sender = sender(tx, Engine::Zerocopy);
    let (buffer, dropped) = Flagged::new(pattern(1, 0..1 << 20));
    let mut buffer = SendBuffer::new(buffer);
    sender.try_send_buffer(&mut buffer, SendFlags::NONE).unwrap();
    let (sent, ticket) = (buffer.sent(), buffer.ticket());
    drop(buffer);
    drop(sender);
    assert_eq!(ticket.status(), Status::Unknown);
    assert!(reaper::pending().sends > 0);
    assert!(!dropped.load(SeqCst), "let go of in flight");
    let mut got = Vec::new();
    rx.read_to_end(&mut got).unwrap();
    assert_same(&got, &pattern(1, 0..sent as u64));
    reaper::drain(deadline()).unwrap();
    assert!(dropped.load(SeqCst), "kept after its release");
    assert!(matches!(ticket.status(), Status::Released(_)));
}

#[test]
fn the_reaper_aborts_what_does_not_drain() {
    let (tx, mut rx) = common::tcp_small_window();
    let options = Options::new().engine(Engine::Zerocopy).linger(Duration::ZERO);
    let mut sender = Sender::with(tx, options).unwrap();
    let file = file(1, 4 << 20);
    let (tickets, sent) = fill(&mut sender, &source(&file));
    drop(sender);
    // Nobody reads: only the abort ends it.
    tickets.last().unwrap().wait_released(deadline()).unwrap();
    let mut got = Vec::new();
    rx.read_to_end(&mut got).expect_err("the peer sees a reset");
    assert!((got.len() as u64) < sent);
    assert_same(&got, &pattern(1, 0..got.len() as u64));
}

#[test]
fn close_waits_for_the_release() {
    let (tx, mut rx) = common::tcp_small_window();
    let mut sender = sender(tx, Engine::Zerocopy);
    let file = file(1, 4 << 20);
    let (tickets, sent) = fill(&mut sender, &source(&file));
    let reader = std::thread::spawn(move || {
        let mut got = Vec::new();
        rx.read_to_end(&mut got).unwrap();
        got
    });
    sender.close(deadline()).unwrap();
    for ticket in &tickets {
        assert!(matches!(ticket.status(), Status::Released(_)));
    }
    overwrite(&file, &pattern(!1, 0..4 << 20));
    assert_same(&reader.join().unwrap(), &pattern(1, 0..sent));
}

#[test]
fn close_past_its_deadline_says_so_and_loses_nothing() {
    let (tx, mut rx) = common::tcp_small_window();
    let mut sender = sender(tx, Engine::Zerocopy);
    let file = file(1, 4 << 20);
    let (_, sent) = fill(&mut sender, &source(&file));
    let error = sender.close(Instant::now()).unwrap_err();
    assert!(matches!(error, Error::Deadline(_)), "{error}");
    let mut got = Vec::new();
    rx.read_to_end(&mut got).unwrap();
    assert_same(&got, &pattern(1, 0..sent));
}

#[test]
fn abort_frees_nothing_by_itself() {
    let (tx, _rx) = common::tcp_small_window();
    let mut sender = sender(tx, Engine::Zerocopy);
    let (buffer, dropped) = Flagged::new(pattern(1, 0..1 << 20));
    let mut buffer = SendBuffer::new(buffer);
    sender.try_send_buffer(&mut buffer, SendFlags::NONE).unwrap();
    let ticket = buffer.ticket();
    drop(buffer);
    sender.abort().unwrap();
    assert_eq!(ticket.status(), Status::InFlight);
    assert!(!dropped.load(SeqCst), "freed by the abort");
    ticket.wait_released(deadline()).unwrap();
    assert!(dropped.load(SeqCst));
    assert_eq!(ticket.acknowledgement().unwrap(), Acknowledgement::Unknowable);
    assert!(matches!(sender.try_send(b"x", SendFlags::NONE), Err(Error::Aborted)));
}

/// Behind a queueing discipline the segments outlive the abort, and so does the hold.
#[test]
fn after_an_abort_the_range_is_free_only_when_its_ids_arrive() {
    let name = "after_an_abort_the_range_is_free_only_when_its_ids_arrive";
    if !common::inside(name, common::SLOW) {
        return;
    }
    // The queue is that of loopback, and so slow that it still has something after the abort, also
    // on a machine that is slow itself.
    let (tx, _rx) = common::tcp_on_this_host();
    common::sh("tc qdisc replace dev lo root tbf rate 1mbit burst 64k limit 64m");
    let mut sender = sender(tx, Engine::Zerocopy);
    let (buffer, dropped) = Flagged::new(pattern(1, 0..1 << 20));
    let mut buffer = SendBuffer::new(buffer);
    sender.try_send_buffer(&mut buffer, SendFlags::NONE).unwrap();
    let ticket = buffer.ticket();
    drop(buffer);
    sender.abort().unwrap();
    sender.reap().unwrap();
    assert!(sender.in_flight().sends > 0, "nothing was in the queue: this proves nothing");
    assert!(!dropped.load(SeqCst), "freed while the queue still refers to it");
    ticket.wait_released(deadline()).unwrap();
    assert!(dropped.load(SeqCst));
}

#[test]
fn a_reset_releases_without_delivery() {
    let (tx, rx) = common::tcp_small_window();
    let mut sender = sender(tx, Engine::Zerocopy);
    let file = file(1, 4 << 20);
    let (tickets, sent) = fill(&mut sender, &source(&file));
    common::reset(rx);
    let last = tickets.last().unwrap();
    last.wait_released(deadline()).unwrap();
    assert_ne!(last.acknowledgement().unwrap(), Acknowledgement::Acknowledged);
    let stopped =
        sender.send_file(&source(&file), sent..sent + 1, SendFlags::NONE, deadline()).unwrap_err();
    assert!(matches!(stopped.error, Error::Socket { .. }), "{stopped}");
    assert_eq!(stopped.transfer.bytes, 0);
}

#[test]
fn a_reset_in_mid_transfer_is_told_with_what_was_sent() {
    for engine in common::engines() {
        let (tx, mut rx) = common::tcp_small_window();
        let mut sender = sender(tx, engine);
        let file = file(1, 32 << 20);
        let reader = std::thread::spawn(move || {
            read(&mut rx, 1 << 20);
            common::reset(rx);
        });
        let stopped =
            sender.send_file(&source(&file), 0..32 << 20, SendFlags::NONE, deadline()).unwrap_err();
        reader.join().unwrap();
        assert!(matches!(stopped.error, Error::Socket { .. }), "{engine}: {stopped}");
        assert!(stopped.transfer.bytes >= 1 << 20, "{engine}: {stopped}");
        stopped.transfer.ticket.wait_released(deadline()).unwrap();
    }
}

#[test]
fn released_and_acknowledged_are_separate() {
    let (tx, mut rx) = common::tcp_small_window();
    let mut sender = sender(tx, Engine::Copy);
    let file = file(1, 1 << 20);
    let (mut sent, mut tickets) = (0, Vec::new());
    while let sendfile2::Sent::Accepted { bytes, ticket } =
        sender.try_send_file(&source(&file), sent..1 << 20, SendFlags::NONE).unwrap()
    {
        sent += bytes as u64;
        tickets.push(ticket);
        if sent == 1 << 20 {
            break;
        }
    }
    let last = tickets.last().unwrap();
    assert!(matches!(last.status(), Status::Released(Release { copied: true, .. })));
    assert_eq!(last.acknowledgement().unwrap(), Acknowledgement::Pending);
    let error = last.wait_acknowledged(Instant::now()).unwrap_err();
    assert!(matches!(error, Error::Deadline(_)), "{error}");
    read(&mut rx, usize::try_from(sent).unwrap());
    assert_eq!(last.wait_acknowledged(deadline()).unwrap(), Acknowledgement::Acknowledged);
    sender.abort().unwrap();
    assert_eq!(last.acknowledgement().unwrap(), Acknowledgement::Acknowledged, "latched");
}

#[test]
fn the_wait_for_a_peer_that_never_reads_ends_at_its_deadline() {
    let (tx, _rx) = common::tcp_small_window();
    let mut sender = sender(tx, Engine::Zerocopy);
    let file = file(1, 4 << 20);
    let (tickets, _) = fill(&mut sender, &source(&file));
    let last = tickets.last().unwrap();
    assert!(matches!(last.wait_released(Instant::now()), Err(Error::Deadline(_))));
    let flight = sender.in_flight();
    assert!(flight.bytes > 0 && flight.oldest.is_some(), "{flight:?}");
    sender.abort().unwrap();
    sender.drain(deadline()).unwrap();
    assert_eq!(sender.in_flight(), sendfile2::InFlight::default());
}

#[test]
fn reset_on_exit_is_armed_only_while_sends_are_in_flight() {
    let (tx, mut rx) = common::tcp_small_window();
    let theirs = Some(Duration::from_secs(7));
    sockopt::set_socket_linger(tx.as_fd(), theirs).unwrap();
    let options = Options::new().engine(Engine::Zerocopy).reset_on_exit(true);
    let mut sender = Sender::with(tx, options).unwrap();
    let file = file(1, 4 << 20);
    let (_, sent) = fill(&mut sender, &source(&file));
    assert_eq!(sockopt::socket_linger(&sender).unwrap(), Some(Duration::ZERO));
    read(&mut rx, usize::try_from(sent).unwrap());
    sender.drain(deadline()).unwrap();
    assert_eq!(sockopt::socket_linger(&sender).unwrap(), theirs);
}

/// That it is restored where they did nothing is the test before this.
#[test]
fn what_an_application_sets_of_so_linger_meanwhile_stays() {
    let (tx, mut rx) = common::tcp_small_window();
    let options = Options::new().engine(Engine::Zerocopy).reset_on_exit(true);
    let mut sender = Sender::with(tx, options).unwrap();
    let file = file(1, 4 << 20);
    let (_, sent) = fill(&mut sender, &source(&file));
    let theirs = Some(Duration::from_secs(7));
    sockopt::set_socket_linger(&sender, theirs).unwrap();
    read(&mut rx, usize::try_from(sent).unwrap());
    sender.drain(deadline()).unwrap();
    assert_eq!(sockopt::socket_linger(&sender).unwrap(), theirs);
}

#[test]
fn what_a_reset_connection_did_not_acknowledge_it_never_will() {
    for engine in common::engines() {
        let (tx, rx) = common::tcp_small_window();
        let mut sender = sender(tx, engine);
        let source = source(&file(1, 16 << 20));
        let mut ticket = None;
        while let Sent::Accepted { ticket: last, .. } =
            sender.try_send_file(&source, 0..16 << 20, SendFlags::NONE).unwrap()
        {
            ticket = Some(last);
        }
        let ticket = ticket.unwrap();
        assert_eq!(ticket.acknowledgement().unwrap(), Acknowledgement::Pending, "{engine}");
        common::reset(rx);
        assert_eq!(
            ticket.wait_acknowledged(deadline()).unwrap(),
            Acknowledgement::Unknowable,
            "{engine}"
        );
    }
}
