//! Helpers that the tests of the store share.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use sendfile2_cache::store::{Hit, Key, Opened, Options, State, Store, StoreError};

pub const HEAD: &[u8] = b"a head";
pub const MIB: u64 = 1 << 20;

/// A store of 12 regions.
pub fn small() -> Options {
    Options { size: 28 * MIB, region: 2 * MIB, ..Options::default() }
}

pub fn opened(options: &Options) -> (Store, Opened) {
    Store::open(options).unwrap()
}

pub fn store(options: &Options) -> Store {
    opened(options).0
}

/// Bytes that are no others'.
pub fn body(seed: u32, len: usize) -> Vec<u8> {
    let mut state = u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

pub fn put(
    store: &Store,
    key: Key,
    state: State,
    head: &[u8],
    body: &[u8],
    length: Option<u64>,
) -> Result<Hit, StoreError> {
    let mut fill = store.begin(key, state, head, length)?;
    fill.write(body)?;
    fill.finish()
}

/// The body, as a client is sent it.
pub fn stored(hit: &Hit) -> Vec<u8> {
    let mut all = Vec::new();
    for (lease, range) in hit.leases(0..hit.len()) {
        let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap()];
        let mut done = 0;
        while done < bytes.len() {
            done += lease.read_at(&mut bytes[done..], range.start + done as u64).unwrap();
        }
        all.append(&mut bytes);
    }
    assert_eq!(all.len() as u64, hit.len());
    all
}

/// Takes all of a file out of the page cache; `false` where its filesystem cannot tell.
pub fn forget(file: &std::fs::File) -> bool {
    let (mut bytes, flags) = ([0; 1], rustix::io::ReadWriteFlags::NOWAIT);
    let mut slices = [std::io::IoSliceMut::new(&mut bytes)];
    let tells = rustix::io::preadv2(file, &mut slices, 0, flags) != Err(Errno::OPNOTSUPP);
    rustix::fs::fdatasync(file).unwrap();
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    if !tells {
        println!("SKIP: the filesystem cannot tell what is in the page cache");
    }
    tells
}

/// A loop device over a file, which takes root.
pub struct Loop(pub String);

impl Loop {
    pub fn new(image: &Path, size: u64) -> Option<Self> {
        File::create(image).unwrap().set_len(size).unwrap();
        Loop::over(image)
    }

    pub fn over(image: &Path) -> Option<Self> {
        let losetup = Command::new("losetup").args(["-f", "--show"]).arg(image).output();
        let Some(output) = losetup.ok().filter(|output| output.status.success()) else {
            println!("SKIP: no loop device");
            return None;
        };
        Some(Loop(String::from_utf8_lossy(&output.stdout).trim().to_owned()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

/// Opens the store of a device. A child that another test has forked has it open, too, until it
/// becomes another program.
pub fn once_free(options: &Options) -> (Store, Opened) {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        match Store::open(options) {
            Err(StoreError::Io { cause, .. })
                if cause.kind() == ErrorKind::ResourceBusy && Instant::now() < end =>
            {
                std::thread::yield_now();
            }
            opened => return opened.unwrap(),
        }
    }
}
