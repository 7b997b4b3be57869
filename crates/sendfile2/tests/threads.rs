//! Several threads at one connection.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::sync::mpsc;

use common::{assert_same, deadline, file, pattern, read, sender, source};
use sendfile2::{Engine, SendFlags, Status};

/// On loopback the notification arrives before `send` has returned. Two threads reap all the
/// time; none may see an id that is not recorded yet, and each ticket is released.
#[test]
fn two_threads_reap_while_a_third_sends() {
    const SENDS: u64 = 20_000;
    let (tx, mut rx) = common::tcp();
    let mut sender = sender(tx, Engine::Zerocopy);
    let file = file(1, 1 << 20);
    let source = source(&file);
    let reader = std::thread::spawn(move || {
        for i in 0..SENDS {
            let at = (i * 61) % 900_000;
            assert_same(&read(&mut rx, 512), &pattern(1, at..at + 512));
        }
    });
    let (to_a, a) = mpsc::channel::<sendfile2::Ticket>();
    let (to_b, b) = mpsc::channel::<sendfile2::Ticket>();
    let waiters = [a, b].map(|tickets| {
        std::thread::spawn(move || {
            let mut released = 0;
            for ticket in tickets {
                ticket.wait_released(deadline()).unwrap();
                assert!(matches!(ticket.status(), Status::Released(_)));
                released += 1;
            }
            released
        })
    });
    for i in 0..SENDS {
        let at = (i * 61) % 900_000;
        let sent = sender.send_file(&source, at..at + 512, SendFlags::NONE, deadline()).unwrap();
        let to = if i % 2 == 0 { &to_a } else { &to_b };
        to.send(sent.ticket).unwrap();
    }
    drop((to_a, to_b));
    let released: u64 = waiters.map(|w| w.join().unwrap()).iter().sum();
    assert_eq!(released, SENDS);
    sender.drain(deadline()).unwrap();
    // A send that meets a full socket is made in several parts.
    assert!(sender.counters().released >= SENDS);
    reader.join().unwrap();
}

/// A thread that sleeps in its wait is woken when another one reads the notification.
#[test]
fn whoever_reaps_wakes_the_others() {
    for _ in 0..50 {
        let (tx, mut rx) = common::tcp_small_window();
        let mut sender = sender(tx, Engine::Zerocopy);
        let file = file(1, 1 << 20);
        let (tickets, sent) = common::fill(&mut sender, &source(&file));
        std::thread::scope(|scope| {
            for ticket in tickets.iter().cycle().take(4) {
                scope.spawn(|| ticket.wait_released(deadline()).unwrap());
            }
            scope.spawn(|| {
                while sender.in_flight().sends > 0 {
                    sender.reap().unwrap();
                }
            });
            assert_same(&read(&mut rx, sent as usize), &pattern(1, 0..sent));
        });
    }
}

/// The descriptors are exhausted when the sender is dropped: the hand-over needs none.
#[test]
fn a_hand_over_needs_no_descriptor() {
    let name = "a_hand_over_needs_no_descriptor";
    if common::role().is_none() {
        return common::run_as(&["prlimit", "--nofile=64:64"], name, "limited");
    }
    let (tx, mut rx) = common::tcp_small_window();
    let mut sender = sender(tx, Engine::Zerocopy);
    let file = file(1, 1 << 20);
    let (tickets, sent) = common::fill(&mut sender, &source(&file));
    let mut all = Vec::new();
    while let Ok(one) = std::fs::File::open("/dev/null") {
        all.push(one);
    }
    drop(sender);
    let got = read(&mut rx, sent as usize);
    assert_same(&got, &pattern(1, 0..sent));
    let end = std::io::Read::read(&mut rx, &mut [0]).unwrap();
    assert_eq!(end, 0, "no end of the stream");
    sendfile2::reaper::drain(deadline()).unwrap();
    assert!(matches!(tickets.last().unwrap().status(), Status::Released(_)));
}

/// Does as it is told when its thread's variables are destroyed: after those that were used later.
struct AtTheEnd(std::cell::RefCell<Option<Box<dyn FnOnce()>>>);

impl Drop for AtTheEnd {
    fn drop(&mut self) {
        self.0.take().into_iter().for_each(|end| end());
    }
}

thread_local! {
    static AT_THE_END: AtTheEnd = const { AtTheEnd(std::cell::RefCell::new(None)) };
}

/// What waits while a thread ends finds the place gone where the thread has waited before.
#[test]
fn it_can_be_waited_while_a_thread_ends() {
    let (tell, told) = mpsc::channel();
    let file = file(1, 1 << 20);
    let guard = common::waiting(file.try_clone().unwrap());
    let (tx, mut rx) = common::tcp_small_window();
    let mut sender = sender(tx, Engine::Zerocopy);
    let (tickets, sent) = common::fill(&mut sender, &source(&file));
    let ending = std::thread::spawn(move || {
        let end_of = guard.clone();
        AT_THE_END.with(|end| {
            *end.0.borrow_mut() = Some(Box::new(move || {
                tickets.last().unwrap().wait_released(deadline()).unwrap();
                let lease = end_of.try_lease(0..10).unwrap();
                // Its own: nobody counts any more whose it is.
                end_of.write_at(b"x", 0, std::time::Instant::now()).unwrap_err();
                drop(lease);
                end_of.lease(0..10, deadline()).unwrap();
                end_of.write_at(b"x", 0, deadline()).unwrap();
                sender.close(deadline()).unwrap();
                tell.send("done").unwrap();
            }));
        });
        // From here on the thread has both.
        drop(guard.lease(0..10, deadline()).unwrap());
        let lease = guard.try_lease(0..10).unwrap();
        guard.write_at(b"x", 0, deadline()).unwrap_err();
        drop(lease);
    });
    assert_same(&read(&mut rx, sent as usize), &pattern(1, 0..sent));
    ending.join().unwrap();
    assert_eq!(told.recv(), Ok("done"));
}
