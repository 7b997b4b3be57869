//! A store with a million responses is there again soon after its process was killed: to be run by
//! `cargo test --release -p sendfile2-cache --test million -- --ignored --nocapture`.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::Command;
use std::time::Instant;

use common::{MIB, opened, put, stored};
use sendfile2_cache::store::{Key, Options};

const STORE: &str = "SENDFILE2_TEST_STORE";
const MANY: u32 = 1_000_000;

fn key(n: u32) -> Key {
    Key::of(&[&n.to_le_bytes()])
}

#[test]
#[ignore = "a figure, and a file of 600 MiB"]
fn a_million_responses_are_there_again() {
    let child = std::env::var_os(STORE);
    let dir = tempfile::tempdir().unwrap();
    let path = child.clone().map_or(dir.path().join("store"), Into::into);
    let options = Options {
        path: Some(path.clone()),
        size: 600 * MIB,
        region: 8 * MIB,
        ..Options::default()
    };
    if child.is_some() {
        let (store, _) = opened(&options);
        for n in 0..MANY {
            put(&store, key(n), [0; 24], b"head", &n.to_le_bytes(), Some(4)).unwrap();
        }
        // As good as kill -9: nothing is dropped.
        std::process::abort();
    }
    let began = Instant::now();
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "a_million_responses_are_there_again", "--ignored"]).env(STORE, &path);
    assert!(!child.output().unwrap().status.success());
    println!("stored and killed after {:?}", began.elapsed());
    for what in ["in the page cache", "from the disk"] {
        let began = Instant::now();
        let (store, opened) = opened(&options);
        let took = began.elapsed();
        println!("{} responses there, {what}, after {took:?}", opened.recovered);
        assert_eq!(opened.recovered, u64::from(MANY), "{opened:?}");
        for n in (0..MANY).step_by(9973) {
            assert_eq!(stored(&store.get(&key(n)).unwrap()), n.to_le_bytes());
        }
        drop(store);
        let file = std::fs::File::open(&path).unwrap();
        rustix::fs::fsync(&file).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }
}
