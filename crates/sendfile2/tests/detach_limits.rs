//! Where detaching is not possible, for now or for good, or takes long: nothing is guessed.
#![allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]

mod common;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::Instant;

use common::detachable::rest;
use common::filesystems::{Filesystem, here, mounted, tmpfs};
use common::{assert_same, deadline, pattern, read, sender};
use sendfile2::detach::{Detacher, NotDetached};
use sendfile2::guard::{GuardOptions, GuardedFile};
use sendfile2::{Engine, Error, SendFlags, Sent, Status};

const LEN: u64 = 4 << 20;

fn made(filesystem: &Filesystem, len: u64) -> File {
    let path = filesystem.dir.join("file");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path);
    let file = file.unwrap();
    file.write_all_at(&pattern(1, 0..len), 0).unwrap();
    file.sync_all().unwrap();
    file
}

fn can_be_detached(file: &File) -> bool {
    let detached = Detacher::new(&common::source(file)).and_then(|file| file.detach(&(0..1)));
    if let Err(why) = &detached {
        println!("SKIP: {why}");
    }
    detached.is_ok()
}

fn fresh(file: &File) -> GuardedFile {
    GuardOptions::new().nothing_exposed().guard(file.try_clone().unwrap()).unwrap()
}

/// Fills the filesystem to the last block.
fn fill(filesystem: &Filesystem) {
    let filler = File::create(filesystem.dir.join("filler")).unwrap();
    let mut at = 0;
    for size in [1 << 20, 4096] {
        let piece = vec![1; size];
        for _ in 0..3 {
            while filler.write_all_at(&piece, at).is_ok() {
                at += size as u64;
            }
            let _ = filler.sync_all();
        }
    }
}

/// On btrfs a scratch file is needed, for which there is no space now. That the file cannot be
/// detached for ever does not follow: what may be in flight would be overwritten in place.
#[test]
fn a_full_disk_passes() {
    let Some(filesystem) = mounted("btrfs") else { return };
    let file = made(&filesystem, LEN);
    let (tx, mut peer) = common::tcp_on_this_host();
    let mut offset = 0;
    assert_eq!(rustix::fs::sendfile(&tx, &file, Some(&mut offset), 4096), Ok(4096));
    fill(&filesystem);
    let scratch = OpenOptions::new().write(true).create_new(true).open(filesystem.dir.join("more"));
    let full = scratch.and_then(|scratch| scratch.write_all_at(&[1; 65_536], 0));
    assert!(full.is_err(), "the disk is full");
    let guard = GuardedFile::new(file.try_clone().unwrap()).unwrap();
    let new = pattern(!1, 0..4096);
    let refused = [
        guard.write_at(&new, 0, Instant::now()),
        guard.try_write_at(&new, 0).map(drop),
        guard.queue_writer(0..4096).map(drop),
    ];
    for refused in refused {
        assert!(matches!(refused, Err(Error::NotDetached(_))), "{refused:?}");
    }
    std::fs::remove_file(filesystem.dir.join("filler")).unwrap();
    for _ in 0..2 {
        rustix::fs::syncfs(&file).unwrap();
    }
    guard.write_at(&new, 0, deadline()).unwrap();
    assert_same(&read(&mut peer, 4096), &pattern(1, 0..4096));
}

/// A range of many GiB takes long: the writer gets its turn or its error in time, and what was
/// detached until then need not be again.
#[test]
fn a_long_detach_ends_at_the_deadline_with_what_is_proved() {
    const STEP: u64 = 8 << 20;
    let len = 2 * STEP + 5000;
    let file = made(&here(), len);
    if !can_be_detached(&file) {
        return;
    }
    let guard = GuardedFile::new(file.try_clone().unwrap()).unwrap();
    let write = || guard.write_with(0..len, Instant::now(), |_| Ok(()));
    for done in 1..3 {
        let refused = write().unwrap_err();
        let rest = done * STEP..len;
        let Error::NotDetached(why) = &refused else { panic!("{refused:?}") };
        assert!(matches!(&**why, NotDetached::Deadline { range } if *range == rest), "{refused}");
        assert_eq!(guard.exposed(), [rest]);
    }
    write().unwrap();
    assert_eq!(guard.exposed(), []);
}

/// At the deadline of a writer that aborts nobody else is waited for, but the disk is.
#[test]
fn a_writer_that_aborts_waits_for_a_long_detach() {
    let len = (16 << 20) + 5000;
    let file = made(&here(), len);
    if !can_be_detached(&file) {
        return;
    }
    let guard = GuardedFile::new(file.try_clone().unwrap()).unwrap();
    let new = pattern(!1, 0..len);
    guard.write_at_abort(&new, 0, Instant::now()).unwrap();
    assert_eq!(guard.exposed(), []);
}

/// On XFS a reflink raises the unit of direct I/O, so that a last page cannot be detached any more
/// that could when it was sent; and a program that is started anew knows nothing of it.
#[test]
fn what_a_reflink_keeps_from_being_detached_is_not_sent_so() {
    let Some(filesystem) = mounted("xfs") else { return };
    let size = 2 * 4096 + 512;
    let file = made(&filesystem, size);
    let guard = fresh(&file);
    let (tx, mut peer) = common::tcp_on_this_host();
    let mut sender = sender(tx, Engine::Sendfile);
    let lease = guard.try_lease(0..size).unwrap();
    sender.send_lease(&lease, 0..8192, SendFlags::NONE, deadline()).unwrap();
    let tail = 8192..size;
    let sent = sender.send_lease(&lease, tail.clone(), SendFlags::NONE, deadline());
    let copy = File::create(filesystem.dir.join("copy")).unwrap();
    rustix::fs::ioctl_ficlone(&copy, &file).unwrap();
    drop((lease, guard));
    let restarted = GuardedFile::new(file.try_clone().unwrap()).unwrap();
    restarted.write_at(&pattern(!1, 0..8192), 0, deadline()).unwrap();
    assert_same(&read(&mut peer, 8192), &pattern(1, 0..8192));
    let written = restarted.write_at(&pattern(!1, tail.clone()), tail.start, Instant::now());
    match sent {
        Ok(_) => assert_same(&read(&mut peer, 512), &pattern(1, tail)),
        Err(refused) => {
            assert!(matches!(refused.error, Error::Refused { engine: Engine::Sendfile, .. }));
            written.unwrap();
        }
    }
}

/// The file ends earlier than it did, and what is left of its last page cannot be detached.
#[test]
fn what_was_known_of_the_size_is_forgotten_when_it_shrinks() {
    let file = made(&here(), LEN);
    if !can_be_detached(&file) {
        return;
    }
    let guard = fresh(&file);
    let (tx, mut peer) = common::tcp_on_this_host();
    let mut sender = sender(tx, Engine::Sendfile);
    let mut send = |range: std::ops::Range<u64>| {
        let lease = guard.try_lease(range.clone()).unwrap();
        sender.send_lease(&lease, range, SendFlags::NONE, deadline()).map_err(|e| e.error)
    };
    assert_eq!(send(0..8192).unwrap().ticket.status(), Status::Exposed);
    guard.set_len(4196, deadline()).unwrap();
    let refused = send(4096..8192).unwrap_err();
    assert!(matches!(refused, Error::Refused { engine: Engine::Sendfile, .. }), "{refused}");
    guard.set_len(8192, deadline()).unwrap();
    send(4096..8192).unwrap();
    assert_same(&read(&mut peer, 8192), &pattern(1, 0..8192));
}

/// Lets these system calls fail for this thread.
fn forbid(calls: &[libc::c_long]) {
    use seccompiler::{SeccompAction, SeccompFilter};
    let filter = SeccompFilter::new(
        calls.iter().map(|call| (*call, vec![])).collect(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM.unsigned_abs()),
        std::env::consts::ARCH.try_into().unwrap(),
    )
    .unwrap();
    let program: seccompiler::BpfProgram = filter.try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

const CACHESTAT: libc::c_long = 451;

/// Where nothing proves that a page is out, `sendfile(2)` serves nothing, and nothing counts as one
/// that could be detached; what others have sent is overwritten in place, as without a guard.
#[test]
fn without_a_proof_sendfile_is_refused_and_nothing_is_exposed() {
    let test = || {
        let (disk, memory) = (here(), tmpfs());
        let files = [made(&disk, LEN), made(&memory, LEN)];
        let can = can_be_detached(&files[0]);
        forbid(&[CACHESTAT]);
        assert_eq!(can_be_detached(&files[0]), can, "mincore shows it");
        forbid(&[libc::SYS_mincore]);
        for file in files {
            let guard = GuardedFile::new(file).unwrap();
            let (tx, _peer) = common::tcp_on_this_host();
            let mut sender = sender(tx, Engine::Sendfile);
            let lease = guard.try_lease(0..4096).unwrap();
            let refused = sender.try_send_lease(&lease, 0..4096, SendFlags::NONE).unwrap_err();
            assert!(matches!(refused, Error::Refused { engine: Engine::Sendfile, .. }));
            drop(lease);
            guard.write_at(&pattern(!1, 0..4096), 0, Instant::now()).unwrap();
            assert_eq!(guard.exposed(), []);
            assert_eq!(guard.counters().detached, 0);
        }
    };
    std::thread::spawn(test).join().unwrap();
}

/// What packets may keep of what is exposed is told, though nobody tells when it is freed.
#[test]
fn what_was_detached_while_it_was_exposed_is_counted_in_whole_folios() {
    const FOLIO: u64 = 2 << 20;
    let file = made(&here(), LEN);
    if !can_be_detached(&file) {
        return;
    }
    let guard = fresh(&file);
    let (tx, _peer) = common::tcp_on_this_host();
    let mut sender = sender(tx, Engine::Sendfile);
    for (range, kept) in [(0..1000, FOLIO), (FOLIO + 5..FOLIO + 6, 2 * FOLIO)] {
        let lease = guard.try_lease(range.clone()).unwrap();
        sender.send_lease(&lease, range.clone(), SendFlags::NONE, deadline()).unwrap();
        drop(lease);
        guard.write_at(&[0; 1000], range.start / 4096 * 4096, deadline()).unwrap();
        assert_eq!(guard.counters().detached_exposed, kept);
        // Nothing of it is in flight any more.
        guard.write_at(&[0; 1000], range.start / 4096 * 4096, deadline()).unwrap();
        assert_eq!(guard.counters().detached_exposed, kept);
    }
    assert_eq!(guard.counters().kept_by_packets, 0);
}

/// Folios that a hole or a new size drops as a whole stay with the packets, too.
#[test]
fn what_a_hole_and_a_new_size_drop_is_counted_in_whole_folios() {
    const FOLIO: u64 = 2 << 20;
    type Cut = fn(&GuardedFile);
    let hole: (Cut, Cut) = (
        |guard| guard.punch_hole(5000..6000, deadline()).unwrap(),
        |guard| guard.punch_hole(FOLIO..LEN, deadline()).unwrap(),
    );
    let size: (Cut, Cut) = (
        |guard| guard.set_len(FOLIO + 5000, deadline()).unwrap(),
        |guard| guard.set_len(1000, deadline()).unwrap(),
    );
    for (engine, (first, second)) in
        [Engine::Zerocopy, Engine::Sendfile].into_iter().flat_map(|e| [(e, hole), (e, size)])
    {
        let file = made(&here(), LEN);
        if !can_be_detached(&file) {
            return;
        }
        let guard = fresh(&file);
        let (tx, peer) = common::tcp_small_window_on_this_host();
        let mut sender = sender(tx, engine);
        // Behind the end of the file there is nothing to keep.
        let lease = guard.try_lease(0..4 * LEN).unwrap();
        let mut sent = 0;
        while let Sent::Accepted { bytes, .. } =
            sender.try_send_lease(&lease, sent..LEN, SendFlags::NONE).unwrap()
        {
            sent += bytes as u64;
        }
        assert!(sent > 6000, "{sent} bytes are in flight");
        drop(lease);
        let kept = |leased: u64, exposed: u64| {
            let counters = guard.counters();
            match engine {
                Engine::Zerocopy => assert_eq!(counters.kept_by_packets, leased),
                // A folio of which parts were detached one after another counts for each.
                _ => assert!(counters.detached_exposed >= exposed, "{counters:?}"),
            }
        };
        first(&guard);
        kept(FOLIO, 0);
        second(&guard);
        kept(LEN, sent);
        // What grows has had nothing there.
        guard.set_len(2 * LEN, deadline()).unwrap();
        kept(LEN, sent);
        assert_same(&rest(peer, sender), &pattern(1, 0..sent));
        while !guard.in_flight().is_empty() {
            std::thread::yield_now();
        }
        assert_eq!(guard.counters().kept_by_packets, 0, "{engine}");
    }
}

/// Behind the end of the file there are no pages that packets could keep.
#[test]
fn nothing_is_kept_of_what_is_behind_the_end() {
    let file = made(&here(), LEN);
    if !can_be_detached(&file) {
        return;
    }
    let guard = fresh(&file);
    let (tx, _peer) = common::tcp_small_window_on_this_host();
    let mut sender = sender(tx, Engine::Zerocopy);
    let lease = guard.try_lease(0..u64::MAX).unwrap();
    sender.try_send_lease(&lease, 0..LEN, SendFlags::NONE).unwrap();
    drop(lease);
    guard.write_at(&[1], 4 * LEN, deadline()).unwrap();
    assert!(!guard.in_flight().is_empty());
    assert_eq!(guard.counters().kept_by_packets, 0);
}
