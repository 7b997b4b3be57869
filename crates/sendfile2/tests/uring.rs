//! The driver: many sends on many sockets by one ring.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::fs::File;
use std::io::Read;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use common::{assert_same, deadline, file, overwrite, pattern, read, source, wrong};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::sockopt;
use sendfile2::Ticket;
use sendfile2::guard::{GuardedFile, TryWrite};
use sendfile2::uring::{Driver, Socket};
use sendfile2::{
    Acknowledgement, Engine, Error, Options, Refusal, SendFlags, Sender, Source, Status, reaper,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

const LEN: u64 = 4 << 20;

fn guarded(file: &File) -> GuardedFile {
    common::waiting(file.try_clone().unwrap())
}

/// As much of the file as the socket takes is in flight and stuck, under a lease; the rest waits.
fn stuck(driver: &mut Driver, guard: &GuardedFile) -> (Socket, TcpStream, Ticket) {
    let (tx, peer) = common::tcp_small_window();
    let mut socket = driver.add(tx).unwrap();
    let lease = guard.try_lease(0..LEN).unwrap();
    let ticket = socket.queue_lease(&lease, 0..LEN, SendFlags::NONE).unwrap();
    driver.submit().unwrap();
    assert_eq!(ticket.status(), Status::InFlight);
    (socket, peer, ticket)
}

#[test]
fn with_every_socket_full_each_peer_gets_its_bytes_in_order() {
    const SOCKETS: usize = 32;
    const SENDS: u64 = 40;
    const SEND: u64 = 64 << 10;
    if !common::has_uring() {
        return;
    }
    let file = file(1, SEND * SENDS);
    let source = source(&file);
    let mut driver = Driver::new().unwrap();
    let (mut sockets, mut readers, mut tickets) = (Vec::new(), Vec::new(), Vec::new());
    let begin = std::sync::Arc::new(std::sync::Barrier::new(SOCKETS + 1));
    for i in 0..SOCKETS {
        let (tx, mut rx) = common::tcp_small_window();
        sockets.push(driver.add(tx).unwrap());
        let begin = std::sync::Arc::clone(&begin);
        readers.push(std::thread::spawn(move || {
            begin.wait();
            for n in 0..SENDS {
                // Each peer gets them in an order of its own.
                let at = (n * 7 + i as u64) % SENDS * SEND;
                assert_same(&read(&mut rx, SEND as usize), &pattern(1, at..at + SEND));
            }
            assert!(common::ends(&mut rx));
        }));
    }
    for n in 0..SENDS {
        for (i, socket) in sockets.iter_mut().enumerate() {
            let at = (n * 7 + i as u64) % SENDS * SEND;
            tickets.push(
                socket
                    .queue_file(&source, at..at + SEND, SendFlags::NONE.with_more(n + 1 < SENDS))
                    .unwrap(),
            );
        }
        driver.wait(1, Instant::now()).unwrap();
    }
    // 2.5 MiB each: more than the buffers take.
    for socket in &sockets {
        let in_flight = socket.in_flight();
        // Over a network device some of it may have been released by now.
        let some = SEND..=SEND * SENDS;
        assert!(socket.queued() > 0 && some.contains(&in_flight.bytes), "{in_flight:?}");
    }
    begin.wait();
    let mut completions = 0;
    while tickets.iter().any(|t| !matches!(t.status(), Status::Released(_))) {
        completions += driver.wait(SOCKETS, deadline()).unwrap();
    }
    // A result and a notification each; parts that waited for room may be several.
    assert!(completions > 0, "{completions}");
    for (i, socket) in sockets.into_iter().enumerate() {
        let counters = socket.counters();
        assert_eq!(counters.accepted, SEND * SENDS);
        // Not of those that were copied where RLIMIT_MEMLOCK was in the way.
        let its = tickets.iter().skip(i).step_by(SOCKETS);
        let copies = its.filter(|ticket| ticket.choice().engine == Engine::Copy).count() as u64;
        assert!(counters.released >= SENDS - copies, "{counters:?}, {copies} copies");
        assert_eq!(socket.in_flight(), sendfile2::InFlight::default());
        socket.close(deadline()).unwrap();
    }
    for reader in readers {
        reader.join().unwrap();
    }
    for ticket in tickets {
        assert_eq!(ticket.bytes(), SEND);
        assert!(ticket.error().is_none());
    }
}

#[test]
fn headers_leases_and_files_of_many_parts_arrive_in_the_order_of_the_queue() {
    if !common::has_uring() {
        return;
    }
    let file = file(1, LEN);
    let (guard, source) = (guarded(&file), source(&file));
    let driver = Driver::new().unwrap();
    let (tx, mut rx) = common::tcp_small_window();
    let mut socket = driver.add(tx).unwrap();
    let lease = guard.try_lease([100..5000, 8192..LEN - 1]).unwrap();
    let mut tickets = vec![
        socket.queue_bytes(&b"header"[..], SendFlags::MORE).unwrap(),
        socket.queue_lease(&lease, 100..5000, SendFlags::MORE).unwrap(),
        // Four parts.
        socket.queue_lease(&lease, 8192..LEN - 1, SendFlags::NONE).unwrap(),
        socket.queue_file(&source, 0..0, SendFlags::NONE).unwrap(),
        socket.queue_bytes(vec![7; 3 << 20], SendFlags::NONE).unwrap(),
    ];
    drop(lease);
    tickets.push(socket.queue_file(&source, 1..2, SendFlags::NONE).unwrap());
    let expected = [
        &b"header"[..],
        &pattern(1, 100..5000),
        &pattern(1, 8192..LEN - 1),
        &[7; 3 << 20],
        &pattern(1, 1..2),
    ]
    .concat();
    let len = expected.len();
    let reader = std::thread::spawn(move || (read(&mut rx, len), rx));
    for ticket in &tickets {
        ticket.wait_released(deadline()).unwrap();
    }
    let (got, _rx) = reader.join().unwrap();
    assert_same(&got, &expected);
    let error =
        socket.queue_lease(&guard.try_lease(0..10).unwrap(), 5..11, SendFlags::NONE).unwrap_err();
    assert!(matches!(error, Error::NotLeased { .. }), "{error}");
}

#[test]
fn a_writer_waits_until_the_kernel_has_let_go_and_needs_nobody_else_to_read() {
    if !common::has_uring() {
        return;
    }
    let file = file(1, LEN);
    let guard = guarded(&file);
    let mut driver = Driver::new().unwrap();
    let (_socket, mut peer, ticket) = stuck(&mut driver, &guard);
    let error = guard.write_at(b"x", 0, Instant::now()).unwrap_err();
    assert!(matches!(error, Error::Deadline(_)), "{error}");
    let reader = std::thread::spawn(move || read(&mut peer, LEN as usize));
    // Also what is queued still is sent by this wait.
    guard.write_at(&pattern(!1, 0..LEN), 0, deadline()).unwrap();
    assert!(matches!(ticket.status(), Status::Released(_)));
    assert_same(&reader.join().unwrap(), &pattern(1, 0..LEN));
}

/// The control: overwritten when the kernel has accepted it, a range arrives wrong.
#[test]
fn control_overwritten_at_the_result_it_arrives_wrong() {
    if !common::has_uring() {
        return;
    }
    let file = file(1, LEN);
    let source = source(&file);
    let mut driver = Driver::new().unwrap();
    let (tx, mut peer) = common::tcp_small_window();
    let mut socket = driver.add(tx).unwrap();
    // As much as is accepted without anybody reading.
    let mut last = None;
    for at in (0..LEN).step_by(64 << 10) {
        let ticket = socket.queue_file(&source, at..at + (64 << 10), SendFlags::NONE).unwrap();
        driver.submit().unwrap();
        driver.reap().unwrap();
        if ticket.wait_accepted(Instant::now()).is_err() {
            break;
        }
        last = Some(ticket);
    }
    let accepted = socket.counters().accepted;
    let last = last.unwrap();
    assert!(accepted > 0 && last.status() == Status::InFlight);
    overwrite(&file, &pattern(!1, 0..LEN));
    let got = read(&mut peer, accepted as usize);
    assert!(wrong(&got, &pattern(1, 0..accepted)) > 0, "an accepted range looks free here");
}

#[test]
fn the_lease_outlives_its_handle_the_ticket_the_socket_and_the_driver() {
    if !common::has_uring() {
        return;
    }
    let file = file(1, LEN);
    let guard = guarded(&file);
    let mut driver = Driver::new().unwrap();
    let (socket, mut peer, ticket) = stuck(&mut driver, &guard);
    drop((socket, driver));
    assert_eq!(ticket.status(), Status::Unknown);
    drop(ticket);
    assert!(reaper::pending().sends > 0);
    let TryWrite::Blocked(leases) = guard.try_write_at(b"x", 5).unwrap() else {
        panic!("written over a lease")
    };
    assert_eq!(leases[0].peers, [peer.local_addr().unwrap()]);
    assert_same(&read(&mut peer, LEN as usize), &pattern(1, 0..LEN));
    assert!(common::ends(&mut peer), "no end of the stream");
    guard.write_at(b"x", 5, deadline()).unwrap();
    assert_eq!(guard.in_flight(), []);
}

#[test]
fn what_a_thread_submitted_is_sent_also_when_it_has_ended() {
    if !common::has_uring() {
        return;
    }
    let file = file(1, LEN);
    let guard = guarded(&file);
    let (socket, mut peer, ticket) = std::thread::scope(|scope| {
        let submit = || stuck(&mut Driver::new().unwrap(), &guard);
        scope.spawn(submit).join().unwrap()
    });
    // The kernel cancels what the thread had submitted and still waits, when there is room for it.
    let reader = std::thread::spawn(move || {
        assert_same(&read(&mut peer, LEN as usize), &pattern(1, 0..LEN));
        peer
    });
    ticket.wait_released(deadline()).unwrap();
    reader.join().unwrap();
    assert_eq!(socket.counters().accepted, LEN);
}

#[test]
fn what_is_left_after_the_limit_is_aborted_and_drains() {
    if !common::has_uring() {
        return;
    }
    let file = file(1, LEN);
    let guard = guarded(&file);
    let mut driver = Driver::new().unwrap();
    let (mut socket, mut peer, ticket) = stuck(&mut driver, &guard);
    socket.set_linger(Duration::ZERO);
    drop(socket);
    ticket.wait_released(deadline()).unwrap();
    assert!(matches!(ticket.error(), Some(Error::Aborted)), "{ticket:?}");
    let mut got = Vec::new();
    peer.read_to_end(&mut got).expect_err("the peer sees a reset");
    assert_same(&got, &pattern(1, 0..got.len() as u64));
    guard.write_at(b"x", 0, deadline()).unwrap();
}

#[test]
fn a_limit_that_no_clock_counts_is_none() {
    if !common::has_uring() {
        return;
    }
    let file = file(1, LEN);
    let guard = guarded(&file);
    let mut driver = Driver::new().unwrap();
    let (mut socket, mut peer, _) = stuck(&mut driver, &guard);
    socket.set_linger(Duration::MAX);
    let drop_it = std::panic::AssertUnwindSafe(|| drop(socket));
    let dropped = std::panic::catch_unwind(drop_it);
    let way = guard.try_write_at(&pattern(!1, 0..LEN), 0).unwrap();
    assert!(matches!(way, TryWrite::Blocked(_)), "a writer was let through");
    let next = driver.add(common::tcp().0).unwrap();
    assert_same(&read(&mut peer, LEN as usize), &pattern(1, 0..LEN));
    guard.write_at(b"x", 0, deadline()).unwrap();
    assert_eq!(next.in_flight().sends, 0);
    assert!(dropped.is_ok(), "it panicked");
}

#[test]
fn what_an_application_sets_of_so_linger_meanwhile_stays() {
    if !common::has_uring() {
        return;
    }
    let file = file(1, LEN);
    let guard = guarded(&file);
    let mut driver = Driver::new().unwrap();
    let (socket, mut peer, ticket) = stuck(&mut driver, &guard);
    assert_eq!(sockopt::socket_linger(&socket).unwrap(), Some(Duration::ZERO));
    let theirs = Some(Duration::from_secs(7));
    sockopt::set_socket_linger(&socket, theirs).unwrap();
    let reader = std::thread::spawn(move || read(&mut peer, LEN as usize));
    ticket.wait_released(deadline()).unwrap();
    reader.join().unwrap();
    assert_eq!(sockopt::socket_linger(&socket).unwrap(), theirs);
}

#[test]
fn an_abort_for_a_writer_ends_only_the_connection_in_its_way() {
    if !common::has_uring() {
        return;
    }
    let (file, other) = (file(1, LEN), common::file(2, LEN));
    let (guard, other) = (guarded(&file), guarded(&other));
    let mut driver = Driver::new().unwrap();
    let (_in_the_way, mut reset, aborted) = stuck(&mut driver, &guard);
    let (_socket, mut peer, ticket) = stuck(&mut driver, &other);
    guard.write_at_abort(&pattern(!1, 0..LEN), 0, Instant::now()).unwrap();
    assert_eq!(guard.counters().aborts, 1);
    assert!(matches!(aborted.error(), Some(Error::Aborted)));
    let mut got = Vec::new();
    reset.read_to_end(&mut got).expect_err("the peer sees a reset");
    assert_same(&got, &pattern(1, 0..got.len() as u64));
    // The other one has the same ring, and all of its bytes.
    let reader = std::thread::spawn(move || read(&mut peer, LEN as usize));
    ticket.wait_released(deadline()).unwrap();
    assert_same(&reader.join().unwrap(), &pattern(2, 0..LEN));
}

#[test]
fn a_reset_by_the_peer_ends_what_is_queued_and_releases_what_is_in_flight() {
    if !common::has_uring() {
        return;
    }
    let file = file(1, LEN);
    let guard = guarded(&file);
    let mut driver = Driver::new().unwrap();
    let (mut socket, peer, first) = stuck(&mut driver, &guard);
    let behind = socket.queue_file(guard.source(), 0..10, SendFlags::NONE).unwrap();
    common::reset(peer);
    for ticket in [&first, &behind] {
        ticket.wait_released(deadline()).unwrap();
        let error = ticket.wait_accepted(deadline()).unwrap_err();
        assert!(matches!(error, Error::Socket { .. }), "{error}");
        assert_eq!(ticket.acknowledgement().unwrap(), Acknowledgement::Unknowable);
    }
    let error = socket.queue_bytes(&b"more"[..], SendFlags::NONE).unwrap_err();
    assert!(matches!(error, Error::Socket { .. }), "{error}");
    assert_eq!(guard.in_flight(), []);
}

#[test]
fn where_a_send_ends_early_nothing_behind_it_is_sent_and_the_peer_sees_a_reset() {
    if !common::has_uring() {
        return;
    }
    let short = file(1, 10_000);
    let source = source(&short);
    let driver = Driver::new().unwrap();
    let (tx, mut rx) = common::tcp();
    let mut socket = driver.add(tx).unwrap();
    let early = socket.queue_file(&source, 0..20_000, SendFlags::NONE).unwrap();
    let behind = socket.queue_bytes(&b"behind"[..], SendFlags::NONE).unwrap();
    for ticket in [&early, &behind] {
        let error = ticket.wait_accepted(deadline()).unwrap_err();
        assert!(matches!(error, Error::Truncated { at: 10_000, .. }), "{error}");
    }
    assert_eq!((early.bytes(), behind.bytes()), (10_000, 0));
    assert_same(&read(&mut rx, 10_000), &pattern(1, 0..10_000));
    drop(socket);
    rx.read(&mut [0]).expect_err("it looks like all there was");
}

#[test]
fn what_it_cannot_serve_is_refused() {
    if !common::has_uring() {
        return;
    }
    let file = file(1, 100);
    let mut driver = Driver::new().unwrap();
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let error = driver.add(udp).unwrap_err();
    assert!(matches!(error, Error::Refused { engine: Engine::Uring, .. }), "{error}");

    // The kernel's EOPNOTSUPP, which announces a notification.
    let (unix, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut socket = driver.add(unix).unwrap();
    let ticket = socket.queue_file(&source(&file), 0..100, SendFlags::NONE).unwrap();
    driver.wait(2, deadline()).unwrap();
    let error = ticket.wait_accepted(deadline()).unwrap_err();
    let Error::Refused { reason: Refusal::NotSupported, .. } = error else { panic!("{error}") };
    ticket.wait_released(deadline()).unwrap();

    let (tx, _rx) = common::tcp();
    let proc = Source::open("/proc/self/maps").unwrap();
    let mut socket = driver.add(tx.try_clone().unwrap()).unwrap();
    let error = socket.queue_file(&proc, 0..100, SendFlags::NONE).unwrap_err();
    assert!(matches!(error, Error::Refused { reason: Refusal::File(_), .. }), "{error}");

    let error = Sender::new(tx.try_clone().unwrap()).unwrap_err();
    assert!(matches!(error, Error::AlreadyOwned { .. }), "{error}");
    drop(socket);
    let error = Sender::with(tx, Options::new().engine(Engine::Uring)).unwrap_err();
    assert!(matches!(error, Error::Refused { reason: Refusal::Driver, .. }), "{error}");
}

#[test]
fn released_and_acknowledged_are_separate() {
    if !common::has_uring() {
        return;
    }
    let file = file(1, LEN);
    let mut driver = Driver::new().unwrap();
    let (tx, mut rx) = common::tcp_small_window();
    let mut socket = driver.add(tx).unwrap();
    let ticket = socket.queue_file(&source(&file), 0..LEN, SendFlags::NONE).unwrap();
    assert_eq!(ticket.acknowledgement().unwrap(), Acknowledgement::Pending);
    driver.submit().unwrap();
    assert_eq!(ticket.acknowledgement().unwrap(), Acknowledgement::Pending);
    let reader = std::thread::spawn(move || (read(&mut rx, LEN as usize), rx));
    ticket.wait_released(deadline()).unwrap();
    let (_, _rx) = reader.join().unwrap();
    // Everything was read, so everything was acknowledged.
    assert_eq!(ticket.wait_acknowledged(deadline()).unwrap(), Acknowledgement::Acknowledged);
    socket.abort().unwrap();
    drop(socket);
    assert_eq!(ticket.acknowledgement().unwrap(), Acknowledgement::Acknowledged, "latched");
}

#[test]
fn leased_sends_die_with_the_process() {
    if !common::has_uring() {
        return;
    }
    let file = file(1, LEN);
    let guard = guarded(&file);
    let mut driver = Driver::new().unwrap();
    let (socket, mut peer, _) = stuck(&mut driver, &guard);
    assert_eq!(sockopt::socket_linger(&socket).unwrap(), Some(Duration::ZERO));
    let reader = std::thread::spawn(move || (read(&mut peer, LEN as usize), peer));
    socket.drain(deadline()).unwrap();
    reader.join().unwrap();
    assert_eq!(sockopt::socket_linger(&socket).unwrap(), None);
}

#[test]
fn threads_that_wait_for_tickets_take_nothing_from_who_counts_completions() {
    if !common::has_uring() {
        return;
    }
    const SENDS: usize = 200;
    let file = file(1, LEN);
    let source = source(&file);
    let mut driver = Driver::new().unwrap();
    let (tx, mut rx) = common::tcp();
    let mut socket = driver.add(tx).unwrap();
    let total = SENDS * 10_000;
    std::thread::scope(|scope| {
        scope.spawn(move || read(&mut rx, total));
        for _ in 0..SENDS {
            let ticket = socket.queue_file(&source, 0..10_000, SendFlags::NONE).unwrap();
            let waiter = ticket.clone();
            let waiting = scope.spawn(move || waiter.wait_released(deadline()).unwrap());
            // Both completions, whoever reads them: a hang fails the other wait's deadline.
            let until = deadline();
            while !matches!(ticket.status(), Status::Released(_)) {
                assert!(Instant::now() < until, "completions were lost");
                driver.wait(2, until).unwrap();
            }
            waiting.join().unwrap();
        }
    });
}

#[test]
fn more_sends_than_the_ring_has_room_for_are_all_made() {
    if !common::has_uring() {
        return;
    }
    let file = file(1, 4096);
    let source = source(&file);
    let mut driver = Driver::new().unwrap();
    let pairs: Vec<_> = (0..200).map(|_| common::tcp()).collect();
    let (mut sockets, mut peers) = (Vec::new(), Vec::new());
    for (tx, rx) in pairs {
        sockets.push(driver.add(tx).unwrap());
        peers.push(rx);
    }
    for _ in 0..10 {
        for socket in &mut sockets {
            socket.queue_file(&source, 0..4096, SendFlags::NONE).unwrap();
        }
    }
    driver.submit().unwrap();
    for (socket, mut peer) in sockets.into_iter().zip(peers) {
        socket.close(deadline()).unwrap();
        let mut got = Vec::new();
        peer.read_to_end(&mut got).unwrap();
        assert_same(&got, &pattern(1, 0..4096).repeat(10));
    }
}

/// A ring takes the pages of what is queued when it pleases: its leases are waited for, also where
/// a file detaches.
#[test]
fn a_writer_waits_for_what_a_ring_has_queued() {
    if !common::has_uring() {
        return;
    }
    let guard = GuardedFile::new(file(1, LEN)).unwrap();
    let (tx, mut peer) = common::tcp_small_window_on_this_host();
    let mut driver = Driver::new().unwrap();
    let mut socket = driver.add(tx).unwrap();
    let lease = guard.try_lease(0..LEN).unwrap();
    let ticket = socket.queue_lease(&lease, 0..LEN, SendFlags::NONE).unwrap();
    drop(lease);
    driver.submit().unwrap();
    let tried = guard.try_write_at(&pattern(!1, 0..LEN), 0).unwrap();
    assert!(matches!(tried, TryWrite::Blocked(_)), "{tried:?}");
    let reading = std::thread::spawn(move || read(&mut peer, LEN as usize));
    ticket.wait_released(deadline()).unwrap();
    guard.write_at(&pattern(!1, 0..LEN), 0, deadline()).unwrap();
    assert_same(&reading.join().unwrap(), &pattern(1, 0..LEN));
}

#[test]
fn an_event_loop_drives_it_by_the_rings_descriptor() {
    if !common::has_uring() {
        return;
    }
    let file = file(1, LEN);
    let source = source(&file);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    runtime.block_on(async {
        let mut driver = Driver::new().unwrap();
        let ring = driver.as_fd().try_clone_to_owned().unwrap();
        #[allow(deprecated, reason = "unsound for what may be closed early; this is an OwnedFd")]
        let ring = AsyncFd::with_interest(ring, Interest::READABLE).unwrap();
        let (mut sockets, mut readers, mut tickets) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..4 {
            let (tx, mut rx) = common::tcp_small_window();
            let mut socket = driver.add(tx).unwrap();
            readers.push(std::thread::spawn(move || read(&mut rx, LEN as usize)));
            tickets.push(socket.queue_file(&source, 0..LEN, SendFlags::NONE).unwrap());
            sockets.push(socket);
        }
        driver.submit().unwrap();
        while driver.under_way() > 0 {
            // Cleared first: what comes while it is read makes it ready again.
            ring.readable().await.unwrap().clear_ready();
            driver.reap().unwrap();
        }
        for (ticket, reader) in tickets.iter().zip(readers) {
            assert!(matches!(ticket.status(), Status::Released(_)), "{ticket:?}");
            assert_same(&reader.join().unwrap(), &pattern(1, 0..LEN));
        }
        for socket in &sockets {
            let mut watched = [PollFd::new(socket, PollFlags::OUT)];
            poll(&mut watched, None).unwrap();
            assert_eq!(watched[0].revents(), PollFlags::OUT, "something on the error queue");
        }
    });
}
