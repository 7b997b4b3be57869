//! Tickets of a driver: what became of a send that was queued.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use rustix::io::Errno;

use super::driver::Lane;
use crate::engine::{Choice, Engine, Limit, Why};
use crate::error::Error;
use crate::refusal::Refusal;
use crate::ticket::{Acknowledgement, Status};

/// What a ticket and the driver share of a send.
#[derive(Debug)]
pub(super) struct Progress {
    /// Bytes that are to be sent.
    total: u64,
    choice: Choice,
    accepted: AtomicU64,
    /// Bytes the socket had accepted after the last part.
    end: AtomicU64,
    /// Parts that the kernel has, or has let go of but not said so.
    outstanding: AtomicU32,
    copied: AtomicBool,
    /// Nothing more of it will be sent.
    over: AtomicBool,
    failure: OnceLock<Failure>,
    limit: OnceLock<Limit>,
    /// Bytes of the socket that the peer is known to have acknowledged; it outlives the socket.
    acknowledged: Arc<AtomicU64>,
}

/// Why a send ended early.
#[derive(Debug, Clone, Copy)]
pub(super) enum Failure {
    Aborted,
    Socket { op: &'static str, errno: Errno },
    File { op: &'static str, offset: u64, errno: Errno },
    Truncated { at: u64, wanted: u64 },
    Refused(Refusal),
    Unsuitable(&'static str),
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let errno = |e: &std::io::Error| Errno::from_io_error(e).unwrap_or(Errno::IO);
        match error {
            Error::Socket { op, cause } => Failure::Socket { op, errno: errno(cause) },
            Error::File { op, offset, cause } => {
                Failure::File { op, offset: *offset, errno: errno(cause) }
            }
            Error::Truncated { at, wanted } => Failure::Truncated { at: *at, wanted: *wanted },
            Error::Refused { reason, .. } => Failure::Refused(*reason),
            Error::NotASource(unsuitable) => Failure::Unsuitable(unsuitable.why),
            // Those are all that preparing a part fails with.
            _ => Failure::Aborted,
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Aborted => Error::Aborted,
            Failure::Socket { op, errno } => Error::socket(op)(errno),
            Failure::File { op, offset, errno } => Error::file(op, offset)(errno),
            Failure::Truncated { at, wanted } => Error::Truncated { at, wanted },
            Failure::Unsuitable(why) => Error::unsuitable(why),
            Failure::Refused(reason) => Error::Refused { engine: Engine::Uring, reason },
        }
    }
}

impl Progress {
    pub(super) fn new(total: u64, choice: Choice, acknowledged: &Arc<AtomicU64>) -> Arc<Self> {
        Arc::new(Progress {
            total,
            choice,
            accepted: AtomicU64::new(0),
            end: AtomicU64::new(0),
            outstanding: AtomicU32::new(0),
            copied: AtomicBool::new(false),
            over: AtomicBool::new(false),
            failure: OnceLock::new(),
            limit: OnceLock::new(),
            acknowledged: Arc::clone(acknowledged),
        })
    }

    /// Of what is no send.
    pub(super) fn none() -> Arc<Self> {
        let choice = Choice { engine: Engine::Uring, why: Why::Asked };
        Progress::new(0, choice, &Arc::default())
    }

    /// A part goes to the kernel.
    pub(super) fn part_begins(&self) {
        self.outstanding.fetch_add(1, Ordering::Relaxed);
    }

    /// The kernel accepted `bytes`, after which it has accepted `end` of the socket's.
    pub(super) fn accepted(&self, bytes: u64, end: u64) {
        self.end.store(end, Ordering::Relaxed);
        // Who sees all of it accepted sees the end of all of it.
        self.accepted.fetch_add(bytes, Ordering::Release);
    }

    /// The kernel has let go of a part, and what that held was dropped.
    pub(super) fn part_released(&self, copied: bool) {
        if copied {
            self.copied.store(true, Ordering::Relaxed);
        }
        self.outstanding.fetch_sub(1, Ordering::Release);
    }

    /// The kernel copies a part, because of this limit.
    pub(super) fn limited(&self, limit: Limit) {
        let _ = self.limit.set(limit);
    }

    /// Nothing more of it will be sent.
    pub(super) fn is_over(&self, failure: Option<Failure>) {
        if let Some(failure) = failure {
            let _ = self.failure.set(failure);
        }
        self.over.store(true, Ordering::Release);
    }

    fn released(&self) -> Option<bool> {
        // In this order: after it is over, no part begins.
        let over = self.over.load(Ordering::Acquire);
        (over && self.outstanding.load(Ordering::Acquire) == 0)
            .then(|| self.copied.load(Ordering::Relaxed))
    }
}

/// Looks on at a send that was queued on a [`Socket`](super::Socket): whether it is accepted,
/// released, acknowledged.
///
/// As other tickets it only looks on: it holds nothing back. Its waits read completions, and go on
/// with what is queued on all sockets of the driver.
#[derive(Clone)]
pub struct Ticket {
    pub(super) progress: Arc<Progress>,
    pub(super) lane: Weak<Lane>,
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket")
            .field("bytes", &self.bytes())
            .field("choice", &self.choice())
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

impl Ticket {
    /// Bytes of it that the kernel has accepted so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.progress.accepted.load(Ordering::Acquire)
    }

    /// Why it ended before all of it was accepted; `None` if it did not.
    #[must_use]
    pub fn error(&self) -> Option<Error> {
        self.progress.failure.get().map(|failure| (*failure).into())
    }

    /// Which engine serves it, and why: `copy` for bytes, and for a file where a limit was in the
    /// way of a part.
    #[must_use]
    pub fn choice(&self) -> Choice {
        match self.progress.limit.get() {
            Some(limit) => Choice { engine: Engine::Copy, why: Why::Limit(*limit) },
            None => self.progress.choice,
        }
    }

    /// Whether the kernel has let go of it, as far as the completions read so far say. What is
    /// queued counts as in flight; what ended early is released when the part that was accepted is.
    #[must_use]
    pub fn status(&self) -> Status {
        match (self.progress.released(), self.lane.upgrade()) {
            (Some(copied), _) => Status::Released { copied },
            (None, Some(lane)) if !lane.is_orphaned() => Status::InFlight,
            (None, _) => Status::Unknown,
        }
    }

    /// Waits until the kernel has accepted all of it.
    ///
    /// # Errors
    /// Why it ended early, if it did (see [`error`](Self::error)); [`Error::Deadline`];
    /// [`Error::Wait`].
    pub fn wait_accepted(&self, deadline: Instant) -> Result<(), Error> {
        self.wait(deadline, "the peer does not read: the send is still queued", || {
            if let Some(error) = self.error() {
                return Err(error);
            }
            Ok((self.bytes() == self.progress.total).then_some(()))
        })
    }

    /// Waits until the kernel has let go of it; returns whether it had copied any of it.
    ///
    /// # Errors
    /// [`Error::Deadline`]; [`Error::Wait`]. That it ended early is none: [`error`](Self::error)
    /// says so.
    pub fn wait_released(&self, deadline: Instant) -> Result<bool, Error> {
        self.wait(deadline, "the send was not released", || Ok(self.progress.released()))
    }

    fn wait<T>(
        &self,
        deadline: Instant,
        what: &'static str,
        mut check: impl FnMut() -> Result<Option<T>, Error>,
    ) -> Result<T, Error> {
        if let Some(value) = check()? {
            return Ok(value);
        }
        match self.lane.upgrade() {
            Some(lane) => lane.wait(deadline, what, check),
            // It went away meanwhile: it only does when nothing is under way.
            None => check()?.ok_or(Error::Deadline(what)),
        }
    }

    /// Whether the peer's TCP has all of it; asks the kernel, without waiting.
    ///
    /// # Errors
    /// [`Error::Socket`] if SIOCOUTQ fails.
    pub fn acknowledgement(&self) -> Result<Acknowledgement, Error> {
        let lane = self.lane.upgrade();
        lane.as_ref().map_or(Ok(()), |lane| lane.ours())?;
        let over = self.progress.over.load(Ordering::Acquire);
        if self.bytes() < self.progress.total {
            let over = over || lane.is_none();
            return Ok(if over { Acknowledgement::Unknowable } else { Acknowledgement::Pending });
        }
        let end = self.progress.end.load(Ordering::Relaxed);
        if let Some(lane) = lane {
            return lane.acknowledgement(end);
        }
        Ok(if self.progress.acknowledged.load(Ordering::Relaxed) >= end {
            Acknowledgement::Acknowledged
        } else {
            Acknowledgement::Unknowable
        })
    }

    /// Waits until the peer's TCP has acknowledged all of it; `false` if that can never be known.
    ///
    /// It is woken by the ring's completions, which come with acknowledgements where the peer is
    /// elsewhere, and looks by itself every 0.1 to 10 ms.
    ///
    /// # Errors
    /// [`Error::Deadline`]; [`Error::Wait`]; [`Error::Socket`] if SIOCOUTQ fails.
    pub fn wait_acknowledged(&self, deadline: Instant) -> Result<bool, Error> {
        match (self.acknowledgement()?, self.lane.upgrade()) {
            (Acknowledgement::Acknowledged, _) => Ok(true),
            (Acknowledgement::Unknowable, _) => Ok(false),
            (Acknowledgement::Pending, Some(lane)) => {
                lane.wait_acknowledged(deadline, || self.acknowledgement())
            }
            // It went away between the two, and what it knew stays.
            (Acknowledgement::Pending, None) => {
                Ok(self.acknowledgement()? == Acknowledgement::Acknowledged)
            }
        }
    }
}
