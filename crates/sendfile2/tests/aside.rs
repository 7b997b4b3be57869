//! What leases in hand send after it was overwritten: the old bytes, which were kept aside.
#![allow(clippy::unwrap_used, clippy::single_range_in_vec_init, clippy::cast_possible_truncation)]

mod common;

use std::net::TcpStream;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::Duration;

use common::detachable::{LEN, files, fresh, made};
use common::filesystems::here;
use common::{assert_same, deadline, pattern, sender};
use sendfile2::guard::{GuardOptions, GuardedFile, Lease, TryWrite};
use sendfile2::{Engine, Error, Reason, SendFlags, Sender, Sent};

/// A connection that takes a part of a file, and then no more until its peer reads.
fn narrow() -> (TcpStream, TcpStream) {
    let (tx, peer) = common::tcp_small_window_on_this_host();
    rustix::net::sockopt::set_socket_send_buffer_size(&tx, 256 << 10).unwrap();
    (tx, peer)
}

/// Sends of the lease from `at` on, as far as the socket takes it.
fn fill(sender: &mut Sender, lease: &Lease, mut at: u64) -> u64 {
    while at < LEN {
        match sender.try_send_lease(lease, at..LEN, SendFlags::NONE).unwrap() {
            Sent::Accepted { bytes, .. } => at += bytes as u64,
            Sent::WouldBlock => break,
            other => panic!("{other:?}"),
        }
    }
    at
}

fn read_all(lease: &Lease, mut at: u64, end: u64) -> Vec<u8> {
    let mut got = Vec::new();
    let mut buffer = [0; 50_000];
    while at < end {
        let most = buffer.len().min(usize::try_from(end - at).unwrap());
        let read = lease.read_at(&mut buffer[..most], at).unwrap();
        assert!(read > 0, "the file ends at {at}");
        got.extend_from_slice(&buffer[..read]);
        at += read as u64;
    }
    got
}

/// One thread has a lease, has sent a part under it to a peer that reads nothing, overwrites all of
/// it in pieces, and sends the rest.
#[test]
fn a_response_is_of_one_generation_whatever_is_written_meanwhile() {
    for (filesystem, file) in files() {
        for engine in [Engine::Auto, Engine::Zerocopy, Engine::Sendfile, Engine::Copy] {
            let what = format!("{}, {engine}", filesystem.name);
            common::overwrite(&file, &pattern(1, 0..LEN));
            let guard = fresh(&file);
            let (tx, mut peer) = narrow();
            let mut sender = sender(tx, engine);
            let lease = guard.try_lease(0..LEN).unwrap();
            let sent = fill(&mut sender, &lease, 0);
            assert!(sent < LEN, "{what}: nothing is left to be sent");
            for at in (1..LEN).step_by(100_003) {
                let piece = at..(at + 70_001).min(LEN);
                guard.write_at(&pattern(!1, piece.clone()), at, Duration::from_secs(5)).unwrap();
            }
            assert!(guard.counters().kept_aside > LEN / 2, "{what}: {:?}", guard.counters());
            let reading = std::thread::spawn(move || common::read(&mut peer, LEN as usize));
            sender.send_lease(&lease, sent..LEN, SendFlags::NONE, deadline()).unwrap();
            assert_same(&read_all(&lease, 0, LEN), &pattern(1, 0..LEN));
            drop((lease, sender));
            assert_same(&reading.join().unwrap(), &pattern(1, 0..LEN));
            assert_eq!(guard.counters().kept_aside, 0, "{what}");
            assert_eq!(guard.counters().aborts, 0, "{what}");
        }
    }
}

/// The control: sent from the file, and not under the lease, what was written shows.
#[test]
fn control_without_the_lease_two_generations_are_mixed() {
    let Some(file) = made(&here()) else { return };
    let guard = fresh(&file);
    let (tx, mut peer) = narrow();
    let mut sender = sender(tx, Engine::Copy);
    let lease = guard.try_lease(0..LEN).unwrap();
    let sent = fill(&mut sender, &lease, 0);
    guard.write_at(&pattern(!1, 0..LEN), 0, deadline()).unwrap();
    let reading = std::thread::spawn(move || common::read(&mut peer, LEN as usize));
    sender.send_file(guard.source(), sent..LEN, SendFlags::NONE, deadline()).unwrap();
    assert!(common::wrong(&reading.join().unwrap(), &pattern(1, 0..LEN)) > 0);
}

#[test]
fn each_lease_has_its_own_generation() {
    let Some(file) = made(&here()) else { return };
    let guard = fresh(&file);
    let mut leases = Vec::new();
    for generation in 1..=5_u8 {
        leases.push((generation, guard.try_lease(1000..300_000).unwrap()));
        let piece = u64::from(generation) * 1000..200_000;
        guard.write_at(&pattern(generation + 1, piece.clone()), piece.start, deadline()).unwrap();
        let all = pattern(generation + 1, 0..LEN);
        guard.write_at(&all, 0, deadline()).unwrap();
    }
    for (generation, lease) in leases {
        assert_same(&read_all(&lease, 1000, 300_000), &pattern(generation, 1000..300_000));
    }
    assert_eq!(guard.counters().kept_aside, 0);
}

#[test]
fn a_new_size_and_a_hole_are_nothing_to_a_lease_in_hand() {
    let Some(file) = made(&here()) else { return };
    let guard = fresh(&file);
    let lease = guard.try_lease(0..LEN).unwrap();
    guard.punch_hole(5000..70_000, deadline()).unwrap();
    guard.set_len(100_001, deadline()).unwrap();
    guard.set_len(LEN + 1000, deadline()).unwrap();
    guard.write_at(&pattern(!1, 0..LEN), 0, deadline()).unwrap();
    assert_same(&read_all(&lease, 0, LEN), &pattern(1, 0..LEN));
    for engine in [Engine::Zerocopy, Engine::Sendfile] {
        let (tx, mut peer) = common::tcp_on_this_host();
        let mut sender = sender(tx, engine);
        let reading = std::thread::spawn(move || common::read(&mut peer, LEN as usize));
        let sent = sender.send_lease(&lease, 0..LEN, SendFlags::NONE, deadline()).unwrap();
        assert_eq!(sent.ticket.choice().reason, Reason::KeptAside);
        assert_same(&reading.join().unwrap(), &pattern(1, 0..LEN));
    }
}

/// A range behind the end of the file stays behind it, for a lease from before.
#[test]
fn a_file_that_grows_does_not_grow_for_a_lease() {
    let Some(file) = made(&here()) else { return };
    let guard = fresh(&file);
    let lease = guard.try_lease(LEN - 10..LEN + 4096).unwrap();
    guard.write_at(&[7; 8192], LEN - 4096, deadline()).unwrap();
    let (mut got, mut end) = ([0; 4096], [0; 10]);
    assert_eq!(lease.read_at(&mut got, LEN - 10).unwrap(), 10);
    assert_same(&got[..10], &pattern(1, LEN - 10..LEN));
    assert_eq!(lease.read_at(&mut end, LEN).unwrap(), 0);
    let (one, _other) = UnixStream::pair().unwrap();
    let mut sender = Sender::new(one).unwrap();
    let sent = sender.send_lease(&lease, LEN..LEN + 100, SendFlags::NONE, deadline());
    assert!(matches!(sent.unwrap_err().error, Error::Truncated { at: LEN, .. }));
}

#[test]
fn a_record_is_of_one_generation() {
    let Some(file) = made(&here()) else { return };
    let guard = fresh(&file);
    let (one, other) = UnixDatagram::pair().unwrap();
    let mut sender = Sender::new(one).unwrap();
    let lease = guard.try_lease(100..60_000).unwrap();
    guard.write_at(&pattern(!1, 20_000..30_000), 20_000, deadline()).unwrap();
    sender.send_lease(&lease, 100..60_000, SendFlags::NONE, deadline()).unwrap();
    let mut got = vec![0; 100_000];
    let len = other.recv(&mut got).unwrap();
    assert_same(&got[..len], &pattern(1, 100..60_000));
}

/// More than the budget is waited for, and not copied.
#[test]
fn too_much_to_be_kept_aside_is_waited_for() {
    const MANY: u64 = 80 << 20;
    let Some(file) = made(&here()) else { return };
    file.set_len(MANY).unwrap();
    let guard = fresh(&file);
    let large = guard.try_lease(0..MANY).unwrap();
    let blocked = guard.try_write_at(&vec![1; MANY as usize], 0).unwrap();
    assert!(matches!(&blocked, TryWrite::Blocked(by) if by[0].held_by_app), "{blocked:?}");
    let own = guard.write_at(&vec![1; MANY as usize], 0, deadline()).unwrap_err();
    assert!(matches!(own, Error::OwnLease), "{own}");
    assert_eq!(guard.counters().kept_aside, 0);
    // As much as there is room for, in pieces.
    let mut at = 0;
    while let TryWrite::Written = guard.try_write_at(&[1; 1 << 20], at).unwrap() {
        at += 1 << 20;
    }
    assert_eq!((at, guard.counters().kept_aside), (64 << 20, 64 << 20));
    // Room that another lease makes lets a writer go on that waits for room only.
    let small = guard.try_lease(at..at + 4096).unwrap();
    std::thread::scope(|threads| {
        let writing = threads.spawn(|| guard.write_at(&[1; 4096], at, deadline()));
        while guard.writers() == 0 {
            std::thread::yield_now();
        }
        drop(large);
        writing.join().unwrap().unwrap();
    });
    assert_same(&read_all(&small, at, at + 4096), &[0; 4096]);
}

/// Addresses of the mapping show what is written: such a lease is waited for.
#[test]
fn a_mapped_lease_is_waited_for_and_an_overwritten_one_is_not_mapped() {
    let Some(file) = made(&here()) else { return };
    let guard = fresh(&file);
    let lease = guard.try_lease(0..LEN).unwrap();
    guard.write_at(&[1; 10], 5000, deadline()).unwrap();
    assert!(lease.mapped(0..LEN).unwrap().is_none());
    assert!(lease.mapped(0..5000).unwrap().is_some());
    let blocked = guard.try_write_at(&[1; 10], 100_000).unwrap();
    assert!(matches!(blocked, TryWrite::Blocked(_)), "{blocked:?}");
    drop(lease);
    assert_eq!(guard.try_write_at(&[1; 10], 100_000).unwrap(), TryWrite::Written);
}

/// Nobody sends what was kept once the last hand has let go, though the peer reads nothing.
#[test]
fn what_was_kept_goes_with_the_last_hand() {
    let Some(file) = made(&here()) else { return };
    let guard = fresh(&file);
    let (tx, _peer) = narrow();
    let mut sender = sender(tx, Engine::Zerocopy);
    let lease = guard.try_lease(0..LEN).unwrap();
    assert!(fill(&mut sender, &lease, 0) < LEN);
    guard.write_at(&[1; 4096], LEN - 4096, deadline()).unwrap();
    let other = lease.clone();
    drop(lease);
    assert_eq!(guard.counters().kept_aside, 4096);
    drop(other);
    assert!(sender.in_flight().sends > 0 && !guard.in_flight().is_empty());
    assert_eq!(guard.counters().kept_aside, 0);
}

/// What cannot be read cannot be kept aside: its lease is waited for, up to the deadline.
#[test]
fn what_cannot_be_kept_aside_is_waited_for() {
    let Some(file) = made(&here()) else { return };
    let guard = fresh(&file);
    let lease = guard.try_lease(0..100).unwrap();
    guard.write_at(&[1; 10], 0, deadline()).unwrap();
    let lease = (lease, guard.try_lease(1..100).unwrap());
    // Reads of no whole block fail from here on.
    let flags = rustix::fs::fcntl_getfl(&guard).unwrap();
    rustix::fs::fcntl_setfl(&guard, flags | rustix::fs::OFlags::DIRECT).unwrap();
    let blocked = guard.try_write_at(&[1; 10], 10).unwrap();
    assert!(matches!(blocked, TryWrite::Blocked(_)), "{blocked:?}");
    let mut queued = guard.queue_writer(10..20).unwrap();
    assert!(queued.try_acquire().unwrap().is_none());
    let write = || guard.write_at(&[1; 10], 30, Duration::from_millis(10)).unwrap_err();
    let error = std::thread::scope(|scope| scope.spawn(write).join().unwrap());
    assert!(matches!(error, Error::Deadline(_)), "{error}");
    let own = guard.write_at(&[1; 10], 30, deadline()).unwrap_err();
    assert!(matches!(own, Error::OwnLease), "{own}");
    drop(lease);
    assert_eq!(guard.counters().kept_aside, 0);
    rustix::fs::fcntl_setfl(&guard, flags).unwrap();
    queued.try_acquire().unwrap().unwrap().write_at(&[1; 10], 10).unwrap();
}

/// Nothing needs to be kept of what is behind the end of the file.
#[test]
fn leases_of_all_that_there_may_be_are_in_no_writers_way() {
    let Some(file) = made(&here()) else { return };
    let guard = fresh(&file);
    let leases = [(); 3].map(|()| guard.try_lease(0..u64::MAX).unwrap());
    guard.set_len(100_001, deadline()).unwrap();
    assert_eq!(guard.counters().kept_aside, 3 * (LEN - 100_001));
    guard.set_len(LEN + 1000, deadline()).unwrap();
    for lease in &leases {
        assert_same(&read_all(lease, 0, LEN), &pattern(1, 0..LEN));
        assert_eq!(lease.read_at(&mut [0; 10], LEN).unwrap(), 0);
    }
    drop(leases);
    assert_eq!(guard.counters().kept_aside, 0);
}

#[test]
fn only_what_is_leased_is_read() {
    let Some(file) = made(&here()) else { return };
    let guard = fresh(&file);
    let lease = guard.try_lease([0..10, 20..30]).unwrap();
    let mut buffer = [0; 11];
    assert!(
        matches!(lease.read_at(&mut buffer, 0), Err(Error::NotLeased { range }) if range == (0..11))
    );
    assert!(matches!(lease.read_at(&mut buffer[..5], u64::MAX - 1), Err(Error::NotLeased { .. })));
    assert!(matches!(lease.mapped(5..25), Err(Error::NotLeased { .. })));
    assert_eq!(lease.read_at(&mut buffer[..10], 20).unwrap(), 10);
    assert_same(&buffer[..10], &pattern(1, 20..30));
    if let Some(read) = lease.try_read_at(&mut buffer[..10], 0).unwrap() {
        assert_same(&buffer[..read], &pattern(1, 0..10)[..read]);
    }
}

/// What a ring has queued, with a peer that has stopped reading.
#[test]
fn what_a_ring_has_queued_is_sent_as_it_was() {
    if !common::has_uring() {
        return;
    }
    for (filesystem, file) in files() {
        common::overwrite(&file, &pattern(1, 0..LEN));
        let guard = fresh(&file);
        let (tx, mut peer) = narrow();
        let driver = sendfile2::uring::Driver::new().unwrap();
        let mut socket = driver.add(tx).unwrap();
        let lease = guard.try_lease(0..LEN).unwrap();
        let half = LEN / 2;
        let first = socket.queue_lease(&lease, 0..half, SendFlags::NONE).unwrap();
        assert!(first.wait_accepted(Duration::from_millis(200)).is_err());
        let accepted = socket.counters().accepted;
        assert!(accepted > 0 && socket.queued() > 0, "{}: nothing is stuck", filesystem.name);
        guard.write_at(&pattern(!1, 0..LEN), 0, Duration::from_secs(20)).unwrap();
        let second = socket.queue_lease(&lease, half..LEN, SendFlags::NONE).unwrap();
        drop(lease);
        assert!(guard.counters().kept_aside > 0);
        let reading = std::thread::spawn(move || {
            let got = common::read(&mut peer, LEN as usize);
            (got, peer)
        });
        first.wait_accepted(deadline()).unwrap();
        second.wait_accepted(deadline()).unwrap();
        let (got, mut peer) = reading.join().unwrap();
        assert_same(&got, &pattern(1, 0..LEN));
        assert_eq!(guard.counters().kept_aside, 0, "{}", filesystem.name);
        socket.close(deadline()).unwrap();
        assert!(common::ends(&mut peer));
        assert_eq!(guard.counters().aborts, 0);
    }
}

/// A ring answers by itself, though the lease is in the hands of the very thread that waits.
#[test]
#[cfg(feature = "uring")]
fn a_threads_own_lease_may_be_with_a_ring() {
    if !common::has_uring() {
        return;
    }
    let Some(file) = made(&here()) else { return };
    let guard = fresh(&file);
    let (tx, mut peer) = common::tcp_on_this_host();
    let driver = sendfile2::uring::Driver::new().unwrap();
    let mut socket = driver.add(tx).unwrap();
    let lease = guard.try_lease(0..4096).unwrap();
    socket.queue_lease(&lease, 0..4096, SendFlags::NONE).unwrap();
    guard.write_at(&pattern(!1, 0..4096), 0, deadline()).unwrap();
    assert_same(&common::read(&mut peer, 4096), &pattern(1, 0..4096));
    assert_same(&read_all(&lease, 0, 4096), &pattern(1, 0..4096));
}

/// A ring whose peer always has room has always something to answer, and is given the next part as
/// soon as it has. A writer comes after what was submitted before it.
#[test]
fn a_ring_that_is_never_idle_keeps_no_writer_waiting() {
    const SENDS: usize = 100;
    if !common::has_uring() {
        return;
    }
    let Some(file) = made(&here()) else { return };
    for waits in [true, false] {
        common::overwrite(&file, &pattern(1, 0..LEN));
        let guard = fresh(&file);
        let (tx, mut peer) = common::tcp_on_this_host_large_window();
        let driver = sendfile2::uring::Driver::new().unwrap();
        let mut socket = driver.add(tx).unwrap();
        let lease = guard.try_lease(0..LEN).unwrap();
        for _ in 0..SENDS {
            socket.queue_lease(&lease, 0..4096, SendFlags::NONE).unwrap();
        }
        if waits {
            guard.write_at(&[7; 100], 100, deadline()).unwrap();
        } else {
            let mut queued = guard.queue_writer(100..200).unwrap();
            while queued.try_acquire().unwrap().is_none() {
                driver.reap().unwrap();
            }
            queued.try_acquire().unwrap().unwrap().write_at(&[7; 100], 100).unwrap();
        }
        let left = usize::try_from(socket.queued()).unwrap();
        assert!(left > SENDS / 2 * 4096, "the writer came when {left} bytes were left");
        drop(lease);
        socket.drain(deadline()).unwrap();
        assert_same(&common::read(&mut peer, SENDS * 4096), &pattern(1, 0..4096).repeat(SENDS));
        assert_eq!(guard.counters().kept_aside, 0);
    }
}

/// All that a ring was given is accepted: it is detached, though its peer reads nothing.
#[test]
fn what_a_ring_has_handed_over_is_detached() {
    if !common::has_uring() {
        return;
    }
    let Some(file) = made(&here()) else { return };
    let guard = fresh(&file);
    let (tx, mut peer) = common::tcp_small_window_on_this_host();
    let driver = sendfile2::uring::Driver::new().unwrap();
    let mut socket = driver.add(tx).unwrap();
    let lease = guard.try_lease(0..100_000).unwrap();
    let ticket = socket.queue_lease(&lease, 0..100_000, SendFlags::NONE).unwrap();
    drop(lease);
    ticket.wait_accepted(deadline()).unwrap();
    guard.write_at(&pattern(!1, 0..LEN), 0, Duration::from_secs(20)).unwrap();
    assert_eq!(guard.counters().kept_aside, 0);
    assert_same(&common::read(&mut peer, 100_000), &pattern(1, 0..100_000));
}

#[test]
fn a_guard_that_waits_keeps_nothing_aside() {
    let Some(file) = made(&here()) else { return };
    let options = GuardOptions::new().nothing_exposed();
    let guard: GuardedFile =
        options.overwrite(sendfile2::guard::Overwrite::Wait).guard(file).unwrap();
    let lease = guard.try_lease(0..10).unwrap();
    assert!(matches!(guard.try_write_at(&[1; 10], 0).unwrap(), TryWrite::Blocked(_)));
    assert_eq!(guard.counters().kept_aside, 0);
    drop(lease);
    assert_eq!(guard.try_write_at(&[1; 10], 0).unwrap(), TryWrite::Written);
}
