//! What a forked child has of its parent's.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::net::TcpStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use common::{assert_same, deadline, file, pattern, read, source};
use sendfile2::guard::{GuardedFile, TryWrite};
use sendfile2::{Engine, Error, SendBuffer, SendFlags, Sender, Status, Ticket};

const LEN: u64 = 1 << 20;

/// Runs the test `name` in a process of its own, where no other thread has a lock when it forks;
/// `true` for who is inside.
fn alone(name: &str) -> bool {
    if common::role().is_none() {
        common::run_as(&[], name, "alone");
        return false;
    }
    true
}

/// The child in the parent, nothing in the child.
fn fork() -> Option<libc::pid_t> {
    // SAFETY: the other threads of this process only wait, or take locks that the child does without
    // (those of the allocator are libc's to give to it).
    match unsafe { libc::fork() } {
        0 => None,
        child => {
            assert!(child > 0, "{}", std::io::Error::last_os_error());
            Some(child)
        }
    }
}

/// What the child is to do.
fn as_child(what: impl FnOnce()) -> ! {
    let done = catch_unwind(AssertUnwindSafe(what));
    // SAFETY: it ends this process, whose other threads do not exist.
    unsafe { libc::_exit(i32::from(done.is_err())) }
}

/// The child has done all it was to do.
fn succeeded(child: libc::pid_t) {
    let mut status = 0;
    // SAFETY: status is valid for writes.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0, "the child failed");
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, impl Into<Error>>) {
    let error = result.map_err(Into::into).unwrap_err();
    assert!(matches!(error, Error::Forked), "{error:?}");
}

/// A sender of which a send under a lease is in flight, and its notification is there, unread.
fn notified(guard: &GuardedFile) -> (Sender, TcpStream, Ticket) {
    let (tx, mut peer) = common::tcp_on_this_host();
    let mut sender = common::sender(tx, Engine::Zerocopy);
    let lease = guard.try_lease(0..1000).unwrap();
    let sent = sender.send_lease(&lease, 0..1000, SendFlags::NONE, deadline()).unwrap();
    assert_same(&read(&mut peer, 1000), &pattern(1, 0..1000));
    assert_eq!(sent.ticket.status(), Status::InFlight);
    (sender, peer, sent.ticket)
}

/// The parent finds all as it was.
fn assert_untouched(
    guard: &GuardedFile,
    mut sender: Sender,
    peer: &mut TcpStream,
    ticket: &Ticket,
) {
    assert_eq!(ticket.status(), Status::InFlight);
    assert!(matches!(guard.in_flight()[..], [_]));
    ticket.wait_released(deadline()).unwrap();
    guard.write_at(b"x", 0, deadline()).unwrap();
    sender.send(b"next", SendFlags::NONE, deadline()).unwrap();
    assert_same(&read(peer, 4), b"next");
    sender.close(deadline()).unwrap();
    assert!(common::ends(peer), "no end of the stream");
}

#[test]
fn a_child_takes_nothing_of_a_sender_of_its_parents() {
    if !alone("a_child_takes_nothing_of_a_sender_of_its_parents") {
        return;
    }
    let file = file(1, LEN);
    let guard = common::waiting(file.try_clone().unwrap());
    let (mut sender, mut peer, ticket) = notified(&guard);
    let Some(child) = fork() else {
        as_child(move || {
            assert_eq!(ticket.status(), Status::Unknown);
            refused(sender.reap());
            refused(ticket.wait_released(deadline()));
            refused(ticket.wait_acknowledged(deadline()));
            refused(ticket.acknowledgement());
            refused(sender.drain(deadline()));
            refused(sender.try_send(b"x", SendFlags::NONE));
            refused(sender.send(b"x", SendFlags::NONE, deadline()));
            refused(sender.try_send_file(&source(&file), 0..10, SendFlags::NONE));
            refused(sender.try_send_buffer(&mut SendBuffer::new(b"x"), SendFlags::NONE));
            refused(sender.application_sends(|_| -> ((), u32) { unreachable!() }));
            refused(sender.abort());
            refused(sender.shutdown());
            let sendfile2::IntoSocketError { error, sender, .. } =
                sender.into_socket(deadline()).unwrap_err();
            refused::<()>(Err(error));
            refused(sender.close(deadline()));
            drop(guard);
        })
    };
    succeeded(child);
    assert_untouched(&guard, sender, &mut peer, &ticket);
}

#[test]
fn a_child_writes_nothing_and_ends_no_lease_of_its_parents() {
    if !alone("a_child_writes_nothing_and_ends_no_lease_of_its_parents") {
        return;
    }
    let file = file(1, LEN);
    let guard = common::waiting(file.try_clone().unwrap());
    let (sender, mut peer, ticket) = notified(&guard);
    let lease = guard.try_lease(2000..3000).unwrap();
    let Some(child) = fork() else {
        as_child(move || {
            for at in [0, 2000, 4000] {
                refused(guard.try_write_at(b"y", at));
                refused(guard.write_at(b"y", at, deadline()));
                refused(guard.write_at_abort(b"y", at, Instant::now()));
            }
            refused(guard.set_len(0, deadline()));
            refused(guard.punch_hole(0..10, deadline()));
            refused(guard.lease(5000..6000, deadline()));
            assert!(guard.try_lease(5000..6000).is_none());
            // Its own things are its own, of the same file, too.
            let (tx, _rx) = common::tcp_on_this_host();
            let mut own = common::sender(tx, Engine::Zerocopy);
            refused(own.try_send_lease(&lease, 2000..2010, SendFlags::NONE));
            let own_guard = common::waiting(file);
            let own_lease = own_guard.lease(2000..3000, deadline()).unwrap();
            own.send_lease(&own_lease, 2000..3000, SendFlags::NONE, deadline()).unwrap();
            drop((own_lease, lease));
            own_guard.write_at(b"", 2000, deadline()).unwrap();
            drop((sender, guard));
        })
    };
    succeeded(child);
    assert!(matches!(guard.try_write_at(b"x", 2000), Ok(TryWrite::Blocked(_))));
    drop(lease);
    assert_untouched(&guard, sender, &mut peer, &ticket);
}

#[test]
fn a_child_keeps_out_of_an_exclusive_range() {
    if !alone("a_child_keeps_out_of_an_exclusive_range") {
        return;
    }
    let guard = common::waiting(file(1, LEN));
    let write = guard.write_with(0..10, deadline(), |range| {
        let Some(child) = fork() else { as_child(|| refused(range.write_at(b"y", 0))) };
        succeeded(child);
        range.write_at(b"x", 0)
    });
    write.unwrap();
}

#[test]
fn a_child_takes_nothing_of_a_ring_of_its_parents() {
    if !alone("a_child_takes_nothing_of_a_ring_of_its_parents") {
        return;
    }
    if !common::has_uring() {
        return;
    }
    let file = file(1, 4 << 20);
    let guard = common::waiting(file.try_clone().unwrap());
    let mut driver = sendfile2::uring::Driver::new().unwrap();
    let (tx, mut peer) = common::tcp_small_window();
    let mut socket = driver.add(tx).unwrap();
    let lease = guard.try_lease(0..4 << 20).unwrap();
    let ticket = socket.queue_lease(&lease, 0..4 << 20, SendFlags::NONE).unwrap();
    drop(lease);
    driver.submit().unwrap();
    assert_eq!(ticket.status(), Status::InFlight);
    // Nothing is under way on it.
    let idle = driver.add(common::tcp().0).unwrap();
    let Some(child) = fork() else {
        as_child(move || {
            assert_eq!(ticket.status(), Status::Unknown);
            refused(driver.reap());
            refused(driver.submit());
            refused(driver.wait(1, deadline()));
            refused(driver.add(common::tcp().0));
            refused(ticket.wait_accepted(deadline()));
            refused(ticket.wait_released(deadline()));
            refused(ticket.wait_acknowledged(deadline()));
            refused(ticket.acknowledgement());
            refused(socket.queue_bytes(&b"x"[..], SendFlags::NONE));
            refused(socket.queue_file(&source(&file), 0..10, SendFlags::NONE));
            refused(socket.abort());
            refused(socket.drain(deadline()));
            socket.shutdown();
            refused(guard.write_at_abort(b"y", 0, Instant::now()));
            refused(socket.close(deadline()));
            drop((idle, driver, guard));
        })
    };
    succeeded(child);
    let reader = std::thread::spawn(move || {
        assert_same(&read(&mut peer, 4 << 20), &pattern(1, 0..4 << 20));
        assert_same(&read(&mut peer, 4), b"next");
    });
    ticket.wait_released(deadline()).unwrap();
    guard.write_at(b"x", 0, deadline()).unwrap();
    socket.queue_bytes(&b"next"[..], SendFlags::NONE).unwrap().wait_released(deadline()).unwrap();
    reader.join().unwrap();
    drop(idle);
}

/// What a child drops, nobody else waits for in the parent's epoll instances any less.
#[test]
fn a_socket_that_a_child_drops_still_waits_for_room_in_the_parent() {
    if !alone("a_socket_that_a_child_drops_still_waits_for_room_in_the_parent") {
        return;
    }
    if !common::has_uring() {
        return;
    }
    let source = source(&file(1, 4 << 20));
    let driver = sendfile2::uring::Driver::new().unwrap();
    let (tx, mut peer) = common::tcp_small_window();
    let mut socket = driver.add(tx).unwrap();
    let Some(child) = fork() else { as_child(move || drop(socket)) };
    succeeded(child);
    let ticket = socket.queue_file(&source, 0..4 << 20, SendFlags::NONE).unwrap();
    let reader = std::thread::spawn(move || {
        assert_same(&read(&mut peer, 4 << 20), &pattern(1, 0..4 << 20));
    });
    ticket.wait_released(deadline()).unwrap();
    reader.join().unwrap();
}

#[cfg(feature = "tokio")]
#[test]
fn no_task_of_a_child_takes_anything_of_its_parents() {
    if !alone("no_task_of_a_child_takes_anything_of_its_parents") {
        return;
    }
    let file = file(1, LEN);
    let guard = common::waiting(file);
    let (sender, mut peer, ticket) = notified(&guard);
    let Some(child) = fork() else {
        as_child(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                refused(ticket.released().await);
                refused(ticket.acknowledged().await);
                refused(guard.write_at_async(b"y", 0).await);
                refused(guard.write_at_abort_async(b"y", 0, Instant::now()).await);
                refused(guard.exclusive_async(0..10).await);
                refused(guard.lease_async(5000..6000).await);
            });
        })
    };
    succeeded(child);
    assert_untouched(&guard, sender, &mut peer, &ticket);
}

/// Other threads have the library's locks when it forks: what only looks waits for none of them.
#[test]
fn a_child_looks_without_the_locks_of_its_parents_threads() {
    if !alone("a_child_looks_without_the_locks_of_its_parents_threads") {
        return;
    }
    let guard = GuardedFile::new(file(1, LEN)).unwrap();
    let (sender, mut peer, ticket) = notified(&guard);
    let driver = common::has_uring().then(|| sendfile2::uring::Driver::new().unwrap());
    let socket = driver.as_ref().map(|driver| driver.add(common::tcp_on_this_host().0).unwrap());
    let look = || {
        let mut seen = format!("{sender:?} {ticket:?} {guard:?} {driver:?} {socket:?}").len();
        seen += sender.in_flight().sends + sender.counters().accepted as usize;
        seen += guard.in_flight().len() + guard.writers() + guard.exposed().len();
        seen += driver.as_ref().map_or(0, sendfile2::uring::Driver::under_way);
        if let Some(socket) = &socket {
            seen += socket.queued() as usize + socket.in_flight().sends;
            seen += socket.counters().accepted as usize;
        }
        seen
    };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = common::SetOnDrop(&stop);
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::black_box(look());
                }
            });
        }
        for _ in 0..300 {
            let Some(child) = fork() else {
                // SAFETY: it only ends this process, should it wait for ever.
                unsafe { libc::alarm(20) };
                as_child(|| {
                    assert!(look() > 0);
                    assert_eq!(sender.in_flight().sends, 0);
                    refused(sender.choice(1000));
                    refused(sender.drain(deadline()));
                })
            };
            succeeded(child);
        }
    });
    drop((socket, driver));
    assert_untouched(&guard, sender, &mut peer, &ticket);
}

/// A child of a child, and a second child, are told from each other as well.
#[test]
fn a_child_of_a_child_takes_nothing_of_either() {
    if !alone("a_child_of_a_child_takes_nothing_of_either") {
        return;
    }
    let guard = common::waiting(file(1, LEN));
    let (sender, mut peer, ticket) = notified(&guard);
    for _ in 0..2 {
        let Some(child) = fork() else {
            as_child(|| {
                let own = common::waiting(file(1, LEN));
                let (own_sender, mut own_peer, own_ticket) = notified(&own);
                let Some(child) = fork() else {
                    as_child(|| {
                        refused(sender.reap());
                        refused(own_sender.reap());
                        refused(guard.try_write_at(b"y", 0));
                        refused(own.try_write_at(b"y", 0));
                    })
                };
                succeeded(child);
                refused(sender.reap());
                assert_untouched(&own, own_sender, &mut own_peer, &own_ticket);
            })
        };
        succeeded(child);
    }
    assert_untouched(&guard, sender, &mut peer, &ticket);
}
