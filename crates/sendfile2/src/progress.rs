//! The progress of a send: what it came to so far, and what of it the kernel may still read.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::engine::Choice;

/// Whether the kernel has released a send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Status {
    /// The kernel may still read it.
    InFlight,
    /// The kernel no longer references it: it may be overwritten. That says nothing of delivery.
    Released(Release),
    /// The kernel may still read it, and the connection has lost its sender (the reaper drains it)
    /// or its ids do not add up. It is never to be treated as free. This ends, as `Released`, when
    /// the notifications arrive, or the kernel has nothing of the socket by reference any more.
    Unknown,
    /// The kernel may still read it, and never reports the release: it was sent by `sendfile(2)`
    /// ([`Engine::Sendfile`](crate::Engine::Sendfile)). Overwrite it through its
    /// [`GuardedFile`](crate::guard::GuardedFile), which detaches it.
    Exposed,
}

/// The way in which the kernel has released a send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Release {
    /// The kernel made a private copy of at least a part.
    pub copied: bool,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Status::InFlight => "in flight",
            Status::Released(Release { copied: false }) => "released",
            Status::Released(Release { copied: true }) => "released, copied",
            Status::Unknown => "unknown",
            Status::Exposed => "exposed",
        })
    }
}

/// The parts of a send that are not released, which its tickets and the ledger share.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    outstanding: AtomicU32,
    copied: AtomicBool,
}

impl Pending {
    /// Notes that a part goes to the kernel.
    pub(crate) fn part_begins(&self) {
        self.outstanding.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that a part was released, after what it held was dropped.
    pub(crate) fn part_released(&self, copied: bool) {
        if copied {
            self.copied.store(true, Ordering::Relaxed);
        }
        self.outstanding.fetch_sub(1, Ordering::Release);
    }

    /// Returns whether any part was copied, once all of them are released.
    pub(crate) fn released(&self) -> Option<bool> {
        (self.outstanding.load(Ordering::Acquire) == 0).then(|| self.copied.load(Ordering::Relaxed))
    }
}

/// The progress of a send of a sender. What is only copied needs no memory of its own.
#[derive(Debug, Clone)]
pub(crate) struct SendProgress {
    /// Bytes accepted.
    bytes: u64,
    /// Bytes that the connection had accepted after the last part.
    end: u64,
    /// Made for the first zerocopy part.
    pending: Option<Arc<Pending>>,
    copied: bool,
    /// A part was sent by `sendfile(2)`.
    exposed: bool,
    /// The choice of the last part.
    choice: Choice,
}

impl SendProgress {
    pub(crate) fn new(choice: Choice) -> Self {
        SendProgress { bytes: 0, end: 0, pending: None, copied: false, exposed: false, choice }
    }

    /// Bytes accepted.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that the connection had accepted after the last part.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// The choice of the last part.
    pub(crate) fn choice(&self) -> Choice {
        self.choice
    }

    /// Notes that a part of `bytes` was accepted, after which the connection has accepted `end` in
    /// all. [`copied`](Self::copied) or [`in_flight`](Self::in_flight) follows.
    pub(crate) fn accepted(&mut self, bytes: u64, end: u64, choice: Choice) {
        self.bytes += bytes;
        self.end = end;
        self.choice = choice;
    }

    /// Notes that the part was copied.
    pub(crate) fn copied(&mut self) {
        self.copied = true;
    }

    /// Notes that the release of the part will never be reported.
    pub(crate) fn exposed(&mut self) {
        self.exposed = true;
    }

    /// Whether the release of a part will never be reported.
    pub(crate) fn is_exposed(&self) -> bool {
        self.exposed
    }

    /// Notes that the part is in flight; the result is to be told of its release.
    pub(crate) fn in_flight(&mut self) -> Arc<Pending> {
        let pending = self.pending.get_or_insert_default();
        pending.part_begins();
        Arc::clone(pending)
    }

    /// Returns whether any part was copied, once all of them are released.
    pub(crate) fn released(&self) -> Option<bool> {
        match &self.pending {
            _ if self.exposed => None,
            None => Some(self.copied),
            Some(pending) => pending.released().map(|copied| self.copied || copied),
        }
    }
}
