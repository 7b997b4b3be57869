//! Writers that poll: in the queue, by a descriptor, without waiting.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use common::{assert_same, deadline, file, pattern, read, sender};
use rustix::event::{PollFd, PollFlags, epoll};
use sendfile2::guard::{GuardedFile, QueuedWriter, TryWrite, folios};
use sendfile2::{Engine, Error, SendFlags, Sender, Sent};

const LEN: u64 = 4 << 20;

fn guarded(file: &File) -> GuardedFile {
    common::waiting(file.try_clone().unwrap())
}

/// Waits until the descriptor is readable; no longer than `limit`.
fn readable(queued: &QueuedWriter, limit: Instant) -> bool {
    let left = limit.saturating_duration_since(Instant::now()).try_into().unwrap();
    let mut fds = [PollFd::new(queued, PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&left)).unwrap() > 0
}

/// Waits, by the descriptor alone, until the range is free.
fn until_acquired(queued: &mut QueuedWriter) {
    while queued.try_acquire().unwrap().is_none() {
        assert!(readable(queued, deadline()), "the descriptor stays silent");
    }
}

/// Sends under a lease of the whole file as much as the socket takes.
fn stick(guard: &GuardedFile) -> (Sender, std::net::TcpStream, u64) {
    let lease = guard.try_lease(0..LEN).unwrap();
    let (tx, peer) = common::tcp_small_window();
    let mut sender = sender(tx, Engine::Zerocopy);
    let mut sent = 0;
    while let Sent::Accepted { bytes, .. } =
        sender.try_send_lease(&lease, sent..LEN, SendFlags::NONE).unwrap()
    {
        sent += bytes as u64;
        if sent == LEN {
            break;
        }
    }
    assert!(sender.in_flight().sends > 0, "nothing is stuck");
    (sender, peer, sent)
}

#[test]
fn a_queued_writer_is_overtaken_by_no_lease() {
    let file = file(1, 4096);
    let guard = guarded(&file);
    let held = guard.try_lease(0..10).unwrap();
    let mut queued = guard.queue_writer(5..20).unwrap();
    assert!(queued.try_acquire().unwrap().is_none());
    assert!(guard.try_lease(15..16).is_none(), "granted past a queued writer");
    let beside = guard.try_lease(20..30);
    assert!(beside.is_some());
    assert!(!readable(&queued, Instant::now()), "readable, and nothing has happened");
    drop(held);
    assert!(readable(&queued, Instant::now()), "the end of the lease is not told");
    let range = queued.try_acquire().unwrap().expect("nothing is in the way");
    range.write_at(b"new", 5).unwrap();
    assert!(matches!(range.write_at(b"new", 18), Err(Error::NotLeased { .. })));
    // It stays acquired, and is so for who asks again.
    assert!(guard.try_lease(5..6).is_none());
    assert!(queued.try_acquire().unwrap().is_some());
    drop(queued);
    assert!(guard.try_lease(5..6).is_some());
    assert_eq!(guard.counters().waits, 1);
}

/// The control: who only tries never comes to its turn beside leases that overlap one another.
#[test]
fn control_who_only_tries_is_overtaken_for_ever() {
    let file = file(1, 4096);
    let guard = guarded(&file);
    let mut held = guard.try_lease(0..10).unwrap();
    for _ in 0..1000 {
        held = guard.try_lease(0..10).unwrap();
        assert!(matches!(guard.try_write_at(b"x", 5).unwrap(), TryWrite::Blocked(_)));
    }
    let mut queued = guard.queue_writer(5..6).unwrap();
    assert!(guard.try_lease(0..10).is_none());
    drop(held);
    queued.try_acquire().unwrap().unwrap().write_at(b"x", 5).unwrap();
}

/// Nobody but the writer reads the notifications.
#[test]
fn the_descriptor_tells_of_a_release() {
    let file = file(1, LEN);
    let guard = guarded(&file);
    let (_sender, mut peer, sent) = stick(&guard);
    let mut queued = guard.queue_writer(0..LEN).unwrap();
    assert!(queued.try_acquire().unwrap().is_none());
    let [leased] = &queued.blocked_by()[..] else { panic!("{:?}", queued.blocked_by()) };
    assert_eq!(leased.peers, [peer.local_addr().unwrap()]);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(&mut peer, sent as usize));
        until_acquired(&mut queued);
        assert_eq!(queued.blocked_by(), []);
        let range = queued.try_acquire().unwrap().unwrap();
        range.write_at(&pattern(!1, 0..LEN), 0).unwrap();
        assert_same(&reader.join().unwrap(), &pattern(1, 0..sent));
    });
}

/// As mio and tokio wait.
#[test]
fn the_descriptor_can_be_watched_edge_triggered() {
    let file = file(1, LEN);
    let guard = guarded(&file);
    let (_sender, mut peer, sent) = stick(&guard);
    let mut queued = guard.queue_writer(0..LEN).unwrap();
    let epoll: OwnedFd = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
    epoll::add(&epoll, &queued, epoll::EventData::new_u64(0), flags).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| read(&mut peer, sent as usize));
        while queued.try_acquire().unwrap().is_none() {
            let left = deadline().saturating_duration_since(Instant::now()).try_into().unwrap();
            let mut events = Vec::with_capacity(1);
            let spare = rustix::buffer::spare_capacity(&mut events);
            assert_ne!(epoll::wait(&epoll, spare, Some(&left)).unwrap(), 0, "no edge");
        }
    });
}

/// What the writer has not seen yet when it queues: a connection that sends later.
#[test]
fn a_connection_that_sends_later_is_watched_too() {
    let file = file(1, LEN);
    let guard = guarded(&file);
    let lease = guard.try_lease(0..LEN).unwrap();
    let mut queued = guard.queue_writer(0..10).unwrap();
    assert!(queued.try_acquire().unwrap().is_none());
    let (tx, mut peer) = common::tcp();
    let mut sender = sender(tx, Engine::Zerocopy);
    let Sent::Accepted { bytes, .. } =
        sender.try_send_lease(&lease, 0..LEN, SendFlags::NONE).unwrap()
    else {
        panic!("an empty socket takes nothing")
    };
    drop(lease);
    std::thread::scope(|scope| {
        scope.spawn(|| read(&mut peer, bytes));
        until_acquired(&mut queued);
    });
}

#[test]
fn the_connections_in_the_way_can_be_aborted() {
    let file = file(1, LEN);
    let guard = guarded(&file);
    let (_stuck, mut peer, _) = stick(&guard);
    // Another connection, which keeps other bytes only.
    let mut beside = guarded(&file).queue_writer(LEN..LEN + 10).unwrap();
    assert!(beside.try_acquire().unwrap().is_some());
    assert_eq!(beside.abort_blockers().unwrap(), 0);
    let mut queued = guard.queue_writer(0..LEN).unwrap();
    // Also without having been polled before.
    assert_eq!(queued.abort_blockers().unwrap(), 1);
    until_acquired(&mut queued);
    assert_eq!(queued.abort_blockers().unwrap(), 0);
    queued.try_acquire().unwrap().unwrap().write_at(&pattern(!1, 0..LEN), 0).unwrap();
    assert_eq!(guard.counters().aborts, 1);
    let mut got = Vec::new();
    peer.read_to_end(&mut got).expect_err("the peer sees a reset");
    assert_same(&got, &pattern(1, 0..got.len() as u64));
}

#[test]
fn writers_go_in_their_order_and_one_that_gives_up_lets_the_next_on() {
    let file = file(1, 4096);
    let guard = guarded(&file);
    let mut first = guard.queue_writer(0..10).unwrap();
    let second = guard.queue_writer(5..15).unwrap();
    let mut third = guard.queue_writer(12..20).unwrap();
    assert!(first.try_acquire().unwrap().is_some());
    assert!(third.try_acquire().unwrap().is_none());
    assert_eq!(third.blocked_by(), [], "a writer is no lease");
    assert!(!readable(&third, Instant::now()));
    drop(second);
    assert!(readable(&third, Instant::now()));
    assert!(third.try_acquire().unwrap().is_some());
    drop((first, third));
    assert_eq!(guard.writers(), 0);
    guard.lease(0..4096, deadline()).unwrap();
}

#[test]
fn the_size_is_set_and_holes_are_punched_by_who_has_all_that_changes() {
    let file = file(1, LEN);
    let guard = guarded(&file);
    assert_eq!(folios(8192..8193), 0..2 << 20);
    assert_eq!(folios((2 << 20) - 1..(2 << 20) + 1), 0..4 << 20);
    assert_eq!(folios(u64::MAX - 1..u64::MAX).end, u64::MAX);

    let low = guard.try_lease(0..4096).unwrap();
    // The lease is on another page of the same folio.
    let mut queued = guard.queue_writer(folios(8192..12288)).unwrap();
    assert!(queued.try_acquire().unwrap().is_none());
    let mut narrow = guard.queue_writer((2 << 20)..LEN).unwrap();
    let range = narrow.try_acquire().unwrap().unwrap();
    // All that it names must be had, also where no lease is in the way of that.
    for (refused, needs) in [
        (range.punch_hole((2 << 20) - 1..LEN), 0..LEN),
        (range.set_len(LEN), LEN..u64::MAX),
        (range.set_len(0), 0..u64::MAX),
        (range.set_len(LEN * 2), LEN..u64::MAX),
    ] {
        let Err(Error::NotLeased { range }) = refused else { panic!("{refused:?}") };
        assert_eq!(range, needs);
    }
    assert_eq!(common::wrong(&content(&file), &pattern(1, 0..LEN)), 0);
    range.punch_hole((2 << 20)..(2 << 20) + 4096).unwrap();
    drop(narrow);
    drop(low);
    let range = queued.try_acquire().unwrap().unwrap();
    range.punch_hole(8192..12288).unwrap();
    let mut expected = pattern(1, 0..LEN);
    expected[8192..12288].fill(0);
    expected[2 << 20..(2 << 20) + 4096].fill(0);
    assert_same(&content(&file), &expected);
    drop(queued);

    let mut queued = guard.queue_writer(4095..u64::MAX).unwrap();
    let range = queued.try_acquire().unwrap().unwrap();
    range.set_len(4095).unwrap();
    range.set_len(4097).unwrap();
    let error = range.set_len(4094).unwrap_err();
    assert!(matches!(error, Error::NotLeased { .. }), "{error}");
    assert_same(&content(&file), &[pattern(1, 0..4095), vec![0; 2]].concat());
    assert_eq!(guard.counters().writes, 4);
}

fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    std::os::unix::fs::FileExt::read_exact_at(file, &mut bytes, 0).unwrap();
    bytes
}

/// A place in the queue outlives its thread's interest, and threads: it is a value.
#[test]
fn it_is_sent_between_threads() {
    let file = file(1, 4096);
    let guard = guarded(&file);
    let held = guard.try_lease(0..10).unwrap();
    let mut queued = guard.queue_writer(0..10).unwrap();
    assert!(queued.as_fd().try_clone_to_owned().is_ok());
    let writer = std::thread::spawn(move || {
        until_acquired(&mut queued);
        queued.try_acquire().unwrap().unwrap().write_at(b"new", 0).unwrap();
    });
    drop(held);
    writer.join().unwrap();
    assert_eq!(content(&file)[..3], *b"new");
}
