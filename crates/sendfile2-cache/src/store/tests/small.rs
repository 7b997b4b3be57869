//! Small bodies that are read without a lease.

use crate::store::{Key, MayWait, Options, Store};

fn store() -> Store {
    let options = Options { size: 64 << 20, region: 2 << 20, ..Options::default() };
    Store::open(&options).unwrap().0
}

fn put(store: &Store, key: Key, head: &[u8], body: &[u8]) {
    let mut fill = store.begin(key, [0; 24], head, None).unwrap();
    fill.write(body).unwrap();
    fill.finish().unwrap();
}

/// A body that was overwritten between the look at the index and the read is read, and not given
/// out.
#[test]
fn what_was_overwritten_before_it_was_read_is_not_found() {
    let (store, key) = (store(), Key::of(&[b"a"]));
    let core = store.core();
    put(&store, key, b"a head", &[1; 4096]);
    let entry = *core.state().index.get(&key).unwrap();
    let range = core.body_of(&entry).start..core.head_of(&entry).end;
    let read = || core.read_small(&entry, range.clone());
    if core.disk.read_now(range.clone()).is_none() {
        println!("SKIP: the filesystem cannot read without waiting");
        return;
    }
    let hit = read().unwrap().unwrap();
    assert_eq!((&hit.small.unwrap()[..], &hit.head[..]), (&[1; 4096][..], &b"a head"[..]));
    // As the keeper does it, and who fills the region then.
    core.state().empty(entry.region);
    core.disk.clear(entry.region).unwrap();
    core.disk.write(&[2; 4200], range.start).unwrap();
    let control = core.disk.read_now(range.clone()).unwrap();
    assert_eq!(control[..4096], [2; 4096]);
    assert!(matches!(read(), Err(MayWait)));
    // And where there is another one of its key.
    put(&store, key, b"a head", &[3; 4096]);
    assert!(matches!(read(), Err(MayWait)));
    let hit = store.try_get_if(&key, |_| true).unwrap().unwrap();
    assert_eq!(hit.small.unwrap(), [3; 4096][..]);
}

/// A ban is looked for in the head that was read.
#[test]
fn what_is_banned_is_not_found_in_memory_either() {
    use crate::store::{Ban, Head};
    let store = store();
    let key = Key::of(&[b"a"]);
    let head = Head { id: "a/b", tags: "", rest: b"" }.encode();
    put(&store, key, &head, b"x");
    assert!(store.try_get_if(&key, |_| true).unwrap().is_some());
    assert!(store.try_get_if(&key, |_| false).unwrap().is_none());
    store.ban(Ban::Prefix("a/".into())).unwrap();
    assert!(store.try_get_if(&key, |_| true).unwrap().is_none());
    assert_eq!((store.counters().objects, store.counters().hits), (0, 1));
}
