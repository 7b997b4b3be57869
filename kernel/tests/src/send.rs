//! Sends: their bytes, where they come from, and how they end early.

use std::io::{Seek, SeekFrom};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use sendfile2_sys::module::{FEATURE_URING, VERSION, flags};

use crate::lab::{
    args, assert_ids, device, drain, file, fill, pattern, read, read_ids, send, settle, stall, tcp,
    tcp_small, wait_ids, wrong,
};
use crate::{Run, Test, sys};

pub(crate) const TESTS: &[Test] = &[
    ("the_query_tells_version_and_flags", Run::Plain(the_query)),
    ("one_id_a_call_from_the_offset_without_so_zerocopy", Run::Plain(one_id_a_call)),
    ("from_the_files_own_position_which_moves", Run::Plain(own_position)),
    ("a_short_file_is_not_kept_back", Run::Plain(short_file)),
    ("what_more_follows_is_kept_back", Run::Plain(more)),
    ("a_full_socket_takes_a_part_and_then_nothing", Run::Plain(full_socket)),
    ("a_blocking_call_sends_everything", Run::Plain(blocking)),
    ("a_signal_ends_a_call_that_waits_for_room", Run::Plain(signal)),
    ("too_many_sends_in_flight_are_a_limit_not_a_loss", Run::Plain(many)),
    ("small_calls_share_what_notifies_and_each_has_its_id", Run::Plain(shared)),
];

fn the_query() {
    let query = device().query().expect("the query");
    assert_eq!(query.version, VERSION);
    let all =
        flags::ZC | flags::POSITION | flags::DONTWAIT | flags::MORE | flags::NOSIGNAL | flags::WAIT;
    assert_eq!(query.flags, all);
    assert_eq!(query.features & !FEATURE_URING, 0);
}

fn one_id_a_call() {
    const CALL: usize = 300_001;
    let (device, (tx, rx)) = (device(), tcp());
    let mut from = file(1, 5 * CALL - 7);
    let received = drain(rx);
    let mut args = args(CALL, 0);
    let mut calls = 0;
    loop {
        let at = args.offset;
        match send(&device, &tx, &from, &mut args).expect("send") {
            0 => break,
            sent => assert_eq!(args.offset, at + i64::try_from(sent).expect("small")),
        }
        calls += 1;
    }
    assert_eq!(calls, 5);
    assert_eq!(from.stream_position().expect("position"), 0, "the position has moved");
    let mut ids = Vec::new();
    wait_ids(&tx, &mut ids, 5);
    tx.shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(wrong(&received.join().expect("reader"), &pattern(1, 5 * CALL - 7)), 0);
    read_ids(&tx, &mut ids);
    assert_ids(ids, 5);
}

fn own_position() {
    let (device, (tx, rx)) = (device(), tcp());
    let mut from = file(2, 10_000);
    from.seek(SeekFrom::Start(1000)).expect("seek");
    let mut args = args(4000, flags::POSITION);
    assert_eq!(send(&device, &tx, &from, &mut args), Ok(4000));
    assert_eq!(args.offset, 0, "the offset is not used");
    assert_eq!(from.stream_position().expect("position"), 5000);
    assert_eq!(send(&device, &tx, &from, &mut args), Ok(4000));
    assert_eq!(send(&device, &tx, &from, &mut args), Ok(1000));
    assert_eq!(send(&device, &tx, &from, &mut args), Ok(0));
    assert_eq!(wrong(&read(&rx, 9000), &pattern(2, 10_000)[1000..]), 0);
    args.offset = 1;
    assert_eq!(send(&device, &tx, &from, &mut args), Err(Errno::INVAL));
}

fn short_file() {
    let (device, (tx, rx)) = (device(), tcp());
    let from = file(3, 100);
    assert_eq!(send(&device, &tx, &from, &mut args(1 << 20, 0)), Ok(100));
    // Nothing else is under way, so what is not with the network by now is kept back.
    assert_eq!(sys::not_sent(&tx), Ok(0), "kept back for more, which never comes");
    read(&rx, 100);
}

/// The control of the one before, and what the flag is for.
fn more() {
    let (device, (tx, rx)) = (device(), tcp());
    let from = file(4, 100);
    assert_eq!(send(&device, &tx, &from, &mut args(1 << 20, flags::MORE)), Ok(100));
    assert_eq!(sys::not_sent(&tx), Ok(100));
    assert_eq!(send(&device, &tx, &from, &mut args(100, 0)), Ok(100));
    assert_eq!(sys::not_sent(&tx), Ok(0));
    read(&rx, 200);
}

fn full_socket() {
    let from = file(5, 4 << 20);
    for nonblocking in [false, true] {
        let (device, (tx, rx)) = (device(), tcp_small());
        tx.set_nonblocking(nonblocking).expect("O_NONBLOCK");
        // One byte only if the socket reported that itself.
        let flag = if nonblocking { 0 } else { flags::DONTWAIT };
        let mut all = args(16 << 20, flag);
        let first = send(&device, &tx, &from, &mut all).expect("some");
        assert!(first < 4 << 20, "the socket took it all");
        assert_eq!(all.offset, i64::try_from(first).expect("small"));
        // Bytes that were taken may have left meanwhile.
        let (calls, more) = fill(&device, tx.as_fd(), &from);
        let mut again = args(1, flag);
        assert_eq!(send(&device, &tx, &from, &mut again), Err(Errno::AGAIN));
        assert_eq!(again.offset, 0);
        let received = read(&rx, first + more);
        assert_eq!(wrong(&received[..first], &pattern(5, first)), 0);
        let mut ids = Vec::new();
        wait_ids(&tx, &mut ids, 1 + calls as usize);
        assert_ids(ids, 1 + calls);
    }
}

fn blocking() {
    const SIZE: usize = 8 << 20;
    let (device, (tx, rx)) = (device(), tcp_small());
    let from = file(6, SIZE);
    let received = drain(rx);
    assert_eq!(send(&device, &tx, &from, &mut args(SIZE, 0)), Ok(SIZE));
    let mut ids = Vec::new();
    wait_ids(&tx, &mut ids, 1);
    drop(tx);
    assert_eq!(wrong(&received.join().expect("reader"), &pattern(6, SIZE)), 0);
    assert_ids(ids, 1);
}

/// Calls `send` in a thread that gets signals until it returns.
pub(crate) fn interrupted<T: Send>(call: impl FnOnce() -> T + Send) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (tell, told) = std::sync::mpsc::channel();
        let thread = scope.spawn(|| {
            let tell = tell;
            tell.send(rustix::thread::gettid()).expect("the main thread waits");
            let result = call();
            done.store(true, Ordering::SeqCst);
            result
        });
        let id = told.recv().expect("its id");
        while !done.load(Ordering::SeqCst) {
            sys::signal_thread(id);
            // As the signals do, so that the call gets somewhere in between.
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        thread.join().expect("the call")
    })
}

fn signal() {
    sys::count_signal(libc::SIGUSR1);
    let (device, (tx, rx)) = (device(), tcp_small());
    let from = file(7, 16 << 20);
    let sent = interrupted(|| send(&device, &tx, &from, &mut args(16 << 20, 0)));
    let sent = sent.or_else(|e| if e == Errno::INTR { Ok(0) } else { Err(e) }).expect("a part");
    assert!(sent < 16 << 20);
    let (calls, more) = fill(&device, tx.as_fd(), &from);
    let nothing = interrupted(|| send(&device, &tx, &from, &mut args(1 << 20, 0)));
    assert_eq!(nothing, Err(Errno::INTR), "with nothing sent it is an error");
    let received = read(&rx, sent + more);
    assert_eq!(wrong(&received[..sent], &pattern(7, sent)), 0);
    let calls = calls + u32::from(sent > 0);
    let mut ids = Vec::new();
    wait_ids(&tx, &mut ids, calls as usize);
    assert_ids(ids, calls);
}

fn many() {
    let (device, (tx, rx)) = (device(), tcp_small());
    let from = file(8, 4 << 20);
    // The socket's buffer has grown then; and it has space for many small sends, which wait.
    let (mut calls, filled) = fill(&device, tx.as_fd(), &from);
    read(&rx, filled / 2);
    settle(&tx);
    let before = calls;
    // Only so much is there, but a call that asks for 1 MiB shares no other call's notification.
    let mut last = args(1 << 20, flags::DONTWAIT);
    let limit = loop {
        last.offset = (4 << 20) - 64;
        match send(&device, &tx, &from, &mut last) {
            Ok(sent) => {
                assert_eq!(sent, 64);
                calls += 1;
            }
            Err(e) => break e,
        }
    };
    assert_eq!(limit, Errno::NOBUFS, "after {} calls", calls - before);
    let small = 64 * (calls - before) as usize;
    read(&rx, filled - filled / 2 + small);
    let mut ids = Vec::new();
    wait_ids(&tx, &mut ids, calls as usize);
    assert_eq!(send(&device, &tx, &from, &mut args(4096, 0)), Ok(4096));
    calls += 1;
    wait_ids(&tx, &mut ids, calls as usize);
    assert_ids(ids, calls);
}

/// Small calls, more than there may be notifications in flight, share them behind a window that is
/// closed.
fn shared() {
    const CALLS: u32 = 1000;
    let (device, (tx, rx)) = (device(), tcp_small());
    let len = 64 * CALLS as usize;
    let from = file(9, len);
    let stalled = stall(&tx);
    let mut args = args(64, flags::DONTWAIT);
    for call in 0..CALLS {
        assert_eq!(send(&device, &tx, &from, &mut args), Ok(64), "call {call}");
    }
    assert_eq!(send(&device, &tx, &from, &mut args), Ok(0), "the end uses no id of theirs");
    let mut ids = Vec::new();
    read_ids(&tx, &mut ids);
    assert_eq!(ids, [], "nothing of it has been sent");
    let received = read(&rx, stalled + len);
    assert_eq!(wrong(&received[stalled..], &pattern(9, len)), 0);
    wait_ids(&tx, &mut ids, CALLS as usize);
    assert_ids(ids, CALLS);
}
