//! Erasing regions of a guarded file: what is in flight, and what is still to be sent, keeps its
//! bytes, and nothing is in the way of the writes that follow.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::detachable::{LEN, files, fresh, rest};
use common::filesystems::tmpfs;
use common::{assert_same, deadline, pattern, sender};
use sendfile2::detach::{NotDetached, REGION};
use sendfile2::guard::GuardedFile;
use sendfile2::{Engine, Error, SendFlags, Sent};

const BY: [Engine; 3] = [Engine::Zerocopy, Engine::Sendfile, Engine::Copy];
const SOON: Duration = Duration::from_secs(5);

#[test]
fn what_was_sent_and_what_is_to_be_sent_keep_their_bytes() {
    for (filesystem, file) in files() {
        for engine in BY {
            let name = filesystem.name;
            common::overwrite(&file, &pattern(1, 0..LEN));
            let guard = fresh(&file);
            let (tx, peer) = common::tcp_small_window_on_this_host();
            let mut sender = sender(tx, engine);
            let lease = guard.try_lease(0..LEN).unwrap();
            let mut sent = 0;
            while sent < LEN {
                let more = sender.try_send_lease(&lease, sent..LEN, SendFlags::NONE).unwrap();
                let Sent::Accepted { bytes, .. } = more else { break };
                sent += bytes as u64;
            }
            let (guard, before) = (&guard, guard.counters().detached);
            // By another thread: this one has the lease in hand.
            std::thread::scope(|scope| {
                let erased = scope.spawn(move || guard.erase(0..LEN, SOON));
                if let Err(why) = erased.join().unwrap() {
                    panic!("{name}, {engine}: {why}");
                }
            });
            assert!(guard.exposed().is_empty(), "{name}, {engine}");
            guard.write_at(&pattern(!1, 0..LEN), 0, SOON).unwrap();
            assert_eq!(
                guard.counters().detached,
                before,
                "{name}, {engine}: nothing is in the way"
            );
            let mut old = vec![0; 100_000];
            let at = LEN - 100_000;
            assert_eq!(lease.read_at(&mut old, at).unwrap(), old.len());
            assert_same(&old, &pattern(1, at..LEN));
            drop(lease);
            assert_same(&rest(peer, sender), &pattern(1, 0..sent));
        }
    }
}

/// The memory that packets keep of it is counted as with any other writer.
#[test]
fn the_memory_that_packets_keep_is_counted() {
    for (filesystem, file) in files() {
        let guard = fresh(&file);
        let (tx, _peer) = common::tcp_small_window_on_this_host();
        let mut sender = sender(tx, Engine::Zerocopy);
        let lease = guard.try_lease(0..LEN).unwrap();
        let sent = sender.try_send_lease(&lease, 0..LEN, SendFlags::NONE).unwrap();
        assert!(matches!(sent, Sent::Accepted { .. }), "{sent:?}");
        drop(lease);
        guard.erase(0..LEN, SOON).unwrap();
        assert_eq!(guard.counters().kept_by_packets, LEN, "{}", filesystem.name);
        assert!(guard.in_flight().is_empty(), "{}", filesystem.name);
    }
}

#[test]
fn it_waits_where_nothing_can_be_kept_aside() {
    let file = tempfile::tempfile_in(&tmpfs().dir).unwrap();
    common::overwrite(&file, &pattern(1, 0..LEN));
    let guard = GuardedFile::new(file).unwrap();
    let lease = guard.try_lease(10..20).unwrap();
    let late = guard.erase(0..LEN, std::time::Instant::now());
    assert!(matches!(late, Err(Error::OwnLease | Error::Deadline(_))), "{late:?}");
    assert!(guard.try_lease(0..10).is_some(), "it keeps nobody out any more");
    drop(lease);
    guard.erase(0..LEN, deadline()).unwrap();
    let lease = guard.try_lease(0..4).unwrap();
    let mut bytes = [1; 4];
    lease.read_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [0; 4]);
}

#[test]
fn parts_of_a_region_are_refused_and_nothing_changes() {
    let Some((_, file)) = files().into_iter().next() else { return };
    common::overwrite(&file, &pattern(1, 0..LEN));
    let guard = fresh(&file);
    let refused = guard.erase(0..REGION / 2, SOON).unwrap_err();
    let Error::NotDetached(why) = refused else { panic!("{refused}") };
    assert!(matches!(*why, NotDetached::Unaligned { .. }), "{why}");
    let lease = guard.try_lease(0..8).unwrap();
    let mut bytes = [0; 8];
    lease.read_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, pattern(1, 0..8)[..]);
}
