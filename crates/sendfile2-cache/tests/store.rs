//! The store as its users see it.
#![allow(clippy::unwrap_used)]

mod common;

use common::{HEAD, MIB, body, opened, small, store, stored};
use sendfile2_cache::store::{Admission, Ban, Head, Hit, Key, MayWait, Options, Store, StoreError};

fn key(n: u32) -> Key {
    Key::of(&[&n.to_le_bytes()])
}

fn assert_has(store: &Store, n: u32, body: &[u8]) {
    let hit = store.get(&key(n)).unwrap();
    assert_eq!(stored(&hit), body);
}

#[test]
fn what_is_stored_is_found_until_it_is_replaced() {
    let store = store(&small());
    assert!(store.get(&key(1)).is_none());
    for (n, len) in [(1, 0), (2, 1), (3, 65_536), (4, 65_537), (5, 500_000)] {
        let body = body(n, len);
        let hit = common::put(&store, key(n), [7; 24], HEAD, &body, Some(len as u64)).unwrap();
        assert_eq!((hit.state(), &hit.head()[..], hit.len()), ([7; 24], HEAD, len as u64));
        assert_has(&store, n, &body);
        // Of unknown length, in pieces.
        let mut fill = store.begin(key(n), [8; 24], HEAD, None).unwrap();
        body.chunks(1000).for_each(|piece| fill.write(piece).unwrap());
        assert_eq!(fill.finish().unwrap().state(), [8; 24]);
        assert_has(&store, n, &body);
    }
    let counters = store.counters();
    assert_eq!((counters.objects, counters.hits, counters.misses), (5, 10, 1));
    assert_eq!(counters.bytes, 1 + 65_536 + 65_537 + 500_000);
    assert!(store.remove(&key(5)) && !store.remove(&key(5)));
    assert!(store.get(&key(5)).is_none());
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    let store = store(&small());
    let short = store.begin(key(1), [0; 24], HEAD, Some(10)).unwrap().finish();
    assert!(matches!(short, Err(StoreError::WrongLength { expected: 10 })), "{short:?}");
    let mut fill = store.begin(key(1), [0; 24], HEAD, Some(10)).unwrap();
    assert!(matches!(fill.write(&[0; 11]), Err(StoreError::WrongLength { .. })));
    let large = store.begin(key(1), [0; 24], HEAD, Some(2 * MIB));
    assert!(matches!(large, Err(StoreError::TooLarge { .. })), "{large:?}");
    let mut fill = store.begin(key(1), [0; 24], HEAD, None).unwrap();
    let grown = (0..100).try_for_each(|_| fill.write(&[0; 65_536]));
    assert!(matches!(grown, Err(StoreError::TooLarge { .. })), "{grown:?}");
    drop(fill);
    assert!(store.get(&key(1)).is_none());
}

#[test]
fn a_head_is_replaced_and_the_body_stays() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { path: Some(dir.path().join("store")), ..small() };
    let store = store(&options);
    let body = body(1, 300_000);
    common::put(&store, key(1), [1; 24], HEAD, &body, None).unwrap();
    let before = store.get(&key(1)).unwrap();
    store.refresh(&key(1), [2; 24], b"another head").unwrap();
    let after = store.get(&key(1)).unwrap();
    assert_eq!((&after.head()[..], after.state()), (&b"another head"[..], [2; 24]));
    assert_eq!(stored(&after), body);
    let place = |hit: &Hit| hit.leases(0..hit.len())[0].1.clone();
    assert_eq!(place(&before), place(&after));
    assert!(matches!(store.refresh(&key(2), [2; 24], b""), Err(StoreError::Absent)));
    drop((store, before, after));
    let (store, opened) = opened(&options);
    assert_eq!((opened.recovered, opened.made), (1, false), "{opened:?}");
    let again = store.get(&key(1)).unwrap();
    assert_eq!((&again.head()[..], again.state()), (&b"another head"[..], [2; 24]));
    assert_eq!(stored(&again), body);
}

#[test]
fn bans_hit_what_is_stored_and_not_what_comes_later() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { path: Some(dir.path().join("store")), ..small() };
    let mut store = store(&options);
    let put = |store: &Store, n: u32, id: &str, tags: &str| {
        let head = Head { id, tags, rest: b"rest" }.encode();
        common::put(store, key(n), [0; 24], &head, &body(n, 100), None).unwrap();
    };
    let all = |store: &Store| {
        put(store, 1, "http://a/1", "red");
        put(store, 2, "http://a/2", "red\nblue");
        put(store, 3, "http://b/3", "blue");
        put(store, 4, "http://b/4", "");
    };
    let there =
        |store: &Store| -> Vec<u32> { (1..=4).filter(|n| store.get(&key(*n)).is_some()).collect() };
    let cases = [
        (Ban::Key(key(1)), vec![2, 3, 4]),
        (Ban::Prefix("http://a/".into()), vec![3, 4]),
        (Ban::Tag("blue".into()), vec![1, 4]),
        (Ban::All, vec![]),
    ];
    for (ban, left) in cases {
        all(&store);
        assert_eq!(there(&store), [1, 2, 3, 4]);
        store.ban(ban).unwrap();
        // Before anybody has looked, and after another process opens it.
        drop(store);
        store = opened(&options).0;
        assert_eq!(there(&store), left);
        all(&store);
        drop(store);
        store = opened(&options).0;
        assert_eq!(there(&store), [1, 2, 3, 4]);
    }
}

#[test]
fn what_was_begun_before_a_ban_is_banned() {
    let store = store(&small());
    let mut fill = store.begin(key(1), [0; 24], HEAD, None).unwrap();
    fill.write(b"old").unwrap();
    store.ban(Ban::Key(key(1))).unwrap();
    assert!(matches!(fill.finish(), Err(StoreError::Banned)));
    assert!(store.get(&key(1)).is_none());
}

#[test]
fn the_second_request_is_stored() {
    let store = store(&Options { admission: Admission::SecondRequest, ..small() });
    let first = store.begin(key(1), [0; 24], HEAD, None);
    assert!(matches!(first, Err(StoreError::NotAdmitted)));
    common::put(&store, key(1), [0; 24], HEAD, b"body", None).unwrap();
    common::put(&store, key(1), [0; 24], HEAD, b"body", None).unwrap();
    assert!(matches!(store.begin(key(2), [0; 24], HEAD, None), Err(StoreError::NotAdmitted)));
}

#[test]
fn old_regions_are_overwritten_and_what_is_hit_stays() {
    let store = store(&small());
    let body_of = |n| body(n, 50_000);
    for n in 0..2000 {
        common::put(&store, key(n), [0; 24], HEAD, &body_of(n), None).unwrap();
        assert_has(&store, n, &body_of(n));
        if n > 0 {
            assert_has(&store, 0, &body_of(0));
        }
    }
    let counters = store.counters();
    assert!(counters.recycled > 30 && counters.evicted > 1000, "{counters:?}");
    assert!(counters.reinserted > 0, "{counters:?}");
    assert_eq!(counters.damaged, 0);
    assert_eq!(counters.erased, counters.recycled, "{counters:?}");
    for n in 0..2000 {
        if let Some(hit) = store.get(&key(n)) {
            assert_eq!(stored(&hit), body_of(n));
        }
    }
    let regions = store.regions();
    assert_eq!(regions.iter().map(|r| u64::from(r.objects)).sum::<u64>(), store.counters().objects);
}

#[test]
fn who_has_a_lease_gets_what_was_there() {
    let store = store(&small());
    let old = body(1, 200_000);
    let hit = common::put(&store, key(1), [0; 24], HEAD, &old, None).unwrap();
    for n in 2..1000 {
        common::put(&store, key(n), [0; 24], HEAD, &body(n, 50_000), None).unwrap();
    }
    assert!(store.counters().recycled > 10);
    assert_eq!(stored(&hit), old);
}

#[tokio::test]
async fn readers_have_what_has_arrived() {
    let store = store(&small());
    for len in [10_000, 300_000] {
        let body = body(1, len);
        let mut fill = store.begin(key(1), [0; 24], HEAD, None).unwrap();
        let mut reader = fill.reader();
        assert_eq!(reader.length(), None);
        let mut got = Vec::new();
        for piece in body.chunks(7000) {
            fill.write(piece).unwrap();
            got.extend_from_slice(&reader.read().await.unwrap());
        }
        let late = tokio::spawn({
            let mut late = fill.reader();
            async move {
                let mut got = Vec::new();
                loop {
                    match late.read().await.unwrap() {
                        bytes if bytes.is_empty() => return got,
                        bytes => got.extend_from_slice(&bytes),
                    }
                }
            }
        });
        tokio::task::yield_now().await;
        fill.finish().unwrap();
        assert_eq!((got == body, reader.length()), (true, Some(len as u64)));
        assert_eq!(reader.ended().await.unwrap(), len as u64);
        assert!(reader.read().await.unwrap().is_empty());
        reader.seek(len as u64 - 5);
        assert_eq!(reader.read().await.unwrap(), body[len - 5..]);
        assert_eq!(late.await.unwrap(), body);
    }
    let mut fill = store.begin(key(2), [0; 24], HEAD, None).unwrap();
    fill.write(b"some").unwrap();
    let mut reader = fill.reader();
    drop(fill);
    assert!(matches!(reader.read().await, Err(StoreError::Abandoned)));
    assert!(matches!(reader.ended().await, Err(StoreError::Abandoned)));
}

#[test]
fn many_at_once() {
    let store = store(&small());
    std::thread::scope(|scope| {
        for thread in 0..4_u32 {
            let store = &store;
            scope.spawn(move || {
                for at in 0..400_u32 {
                    let n = (at * 7 + thread * 3) % 50;
                    // A body says which version of which key it is of.
                    let version = (n << 16) | (thread << 12) | at;
                    let bytes = [&version.to_le_bytes()[..], &body(version, 60_000)].concat();
                    let length = (at % 2 == 0).then_some(bytes.len() as u64);
                    match common::put(store, key(n), [0; 24], HEAD, &bytes, length) {
                        Ok(_) | Err(StoreError::Full | StoreError::Banned) => {}
                        Err(why) => panic!("{why}"),
                    }
                    if at % 10 == 9 {
                        store.ban(Ban::Key(key(n))).unwrap();
                    }
                    let _ = store.refresh(&key((n + 1) % 50), [1; 24], HEAD);
                    let Some(hit) = store.get(&key(n)) else { continue };
                    let bytes = stored(&hit);
                    let version = u32::from_le_bytes(bytes[..4].try_into().unwrap());
                    assert_eq!(version >> 16, n);
                    assert!(bytes[4..] == body(version, 60_000));
                }
            });
        }
    });
    let counters = store.counters();
    assert!(counters.recycled > 10 && counters.damaged == 0, "{counters:?}");
}

#[test]
fn what_may_take_waiting_for_the_disk_is_not_found_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { path: Some(dir.path().join("store")), ..small() };
    let made = store(&options);
    common::put(&made, key(1), [0; 24], HEAD, &body(1, 200_000), None).unwrap();
    assert_eq!(stored(&made.try_get(&key(1)).unwrap().unwrap()), body(1, 200_000));
    assert!(made.try_get(&key(2)).unwrap().is_none());
    drop(made);
    // Nobody has compared it with its checksums.
    let store = store(&options);
    assert!(matches!(store.try_get(&key(1)), Err(MayWait)));
    assert_eq!((store.counters().hits, store.counters().misses), (0, 0));
    assert_has(&store, 1, &body(1, 200_000));
    assert_eq!(stored(&store.try_get(&key(1)).unwrap().unwrap()), body(1, 200_000));
    // It has left the page cache.
    let file = std::fs::File::open(options.path.unwrap()).unwrap();
    if !common::forget(&file) {
        return;
    }
    assert!(matches!(store.try_get(&key(1)), Err(MayWait)));
    assert_has(&store, 1, &body(1, 200_000));
    assert!(store.try_get(&key(1)).unwrap().is_some());
}
