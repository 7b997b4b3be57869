//! Counts the instructions of writes, in a guest whose clock counts instructions (one a nanosecond):
//! those of the writing thread, those of all others until the bytes are on the disk, and the time
//! that a write takes, waiting included.
//!
//! Usage: guest-writes DIRECTORY NAME; prints a row of a table for each kind of write.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fs::File;
use std::io::IoSlice;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::fs::{Advice, Timespec, Timestamps, UTIME_NOW, fadvise, futimens};
use rustix::io::{Errno, ReadWriteFlags, pwritev2};
use rustix::time::{ClockId, clock_gettime};
use sendfile2::Source;
use sendfile2::detach::Detacher;

/// The flag that the series adds.
const RWF_DETACH: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x8000);

/// The sizes of the writes, and how many of them are counted; each writes to another place.
const SIZES: [(u64, u64); 3] = [(4 << 10, 128), (64 << 10, 32), (1 << 20, 2)];

/// Bytes of the file, and of its beginning, which is counted; one more write goes behind that.
const FILE: u64 = 3 << 20;
const LAST: u64 = 2 << 20;

/// How often each is counted, on a new file.
const ROUNDS: u64 = 3;

/// More tries than the library makes.
const TRIES: u32 = 16;

/// The state of the page cache where a write begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Clean,
    Dirty,
    Uncached,
    /// Nothing: the file ends there.
    Appended,
}

const STATES: [(State, &str); 4] = [
    (State::Clean, "clean"),
    (State::Dirty, "dirty"),
    (State::Uncached, "not cached"),
    (State::Appended, "appended"),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Plain,
    Detach,
    Direct,
    /// The way of the library where there is no flag: the pages are taken out, then direct I/O writes.
    TakeOut,
    Library,
}

const WAYS: [(Way, &str); 5] = [
    (Way::Plain, "plain"),
    (Way::Detach, "`RWF_DETACH`"),
    (Way::Direct, "`O_DIRECT`"),
    (Way::TakeOut, "taken out, then `O_DIRECT`"),
    (Way::Library, "`Detacher::overwrite`"),
];

/// One round, per write.
#[derive(Debug, Default)]
struct Count {
    thread: f64,
    all: f64,
    time: f64,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, name] = &arguments[..] else { bail!("usage: guest-writes DIRECTORY NAME") };
    let path = Path::new(directory).join("file");
    for (size, calls) in SIZES {
        for (state, cached) in STATES {
            for (way, called) in WAYS {
                if state == State::Appended && matches!(way, Way::TakeOut | Way::Library) {
                    continue;
                }
                // There the library clones.
                if way == Way::TakeOut && name.as_str() == "btrfs" {
                    continue;
                }
                let mut rounds = Vec::new();
                for _ in 0..ROUNDS {
                    let counted = count(&path, size, calls, state, way);
                    rounds.push(counted.with_context(|| format!("{size} {cached} {called}"))?);
                }
                let [thread, all, time] =
                    [|c: &Count| c.thread, |c: &Count| c.all, |c: &Count| c.time]
                        .map(|of| mean(&rounds, of));
                println!(
                    "| {name} | {} KiB | {cached} | {called} | {:.0} ± {:.0} | {:.0} ± {:.0} | {:.0} |",
                    size >> 10,
                    thread.0,
                    thread.1,
                    all.0,
                    all.1,
                    time.0 / 1000.0
                );
            }
        }
    }
    Ok(())
}

/// Returns the mean, and its standard error.
fn mean(rounds: &[Count], of: fn(&Count) -> f64) -> (f64, f64) {
    let number = rounds.len() as f64;
    let mean = rounds.iter().map(of).sum::<f64>() / number;
    let squares: f64 = rounds.iter().map(|round| (of(round) - mean).powi(2)).sum();
    (mean, (squares / (number * (number - 1.0))).sqrt())
}

fn count(path: &Path, size: u64, calls: u64, state: State, way: Way) -> anyhow::Result<Count> {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
    if state != State::Appended {
        fill(&file, 1)?;
        file.sync_all()?;
    }
    match state {
        State::Clean | State::Appended => {}
        State::Uncached => fadvise(&file, 0, None, Advice::DontNeed)?,
        State::Dirty => fill(&file, 2)?,
    }
    let writer = Writer::new(path, &file, size, way)?;
    // Neither what was made at the first write, nor what else the kernel has to do: an idle guest's
    // time costs nothing.
    let first = if state == State::Appended { size } else { 0 };
    writer.write(if state == State::Appended { 0 } else { LAST })?;
    if state != State::Dirty {
        rustix::fs::sync();
        std::thread::sleep(Duration::from_secs(1));
    }

    let (others, own, began) = (others()?, instructions()?, now()?);
    for call in 0..calls {
        writer.write(first + call * size)?;
    }
    let thread = instructions()? - own;
    let time = now()? - began;
    file.sync_all()?;
    let synced = instructions()? - own;
    let all = synced + since(&others)?;
    let each = |sum: u64| sum as f64 / calls as f64;
    writer.check(&file, first, size * calls)?;
    Ok(Count { thread: each(thread), all: each(all), time: each(time) })
}

fn fill(file: &File, byte: u8) -> std::io::Result<()> {
    let bytes = vec![byte; 1 << 20];
    (0..FILE >> 20).try_for_each(|i| file.write_all_at(&bytes, i << 20))
}

struct Writer {
    way: Way,
    file: File,
    detacher: Option<Detacher>,
    /// The bytes, aligned as direct I/O wants them, after so many others.
    bytes: Vec<u8>,
    skipped: usize,
}

impl Writer {
    fn new(path: &Path, file: &File, size: u64, way: Way) -> anyhow::Result<Self> {
        let direct = matches!(way, Way::Direct | Way::TakeOut);
        let flags = if direct { libc::O_DIRECT } else { 0 };
        let library = matches!(way, Way::TakeOut | Way::Library);
        let detacher =
            if library { Some(Detacher::new(&Source::new(file.try_clone()?)?)?) } else { None };
        let bytes = vec![7; usize::try_from(size)? + 4096];
        let skipped = bytes.as_ptr().align_offset(4096);
        let mut options = File::options();
        Ok(Writer {
            way,
            file: options.read(true).write(true).custom_flags(flags).open(path)?,
            detacher,
            bytes,
            skipped,
        })
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[self.skipped..][..self.bytes.len() - 4096]
    }

    fn write(&self, at: u64) -> anyhow::Result<()> {
        let put = |flags| {
            let written = pwritev2(&self.file, &[IoSlice::new(self.bytes())], at, flags)?;
            Ok::<_, Errno>(written == self.bytes().len())
        };
        let whole = match (self.way, &self.detacher) {
            (Way::Detach, _) => put(RWF_DETACH)?,
            (Way::Library, Some(detacher)) => {
                detacher.overwrite(self.bytes(), at)?;
                true
            }
            (Way::TakeOut, Some(detacher)) => {
                let mut tries = 0;
                loop {
                    match put(ReadWriteFlags::NOWAIT) {
                        Err(Errno::AGAIN) if tries < TRIES => {}
                        result => break result?,
                    }
                    tries += 1;
                    detacher.detach(&(at..at + self.bytes().len() as u64))?;
                    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
                    futimens(&self.file, &Timestamps { last_access: now, last_modification: now })?;
                }
            }
            _ => put(ReadWriteFlags::empty())?,
        };
        ensure!(whole, "not all was written");
        Ok(())
    }

    /// Checks that the bytes are there.
    fn check(&self, file: &File, at: u64, size: u64) -> anyhow::Result<()> {
        let mut bytes = vec![0; usize::try_from(size)?];
        file.read_exact_at(&mut bytes, at)?;
        ensure!(bytes.iter().all(|byte| *byte == 7), "the file has other bytes");
        Ok(())
    }
}

/// Returns the instructions of this thread.
fn instructions() -> anyhow::Result<u64> {
    nanoseconds(ClockId::ThreadCPUTime)
}

fn now() -> anyhow::Result<u64> {
    nanoseconds(ClockId::Monotonic)
}

fn nanoseconds(clock: ClockId) -> anyhow::Result<u64> {
    let time = clock_gettime(clock);
    Ok(u64::try_from(time.tv_sec * 1_000_000_000 + time.tv_nsec)?)
}

/// Returns the instructions of each other process, and of each thread of the kernel, by its number.
fn others() -> anyhow::Result<HashMap<u32, u64>> {
    let mut all = HashMap::new();
    for process in std::fs::read_dir("/proc")? {
        let process = process?;
        let Some(id) = process.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // One that has ended since has none.
        let Ok(times) = std::fs::read_to_string(process.path().join("schedstat")) else { continue };
        let time = times.split(' ').next().unwrap_or_default().parse().context("schedstat")?;
        if id != std::process::id() {
            all.insert(id, time);
        }
    }
    Ok(all)
}

/// Returns the instructions of the others since these were taken.
fn since(before: &HashMap<u32, u64>) -> anyhow::Result<u64> {
    let grown = |(id, time): (&u32, &u64)| time - before.get(id).unwrap_or(&0);
    Ok(others()?.iter().map(grown).sum())
}
