//! A store whose process is killed at any moment serves each response as it was stored, or not at
//! all, and nothing that was banned.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{body, opened, small, stored};
use sendfile2_cache::store::{Ban, Head, Hit, Key, Options, Store};

const KEYS: u32 = 150;
const ROUNDS: u32 = 25;
const STORE: &str = "SENDFILE2_TEST_STORE";
const SEED: &str = "SENDFILE2_TEST_SEED";

struct Random(u64);

impl Random {
    fn below(&mut self, n: u32) -> u32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from(self.0 >> 40).unwrap() % n
    }
}

fn options(path: &Path) -> Options {
    Options { path: Some(path.into()), ..small() }
}

fn key(n: u32) -> Key {
    Key::of(&[&n.to_le_bytes()])
}

/// The head tells which body it belongs to: `key version length refreshed`.
fn head(n: u32, version: u32, len: u32, refreshed: u32) -> Vec<u8> {
    let rest = format!("{n} {version} {len} {refreshed}");
    let (id, tag) = (format!("http://h/{n}/"), format!("tag{}", n % 7));
    Head { id: &id, tags: &tag, rest: rest.as_bytes() }.encode()
}

fn numbers(hit: &Hit) -> [u32; 4] {
    let head = hit.head();
    let text = std::str::from_utf8(Head::parse(&head).unwrap().rest).unwrap();
    let numbers: Vec<u32> = text.split(' ').map(|number| number.parse().unwrap()).collect();
    numbers.try_into().unwrap()
}

/// Stores, refreshes and bans until it is killed; tells what was banned, when that is durable.
fn child(path: &Path, seed: u64) {
    let (store, opened) = opened(&options(path));
    assert!(opened.dropped.is_empty(), "{opened:?}");
    let mut random = Random(seed);
    // Versions are larger than all before.
    let mut version = u32::try_from(seed).unwrap() * 1_000_000;
    println!("open");
    loop {
        version += 1;
        let n = random.below(KEYS);
        match random.below(20) {
            0..=13 => put(&store, &mut random, n, version),
            14..=16 => {
                if let Some(hit) = store.get(&key(n)) {
                    let [_, of, len, _] = numbers(&hit);
                    let _ = store.refresh(&key(n), [2; 24], &head(n, of, len, version));
                }
            }
            17 => {
                store.ban(Ban::Key(key(n))).unwrap();
                println!("key {n} {version}");
            }
            18 => {
                store.ban(Ban::Tag(format!("tag{}", n % 7))).unwrap();
                println!("tag {} {version}", n % 7);
            }
            _ => {
                store.ban(Ban::Prefix(format!("http://h/{n}/"))).unwrap();
                println!("key {n} {version}");
            }
        }
    }
}

fn put(store: &Store, random: &mut Random, n: u32, version: u32) {
    let len = if random.below(4) == 0 { random.below(1_700_000) } else { random.below(40_000) };
    let known = (random.below(2) == 0).then_some(u64::from(len));
    let mut fill = store.begin(key(n), [1; 24], &head(n, version, len, 0), known).unwrap();
    for piece in body(n ^ version, len as usize).chunks(50_000) {
        fill.write(piece).unwrap();
    }
    // Not all of them come to their end.
    if random.below(10) > 0 {
        fill.finish().unwrap();
    }
}

/// Runs a child, and kills it. What it has said goes into `banned`: the version by key.
fn run_and_kill(path: &Path, round: u32, after: Duration, banned: &mut HashMap<u32, u32>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killed_at_any_moment", "--nocapture"])
        .env(STORE, path)
        .env(SEED, round.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let (sender, lines) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        output.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line)));
    });
    let began = lines.iter().find(|line| line == "open");
    assert!(began.is_some(), "it has opened its store");
    // When it is killed is a matter of chance: that is what is tried.
    std::thread::sleep(after);
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap();
    for line in &lines {
        let words: Vec<&str> = line.split(' ').collect();
        // The last line may have been cut off, but then nobody was answered.
        let [what, which, version] = words[..] else { continue };
        let (Ok(which), Ok(version)) = (which.parse(), version.parse()) else { continue };
        let hit = |n: &u32| if what == "tag" { n % 7 == which } else { *n == which };
        (0..KEYS).filter(hit).for_each(|n| {
            banned.insert(n, version);
        });
    }
}

/// Looks at all that is there; returns how much that was, and how much of it in parts.
fn check(store: &Store, banned: &HashMap<u32, u32>) -> (usize, usize) {
    let (mut there, mut in_parts) = (0, 0);
    for n in 0..KEYS {
        let Some(hit) = store.get(&key(n)) else { continue };
        let [of, version, len, refreshed] = numbers(&hit);
        assert_eq!(of, n);
        assert_eq!(hit.state(), if refreshed > 0 { [2; 24] } else { [1; 24] });
        assert!(stored(&hit) == body(n ^ version, len as usize), "key {n}, version {version}");
        let after = banned.get(&n).copied().unwrap_or(0);
        assert!(version > after, "key {n} was banned at {after} and is there of {version}");
        there += 1;
        in_parts += usize::from(hit.leases(0..hit.len()).len() > 1);
    }
    (there, in_parts)
}

#[test]
fn killed_at_any_moment() {
    if let Some(path) = std::env::var_os(STORE) {
        let seed = std::env::var(SEED).unwrap().parse().unwrap();
        return child(&PathBuf::from(path), seed);
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let (mut banned, mut random) = (HashMap::new(), Random(std::process::id().into()));
    let (mut there, mut in_parts, mut scanned) = (0, 0, 0);
    for round in 1..=ROUNDS {
        let after = Duration::from_micros(random.below(250_000).into());
        run_and_kill(&path, round, after, &mut banned);
        let (store, opened) = opened(&options(&path));
        assert!(opened.dropped.is_empty(), "{opened:?}");
        let (found, parts) = check(&store, &banned);
        assert_eq!(store.counters().damaged, 0, "what is in the page cache outlives a process");
        there += found;
        in_parts += parts;
        scanned += opened.scanned;
        std::io::stdout().flush().unwrap();
    }
    println!(
        "{there} found after {ROUNDS} kills, {in_parts} of them in parts, {scanned} regions scanned, {} bans",
        banned.len()
    );
    assert!(there > 0 && in_parts > 0 && scanned > 0 && !banned.is_empty());
}
