//! Overwriting in place: a writer waits for exactly those leases that share a byte with it.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::fs::File;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Instant;

use common::{assert_same, deadline, file, fill, pattern, read, sender};
use rustix::net::sockopt;
use sendfile2::guard::{GuardedFile, TryWrite};
use sendfile2::{Engine, Error, SendFlags, Sender, Sent, Source, Status};

const LEN: u64 = 4 << 20;

fn guarded(file: &File) -> GuardedFile {
    common::waiting(file.try_clone().unwrap())
}

/// A lease of the whole file, of which as much as the socket takes is in flight and stuck.
struct Stuck {
    sender: Sender,
    peer: std::net::TcpStream,
    sent: u64,
    ticket: sendfile2::Ticket,
}

fn stuck(guard: &GuardedFile) -> Stuck {
    let (tx, peer) = common::tcp_small_window();
    let mut sender = sender(tx, Engine::Zerocopy);
    let lease = guard.try_lease(0..LEN).unwrap();
    let (mut sent, mut last) = (0, None);
    while let Sent::Accepted { bytes, ticket } =
        sender.try_send_lease(&lease, sent..LEN, SendFlags::NONE).unwrap()
    {
        sent += bytes as u64;
        last = Some(ticket);
        if sent == LEN {
            break;
        }
    }
    Stuck { sender, peer, sent, ticket: last.unwrap() }
}

#[test]
fn a_writer_waits_until_the_kernel_has_let_go() {
    let file = file(1, LEN);
    let guard = guarded(&file);
    let mut stuck = stuck(&guard);
    let error = guard.write_at(b"x", 0, Instant::now());
    // The first byte has long arrived, but one lease covers all of the response.
    assert!(matches!(error, Err(Error::Deadline(_))), "{error:?}");
    let new = pattern(!1, 0..LEN);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| guard.write_at(&new, 0, deadline()));
        assert_same(&read(&mut stuck.peer, stuck.sent as usize), &pattern(1, 0..stuck.sent));
        writer.join().unwrap().unwrap();
    });
    assert!(matches!(stuck.ticket.status(), Status::Released(_)));
    let mut on_disk = Vec::new();
    std::io::BufReader::new(File::open(format!("/proc/self/fd/{}", fd(&file))).unwrap())
        .read_to_end(&mut on_disk)
        .unwrap();
    assert_same(&on_disk, &new);
}

fn fd(file: &File) -> i32 {
    std::os::fd::AsRawFd::as_raw_fd(file)
}

/// The control: who bypasses the guard corrupts what is in flight.
#[test]
fn control_a_writer_that_bypasses_the_guard_is_seen() {
    let file = file(1, LEN);
    let guard = guarded(&file);
    let mut stuck = stuck(&guard);
    common::overwrite(&file, &pattern(!1, 0..LEN));
    let got = read(&mut stuck.peer, stuck.sent as usize);
    assert!(common::wrong(&got, &pattern(1, 0..stuck.sent)) > 0, "bypassing looks safe here");
}

#[test]
fn the_lease_outlives_its_handle_the_ticket_the_sender_and_the_other_file_handles() {
    let file = file(1, LEN);
    let other = guarded(&file);
    let guard = guarded(&file);
    let Stuck { sender, mut peer, sent, ticket } = stuck(&guard);
    drop((sender, ticket, guard));
    assert!(matches!(other.try_write_at(b"x", 5).unwrap(), TryWrite::Blocked(_)));
    assert_same(&read(&mut peer, sent as usize), &pattern(1, 0..sent));
    assert!(common::ends(&mut peer), "no end of the stream");
    other.write_at(b"x", 5, deadline()).unwrap();
    assert_eq!(other.in_flight(), []);
}

#[test]
fn who_is_in_the_way_is_told() {
    let file = file(1, LEN);
    let guard = guarded(&file);
    let stuck = stuck(&guard);
    let TryWrite::Blocked(leases) = guard.try_write_at(b"x", 5).unwrap() else {
        panic!("written over a lease")
    };
    let [leased] = &leases[..] else { panic!("{leases:?}") };
    assert_eq!(leased.range, 0..LEN);
    assert_eq!(leased.peers, [stuck.peer.local_addr().unwrap()]);
    assert!(!leased.held_by_app);
    assert_eq!(guard.in_flight().len(), 1);
}

#[test]
fn a_writer_aborts_a_stalled_peer_and_then_writes() {
    let file = file(1, LEN);
    let guard = guarded(&file);
    let mut stuck = stuck(&guard);
    guard.write_at_abort(&pattern(!1, 0..LEN), 0, Instant::now()).unwrap();
    assert_eq!(guard.counters().aborts, 1);
    let mut got = Vec::new();
    stuck.peer.read_to_end(&mut got).expect_err("the peer sees a reset");
    assert_same(&got, &pattern(1, 0..got.len() as u64));
}

#[test]
fn a_single_thread_makes_progress() {
    // Nobody but the writer itself reads the notifications.
    let file = file(1, 64 << 10);
    let guard = guarded(&file);
    let (tx, mut rx) = common::tcp();
    let mut sender = sender(tx, Engine::Zerocopy);
    for generation in 0..50_u8 {
        guard.write_at(&pattern(generation, 0..64 << 10), 0, deadline()).unwrap();
        let lease = guard.lease(0..64 << 10, deadline()).unwrap();
        sender.send_lease(&lease, 0..64 << 10, SendFlags::NONE, deadline()).unwrap();
        drop(lease);
        guard.write_at(&pattern(!generation, 0..64 << 10), 0, deadline()).unwrap();
        assert_same(&read(&mut rx, 64 << 10), &pattern(generation, 0..64 << 10));
    }
}

/// The kernel sends the leased bytes of a page only.
#[test]
fn a_write_to_the_same_page_but_no_leased_byte_does_not_wait() {
    let file = file(1, LEN);
    let guard = guarded(&file);
    let stuck = stuck(&guard); // the window is full now
    let Stuck { mut sender, mut peer, sent, .. } = stuck;
    let mut rest = 0;
    let mut leases = Vec::new();
    let edge = LEN - 8192;
    // Leases of [100, 200) of the last pages; the connection is full, so they queue behind it.
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut got = read(&mut peer, sent as usize);
            peer.read_to_end(&mut got).unwrap();
            got
        });
        for page in [edge, edge + 4096] {
            let lease = guard.lease(page + 100..page + 200, deadline()).unwrap();
            sender.send_lease(&lease, page + 100..page + 200, SendFlags::NONE, deadline()).unwrap();
            leases.push(lease.ranges()[0].clone());
            rest += 100;
        }
        let _ = rest;
        drop(sender);
        let got = reader.join().unwrap();
        assert_same(
            &got[sent as usize..],
            &[pattern(1, leases[0].clone()), pattern(1, leases[1].clone())].concat(),
        );
    });
}

#[test]
fn beside_a_stuck_lease_every_other_byte_can_be_written() {
    let file = file(1, LEN);
    let guard = guarded(&file);
    let (tx, mut rx) = common::tcp_small_window();
    let mut sender = sender(tx, Engine::Zerocopy);
    let leased: Vec<_> =
        (0..LEN / 4096).map(|page| page * 4096 + 100..page * 4096 + 3000).collect();
    let lease = guard.try_lease(&leased[..]).unwrap();
    let mut expected = Vec::new();
    'fill: for range in &leased {
        let mut at = range.start;
        while at < range.end {
            match sender.try_send_lease(&lease, at..range.end, SendFlags::NONE).unwrap() {
                Sent::Accepted { bytes, .. } => {
                    expected.extend(pattern(1, at..at + bytes as u64));
                    at += bytes as u64;
                }
                _ => break 'fill,
            }
        }
    }
    drop(lease);
    sender.reap().unwrap();
    assert!(sender.in_flight().sends > 0);
    for page in 0..LEN / 4096 {
        let at = page * 4096;
        let front = guard.try_write_at(&pattern(!1, at..at + 100), at).unwrap();
        let back = guard.try_write_at(&pattern(!1, at + 3000..at + 4096), at + 3000).unwrap();
        assert_eq!((front, back), (TryWrite::Written, TryWrite::Written));
    }
    assert_same(&read(&mut rx, expected.len()), &expected);
}

#[test]
fn readers_do_not_starve_a_writer() {
    let file = file(1, 4096);
    let guard = guarded(&file);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let first = guard.try_lease(0..4096).unwrap();
        for _ in 0..2 {
            scope.spawn(|| {
                // Always one lease overlapping the next.
                while !done.load(SeqCst) {
                    let _a = guard.try_lease(0..4096);
                    let _b = guard.try_lease(0..4096);
                }
            });
        }
        let writer = scope.spawn(|| {
            guard.write_at(b"x", 0, deadline()).unwrap();
            done.store(true, SeqCst);
        });
        drop(first);
        writer.join().unwrap();
    });
}

#[test]
fn nobody_waits_for_a_lease_while_holding_one() {
    let file = file(1, 4096);
    let guard = guarded(&file);
    let held = guard.lease(0..10, deadline()).unwrap();
    let error = guard.lease(20..30, deadline()).unwrap_err();
    assert!(matches!(error, Error::HoldsLease), "{error}");
    assert!(guard.try_lease(20..30).is_some());
    let error = guard.write_at(b"x", 5, deadline()).unwrap_err();
    assert!(matches!(error, Error::OwnLease), "{error}");
    std::thread::scope(|scope| {
        scope.spawn(|| guard.lease(20..30, deadline()).unwrap());
    });
    drop(held);
    guard.lease(20..30, deadline()).unwrap();
}

#[test]
fn a_slot_is_filled_by_several_writes_that_nobody_sees_half_done() {
    let file = file(1, 4096);
    let guard = guarded(&file);
    guard
        .write_with(0..100, deadline(), |slot| {
            slot.write_at(b"one", 0)?;
            assert!(guard.try_lease(50..51).is_none());
            assert!(guard.try_lease(100..101).is_some());
            let error = slot.write_at(b"over the edge", 95).unwrap_err();
            assert!(matches!(error, Error::NotLeased { .. }), "{error}");
            slot.write_at(b"two", 3)
        })
        .unwrap();
    assert!(guard.try_lease(50..51).is_some());
}

#[test]
fn a_range_that_is_not_leased_is_not_sent() {
    let file = file(1, 4096);
    let guard = guarded(&file);
    let (tx, _rx) = common::tcp();
    let mut sender = sender(tx, Engine::Copy);
    let lease = guard.try_lease([0..10, 20..30]).unwrap();
    for range in [5..25, 10..20, 0..11] {
        let error = sender.try_send_lease(&lease, range, SendFlags::NONE).unwrap_err();
        assert!(matches!(error, Error::NotLeased { .. }), "{error}");
    }
    assert_eq!(sender.counters().accepted, 0);
}

#[test]
fn what_a_leased_file_grows_by_can_be_sent() {
    const HALF: u64 = LEN / 2;
    for engine in [Engine::Copy, Engine::Zerocopy] {
        let file = file(1, HALF);
        let guard = guarded(&file);
        let (tx, mut rx) = common::tcp();
        let mut sender = sender(tx, engine);
        let lease = guard.try_lease(0..HALF + 4096).unwrap();
        let error = sender.try_send_lease(&lease, HALF..HALF + 4096, SendFlags::NONE).unwrap_err();
        assert!(matches!(error, Error::Truncated { .. }), "{engine}: {error}");
        // By somebody who goes around the guard; for its writers the lease is in the way.
        let behind = pattern(2, 0..4096);
        std::os::unix::fs::FileExt::write_all_at(&file, &behind, HALF + 4096).unwrap();
        sender.send_lease(&lease, HALF - 10..HALF + 4096, SendFlags::NONE, deadline()).unwrap();
        let mut expected = pattern(1, HALF - 10..HALF);
        expected.resize(10 + 4096, 0);
        assert_same(&read(&mut rx, 10 + 4096), &expected);
    }
}

#[test]
fn set_len_and_punching_wait_for_what_they_touch() {
    let file = file(1, LEN);
    let guard = guarded(&file);
    let low = guard.try_lease(0..4096).unwrap();
    std::thread::scope(|scope| {
        // Bytes from the new size on only: the lease is below.
        scope.spawn(|| guard.set_len(LEN / 2, deadline()).unwrap()).join().unwrap();
        let error = scope.spawn(|| guard.set_len(4095, Instant::now())).join().unwrap();
        assert!(matches!(error, Err(Error::Deadline(_))), "{error:?}");
        // Another page of the same folio, as far as the kernel promises.
        let error = scope.spawn(|| guard.punch_hole(8192..12288, Instant::now())).join().unwrap();
        assert!(matches!(error, Err(Error::Deadline(_))), "{error:?}");
    });
    drop(low);
    guard.punch_hole(8192..12288, deadline()).unwrap();
    let mut bytes = vec![1; 4096 * 3];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 4096).unwrap();
    assert_same(&bytes[..4096], &pattern(1, 4096..8192));
    assert!(bytes[4096..8192].iter().all(|b| *b == 0));
    assert_same(&bytes[8192..], &pattern(1, 12288..16384));
    guard.set_len(LEN, deadline()).unwrap();
    assert_eq!(file.metadata().unwrap().len(), LEN);
}

#[test]
fn what_cannot_be_guarded_is_refused() {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("guard-refused");
    std::fs::write(&path, b"x").unwrap();
    let read_only = File::open(&path).unwrap();
    let error = GuardedFile::new(read_only).unwrap_err();
    assert!(error.to_string().contains("reading only"), "{error}");
    let append = File::options().read(true).append(true).open(&path).unwrap();
    let error = GuardedFile::new(append).unwrap_err();
    assert!(error.to_string().contains("O_APPEND"), "{error}");
}

#[test]
fn guarded_sends_die_with_the_process() {
    let file = file(1, LEN);
    let guard = guarded(&file);
    let mut stuck = stuck(&guard);
    assert_eq!(sockopt::socket_linger(&stuck.sender).unwrap(), Some(std::time::Duration::ZERO));
    read(&mut stuck.peer, stuck.sent as usize);
    stuck.sender.drain(deadline()).unwrap();
    assert_eq!(sockopt::socket_linger(&stuck.sender).unwrap(), None);
}

#[test]
fn a_copied_send_holds_nothing_after_its_return() {
    let file = file(1, LEN);
    let guard = guarded(&file);
    let (tx, mut rx) = common::tcp_small_window();
    let mut sender = sender(tx, Engine::Copy);
    let lease = guard.try_lease(0..LEN).unwrap();
    let Sent::Accepted { bytes, .. } =
        sender.try_send_lease(&lease, 0..LEN, SendFlags::NONE).unwrap()
    else {
        panic!("an empty socket takes nothing")
    };
    drop(lease);
    assert_eq!(guard.try_write_at(&pattern(!1, 0..LEN), 0).unwrap(), TryWrite::Written);
    assert_same(&read(&mut rx, bytes), &pattern(1, 0..bytes as u64));
}

#[test]
fn unleased_sends_of_a_guarded_file_are_possible() {
    let file = file(1, LEN);
    let guard = guarded(&file);
    let source: &Source = guard.source();
    let (tx, _rx) = common::tcp_small_window();
    fill(&mut sender(tx, Engine::Zerocopy), source);
    assert_eq!(guard.in_flight(), []);
}
