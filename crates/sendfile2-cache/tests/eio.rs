//! A disk that fails in the midst: the store serves no wrong byte, says what it lost, and goes on
//! without the regions that fail; and the proxy without the store.
#![allow(clippy::unwrap_used)]

mod common;
mod origin;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{HEAD, Loop, MIB, body, once_free, put, small, stored};
use http_body_util::BodyExt;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use sendfile2_cache::Cache;
use sendfile2_cache::proxy::{Limits, Timeouts};
use sendfile2_cache::store::{Ban, Counters, Key, Options, Store, StoreError};

const META: u64 = 4 * MIB;
const REGION: u64 = 2 * MIB;
const REGIONS: u64 = 12;

/// A disk that fails from some byte on when it is told to: a loop device, whose file is cut there and
/// must not grow again. Its kernel then answers reads and writes there with EIO.
struct Failing {
    device: Loop,
    image: File,
}

impl Failing {
    fn new() -> Option<Self> {
        let flags = MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC;
        let image = File::from(memfd_create("disk", flags).unwrap());
        image.set_len(META + REGIONS * REGION).unwrap();
        let path = format!("/proc/{}/fd/{}", std::process::id(), image.as_raw_fd());
        Some(Failing { device: Loop::over(Path::new(&path))?, image })
    }

    /// As [`new`](Self::new), where the kernel's loop devices fail behind the end of their file. Older
    /// ones read zeros there: such a disk is wrong, and does not say so.
    fn if_it_fails() -> Option<Self> {
        let disk = Self::new()?;
        let probe = Self::new()?;
        probe.fails_from(0);
        if File::open(probe.path()).unwrap().read_at(&mut [0; 512], META).is_ok() {
            println!("SKIP: this kernel's loop devices read zeros behind the end of their file");
            return None;
        }
        Some(disk)
    }

    fn path(&self) -> PathBuf {
        self.device.0.clone().into()
    }

    fn open(&self) -> (Store, sendfile2_cache::store::Opened) {
        once_free(&Options { path: Some(self.path()), ..small() })
    }

    /// Has all regions from this one on fail. What is in the page cache stays there.
    fn fails_from(&self, region: u64) {
        // Sealed first: what the store writes meanwhile must not make it grow again.
        fcntl_add_seals(&self.image, SealFlags::GROW).unwrap();
        self.image.set_len(META + region * REGION).unwrap();
    }

    /// Has what is in the page cache written, and takes it out of there.
    fn forget(&self) {
        let device = File::open(self.path()).unwrap();
        rustix::fs::fdatasync(&device).unwrap();
        rustix::fs::fadvise(&device, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }
}

fn key(n: u32) -> Key {
    Key::of(&[&n.to_le_bytes()])
}

fn len(n: u32) -> usize {
    if n % 10 == 9 { 1_500_000 } else { 40_000 }
}

fn store_one(store: &Store, n: u32) -> Result<(), StoreError> {
    put(store, key(n), [0; 24], HEAD, &body(n, len(n)), None).map(drop)
}

/// Reads all there is; returns how much that was.
fn check(store: &Store, keys: u32) -> usize {
    let found = (0..keys).filter_map(|n| Some((n, store.get(&key(n))?)));
    found.map(|(n, hit)| assert!(stored(&hit) == body(n, len(n)), "{n}")).count()
}

/// Stores on, until all that fails is known to and what is stored is in the regions that do not.
fn goes_on(store: &Store, from: u32, fails_from: u64) -> Counters {
    let fails = REGIONS - fails_from;
    let settled = (from..from + 5000).find(|n| {
        let _ = store_one(store, *n);
        store.counters().failed == fails
    });
    let Some(settled) = settled else { panic!("{:?}", store.regions()) };
    for n in settled + 1..settled + 100 {
        store_one(store, n).unwrap();
        assert!(store.get(&key(n)).is_some(), "{n}");
    }
    assert!(check(store, settled + 100) > 0);
    for (region, state) in (0..).zip(store.regions()) {
        assert_eq!(state.failed, region >= fails_from, "{region}");
    }
    store.counters()
}

#[test]
fn a_disk_that_fails_costs_what_was_there_and_no_more() {
    let Some(disk) = Failing::if_it_fails() else { return };
    let (store, opened) = disk.open();
    assert!(opened.made);
    (0..200).for_each(|n| store_one(&store, n).unwrap());
    drop(store);
    disk.forget();
    disk.fails_from(11);
    let (store, opened) = disk.open();
    let dropped: Vec<_> = opened.dropped.iter().map(|dropped| dropped.region).collect();
    assert_eq!(dropped, [Some(11)], "{opened:?}");
    assert!(opened.dropped[0].why.contains("pread"), "{opened:?}");
    assert!(check(&store, 200) > 0);
    goes_on(&store, 200, 11);
}

#[test]
fn reads_that_fail_at_a_hit_are_misses() {
    let Some(disk) = Failing::if_it_fails() else { return };
    drop({
        let (store, _) = disk.open();
        (0..200).for_each(|n| store_one(&store, n).unwrap());
        store
    });
    let (store, opened) = disk.open();
    assert!(opened.dropped.is_empty());
    disk.forget();
    disk.fails_from(6);
    let there = check(&store, 200) as u64;
    let counters = store.counters();
    assert!(there > 0 && there < opened.recovered, "{there} {opened:?}");
    // Some were overwritten by what is stored meanwhile.
    let told = counters.damaged + counters.evicted;
    assert!(counters.damaged > 0 && there + told >= opened.recovered, "{counters:?}");
    goes_on(&store, 200, 6);
    drop(store);
    let (store, opened) = disk.open();
    assert_eq!(opened.dropped.len(), 6, "{opened:?}");
    check(&store, 6000);
}

/// Bytes that were compared with their checksums before are looked at again only by those who send them.
#[test]
fn reads_that_fail_while_it_is_sent_are_errors() {
    let Some(disk) = Failing::if_it_fails() else { return };
    let (store, _) = disk.open();
    let hits: Vec<_> = (0..100)
        .filter_map(|n| put(&store, key(n), [0; 24], HEAD, &body(n, len(n)), None).ok())
        .collect();
    disk.forget();
    disk.fails_from(0);
    let mut failed = 0;
    for (n, hit) in (0..).zip(&hits) {
        for (lease, at) in hit.leases(0..hit.len()) {
            let mut bytes = vec![0; 1000];
            match lease.read_at(&mut bytes, at.start) {
                Ok(read) => assert!(read == 0 || bytes[..read] == body(n, len(n))[..read]),
                Err(_) => failed += 1,
            }
        }
    }
    assert!(failed > 0);
}

#[test]
fn writes_that_fail_in_a_fill_end_it_and_others_go_on() {
    let Some(disk) = Failing::if_it_fails() else { return };
    let (store, _) = disk.open();
    let mut n = 0;
    while store.regions()[6].generation == 0 {
        store_one(&store, n).unwrap();
        n += 1;
    }
    let mut fill = store.begin(key(n), [0; 24], HEAD, None).unwrap();
    fill.write(&body(n, 300_000)).unwrap();
    let mut reader = fill.reader();
    disk.forget();
    disk.fails_from(3);
    // What is not in the page cache is read before it is written, or is written later.
    let rest = &body(n, 1_500_000)[300_000..];
    let written = rest.chunks(50_001).try_for_each(|piece| fill.write(piece));
    let told = written.and_then(|()| fill.finish().map(drop)).and_then(|()| {
        // It is only written when it has to be.
        store.ban(Ban::Key(key(1_000_000)))
    });
    assert!(matches!(told, Err(StoreError::Io { .. } | StoreError::Guard(_))), "{told:?}");
    // Who reads it meanwhile has no wrong byte.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if let Ok(bytes) = runtime.block_on(reader.read()) {
        assert!(bytes == body(n, 1_500_000)[..bytes.len()]);
    }
    check(&store, n);
    let counters = goes_on(&store, n + 1, 3);
    println!("{counters:?}");
}

#[test]
fn what_cannot_be_synced_is_dropped_and_a_ban_says_so() {
    let Some(disk) = Failing::if_it_fails() else { return };
    let (store, _) = disk.open();
    let mut n = 0;
    while store.regions()[6].generation == 0 {
        store_one(&store, n).unwrap();
        n += 1;
    }
    let last = n - 1;
    assert!(store.get(&key(last)).is_some());
    disk.fails_from(3);
    let banned = store.ban(Ban::Key(key(0)));
    assert!(matches!(banned, Err(StoreError::Io { op: "fdatasync", .. })), "{banned:?}");
    assert!(store.get(&key(last)).is_none(), "it was in no table yet");
    assert!(store.get(&key(0)).is_none(), "this process does not serve it");
    assert!(store.counters().damaged > 0);
    check(&store, n);
    goes_on(&store, n, 3);
    // And again, when the disk has told what it had to.
    let banned = (0..100).find(|n| store.ban(Ban::Key(key(*n))).is_ok());
    assert!(banned.is_some());
    drop(store);
    let (store, _) = disk.open();
    assert!(store.get(&key(0)).is_none());
    check(&store, 6000);
}

/// No region is left: what is asked for is passed on.
#[tokio::test]
async fn without_a_region_answers_pass() {
    let Some(disk) = Failing::if_it_fails() else { return };
    let origin = origin::Origin::new(|seen| async move {
        let n: u32 = seen.path.trim_start_matches('/').parse().unwrap();
        origin::response(200, &[("cache-control", "max-age=1000")], body(n, len(n)))
    })
    .await;
    let (store, _) = disk.open();
    let limit = Duration::from_secs(60);
    let timeouts = Timeouts { connect: limit, head: limit, stall: limit };
    let cache = Cache::new(store, origin::origins(&[&origin.url], timeouts), Limits::default());
    for n in 0..150 {
        if n == 50 {
            disk.forget();
            disk.fails_from(0);
        }
        let answer = cache.answer(origin::request("GET", &format!("/{n}"), &[])).await;
        assert_eq!(answer.status(), 200);
        let got = answer.into_body().collect().await.unwrap().to_bytes();
        assert!(got == body(n, len(n)), "{n}: {} bytes", got.len());
    }
    let counters = cache.store().counters();
    assert!(counters.failed > 0, "{counters:?}");
    assert_eq!(cache.store().counters().objects, 0, "{counters:?}");
}
