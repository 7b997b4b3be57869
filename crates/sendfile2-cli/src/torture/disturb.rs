//! The disturber: a process beside the server that uses the same file, so that pages come back, stay,
//! or are written out while writers take them out of the page cache.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use clap::ValueEnum;
use fastrand::Rng;
use rustix::fs::{Advice, FallocateFlags, Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::block::mix;
use super::message::{DisturberRole, EVERY, Line, Order};
use crate::child;

/// Bytes behind the slots, for those that write: they share a page, and a folio, with the last slot.
const TAIL: u64 = 1 << 20;

/// The most that is read or written at a time, in bytes.
const MOST: usize = 256 << 10;

/// The largest unit of direct I/O: a page.
const ALIGN: usize = 4096;

/// A use of the file that disturbs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Disturb {
    /// Read it, as any program does
    Reads,
    /// Read it by direct I/O
    DirectReads,
    /// Write behind the slots, in the same page and folio
    Writes,
    /// Allocate, zero and punch behind the slots
    Fallocate,
    /// Sync the file, and its filesystem
    Syncs,
    /// Drop what is clean from the page cache, as a lack of memory does
    Evict,
    /// All of these
    All,
}

impl Disturb {
    pub(super) const EACH: [Disturb; 6] = [
        Disturb::Reads,
        Disturb::DirectReads,
        Disturb::Writes,
        Disturb::Fallocate,
        Disturb::Syncs,
        Disturb::Evict,
    ];

    /// Returns the name on the command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Disturb::Reads => "reads",
            Disturb::DirectReads => "direct-reads",
            Disturb::Writes => "writes",
            Disturb::Fallocate => "fallocate",
            Disturb::Syncs => "syncs",
            Disturb::Evict => "evict",
            Disturb::All => "all",
        }
    }

    fn writes(self) -> bool {
        matches!(self, Disturb::Writes | Disturb::Fallocate)
    }
}

/// Returns the number of bytes that the file must have behind its slots.
pub(super) fn tail(disturb: &[Disturb]) -> u64 {
    if disturb.iter().any(|it| it.writes()) { TAIL } else { 0 }
}

/// One way to disturb, and how often it was done.
struct Work<'a> {
    how: Disturb,
    file: &'a File,
    /// The end of the slots.
    slots: u64,
    done: AtomicU64,
}

pub(super) fn run(role: &DisturberRole) -> anyhow::Result<()> {
    let path = format!("/proc/self/fd/{}", role.file);
    let file = File::options().read(true).write(true).open(&path)?;
    let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC;
    let direct = rustix::fs::open(&*path, flags, Mode::empty()).map(File::from);
    let mut all = Vec::new();
    for how in &role.disturb {
        let file = match (how, &direct) {
            (Disturb::DirectReads, Err(e)) => {
                skip(*how, &io::Error::from(*e));
                continue;
            }
            (Disturb::DirectReads, Ok(direct)) => direct,
            _ => &file,
        };
        let (slots, done) = (role.layout.size(), AtomicU64::new(0));
        all.push(Work { how: *how, file, slots, done });
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|threads| {
        for (number, work) in (0..).zip(&all) {
            let (stop, rng) = (&stop, Rng::with_seed(mix(role.seed ^ number)));
            threads.spawn(move || work.go_on(rng, stop));
        }
        threads.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                std::thread::sleep(EVERY);
                report(&all);
            }
        });
        // The one order there is, or the parent is gone.
        let _: Option<Order> = child::recv();
        stop.store(true, Ordering::Relaxed);
    });
    report(&all);
    Ok(())
}

fn report(all: &[Work<'_>]) {
    let done = all.iter().filter_map(|work| {
        let done = work.done.swap(0, Ordering::Relaxed);
        (done > 0).then(|| (work.how.name().to_owned(), done))
    });
    child::send(&Line::Disturbed(done.collect::<BTreeMap<_, _>>()));
}

fn skip(how: Disturb, why: &io::Error) {
    child::send(&Line::NoFault { name: how.name().into(), why: why.to_string() });
}

impl Work<'_> {
    /// Disturbs until it is stopped, or cannot.
    fn go_on(&self, mut rng: Rng, stop: &AtomicBool) {
        // Direct I/O asks for aligned memory.
        let mut memory = vec![0; MOST + ALIGN];
        let aligned = memory.as_ptr().align_offset(ALIGN);
        let buffer = &mut memory[aligned..aligned + MOST];
        while !stop.load(Ordering::Relaxed) {
            match self.once(&mut rng, buffer) {
                Ok(()) => _ = self.done.fetch_add(1, Ordering::Relaxed),
                Err(e) => return skip(self.how, &e),
            }
            if rng.bool() {
                std::thread::sleep(Duration::from_micros(rng.u64(0..2_000)));
            }
        }
    }

    fn once(&self, rng: &mut Rng, buffer: &mut [u8]) -> io::Result<()> {
        let len = rng.usize(1..=buffer.len());
        match self.how {
            Disturb::Reads => self.file.read_at(&mut buffer[..len], rng.u64(0..self.slots))?,
            Disturb::DirectReads => {
                let at = rng.u64(0..self.slots) / ALIGN as u64 * ALIGN as u64;
                self.file.read_at(&mut buffer[..len.next_multiple_of(ALIGN)], at)?
            }
            Disturb::Writes => {
                // Also in the page of the last slot, and never into the slot.
                let at = self.slots + rng.u64(0..TAIL - MOST as u64) * u64::from(rng.bool());
                self.file.write_at(&buffer[..len], at)?
            }
            Disturb::Fallocate => {
                let keep = FallocateFlags::KEEP_SIZE;
                let how =
                    [keep, keep | FallocateFlags::ZERO_RANGE, keep | FallocateFlags::PUNCH_HOLE];
                let at = self.slots + rng.u64(0..TAIL - MOST as u64);
                rustix::fs::fallocate(self.file, how[rng.usize(0..3)], at, len as u64)?;
                0
            }
            Disturb::Syncs => {
                let sync = if rng.bool() { rustix::fs::fdatasync } else { rustix::fs::syncfs };
                sync(self.file)?;
                0
            }
            Disturb::Evict => {
                rustix::fs::fadvise(self.file, 0, None, Advice::DontNeed)?;
                0
            }
            Disturb::All => 0,
        };
        Ok(())
    }
}
