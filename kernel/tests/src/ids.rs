//! Ids: each exactly once, whatever else sends on the socket.

use std::fs::File;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use rustix::io::Errno;
use rustix::net::SendFlags;
use sendfile2_sys::module::flags;

use crate::lab::{args, assert_ids, device, drain, file, read_ids, send, tcp, wait_ids};
use crate::{Options, Run, Test, sys};

pub(crate) const TESTS: &[Test] = &[
    ("among_the_programs_own_zerocopy_sends", Run::Plain(among_others)),
    ("ids_are_unique_beside_a_thread_that_sends", Run::With(race)),
];

/// `MSG_ZEROCOPY`, which rustix keeps to itself.
const ZEROCOPY: SendFlags = SendFlags::from_bits_retain(0x400_0000);

fn among_others() {
    let (device, (tx, rx)) = (device(), tcp());
    sys::enable_zerocopy(&tx).expect("SO_ZEROCOPY");
    let from = file(20, 100_000);
    let received = drain(rx);
    let bytes = [9; 1000];
    for _ in 0..10 {
        assert_eq!(rustix::net::send(&tx, &bytes, ZEROCOPY), Ok(1000));
        assert_eq!(send(&device, &tx, &from, &mut args(100_000, 0)), Ok(100_000));
        // Appended to what our own call has left unsent: no id may be added to that call's.
        assert_eq!(send(&device, &tx, &from, &mut args(100, flags::MORE)), Ok(100));
        assert_eq!(rustix::net::send(&tx, &bytes, ZEROCOPY | SendFlags::MORE), Ok(1000));
        assert_eq!(rustix::net::send(&tx, &bytes, ZEROCOPY), Ok(1000));
    }
    let mut ids = Vec::new();
    wait_ids(&tx, &mut ids, 50);
    read_ids(&tx, &mut ids);
    assert_ids(ids, 50);
    tx.shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(received.join().expect("reader").len(), 10 * 103_100);
}

/// Watches the file, which makes the way longer from a call's last send to its id.
fn watched(file: &File) -> OwnedFd {
    use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
    let watch = init(CreateFlags::CLOEXEC).expect("inotify_init");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    add_watch(&watch, path, WatchFlags::ACCESS).expect("inotify_add_watch");
    watch
}

/// Small sends that extend each other's notification read the counter and set it later; a call that
/// takes its id without the socket's lock comes in between. The race needs several processors, and
/// a user whom `RLIMIT_MEMLOCK` binds: so much more is done between the two.
fn race(options: &Options) {
    let (device, (tx, rx)) = (device(), tcp());
    sys::enable_zerocopy(&tx).expect("SO_ZEROCOPY");
    let from = file(21, 64);
    let _watch = watched(&from);
    let received = drain(rx);
    let calls = AtomicU32::new(0);
    let stop = AtomicBool::new(false);
    let bytes = [9; 64];
    let count = |result: Result<usize, Errno>| match result {
        Ok(sent) => {
            assert!(sent > 0);
            calls.fetch_add(1, Ordering::SeqCst);
        }
        // Full of bytes, or of notifications.
        Err(Errno::AGAIN | Errno::NOBUFS) => std::thread::yield_now(),
        Err(e) => panic!("{e}"),
    };
    let ids = std::thread::scope(|scope| {
        let theirs = scope.spawn(|| {
            let flags = ZEROCOPY | SendFlags::MORE | SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            while !stop.load(Ordering::SeqCst) {
                count(rustix::net::send(&tx, &bytes, flags));
            }
        });
        let ours = scope.spawn(|| {
            for _ in 0..options.rounds * 40 {
                count(device.send(tx.as_fd(), from.as_fd(), &mut args(64, flags::DONTWAIT)));
            }
            stop.store(true, Ordering::SeqCst);
        });
        let mut ids = Vec::new();
        while !(ours.is_finished() && theirs.is_finished()) {
            read_ids(&tx, &mut ids);
            std::thread::yield_now();
        }
        ours.join().expect("our sends");
        theirs.join().expect("their sends");
        ids
    });
    let calls = calls.into_inner();
    println!(
        "{calls} calls, {} processors",
        std::thread::available_parallelism().map_or(1, Into::into)
    );
    tx.shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(received.join().expect("reader").len(), calls as usize * 64);
    let mut ids = ids;
    wait_ids(&tx, &mut ids, calls as usize);
    assert_ids(ids, calls);
}
