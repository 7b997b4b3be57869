//! Sockets of a driver that are lost.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::part::{Op, Part};
use super::state::State;
use super::{Driver, Socket};
use crate::error::Error;
use crate::flags::SendFlags;
use crate::guard::{GuardOptions, GuardedFile, TryWrite};
use crate::queued::QueuedProgress;
use crate::sync::lock;

fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (socket, listener.accept().unwrap().0)
}

/// As if a hand-over had failed.
fn lose(mut socket: Socket, other: &Socket) {
    drop(std::mem::replace(&mut socket.conn, Arc::clone(&other.conn)));
}

#[test]
fn a_socket_that_is_lost_keeps_what_is_in_flight_and_its_place() {
    const LEN: usize = 16 << 20;
    let Ok(mut driver) = Driver::new() else {
        println!("SKIP: io_uring cannot be used here");
        return;
    };
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![7; LEN]).unwrap();
    let guard = GuardedFile::new(file).unwrap();
    if let Some(why) = guard.source().unmappable() {
        println!("SKIP: temporary files are not mapped here: {why}");
        return;
    }
    let other = driver.add(tcp().0).unwrap();
    let (tx, mut peer) = tcp();
    let mut socket = driver.add(tx).unwrap();
    let lease = guard.try_lease(0..LEN as u64).unwrap();
    let ticket = socket.queue_lease(&lease, 0..LEN as u64, SendFlags::NONE).unwrap();
    drop(lease);
    driver.submit().unwrap();
    driver.reap().unwrap();
    let shared = Arc::clone(&driver.shared);
    let in_flight = || lock(&shared.state).lanes.iter().any(|(_, lane)| lane.parts > 0);
    assert!(in_flight() && socket.queued() > 0, "nothing is stuck");
    let index = socket.conn.index;
    lose(socket, &other);
    assert!(matches!(guard.try_write_at(b"x", 0), Ok(TryWrite::Blocked(_))));
    let next = driver.add(tcp().0).unwrap();
    assert_ne!(next.conn.index, index, "its place is another's");
    // Bytes are missing, which must not look like the end of everything.
    let reader = std::thread::spawn(move || std::io::copy(&mut peer, &mut std::io::sink()));
    let soon = Instant::now() + Duration::from_secs(30);
    while in_flight() {
        driver.wait(1, soon).unwrap();
        assert!(Instant::now() < soon);
    }
    assert!(reader.join().unwrap().is_err(), "no reset");
    assert_eq!((next.in_flight().sends, next.in_flight().bytes), (0, 0));
    assert!(matches!(ticket.error(), Some(Error::Aborted)));
    assert!(matches!(guard.try_write_at(b"x", 0), Ok(TryWrite::Written)));
    assert_eq!(lock(&driver.shared.state).lanes.len(), 2);
}

/// The kernel notifies also of a send that has failed for want of memory, and frees none by that.
#[test]
fn the_notification_of_a_send_that_failed_makes_no_room() {
    let Ok(driver) = Driver::new() else {
        println!("SKIP: io_uring cannot be used here");
        return;
    };
    let socket = driver.add(tcp().0).unwrap();
    let index = socket.conn.index;
    let part = |accepted| Part {
        lane: index,
        op: Op::Zerocopy,
        range: 0..accepted,
        accepted,
        reports_usage: false,
        guarded: false,
        held: None,
        progress: QueuedProgress::none(),
        at: Instant::now(),
    };
    let mut deferred = Vec::new();
    let mut state = lock(&driver.shared.state);
    let lane = state.lane(index);
    (lane.parts, lane.account.bytes, lane.memlock_blocked) = (2, 5, true);
    state.released(part(0), false, &mut deferred);
    assert!(state.lane(index).memlock_blocked, "it would be sent again at once, for nothing");
    state.released(part(5), false, &mut deferred);
    assert!(!state.lane(index).memlock_blocked);
}

/// A writer comes between the two: the old bytes are not to be sent from pages that it overwrites.
#[test]
fn a_part_that_was_prepared_before_a_writer_came_is_not_asked_for() {
    const LEN: usize = 65_536;
    let Ok(mut driver) = Driver::new() else {
        println!("SKIP: io_uring cannot be used here");
        return;
    };
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[7; LEN]).unwrap();
    let guard = GuardOptions::new().nothing_exposed().guard(file).unwrap();
    let (tx, mut peer) = tcp();
    let mut socket = driver.add(tx).unwrap();
    let index = socket.conn.index;
    let lease = guard.try_lease(0..LEN as u64).unwrap();
    socket.queue_lease(&lease, 0..LEN as u64, SendFlags::NONE).unwrap();
    let mut state = lock(&driver.shared.state);
    // Nobody else begins with it.
    state.ready.clear();
    let job = state.lane(index).queue.front().unwrap();
    let part = job.prepare(&mut None, &mut Vec::new()).unwrap();
    drop(state);
    if guard.try_write_at(&[8; LEN], 0).unwrap() != TryWrite::Written {
        println!("SKIP: temporary files cannot be detached here");
        return;
    }
    let mut state = lock(&driver.shared.state);
    let State { lanes, queues, .. } = &mut *state;
    assert!(lanes[index].ask(queues, index, part));
    assert!(!lanes[index].submitted && queues.is_empty());
    state.ready.push_back(index);
    drop((state, lease));
    driver.submit().unwrap();
    let mut got = vec![0; LEN];
    peer.read_exact(&mut got).unwrap();
    assert!(got == [7; LEN]);
}
