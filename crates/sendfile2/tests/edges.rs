//! Files of all kinds, and ranges of all sizes.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

use common::{assert_same, deadline, file, pattern, read, sender, source};
use sendfile2::guard::{GuardOptions, GuardedFile, Overwrite, TryWrite};
use sendfile2::{Engine, Error, SendFlags, Sent, Source};

/// What `pread` gives for the range, and what the peer gets.
fn same(source: &Source, expected: &[u8], range: std::ops::Range<u64>) {
    for engine in [Engine::Copy, Engine::Auto] {
        let (tx, mut rx) = common::tcp();
        let mut sender = sender(tx, engine);
        let range2 = range.clone();
        let source = source.clone();
        let thread = std::thread::spawn(move || {
            sender.send_file(&source, range2, SendFlags::NONE, deadline()).map(|_| sender)
        });
        let got = read(&mut rx, expected.len());
        assert_same(&got, expected);
        thread.join().unwrap().unwrap();
    }
}

#[test]
fn growth_and_shrinking_around_pages() {
    let file = file(1, 0);
    let source = source(&file);
    for size in [1u64, 4095, 4096, 4097, 8192, 8191, 100, 12_289, 4096, 1, 70_000, 69_999, 70_001] {
        file.set_len(size).unwrap();
        file.write_all_at(&pattern(size as u8, 0..size), 0).unwrap();
        for engine in [Engine::Copy, Engine::Zerocopy] {
            let (tx, mut rx) = common::tcp();
            let mut s = sender(tx, engine);
            let stopped =
                s.send_file(&source, 0..u64::MAX, SendFlags::NONE, deadline()).unwrap_err();
            assert_eq!(stopped.transfer.bytes, size);
            assert!(matches!(stopped.error, Error::Truncated { at, .. } if at == size));
            assert_same(&read(&mut rx, size as usize), &pattern(size as u8, 0..size));
            let error = s.try_send_file(&source, size..size + 1, SendFlags::NONE).unwrap_err();
            assert!(matches!(error, Error::Truncated { .. }));
            let error =
                s.try_send_file(&source, u64::MAX - 1..u64::MAX, SendFlags::NONE).unwrap_err();
            assert!(matches!(error, Error::Truncated { .. }));
        }
    }
}

#[test]
fn around_the_edges_of_a_window() {
    const GIB: u64 = 1 << 30;
    let file = file(1, 0);
    file.set_len(GIB).unwrap();
    let source = source(&file);
    for (size, from) in
        [(GIB, GIB - 5000), (GIB + 1, GIB - 10), (GIB + 4097, GIB - 1), (GIB + 9000, GIB)]
    {
        file.set_len(size).unwrap();
        let bytes = pattern(size as u8, from..size);
        file.write_all_at(&bytes, from).unwrap();
        same(&source, &bytes, from..size);
    }
    file.set_len(GIB - 3).unwrap();
    let mut expected = vec![0; 4997];
    file.read_exact_at(&mut expected, GIB - 5000).unwrap();
    same(&source, &expected, GIB - 5000..GIB - 3);
}

#[test]
fn unusual_files() {
    // Deleted is what all temporary files are. A memfd, sealed.
    let memfd = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
    let mut m = File::from(memfd);
    m.write_all(&pattern(3, 0..10_000)).unwrap();
    rustix::fs::fcntl_add_seals(
        &m,
        rustix::fs::SealFlags::WRITE | rustix::fs::SealFlags::SHRINK | rustix::fs::SealFlags::GROW,
    )
    .unwrap();
    same(&Source::new(m.try_clone().unwrap()).unwrap(), &pattern(3, 0..10_000), 0..10_000);
    let guard = GuardedFile::new(m.try_clone().unwrap()).unwrap();
    assert!(matches!(guard.write_at(b"x", 0, deadline()), Err(Error::File { .. })));
}

#[test]
fn offsets_at_the_end_of_the_range_of_numbers() {
    let file = file(1, 4096);
    let guard = GuardedFile::new(file.try_clone().unwrap()).unwrap();
    for at in [u64::MAX, u64::MAX - 1, i64::MAX as u64, i64::MAX as u64 + 1, 1 << 62] {
        let e = guard.write_at(b"xy", at, deadline());
        assert!(e.is_err());
        guard.try_write_at(b"x", at).unwrap_err();
        guard.set_len(at, deadline()).unwrap_err();
        guard.punch_hole(at - 5..at, deadline()).unwrap_err();
        guard.punch_hole(0..at, deadline()).unwrap_err();
    }
    let lease = guard.try_lease(0..u64::MAX).unwrap();
    let waits = common::waiting(file.try_clone().unwrap());
    assert!(matches!(waits.try_write_at(b"x", u64::MAX - 5), Ok(TryWrite::Blocked(_))));
    guard.try_write_at(b"x", u64::MAX - 5).unwrap_err();
    drop(lease);
    #[expect(clippy::reversed_empty_ranges)]
    let lease = guard.try_lease(10..5).unwrap();
    assert_eq!(lease.ranges(), []);
    let (tx, _rx) = common::tcp();
    let mut s = sender(tx, Engine::Copy);
    #[expect(clippy::reversed_empty_ranges)]
    let sent = s.try_send_lease(&lease, 10..5, SendFlags::NONE).unwrap();
    assert!(matches!(sent, Sent::Accepted { bytes: 0, .. }));
    assert_eq!(guard.writers(), 0);
    assert_eq!(guard.in_flight(), []);
}

#[test]
fn a_disk_under_two_names_has_one_table() {
    if !common::can("no loop device", &["losetup", "-f"]) {
        return;
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let image = dir.path().join("image");
    std::fs::write(&image, pattern(1, 0..1 << 20)).unwrap();
    let out =
        std::process::Command::new("losetup").args(["-f", "--show"]).arg(&image).output().unwrap();
    if !out.status.success() {
        println!("SKIP: no loop device: {}", String::from_utf8_lossy(&out.stderr));
        return;
    }
    let dev = String::from_utf8(out.stdout).unwrap().trim().to_owned();
    let other = dir.path().join("other");
    common::sh(&format!(
        "mknod {} b $((0x$(stat -c %t {dev}))) $((0x$(stat -c %T {dev})))",
        other.display()
    ));
    let result = std::panic::catch_unwind(|| {
        let (one, two) = (waiting(&dev), waiting(&other));
        same(one.source(), &pattern(1, 4000..1 << 20), 4000..1 << 20);
        let _lease = one.try_lease(0..4096).unwrap();
        matches!(two.try_write_at(b"x", 0), Ok(TryWrite::Blocked(_)))
    });
    common::sh(&format!("losetup -d {dev}"));
    assert!(result.unwrap(), "written over a lease");
}

/// A handle whose writers show by waiting that they know of a lease.
fn waiting(path: impl AsRef<std::path::Path>) -> GuardedFile {
    let options = GuardOptions::new().overwrite(Overwrite::Wait).nothing_exposed();
    options.open(path).unwrap()
}

#[test]
fn links_and_renames() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    std::fs::write(&a, [1; 4096]).unwrap();
    std::fs::hard_link(&a, &b).unwrap();
    let (one, two) = (waiting(&a), waiting(&b));
    let lease = one.try_lease(0..10).unwrap();
    assert!(matches!(two.try_write_at(b"x", 5), Ok(TryWrite::Blocked(_))));
    std::fs::write(dir.path().join("c"), [2; 4096]).unwrap();
    std::fs::rename(dir.path().join("c"), &a).unwrap();
    let new = GuardedFile::open(&a).unwrap();
    assert_eq!(new.try_write_at(b"x", 5).unwrap(), TryWrite::Written);
    assert!(matches!(two.try_write_at(b"x", 5), Ok(TryWrite::Blocked(_))));
    drop((one, lease));
    assert_eq!(two.try_write_at(b"x", 5).unwrap(), TryWrite::Written);
}
