//! Sends that are queued and go on by themselves: how far they have got, and why they ended early.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::io::Errno;

use crate::engine::{Choice, Engine, Limit, Reason};
use crate::error::Error;
use crate::progress::Pending;
use crate::refusal::Refusal;

/// The progress of a queued send, which its tickets and its driver share.
#[derive(Debug)]
pub(crate) struct QueuedProgress {
    /// Bytes that are to be sent.
    total: u64,
    choice: Choice,
    accepted: AtomicU64,
    /// Bytes that the socket had accepted after the last part.
    end: AtomicU64,
    /// The parts that the kernel has, or has released but not said so.
    pending: Pending,
    /// Nothing more of it will be sent.
    over: AtomicBool,
    failure: OnceLock<Failure>,
    limit: OnceLock<Limit>,
}

/// The reason why a send ended early.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Failure {
    Aborted,
    Socket { op: &'static str, errno: Errno },
    File { op: &'static str, offset: u64, errno: Errno },
    Truncated { at: u64, wanted: u64 },
    Unsuitable(&'static str),
    Refused(Refusal),
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

impl QueuedProgress {
    pub(crate) fn new(total: u64, choice: Choice) -> Arc<Self> {
        Arc::new(QueuedProgress {
            total,
            choice,
            accepted: AtomicU64::new(0),
            end: AtomicU64::new(0),
            pending: Pending::default(),
            over: AtomicBool::new(false),
            failure: OnceLock::new(),
            limit: OnceLock::new(),
        })
    }

    /// The progress of an operation that sends nothing.
    pub(crate) fn none() -> Arc<Self> {
        QueuedProgress::new(0, Choice { engine: Engine::Uring, reason: Reason::Requested })
    }

    /// The parts that are not released.
    pub(crate) fn pending(&self) -> &Pending {
        &self.pending
    }

    /// Notes that the kernel accepted `bytes`, after which it has accepted `end` of the socket's.
    pub(crate) fn accepted(&self, bytes: u64, end: u64) {
        self.end.store(end, Ordering::Relaxed);
        // Who sees all of it accepted sees the end of all of it.
        self.accepted.fetch_add(bytes, Ordering::Release);
    }

    /// Notes that a part is copied because of `limit`.
    pub(crate) fn limited(&self, limit: Limit) {
        let _ = self.limit.set(limit);
    }

    /// Notes that nothing more of it will be sent.
    pub(crate) fn finish(&self, failure: Option<Failure>) {
        if let Some(failure) = failure {
            let _ = self.failure.set(failure);
        }
        self.over.store(true, Ordering::Release);
    }

    /// Bytes accepted.
    pub(crate) fn bytes(&self) -> u64 {
        self.accepted.load(Ordering::Acquire)
    }

    /// Whether all of it was accepted.
    pub(crate) fn is_accepted(&self) -> bool {
        self.bytes() == self.total
    }

    /// Whether nothing more of it will be sent.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Bytes that the socket had accepted after the last part.
    pub(crate) fn end(&self) -> u64 {
        self.end.load(Ordering::Relaxed)
    }

    /// The choice by which it is sent.
    pub(crate) fn choice(&self) -> Choice {
        match self.limit.get() {
            Some(limit) => Choice { engine: Engine::Copy, reason: Reason::Limit(*limit) },
            None => self.choice,
        }
    }

    /// The reason why it ended early.
    pub(crate) fn failure(&self) -> Option<Failure> {
        self.failure.get().copied()
    }

    /// Returns whether any part was copied, once nothing more of it is sent and all is released.
    pub(crate) fn released(&self) -> Option<bool> {
        // In this order: after it is over, no part begins.
        self.is_over().then(|| self.pending.released()).flatten()
    }
}
