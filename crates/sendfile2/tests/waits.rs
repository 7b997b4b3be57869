//! Waits, limits and descriptors.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod common;

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use common::{Flagged, assert_same, deadline, file, fill, pattern, read, sender, source};
use sendfile2::guard::{GuardedFile, TryWrite};
use sendfile2::uring::{Driver, send_file_sync};
use sendfile2::{Deadline, Engine, Error, Options, SendBuffer, SendFlags, Sender, Sent, Status};

/// For ever is no time that overflows, nor one that has passed.
#[test]
fn every_wait_can_be_for_ever() {
    let file = file(1, 100_000);
    let (source, guard) = (source(&file), GuardedFile::new(file.try_clone().unwrap()).unwrap());
    for never in [Deadline::NEVER, Duration::MAX.into()] {
        let (tx, mut rx) = common::tcp();
        let mut sender = sender(tx, Engine::Zerocopy);
        let lease = guard.lease(0..100_000, never).unwrap();
        let sent = sender.send_lease(&lease, 0..100_000, SendFlags::NONE, never).unwrap();
        drop(lease);
        let reader = std::thread::spawn(move || read(&mut rx, 100_000));
        sent.ticket.wait_released(never).unwrap();
        sent.ticket.wait_acknowledged(never).unwrap();
        guard.write_at(b"x", 0, never).unwrap();
        sender.close(never).unwrap();
        reader.join().unwrap();
        if !common::has_uring() {
            continue;
        }
        let (tx, mut rx) = common::tcp();
        let reader = std::thread::spawn(move || read(&mut rx, 100_001));
        send_file_sync(&tx, &source, 0..100_000, never).unwrap();
        let mut driver = Driver::new().unwrap();
        let mut socket = driver.add(tx).unwrap();
        let ticket = socket.queue_file(&source, 0..1, SendFlags::NONE).unwrap();
        assert!(driver.wait(1, never).unwrap() > 0, "it did not wait");
        ticket.wait_released(never).unwrap();
        socket.close(never).unwrap();
        reader.join().unwrap();
    }
}

/// From now on.
#[test]
fn a_deadline_is_a_time_or_a_span_of_it() {
    let (tx, _rx) = common::tcp();
    let (mut sender, file) = (sender(tx, Engine::Copy), file(1, 64 << 20));
    let millis = Duration::from_millis(1);
    let full = sender.send_file(&source(&file), 0..64 << 20, SendFlags::NONE, millis).unwrap_err();
    assert!(matches!(full.error, Error::Deadline(_)), "{full}");
    let full = sender.send(b"x", SendFlags::NONE, Instant::now()).unwrap_err();
    assert!(matches!(full.error, Error::Deadline(_)), "{full}");
}

fn cpu() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
}

/// A lease in hand, sent from only after the writer has begun to wait; then nobody reaps but it.
#[test]
fn a_writer_sees_sends_made_after_it_began_to_wait() {
    for round in 0..20 {
        let file = file(1, 1 << 20);
        let guard = common::waiting(file.try_clone().unwrap());
        let lease = guard.try_lease(0..1 << 20).unwrap();
        let (tx, mut rx) = common::tcp_small_window();
        let mut sender = sender(tx, Engine::Zerocopy);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| guard.write_at(b"x", 0, deadline()).unwrap());
            while guard.writers() == 0 {
                std::thread::yield_now();
            }
            // A little earlier or later in its wait.
            for _ in 0..round * 100 {
                std::thread::yield_now();
            }
            // Small, so that the sender reaps nothing itself.
            let mut sent = 0;
            for _ in 0..10 {
                if let Sent::Accepted { bytes, .. } =
                    sender.try_send_lease(&lease, sent..1 << 20, SendFlags::NONE).unwrap()
                {
                    sent += bytes as u64;
                }
                if sent == 1 << 20 {
                    break;
                }
            }
            drop(lease);
            read(&mut rx, sent as usize);
            writer.join().unwrap();
        });
    }
}

/// The peer is gone, the lease is in hand: POLLERR and POLLHUP for ever.
#[test]
fn a_writer_that_waits_for_a_lease_of_a_dead_connection_is_not_busy() {
    if common::role().is_none() {
        return common::run_as(
            &[],
            "a_writer_that_waits_for_a_lease_of_a_dead_connection_is_not_busy",
            "alone",
        );
    }
    let file = file(1, 4 << 20);
    let guard = common::waiting(file.try_clone().unwrap());
    let lease = guard.try_lease(0..4 << 20).unwrap();
    let (tx, rx) = common::tcp_small_window();
    let mut sender = sender(tx, Engine::Zerocopy);
    for _ in 0..3 {
        let _ = sender.try_send_lease(&lease, 0..1 << 20, SendFlags::NONE).unwrap();
    }
    common::reset(rx);
    std::thread::scope(|scope| {
        let (before, began) = (cpu(), Instant::now());
        let writer =
            scope.spawn(|| guard.write_at(b"x", 0, Instant::now() + Duration::from_secs(1)));
        assert!(matches!(writer.join().unwrap(), Err(Error::Deadline(_))));
        let (used, took) = (cpu() - before, began.elapsed());
        assert!(used < took / 4, "{used:?} of processor time in {took:?}");
    });
}

#[test]
fn no_descriptors_left_at_any_wait() {
    let name = "no_descriptors_left_at_any_wait";
    if common::role().is_none() {
        return common::run_as(&["prlimit", "--nofile=64:64"], name, "limited");
    }
    let file = file(1, 1 << 20);
    let guard = GuardedFile::new(file.try_clone().unwrap()).unwrap();
    let (tx, mut rx) = common::tcp_small_window();
    let mut sender = sender(tx, Engine::Zerocopy);
    let lease = guard.try_lease(0..1 << 20).unwrap();
    let (buffer, dropped) = Flagged::new(vec![1; 3000]);
    let mut buffer = SendBuffer::new(buffer);
    sender.try_send_buffer(&mut buffer, SendFlags::NONE).unwrap();
    let Sent::Accepted { bytes: sent, ticket } =
        sender.try_send_lease(&lease, 0..1 << 20, SendFlags::NONE).unwrap()
    else {
        panic!()
    };
    drop((lease, buffer));
    let mut all = Vec::new();
    while let Ok(one) = std::fs::File::open("/dev/null") {
        all.push(one);
    }
    std::thread::scope(|scope| {
        let error = scope.spawn(|| guard.write_at(b"x", 0, deadline())).join().unwrap();
        assert!(matches!(error, Err(Error::Wait { .. })), "{error:?}");
        let error = scope.spawn(|| guard.write_at_abort(b"x", 0, Instant::now())).join().unwrap();
        assert!(matches!(error, Err(Error::Wait { .. })), "{error:?}");
        let error = guard.queue_writer(0..1);
        assert!(matches!(error, Err(Error::Wait { .. })), "{error:?}");
        let error = scope.spawn(|| ticket.wait_released(deadline())).join().unwrap();
        assert!(matches!(error, Err(Error::Wait { .. })), "{error:?}");
        let sendfile2::IntoSocketError { error, sender, .. } =
            sender.into_socket(deadline()).unwrap_err();
        assert!(matches!(error, Error::Wait { .. }), "{error:?}");
        assert_eq!(guard.writers(), 0);
        sender.close(deadline()).unwrap_err();
    });
    read(&mut rx, 3000 + sent);
    let end = std::io::Read::read(&mut rx, &mut [0]).unwrap();
    assert_eq!(end, 0);
    sendfile2::reaper::drain(deadline()).unwrap();
    assert!(dropped.load(SeqCst));
    assert!(matches!(ticket.status(), Status::Released(_)));
    assert_eq!(guard.try_write_at(b"x", 0).unwrap(), TryWrite::Written);
}

/// Corked by more, and nothing follows.
#[test]
fn more_without_more_does_not_stall() {
    for engine in common::engines() {
        let (tx, mut rx) = common::tcp();
        let mut sender = sender(tx, engine);
        let file = file(1, 100_000);
        let source = source(&file);
        let sent = sender.send_file(&source, 0..1000, SendFlags::MORE, deadline()).unwrap();
        sent.ticket.wait_released(deadline()).unwrap();
        assert_same(&read(&mut rx, 1000), &pattern(1, 0..1000));
        // The end of the file comes before the end of the range.
        let _ =
            sender.send_file(&source, 99_000..200_000, SendFlags::MORE, deadline()).unwrap_err();
        assert_same(&read(&mut rx, 1000), &pattern(1, 99_000..100_000));
    }
}

#[test]
fn linger_is_restored_whatever_the_end() {
    let theirs = Some(Duration::from_secs(9));
    for how in 0..3 {
        let (tx, mut rx) = common::tcp_small_window();
        rustix::net::sockopt::set_socket_linger(&tx, theirs).unwrap();
        let dup = tx.try_clone().unwrap();
        let options = Options::new().engine(Engine::Zerocopy).reset_on_exit(true);
        let mut sender = Sender::with(tx, options).unwrap();
        let file = file(1, 4 << 20);
        let (_, sent) = fill(&mut sender, &source(&file));
        match how {
            0 => {
                read(&mut rx, sent as usize);
                sender.into_socket(deadline()).unwrap();
            }
            1 => {
                sender.abort().unwrap();
                sender.drain(deadline()).unwrap();
            }
            _ => {
                drop(sender);
                read(&mut rx, sent as usize);
                sendfile2::reaper::drain(deadline()).unwrap();
            }
        }
        assert_eq!(rustix::net::sockopt::socket_linger(&dup).unwrap(), theirs, "{how}");
    }
}
