//! Senders that nobody controls: they send the file by `sendfile(2)` while it is overwritten.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::io::IoSlice;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use common::filesystems::{Filesystem, block_device, here, mounted};
use common::peek::{LEN, Seen, beside};
use rustix::fs::{IFlags, ioctl_setflags};
use rustix::io::{Errno, ReadWriteFlags};
use sendfile2::detach::{Detacher, NotDetached};
use sendfile2_sys::mapping::Mapping;

/// Files that can be overwritten beside them; those of btrfs without and with copying on write.
fn files() -> Vec<(Filesystem, File, Detacher)> {
    let names = ["ext4", "ext4 with 1 KiB blocks", "xfs", "btrfs", NODATACOW];
    let mounts = names.into_iter().filter_map(|name| match name {
        NODATACOW => mounted("btrfs").map(|mut btrfs| {
            btrfs.name = name;
            btrfs
        }),
        name => mounted(name),
    });
    mounts.chain(block_device(4 << 20)).chain([here()]).filter_map(made).collect()
}

/// Is overwritten by direct I/O, as it takes no clone of a file with checksums.
const NODATACOW: &str = "btrfs with NODATACOW";

fn made(filesystem: Filesystem) -> Option<(Filesystem, File, Detacher)> {
    let path = filesystem.dir.join("file");
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
    let file = file.unwrap();
    if filesystem.name == NODATACOW {
        ioctl_setflags(&file, IFlags::NOCOW).unwrap();
    }
    // More than is sent: neighbours in the same folio.
    file.write_all_at(&vec![0; 8 * LEN], 0).unwrap();
    file.sync_all().unwrap();
    let detacher = Detacher::new(&common::source(&file));
    let tried = detacher.and_then(|detacher| match detacher.overwrite(&[0; LEN], 0) {
        Ok(()) => Ok(detacher),
        Err(refused) => Err(refused.why),
    });
    match tried {
        Ok(detacher) => Some((filesystem, file, detacher)),
        Err(why) => {
            println!("SKIP: {}: {why}", filesystem.name);
            None
        }
    }
}

/// A few thousand overwrites show the control's fault hundreds of times.
const OVERWRITES: u64 = 400;

fn last(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; LEN];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn an_overwrite_changes_nothing_that_they_have_handed_over() {
    for (filesystem, file, detacher) in files() {
        let name = filesystem.name;
        let mut expected = last(&file);
        let enough = |seen: &Seen| seen.overwrites >= OVERWRITES && seen.sends > 0;
        let seen = beside(&file, enough, |new, _| match detacher.overwrite(new, 0) {
            Ok(()) => {
                expected = new.to_vec();
                true
            }
            Err(refused) => {
                let why = &refused.why;
                let busy =
                    matches!(why, NotDetached::Cached { .. } | NotDetached::WouldWait { .. });
                assert!(busy, "{name}: {refused}");
                let written = usize::try_from(refused.written).unwrap();
                expected[..written].copy_from_slice(&new[..written]);
                false
            }
        });
        println!("{name}: {seen:?}");
        assert!(enough(&seen), "{name}: {seen:?}");
        assert_eq!(seen.changed, 0, "{name}: {seen:?}");
        assert!(last(&file) == expected, "{name}: what was reported as written is there");
    }
}

/// The control: who sends between the two steps brings the pages back.
#[test]
fn control_to_detach_and_then_to_write_changes_what_they_have_handed_over() {
    for (filesystem, file, detacher) in files() {
        let name = filesystem.name;
        let enough = |seen: &Seen| seen.changed > 0 && seen.overwrites >= OVERWRITES;
        let seen = beside(&file, enough, |new, senders| {
            let detached = detacher.detach(&(0..LEN as u64)).is_ok();
            if detached {
                senders.let_send();
                file.write_all_at(new, 0).unwrap();
            }
            detached
        });
        println!("{name}: {seen:?}");
        assert!(seen.changed > 0, "{name}: {seen:?}");
    }
}

/// A kernel with `RWF_DETACH` is used where it is there: the new bytes are in the page cache, where
/// direct I/O leaves none.
#[test]
fn where_the_kernel_detaches_what_was_written_is_cached() {
    let flag = ReadWriteFlags::from_bits_retain(0x8000);
    for (filesystem, file, detacher) in files() {
        let name = filesystem.name;
        match rustix::io::pwritev2(&file, &[IoSlice::new(&[0])], 0, flag) {
            Ok(_) => {}
            Err(Errno::OPNOTSUPP) => {
                println!("SKIP: {name}: the kernel has no RWF_DETACH");
                continue;
            }
            Err(error) => panic!("{name}: {error}"),
        }
        detacher.overwrite(&[7; LEN], 0).unwrap();
        let range = 0..LEN as u64;
        let mapping = Mapping::new(file.as_fd(), range.clone()).unwrap();
        let cached = mapping.region(range).unwrap().resident_pages().unwrap();
        assert_eq!(cached, LEN as u64 / rustix::param::page_size() as u64, "{name}");
        assert!(last(&file) == [7; LEN], "{name}");
    }
}
