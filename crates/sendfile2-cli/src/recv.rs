//! `sendfile2 recv`: what comes over a socket, into a file or to nowhere, with its digest.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use clap::ValueHint;
use indicatif::{ProgressBar, ProgressStyle};
use rustix::fs::{FileType, OFlags};
use serde::Serialize;

use crate::net::{Address, Stream};
use crate::{output, units};

/// Bytes read at a time at most.
const READ: usize = 256 << 10;

/// Receive what is sent here, and print its size and digest
///
/// Serves one connection after another until it is interrupted, and prints one line for each when
/// the peer has ended it. Without -o what arrives is counted, digested and discarded. With -o each
/// connection replaces what the one before it left in the file.
///
/// A connection that is reset, as by a sendfile2 send that fails or is killed, is INCOMPLETE, and an
/// error. But the end of a stream does not say whether it was all: other senders that are killed,
/// and all over a unix socket, end it as if it was. Compare the digest with the sender's.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sendfile2 recv :9000                          count and digest
  sendfile2 recv :9000 --once -o disk.img       one connection, into a file
  sendfile2 recv :9000 --once -o - | tar x      into a pipe
  sendfile2 recv 127.0.0.1:9000 --rate 1M       as a slow peer
  sendfile2 recv unix:/run/log.sock --json | jq .blake3")]
pub(crate) struct Args {
    /// Address to listen on: HOST:PORT, :PORT for every address of this host (port 0 for any that
    /// is free), unix:PATH, or unix:@NAME (an abstract socket)
    listen: Address,
    /// Write to this file; - is standard output
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    output: Option<PathBuf>,
    /// Read no faster than this: bytes a second, or with K, M or G
    #[arg(long, value_name = "BYTES/S", value_parser = units::rate)]
    rate: Option<u64>,
    /// End after one connection; exit 1 if it failed
    #[arg(long)]
    once: bool,
    /// Print one JSON object for each connection
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let mut sink = Sink::new(args.output.as_deref())?;
    let listener = args.listen.listen()?;
    let address = listener.address()?;
    // Standard output is for the bytes received. Where this cannot be written, nobody needs it.
    let _ = writeln!(io::stderr(), "sendfile2: listening on {address}");
    loop {
        let (mut stream, from) = listener.accept().context("cannot accept a connection")?;
        let (report, broken) = receive(&mut stream, from, &mut sink, args)?;
        let text = if args.json {
            format!("{}\n", serde_json::to_string(&report)?)
        } else {
            format!("{report}\n")
        };
        if sink.is_standard_output() {
            // Beside the content there is no place for it.
            let _ = io::stderr().write_all(text.as_bytes());
        } else {
            output::print(&text)?;
        }
        match broken {
            Some(error) if args.once => return Err(error),
            Some(error) => output::report_error(&error),
            None if args.once => return Ok(()),
            None => {}
        }
    }
}

/// Receives from one connection. An error is one of this command, and ends it; a connection that
/// breaks, or a file that cannot be written, ends only the connection.
fn receive(
    stream: &mut Stream,
    from: String,
    sink: &mut Sink,
    args: &Args,
) -> anyhow::Result<(Report, Option<anyhow::Error>)> {
    // Shown on standard error, where that is a terminal.
    let progress = ProgressBar::no_length().with_style(ProgressStyle::with_template(
        "{spinner} received {binary_bytes} in {elapsed} ({binary_bytes_per_sec}) from {msg}",
    )?);
    progress.set_message(from.clone());
    let mut bucket = args.rate.map(Bucket::new);
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; READ];
    let (mut bytes, mut written) = (0, 0);
    let started = Instant::now();
    let (mut begun, mut error) = (false, None);
    while error.is_none() {
        let most = bucket.as_ref().map_or(READ, Bucket::piece);
        match stream.read(&mut buffer[..most]) {
            Ok(n) => {
                // The file keeps its content until there is something to replace it.
                let ready = if begun { Ok(()) } else { sink.begin() };
                begun = true;
                bytes += n as u64;
                hasher.update(&buffer[..n]);
                let end = n == 0;
                let done =
                    ready.and_then(|()| if end { sink.end() } else { sink.write(&buffer[..n]) });
                match done {
                    Ok(()) if end => break,
                    Ok(()) => written = bytes,
                    Err(e) => error = Some(e),
                }
                progress.set_position(bytes);
                if let Some(bucket) = &mut bucket {
                    bucket.take(n);
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => error = Some(anyhow!("the connection from {from} broke: {e}")),
        }
    }
    progress.finish_and_clear();
    let error = error.map(|e| partial(&e, sink, begun, bytes, written));
    let report = Report {
        from,
        bytes,
        blake3: hasher.finalize().to_string(),
        micros: units::as_micros(started.elapsed()),
        file: args.output.as_ref().map(|file| file.display().to_string()),
        error: error.as_ref().map(output::whole),
    };
    Ok((report, error))
}

/// Reports how much there is of what was to come.
fn partial(
    error: &anyhow::Error,
    sink: &Sink,
    begun: bool,
    received: u64,
    written: u64,
) -> anyhow::Error {
    let received = units::bytes(received);
    match sink {
        Sink::File { path, .. } if !begun => {
            anyhow!(
                "{}; nothing was received, and {} is as it was",
                output::whole(error),
                path.display()
            )
        }
        Sink::File { file, path } => {
            // A write that failed may have written a part.
            let written = match file.metadata() {
                Ok(metadata) if metadata.is_file() => metadata.len(),
                _ => written,
            };
            anyhow!(
                "{}; {received} were received, and {} holds the first {written} bytes of an \
                 unknown whole",
                output::whole(error),
                path.display()
            )
        }
        _ => anyhow!("{}; {received} were received of an unknown whole", output::whole(error)),
    }
}

/// The destination of the bytes received.
enum Sink {
    Nowhere,
    StandardOutput(File),
    File { file: File, path: PathBuf },
}

impl Sink {
    /// Opens the file, so that an error shows itself before anybody connects.
    fn new(output: Option<&Path>) -> anyhow::Result<Self> {
        Ok(match output {
            None => Sink::Nowhere,
            Some(path) if path.as_os_str() == "-" => {
                ensure!(!is_closed(io::stdout().as_fd()), "standard output is closed");
                // Not through std's buffer, which flushes at each line.
                let out = io::stdout().as_fd().try_clone_to_owned();
                Sink::StandardOutput(out.context("cannot write to standard output")?.into())
            }
            Some(path) => {
                // The file keeps its content until there is something to replace it.
                let file = OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(path)
                    .map_err(|e| anyhow!("cannot write to {}: {e}", path.display()))?;
                Sink::File { file, path: path.to_owned() }
            }
        })
    }

    fn is_standard_output(&self) -> bool {
        matches!(self, Sink::StandardOutput(_))
    }

    /// Begins the output of a new connection.
    fn begin(&mut self) -> anyhow::Result<()> {
        if let Sink::File { file, path } = self {
            // A device or a pipe cannot be cut, and need not be.
            if file.metadata().is_ok_and(|m| m.is_file()) {
                file.set_len(0)
                    .and_then(|()| io::Seek::rewind(file))
                    .map_err(|e| anyhow!("cannot empty {}: {e}", path.display()))?;
            }
        }
        Ok(())
    }

    /// Ends the output of one connection. A write that a filesystem put off may fail only now.
    fn end(&mut self) -> anyhow::Result<()> {
        match self {
            Sink::File { file, path } if file.metadata().is_ok_and(|m| m.is_file()) => {
                file.sync_data().map_err(|e| anyhow!("cannot write to {}: {e}", path.display()))
            }
            _ => Ok(()),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        match self {
            Sink::Nowhere => Ok(()),
            Sink::StandardOutput(out) => {
                out.write_all(bytes).context("cannot write to standard output")
            }
            Sink::File { file, path } => file
                .write_all(bytes)
                .map_err(|e| anyhow!("cannot write to {}: {e}", path.display())),
        }
    }
}

/// Returns whether a standard stream was closed when the program started: Rust's runtime then puts
/// the null device in its place, open for both reading and writing; a caller that redirects it
/// opens it for writing only.
fn is_closed(out: BorrowedFd<'_>) -> bool {
    let null = rustix::fs::fstat(out).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
            && stat.st_rdev == rustix::fs::makedev(1, 3)
    });
    let mode = rustix::fs::fcntl_getfl(out).map(|flags| flags & OFlags::RWMODE);
    null && mode == Ok(OFlags::RDWR)
}

/// A token bucket, as the time at which it is level again.
#[derive(Debug)]
struct Bucket {
    rate: u64,
    level: Instant,
}

impl Bucket {
    /// The time whose bytes may be saved up, and so taken at once.
    const BURST: Duration = Duration::from_millis(100);

    fn new(rate: u64) -> Self {
        Bucket { rate, level: Instant::now() }
    }

    /// Bytes to read at a time, so that the flow is even.
    fn piece(&self) -> usize {
        usize::try_from(self.rate / 20).unwrap_or(READ).clamp(1, READ)
    }

    /// Takes `bytes`, and waits until the bucket is level again.
    fn take(&mut self, bytes: usize) {
        let now = Instant::now();
        let nanos = bytes as u128 * 1_000_000_000 / u128::from(self.rate);
        let time = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let full = now.checked_sub(Self::BURST).unwrap_or(now);
        self.level = self.level.max(full) + time;
        std::thread::sleep(self.level.saturating_duration_since(now));
    }
}

/// The report on one connection. The names of the fields are those of the JSON.
#[derive(Debug, Serialize)]
struct Report {
    from: String,
    bytes: u64,
    blake3: String,
    micros: u64,
    /// The file written to; `null` if the bytes were discarded.
    file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { from, bytes, blake3, micros, .. } = self;
        write!(f, "{from}: {bytes} bytes in {}, BLAKE3 {blake3}", units::micros(*micros))?;
        match &self.file {
            None => write!(f, ", discarded")?,
            Some(file) => write!(f, ", written to {file}")?,
        }
        if self.error.is_some() {
            write!(f, ", INCOMPLETE")?;
        }
        Ok(())
    }
}
