//! A client that reads late is sent what it was promised, whatever becomes of the region.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::OpenOptions;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use common::{HEAD, MIB, body, opened, put, small};
use sendfile2::{Engine, SendFlags, Sender, Sent};
use sendfile2_cache::store::{Hit, Key, Options, Store};

fn key(n: u32) -> Key {
    Key::of(&[&n.to_le_bytes()])
}

/// A client that has been sent as much as it takes without reading.
struct Slow {
    sender: Sender,
    receiver: TcpStream,
    sent: u64,
}

impl Slow {
    fn new(hit: &Hit, engine: Engine) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        rustix::net::sockopt::set_socket_recv_buffer_size(&listener, 128 << 10).unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (receiver, _) = listener.accept().unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let options = sendfile2::Options::new().engine(engine);
        let mut slow = Slow { sender: Sender::with(socket, options).unwrap(), receiver, sent: 0 };
        slow.send(hit);
        assert!(slow.sent > 0);
        slow
    }

    fn send(&mut self, hit: &Hit) {
        while self.sent < hit.len() {
            let (lease, left) = hit.leases(self.sent..hit.len()).swap_remove(0);
            match self.sender.try_send_lease(&lease, left, SendFlags::NONE).unwrap() {
                Sent::Accepted { bytes, .. } => self.sent += bytes as u64,
                _ => break,
            }
        }
    }

    /// Reads on, while the rest is sent.
    fn rest(mut self, hit: &Hit) -> Vec<u8> {
        let mut got = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        while (got.len() as u64) < hit.len() {
            let read = self.receiver.read(&mut buffer).unwrap();
            got.extend_from_slice(&buffer[..read]);
            self.send(hit);
        }
        got
    }
}

fn wrong(got: &[u8], expected: &[u8]) -> usize {
    assert_eq!(got.len(), expected.len());
    got.iter().zip(expected).filter(|(a, b)| a != b).count()
}

/// All of it is in somebody's hands, so that no region is better than another one.
fn overwrite_all(store: &Store) {
    let before = store.counters().recycled;
    let mut held = Vec::new();
    for n in 100.. {
        held.push(put(store, key(n), [0; 24], HEAD, &body(n, 100_000), None).unwrap());
        if store.counters().recycled > before + 2 * store.regions().len() as u64 {
            break;
        }
    }
}

#[test]
fn regions_are_overwritten_and_nothing_changes_in_flight() {
    for engine in [Engine::Sendfile, Engine::Zerocopy, Engine::Copy] {
        // So few regions that all that is held fits into what may be kept aside.
        let (store, _) = opened(&Options { size: 24 * MIB, ..small() });
        let old = body(1, 1_500_000);
        // In one record, and in parts.
        for length in [Some(old.len() as u64), None] {
            let hit = put(&store, key(1), [0; 24], HEAD, &old, length).unwrap();
            assert_eq!(hit.leases(0..hit.len()).len() > 1, length.is_none());
            let slow = Slow::new(&hit, engine);
            overwrite_all(&store);
            assert!(store.get(&key(1)).is_none());
            assert_eq!(wrong(&slow.rest(&hit), &old), 0, "{engine}");
            assert_eq!(store.counters().failed, 0);
        }
    }
}

/// More than is kept aside is held, of all regions: the store is filled all the same.
#[test]
fn the_slowest_are_cut_off_where_no_region_is_left_to_others() {
    let (store, _) = opened(&Options { size: 24 * MIB, ..small() });
    let bodies: Vec<_> = (0..6).map(|n| body(n, 1_400_000)).collect();
    let mut slow = Vec::new();
    for (n, body) in (0..).zip(&bodies) {
        // One of two in parts.
        let length = (n % 2 == 0).then_some(body.len() as u64);
        put(&store, key(n), [0; 24], HEAD, body, length).unwrap();
        slow.extend((0..40).map(|_| (n, store.get(&key(n)).unwrap())));
    }
    let (mut kept, mut refused) = (0, 0);
    // It waits for two seconds before somebody is cut off; meanwhile nothing is stored.
    for n in 100..160 {
        let stored = put(&store, key(n), [0; 24], HEAD, &body(n, 1_000_000), None);
        refused += u32::from(stored.is_err());
        kept = kept.max(store.counters().kept_aside);
    }
    let counters = store.counters();
    println!("{kept} bytes kept aside, {refused} refused, {counters:?}");
    assert!(refused < 30 && counters.recycled > 2 * store.regions().len() as u64, "{counters:?}");
    assert!(counters.revoked > 0 && kept > MIB && kept <= 64 * MIB, "{counters:?} {kept}");
    let (mut whole, mut cut) = (0, 0);
    for (n, hit) in slow {
        let expected = &bodies[usize::try_from(n).unwrap()];
        let mut at = 0;
        let all = hit.leases(0..hit.len()).into_iter().try_for_each(|(lease, range)| {
            let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap()];
            let read = lease.read_at(&mut bytes, range.start)?;
            assert!(read == bytes.len() && bytes == expected[at..at + read], "{n} at {at}");
            at += read;
            Ok::<_, sendfile2::Error>(())
        });
        match all {
            Ok(()) => whole += 1,
            Err(sendfile2::Error::Revoked) => cut += 1,
            Err(why) => panic!("{why}"),
        }
    }
    println!("{whole} are whole, {cut} were cut off");
    assert!(whole > 0 && cut > 0);
    assert_eq!(store.counters().kept_aside, 0, "nobody needs it");
}

/// The control: the same region, written to as it is.
#[test]
fn control_a_region_that_is_written_to_at_once_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let (store, _) = opened(&Options { path: Some(path.clone()), ..small() });
    let old = body(1, 1_500_000);
    for length in [Some(old.len() as u64), None] {
        let hit = put(&store, key(1), [0; 24], HEAD, &old, length).unwrap();
        let slow = Slow::new(&hit, Engine::Sendfile);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        for (_, range) in hit.leases(0..hit.len()) {
            let len = usize::try_from(range.end - range.start).unwrap();
            file.write_all_at(&body(2, len), range.start).unwrap();
        }
        let wrong = wrong(&slow.rest(&hit), &old);
        println!("{wrong} bytes wrong of {}", old.len());
        assert!(wrong > 0);
    }
}
