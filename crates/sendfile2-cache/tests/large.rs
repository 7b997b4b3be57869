//! Responses that are larger than a region: whole, or not there.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{HEAD, MIB, body, opened, store, stored};
use proptest::prelude::*;
use sendfile2_cache::store::{Ban, Counters, Head, Hit, Key, Options, State, Store, StoreError};

const LEN: usize = 40 << 20;
const STORE: &str = "SENDFILE2_TEST_STORE";
const WHOLE: &str = "SENDFILE2_TEST_WHOLE";

/// A store that takes 41 MiB, in regions of 2.
fn options() -> Options {
    Options { size: 656 * MIB, region: 2 * MIB, ..Options::default() }
}

/// A store that takes 4 MiB, in regions of 2.
fn medium() -> Options {
    Options { size: 64 * MIB, region: 2 * MIB, ..Options::default() }
}

fn at(path: &Path, options: &Options) -> Options {
    Options { path: Some(path.into()), ..options.clone() }
}

fn key(n: u32) -> Key {
    Key::of(&[&n.to_le_bytes()])
}

/// Stores a response; where a slow disk has no region ready in time, again. Not for ever: what loses
/// its parts while it is stored is refused in the same way.
fn put(
    store: &Store,
    key: Key,
    state: State,
    head: &[u8],
    body: &[u8],
    length: Option<u64>,
) -> Result<Hit, StoreError> {
    let put = || common::put(store, key, state, head, body, length);
    let full = |done: &Result<_, _>| matches!(done, Err(StoreError::Full));
    (0..4).map(|_| put()).find(|done| !full(done)).unwrap_or(Err(StoreError::Full))
}

/// The books say the same of all that is stored, in whatever way they are asked.
fn balanced(store: &Store) -> Counters {
    let (counters, regions) = (store.counters(), store.regions());
    assert_eq!(regions.iter().map(|r| r.live).sum::<u64>(), counters.bytes, "{counters:?}");
    let objects = regions.iter().map(|r| u64::from(r.objects)).sum::<u64>();
    assert_eq!(objects, counters.objects, "{counters:?}");
    counters
}

#[test]
fn what_is_larger_than_a_region_is_stored_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let options = at(&dir.path().join("store"), &options());
    let made = store(&options);
    let (old, new) = (body(1, LEN), body(2, LEN - 12_345));
    // Of unknown length; it is replaced by one whose length is known.
    for (body, length) in [(&old, None), (&new, Some(new.len() as u64))] {
        let mut fill = made.begin(key(1), [1; 24], HEAD, length).unwrap();
        body.chunks(1_000_000).for_each(|piece| fill.write(piece).unwrap());
        let hit = fill.finish().unwrap();
        assert_eq!((hit.len(), &hit.head()[..]), (body.len() as u64, HEAD));
        assert!(stored(&hit) == *body);
        assert!(stored(&made.try_get(&key(1)).unwrap().unwrap()) == *body);
        let counters = balanced(&made);
        assert_eq!((counters.objects, counters.bytes), (1, body.len() as u64));
    }
    let hit = made.get(&key(1)).unwrap();
    assert!(hit.leases(0..hit.len()).len() > 20);
    assert_eq!(hit.leases(100..200).len(), 1, "no more is leased than is wanted");
    assert!(hit.leases(5..5).is_empty());
    made.refresh(&key(1), [3; 24], b"another head").unwrap();
    assert_eq!(stored(&hit).len(), new.len());
    drop((made, hit));
    let (store, opened) = opened(&options);
    assert_eq!((opened.recovered, opened.dropped.len()), (1, 0), "{opened:?}");
    assert!(store.try_get(&key(1)).is_err(), "nobody has looked at it yet");
    let again = store.get(&key(1)).unwrap();
    assert_eq!((again.state(), &again.head()[..]), ([3; 24], &b"another head"[..]));
    assert!(stored(&again) == new);
    assert_eq!(balanced(&store).bytes, new.len() as u64);
    store.ban(Ban::Key(key(1))).unwrap();
    assert!(store.get(&key(1)).is_none());
    assert_eq!(balanced(&store).bytes, 0, "no part is left");
    drop(store);
    let (store, opened) = common::opened(&options);
    assert_eq!((opened.recovered, store.counters().bytes), (0, 0), "{opened:?}");
}

#[test]
fn a_sixteenth_of_the_store_is_the_most() {
    let store = store(&medium());
    let most = store.begin(key(1), [0; 24], b"", Some(u64::MAX / 2)).unwrap_err();
    let StoreError::TooLarge { most, .. } = most else { panic!("{most}") };
    assert_eq!(most, 4 * MIB);
    let all = body(1, usize::try_from(most).unwrap());
    for length in [Some(most), None] {
        assert!(stored(&put(&store, key(1), [0; 24], b"", &all, length).unwrap()) == all);
    }
    let mut fill = store.begin(key(2), [0; 24], b"", None).unwrap();
    fill.write(&all).unwrap();
    assert!(matches!(fill.write(b"x"), Err(StoreError::TooLarge { .. })));
    drop(fill);
    assert_eq!(balanced(&store).bytes, most, "what was given up takes nothing");
    let head = vec![0; 1 << 20];
    let large = store.begin(key(3), [0; 24], &head, Some(1));
    assert!(matches!(large, Err(StoreError::TooLarge { .. })), "{large:?}");
}

#[test]
fn where_a_part_is_overwritten_all_of_it_is_gone() {
    let store = store(&medium());
    let (mut gone, mut there) = (0, 0);
    for n in 0..120 {
        // Large ones among small ones.
        let len: usize = if n % 4 == 0 { 3_900_000 } else { 300_000 };
        let body_of = |n: u32| body(n, if n % 4 == 0 { 3_900_000 } else { 300_000 });
        let known = (n % 8 == 0).then_some(len as u64);
        put(&store, key(n), [0; 24], HEAD, &body_of(n), known).unwrap();
        assert!(stored(&store.get(&key(n)).unwrap()) == body_of(n));
        balanced(&store);
        for old in (0..n).step_by(4).filter(|_| n % 20 == 19) {
            match store.get(&key(old)) {
                Some(hit) => {
                    assert!(stored(&hit) == body_of(old));
                    there += 1;
                }
                None => gone += 1,
            }
        }
    }
    let counters = balanced(&store);
    assert!(gone > 10 && there > 10 && counters.recycled > 40, "{gone} {there} {counters:?}");
    let found = (0..120).filter(|n| store.get(&key(*n)).is_some()).count();
    assert_eq!(found as u64, counters.objects, "no head is left without its parts");
    assert_eq!((counters.damaged, counters.failed), (0, 0));
    for n in 0..120 {
        store.remove(&key(n));
    }
    let counters = balanced(&store);
    assert_eq!((counters.objects, counters.bytes), (0, 0));
}

/// More of them at once than there is room for: each is stored or refused, and none waits for ever.
#[test]
fn many_large_ones_at_once() {
    let store = store(&Options { size: 68 * MIB, region: 4 * MIB, ..Options::default() });
    let stored_ones = std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|scope| {
        for thread in 0..8_u32 {
            let (store, stored_ones) = (&store, &stored_ones);
            scope.spawn(move || {
                for at in 0..6 {
                    let n = (thread << 8) | at;
                    let all = body(n, 4_200_000);
                    let mut fill = store.begin(key(n), [0; 24], HEAD, None).unwrap();
                    let written = all.chunks(100_000).try_for_each(|piece| fill.write(piece));
                    match written.and_then(|()| fill.finish()) {
                        Ok(hit) => assert!(stored(&hit) == all),
                        Err(StoreError::Full) => continue,
                        Err(why) => panic!("{why}"),
                    }
                    stored_ones.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
            });
        }
    });
    let counters = balanced(&store);
    assert!(stored_ones.into_inner() > 0 && counters.recycled > 15, "{counters:?}");
}

#[tokio::test]
async fn readers_have_what_has_arrived_across_the_parts() {
    let store = store(&medium());
    let all = body(1, 3_000_000);
    for length in [None, Some(all.len() as u64)] {
        let mut fill = store.begin(key(1), [0; 24], HEAD, length).unwrap();
        let (mut reader, mut late, mut got) = (fill.reader(), fill.reader(), Vec::new());
        for piece in all.chunks(123_457) {
            fill.write(piece).unwrap();
            let has = got.len() + piece.len();
            while got.len() < has {
                got.extend_from_slice(&reader.read().await.unwrap());
            }
            assert!(got == all[..got.len()]);
            let seek = got.len() / 2;
            late.seek(seek as u64);
            let bytes = late.read().await.unwrap();
            assert!(bytes == all[seek..seek + bytes.len()]);
        }
        fill.finish().unwrap();
        assert!(reader.read().await.unwrap().is_empty());
        late.seek(0);
        let mut again = Vec::new();
        while again.len() < all.len() {
            again.extend_from_slice(&late.read().await.unwrap());
        }
        assert!(again == all);
    }
    // What is not stored in the end they have all the same.
    for len in [10_000, 200_000, all.len()] {
        let mut fill = store.begin(key(2), [0; 24], HEAD, None).unwrap();
        fill.write(&all[..len]).unwrap();
        let (mut reader, mut got) = (fill.reader(), Vec::new());
        store.ban(Ban::Key(key(2))).unwrap();
        assert!(matches!(fill.finish(), Err(StoreError::Banned)));
        while got.len() < len {
            got.extend_from_slice(&reader.read().await.unwrap());
        }
        assert!(got == all[..len] && reader.read().await.unwrap().is_empty());
    }
    let mut fill = store.begin(key(2), [0; 24], HEAD, None).unwrap();
    fill.write(&all).unwrap();
    let mut reader = fill.reader();
    drop(fill);
    assert!(matches!(reader.read().await, Err(StoreError::Abandoned)));
    assert_eq!(balanced(&store).bytes, all.len() as u64);
}

#[test]
fn a_part_that_is_torn_is_no_part() {
    let dir = tempfile::tempdir().unwrap();
    let options = at(&dir.path().join("store"), &medium());
    let all = body(1, 3_900_000);
    let flip = |at: u64| {
        let mut files = std::fs::File::options();
        let file = files.read(true).write(true).open(options.path.as_ref().unwrap()).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[!byte[0]], at).unwrap();
    };
    for n in 0..8 {
        let made = store(&options);
        let hit = put(&made, key(1), [0; 24], HEAD, &all, None).unwrap();
        let place = hit.leases(0..hit.len())[n].1.start;
        drop((made, hit));
        // A byte of its body: that is seen when it is looked at.
        flip(place + 100_000);
        let (store, opened) = opened(&options);
        assert_eq!(opened.recovered, 1);
        assert!(store.get(&key(1)).is_none(), "part {n}");
        let counters = balanced(&store);
        assert_eq!((counters.damaged, counters.bytes), (1, 0));
    }
    // Its header, of a region without a table: that is seen at once.
    let (store, _) = opened(&options);
    put(&store, key(1), [0; 24], HEAD, &all, None).unwrap();
    let hit = put(&store, key(2), [0; 24], HEAD, &all, None).unwrap();
    let last = hit.leases(0..hit.len()).last().unwrap().1.start;
    drop((store, hit));
    flip(last - 60);
    let (store, opened) = common::opened(&options);
    assert!(store.get(&key(2)).is_none() && opened.scanned > 0, "{opened:?}");
    assert!(stored(&store.get(&key(1)).unwrap()) == all);
    assert_eq!(balanced(&store).bytes, all.len() as u64);
}

/// A response that is banned by its head is so with all its parts, and they do not come back.
#[test]
fn what_is_purged_by_its_head_goes_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let options = at(&dir.path().join("store"), &medium());
    for ban in [Ban::Prefix("http://h/".into()), Ban::Tag("red".into()), Ban::All] {
        let store = store(&options);
        let head = Head { id: "http://h/large", tags: "red", rest: b"" }.encode();
        put(&store, key(1), [0; 24], &head, &body(1, 3_000_000), None).unwrap();
        // One that is coming, too.
        let mut coming = store.begin(key(2), [0; 24], &head, None).unwrap();
        coming.write(&body(2, 3_000_000)).unwrap();
        store.ban(ban).unwrap();
        assert!(matches!(coming.finish(), Err(StoreError::Banned)));
        assert!(store.get(&key(1)).is_none());
        assert_eq!(balanced(&store).bytes, 0);
        drop(store);
        let (store, _) = opened(&options);
        assert!(store.get(&key(1)).is_none() && store.get(&key(2)).is_none());
        assert_eq!(balanced(&store).bytes, 0);
    }
}

/// Stores half of a body, or all of it, over an older one; and dies.
fn child(path: &Path, whole: bool) {
    let (store, _) = opened(&at(path, &options()));
    let all = body(2, LEN);
    let mut fill = store.begin(key(1), [2; 24], HEAD, None).unwrap();
    if whole {
        fill.write(&all).unwrap();
        fill.finish().unwrap();
    } else {
        fill.write(&all[..LEN / 2]).unwrap();
    }
    // As good as kill -9: nothing is dropped.
    std::process::abort();
}

#[test]
fn what_was_being_stored_at_kill_is_not_there_and_what_was_stored_is() {
    if let Some(path) = std::env::var_os(STORE) {
        return child(&PathBuf::from(path), std::env::var_os(WHOLE).is_some());
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    put(&opened(&at(&path, &options())).0, key(1), [1; 24], HEAD, &body(1, LEN), None).unwrap();
    for whole in [false, true] {
        let mut child = Command::new(std::env::current_exe().unwrap());
        let test = "what_was_being_stored_at_kill_is_not_there_and_what_was_stored_is";
        child.args(["--exact", test]).env(STORE, &path);
        if whole {
            child.env(WHOLE, "1");
        }
        let output = child.output().unwrap();
        assert!(!output.status.success() && output.status.code().is_none(), "{output:?}");
        let (store, opened) = opened(&at(&path, &options()));
        assert_eq!((opened.recovered, opened.dropped.len()), (1, 0), "{opened:?}");
        let hit = store.get(&key(1)).unwrap();
        let version = if whole { 2 } else { 1 };
        assert_eq!(hit.state()[0], u8::try_from(version).unwrap());
        assert!(stored(&hit) == body(version, LEN));
        assert_eq!(balanced(&store).bytes, LEN as u64, "of the other nothing is left");
    }
}

/// The bytes that may be written to a [`medium`] store before what was stored first may go: a third of
/// it. Only of the oldest tenth of its regions one is overwritten; but not all of each is filled.
const STAYS: usize = 20 << 20;

/// A thing to do to a store.
#[derive(Debug, Clone)]
enum Op {
    /// A response with a body of this length, which is told or not.
    Put(u32, usize, bool),
    /// Begun, and given up.
    GiveUp(u32, usize),
    Get(u32),
    Refresh(u32),
    Remove(u32),
    Ban(u32),
    Open,
}

fn op() -> impl Strategy<Value = Op> {
    let key = 0..6u32;
    let len = prop_oneof![0..200_000usize, 400_000..3_000_000usize];
    prop_oneof![
        6 => (key.clone(), len.clone(), any::<bool>()).prop_map(|(k, l, known)| Op::Put(k, l, known)),
        1 => (key.clone(), len).prop_map(|(key, len)| Op::GiveUp(key, len)),
        4 => key.clone().prop_map(Op::Get),
        2 => key.clone().prop_map(Op::Refresh),
        1 => key.clone().prop_map(Op::Remove),
        1 => key.prop_map(Op::Ban),
        2 => Just(Op::Open),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// A map, which forgets only what is old; what was removed, until it is opened again.
    #[test]
    fn like_a_map_that_forgets_what_is_old(ops in prop::collection::vec(op(), 1..60)) {
        let dir = tempfile::tempdir().unwrap();
        let options = at(&dir.path().join("store"), &medium());
        let mut store = store(&options);
        let mut map: HashMap<u32, (u32, usize, u8)> = HashMap::new();
        let mut removed: HashMap<u32, (u32, usize, u8)> = HashMap::new();
        // The bytes written so far, and how many those were when each was stored.
        let (mut written, mut since) = (0, HashMap::<u32, usize>::new());
        for (seed, op) in ops.into_iter().enumerate() {
            let seed = u32::try_from(seed).unwrap();
            let state = u8::try_from(seed).unwrap();
            let is_due = |n: u32| since.get(&n).is_some_and(|at| written - at <= STAYS);
            match op {
                Op::Put(n, len, known) => {
                    written += len;
                    let length = known.then_some(len as u64);
                    put(&store, key(n), [state; 24], HEAD, &body(seed, len), length).unwrap();
                    map.insert(n, (seed, len, state));
                    since.insert(n, written);
                    removed.remove(&n);
                }
                Op::GiveUp(n, len) => {
                    let mut fill = store.begin(key(n), [state; 24], HEAD, None).unwrap();
                    fill.write(&body(seed, len)).unwrap();
                    written += len;
                }
                Op::Get(n) => {
                    let found = store.get(&key(n));
                    prop_assert!(found.is_some() || !is_due(n), "{n} is forgotten");
                    let Some(hit) = found else { continue };
                    let (seed, len, state) = map[&n];
                    prop_assert_eq!(hit.state(), [state; 24]);
                    prop_assert!(stored(&hit) == body(seed, len));
                }
                Op::Refresh(n) => match store.refresh(&key(n), [state; 24], b"new") {
                    Ok(()) => map.get_mut(&n).unwrap().2 = state,
                    Err(StoreError::Absent) => prop_assert!(!is_due(n), "{n} is forgotten"),
                    Err(why) => panic!("{why}"),
                },
                Op::Remove(n) => {
                    prop_assert!(store.remove(&key(n)) || !is_due(n), "{n} is forgotten");
                    since.remove(&n);
                    removed.extend(map.remove_entry(&n));
                }
                Op::Ban(n) => {
                    store.ban(Ban::Key(key(n))).unwrap();
                    map.remove(&n);
                    since.remove(&n);
                    removed.remove(&n);
                }
                Op::Open => {
                    drop(store);
                    store = opened(&options).0;
                    map.extend(removed.drain());
                    // What was being filled is not filled any more.
                    written += 4 << 20;
                }
            }
            balanced(&store);
        }
        for n in 0..6 {
            let due = since.get(&n).is_some_and(|at| written - at <= STAYS);
            prop_assert!(store.remove(&key(n)) || !due, "{n} is forgotten");
        }
        let counters = balanced(&store);
        prop_assert_eq!((counters.objects, counters.bytes), (0, 0));
    }
}
