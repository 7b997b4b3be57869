//! Leases that are revoked for a writer that waits no longer.
#![allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]

mod common;

use std::io::Read;
use std::time::{Duration, Instant};

use common::{assert_same, deadline, pattern, sender};
use sendfile2::guard::{GuardedFile, Lease};
use sendfile2::{Engine, Error, SendFlags, Sent};

const LEN: u64 = 4 << 20;

/// A lease that is in somebody else's hands.
fn leased(guard: &GuardedFile) -> Lease {
    let guard = guard.clone();
    std::thread::spawn(move || guard.try_lease(0..LEN).unwrap()).join().unwrap()
}

#[test]
fn a_lease_in_hand_is_revoked_at_the_deadline_of_a_writer() {
    let file = common::file(1, LEN);
    let guard = common::waiting(file.try_clone().unwrap());
    for engine in [Engine::Copy, Engine::Auto, Engine::Zerocopy] {
        common::overwrite(&file, &pattern(1, 0..LEN));
        let lease = leased(&guard);
        let (tx, _rx) = common::tcp();
        let mut sender = sender(tx, engine);
        let mut buffer = [0; 4096];
        assert_eq!(lease.read_at(&mut buffer, 4096).unwrap(), 4096);
        assert_same(&buffer, &pattern(1, 4096..8192));
        // The control: who does not abort does not revoke.
        let waited = guard.write_at(&pattern(2, 0..LEN), 0, Instant::now());
        assert!(matches!(waited, Err(Error::Deadline(_))), "{waited:?}");
        assert_eq!(lease.read_at(&mut buffer, 4096).unwrap(), 4096);

        guard.write_at_abort(&pattern(2, 0..LEN), 0, Instant::now()).unwrap();
        for of in [lease.clone(), lease] {
            assert!(matches!(of.read_at(&mut buffer, 0), Err(Error::Revoked)));
            assert!(matches!(of.try_read_at(&mut buffer, 0), Err(Error::Revoked)));
            let sent = sender.try_send_lease(&of, 0..LEN, SendFlags::NONE);
            assert!(matches!(sent, Err(Error::Revoked)), "{engine}: {sent:?}");
            let mapped = of.mapped(0..LEN).unwrap();
            assert!(mapped.is_none());
        }
        // It is leased anew, and as it is now.
        let lease = guard.lease(0..LEN, deadline()).unwrap();
        assert_eq!(lease.read_at(&mut buffer, 0).unwrap(), 4096);
        assert_same(&buffer, &pattern(2, 0..4096));
    }
}

/// What is in flight is not revoked: the writer waits for its release, which the abort of its
/// connection brings.
#[test]
fn what_is_in_flight_of_a_revoked_lease_is_waited_for() {
    let file = common::file(1, LEN);
    let guard = common::waiting(file.try_clone().unwrap());
    let lease = leased(&guard);
    let (tx, mut peer) = common::tcp_small_window();
    let mut sender = sender(tx, Engine::Zerocopy);
    let mut at = 0;
    while let Sent::Accepted { bytes, .. } =
        sender.try_send_lease(&lease, at..LEN, SendFlags::NONE).unwrap()
    {
        at += bytes as u64;
    }
    assert!(at > 0 && at < LEN, "{at}");
    let mut queued = guard.queue_writer(0..LEN).unwrap();
    assert!(queued.try_acquire().unwrap().is_none());
    assert_eq!(queued.abort_blockers().unwrap(), 1);
    let until = deadline();
    while queued.try_acquire().unwrap().is_none() {
        assert!(Instant::now() < until, "it was never free");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(sender.in_flight().sends, 0, "it was free while something was in flight");
    queued.try_acquire().unwrap().unwrap().write_at(&pattern(2, 0..LEN), 0).unwrap();
    assert!(matches!(lease.read_at(&mut [0], 0), Err(Error::Revoked)));
    drop(queued);
    let mut got = Vec::new();
    let _ = peer.read_to_end(&mut got);
    assert_same(&got, &pattern(1, 0..got.len() as u64));
}

/// Whoever has addresses of the mapping would see what is written: that lease is waited for.
#[test]
fn a_lease_whose_mapping_was_given_out_is_not_revoked() {
    let file = common::file(1, LEN);
    let guard = common::waiting(file);
    let lease = leased(&guard);
    if lease.mapped(0..LEN).unwrap().is_none() {
        println!("SKIP: files are not mapped here");
        return;
    }
    let (tx, mut peer) = common::tcp();
    let sender = sender(tx, Engine::Copy);
    sender.announce(&lease);
    let mut queued = guard.queue_writer(0..LEN).unwrap();
    // Its connection is ended, though nothing was sent yet.
    assert_eq!(queued.abort_blockers().unwrap(), 1);
    assert!(peer.read(&mut [0]).is_err(), "it is reset");
    assert!(queued.try_acquire().unwrap().is_none(), "its mapping is still in hand");
    assert_eq!(lease.read_at(&mut [0], 0).unwrap(), 1);
    drop(lease);
    assert!(queued.try_acquire().unwrap().is_some());
}
