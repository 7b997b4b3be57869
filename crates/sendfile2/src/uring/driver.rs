//! The driver: one ring for the sends of many sockets.
//!
//! What is queued on a socket is sent in order, and one send at a time: a socket has at most one
//! whose result is not known. So a batch is made of sends on different sockets, and costs one
//! system call.
//!
//! No request waits in the kernel on a socket, where it would keep the socket open after the death
//! of the process, and so the reset away that protects leased ranges. Who waits for room is an
//! epoll set, which keeps nothing open, and on which the ring waits.
//!
//! The state is behind one lock, which no wait holds. Whoever reads completions (the driver, a
//! ticket's wait, a writer that the range is in the way of, the reaper) also goes on with what is
//! queued, so that a single thread never waits for what only itself could send. Values are dropped
//! and waiters woken after unlocking.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::Shutdown;
use slab::Slab;

use super::available;
use super::part;
use super::ticket::{Failure, Progress, Ticket};
use crate::conn::{self, Counters, Kind, Looks, ResetOnDeath};
use crate::engine::{Choice, Engine, Limit, Why};
use crate::error::Error;
use crate::guard::Lease;
use crate::holder::{Apart, Held, Holder, InFlight};
use crate::mtu;
use crate::park::{Interest, Mark, Parker, Wakers};
use crate::reaper::Reaper;
use crate::refusal::Refusal;
use crate::source::{Extent, Identity, Source};
use crate::sys::op_table::Stray;
use crate::sys::process::Process;
use crate::sys::socket as sys;
use crate::sys::uring::{Event, Memory, Queues, Request, Ring, Send, Size};
use crate::ticket::Acknowledgement;

/// A ring for the sends of many sockets.
///
/// [`add`](Self::add) a socket, queue sends on it, and [`wait`](Self::wait): that submits what is
/// queued on all sockets and sleeps until so many completions are there, by one system call.
///
/// For an event loop [`AsFd`] lends the ring's descriptor, which is readable when there are
/// completions: then [`reap`](Self::reap), and after queueing sends [`submit`](Self::submit). (With
/// epoll as it is; a duplicate of it for tokio's `AsyncFd`, interested in reading.) The sockets
/// themselves report nothing on their error queues, so that their readiness stays what it was.
///
/// Dropping the driver does nothing to its sockets: what is queued and in flight on them is sent
/// and released as before, by whoever waits for one of their tickets, and by the reaper for those
/// that are dropped.
///
/// A forked child can do nothing with its parent's driver ([`Error::Forked`]), and may drop it.
pub struct Driver {
    shared: Arc<Shared>,
}

/// A socket of a [`Driver`]. It owns the socket.
///
/// A send that ends early ends the stream: what is queued behind it ends with the same error, and
/// so does every later send, since bytes are missing before it.
///
/// Dropping it hands over to the [reaper](crate::reaper) what is queued or in flight, unless that is
/// nothing: the peer gets everything, and then the end of the stream (a reset, if a send ended
/// early); what is left after [the limit](Self::set_linger) is aborted.
pub struct Socket {
    lane: Arc<Lane>,
    linger: Duration,
    reaper: &'static Reaper,
}

/// What a driver, its sockets and its tickets share.
struct Shared {
    ring: Arc<Ring>,
    state: Mutex<State>,
    wakers: Mutex<Wakers>,
    process: Process,
}

struct State {
    queues: Queues<Part>,
    lanes: Slab<LaneState>,
    /// The lanes that may have something to send, or to end.
    ready: VecDeque<usize>,
    /// The driver sleeps in the kernel until a number of completions is there.
    counting: bool,
    /// Says which sockets have got room.
    epoll: Arc<OwnedFd>,
    mark: Mark,
    /// The ring waits for it.
    polling: bool,
    /// Lanes that wait for room.
    blocked: usize,
    /// Bytes that one send may ask for, once that was asked.
    most: Option<u64>,
    /// Nothing is released by completions that add up to nothing; somebody should know.
    stray: Option<Stray>,
}

/// What a socket is to those who hold and wait: a descriptor of its own of the ring.
pub(super) struct Lane {
    shared: Arc<Shared>,
    index: usize,
    ring: OwnedFd,
    socket: Arc<OwnedFd>,
    cookie: u64,
    kind: Kind,
    peer: Option<SocketAddr>,
    /// Nobody but the reaper looks after it.
    orphaned: AtomicBool,
    /// For its tickets.
    acknowledged: Arc<AtomicU64>,
}

struct LaneState {
    socket: Arc<OwnedFd>,
    kind: Kind,
    queue: VecDeque<Job>,
    /// The kernel has something of the first job, and its result is not known.
    asked: bool,
    /// The socket is full.
    blocked: bool,
    /// It has got room since it was asked last.
    roomy: bool,
    /// A limit is in the way until something is released.
    starved: bool,
    /// Why nothing more is sent.
    failed: Option<Failure>,
    /// After the queue, the end of the stream.
    ending: bool,
    /// It was sent.
    ended: bool,
    aborted: bool,
    reset: ResetOnDeath,
    /// Parts in flight whose pages must not outlive this process.
    guarded: usize,
    /// Parts in flight, and their bytes.
    parts: usize,
    bytes: u64,
    counters: Counters,
    /// Its handle is gone: so is this when the kernel has nothing of it any more.
    gone: bool,
}

/// A send that is queued.
struct Job {
    from: From,
    len: u64,
    done: u64,
    more: bool,
    held: Option<Held>,
    progress: Arc<Progress>,
    /// What is to be asked next.
    next: Next,
    /// Where it faulted last.
    faulted: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Zerocopy,
    Copy,
    /// No send: the epoll set.
    Room,
}

enum From {
    /// From this byte of the file on. The extent is known where it is leased.
    File(Source, u64, Option<Extent>),
    Bytes(Arc<[u8]>),
}

/// What the ring keeps with an operation.
struct Part {
    lane: usize,
    next: Next,
    /// The file range; empty for bytes.
    range: Range<u64>,
    accepted: u64,
    guarded: bool,
    held: Option<Held>,
    progress: Arc<Progress>,
    at: Instant,
}

/// What is to be done after unlocking.
enum Late {
    Released {
        held: Option<Held>,
        progress: Arc<Progress>,
        copied: bool,
    },
    Over {
        progress: Arc<Progress>,
        failure: Option<Failure>,
    },
    /// The socket of a lane that is gone.
    Gone(Arc<OwnedFd>),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while holding these locks; if something did, what is held stays held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Driver {
    /// Makes a ring.
    ///
    /// # Errors
    /// [`Error::Refused`] with [`Refusal::IoUring`] where `io_uring` cannot be used;
    /// [`Error::Wait`] if there are no descriptors for it.
    pub fn new() -> Result<Self, Error> {
        let queues = available::ring(Size::LARGE)?;
        let ring = Arc::clone(queues.ring());
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC);
        let epoll = Arc::new(epoll.map_err(Error::wait("epoll_create1"))?);
        Ok(Driver {
            shared: Arc::new(Shared {
                ring,
                state: Mutex::new(State {
                    queues,
                    lanes: Slab::new(),
                    ready: VecDeque::new(),
                    counting: false,
                    epoll,
                    mark: Mark::new(),
                    polling: false,
                    blocked: 0,
                    most: None,
                    stray: None,
                }),
                wakers: Mutex::default(),
                process: Process::current(),
            }),
        })
    }

    /// Takes `socket`, a connected stream socket, in blocking mode or not. Nobody else must send on
    /// it.
    ///
    /// # Errors
    /// [`Error::Refused`] for a socket with record boundaries, or where TCP may probe for a larger
    /// MTU ([`Refusal::MtuProbing`], [`Refusal::OtherNamespace`]); [`Error::AlreadyOwned`];
    /// [`Error::Socket`] if it is no socket, or no descriptor is left; [`Error::Wait`] if the reaper
    /// cannot be started. The socket is then closed.
    pub fn add(&self, socket: impl Into<OwnedFd>) -> Result<Socket, Error> {
        self.shared.ours()?;
        let reaper = Reaper::start()?;
        let socket = Arc::new(socket.into());
        let kind = Kind::of(socket.as_fd())?;
        if kind.records() {
            return Err(part::refused(Refusal::Socket("io_uring serves stream sockets only")));
        }
        mtu::check(kind, socket.as_fd()).map_err(part::refused)?;
        // Now, and not at the hand-over, where there may be none left.
        let ring = self.shared.ring.as_fd().try_clone_to_owned();
        let ring = ring.map_err(|cause| Error::Socket { op: "dup", cause })?;
        let peer = rustix::net::getpeername(&socket).ok().flatten();
        let cookie = conn::claim(&socket)?;
        let mut state = lock(&self.shared.state);
        let index = state.lanes.insert(LaneState {
            socket: Arc::clone(&socket),
            kind,
            queue: VecDeque::new(),
            asked: false,
            blocked: false,
            roomy: false,
            starved: false,
            failed: None,
            ending: false,
            ended: false,
            aborted: false,
            reset: ResetOnDeath::default(),
            guarded: 0,
            parts: 0,
            bytes: 0,
            counters: Counters::default(),
            gone: false,
        });
        let flags = epoll::EventFlags::OUT | epoll::EventFlags::ET;
        let key = state.mark.with(index as u64);
        let watched = epoll::add(&state.epoll, &socket, key, flags);
        drop(state);
        // From here on it is undone by dropping it.
        let lane = Arc::new(Lane {
            shared: Arc::clone(&self.shared),
            index,
            ring,
            socket,
            cookie,
            kind,
            peer: peer.and_then(|peer| SocketAddr::try_from(peer).ok()),
            orphaned: AtomicBool::new(false),
            acknowledged: Arc::default(),
        });
        watched.map_err(Error::wait("epoll_ctl"))?;
        Ok(Socket { lane, linger: Duration::from_secs(60), reaper })
    }

    /// Gives the kernel what is queued, as far as it may have it yet, without waiting: one system
    /// call for up to 128 sockets.
    ///
    /// # Errors
    /// [`Error::Wait`] if `io_uring_enter(2)` fails.
    pub fn submit(&mut self) -> Result<(), Error> {
        self.shared.submit()
    }

    /// Gives the kernel what is queued, as [`submit`](Self::submit), sleeps until `completions` are
    /// there (or those of all sends under way, if these are fewer), and reads them; all by one
    /// system call. Returns how many there were, which may be any number: fewer at the `deadline`,
    /// or for a signal, or where another thread has read them.
    ///
    /// A send has two completions, its result and its notification.
    ///
    /// # Errors
    /// [`Error::Wait`]; as [`reap`](Self::reap).
    pub fn wait(&mut self, completions: usize, deadline: Instant) -> Result<usize, Error> {
        self.shared.wait_counting(completions, deadline)
    }

    /// Sends that are queued or in flight, over all sockets, as far as the completions read so far
    /// say.
    #[must_use]
    pub fn under_way(&self) -> usize {
        lock(&self.shared.state).lanes.iter().map(|(_, lane)| lane.sends()).sum()
    }

    /// Reads the completions that are there, lets go of what they release, and gives the kernel
    /// what is queued behind them. Never blocks. Returns how many there were.
    ///
    /// # Errors
    /// [`Error::Stray`] if the ring completes what nobody had asked for; [`Error::Wait`].
    pub fn reap(&self) -> Result<usize, Error> {
        self.shared.reap()
    }
}

impl AsFd for Driver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.ring.as_fd()
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("ring", &self.shared.ring).finish_non_exhaustive()
    }
}

impl Socket {
    /// Queues `range` of the file, all of it. `more` says that more follows at once, so that the
    /// kernel may wait with a segment that is not full (`MSG_MORE`).
    ///
    /// It is sent from [`Driver::submit`] or [`Driver::wait`] on, by parts of at most 1 MiB, and
    /// goes on whenever somebody reads completions. The bytes are those that the file has then.
    ///
    /// # Errors
    /// [`Error::Refused`] if the file is never mapped; why an earlier send ended early, if one did;
    /// [`Error::Aborted`]. What is found later, the ticket says.
    pub fn send_file(
        &mut self,
        file: &Source,
        range: Range<u64>,
        more: bool,
    ) -> Result<Ticket, Error> {
        self.queue_file(file, range, None, None, more)
    }

    /// As [`send_file`](Self::send_file), from a range under `lease`: it stays leased until the
    /// kernel has released it, whatever happens to the lease's handles, the ticket, this socket and
    /// the driver. While it is in flight, the death of the process resets the connection, unless
    /// another process has the socket, too (see [`Options::reset_on_death`](crate::Options::reset_on_death)).
    ///
    /// # Errors
    /// As [`send_file`](Self::send_file); [`Error::NotLeased`]; [`Error::File`].
    pub fn send_lease(
        &mut self,
        lease: &Lease,
        range: Range<u64>,
        more: bool,
    ) -> Result<Ticket, Error> {
        lease.ours()?;
        if !lease.covers(&range) {
            return Err(Error::NotLeased { range });
        }
        let extent = lease.extent(&range)?;
        let held = lease.hold(&self.lane);
        self.queue_file(lease.source(), range, Some(extent), Some(held), more)
    }

    fn queue_file(
        &mut self,
        file: &Source,
        range: Range<u64>,
        extent: Option<Extent>,
        held: Option<Held>,
        more: bool,
    ) -> Result<Ticket, Error> {
        if let Some(why) = file.unmappable() {
            return Err(part::refused(Refusal::File(why)));
        }
        let len = range.end.saturating_sub(range.start);
        let from = From::File(file.clone(), range.start, extent);
        self.queue(from, len, held, more, Next::Zerocopy)
    }

    /// Queues `bytes`, which the kernel copies: headers and the like.
    ///
    /// # Errors
    /// As [`send_file`](Self::send_file).
    pub fn send(&mut self, bytes: impl Into<Arc<[u8]>>, more: bool) -> Result<Ticket, Error> {
        let bytes = bytes.into();
        let len = bytes.len() as u64;
        self.queue(From::Bytes(bytes), len, None, more, Next::Copy)
    }

    fn queue(
        &mut self,
        from: From,
        len: u64,
        held: Option<Held>,
        more: bool,
        next: Next,
    ) -> Result<Ticket, Error> {
        let Lane { shared, index, acknowledged, .. } = &*self.lane;
        shared.ours()?;
        let choice = match next {
            Next::Zerocopy => Choice { engine: Engine::Uring, why: Why::Asked },
            _ => Choice { engine: Engine::Copy, why: Why::Slice },
        };
        let progress = Progress::new(len, choice, acknowledged);
        let ticket = Ticket { progress: Arc::clone(&progress), lane: Arc::downgrade(&self.lane) };
        let mut state = lock(&shared.state);
        let lane = state.lane(*index);
        if let Some(failure) = lane.failed {
            return Err(failure.into());
        }
        if len == 0 {
            progress.is_over(None);
            return Ok(ticket);
        }
        lane.queue.push_back(Job { from, len, done: 0, more, held, progress, next, faulted: None });
        if lane.queue.len() == 1 {
            state.ready.push_back(*index);
        }
        Ok(ticket)
    }

    /// Bytes that are queued and that the kernel has not accepted, as far as is known.
    #[must_use]
    pub fn queued(&self) -> u64 {
        let mut state = lock(&self.lane.shared.state);
        state.lane(self.lane.index).queued()
    }

    /// What is queued or in flight, as far as the completions read so far say.
    #[must_use]
    pub fn in_flight(&self) -> InFlight {
        Holder::in_flight(&*self.lane)
    }

    /// What was done on this socket so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut state = lock(&self.lane.shared.state);
        state.lane(self.lane.index).counters
    }

    /// How long the reaper waits for what is queued and in flight when this is dropped, before it
    /// aborts the connection; 60 seconds if not said, and for ever with [`Duration::MAX`].
    pub fn set_linger(&mut self, limit: Duration) {
        self.linger = limit;
    }

    /// Ends the connection at once: the peer sees a reset. What is queued ends with
    /// [`Error::Aborted`]. What is in flight is released when its notifications arrive.
    ///
    /// # Errors
    /// [`Error::Socket`] if the kernel refuses.
    pub fn abort(&self) -> Result<(), Error> {
        Holder::abort(&*self.lane)
    }

    /// Ends the stream, after what is queued. Nothing more can be sent.
    pub fn shutdown(&mut self) {
        self.lane.end();
    }

    /// Ends the stream, waits until everything is sent and released, and closes the socket.
    ///
    /// # Errors
    /// [`Error::Deadline`]; [`Error::Wait`]. The socket is gone also then; what is queued or in
    /// flight is handed over to the reaper.
    pub fn close(self, deadline: Instant) -> Result<(), Error> {
        self.lane.end();
        self.wait_all(deadline)
    }

    /// Waits until nothing is queued or in flight.
    ///
    /// # Errors
    /// [`Error::Deadline`]; [`Error::Wait`].
    pub fn wait_all(&self, deadline: Instant) -> Result<(), Error> {
        self.lane.wait(deadline, "sends are still in flight", || {
            Ok(self.lane.is_drained().then_some(()))
        })
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.lane.socket.as_fd()
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lane.fmt(f)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Of a fork's copy the ring and what it keeps are the parent's.
        if !self.lane.shared.is_ours() {
            return;
        }
        let state = || {
            let mut state = lock(&self.lane.shared.state);
            let lane = state.lane(self.lane.index);
            (lane.is_drained(), lane.is_broken())
        };
        let (mut drained, mut broken) = state();
        if drained && !broken {
            return;
        }
        let mut apart = Apart::default();
        if !drained {
            // What has arrived already needs no reaper. An error shows itself there again.
            apart.run(|| drop(self.lane.shared.reap()));
            (drained, broken) = state();
        }
        if broken {
            // If it fails, the error was told already.
            apart.run(|| drop(self.abort()));
        }
        if !drained {
            // No clock counts as far as never.
            let abort_at = Instant::now().checked_add(self.linger);
            apart.run(|| self.reaper.adopt(Arc::clone(&self.lane) as _, abort_at));
        }
        apart.resume();
    }
}

impl Shared {
    fn is_ours(&self) -> bool {
        self.process.is_current()
    }

    /// That it is. A fork shares the ring's memory with its parent; and the lock may be one that a
    /// thread of the parent's had when it forked.
    fn ours(&self) -> Result<(), Error> {
        if self.is_ours() { Ok(()) } else { Err(Error::Forked) }
    }

    fn enter(&self, want: usize, timeout: Duration) -> Result<(), Error> {
        self.ring.enter(want, timeout).map_err(Error::wait("io_uring_enter"))
    }

    fn submit(&self) -> Result<(), Error> {
        self.ours()?;
        let mut late = Vec::new();
        let result = loop {
            let mut state = lock(&self.state);
            let all = state.begin(&mut late);
            let pending = state.queues.is_pending();
            drop(state);
            if pending {
                if let Err(e) = self.enter(0, Duration::ZERO) {
                    break Err(e);
                }
            }
            // If nothing is pending it is the ring's size that is in the way.
            if all || !pending {
                break Ok(());
            }
        };
        self.settle(late);
        result
    }

    fn reap(&self) -> Result<usize, Error> {
        self.ours()?;
        let mut late = Vec::new();
        let mut state = lock(&self.state);
        let count = state.take(&mut late);
        let all = state.begin(&mut late);
        let stray = state.stray.take();
        drop(state);
        // First: who is woken by what was read finds it done.
        self.settle(late);
        let mut state = lock(&self.state);
        if state.counting {
            // The driver counts what was taken here.
            let taken = state.queues.taken();
            state.queues.no_ops(taken);
        }
        let pending = state.queues.is_pending();
        drop(state);
        if pending {
            self.enter(0, Duration::ZERO)?;
        }
        if !all && pending {
            self.submit()?;
        }
        stray.map_or(Ok(count), |stray| Err(stray.into()))
    }

    fn wait_counting(&self, completions: usize, deadline: Instant) -> Result<usize, Error> {
        let first = self.take()?;
        let mut late = Vec::new();
        let mut state = lock(&self.state);
        let all = state.begin(&mut late);
        state.queues.taken();
        state.counting = true;
        // Each of those under way has at least one completion to come.
        let want = completions.saturating_sub(first).min(state.queues.len());
        let pending = state.queues.is_pending();
        drop(state);
        self.settle(late);
        let left = deadline.saturating_duration_since(Instant::now());
        let mut result = Ok(());
        if !all && pending {
            result = self.submit();
        }
        if pending || want > 0 {
            result = result.and_then(|()| self.enter(want, left));
        }
        lock(&self.state).counting = false;
        result?;
        Ok(first + self.take()?)
    }

    /// Reads the completions that are there.
    fn take(&self) -> Result<usize, Error> {
        self.ours()?;
        let mut late = Vec::new();
        let mut state = lock(&self.state);
        let count = state.take(&mut late);
        let stray = state.stray.take();
        drop(state);
        self.settle(late);
        stray.map_or(Ok(count), |stray| Err(stray.into()))
    }

    /// Does what is to be done when nothing is locked, and wakes who waits.
    fn settle(&self, late: Vec<Late>) {
        if late.is_empty() {
            return;
        }
        // A destructor that panics must not keep the others from what is due to them.
        let mut apart = Apart::default();
        for late in late {
            match late {
                Late::Released { held, progress, copied } => {
                    // First the hold, then the ticket: who sees "released" finds the range free.
                    apart.run(|| drop(held));
                    progress.part_released(copied);
                }
                Late::Over { progress, failure } => progress.is_over(failure),
                Late::Gone(socket) => drop(socket),
            }
        }
        let wakers = lock(&self.wakers).all(None);
        for waker in wakers {
            waker.wake();
        }
        apart.resume();
    }
}

impl State {
    fn lane(&mut self, index: usize) -> &mut LaneState {
        // A lane's entry goes with its handle, which whoever calls has.
        &mut self.lanes[index]
    }

    /// Reads the completions that are there.
    fn take(&mut self, late: &mut Vec<Late>) -> usize {
        let mut count = 0;
        while let Some(event) = self.queues.next_event() {
            count += 1;
            match event {
                Ok(Event::Answered { key, result }) => {
                    let Some(part) = self.queues.kept(key) else { continue };
                    part.accepted = match (part.next, result) {
                        (Next::Room, _) | (_, Err(_)) => 0,
                        (_, Ok(bytes)) => bytes.into(),
                    };
                    let (lane, next, range) = (part.lane, part.next, part.range.clone());
                    self.answered(lane, next, &range, result, late);
                }
                // Also if it was cancelled, as the thread that had submitted it ended.
                Ok(Event::Ended { kept: Part { next: Next::Room, .. }, .. }) => {
                    self.polling = false;
                    if let Err(errno) = self.look_for_room() {
                        self.nobody_tells_of_room(errno);
                    }
                }
                Ok(Event::Ended { mut kept, result, copied }) => {
                    if let (Next::Zerocopy | Next::Copy, Ok(bytes)) = (kept.next, result) {
                        kept.accepted = bytes.into();
                    }
                    self.answered(kept.lane, kept.next, &kept.range, result, late);
                    self.released(kept, copied, late);
                }
                Ok(Event::Released { kept, copied }) => self.released(kept, copied, late),
                Err(stray) => {
                    tracing::error!("{stray}");
                    self.stray = Some(stray);
                }
            }
        }
        count
    }

    /// The result of what was asked for the first job of a lane.
    fn answered(
        &mut self,
        index: usize,
        asked: Next,
        range: &Range<u64>,
        result: Result<u32, Errno>,
        late: &mut Vec<Late>,
    ) {
        let Some(lane) = self.lanes.get_mut(index) else { return };
        lane.asked = false;
        self.ready.push_back(index);
        let aborted = lane.aborted;
        let Some(job) = lane.queue.front_mut() else { return };
        let usual = if matches!(job.from, From::Bytes(_)) { Next::Copy } else { Next::Zerocopy };
        let mut failure = None;
        match result {
            Ok(bytes) => {
                job.next = usual;
                job.done += u64::from(bytes);
                lane.counters.accepted += u64::from(bytes);
                lane.bytes += u64::from(bytes);
                job.progress.accepted(bytes.into(), lane.counters.accepted);
                if job.done >= job.len {
                    late.push(Late::Over { progress: Arc::clone(&job.progress), failure: None });
                    lane.queue.pop_front();
                }
            }
            Err(_) if aborted => failure = Some(Failure::Aborted),
            Err(Errno::AGAIN) => {
                if !std::mem::take(&mut lane.roomy) {
                    lane.blocked = true;
                    self.blocked += 1;
                }
            }
            // The thread that had submitted it has ended, for example.
            Err(Errno::INTR | Errno::CANCELED) => {}
            Err(Errno::NOMEM | Errno::NOBUFS) if asked == Next::Zerocopy => {
                // RLIMIT_MEMLOCK: a release makes room. If none is due here (this part is one still;
                // other sockets may be stuck for ever), a copy needs none.
                self.most = None;
                if lane.parts > 1 {
                    lane.starved = true;
                } else {
                    job.next = Next::Copy;
                    job.progress.limited(Limit::Buffers);
                }
            }
            Err(Errno::INVAL) if asked == Next::Zerocopy && self.queues.forget_usage() => {}
            Err(Errno::OPNOTSUPP) if asked == Next::Zerocopy => {
                failure = Some(Failure::Refused(Refusal::NotSupported));
            }
            Err(Errno::FAULT) if job.faulted != Some(job.done) => {
                job.faulted = Some(job.done);
                if let From::File(file, _, extent) = &mut job.from {
                    // Whatever was promised about it.
                    *extent = None;
                    failure = part::explain_fault(file, range).as_ref().err().map(Failure::from);
                }
            }
            Err(errno) => failure = Some(Failure::Socket { op: "send", errno }),
        }
        lane.failed = lane.failed.or(failure);
    }

    /// Nothing more is to come of `part`.
    fn released(&mut self, part: Part, copied: bool, late: &mut Vec<Late>) {
        // What a limit is in the way of may go on.
        for (index, lane) in self.lanes.iter_mut().filter(|(_, lane)| lane.starved) {
            lane.starved = false;
            self.ready.push_back(index);
        }
        if let Some(lane) = self.lanes.get_mut(part.lane) {
            lane.parts -= 1;
            lane.bytes -= part.accepted;
            lane.guarded -= usize::from(part.guarded);
            if part.next == Next::Zerocopy && part.accepted > 0 {
                lane.counters.released += 1;
                lane.counters.copied += u64::from(copied);
            }
            if lane.guarded == 0 && lane.queue.is_empty() {
                lane.reset.disarm(&lane.socket);
            }
        }
        self.bury(part.lane, late);
        let copied = copied || part.next == Next::Copy;
        late.push(Late::Released { held: part.held, progress: part.progress, copied });
    }

    /// Forgets a lane whose handle is gone, when nothing of it is under way. Before that its place is
    /// nobody else's, who would have its parts counted as its own.
    fn bury(&mut self, index: usize, late: &mut Vec<Late>) {
        if self.lanes.get(index).is_some_and(|lane| lane.gone && lane.is_drained()) {
            let lane = self.lanes.remove(index);
            self.blocked -= usize::from(lane.blocked);
            late.push(Late::Gone(lane.socket));
        }
    }

    /// Lets those lanes go on whose sockets have got room, or an error.
    fn look_for_room(&mut self) -> Result<(), Errno> {
        let mut events = Vec::with_capacity(64);
        // No more often than there are sockets to tell of: what is left over, the ring tells next.
        for _ in 0..=self.lanes.len() / 64 {
            events.clear();
            let now = Some(&Timespec { tv_sec: 0, tv_nsec: 0 });
            epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), now)?;
            for event in &events {
                // What is not ours is told by another set, which has got the number.
                let key = self.mark.key_of(event).ok_or(Errno::BADF)?;
                // It was made from an usize.
                let index = usize::try_from(key).unwrap_or(usize::MAX);
                let Some(lane) = self.lanes.get_mut(index) else { continue };
                lane.roomy = true;
                if std::mem::take(&mut lane.blocked) {
                    self.blocked -= 1;
                    self.ready.push_back(index);
                }
            }
            if events.len() < events.capacity() {
                break;
            }
        }
        Ok(())
    }

    /// The program has closed the epoll set: who waits for room fails, as nothing else ends that.
    fn nobody_tells_of_room(&mut self, errno: Errno) {
        for (index, lane) in self.lanes.iter_mut().filter(|(_, lane)| lane.blocked) {
            lane.failed = Some(Failure::Socket { op: "epoll_wait", errno });
            self.ready.push_back(index);
        }
    }

    /// Lets the ring wait for room, if somebody does; `false` if the ring has no room for that.
    fn wait_for_room(&mut self) -> bool {
        if self.polling || self.blocked == 0 {
            return true;
        }
        let part = Part {
            lane: usize::MAX,
            next: Next::Room,
            range: 0..0,
            accepted: 0,
            guarded: false,
            held: None,
            progress: Progress::none(),
            at: Instant::now(),
        };
        let pushed = self.queues.push(Request::Readable, &self.epoll, Memory::None, part);
        self.polling = pushed.is_ok();
        self.polling
    }

    /// Queues what may be sent now; `false` if there was no room for all of it.
    fn begin(&mut self, late: &mut Vec<Late>) -> bool {
        let mut extents = Vec::new();
        while let Some(index) = self.ready.pop_front() {
            if !self.begin_one(index, &mut extents, late) {
                self.ready.push_front(index);
                return false;
            }
        }
        self.wait_for_room()
    }

    fn begin_one(
        &mut self,
        index: usize,
        extents: &mut Vec<(Identity, Extent)>,
        late: &mut Vec<Late>,
    ) -> bool {
        loop {
            let Some(lane) = self.lanes.get_mut(index) else { return true };
            if lane.asked || lane.starved {
                return true;
            }
            if let Some(failure) = lane.failed {
                for job in lane.queue.drain(..) {
                    late.push(Late::Over { progress: job.progress, failure: Some(failure) });
                }
                if lane.ending && lane.is_broken() {
                    // Not an end that looks like that of everything.
                    lane.abort();
                }
                self.blocked -= usize::from(std::mem::take(&mut lane.blocked));
                self.bury(index, late);
                return true;
            }
            if lane.blocked {
                return true;
            }
            let Some(job) = lane.queue.front() else {
                if std::mem::take(&mut lane.ending) {
                    // If it fails there is no peer to tell.
                    let _ = conn::shut_down(&lane.socket, Shutdown::Write);
                    lane.ended = true;
                    lane.failed = Some(Failure::Socket { op: "send", errno: Errno::PIPE });
                }
                return true;
            };
            match job.prepare(&mut self.most, extents) {
                Ok((memory, range, last)) => {
                    if !lane.ask(&mut self.queues, index, memory, range, last) {
                        return false;
                    }
                }
                Err(error) => lane.failed = Some(Failure::from(&error)),
            }
        }
    }
}

impl LaneState {
    /// Asks the kernel for the next part of the first job; `false` if the ring has no room.
    fn ask(
        &mut self,
        queues: &mut Queues<Part>,
        index: usize,
        memory: Memory,
        range: Range<u64>,
        last: bool,
    ) -> bool {
        let Some(job) = self.queue.front() else { return true };
        // A part that is not the last says nothing: its release would wait for the next, and that
        // maybe for a release.
        let more = job.more && last;
        let request = match job.next {
            Next::Zerocopy => Request::Zerocopy(Send { more, wait: false }),
            // No job waits for room: its lane does.
            Next::Copy | Next::Room => Request::Copy(Send { more, wait: false }),
        };
        let guarded = job.next == Next::Zerocopy && job.held.is_some();
        if guarded {
            if let Err(error) = self.reset.arm(&self.socket, self.kind) {
                self.failed = Some(Failure::from(&error));
                return true;
            }
        }
        let part = Part {
            lane: index,
            next: job.next,
            range,
            accepted: 0,
            guarded,
            held: job.held.clone(),
            progress: Arc::clone(&job.progress),
            at: Instant::now(),
        };
        if queues.push(request, &self.socket, memory, part).is_err() {
            return false;
        }
        job.progress.part_begins();
        self.asked = true;
        self.roomy = false;
        self.parts += 1;
        self.guarded += usize::from(guarded);
        true
    }

    fn queued(&self) -> u64 {
        self.queue.iter().map(|job| job.len - job.done).sum()
    }

    /// Sends that are queued or in flight.
    fn sends(&self) -> usize {
        // The one that the kernel was asked about is in both.
        self.parts + self.queue.len() - usize::from(self.asked)
    }

    fn is_drained(&self) -> bool {
        self.sends() == 0
    }

    /// A send ended early, and the peer may not know.
    fn is_broken(&self) -> bool {
        self.failed.is_some() && !self.ended && !self.aborted
    }

    fn abort(&mut self) {
        self.aborted = true;
        self.failed = Some(Failure::Aborted);
        if let Err(e) = self.kind.abort(&self.socket) {
            tracing::error!("aborting a socket of a ring: {e}");
        }
    }
}

impl Job {
    /// The next part: its memory, its file range, and whether it is the last.
    fn prepare(
        &self,
        most: &mut Option<u64>,
        extents: &mut Vec<(Identity, Extent)>,
    ) -> Result<(Memory, Range<u64>, bool), Error> {
        match &self.from {
            From::Bytes(bytes) => {
                // It is an offset within them.
                let at = usize::try_from(self.done).unwrap_or(bytes.len());
                Ok((Memory::Bytes(Arc::clone(bytes), at), 0..0, true))
            }
            From::File(file, start, extent) => {
                let most = match most {
                    Some(most) => *most,
                    None => *most.insert(part::limit()?),
                };
                let known = extents.iter().find(|(file_of, _)| *file_of == file.identity());
                let extent = match extent.or(known.map(|(_, extent)| *extent)) {
                    Some(extent) => extent,
                    None => {
                        let extent = file.extent()?;
                        extents.push((file.identity(), extent));
                        extent
                    }
                };
                let range = start + self.done..start + self.len;
                let (memory, part) = part::next(file, extent, &range, most)?;
                let last = part.end == range.end;
                Ok((memory, part, last))
            }
        }
    }
}

impl Lane {
    pub(super) fn is_orphaned(&self) -> bool {
        self.orphaned.load(Ordering::Relaxed) || !self.shared.is_ours()
    }

    pub(super) fn ours(&self) -> Result<(), Error> {
        self.shared.ours()
    }

    fn is_drained(&self) -> bool {
        lock(&self.shared.state).lane(self.index).is_drained()
    }

    /// Ends the stream after what is queued.
    fn end(&self) {
        if !self.shared.is_ours() {
            return;
        }
        let mut late = Vec::new();
        let mut state = lock(&self.shared.state);
        let lane = state.lane(self.index);
        lane.ending = true;
        state.ready.push_back(self.index);
        state.begin(&mut late);
        drop(state);
        self.shared.settle(late);
    }

    /// Whether the peer has acknowledged the first `end` bytes that the socket accepted. While a
    /// send is being answered the socket has accepted more than is known here, so that fewer seem
    /// acknowledged.
    pub(super) fn acknowledgement(&self, end: u64) -> Result<Acknowledgement, Error> {
        let mut state = lock(&self.shared.state);
        let lane = state.lane(self.index);
        let over = lane.aborted
            || self.kind != Kind::Tcp
            || sys::tcp_is_over(self.socket.as_fd()).map_err(Error::socket("TCP_INFO"))?;
        let acknowledged = self.look_for_acknowledgement(lane)?;
        Ok(if acknowledged >= end && self.kind == Kind::Tcp {
            Acknowledgement::Acknowledged
        } else if over {
            Acknowledgement::Unknowable
        } else {
            Acknowledgement::Pending
        })
    }

    fn look_for_acknowledgement(&self, lane: &LaneState) -> Result<u64, Error> {
        if !lane.aborted && self.kind == Kind::Tcp {
            let left = sys::unacknowledged(&self.socket)
                .map_err(|cause| Error::Socket { op: "ioctl(SIOCOUTQ)", cause })?;
            let acknowledged = lane.counters.accepted.saturating_sub(left);
            self.acknowledged.fetch_max(acknowledged, Ordering::Relaxed);
        }
        Ok(self.acknowledged.load(Ordering::Relaxed))
    }

    /// Waits until `check` says something, reading completions and going on with what is queued
    /// meanwhile.
    pub(super) fn wait<T>(
        &self,
        deadline: Instant,
        what: &'static str,
        mut check: impl FnMut() -> Result<Option<T>, Error>,
    ) -> Result<T, Error> {
        self.wait_looking(&mut check, || {
            if Instant::now() < deadline { Ok(deadline) } else { Err(Error::Deadline(what)) }
        })
    }

    /// As [`wait`](Self::wait), for an acknowledgement, of which nothing needs to tell.
    pub(super) fn wait_acknowledged(
        &self,
        deadline: Instant,
        look: impl Fn() -> Result<Acknowledgement, Error>,
    ) -> Result<bool, Error> {
        let mut looks = Looks::new(false);
        let mut check = || {
            Ok(match look()? {
                Acknowledgement::Acknowledged => Some(true),
                Acknowledgement::Unknowable => Some(false),
                Acknowledgement::Pending => None,
            })
        };
        self.wait_looking(&mut check, || looks.next(deadline))
    }

    fn wait_looking<T>(
        &self,
        check: &mut impl FnMut() -> Result<Option<T>, Error>,
        mut until: impl FnMut() -> Result<Instant, Error>,
    ) -> Result<T, Error> {
        Parker::with(|parker| {
            let key = lock(&self.shared.wakers).insert(parker.waker());
            let _registered = Deregister { shared: &self.shared, key };
            let _watch = parker.watch(self.ring.as_fd(), 0, Interest::Readable)?;
            loop {
                self.shared.reap()?;
                if let Some(value) = check()? {
                    return Ok(value);
                }
                parker.park(Some(until()?))?;
            }
        })
    }
}

struct Deregister<'a> {
    shared: &'a Shared,
    key: u64,
}

impl Drop for Deregister<'_> {
    fn drop(&mut self) {
        lock(&self.shared.wakers).remove(self.key);
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket")
            .field("cookie", &self.cookie)
            .field("kind", &self.kind)
            .field("in_flight", &Holder::in_flight(self))
            .finish_non_exhaustive()
    }
}

impl Holder for Lane {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }

    fn readiness(&self) -> Interest {
        Interest::Readable
    }

    fn reap(&self) -> Result<usize, Error> {
        self.shared.reap()
    }

    fn abort(&self) -> Result<(), Error> {
        self.shared.ours()?;
        let mut late = Vec::new();
        let mut state = lock(&self.shared.state);
        let lane = state.lane(self.index);
        if lane.aborted {
            return Ok(());
        }
        // What is acknowledged by now stays so.
        let _ = self.look_for_acknowledgement(lane);
        let parts = lane.parts;
        lane.abort();
        state.ready.push_back(self.index);
        state.begin(&mut late);
        drop(state);
        self.shared.settle(late);
        tracing::debug!(cookie = self.cookie, parts, "abort");
        Ok(())
    }

    fn in_flight(&self) -> InFlight {
        let mut state = lock(&self.shared.state);
        let parts = state.queues.all_kept().filter(|part| part.lane == self.index);
        let oldest = parts.map(|part| part.at).min().map(|at| at.elapsed());
        let lane = state.lane(self.index);
        InFlight { bytes: lane.bytes + lane.queued(), sends: lane.sends(), oldest }
    }

    fn holds(&self, which: &dyn Fn(&Held) -> bool) -> bool {
        let mut state = lock(&self.shared.state);
        let parts = state.queues.all_kept().filter(|part| part.lane == self.index);
        let mut held = parts.filter_map(|part| part.held.as_ref());
        if held.any(which) {
            return true;
        }
        drop(held);
        let queue = &state.lane(self.index).queue;
        queue.iter().filter_map(|job| job.held.as_ref()).any(which)
    }

    fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    fn orphan(&self) {
        self.orphaned.store(true, Ordering::Relaxed);
        self.end();
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // A fork has the same epoll instance, and must leave it alone.
        if !self.shared.is_ours() {
            return;
        }
        conn::give_back(self.cookie);
        let mut late = Vec::new();
        let mut state = lock(&self.shared.state);
        // Somebody may have a duplicate. It fails only if it was not added.
        let _ = epoll::delete(&state.epoll, &self.socket);
        let lane = state.lane(self.index);
        lane.gone = true;
        if !lane.is_drained() {
            // Its hand-over has failed. Nothing more of it is sent, which the peer sees as a reset;
            // what is in flight stays held.
            lane.ending = true;
            if !lane.queue.is_empty() {
                lane.failed = lane.failed.or(Some(Failure::Aborted));
            }
            state.begin_one(self.index, &mut Vec::new(), &mut late);
        }
        state.bury(self.index, &mut late);
        drop(state);
        self.shared.settle(late);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::guard::{GuardedFile, TryWrite};

    fn tcp() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (socket, listener.accept().unwrap().0)
    }

    /// As if a hand-over had failed.
    fn lose(mut socket: Socket, other: &Socket) {
        drop(std::mem::replace(&mut socket.lane, Arc::clone(&other.lane)));
    }

    #[test]
    fn a_socket_that_is_lost_keeps_what_is_in_flight_and_its_place() {
        const LEN: usize = 16 << 20;
        let Ok(mut driver) = Driver::new() else {
            println!("SKIP: io_uring cannot be used here");
            return;
        };
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; LEN]).unwrap();
        let guard = GuardedFile::new(file).unwrap();
        if let Some(why) = guard.source().unmappable() {
            println!("SKIP: temporary files are not mapped here: {why}");
            return;
        }
        let other = driver.add(tcp().0).unwrap();
        let (tx, mut peer) = tcp();
        let mut socket = driver.add(tx).unwrap();
        let lease = guard.try_lease(0..LEN as u64).unwrap();
        let ticket = socket.send_lease(&lease, 0..LEN as u64, false).unwrap();
        drop(lease);
        driver.submit().unwrap();
        driver.reap().unwrap();
        let shared = Arc::clone(&driver.shared);
        let in_flight = || lock(&shared.state).lanes.iter().any(|(_, lane)| lane.parts > 0);
        assert!(in_flight() && socket.queued() > 0, "nothing is stuck");
        let index = socket.lane.index;
        lose(socket, &other);
        assert!(matches!(guard.try_write_at(b"x", 0), Ok(TryWrite::InTheWay(_))));
        let next = driver.add(tcp().0).unwrap();
        assert_ne!(next.lane.index, index, "its place is another's");
        // Bytes are missing, which must not look like the end of everything.
        let reader = std::thread::spawn(move || std::io::copy(&mut peer, &mut std::io::sink()));
        let soon = Instant::now() + Duration::from_secs(30);
        while in_flight() {
            driver.wait(1, soon).unwrap();
            assert!(Instant::now() < soon);
        }
        assert!(reader.join().unwrap().is_err(), "no reset");
        assert_eq!((next.in_flight().sends, next.in_flight().bytes), (0, 0));
        assert!(matches!(ticket.error(), Some(Error::Aborted)));
        assert!(matches!(guard.try_write_at(b"x", 0), Ok(TryWrite::Written)));
        assert_eq!(lock(&driver.shared.state).lanes.len(), 2);
    }
}
