//! A store that is damaged, full, somebody else's or of another version: it serves no wrong byte,
//! says what it dropped, and destroys nothing that is not a store's.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use common::{HEAD, Loop, MIB, body, opened, put, small, stored};
use sendfile2_cache::store::{Ban, Key, Options, Store, StoreError};

const META: u64 = 4 * MIB;
const REGION: u64 = 2 * MIB;

fn options(path: &Path) -> Options {
    Options { path: Some(path.into()), ..small() }
}

fn key(n: u32) -> Key {
    Key::of(&[&n.to_le_bytes()])
}

fn fill(store: &Store, keys: std::ops::Range<u32>) {
    for n in keys {
        put(store, key(n), [0; 24], HEAD, &body(n, 40_000), None).unwrap();
    }
}

/// Reads all there is; returns how much that was.
fn check(store: &Store, keys: std::ops::Range<u32>) -> usize {
    let found = keys.filter_map(|n| Some((n, store.get(&key(n))?)));
    found
        .map(|(n, hit)| {
            assert_eq!(&hit.head()[..], HEAD, "{n}");
            assert!(stored(&hit) == body(n, 40_000), "{n}");
        })
        .count()
}

/// A store that was filled and closed.
fn closed(path: &Path) -> usize {
    let (store, _) = opened(&options(path));
    fill(&store, 0..300);
    check(&store, 0..300)
}

fn flip(path: &Path, at: impl IntoIterator<Item = u64>) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    for at in at {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[!byte[0]], at).unwrap();
    }
}

fn refused(path: &Path, why: &str) {
    let before = std::fs::read(path).unwrap();
    match Store::open(&options(path)) {
        Err(e @ StoreError::NotAStore { .. }) => {
            let text = e.to_string();
            assert!(text.contains(why) && text.contains(path.to_str().unwrap()), "{text}");
        }
        other => panic!("{other:?}"),
    }
    assert!(std::fs::read(path).unwrap() == before, "it was not touched");
}

#[test]
fn what_is_not_a_store_is_refused_and_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    for bytes in [&b"x"[..], &[0; 10_000], &b"somebody's diary".repeat(1000)] {
        std::fs::write(&path, bytes).unwrap();
        refused(&path, "something else");
    }
    std::fs::remove_file(&path).unwrap();
    closed(&path);
    // One that was made before what is large was stored in parts, and one of a program to come.
    let mut now = [0];
    let file = File::options().read(true).write(true).open(&path).unwrap();
    file.read_exact_at(&mut now, 8).unwrap();
    for version in [now[0] - 1, now[0] + 1] {
        file.write_all_at(&[version], 8).unwrap();
        refused(&path, &format!("it has version {version}, and this program knows {}", now[0]));
    }
    file.write_all_at(&now, 8).unwrap();
    flip(&path, [40]);
    refused(&path, "checksum");
    flip(&path, [40]);
    assert!(check(&opened(&options(&path)).0, 0..300) > 0);
    File::options().write(true).open(&path).unwrap().set_len(100).unwrap();
    refused(&path, "cut short");
    let directory = Store::open(&options(dir.path()));
    assert!(matches!(directory, Err(StoreError::NotAStore { .. })), "{directory:?}");
}

#[test]
fn a_store_is_one_process() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let (store, opened) = opened(&options(&path));
    assert!(opened.made);
    assert!(matches!(Store::open(&options(&path)), Err(StoreError::InUse(_))));
    fill(&store, 0..1);
    let hit = store.get(&key(0)).unwrap();
    drop(store);
    // What is still being sent keeps nobody out.
    let (store, opened) = common::opened(&options(&path));
    assert_eq!((opened.made, opened.recovered), (false, 1));
    assert_eq!(stored(&hit), body(0, 40_000));
    assert_eq!(check(&store, 0..1), 1);
}

#[test]
fn a_region_that_is_torn_has_what_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let all = closed(&path);
    let size = std::fs::metadata(&path).unwrap().len();
    let regions: Vec<u64> = (META..size).step_by(usize::try_from(REGION).unwrap()).collect();
    let reopened = |changed: u64| {
        let (store, opened) = opened(&options(&path));
        let there = check(&store, 0..300);
        assert_eq!(there < all, changed > 0, "{opened:?}");
        (opened, store.counters().damaged, there)
    };
    assert_eq!(reopened(0).1, 0);
    // Bodies, wherever they are.
    let bytes: Vec<u64> = regions.iter().flat_map(|at| [at + 100_000, at + 700_001]).collect();
    flip(&path, bytes.clone());
    let (_, damaged, there) = reopened(1);
    assert!(damaged > 0 && there > all / 2, "{damaged} damaged, {there} of {all} there");
    flip(&path, bytes);
    // Tables: the records are looked for.
    flip(&path, regions.iter().map(|at| at + REGION - 200));
    let (opened, damaged, there) = {
        let (store, opened) = opened(&options(&path));
        let there = check(&store, 0..300);
        (opened, store.counters().damaged, there)
    };
    assert!(opened.scanned > 5 && damaged == 0 && there == all, "{opened:?}");
    // The headers of two regions.
    flip(&path, [regions[0] + 9, regions[1] + 9]);
    let (store, opened) = common::opened(&options(&path));
    assert!(check(&store, 0..300) < all, "{opened:?}");
    fill(&store, 0..300);
    assert!(check(&store, 0..300) > 0);
}

#[test]
fn where_the_bans_are_damaged_all_is_dropped_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    closed(&path);
    let (store, _) = opened(&options(&path));
    for n in 1000..1010 {
        store.ban(Ban::Key(key(n))).unwrap();
    }
    drop(store);
    // A ban in the middle, behind the first block.
    flip(&path, [4096 + 64 * 5]);
    let (store, opened) = opened(&options(&path));
    assert!(opened.dropped.iter().any(|dropped| dropped.region.is_none()), "{opened:?}");
    assert_eq!((check(&store, 0..300), opened.recovered), (0, 0));
    drop(store);
    let (store, opened) = common::opened(&options(&path));
    assert!(opened.dropped.is_empty(), "{opened:?}");
    assert_eq!(check(&store, 0..300), 0, "nor do they come back later");
    fill(&store, 0..10);
    assert_eq!(check(&store, 0..10), 10);
}

#[test]
fn bans_that_are_superfluous_make_room() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let (store, _) = opened(&options(&path));
    fill(&store, 0..1);
    // Each is some kilobytes; what it would ban was never there, or is overwritten.
    let ban = |n: u32| store.ban(Ban::Prefix(format!("http://{n}/{}", "x".repeat(100_000))));
    let full = (0..100).find_map(|n| ban(n).err());
    assert!(matches!(full, Some(StoreError::TooManyBans)), "{full:?}");
    assert!(store.counters().bans > 10);
    fill(&store, 1..1000);
    ban(1000).unwrap();
    assert!(store.counters().bans < 10);
    store.ban(Ban::All).unwrap();
    assert_eq!((check(&store, 0..1000), store.counters().objects), (0, 0));
    fill(&store, 5..6);
    drop(store);
    assert_eq!(check(&opened(&options(&path)).0, 0..1000), 1);
}

/// A filesystem in memory with so much space, which takes root.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={size},huge=never");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(dir.path());
        if mount.output().is_ok_and(|output| output.status.success()) {
            return Some(Mounted(dir));
        }
        println!("SKIP: no filesystem can be mounted");
        None
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l"]).arg(self.0.path()).status();
    }
}

#[test]
fn on_a_full_disk_no_store_is_made() {
    let Some(disk) = Mounted::new("16m") else { return };
    let path = disk.0.path().join("store");
    let full = Store::open(&options(&path));
    assert!(matches!(full, Err(StoreError::Io { op: "fallocate", .. })), "{full:?}");
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
    let smaller = Options { size: 14 * MIB, ..options(&path) };
    let (store, _) = opened(&smaller);
    fill(&store, 0..300);
    assert!(check(&store, 0..300) > 0);
}

/// In memory a region is a hole once it is erased, and its space is whoever's comes first.
#[test]
fn when_the_disk_is_full_later_nothing_wrong_is_served() {
    let Some(disk) = Mounted::new("16m") else { return };
    let path = disk.0.path().join("store");
    let (store, _) = opened(&Options { size: 14 * MIB, ..options(&path) });
    fill(&store, 0..100);
    let greedy = File::create(disk.0.path().join("greedy")).unwrap();
    let (mut filled, mut failed) = (0, 0);
    for n in 0..300 {
        while greedy.write_all_at(&[1; 4096], filled).is_ok() {
            filled += 4096;
        }
        failed += u32::from(put(&store, key(n), [0; 24], HEAD, &body(n, 40_000), None).is_err());
        check(&store, 0..300);
        if failed > 3 {
            break;
        }
    }
    assert!(failed > 0, "the disk was full");
    greedy.set_len(0).unwrap();
    let stores = |n| put(&store, key(n), [0; 24], HEAD, &body(n, 40_000), None).is_ok();
    let again = (0..1000).find(|n| stores(*n));
    assert!(again.is_some(), "it stores again: {:?}", store.regions());
    check(&store, 0..300);
    drop(store);
    check(&opened(&Options { size: 14 * MIB, ..options(&path) }).0, 0..300);
}

/// In memory nothing is detached: a region that somebody is being sent is waited for, and passed over.
#[test]
fn one_client_that_stalls_keeps_one_region_and_no_other() {
    let Some(disk) = Mounted::new("40m") else { return };
    let (store, _) = opened(&options(&disk.0.path().join("store")));
    fill(&store, 0..1);
    let hit = store.get(&key(0)).unwrap();
    let regions = store.regions().len() as u64;
    let enough = (1..5000).find(|n| {
        // While the region is waited for, there may be none.
        let _ = put(&store, key(*n), [0; 24], HEAD, &body(*n, 40_000), None);
        store.counters().recycled > 3 * regions
    });
    assert!(enough.is_some(), "{:?}", store.counters());
    assert_eq!(stored(&hit), body(0, 40_000));
    drop(hit);
    check(&store, 0..5000);
    assert_eq!(store.counters().failed, 0);
}

/// A disk that loses what it is given, and says so when it is asked: its own disk is full.
#[test]
fn what_a_disk_loses_is_not_served() {
    let Some(disk) = Mounted::new("12m") else { return };
    let Some(device) = Loop::new(&disk.0.path().join("image"), 28 * MIB) else { return };
    let path = Path::new(&device.0);
    let (store, _) = opened(&options(path));
    // Until it knows what it has lost.
    let lost = (0..5000).find(|n| {
        let _ = put(&store, key(*n), [0; 24], HEAD, &body(*n, 40_000), None);
        if n % 100 == 99 {
            check(&store, 0..*n);
        }
        store.counters().failed > 0
    });
    let counters = store.counters();
    let lost = lost.unwrap_or_else(|| panic!("{counters:?}"));
    println!("{counters:?}");
    drop(store);
    // Without what the page cache has kept of it.
    let file = File::open(path).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    match Store::open(&options(path)) {
        Ok((store, _)) => assert!(check(&store, 0..lost) < lost as usize),
        Err(why) => println!("not opened: {why}"),
    }
}

#[test]
fn a_block_device_is_a_store_and_one_with_something_else_is_not() {
    let size = 28 * MIB;
    let image = tempfile::tempdir().unwrap();
    let Some(device) = Loop::new(&image.path().join("image"), size) else { return };
    let path = Path::new(&device.0);
    let last = OpenOptions::new().write(true).open(path).unwrap();
    // Some say at a disk's end what it is.
    last.write_all_at(b"mine", size - 512).unwrap();
    let refused = Store::open(&options(path));
    last.write_all_at(&[0; 4], size - 512).unwrap();
    drop(last);
    let (store, opened) = common::once_free(&options(path));
    fill(&store, 0..600);
    let there = check(&store, 0..600);
    let counters = store.counters();
    drop(store);
    let again = common::once_free(&options(path));
    let recovered = check(&again.0, 0..600);
    drop(again);
    let mut first = [0; 8];
    File::open(path).unwrap().read_exact(&mut first).unwrap();
    assert!(matches!(refused, Err(StoreError::NotAStore { .. })), "{refused:?}");
    assert!(opened.made && there > 0 && recovered == there, "{counters:?}");
    assert_eq!(&first, b"sf2cache");
}
