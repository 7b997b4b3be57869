//! A program that stores to the file through a shared mapping, beside who detaches and overwrites.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use common::faults::Faults;
use common::filesystems::{Filesystem, here, mounted};
use common::{SetOnDrop, pattern, sender};
use sendfile2::detach::{Detacher, NotDetached};
use sendfile2::guard::GuardOptions;
use sendfile2::{Engine, Error, SendFlags, Sent};

/// What is sent and overwritten, from the start of the file.
const LEN: usize = 64 << 10;

/// The program stores to one byte of each page.
const STORES_TO: usize = 7;

const ROUNDS: u8 = 60;

/// Overwrites beside the program.
#[derive(Debug, Default)]
struct Seen {
    /// Bytes in flight that changed, but for those that the program stores to.
    wrong: usize,
    /// Overwrites that were refused.
    refused: u32,
    /// Overwrites after which the file did not have the new bytes.
    lost: u32,
    /// Times that pages were seen to stay, or to come back.
    stayed: u64,
}

fn made(filesystem: &Filesystem) -> File {
    let path = filesystem.dir.join("file");
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path);
    let file = file.unwrap();
    file.write_all_at(&pattern(0, 0..8 * LEN as u64), 0).unwrap();
    file.sync_all().unwrap();
    file
}

fn files() -> Vec<(Filesystem, File)> {
    let all = ["ext4", "xfs"].into_iter().filter_map(mounted).chain([here()]);
    let all = all.map(|filesystem| (made(&filesystem), filesystem));
    all.filter_map(|(file, filesystem)| match Detacher::new(&common::source(&file)) {
        Ok(_) => Some((filesystem, file)),
        Err(why) => {
            println!("SKIP: {}: {why}", filesystem.name);
            None
        }
    })
    .collect()
}

/// Stores to each page, until it is told to stop.
#[expect(unsafe_code, reason = "a mapping that can be stored to")]
fn store(file: BorrowedFd<'_>, stop: &AtomicBool) {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let descriptor = file.as_raw_fd();
    // SAFETY: a new mapping, which is in nobody's way.
    let start =
        unsafe { libc::mmap(std::ptr::null_mut(), LEN, access, libc::MAP_SHARED, descriptor, 0) };
    assert_ne!(start, libc::MAP_FAILED);
    for round in (0..=u8::MAX).cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        for at in (STORES_TO..LEN).step_by(4096) {
            // SAFETY: within the mapping, and the file, which nobody cuts.
            unsafe { AtomicU8::from_ptr(start.cast::<u8>().add(at)) }
                .store(round, Ordering::Relaxed);
        }
        std::thread::yield_now();
    }
    // SAFETY: as it was mapped; nothing refers to it any more.
    assert_eq!(unsafe { libc::munmap(start, LEN) }, 0);
}

/// The bytes that are not as expected, but for those that the program stores to.
fn wrong(got: &[u8], expected: &[u8]) -> usize {
    assert_eq!(got.len(), expected.len());
    let pairs = got.iter().zip(expected).enumerate();
    pairs.filter(|(i, (a, b))| a != b && i % 4096 != STORES_TO).count()
}

/// The time after which a write is refused beside a program that stores without end.
const SOON: std::time::Duration = std::time::Duration::from_secs(2);

/// Has `overwrite` write new bytes, or be refused, while what was there is in flight by `send`.
fn beside_stores(
    file: &File,
    mut send: impl FnMut() -> std::net::TcpStream,
    mut overwrite: impl FnMut(&[u8]) -> bool,
) -> Seen {
    let stop = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| store(file.as_fd(), &stop));
        let _stop = SetOnDrop(&stop);
        let (mut seen, mut old) = (Seen::default(), pattern(0, 0..LEN as u64));
        for round in 1..=ROUNDS {
            let mut peer = send();
            let new = pattern(round, 0..LEN as u64);
            let done = overwrite(&new);
            let mut got = vec![0; LEN];
            peer.read_exact(&mut got).unwrap();
            seen.wrong += wrong(&got, &old);
            file.read_exact_at(&mut got, 0).unwrap();
            if done {
                seen.lost += u32::from(wrong(&got, &new) > 0);
            } else {
                seen.refused += 1;
            }
            // What is there now, whosever it is.
            old = got;
        }
        seen
    })
}

fn send(file: &File) -> std::net::TcpStream {
    let (sender, peer) = common::tcp_on_this_host_large_window();
    let mut at = 0;
    while at < LEN as u64 {
        let left = LEN - usize::try_from(at).unwrap();
        assert!(rustix::fs::sendfile(&sender, file, Some(&mut at), left).unwrap() > 0);
    }
    peer
}

/// Whether the collision was seen: pages came back (and may have gone since), or the kernel took it for an error of the disk.
fn is_seen(why: &NotDetached) -> bool {
    let io = why.io_error().and_then(std::io::Error::raw_os_error);
    matches!(why, NotDetached::Cached { .. } | NotDetached::WouldWait { .. })
        || io == Some(libc::EIO)
}

/// What it stores is written in place: nothing can be done for the bytes that it stores to.
#[test]
fn control_what_it_stores_to_changes_in_flight() {
    let file = made(&here());
    let mut peer = send(&file);
    let stop = AtomicBool::new(false);
    let (old, mut got) = (pattern(0, 0..LEN as u64), vec![0; LEN]);
    std::thread::scope(|threads| {
        threads.spawn(|| store(file.as_fd(), &stop));
        let _stop = SetOnDrop(&stop);
        let mut now = old.clone();
        while now == old {
            file.read_exact_at(&mut now, 0).unwrap();
        }
    });
    peer.read_exact(&mut got).unwrap();
    assert_ne!(got, old);
    assert_eq!(wrong(&got, &old), 0, "and nothing else");
}

/// The control: a plain direct write goes in place where pages come back.
#[test]
fn control_a_direct_write_changes_what_is_in_flight() {
    for (filesystem, file) in files() {
        let name = format!("/proc/self/fd/{}", file.as_raw_fd());
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::DIRECT;
        let direct = rustix::fs::open(name, flags, rustix::fs::Mode::empty()).unwrap();
        let mut memory = vec![0; LEN + 4096];
        let aligned = memory.as_ptr().align_offset(4096);
        let seen = beside_stores(
            &file,
            || send(&file),
            |new| {
                memory[aligned..aligned + LEN].copy_from_slice(new);
                let written = rustix::io::pwrite(&direct, &memory[aligned..aligned + LEN], 0);
                written.unwrap() == LEN
            },
        );
        println!("{}: {seen:?}", filesystem.name);
        assert!(seen.wrong > 0, "{}: {seen:?}", filesystem.name);
    }
}

/// Whoever sends: what is written beside it is never written in place.
#[test]
fn an_overwrite_beside_it_changes_nothing_else_or_is_refused() {
    for (filesystem, file) in files() {
        let detacher = Detacher::new(&common::source(&file)).unwrap();
        let seen = beside_stores(
            &file,
            || send(&file),
            |new| match detacher.overwrite(new, 0) {
                Ok(()) => true,
                Err(refused) => {
                    assert!(is_seen(&refused.why), "{refused}");
                    false
                }
            },
        );
        println!("{}: {seen:?}", filesystem.name);
        assert_eq!(seen.wrong, 0, "{}: {seen:?}", filesystem.name);
    }
}

/// And each time that the kernel could not take pages out, that was seen.
#[test]
fn a_writer_of_a_guarded_file_beside_it_changes_nothing_else_or_is_refused() {
    for (filesystem, file) in files() {
        let name = filesystem.name;
        // On the machine's own disk others write, too.
        let faults = if name == "here" { None } else { Faults::begin() };
        let guard = GuardOptions::new().nothing_exposed().guard(file.try_clone().unwrap()).unwrap();
        let (mut open, mut told) = (Vec::new(), false);
        let send = || {
            let (tx, peer) = common::tcp_on_this_host_large_window();
            let mut sender = sender(tx, Engine::Sendfile);
            let lease = guard.try_lease(0..LEN as u64).unwrap();
            let sent = sender.try_send_lease(&lease, 0..LEN as u64, SendFlags::NONE).unwrap();
            assert!(matches!(sent, Sent::Accepted { bytes: LEN, .. }), "{sent:?}");
            open.push(sender);
            peer
        };
        let mut seen = beside_stores(&file, send, |new| match guard.write_at(new, 0, SOON) {
            Ok(()) => true,
            Err(Error::NotDetached(why)) => {
                assert!(is_seen(&why), "{name}: {why}");
                told |= why.io_error().is_some();
                false
            }
            Err(other) => panic!("{name}: {other}"),
        });
        seen.stayed = guard.counters().pages_stayed;
        let device = file.metadata().unwrap().dev();
        let faults = faults.map(|faults| faults.on(device).unwrap());
        println!("{name}: {seen:?}, faults of the kernel: {faults:?}");
        assert_eq!((seen.wrong, seen.lost), (0, 0), "{name}: {seen:?}");
        assert!(seen.stayed > 0, "{name}: a program that stores is seen");
        // The kernel takes each collision for an error of the disk, and tells each description of
        // the file once. What the library was told the program is told all the same.
        let synced = file.sync_all();
        assert!(!told || synced.is_err(), "{name}: {synced:?}");
        if let Some(faults) = faults {
            if faults == 0 {
                println!("SKIP: {name}: the kernel met none");
            }
            assert!(faults <= seen.stayed, "{name}: {faults} faults, {seen:?}");
        }
    }
}
