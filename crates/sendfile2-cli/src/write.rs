//! `sendfile2 write`: new bytes into a file that others may be sending.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, anyhow, bail, ensure};
use clap::ValueHint;
use indicatif::{ProgressBar, ProgressStyle};
use rustix::fs::{Mode, OFlags};
use sendfile2::Source;
use sendfile2::detach::{Detacher, NotDetached};
use serde::Serialize;

use crate::{output, units};

/// Bytes that are read and overwritten at a time, or one unit if that is more.
const CHUNK: u64 = 1 << 20;

/// Overwrite a part of a file that others may be sending
///
/// What is in flight arrives as it was, whoever sent it and however: a web server beside this
/// command by sendfile(2), for example. No peer is waited for, and no privilege is needed. Nothing
/// is ever written in place: where that is all that could be done, it is refused.
///
/// Whole units are written (most often 4096 bytes: sendfile2 probe --file tells), and the file does
/// not grow. What a sender has not handed over to the kernel yet is sent as it is in the file then.
///
/// Exits 0 if everything was written, and is on the disk, and 1 if not; the message says how much
/// was written before, most often nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sendfile2 write slab --at 128K --from slot    the bytes of slot, from byte 131072 on
  make-slot | sendfile2 write slab --at 0       from standard input
  sendfile2 write /dev/sdb1 --at 1G < segment   a block device
  sendfile2 probe --file slab                   whether it can be done, and in which units
  sendfile2 write slab --at 0 --from slot --json | jq .bytes")]
pub(crate) struct Args {
    /// The file: a regular file or a block device
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    file: PathBuf,
    /// Offset in the file to begin at: bytes, or with K, M or G
    #[arg(long, value_name = "N", value_parser = units::size)]
    at: u64,
    /// File to take the new bytes from, whole [default: standard input]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    from: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let target = Target::open(&args.file)?;
    let mut input = Input::open(args.from.as_deref())?;
    let unit = target.detacher.unit().map_err(|why| target.refused(&why, 0))?;
    check(args, &target, &input, unit)?;
    let started = Instant::now();
    let mut written = 0;
    let error = overwrite(args.at, &target, &mut input, unit, &mut written).err();
    let report = Report {
        file: args.file.display().to_string(),
        at: args.at,
        bytes: written,
        unit,
        micros: units::as_micros(started.elapsed()),
        error: error.as_ref().map(output::whole),
    };
    if args.json {
        output::print(&format!("{}\n", serde_json::to_string(&report)?))?;
    } else if error.is_none() {
        output::print(&format!("{report}\n"))?;
    }
    error.map_or(Ok(()), Err)
}

/// Refuses what is known to be wrong before anything is written.
fn check(args: &Args, target: &Target<'_>, input: &Input, unit: u64) -> anyhow::Result<()> {
    let (file, at) = (target.path.display(), args.at);
    let below = at / unit * unit;
    ensure!(
        at == below,
        "{file} is written in units of {unit} bytes, and --at {at} is not at the start of one, as \
         {below} and {} are; nothing was written",
        below.saturating_add(unit)
    );
    let Some(length) = input.length else { return Ok(()) };
    if length % unit != 0 {
        bail!("{}; nothing was written", input.cut(length % unit, unit));
    }
    let end = at.saturating_add(length);
    let size = target.source.size()?;
    if end > size {
        return Err(target.refused(&NotDetached::BehindEnd { range: at..end, size }, 0));
    }
    Ok(())
}

fn overwrite(
    at: u64,
    target: &Target<'_>,
    input: &mut Input,
    unit: u64,
    written: &mut u64,
) -> anyhow::Result<()> {
    // Shown on standard error, where that is a terminal.
    let progress = match input.length {
        Some(length) => ProgressBar::new(length).with_style(ProgressStyle::with_template(
            "{wide_bar} written {binary_bytes} of {binary_total_bytes}",
        )?),
        None => ProgressBar::no_length().with_style(ProgressStyle::with_template(
            "{spinner} written {binary_bytes} in {elapsed} ({binary_bytes_per_sec})",
        )?),
    };
    let mut buffer = vec![0; usize::try_from(CHUNK.next_multiple_of(unit))?];
    loop {
        let n = input.fill(&mut buffer).map_err(|e| after(&e, *written))?;
        let rest = n as u64 % unit;
        let whole = &buffer[..n - usize::try_from(rest)?];
        if let Err(refused) = target.detacher.overwrite(whole, at.saturating_add(*written)) {
            *written += refused.written;
            return Err(target.refused(&refused.why, *written));
        }
        *written += whole.len() as u64;
        progress.set_position(*written);
        if rest > 0 {
            return Err(after(&anyhow!(input.cut(rest, unit)), *written));
        }
        if n < buffer.len() {
            break;
        }
    }
    ensure!(*written > 0, "{} is empty: nothing was written", input.name);
    // What a disk, or a filesystem, puts off may fail only now.
    let synced = rustix::fs::fdatasync(target.source.as_fd());
    synced.map_err(|e| after(&anyhow!("cannot write to {}: {e}", target.path.display()), *written))
}

/// The error, and how much was written before.
fn after(error: &anyhow::Error, written: u64) -> anyhow::Error {
    let error = output::whole(error);
    match written {
        0 => anyhow!("{error}; nothing was written"),
        _ => anyhow!("{error}; the first {written} bytes were written"),
    }
}

/// The file that is overwritten.
struct Target<'a> {
    path: &'a Path,
    source: Source,
    detacher: Detacher,
}

impl<'a> Target<'a> {
    fn open(path: &'a Path) -> anyhow::Result<Self> {
        // O_NONBLOCK: the open of a pipe or a device must not wait, only to be refused.
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = rustix::fs::open(path, flags, Mode::empty());
        let file = file.with_context(|| format!("cannot write to {}", path.display()))?;
        let source = Source::new(file)
            .with_context(|| format!("cannot overwrite parts of {}", path.display()))?;
        let detacher = Detacher::new(&source).map_err(|why| refused(path, &why, 0))?;
        Ok(Target { path, source, detacher })
    }

    fn refused(&self, why: &NotDetached, written: u64) -> anyhow::Error {
        refused(self.path, why, written)
    }
}

/// The refusal in words that say what to do.
fn refused(path: &Path, why: &NotDetached, written: u64) -> anyhow::Error {
    let file = path.display();
    let text = match why {
        NotDetached::NoDirect { .. } | NotDetached::Unsupported { .. } | NotDetached::NoProof => {
            format!(
                "{file} cannot be overwritten without changing what is in flight: {why}; write a \
                 new file and rename it over this one, or use a filesystem such as ext4, XFS or \
                 btrfs"
            )
        }
        NotDetached::BehindEnd { range, size } => format!(
            "{file} ends at byte {size}, and does not grow by this: bytes {}..{} reach behind that \
             (truncate --size makes it longer)",
            range.start, range.end
        ),
        _ => format!("cannot overwrite {file}: {why}"),
    };
    after(&anyhow!(text), written)
}

/// Where the new bytes come from.
struct Input {
    file: File,
    name: String,
    /// The bytes that are left, where that is known.
    length: Option<u64>,
}

impl Input {
    fn open(from: Option<&Path>) -> anyhow::Result<Self> {
        let (mut file, name) = match from.filter(|path| path.as_os_str() != "-") {
            Some(path) => {
                let name = path.display().to_string();
                (File::open(path).with_context(|| format!("cannot open {name}"))?, name)
            }
            None => {
                // Not through std's buffer.
                let file = io::stdin().as_fd().try_clone_to_owned();
                let file = file.context("cannot read standard input")?;
                (file.into(), "standard input".into())
            }
        };
        let metadata = file.metadata().with_context(|| format!("cannot read {name}"))?;
        // Files of proc and sysfs say that they are empty.
        let length = if metadata.is_file() && metadata.len() > 0 {
            Some(metadata.len().saturating_sub(file.stream_position()?))
        } else {
            None
        };
        Ok(Input { file, name, length })
    }

    /// Reads until the buffer is full, or the input ends.
    fn fill(&mut self, buffer: &mut [u8]) -> anyhow::Result<usize> {
        let mut n = 0;
        while n < buffer.len() {
            match self.file.read(&mut buffer[n..]) {
                Ok(0) => break,
                Ok(more) => n += more,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(anyhow!("cannot read {}: {e}", self.name)),
            }
        }
        Ok(n)
    }

    fn cut(&self, rest: u64, unit: u64) -> String {
        format!(
            "{} ends {rest} bytes into a unit of {unit}, of which whole ones are written: add {} \
             bytes to it",
            self.name,
            unit - rest
        )
    }
}

/// The report. The names of the fields are those of the JSON.
#[derive(Debug, Serialize)]
struct Report {
    file: String,
    at: u64,
    bytes: u64,
    unit: u64,
    micros: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { file, at, bytes, micros, .. } = self;
        let end = at + bytes;
        write!(f, "{file}: bytes {at}..{end} overwritten in {}", units::micros(*micros))
    }
}
