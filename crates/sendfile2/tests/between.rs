//! Acts of others between two system calls of one that sends, or overwrites.
#![allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{OnceLock, mpsc};

use common::detachable::{LEN, files, fresh, made};
use common::filesystems::{here, mounted};
use common::{assert_same, deadline, pattern, sender, stopped};
use rustix::time::{ClockId, clock_gettime};
use sendfile2::detach::{Detacher, NotDetached};
use sendfile2::guard::GuardedFile;
use sendfile2::{Engine, SendFlags, Sender, Sent};

/// Calls that only the first writer makes would be taken for others.
fn make_the_detacher(guard: &GuardedFile) {
    let _lease = guard.try_lease(0..1).unwrap();
    guard.write_at(&pattern(1, 0..1), 0, deadline()).unwrap();
}

/// A writer has read what is to be kept aside for a lease, and somebody sends that just now: it waits
/// for the end of the call before it keeps it, and overwrites it.
#[test]
fn what_a_call_is_about_to_send_is_not_overwritten() {
    const SIZE: usize = 65_536;
    for (filesystem, file) in files() {
        for (engine, call) in [
            (Engine::Sendfile, libc::SYS_sendfile),
            (Engine::Copy, libc::SYS_sendto),
            (Engine::Zerocopy, libc::SYS_sendto),
        ] {
            let guard = fresh(&file);
            make_the_detacher(&guard);
            common::overwrite(&file, &pattern(1, 0..LEN));
            let lease = guard.try_lease(0..SIZE as u64).unwrap();
            let (tx, mut peer) = common::tcp_on_this_host();
            let mut sender = Some(sender(tx, engine));
            let writer = OnceLock::new();
            let written = AtomicBool::new(false);
            let (tell, told) = mpsc::channel();
            let write = || {
                writer.set(rustix::thread::gettid()).unwrap();
                guard.write_at(&pattern(!1, 0..SIZE as u64), 0, deadline()).unwrap();
                written.store(true, Ordering::Release);
            };
            // On a thread that itself is not stopped.
            let send = |mut sender: Sender, tell: mpsc::Sender<()>| {
                let all = 0..SIZE as u64;
                let send = || sender.send_lease(&lease, all, SendFlags::NONE, deadline()).map(drop);
                stopped::run(&[call], send, |_| {
                    tell.send(()).unwrap();
                    let is_over = || written.load(Ordering::Acquire);
                    stopped::until_it_waits_for_a_lock(*writer.get().unwrap(), is_over);
                })
            };
            std::thread::scope(|threads| {
                stopped::run(&[libc::SYS_pread64], write, |_| {
                    if let Some(sender) = sender.take() {
                        let tell = tell.clone();
                        threads.spawn(|| send(sender, tell).map(Result::unwrap));
                        told.recv().unwrap();
                    }
                });
            });
            if written.into_inner() {
                println!("{}, {engine}", filesystem.name);
                assert_same(&common::read(&mut peer, SIZE), &pattern(1, 0..SIZE as u64));
            }
        }
    }
}

/// The last hand lets go of a lease while a writer reads what is to be kept aside for it.
#[test]
fn nothing_is_kept_for_a_lease_that_was_let_go_of_meanwhile() {
    let Some(file) = made(&here()) else { return };
    let guard = fresh(&file);
    make_the_detacher(&guard);
    let (tx, _peer) = common::tcp_small_window_on_this_host();
    let mut sender = sender(tx, Engine::Zerocopy);
    let mut lease = guard.try_lease(0..LEN);
    let sent = sender.try_send_lease(lease.as_ref().unwrap(), 0..LEN, SendFlags::NONE).unwrap();
    assert!(matches!(sent, Sent::Accepted { .. }), "{sent:?}");
    let write = || guard.write_at(&[1; 4096], LEN - 4096, deadline()).unwrap();
    let written = stopped::run(&[libc::SYS_pread64], write, |_| {
        if let Some(lease) = lease.take() {
            assert_eq!(guard.counters().kept_aside, 4096, "it is not about to be kept");
            drop(lease);
        }
    });
    if written.is_some() {
        assert!(lease.is_none() && !guard.in_flight().is_empty());
        assert_eq!(guard.counters().kept_aside, 0);
    }
}

/// A file is cut while a send of its end is about to begin. The last page is one then that cannot be
/// detached, and nothing of it is in flight.
#[test]
fn what_was_cut_before_it_was_sent_is_not_exposed() {
    let Some(file) = made(&here()) else { return };
    let guard = fresh(&file);
    make_the_detacher(&guard);
    let (tx, mut peer) = common::tcp_on_this_host();
    let mut sender = sender(tx, Engine::Sendfile);
    let end = LEN - 8192..LEN;
    let lease = guard.try_lease(end.clone()).unwrap();
    let mut cut = false;
    let send = || sender.send_lease(&lease, end.clone(), SendFlags::NONE, deadline()).unwrap();
    // When it has found that it may, it sets the socket to non-blocking mode.
    let sent = stopped::run(&[libc::SYS_fcntl], send, |_| {
        if !std::mem::replace(&mut cut, true) {
            guard.set_len(LEN - 4000, deadline()).unwrap();
        }
    });
    if sent.is_some() {
        assert!(cut, "no call was seen");
        assert_same(&common::read(&mut peer, 8192), &pattern(1, end));
        drop(lease);
        assert_eq!(guard.exposed(), []);
        guard.write_at(&[1; 10], LEN - 4090, deadline()).unwrap();
    }
}

/// XFS sets no new time of modification in a write that must not wait. One is necessary when the clock
/// has ticked, or a program has asked for the file's times (Linux 6.13).
#[test]
fn who_asks_for_the_times_of_a_file_is_not_in_the_way_of_an_overwrite() {
    let Some(filesystem) = mounted("xfs") else { return };
    let Some(file) = made(&filesystem) else { return };
    let detacher = Detacher::new(&common::source(&file)).unwrap();
    let overwrite = |what: u8| detacher.overwrite(&[what; 4096], 8192);
    // It asks whenever it has not just lost the race against one that has set them.
    let mut set = false;
    let calls = [libc::SYS_pwritev2, libc::SYS_utimensat];
    let written = stopped::run(
        &calls,
        || overwrite(7),
        |call| {
            let was_set = std::mem::replace(&mut set, call == libc::SYS_utimensat);
            if call == libc::SYS_pwritev2 && !was_set {
                time_passes(&file);
            }
        },
    );
    if let Some(written) = written {
        written.unwrap();
        assert_same(&last(&file), &[7; 4096]);
    }
    // The control: it always wins. Then the refusal tells of it, and nothing is written.
    let written = stopped::run(&calls, || overwrite(8), |_| time_passes(&file));
    if let Some(written) = written {
        let refused = written.unwrap_err();
        assert!(matches!(refused.why, NotDetached::WouldWait { .. }), "{refused}");
        assert_same(&last(&file), &[7; 4096]);
    }
}

/// The times that the file has are not those that a write would set now.
fn time_passes(file: &File) {
    let now = || clock_gettime(ClockId::RealtimeCoarse);
    let began = now();
    while now() == began {
        std::thread::yield_now();
    }
    file.metadata().unwrap();
}

/// The bytes that were overwritten there.
fn last(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    file.read_exact_at(&mut bytes, 8192).unwrap();
    bytes
}
