//! `sendfile2 send`: a file to a socket, and when it was sent, released and acknowledged.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ValueEnum, ValueHint};
use indicatif::{ProgressBar, ProgressStyle};
use rustix::net::{AddressFamily, SocketType, sockopt};
use sendfile2::{
    Acknowledgement, Choice, Engine, Error, Refusal, Sender, Sent, Source, Status, Ticket, probe,
    uring,
};
use serde::Serialize;

use crate::connection::Connection;
use crate::net::{self, Address};
use crate::{output, units};

/// The time without any progress that ends a transfer without a deadline.
const STALL: Duration = Duration::from_secs(60);

/// The interval at which the three figures are looked at.
const TICK: Duration = Duration::from_millis(50);

/// The time that the kernel has to release the file after an abort, until its state is called
/// unknown.
const AFTERMATH: Duration = Duration::from_secs(2);

/// The message about a peer that reset the connection.
const GONE: &str = "the peer closed the connection before it had everything";

/// Send a file, or a part of it, and say when it was sent, released and acknowledged
///
/// sent: the kernel has accepted it. released: the kernel no longer references the file's pages, so
/// that the file may be overwritten. acknowledged: the peer's TCP has it. The digest is of what was
/// read from the file where it was sent: compare it with the receiver's.
///
/// Exits 0 if everything was sent and what --wait names has happened, and 1 if not; then the
/// connection is reset, so that the peer does not take a part for the whole. It is reset, too, if
/// this command is killed before. Only TCP has resets: over a unix socket the receiver sees an
/// ordinary end, and only its digest shows the difference.
///
/// Without --length the file is sent to its end, also if it grows meanwhile.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sendfile2 send disk.img host:9000                     to a sendfile2 recv :9000 on host
  sendfile2 send disk.img host:9000 --engine zerocopy   by this engine, or not at all
  sendfile2 send log host:9000 --offset 1G --length 64M
  sendfile2 send log [2001:db8::1]:9000 --wait acknowledged --deadline 30s
  sendfile2 send log unix:/run/log.sock
  sendfile2 send log host:9000 --json | jq .blake3")]
pub(crate) struct Args {
    /// The file: a regular file or a block device
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    file: PathBuf,
    /// Address to send to: HOST:PORT, or unix:PATH, or unix:@NAME (an abstract socket)
    #[arg(value_name = "HOST:PORT", value_parser = net::destination)]
    destination: Address,
    /// The way the bytes travel
    #[arg(long, value_name = "ENGINE", default_value_t, value_parser = engine())]
    engine: Engine,
    /// Offset in the file to begin at: bytes, or with K, M or G
    #[arg(long, value_name = "N", default_value = "0", value_parser = units::size)]
    offset: u64,
    /// Length to send: bytes, or with K, M or G [default: to the end of the file]
    #[arg(long, value_name = "N", value_parser = units::size)]
    length: Option<u64>,
    /// Event to wait for when everything is sent
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    wait: Wait,
    /// End after this time in all, such as 500ms, 30s or 1h [default: after 60s in which nothing
    /// is sent, released or acknowledged]
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    deadline: Option<Duration>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn engine() -> impl TypedValueParser<Value = Engine> {
    PossibleValuesParser::new(Engine::ALL.iter().map(|engine| engine.name()))
        .try_map(|name| name.parse::<Engine>())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Wait {
    /// Nothing: the kernel may still read the file
    None,
    /// The release: the file may be overwritten
    #[default]
    Released,
    /// The release, and the acknowledgement of everything by the peer's TCP
    Acknowledged,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let source = output::open(&args.file)?;
    let range = range(args, true_size(&source, args)?)?;
    // Before there is a connection, since the peer would see one without content.
    if matches!(args.engine, Engine::Zerocopy | Engine::Uring | Engine::Native) {
        if let Some(reason) = refusal(&source, args.engine, &args.destination)? {
            let refused = Error::Refused { engine: args.engine, reason };
            bail!("{refused}; nothing was sent");
        }
    }
    if args.wait == Wait::Acknowledged && args.destination.is_unix() {
        bail!("a unix socket acknowledges nothing: use --wait released");
    }
    let clock = Clock::new(args.deadline);
    let socket = args.destination.connect(args.deadline.unwrap_or(STALL))?;
    let carrier = Connection::new(socket, args.engine, args.wait == Wait::Acknowledged)?;

    let mut transfer = Transfer::new(&source, carrier, range, args.length.is_none(), clock)?;
    let result = transfer.run(args.wait);
    transfer.progress.finish_and_clear();
    let error = result.err().map(|error| transfer.give_up(&error));
    let report = transfer.report(args, error.clone())?;
    if args.json {
        output::print(&format!("{}\n", serde_json::to_string(&report)?))?;
    } else if error.is_none() {
        output::print(&report.text())?;
    }
    match error {
        None => Ok(()),
        Some(error) => Err(anyhow!(error)),
    }
}

/// Returns the reason why the engine cannot serve the file, or any socket of the destination's
/// family.
fn refusal(
    source: &Source,
    engine: Engine,
    destination: &Address,
) -> anyhow::Result<Option<Refusal>> {
    if engine != Engine::Native {
        if let Some(why) = probe::file(source)?.unmappable {
            return Ok(Some(Refusal::File(why)));
        }
    }
    if engine == Engine::Uring {
        match uring::Driver::new() {
            Ok(_) => {}
            Err(Error::Refused { reason, .. }) => return Ok(Some(reason)),
            Err(error) => return Err(error.into()),
        }
    }
    let family = if destination.is_unix() { AddressFamily::UNIX } else { AddressFamily::INET };
    let socket = rustix::net::socket(family, SocketType::STREAM, None)
        .context("cannot make a socket to try the engine on")?;
    let found = probe::destination(&Sender::new(socket)?);
    Ok(if engine == Engine::Native { found.native_refused } else { found.zerocopy_refused })
}

/// Returns the size of the file, if the file ends there: files of proc and sysfs are made while
/// they are read, and say that they have 0 bytes, or 4096. A part of them would pass for the whole.
fn true_size(source: &Source, args: &Args) -> anyhow::Result<u64> {
    let file = File::from(source.as_fd().try_clone_to_owned()?);
    let name = args.file.display();
    let has = |at| loop {
        match file.read_at(&mut [0], at) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            read => return read.map(|n| n == 1).with_context(|| format!("cannot read {name}")),
        }
    };
    loop {
        let size = source.size()?;
        if size.checked_sub(1).map_or(Ok(true), has)? && !has(size)? {
            return Ok(size);
        }
        // Maybe it was written to just now.
        ensure!(
            source.size()? != size,
            "{name} does not end where it says ({size} bytes), as files of proc and sysfs do not: \
             send a copy of it (cat {name} > copy); nothing was sent"
        );
    }
}

/// Returns the range to send, if the file has it.
fn range(args: &Args, size: u64) -> anyhow::Result<Range<u64>> {
    let Args { offset, length, .. } = *args;
    let file = args.file.display();
    ensure!(
        offset <= size,
        "--offset {offset} is past the end of {file}, which has {size} bytes: nothing was sent"
    );
    let left = size - offset;
    let length = length.unwrap_or(left);
    ensure!(
        length <= left,
        "{file} has {left} bytes from --offset {offset} on, fewer than --length {length}: nothing \
         was sent"
    );
    Ok(offset..offset + length)
}

/// The deadline of a transfer, or the limit of the time without progress.
#[derive(Debug)]
struct Clock {
    deadline: Option<(Instant, Duration)>,
    progressed: Instant,
}

impl Clock {
    fn new(deadline: Option<Duration>) -> Self {
        let now = Instant::now();
        Clock { deadline: deadline.map(|time| (now + time, time)), progressed: now }
    }

    fn check(&self) -> anyhow::Result<()> {
        match self.deadline {
            Some((at, time)) if Instant::now() >= at => {
                bail!("the deadline of {} passed", units::time(time))
            }
            None if self.progressed.elapsed() >= STALL => {
                bail!("nothing moved for {} (does the peer read?)", units::time(STALL))
            }
            _ => Ok(()),
        }
    }

    /// Returns the time to look again at, at the latest.
    fn tick(&self) -> Instant {
        let tick = Instant::now() + TICK;
        self.deadline.map_or(tick, |(at, _)| at.min(tick))
    }
}

/// A file on its way.
struct Transfer<'a> {
    source: &'a Source,
    carrier: Connection,
    range: Range<u64>,
    /// Whether the transfer ends at the end of the file, wherever that is when everything before it
    /// is sent.
    to_the_end: bool,
    clock: Clock,
    started: Instant,
    digest: Digest,
    progress: ProgressBar,
    /// The tickets that were not released when they were last looked at.
    tickets: VecDeque<Ticket>,
    last: Option<Ticket>,
    choices: Vec<Taken>,
    sent: u64,
    released: u64,
    /// Bytes that the peer has acknowledged; `None` where it cannot be known.
    acknowledged: Option<u64>,
    until: Until,
}

/// The times from the beginning until everything was sent, released and acknowledged.
#[derive(Debug, Default)]
struct Until {
    sent: Option<Duration>,
    released: Option<Duration>,
    acknowledged: Option<Duration>,
}

impl<'a> Transfer<'a> {
    fn new(
        source: &'a Source,
        carrier: Connection,
        range: Range<u64>,
        to_the_end: bool,
        clock: Clock,
    ) -> anyhow::Result<Self> {
        // Shown on standard error, where that is a terminal.
        let progress =
            ProgressBar::new(range.end - range.start).with_style(ProgressStyle::with_template(
                "{wide_bar} sent {binary_bytes}, {msg} of {binary_total_bytes}",
            )?);
        Ok(Transfer {
            digest: Digest::start(source, range.start)?,
            acknowledged: sendfile2::unacknowledged(&carrier).ok().map(|_| 0).filter(|_| {
                // A unix socket counts what its peer has not read, which is another thing.
                carrier.peer().is_some()
            }),
            source,
            carrier,
            range,
            to_the_end,
            clock,
            started: Instant::now(),
            progress,
            tickets: VecDeque::new(),
            last: None,
            choices: Vec::new(),
            sent: 0,
            released: 0,
            until: Until::default(),
        })
    }

    fn total(&self) -> u64 {
        self.range.end - self.range.start
    }

    fn run(&mut self, wait: Wait) -> anyhow::Result<()> {
        self.send()?;
        self.until.sent = Some(self.started.elapsed());
        // The peer sees the end, whatever is waited for.
        self.carrier.shutdown()?;
        self.look()?;
        if wait != Wait::None {
            while let Some(ticket) = self.tickets.front() {
                ended_early(ticket.wait_released(self.clock.tick()))?;
                self.look()?;
            }
        }
        while wait == Wait::Acknowledged && self.until.acknowledged.is_none() {
            if let Some(last) = &self.last {
                ended_early(last.wait_acknowledged(self.clock.tick()))?;
            }
            self.look()?;
        }
        net::outlive(&self.carrier).context("cannot let the connection end in order: SO_LINGER")
    }

    /// Returns whether there is nothing more to send.
    fn all_is_sent(&mut self) -> anyhow::Result<bool> {
        if self.sent == self.total() && self.to_the_end {
            self.range.end = self.range.end.max(self.source.size()?);
            self.progress.set_length(self.total());
        }
        Ok(self.sent == self.total())
    }

    fn send(&mut self) -> anyhow::Result<()> {
        let mut looked = Instant::now();
        while !self.all_is_sent()? {
            let at = self.range.start + self.sent..self.range.end;
            match self.carrier.try_send_file(self.source, at)? {
                Sent::Accepted { bytes, ticket } => {
                    self.accepted(bytes as u64, ticket);
                    if looked.elapsed() >= TICK {
                        self.look()?;
                        looked = Instant::now();
                    }
                }
                Sent::WouldBlock => {
                    self.look()?;
                    let tick = self.clock.tick().saturating_duration_since(Instant::now());
                    // A completion ends it, too. What it was shows itself in the next round.
                    self.carrier.wait_for_room(tick)?;
                }
                // A limit: what is in flight must go first.
                _ => {
                    self.look()?;
                    if let Some(ticket) = self.tickets.front() {
                        ended_early(ticket.wait_released(self.clock.tick()))?;
                    }
                }
            }
        }
        Ok(())
    }

    fn accepted(&mut self, bytes: u64, ticket: Ticket) {
        self.sent += bytes;
        self.digest.upto(self.sent);
        let choice = ticket.choice();
        match self.choices.iter_mut().find(|taken| taken.choice == choice) {
            Some(taken) => {
                taken.sends += 1;
                taken.bytes += bytes;
            }
            None => self.choices.push(Taken { choice, sends: 1, bytes }),
        }
        self.last = Some(ticket.clone());
        self.tickets.push_back(ticket);
    }

    /// Looks at the progress of the transfer, shows it, and fails when no more of it is to be
    /// expected.
    fn look(&mut self) -> anyhow::Result<()> {
        self.carrier.reap()?;
        let before = (self.released, self.acknowledged);
        let released = &mut self.released;
        self.tickets.retain(|ticket| {
            let free = matches!(ticket.status(), Status::Released(_));
            *released += if free { ticket.bytes() } else { 0 };
            !free
        });
        if self.until.sent.is_some() && self.tickets.is_empty() {
            self.until.released.get_or_insert_with(|| self.started.elapsed());
        }
        let over = self.look_for_acknowledgement()?;
        if (self.released, self.acknowledged) != before || self.sent > self.progress.position() {
            self.clock.progressed = Instant::now();
        }
        self.progress.set_position(self.sent);
        let acknowledged = self
            .acknowledged
            .map_or_else(String::new, |bytes| format!(", acknowledged {}", units::bytes(bytes)));
        self.progress
            .set_message(format!("released {}{acknowledged}", units::bytes(self.released)));
        ensure!(!over, GONE);
        self.clock.check()
    }

    /// Looks at how much the peer has acknowledged; returns whether the acknowledgement of the rest
    /// can never be known.
    fn look_for_acknowledgement(&mut self) -> anyhow::Result<bool> {
        let Some(acknowledged) = self.acknowledged else { return Ok(false) };
        let left = sendfile2::unacknowledged(&self.carrier).context("ioctl(SIOCOUTQ)")?;
        let state = match &self.last {
            Some(last) => last.acknowledgement()?,
            None => Acknowledgement::Acknowledged,
        };
        // The end of the stream counts as a byte there.
        let sure = if state == Acknowledgement::Acknowledged {
            self.sent
        } else {
            self.sent.saturating_sub(left)
        };
        self.acknowledged = Some(sure.max(acknowledged));
        if self.until.sent.is_some() && sure == self.sent {
            self.until.acknowledged.get_or_insert_with(|| self.started.elapsed());
        }
        Ok(state == Acknowledgement::Unknowable)
    }

    /// Resets the connection, and returns a sentence that reports how far the transfer got.
    fn give_up(&mut self, error: &anyhow::Error) -> String {
        let refused = matches!(error.downcast_ref(), Some(Error::Refused { .. }));
        if refused && self.sent == 0 {
            return format!("{error}; nothing was sent");
        }
        let by_peer = error.downcast_ref::<Error>().and_then(Error::io_error).is_some_and(|e| {
            matches!(e.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
        });
        let domain = sockopt::socket_domain(&self.carrier);
        let aborted = self.carrier.abort();
        // The kernel releases what was in flight in a moment, unless a queueing discipline has it.
        let drained = self.carrier.drain(Instant::now() + AFTERMATH);
        let mut text = if by_peer { GONE.to_owned() } else { output::whole(error) };
        // The figures are those from before the abort.
        let _ = write!(
            text,
            ": of {}, {} sent, {} released",
            units::bytes(self.total()),
            units::bytes(self.sent),
            units::bytes(self.released)
        );
        if let Some(acknowledged) = self.acknowledged {
            let _ = write!(text, ", {} acknowledged", units::bytes(acknowledged));
        }
        text += match aborted {
            Ok(()) if by_peer || text.starts_with(GONE) => "",
            Ok(()) if domain == Ok(AddressFamily::UNIX) => {
                "; a unix socket cannot be reset: the receiver may take this for the whole"
            }
            Ok(()) => "; the connection was reset",
            Err(_) => "; the connection could not be reset",
        };
        text += match drained {
            Ok(()) => "; the file is free now",
            Err(_) => "; the kernel still reads from the file",
        };
        text
    }

    fn report(self, args: &Args, error: Option<String>) -> anyhow::Result<Report> {
        let counters = self.carrier.counters();
        let zerocopy = counters.released + self.carrier.in_flight().sends as u64;
        let peer = self.carrier.peer();
        // Nothing more is sent: what is left in flight is the kernel's, and the process ends.
        drop(self.carrier);
        #[expect(clippy::cast_precision_loss, reason = "a share")]
        let share =
            (counters.released > 0).then(|| counters.copied as f64 / counters.released as f64);
        Ok(Report {
            file: args.file.display().to_string(),
            destination: args.destination.to_string(),
            peer: peer.map(|peer| peer.to_string()),
            engine: args.engine.name(),
            offset: self.range.start,
            length: self.range.end - self.range.start,
            bytes: self.sent,
            blake3: self.digest.end()?.to_string(),
            choices: self.choices,
            wait: args.wait,
            released_bytes: self.released,
            acknowledged_bytes: self.acknowledged,
            micros_until_sent: self.until.sent.map(units::as_micros),
            micros_until_released: self.until.released.map(units::as_micros),
            micros_until_acknowledged: self.until.acknowledged.map(units::as_micros),
            zerocopy_sends: zerocopy,
            copied_sends: counters.copied,
            copied_share: share,
            error,
        })
    }
}

/// Ignores that the time until the next look is over, which is no error.
fn ended_early<T>(result: Result<T, Error>) -> Result<(), Error> {
    match result {
        Ok(_) | Err(Error::Deadline(_)) => Ok(()),
        Err(e) => Err(e),
    }
}

/// An engine that was taken, and why.
#[derive(Debug)]
struct Taken {
    choice: Choice,
    sends: u64,
    bytes: u64,
}

impl Serialize for Taken {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serde_json::json!({
            "engine": self.choice.engine.name(),
            "why": self.choice.reason.to_string(),
            "sends": self.sends,
            "bytes": self.bytes,
        })
        .serialize(serializer)
    }
}

/// The report at the end. The names of the fields are those of the JSON.
#[derive(Debug, Serialize)]
struct Report {
    file: String,
    destination: String,
    peer: Option<String>,
    engine: &'static str,
    offset: u64,
    length: u64,
    /// Bytes that were sent.
    bytes: u64,
    blake3: String,
    choices: Vec<Taken>,
    wait: Wait,
    released_bytes: u64,
    /// Bytes acknowledged; `null` where nothing is acknowledged.
    acknowledged_bytes: Option<u64>,
    micros_until_sent: Option<u64>,
    /// The time until the release; `null` if it was not waited for.
    micros_until_released: Option<u64>,
    micros_until_acknowledged: Option<u64>,
    zerocopy_sends: u64,
    copied_sends: u64,
    /// The share of copies among the zerocopy sends that were released; `null` if there are none.
    copied_share: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Report {
    fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            let _ = writeln!(text, "{name:<13} {value}");
        };
        let to = match &self.peer {
            Some(peer) if *peer != self.destination => format!("{} ({peer})", self.destination),
            _ => self.destination.clone(),
        };
        line("file", format!("{}, {} from byte {}", self.file, exactly(self.bytes), self.offset));
        line("to", to);
        line("BLAKE3", self.blake3.clone());
        for (i, Taken { choice, sends, bytes }) in self.choices.iter().enumerate() {
            let name = if i == 0 { "engine" } else { "" };
            let sends = if *sends == 1 { "1 send".into() } else { format!("{sends} sends") };
            line(name, format!("{choice} ({sends}, {})", units::bytes(*bytes)));
        }
        let after = |micros: Option<u64>, done: u64| match micros {
            Some(micros) => format!("after {}", units::micros(micros)),
            None => format!("{} of {} so far", units::bytes(done), units::bytes(self.bytes)),
        };
        line("sent", after(self.micros_until_sent, self.bytes));
        line("released", after(self.micros_until_released, self.released_bytes));
        match self.acknowledged_bytes {
            Some(bytes) => line("acknowledged", after(self.micros_until_acknowledged, bytes)),
            None => line("acknowledged", "never known: a unix socket does not tell".into()),
        }
        if self.zerocopy_sends > 0 {
            let copied = format!("{} of {} zerocopy sends", self.copied_sends, self.zerocopy_sends);
            line("COPIED", copied);
        }
        if self.micros_until_released.is_none() {
            text += "The kernel still reads from the file: it must not be overwritten yet.\n";
        }
        text
    }
}

/// `8 MiB (8388608 bytes)`.
fn exactly(n: u64) -> String {
    let text = units::bytes(n);
    let plain = format!("{n} B");
    if text == plain { plain } else { format!("{text} ({n} bytes)") }
}

/// Reads what was sent, and digests it, in a thread of its own: soon after it was sent, while it is
/// in the page cache.
struct Digest {
    sent: mpsc::Sender<u64>,
    thread: JoinHandle<io::Result<blake3::Hash>>,
}

impl Digest {
    fn start(source: &Source, start: u64) -> anyhow::Result<Self> {
        let file = File::from(source.as_fd().try_clone_to_owned()?);
        let (sent, inbox) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("digest".into())
            .spawn(move || {
                let mut hasher = blake3::Hasher::new();
                let mut buffer = vec![0; 256 << 10];
                let mut done = 0;
                for upto in inbox {
                    while done < upto {
                        let wanted = usize::try_from(upto - done).unwrap_or(usize::MAX);
                        let wanted = wanted.min(buffer.len());
                        match file.read_at(&mut buffer[..wanted], start + done) {
                            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                            Ok(n) => {
                                hasher.update(&buffer[..n]);
                                done += n as u64;
                            }
                            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                            Err(e) => return Err(e),
                        }
                    }
                }
                Ok(hasher.finalize())
            })
            .context("cannot start a thread for the digest")?;
        Ok(Digest { sent, thread })
    }

    fn upto(&self, sent: u64) {
        // A receiver that is gone has an error of its own to report.
        let _ = self.sent.send(sent);
    }

    fn end(self) -> anyhow::Result<blake3::Hash> {
        drop(self.sent);
        self.thread
            .join()
            .map_err(|_| anyhow!("the digest's thread panicked"))?
            .context("cannot read again what was sent, for its digest")
    }
}
