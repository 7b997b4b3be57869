//! Ids: each is given out once, whichever calls take ids at the same time.

use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::SendFlags;
use rustix::net::sockopt::set_socket_send_buffer_size;
use sendfile2_sys::socket::unacknowledged;
use series_tests::{Ids, Via, asleep, drain, file, piped, send, series, wait};

const MSG_ZEROCOPY: SendFlags = SendFlags::from_bits_retain(0x400_0000);

/// Calls `call` until it has sent so often; returns how often.
fn repeat(calls: usize, mut call: impl FnMut() -> Result<usize, Errno>, room: impl Fn()) -> usize {
    let mut sent = 0;
    while sent < calls {
        match call() {
            Ok(0) => panic!("nothing was sent"),
            Ok(_) => sent += 1,
            // The queue of errors is full, or the socket: both pass.
            Err(Errno::NOBUFS | Errno::AGAIN) => room(),
            Err(e) => panic!("send: {e}"),
        }
    }
    sent
}

fn zerocopy(socket: &TcpStream, bytes: &[u8]) -> Result<usize, Errno> {
    rustix::net::send(socket, bytes, MSG_ZEROCOPY | SendFlags::MORE | SendFlags::DONTWAIT)
}

/// `msg_zerocopy_realloc` reads the socket's counter and then sets it: an id that is taken in
/// between without the lock comes twice. It takes two processors, and a user with a finite
/// `RLIMIT_MEMLOCK`, whose sends are merged.
#[test]
fn each_id_comes_once_while_all_calls_are_made_at_the_same_time() {
    let Some(call) = series() else { return };
    let (sender, receiver) = Via::Loopback.connect(None);
    set_socket_send_buffer_size(&sender, 4 << 20).expect("SO_SNDBUF");
    sendfile2_c::enable_zerocopy(&sender).expect("SO_ZEROCOPY");
    sender.set_nonblocking(true).expect("O_NONBLOCK");
    let total = drain(receiver);
    let data = file(7, 65_536);
    let calls = calls();
    let done = AtomicBool::new(false);
    let sent = AtomicUsize::new(0);
    let room = || wait(sender.as_fd(), PollFlags::OUT, 1);
    let spliced = || {
        let mut pipe = piped(&data, 4096);
        let call = || {
            let spliced = sendfile2_sys::syscall::splice(pipe.as_fd(), sender.as_fd(), 64, false);
            if spliced == Ok(0) {
                pipe = piped(&data, 4096);
                return Err(Errno::AGAIN);
            }
            spliced
        };
        repeat(calls, call, room)
    };
    let ids = std::thread::scope(|scope| {
        let reaper = scope.spawn(|| {
            let mut ids = Ids::default();
            while !done.load(Ordering::Acquire) {
                ids.reap(&sender);
                wait(sender.as_fd(), PollFlags::empty(), 1);
            }
            ids.wait(&sender, sent.load(Ordering::Acquire));
            ids
        });
        let senders = [
            scope.spawn(|| repeat(calls, || zerocopy(&sender, &[1; 64]), room)),
            scope.spawn(|| repeat(calls, || send(call, &sender, &data, 64), room)),
            scope.spawn(|| repeat(calls / 4, || send(call, &sender, &data, 65_536), room)),
            scope.spawn(spliced),
        ];
        // After a sender has failed, its ids are not waited for.
        let all = senders.map(|thread| thread.join().unwrap_or(0)).iter().sum();
        sent.store(all, Ordering::Release);
        done.store(true, Ordering::Release);
        reaper.join().expect("the reaper")
    });
    let all = sent.into_inner();
    assert_eq!(all, 3 * calls + calls / 4, "a sender failed");
    println!("{all} ids, {} of them COPIED", ids.copied);
    ids.assert_each_once(all);
    drop(sender);
    total.join().expect("the receiver");
}

/// A series has no id until its end: until then nobody may add theirs to its notification. That
/// shows where it gets the socket's first one.
#[test]
fn nobody_joins_a_notification_that_has_no_id_yet() {
    const SIZE: usize = 4 << 20;
    let Some(call) = series() else { return };
    let (sender, receiver) = Via::Loopback.connect(Some(65_536));
    sendfile2_c::enable_zerocopy(&sender).expect("SO_ZEROCOPY");
    let mut buffer = 65_536;
    set_socket_send_buffer_size(&sender, buffer).expect("SO_SNDBUF");
    let data = file(7, SIZE);
    std::thread::scope(|scope| {
        // If anything fails it is closed, and the call ends.
        let receiver = receiver;
        let (tell, told) = std::sync::mpsc::channel();
        let (sender, data) = (&sender, &data);
        let waits = scope.spawn(move || {
            tell.send(rustix::thread::gettid()).expect("the main thread waits");
            send(call, sender, data, SIZE)
        });
        let thread = told.recv().expect("its id");
        while unacknowledged(sender).expect("SIOCOUTQ") == 0 || !asleep(thread) {
            std::thread::yield_now();
        }
        // So little room that who waits for it is not woken: that takes a third of the buffer.
        while zerocopy(sender, &[1; 64]) == Err(Errno::AGAIN) {
            buffer += 1024;
            set_socket_send_buffer_size(sender, buffer).expect("SO_SNDBUF");
        }
        assert!(!waits.is_finished(), "it did not wait: the socket took everything");
        let total = drain(receiver);
        assert_eq!(waits.join().expect("the call"), Ok(SIZE));
        let mut ids = Ids::default();
        ids.wait(sender, 2);
        ids.assert_each_once(2);
        sender.shutdown(std::net::Shutdown::Write).expect("shutdown");
        total.join().expect("the receiver");
    });
}

/// Returns the number of calls of each kind: `SENDFILE2_CALLS`, or one that takes some seconds.
fn calls() -> usize {
    std::env::var("SENDFILE2_CALLS").map_or(5000, |text| text.parse().expect("SENDFILE2_CALLS"))
}
