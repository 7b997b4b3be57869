//! Detaching: what is in flight keeps its bytes, whatever is written afterwards.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::net::TcpStream;
use std::os::unix::fs::FileExt;

use common::filesystems::{DETACHING, Filesystem, filesystems, here, mounted, overlay, tmpfs};
use common::pattern;
use sendfile2::Source;
use sendfile2::detach::{Detacher, Eraser, NotDetached, REGION};

const SLOT: u64 = 128 << 10;

fn index(at: u64) -> usize {
    usize::try_from(at).unwrap()
}

/// A file of `len` bytes of `pattern(seed)`, written out.
fn made(filesystem: &Filesystem, seed: u8, len: u64) -> File {
    let path = filesystem.dir.join("file");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path);
    let file = file.unwrap();
    file.write_all_at(&pattern(seed, 0..len), 0).unwrap();
    file.sync_all().unwrap();
    file
}

fn detacher(file: &File) -> Result<Detacher, NotDetached> {
    Detacher::new(&common::source(file))
}

/// Queues `range` of the file by `sendfile(2)` on a connection whose peer has not read anything.
fn queued(file: &File, range: std::ops::Range<u64>) -> TcpStream {
    let (sender, receiver) = common::tcp_on_this_host_large_window();
    rustix::net::sockopt::set_socket_send_buffer_size(&sender, 1 << 20).unwrap();
    let (mut at, end) = (range.start, range.end);
    while at < end {
        let mut offset = at;
        let want = index(end - at);
        let sent = rustix::fs::sendfile(&sender, file, Some(&mut offset), want).unwrap();
        assert!(sent > 0);
        at += sent as u64;
    }
    drop(sender);
    receiver
}

fn wrong(receiver: &mut TcpStream, expected: &[u8]) -> usize {
    let mut got = Vec::new();
    receiver.read_to_end(&mut got).unwrap();
    common::wrong(&got, expected)
}

/// Where a refusal is a fault.
fn must_detach(filesystem: &Filesystem) -> bool {
    DETACHING.contains(&filesystem.name)
}

#[test]
fn what_is_in_flight_keeps_its_bytes_whoever_sent_it() {
    for filesystem in filesystems() {
        let name = filesystem.name;
        let file = made(&filesystem, 1, 4 * SLOT);
        let detacher = match detacher(&file) {
            Ok(detacher) => detacher,
            Err(why) => {
                assert!(!must_detach(&filesystem), "{name}: {why}");
                println!("SKIP: {name}: {why}");
                continue;
            }
        };
        let range = SLOT + 100..3 * SLOT - 50;
        let mut receiver = queued(&file, range.clone());
        let detached = detacher.detach(&range);
        let detached = match detached {
            Ok(detached) => detached,
            Err(why) => {
                // Overlayfs over a filesystem that does not, for example.
                assert!(!must_detach(&filesystem), "{name}: {why}");
                println!("SKIP: {name}: {why}");
                continue;
            }
        };
        assert!(detached.tries > 0, "{name}: it was cached");
        // By pieces that no block begins with.
        let new = pattern(!1, range.clone());
        for (i, piece) in new.chunks(5000).enumerate() {
            file.write_all_at(piece, range.start + i as u64 * 5000).unwrap();
        }
        assert_eq!(wrong(&mut receiver, &pattern(1, range.clone())), 0, "{name}");
        let mut content = pattern(1, 0..4 * SLOT);
        content[index(range.start)..index(range.end)].copy_from_slice(&new);
        let mut now = vec![0; content.len()];
        file.read_exact_at(&mut now, 0).unwrap();
        assert!(now == content, "{name}: the file has what was written, and nothing else changed");
    }
}

#[test]
fn control_an_ordinary_write_changes_what_is_in_flight() {
    let file = made(&here(), 1, 4 * SLOT);
    let mut receiver = queued(&file, SLOT..2 * SLOT);
    file.write_all_at(&pattern(!1, SLOT..2 * SLOT), SLOT).unwrap();
    assert!(wrong(&mut receiver, &pattern(1, SLOT..2 * SLOT)) > 0);
}

#[test]
fn an_overwrite_changes_nothing_in_flight_while_others_go_on_sending() {
    for filesystem in filesystems() {
        let name = filesystem.name;
        let file = made(&filesystem, 1, 4 * SLOT);
        let Ok(detacher) = detacher(&file) else { continue };
        let mut receiver = queued(&file, 0..4 * SLOT);
        match detacher.overwrite(&pattern(!1, SLOT..2 * SLOT), SLOT) {
            Ok(()) => {}
            Err(why) => {
                // Direct writes of overlayfs know no RWF_NOWAIT.
                assert!(!must_detach(&filesystem), "{name}: {why}");
                assert_eq!(why.written, 0, "{name}");
                println!("SKIP: {name}: {why}");
                assert_eq!(wrong(&mut receiver, &pattern(1, 0..4 * SLOT)), 0, "{name}");
                continue;
            }
        }
        assert_eq!(wrong(&mut receiver, &pattern(1, 0..4 * SLOT)), 0, "{name}");
        let mut now = vec![0; index(4 * SLOT)];
        file.read_exact_at(&mut now, 0).unwrap();
        let mut content = pattern(1, 0..4 * SLOT);
        content[index(SLOT)..index(2 * SLOT)].copy_from_slice(&pattern(!1, SLOT..2 * SLOT));
        assert!(now == content, "{name}");
    }
}

/// The setting in which a plain direct write goes in place now and then: a slab without blocks,
/// whose first writes are still dirty, while the filesystem commits.
#[test]
fn first_writes_to_a_sparse_slab_are_detached_or_refused() {
    for name in ["ext4", "ext4 with 1 KiB blocks", "xfs"] {
        let Some(filesystem) = mounted(name) else { continue };
        let path = filesystem.dir.join("slab");
        let slab = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path);
        let slab = slab.unwrap();
        slab.set_len(64 * SLOT).unwrap();
        let detacher = detacher(&slab).unwrap();
        let (mut refused, mut wrong_bytes) = (0, 0);
        for slot in 0..64 {
            let range = slot * SLOT..(slot + 1) * SLOT;
            slab.write_all_at(&pattern(2, range.clone()), range.start).unwrap();
            let mut receiver = queued(&slab, range.clone());
            match detacher.detach(&range) {
                Ok(_) => slab.write_all_at(&pattern(!2, range.clone()), range.start).unwrap(),
                Err(_) => refused += 1,
            }
            wrong_bytes += wrong(&mut receiver, &pattern(2, range));
        }
        assert_eq!(wrong_bytes, 0, "{name}");
        assert!(refused < 64, "{name}");
    }
}

#[test]
fn the_end_of_the_file_is_detached_where_a_direct_write_reaches_it() {
    for filesystem in filesystems().into_iter().filter(must_detach) {
        let name = filesystem.name;
        // Two blocks of 512 bytes and a rest are in the last page; and then a rest alone.
        for (rest, reachable) in [(1024 + 17, true), (17, false)] {
            let len = 2 * 65_536 + rest;
            let file = made(&filesystem, 3, len);
            let detacher = detacher(&file).unwrap();
            let mut receiver = queued(&file, 65_536..len);
            let range = 65_536..len + 5000;
            match detacher.detach(&range) {
                Ok(detached) => {
                    assert_eq!(detached.range.end, len);
                    file.write_all_at(&pattern(!3, range.clone()), range.start).unwrap();
                }
                // A device may have blocks of 4096 bytes; on btrfs a clone takes the end, too.
                Err(NotDetached::End { bytes, unit }) => {
                    assert_eq!(bytes, rest, "{name}");
                    assert!(!reachable || unit > 512, "{name}");
                }
                Err(why) => panic!("{name}: {why}"),
            }
            assert_eq!(wrong(&mut receiver, &pattern(3, 65_536..len)), 0, "{name}");
        }
    }
}

/// Where the content of a file is in memory only, direct I/O takes nothing out, but a hole does.
#[test]
fn a_region_is_erased_and_what_is_in_flight_is_not() {
    let memory = [Some(tmpfs()), mounted("tmpfs with huge pages")].into_iter().flatten();
    let memory: Vec<_> = memory.collect();
    let disks = filesystems().into_iter().filter(must_detach).chain(mounted("ext3"));
    for filesystem in disks.chain(memory) {
        let file = made(&filesystem, 4, 3 * REGION);
        erases(filesystem.name, &file);
    }
}

/// A disk itself, as far as a file can be one.
#[test]
fn a_region_of_a_block_device_is_erased() {
    let Some(disk) = common::filesystems::loop_device(3 * REGION) else { return };
    let device = OpenOptions::new().read(true).write(true).open(&disk.dir).unwrap();
    device.write_all_at(&pattern(4, 0..3 * REGION), 0).unwrap();
    device.sync_all().unwrap();
    erases(disk.name, &device);
}

fn erases(name: &str, file: &File) {
    let eraser = Eraser::new(&common::source(file)).unwrap_or_else(|why| panic!("{name}: {why}"));
    let range = REGION..2 * REGION;
    let sent = REGION + 5..REGION + 5 + SLOT;
    let mut receiver = queued(file, sent.clone());
    eraser.erase(&range).unwrap_or_else(|why| panic!("{name}: {why}"));
    let mut zeroes = vec![1; index(REGION)];
    file.read_exact_at(&mut zeroes, REGION).unwrap();
    assert!(zeroes.iter().all(|byte| *byte == 0), "{name}");
    file.write_all_at(&pattern(!4, range.clone()), range.start).unwrap();
    assert_eq!(wrong(&mut receiver, &pattern(4, sent)), 0, "{name}");
    let beside = [(0..REGION), (2 * REGION..3 * REGION)];
    for beside in beside {
        let mut now = vec![0; index(REGION)];
        file.read_exact_at(&mut now, beside.start).unwrap();
        assert!(now == pattern(4, beside), "{name}: beside it nothing has changed");
    }
    // The control.
    let mut receiver = queued(file, 5..5 + SLOT);
    file.write_all_at(&pattern(!4, 0..REGION), 0).unwrap();
    assert!(wrong(&mut receiver, &pattern(4, 5..5 + SLOT)) > 0, "{name}");
    let part = eraser.erase(&(REGION..REGION + 4096)).unwrap_err();
    assert!(matches!(part, NotDetached::Unaligned { unit: REGION, .. }), "{part}");
    let behind = eraser.erase(&(2 * REGION..4 * REGION)).unwrap_err();
    assert!(matches!(behind, NotDetached::BehindEnd { .. }), "{behind}");
}

/// A slab that is full: what is erased gives its space to whoever comes first.
#[test]
fn an_erased_region_of_a_full_tmpfs_has_zeroes_and_nothing_in_flight_changes() {
    let Some(filesystem) = mounted("tmpfs of 8 MiB") else { return };
    let file = made(&filesystem, 4, 2 * REGION);
    let eraser = Eraser::new(&common::source(&file)).unwrap();
    let mut receiver = queued(&file, 0..SLOT);
    eraser.erase(&(0..REGION)).unwrap();
    let greedy = File::create(filesystem.dir.join("greedy")).unwrap();
    let mut filled = 0;
    while greedy.write_all_at(&[1; 4096], filled).is_ok() {
        filled += 4096;
    }
    let full = file.write_all_at(&pattern(!4, 0..REGION), 0).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let mut zeroes = vec![1; index(REGION)];
    file.read_exact_at(&mut zeroes, 0).unwrap();
    assert!(zeroes.iter().all(|byte| *byte == 0));
    assert_eq!(wrong(&mut receiver, &pattern(4, 0..SLOT)), 0);
    // A slab of holes has nothing that shows itself as cached.
    drop(greedy);
    std::fs::remove_file(filesystem.dir.join("greedy")).unwrap();
    eraser.erase(&(0..2 * REGION)).unwrap();
    Eraser::new(&common::source(&file)).unwrap().erase(&(0..REGION)).unwrap();
}

/// Whoever overwrites the first page again and again, with a detacher for each time, is not to find
/// it read each time.
#[test]
fn where_something_is_cached_nothing_is_read_to_find_the_proof() {
    let file = made(&here(), 11, 4 * SLOT);
    let Ok(first) = detacher(&file) else {
        println!("SKIP: no direct I/O here");
        return;
    };
    first.detach(&(0..4 * SLOT)).unwrap();
    file.read_exact_at(&mut [0], 2 * SLOT).unwrap();
    let proof = detacher(&file).unwrap().proof();
    assert_eq!(proof, first.proof());
    let page = common::source(&file).mapped(0..4096).unwrap().unwrap();
    assert!(!page.is_resident());
}

/// An empty file has nothing to be asked for: the way is found when it has.
#[test]
fn an_empty_file_is_detached_when_it_has_grown() {
    let file = made(&here(), 12, 0);
    let Ok(detacher) = detacher(&file) else {
        println!("SKIP: no direct I/O here");
        return;
    };
    detacher.detach(&(0..SLOT)).unwrap();
    file.write_all_at(&pattern(12, 0..SLOT), 0).unwrap();
    let mut receiver = queued(&file, 0..SLOT);
    assert!(detacher.detach(&(0..SLOT)).unwrap().tries > 0);
    file.write_all_at(&pattern(!12, 0..SLOT), 0).unwrap();
    assert_eq!(wrong(&mut receiver, &pattern(12, 0..SLOT)), 0);
    assert_eq!(detacher.proof(), Detacher::new(&common::source(&file)).unwrap().proof());
}

#[test]
fn where_pages_cannot_leave_the_cache_it_is_refused_with_the_reason() {
    let all = [Some(tmpfs()), mounted("tmpfs with huge pages"), mounted("ext4 with data=journal")];
    for filesystem in all.into_iter().flatten() {
        let file = made(&filesystem, 5, SLOT);
        let why = detacher(&file).unwrap_err();
        assert!(matches!(why, NotDetached::NoDirect { .. }), "{why}");
        assert!(why.to_string().contains("direct I/O"), "{why}");
    }
}

/// A file that is small, or cold, needs nothing.
#[test]
fn what_is_not_cached_is_detached_already() {
    let filesystem = here();
    let file = made(&filesystem, 6, 4 * SLOT);
    let Ok(detacher) = detacher(&file) else {
        println!("SKIP: no direct I/O here");
        return;
    };
    let behind = detacher.detach(&(4 * SLOT..5 * SLOT)).unwrap();
    assert_eq!((behind.range, behind.tries), (4 * SLOT..4 * SLOT, 0));
    let first = detacher.detach(&(0..SLOT)).unwrap();
    assert!(first.tries > 0);
    let again = detacher.detach(&(0..SLOT)).unwrap();
    assert_eq!((again.range, again.tries), (0..SLOT, 0));
}

#[test]
fn an_overwrite_is_of_whole_units_within_the_file() {
    let file = made(&here(), 7, SLOT);
    let Ok(detacher) = detacher(&file) else {
        println!("SKIP: no direct I/O here");
        return;
    };
    let unit = detacher.unit().unwrap();
    let whole = vec![0; index(unit)];
    for (data, offset) in [(&whole[..], 1), (&whole[1..], 0), (&whole[..], u64::MAX - unit + 1)] {
        let refused = detacher.overwrite(data, offset).unwrap_err();
        assert!(matches!(refused.why, NotDetached::Unaligned { .. }), "{refused}");
    }
    let refused = detacher.overwrite(&whole, SLOT).unwrap_err();
    assert!(matches!(refused.why, NotDetached::BehindEnd { size: SLOT, .. }), "{refused}");
    let mut now = vec![0; index(SLOT)];
    file.read_exact_at(&mut now, 0).unwrap();
    assert!(now == pattern(7, 0..SLOT));
}

#[test]
fn the_descriptor_that_was_given_stays_as_it_is() {
    let filesystem = here();
    let file = made(&filesystem, 8, SLOT);
    let read_only = File::open(filesystem.dir.join("file")).unwrap();
    let source = Source::new(read_only.try_clone().unwrap()).unwrap();
    let Ok(detacher) = Detacher::new(&source) else {
        println!("SKIP: no direct I/O here");
        return;
    };
    detacher.detach(&(0..SLOT)).unwrap();
    for file in [&file, &read_only] {
        let flags = rustix::fs::fcntl_getfl(file).unwrap();
        assert!(!flags.contains(rustix::fs::OFlags::DIRECT));
    }
}

/// On overlayfs cachestat shows nothing, whatever there is.
#[test]
fn on_overlayfs_the_proof_is_one_that_shows_what_is_cached() {
    let Some(filesystem) = overlay() else { return };
    let file = made(&filesystem, 9, SLOT);
    let Ok(detacher) = detacher(&file) else {
        println!("SKIP: no direct I/O beneath the overlay");
        return;
    };
    let mut receiver = queued(&file, 0..SLOT);
    let detached = detacher.detach(&(0..SLOT)).unwrap();
    assert!(detached.tries > 0, "what was cached was seen");
    file.write_all_at(&pattern(!9, 0..SLOT), 0).unwrap();
    assert_eq!(wrong(&mut receiver, &pattern(9, 0..SLOT)), 0);
}

/// A file of the lower layer is another one once it is copied up: its old descriptors go on showing
/// the pages of the lower one.
#[test]
fn on_overlayfs_a_descriptor_from_before_the_copy_up_proves_nothing() {
    let Some(overlay) = overlay() else { return };
    let lower = overlay.dir.parent().unwrap().join("lower/file");
    std::fs::write(&lower, pattern(10, 0..2 * SLOT)).unwrap();
    let before = File::open(overlay.dir.join("file")).unwrap();
    let detacher = Detacher::new(&Source::new(before).unwrap());
    // Cold, so that none of the lower pages is seen.
    let cold = File::open(&lower).unwrap();
    cold.sync_all().unwrap();
    rustix::fs::fadvise(&cold, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let path = overlay.dir.join("file");
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let range = SLOT + (64 << 10)..2 * SLOT;
    let mut receiver = queued(&file, range.clone());
    if detacher.and_then(|detacher| detacher.detach(&range)).is_ok() {
        file.write_all_at(&pattern(!10, range.clone()), range.start).unwrap();
    }
    assert_eq!(wrong(&mut receiver, &pattern(10, range)), 0);
}
