//! The serving process: one thread for each connection, and the writers.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use fastrand::Rng;
use hdrhistogram::Histogram;
use rustix::net::sockopt;
use rustix::process::{Resource, Rlimit};
use sendfile2::guard::{self, GuardCounters, GuardOptions, GuardedFile, Lease};
use sendfile2::uring::{Driver, Socket};
use sendfile2::{Choice, Engine, Error, Options, SendFlags, Sender, Sent, Source, reaper};

use super::block::{BLOCK, Label, fill_blocks, mix};
use super::message::{EVERY, Layout, Line, Order, Overwrite, ServerRole, ServerTally};
use super::wire::{self, Announced, Part, REQUEST};
use super::writer;
use crate::child;

/// Bytes of a thread's stack, which is small: there are hundreds of them.
const STACK: usize = 256 << 10;

/// The number of rings that connections share.
const SHARED_RINGS: usize = 4;

/// The longest that a server that stops waits for what is in flight.
const DRAIN: Duration = Duration::from_secs(40);

/// The time for which all descriptors are used up.
const EXHAUSTED: Duration = Duration::from_secs(1);

/// The state that the threads of the server share.
pub(super) struct Shared {
    pub(super) layout: Layout,
    engine: Engine,
    overwrite: Overwrite,
    pub(super) sparse: bool,
    pub(super) guard: GuardedFile,
    pub(super) writers_stop: AtomicBool,
    /// Rings that connections share, for the engine `uring`; others have one of their own.
    rings: Vec<Driver>,
    file: File,
    stop: AtomicBool,
    generation: AtomicU64,
    connections: AtomicUsize,
    /// The time until which descriptors may be missing, after all were used up.
    exhausted: Mutex<Option<Instant>>,
    tally: Mutex<ServerTally>,
    /// The counters that were reported already.
    counted: Mutex<GuardCounters>,
    micros: Mutex<Histogram<u64>>,
}

pub(super) fn run(role: &ServerRole) -> anyhow::Result<()> {
    let ServerRole { layout, method, overwrite, sparse, .. } = *role;
    let engine = method.engine().context("all sends are the library's")?;
    allow_descriptors(role.clients)?;
    let path = format!("/proc/self/fd/{}", role.file);
    let file = File::options().read(true).write(true).open(path)?;
    let shared = Arc::new(Shared {
        layout,
        engine,
        overwrite,
        sparse,
        guard: overwrite.options().guard(file.try_clone()?)?,
        file,
        writers_stop: AtomicBool::new(false),
        rings: match engine {
            Engine::Uring => {
                // Fewer, where a limit allows no more.
                (0..SHARED_RINGS).map_while(|_| Driver::new().ok()).collect()
            }
            _ => Vec::new(),
        },
        stop: AtomicBool::new(false),
        // No generation comes twice, whatever happened to the servers before.
        generation: AtomicU64::new(u64::from(role.life) << 40),
        connections: AtomicUsize::new(0),
        exhausted: Mutex::new(None),
        tally: Mutex::default(),
        counted: Mutex::default(),
        micros: Mutex::new(Histogram::new_with_bounds(1, 600_000_000, 2)?),
    });
    // First of all: what a server before this one left in flight must not change by that.
    shared.overwrite_all()?;
    let listener = bind(role)?;
    listener.set_nonblocking(true)?;
    child::send(&Line::Listening(listener.local_addr()?));

    let seed = mix(role.seed ^ u64::from(role.life));
    for number in 0..role.writers {
        let shared = Arc::clone(&shared);
        let rng = Rng::with_seed(mix(seed ^ u64::from(number)));
        spawn("writer", move || writer::run(&shared, rng))?;
    }
    let acceptor = Arc::clone(&shared);
    let accepting = spawn("acceptor", move || accept(&acceptor, &listener, mix(!seed)))?;
    let reporter = Arc::clone(&shared);
    spawn("reporter", move || {
        loop {
            std::thread::sleep(EVERY);
            reporter.report();
        }
    })?;
    loop {
        match child::recv() {
            // The parent is gone.
            None => std::process::exit(1),
            Some(Order::Emfile) => {
                let shared = Arc::clone(&shared);
                spawn("exhausting", move || shared.exhaust())?;
            }
            Some(Order::Optmem(bytes)) => {
                match std::fs::write("/proc/sys/net/core/optmem_max", bytes.to_string()) {
                    Ok(()) => child::send(&Line::Fault("optmem".into())),
                    Err(e) => child::send(&Line::NoFault {
                        name: "optmem".into(),
                        why: format!("cannot set net.core.optmem_max: {e}"),
                    }),
                }
            }
            Some(Order::Stop) => break,
        }
    }
    shared.stop.store(true, Ordering::Relaxed);
    let deadline = Instant::now() + DRAIN;
    let _ = accepting.join();
    // The writers go on: they abort those that would hold this up.
    while shared.connections.load(Ordering::Acquire) > 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    shared.writers_stop.store(true, Ordering::Relaxed);
    let left = shared.left(deadline);
    shared.report();
    child::send(&Line::Left { unknown: left });
    Ok(())
}

fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<std::thread::JoinHandle<T>> {
    std::thread::Builder::new().name(name.into()).stack_size(STACK).spawn(work)
}

/// Raises the limit of descriptors. Each connection needs its socket, two descriptors to wait with,
/// and maybe a few for a ring; so does each that has ended, until the reaper has drained it, and on
/// a busy machine these pile up.
fn allow_descriptors(clients: u32) -> anyhow::Result<()> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let wanted = 512 + 32 * u64::from(clients);
    let maximum = limit.maximum.unwrap_or(u64::MAX);
    let current = Some(wanted.min(maximum));
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current, maximum: limit.maximum })
        .context("cannot set the limit of descriptors")
}

/// Binds the port, with retries: that of a server that was killed a moment ago may not be free yet.
fn bind(role: &ServerRole) -> anyhow::Result<TcpListener> {
    let deadline = Instant::now() + Duration::from_secs(10);
    // All clients come at once after a kill, and one that finds no room waits for seconds.
    let room = i32::try_from(role.clients).unwrap_or(i32::MAX).max(128);
    loop {
        let bound = TcpListener::bind(role.listen).and_then(|listener| {
            rustix::net::listen(&listener, room)?;
            Ok(listener)
        });
        match bound {
            Err(e) if e.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            result => return result.with_context(|| format!("cannot listen on {}", role.listen)),
        }
    }
}

fn accept(shared: &Arc<Shared>, listener: &TcpListener, seed: u64) {
    let mut number = 0;
    while !shared.stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((socket, _)) => {
                number += 1;
                let rng = Rng::with_seed(mix(seed ^ number));
                shared.connections.fetch_add(1, Ordering::Relaxed);
                let served = Arc::clone(shared);
                let thread = spawn("connection", move || {
                    served.serve(socket, rng);
                    served.connections.fetch_sub(1, Ordering::Release);
                });
                if thread.is_err() {
                    shared.connections.fetch_sub(1, Ordering::Release);
                }
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                let mut poll = [rustix::event::PollFd::new(listener, rustix::event::PollFlags::IN)];
                let _ = rustix::event::poll(&mut poll, Some(&timespec(EVERY)));
            }
            // EMFILE, or a client that went away while it waited.
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn timespec(duration: Duration) -> rustix::event::Timespec {
    rustix::event::Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

impl Overwrite {
    fn options(self) -> GuardOptions {
        match self {
            // What a server before this one sent may be in flight.
            Overwrite::Detach => GuardOptions::new(),
            Overwrite::Wait => GuardOptions::new().overwrite(guard::Overwrite::Wait),
            // It never is in the way of a writer.
            Overwrite::InPlace => {
                GuardOptions::new().overwrite(guard::Overwrite::Wait).nothing_exposed()
            }
        }
    }
}

/// The reason why a connection ends.
enum End {
    /// The client went away between two responses, or the server stops.
    Quiet,
    /// The client went away during a response, or was too slow.
    Early(String),
    /// An event that must not happen.
    Unexpected(String),
}

impl From<std::io::Error> for End {
    fn from(error: std::io::Error) -> Self {
        End::Early(error.kind().to_string())
    }
}

impl Shared {
    /// Returns whether sends are not under the lease, which ends when they have returned.
    pub(super) fn is_control(&self) -> bool {
        self.overwrite == Overwrite::InPlace
    }

    pub(super) fn slot_len(&self) -> usize {
        self.layout.slot_size as usize
    }

    pub(super) fn next_generation(&self) -> u64 {
        self.generation.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn tally(&self) -> MutexGuard<'_, ServerTally> {
        lock(&self.tally)
    }

    pub(super) fn overwritten(&self, took: Duration) {
        self.tally().overwrites += 1;
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        lock(&self.micros).saturating_record(micros);
    }

    #[expect(clippy::unused_self, reason = "reads as what it is")]
    pub(super) fn unexpected(&self, what: &str) {
        child::send(&Line::Unexpected(what.into()));
    }

    /// Returns whether descriptors may be missing.
    pub(super) fn is_exhausted(&self) -> bool {
        lock(&self.exhausted).is_some_and(|until| Instant::now() < until)
    }

    fn overwrite_all(&self) -> anyhow::Result<()> {
        let mut buffer = vec![0; self.slot_len()];
        for slot in 0..self.layout.slots {
            fill_blocks(&mut buffer, slot.into(), self.next_generation(), 0);
            let deadline = Instant::now() + DRAIN;
            self.guard.write_at(&buffer, self.layout.offset(slot, 0), deadline)?;
        }
        Ok(())
    }

    /// Reports to the parent what was done since the last time.
    fn report(&self) {
        let mut tally = std::mem::take(&mut *self.tally());
        let mut micros = lock(&self.micros);
        tally.writer_micros =
            micros.iter_recorded().map(|v| (v.value_iterated_to(), v.count_at_value())).collect();
        micros.reset();
        drop(micros);
        let counters = self.guard.counters();
        let last = std::mem::replace(&mut *lock(&self.counted), counters);
        tally.aborts = counters.aborts - last.aborts;
        tally.waits = counters.waits - last.waits;
        tally.detached = counters.detached - last.detached;
        tally.not_detached = counters.not_detached - last.not_detached;
        tally.pages_stayed = counters.pages_stayed - last.pages_stayed;
        tally.detaching = counters.detaching.saturating_sub(last.detaching);
        tally.rss = rss();
        child::send(&Line::Server(tally));
    }

    fn exhaust(&self) {
        // Until they are given back, however long that takes on a busy machine.
        *lock(&self.exhausted) = Some(Instant::now() + DRAIN);
        let mut held = Vec::new();
        let error = loop {
            match File::open("/dev/null") {
                Ok(file) => held.push(file),
                Err(e) => break e,
            }
        };
        if error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) {
            child::send(&Line::Fault("emfile".into()));
        } else {
            let why = format!("descriptors ended by {error}");
            child::send(&Line::NoFault { name: "emfile".into(), why });
        }
        // A descriptor that is closed meanwhile is used up, too.
        let until = Instant::now() + EXHAUSTED;
        while Instant::now() < until {
            match File::open("/dev/null") {
                Ok(file) => held.push(file),
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        drop(held);
        // Who was told meanwhile has yet to say so.
        *lock(&self.exhausted) = Some(Instant::now() + EXHAUSTED);
    }

    /// Returns the number of sends and leases that are still in flight at `deadline`, after all
    /// threads have ended.
    fn left(&self, deadline: Instant) -> u64 {
        if let Err(e) = reaper::drain(deadline) {
            self.unexpected(&format!("the reaper: {e}"));
        }
        // Writers and connections have up to a moment left.
        loop {
            let connections = self.connections.load(Ordering::Acquire);
            let left = reaper::pending().sends + self.guard.in_flight().len();
            if left + connections == 0 {
                return 0;
            }
            if Instant::now() > deadline {
                if connections > 0 {
                    self.unexpected(&format!("{connections} connections did not end"));
                }
                for leased in self.guard.in_flight() {
                    self.unexpected(&format!("still leased: {leased:?}"));
                }
                return left as u64;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn serve(&self, socket: TcpStream, mut rng: Rng) {
        let mut transport = match Transport::new(socket, self, &mut rng) {
            Ok(transport) => transport,
            Err(End::Unexpected(what)) => return self.unexpected(&what),
            Err(_) => return,
        };
        let end = loop {
            if let Err(end) = self.respond(&mut transport, &mut rng) {
                break end;
            }
            // A server may be the one that ends it, too.
            if rng.u32(0..100) < 3 {
                break End::Quiet;
            }
        };
        let (released, copied) = transport.counters();
        let mut tally = self.tally();
        tally.released += released;
        tally.copied += copied;
        match end {
            End::Quiet => {}
            End::Early(why) => *tally.ended.entry(why).or_default() += 1,
            End::Unexpected(what) => self.unexpected(&what),
        }
        drop(tally);
        transport.end(&mut rng);
    }

    /// Reads a request and responds to it.
    fn respond(&self, transport: &mut Transport, rng: &mut Rng) -> Result<(), End> {
        let request = self.read_request(transport.as_fd())?;
        let parts = wire::parse_request(&request)
            .map_err(|e| End::Unexpected(format!("a request cannot be read: {e}")))?;
        // One lease covers all of the response, before its first byte.
        let ranges: Vec<_> = parts
            .iter()
            .map(|part| {
                self.layout.offset(part.slot, part.start)..self.layout.offset(part.slot, part.end)
            })
            .collect();
        // And all of the block that a part begins in, which tells the generation.
        let leased: Vec<_> = ranges
            .iter()
            .zip(&parts)
            .flat_map(|(r, p)| [r.clone(), self.first_block(*p)])
            .collect();
        let lease = self
            .guard
            .lease(&leased[..], Instant::now() + Duration::from_secs(10))
            .map_err(|e| self.end_of(&e))?;
        let mut announced = Vec::with_capacity(parts.len());
        for part in parts {
            announced.push(Announced { part, generation: self.generation_of(&lease, part)? });
        }
        let deadline = Instant::now() + Duration::from_millis(rng.u64(1_000..5_000));
        let held = Held { lease: &lease, file: self.guard.source(), in_place: self.is_control() };
        let choice = transport.send(held, &wire::header(&announced), &ranges, rng, deadline);
        let choice = choice.map_err(|e| match e {
            Failed::Library(error) => self.end_of(&error),
            Failed::Plain(error) => error.into(),
        })?;
        drop(lease);
        if let Some(choice) = choice {
            *self.tally().choices.entry(choice.to_string()).or_default() += 1;
        }
        Ok(())
    }

    /// Returns the generation that the lease has of the slot.
    fn generation_of(&self, lease: &Lease, part: Part) -> Result<u64, End> {
        let (range, mut block) = (self.first_block(part), [0; BLOCK]);
        let mut read = 0;
        while read < BLOCK {
            match lease.read_at(&mut block[read..], range.start + read as u64) {
                Ok(0) => break,
                Ok(n) => read += n,
                Err(e) => return Err(self.end_of(&e)),
            }
        }
        match Label::read(&block) {
            Some(label) if label.slot == u64::from(part.slot) => Ok(label.generation),
            label => Err(End::Unexpected(format!(
                "the file itself is wrong: slot {} has {label:?} at {}",
                part.slot, part.start
            ))),
        }
    }

    /// The block that the part begins in.
    fn first_block(&self, part: Part) -> Range<u64> {
        let at = self.layout.offset(part.slot, part.start) - u64::from(part.start) % BLOCK as u64;
        at..at + BLOCK as u64
    }

    fn read_request(&self, socket: BorrowedFd<'_>) -> Result<[u8; REQUEST], End> {
        let mut request = [0; REQUEST];
        let mut got = 0;
        let idle = Instant::now() + Duration::from_secs(15);
        while got < REQUEST {
            match rustix::io::read(socket, &mut request[got..]) {
                Ok(0) => return Err(End::Quiet),
                Ok(n) => got += n,
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(_) => return Err(End::Quiet),
            }
            if self.stop.load(Ordering::Relaxed) || Instant::now() > idle {
                return Err(End::Quiet);
            }
        }
        Ok(request)
    }

    /// Classifies a failure: it belongs to the torture, or must not happen.
    fn end_of(&self, error: &Error) -> End {
        match error {
            Error::Aborted => End::Early("aborted for a writer".into()),
            Error::Revoked => End::Early("revoked for a writer".into()),
            Error::Deadline(what) => End::Early((*what).into()),
            Error::Socket { cause, .. } => End::Early(cause.kind().to_string()),
            Error::Refused { reason, .. } => End::Early(format!("refused: {reason}")),
            Error::Wait { .. } if self.is_exhausted() => End::Early("descriptors used up".into()),
            error => End::Unexpected(format!("a send: {error}")),
        }
    }
}

/// The ranges of a response, which are leased until all calls that send them have returned.
#[derive(Clone, Copy)]
struct Held<'a> {
    lease: &'a Lease,
    file: &'a Source,
    /// The sends do not hold it: the control.
    in_place: bool,
}

/// A connection, by the library, or by the control's `sendfile(2)`.
enum Transport {
    Library(Sender),
    Ring(Socket),
    Plain(TcpStream, File),
}

enum Failed {
    Library(Error),
    Plain(std::io::Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Failed::Library(error)
    }
}

impl From<std::io::Error> for Failed {
    fn from(error: std::io::Error) -> Self {
        Failed::Plain(error)
    }
}

impl Transport {
    fn new(socket: TcpStream, server: &Shared, rng: &mut Rng) -> Result<Self, End> {
        // The interval at which a thread that waits for a request looks whether the server stops.
        socket.set_read_timeout(Some(EVERY))?;
        socket.set_nodelay(true)?;
        if rng.u32(0..3) == 0 {
            // A response does not fit: its lease stays in hand while a part of it is in flight.
            sockopt::set_socket_send_buffer_size(&socket, rng.usize(8 << 10..64 << 10))
                .map_err(std::io::Error::from)?;
        }
        match server.engine {
            Engine::Uring => {
                // Whether its ring is shared or not, who sends waits for tickets only.
                let own;
                let ring = match server.rings.get(rng.usize(0..2 * SHARED_RINGS)) {
                    Some(shared) => shared,
                    None => match Driver::new() {
                        Ok(ring) => {
                            own = ring;
                            &own
                        }
                        // A limit may allow no more of them.
                        Err(e) => server.rings.first().ok_or_else(|| server.end_of(&e))?,
                    },
                };
                let mut socket = ring.add(socket).map_err(|e| server.end_of(&e))?;
                socket.set_linger(Duration::from_secs(2));
                Ok(Transport::Ring(socket))
            }
            Engine::Sendfile if server.is_control() => {
                socket.set_write_timeout(Some(EVERY))?;
                Ok(Transport::Plain(socket, server.file.try_clone()?))
            }
            engine => {
                let options = Options::new().engine(engine).linger(Duration::from_secs(2));
                Sender::with(socket, options)
                    .map(Transport::Library)
                    .map_err(|e| End::Unexpected(format!("a new connection: {e}")))
            }
        }
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Transport::Library(sender) => sender.as_fd(),
            Transport::Ring(socket) => socket.as_fd(),
            Transport::Plain(socket, _) => socket.as_fd(),
        }
    }

    /// Zerocopy sends released, and of these, COPIED.
    fn counters(&self) -> (u64, u64) {
        let counters = match self {
            Transport::Library(sender) => sender.counters(),
            Transport::Ring(socket) => socket.counters(),
            Transport::Plain(..) => return (0, 0),
        };
        (counters.released, counters.copied)
    }

    fn send(
        &mut self,
        held: Held<'_>,
        header: &[u8],
        ranges: &[Range<u64>],
        rng: &mut Rng,
        deadline: Instant,
    ) -> Result<Option<Choice>, Failed> {
        match self {
            Transport::Library(sender) => {
                sender.send(header, SendFlags::MORE, deadline).map_err(Error::from)?;
                let mut choice = None;
                for (piece, flags) in pieces(ranges, rng) {
                    choice = Some(send_piece(sender, held, piece, flags, rng, deadline)?);
                }
                match rng.u32(0..100) {
                    0..10 => drop(sender.drain(Instant::now() + Duration::from_millis(5))),
                    10..20 => drop(sender.reap()?),
                    _ => {}
                }
                Ok(choice)
            }
            Transport::Ring(socket) => {
                let mut last = socket.queue_bytes(header, SendFlags::MORE)?;
                for (piece, flags) in pieces(ranges, rng) {
                    last = match held {
                        Held { lease, in_place: false, .. } => {
                            socket.queue_lease(lease, piece, flags)?
                        }
                        Held { file, .. } => socket.queue_file(file, piece, flags)?,
                    };
                    // Sometimes all are queued first.
                    if rng.bool() {
                        last.wait_accepted(deadline)?;
                    }
                }
                last.wait_accepted(deadline)?;
                if rng.u32(0..100) < 10 {
                    drop(socket.drain(Instant::now() + Duration::from_millis(5)));
                }
                Ok(Some(last.choice()))
            }
            Transport::Plain(socket, file) => {
                socket.write_all(header)?;
                for range in ranges {
                    plain(socket, file, range.clone(), deadline)?;
                }
                // The caller drops its lease on this: sendfile(2) lets a program know no more.
                Ok(None)
            }
        }
    }

    fn end(self, rng: &mut Rng) {
        match self {
            Transport::Library(sender) => match rng.u32(0..3) {
                // Both hand over to the reaper what is in flight.
                0 => drop(sender),
                1 => drop(sender.close(Instant::now() + Duration::from_millis(50))),
                _ => {
                    let _ = sender.abort();
                }
            },
            Transport::Ring(socket) => match rng.u32(0..3) {
                0 => drop(socket),
                1 => drop(socket.close(Instant::now() + Duration::from_millis(50))),
                _ => {
                    let _ = socket.abort();
                }
            },
            Transport::Plain(..) => {}
        }
    }
}

/// The ranges in pieces, each with its flags: sometimes in one go, sometimes in many
/// small sends.
fn pieces(ranges: &[Range<u64>], rng: &mut Rng) -> Vec<(Range<u64>, SendFlags)> {
    let window = [u64::MAX, u64::MAX, 64 << 10, 20_000, 5_000][rng.usize(0..5)];
    let mut pieces = Vec::new();
    for (i, range) in ranges.iter().enumerate() {
        let mut at = range.start;
        while at < range.end {
            let piece = at..range.end.min(at.saturating_add(window));
            at = piece.end;
            let more = at < range.end || i + 1 < ranges.len();
            pieces.push((piece, SendFlags::NONE.with_more(more)));
        }
    }
    pieces
}

/// Sends a piece, waiting inside the library or outside.
fn send_piece(
    sender: &mut Sender,
    Held { lease, file, in_place }: Held<'_>,
    mut piece: Range<u64>,
    flags: SendFlags,
    rng: &mut Rng,
    deadline: Instant,
) -> Result<Choice, Error> {
    if rng.u32(0..4) > 0 {
        let sent = if in_place {
            sender.send_file(file, piece, flags, deadline)?
        } else {
            sender.send_lease(lease, piece, flags, deadline)?
        };
        return Ok(sent.ticket.choice());
    }
    loop {
        let sent = if in_place {
            sender.try_send_file(file, piece.clone(), flags)?
        } else {
            sender.try_send_lease(lease, piece.clone(), flags)?
        };
        match sent {
            Sent::Accepted { bytes, ticket } => {
                piece.start += bytes as u64;
                if piece.start >= piece.end {
                    return Ok(ticket.choice());
                }
            }
            _ => {
                if Instant::now() >= deadline {
                    return Err(Error::Deadline("the client does not read"));
                }
                sender.reap()?;
                std::thread::sleep(Duration::from_millis(rng.u64(1..5)));
            }
        }
    }
}

/// Sends a range by `sendfile(2)`.
fn plain(
    socket: &TcpStream,
    file: &File,
    range: Range<u64>,
    deadline: Instant,
) -> std::io::Result<()> {
    let mut at = range.start;
    while at < range.end {
        let count = usize::try_from(range.end - at).unwrap_or(usize::MAX);
        match rustix::fs::sendfile(socket, file, Some(&mut at), count) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(rustix::io::Errno::AGAIN) if Instant::now() < deadline => {}
            Err(rustix::io::Errno::AGAIN) => return Err(ErrorKind::TimedOut.into()),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Returns the bytes of memory that this process has now.
fn rss() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|statm| statm.split(' ').nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
