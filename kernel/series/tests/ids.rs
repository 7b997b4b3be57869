//! Ids: each is given out once, whichever calls take ids at the same time.

use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::SendFlags;
use series_tests::{Ids, Via, drain, file, piped, send, series, wait};

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
    rustix::net::sockopt::set_socket_send_buffer_size(&sender, 4 << 20).expect("SO_SNDBUF");
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

/// Returns the number of calls of each kind: `SENDFILE2_CALLS`, or one that takes some seconds.
fn calls() -> usize {
    std::env::var("SENDFILE2_CALLS").map_or(5000, |text| text.parse().expect("SENDFILE2_CALLS"))
}
