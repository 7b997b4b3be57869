//! `SENDFILE2_WAIT`: the call returns when the pages are released, or at the deadline.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::io::Errno;
use sendfile2_sys::module::{COPIED, Device, RELEASED, flags};

use crate::lab::{
    PATIENCE, args, assert_ids, device, drain, file, fill, monotonic, overwrite, pattern, read,
    read_ids, reset, send, stall, tcp_small, wait_ids, wrong,
};
use crate::{Run, Test, sys};

pub(crate) const TESTS: &[Test] = &[
    ("wait_returns_when_it_is_released_and_uses_no_id", Run::Plain(released)),
    ("wait_ends_at_the_deadline_and_then_uses_an_id", Run::Plain(at_the_deadline)),
    ("wait_ends_with_a_signal_and_then_uses_an_id", Run::Plain(with_a_signal)),
    ("wait_for_room_ends_at_the_deadline", Run::Plain(for_room)),
    ("wait_for_room_goes_on_when_there_is_some", Run::Plain(room_comes)),
    ("what_is_waited_for_no_more_is_told_after_a_reset", Run::Plain(after_a_reset)),
];

const SIZE: usize = 4 << 20;

fn released() {
    let device = device();
    for deadline in [0, monotonic(PATIENCE)] {
        let (tx, rx) = tcp_small();
        let from = file(40, SIZE);
        let received = drain(rx);
        for round in 0..4 {
            overwrite(&from, 40 + round, SIZE);
            let mut args = args(SIZE, flags::WAIT);
            args.deadline = deadline;
            assert_eq!(send(&device, &tx, &from, &mut args), Ok(SIZE));
            assert_eq!(args.state, RELEASED | COPIED, "loopback copies what it delivers");
        }
        overwrite(&from, 99, SIZE);
        // Without WAIT, so that there is an id to be the first.
        assert_eq!(send(&device, &tx, &from, &mut args(100, 0)), Ok(100));
        let mut ids = Vec::new();
        wait_ids(&tx, &mut ids, 1);
        assert_ids(ids, 1);
        drop(tx);
        let received = received.join().expect("reader");
        let expected: Vec<u8> = (0..4).flat_map(|round| pattern(40 + round, SIZE)).collect();
        assert_eq!(wrong(&received[..4 * SIZE], &expected), 0);
    }
}

/// Takes 64 KiB into a socket whose peer does not read, and gives up waiting.
fn give_up(device: &Device, tx: &std::net::TcpStream, from: &std::fs::File) -> usize {
    let mut args = args(64 << 10, flags::WAIT | flags::DONTWAIT);
    args.deadline = monotonic(Duration::from_millis(50));
    let sent = send(device, tx, from, &mut args).expect("some");
    assert_eq!(args.state, 0, "nobody has read it");
    sent
}

fn at_the_deadline() {
    let (device, (tx, rx)) = (device(), tcp_small());
    let from = file(41, SIZE);
    let before = stall(&tx);
    let sent = give_up(&device, &tx, &from);
    let mut ids = Vec::new();
    read_ids(&tx, &mut ids);
    assert_eq!(ids, [], "it is not released yet");
    let received = read(&rx, before + sent);
    assert_eq!(wrong(&received[before..], &pattern(41, sent)), 0);
    wait_ids(&tx, &mut ids, 1);
    assert_eq!(ids, [0]);
}

fn with_a_signal() {
    sys::count_signal(libc::SIGUSR1);
    let (device, (tx, rx)) = (device(), tcp_small());
    let from = file(42, SIZE);
    let before = stall(&tx);
    let (sent, state) = crate::send::interrupted(|| {
        let mut args = args(64 << 10, flags::WAIT | flags::DONTWAIT);
        loop {
            match send(&device, &tx, &from, &mut args) {
                // The signal came before anything was sent.
                Err(Errno::INTR) => {}
                result => return (result.expect("some"), args.state),
            }
        }
    });
    assert_eq!(state, 0);
    read(&rx, before + sent);
    let mut ids = Vec::new();
    wait_ids(&tx, &mut ids, 1);
    assert_eq!(ids, [0]);
}

fn for_room() {
    let (device, (tx, rx)) = (device(), tcp_small());
    let from = file(43, SIZE);
    let (calls, bytes) = fill(&device, tx.as_fd(), &from);
    let mut args = args(64 << 10, flags::WAIT);
    args.deadline = monotonic(Duration::from_millis(50));
    assert_eq!(send(&device, &tx, &from, &mut args), Err(Errno::TIMEDOUT));
    args.flags |= flags::DONTWAIT;
    assert_eq!(send(&device, &tx, &from, &mut args), Err(Errno::AGAIN));
    read(&rx, bytes);
    let mut ids = Vec::new();
    wait_ids(&tx, &mut ids, calls as usize);
    assert_ids(ids, calls);
}

fn room_comes() {
    let (device, (tx, rx)) = (device(), tcp_small());
    let from = file(44, SIZE);
    let (calls, before) = fill(&device, tx.as_fd(), &from);
    std::thread::scope(|scope| {
        let sent = scope.spawn(|| {
            let mut args = args(SIZE, flags::WAIT);
            args.deadline = monotonic(PATIENCE);
            (send(&device, &tx, &from, &mut args), args.state & RELEASED)
        });
        let received = read(&rx, before + SIZE);
        assert_eq!(wrong(&received[before..], &pattern(44, SIZE)), 0);
        assert_eq!(sent.join().expect("the call"), (Ok(SIZE), RELEASED));
    });
    let mut ids = Vec::new();
    wait_ids(&tx, &mut ids, calls as usize);
    assert_ids(ids, calls);
}

fn after_a_reset() {
    let (device, (tx, rx)) = (device(), tcp_small());
    let from = file(45, SIZE);
    stall(&tx);
    give_up(&device, &tx, &from);
    give_up(&device, &tx, &from);
    reset(rx);
    let mut ids = Vec::new();
    wait_ids(&tx, &mut ids, 2);
    assert_ids(ids, 2);
}
