//! A model of what a power failure leaves: a log of what was done to the file.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use crate::store::layout::Role;
use crate::store::{Ban, Key, Options, Store};

/// One thing that was done to the file.
#[derive(Debug, Clone)]
pub(in crate::store) enum Done {
    Write(u64, Vec<u8>),
    Erase(Range<u64>),
    /// The length of the log up to which everything is on disk.
    Sync(usize),
}

#[derive(Debug, Default)]
pub(in crate::store) struct Log(pub(super) Mutex<Vec<Done>>);

impl Log {
    pub(in crate::store) fn write(&self, at: u64, bytes: &[u8]) {
        self.0.lock().unwrap().push(Done::Write(at, bytes.to_vec()));
    }

    pub(in crate::store) fn erase(&self, range: Range<u64>) {
        self.0.lock().unwrap().push(Done::Erase(range));
    }

    pub(in crate::store) fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// All was synced that had been done when the log had this length.
    pub(in crate::store) fn synced(&self, len: usize) {
        self.0.lock().unwrap().push(Done::Sync(len));
    }
}

/// A disk's block: it has all of what was written to it, or nothing.
const BLOCK: u64 = 512;
const KEYS: u32 = 60;

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % n
    }
}

fn key(n: u32) -> Key {
    Key::of(&[&n.to_le_bytes()])
}

/// A body that its first bytes tell all of.
fn body(n: u32, version: u32, len: usize) -> Vec<u8> {
    let mut bytes = [n.to_le_bytes(), version.to_le_bytes()].concat();
    let mut state = u64::from(n) << 32 | u64::from(version) | 1;
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len.max(8));
    bytes
}

/// The version of a body that is whole; `None` if there are wrong bytes in it.
fn version(n: u32, bytes: &[u8]) -> Option<u32> {
    let version = u32::from_le_bytes(bytes.get(4..8)?.try_into().unwrap());
    (bytes == body(n, version, bytes.len())).then_some(version)
}

/// The answers so far: the length of the log, and what was banned then at which version.
type Answered = Vec<(usize, u32, u32)>;

fn work(store: &Store, random: &mut Random) -> Answered {
    let mut answered = Vec::new();
    for version in 1..500 {
        let n = u32::try_from(random.below(KEYS as usize)).unwrap();
        match random.below(20) {
            0 => {
                store.ban(Ban::Key(key(n))).unwrap();
                answered.push((store.core().disk.log.len(), n, version));
            }
            1 => {
                let _ = store.refresh(&key(n), [2; 24], b"another");
            }
            _ => {
                let len = random.below(if version % 5 == 0 { 850_000 } else { 60_000 });
                let mut fill = store.begin(key(n), [1; 24], b"head", None).unwrap();
                body(n, version, len).chunks(40_000).for_each(|piece| fill.write(piece).unwrap());
                fill.finish().unwrap();
            }
        }
        let _ = store.get(&key(u32::try_from(random.below(KEYS as usize)).unwrap()));
    }
    answered
}

/// Applies what was synced before a crash, and of the rest what chance has it.
fn crash(image: &File, log: &[Done], random: &mut Random) {
    let sync = |done: &Done| if let Done::Sync(len) = done { Some(*len) } else { None };
    let synced = log.iter().filter_map(sync).max().unwrap_or(0);
    let some = random.below(5);
    for (at, done) in log.iter().enumerate() {
        let lost = |random: &mut Random| at >= synced && random.below(4) < some;
        match done {
            Done::Write(at, bytes) => {
                let mut from = 0;
                while from < bytes.len() {
                    let at = at + from as u64;
                    let len = usize::try_from(BLOCK - at % BLOCK).unwrap();
                    let len = len.min(bytes.len() - from);
                    if !lost(random) {
                        image.write_all_at(&bytes[from..from + len], at).unwrap();
                    }
                    from += len;
                }
            }
            Done::Erase(range) => {
                if !lost(random) {
                    let len = usize::try_from(range.end - range.start).unwrap();
                    image.write_all_at(&vec![0; len], range.start).unwrap();
                }
            }
            Done::Sync(_) => {}
        }
    }
}

#[test]
fn after_a_power_failure_there_is_no_wrong_byte_and_nothing_that_was_banned() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let options = |path: &std::path::Path| Options {
        path: Some(path.into()),
        size: 14 << 20,
        region: 2 << 20,
        ..Options::default()
    };
    let (store, _) = Store::open(&options(&path)).unwrap();
    // What is done while it is copied is in the log, too.
    let image = dir.path().join("image");
    std::fs::copy(&path, &image).unwrap();
    let base = std::fs::read(&image).unwrap();
    let mut random = Random(u64::from(std::process::id()));
    let answered = work(&store, &mut random);
    assert!(store.counters().recycled > 8, "{:?}", store.counters());
    let log = store.core().disk.log.0.lock().unwrap().clone();
    drop(store);
    let (mut there, mut refused, mut unchecked) = (0, 0, 0);
    let (mut in_parts, mut whole_in_parts) = (0, 0);
    for round in 0..16 {
        std::fs::write(&image, &base).unwrap();
        // At any moment, or when somebody has just been told that something is banned.
        let until = match round % 2 {
            0 => random.below(log.len()),
            _ => answered[random.below(answered.len())].0,
        };
        crash(&OpenOptions::new().write(true).open(&image).unwrap(), &log[..until], &mut random);
        let (store, opened) = Store::open(&options(&image)).unwrap();
        assert!(opened.dropped.is_empty(), "{opened:?}");
        let bytes = std::fs::read(&image).unwrap();
        for n in 0..KEYS {
            let entry = store.core().state().index.get(&key(n)).copied();
            // The control: what would be sent without looking at it.
            unchecked += usize::from(entry.is_some_and(|entry| {
                let state = store.core().state();
                let parts = match entry.role {
                    Role::Head => state.parts_of(&key(n), state.sets[&key(n)]).expect("all"),
                    _ => vec![entry],
                };
                in_parts += usize::from(entry.role == Role::Head);
                let index = |at| usize::try_from(at).unwrap();
                let body = parts.iter().map(|part| store.core().body_of(part));
                let body: Vec<&[u8]> =
                    body.map(|at| &bytes[index(at.start)..index(at.end)]).collect();
                version(n, &body.concat()).is_none()
            }));
            let Some(hit) = store.get(&key(n)) else { continue };
            let parts = hit.leases(0..hit.len()).into_iter();
            let read = |(lease, at)| super::super::disk::read_leased(&lease, at).unwrap();
            let stored = parts.flat_map(read).collect::<Vec<u8>>();
            whole_in_parts += usize::from(hit.leases(0..hit.len()).len() > 1);
            let version = version(n, &stored).expect("no wrong byte");
            assert_eq!(
                &hit.head()[..],
                if hit.state() == [1; 24] { "head" } else { "another" }.as_bytes()
            );
            let mut banned = answered.iter().filter(|(log, of, _)| *log <= until && *of == n);
            assert!(banned.all(|(_, _, at)| version > *at), "what was banned is back");
            there += 1;
        }
        refused += store.counters().damaged;
    }
    println!("{there} found whole, {refused} refused; {unchecked} would have been wrong unchecked");
    println!("{in_parts} in parts, {whole_in_parts} of them found whole");
    assert!(there > 0 && unchecked > 0 && in_parts > 0 && whole_in_parts > 0);
}
