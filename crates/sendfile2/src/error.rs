//! The error types. A fault of the file, of the socket and of a kernel limit are told apart, and
//! would-block is not among them: it is a value.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::engine::Engine;
use crate::not_detached::NotDetached;
use crate::refusal::Refusal;
use crate::sys::errqueue::DecodeError;
use crate::sys::ledger::{NotIssued, WindowFull};
use crate::sys::op_table::Stray;

/// An error of this library.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be a source, or cannot be guarded, at all.
    #[error("{0}")]
    NotASource(Unsuitable),
    /// Opening the file failed.
    #[error("cannot open {}: {cause}", path.display())]
    Open {
        /// The file that was to be opened.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        cause: io::Error,
    },
    /// The file ends at byte `at`, before or at the first byte that was to be sent. Nothing of
    /// this call was sent.
    #[error("the file ends at byte {at}: there is nothing to send from byte {wanted} on")]
    Truncated {
        /// The size of the file, in bytes.
        at: u64,
        /// The file offset of the first byte that was wanted.
        wanted: u64,
    },
    /// Reading, writing or asking the file failed: a disk error, or a full disk, for example.
    #[error("{op} of the file failed at byte {offset}: {cause}")]
    File {
        /// The system call.
        op: &'static str,
        /// The file offset, in bytes.
        offset: u64,
        /// The operating system's error.
        #[source]
        cause: io::Error,
    },
    /// The socket failed: reset by the peer, not connected, shut down.
    #[error("{op} on the socket failed: {cause}")]
    Socket {
        /// The system call, or what was asked of the socket.
        op: &'static str,
        /// The operating system's error.
        #[source]
        cause: io::Error,
    },
    /// The engine that was asked for cannot serve this socket or this file. Nothing was sent.
    #[error("engine {engine} refused: {reason}")]
    Refused {
        /// The engine that was asked for.
        engine: Engine,
        /// The reason why it cannot.
        reason: Refusal,
    },
    /// The connection was aborted by this side. What was in flight stays held until its
    /// notifications arrive.
    #[error(
        "the connection was aborted by this side (by an abort, by a writer that would not wait \
         longer, or at a time limit): connect anew"
    )]
    Aborted,
    /// The lease was revoked: a writer has waited for it until its deadline. What it covered is being
    /// overwritten.
    #[error("the lease was revoked: a writer waited for it no longer")]
    Revoked,
    /// The deadline passed first. What was in flight is still in flight, and still held.
    #[error("the deadline passed: {0}")]
    Deadline(&'static str),
    /// Another sender owns this socket already, through a duplicate of the descriptor.
    #[error(
        "another sender owns this socket (cookie {cookie}): one socket has one ledger; use that \
         sender, or close it and let it drain"
    )]
    AlreadyOwned {
        /// `SO_COOKIE` of the socket.
        cookie: u64,
    },
    /// `SO_ZEROCOPY` was set before the socket was handed over, so zerocopy sends may have been
    /// made on it, and the next notification id is not known.
    #[error(
        "SO_ZEROCOPY is set on this socket already: say which notification id comes next \
         (Options::next_id; 0 if nothing was sent with MSG_ZEROCOPY yet)"
    )]
    NextIdUnknown,
    /// A range that the lease, or the exclusive range, does not cover.
    #[error(
        "bytes {}..{} are not covered by what was granted: lease, or queue for, all of them first",
        range.start, range.end
    )]
    NotLeased {
        /// The range, in bytes of the file.
        range: std::ops::Range<u64>,
    },
    /// Waiting for a lease while holding one could wait for ever.
    #[error(
        "a lease that this thread took is still in somebody's hands: lease all ranges of a \
         response at once, or use try_lease"
    )]
    HoldsLease,
    /// A writer would wait for a lease that its own thread holds.
    #[error("the range is leased by this very thread: drop the lease before writing")]
    OwnLease,
    /// A [`SendBuffer`](crate::SendBuffer), or a `tokio::Progress`, that another sender (maybe
    /// dropped since) has begun to send: to send all of it again, make a new one (of what
    /// `into_buffer` gives back).
    #[error("another sender has sent a part of this already: make a new SendBuffer or progress")]
    OtherSender,
    /// This belongs to the process that made it, which this one was forked from: its notifications
    /// and leases are that process's. Nothing was done.
    #[error(
        "this belongs to the process that made it, and this is a forked child of that: leave it to \
         the parent, and use here what is made here (a socket or a file that is opened anew)"
    )]
    Forked,
    /// A range that may be in flight without our knowing could not be detached. Nothing was written.
    #[error("the range may still be in flight, and cannot be detached: {0}")]
    NotDetached(#[source] Box<NotDetached>),
    /// The release of what was sent by `sendfile(2)` is never reported.
    #[error(
        "the release of what was sent by sendfile(2) is never reported: overwrite it at once, through \
         its GuardedFile, which detaches it"
    )]
    Exposed,
    /// The notification ids do not add up. Nothing more is released on this connection by guess.
    #[error(transparent)]
    NotIssued(#[from] NotIssued),
    /// A notification named bytes that the peer has not acknowledged, which TCP still needs: the
    /// kernel's count of ids and this sender's are not the same. Nothing more is released on this
    /// connection by guess.
    #[error(
        "the kernel reported notification ids {lo}..={hi} before the peer had acknowledged those bytes: \
         something else sends with MSG_ZEROCOPY on this socket, or it was in a BPF sockmap"
    )]
    TooEarly {
        /// `ee_info` of the notification.
        lo: u32,
        /// `ee_data` of the notification.
        hi: u32,
    },
    /// The oldest send in flight is 2³¹ ids behind.
    #[error(transparent)]
    WindowFull(#[from] WindowFull),
    /// The error queue held something that cannot be understood.
    #[error("the socket's error queue: {0}")]
    ErrorQueue(#[from] DecodeError),
    /// A ring completed what nobody had asked for. Nothing is released for it.
    #[error(transparent)]
    Stray(#[from] Stray),
    /// Making what a wait needs (an epoll descriptor and an eventfd a thread; a
    /// ring) failed.
    #[error("cannot wait: {op} failed: {cause}")]
    Wait {
        /// The system call.
        op: &'static str,
        /// The operating system's error.
        #[source]
        cause: io::Error,
    },
}

/// The reason why a file cannot be sent from, or cannot be guarded; its message tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsuitable {
    path: Option<PathBuf>,
    pub(crate) why: &'static str,
}

impl Unsuitable {
    /// The path of the file, where this library opened it.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }
}

impl fmt::Display for Unsuitable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "cannot use {}: {}", path.display(), self.why),
            None => write!(f, "cannot use this file: {}", self.why),
        }
    }
}

impl From<Error> for io::Error {
    /// The operating system's error where that is all there is to say; else one that contains
    /// this, of the kind of the operating system's error beneath, if there is one.
    fn from(error: Error) -> Self {
        match error {
            Error::Socket { cause, .. } => cause,
            Error::Open { .. }
            | Error::File { .. }
            | Error::Wait { .. }
            | Error::NotDetached(_) => {
                let kind = error.io_error().map_or(io::ErrorKind::Other, io::Error::kind);
                io::Error::new(kind, error)
            }
            Error::NotASource(_) => io::Error::new(io::ErrorKind::InvalidInput, error),
            Error::Deadline(_) => io::Error::new(io::ErrorKind::TimedOut, error),
            Error::Aborted => io::Error::new(io::ErrorKind::ConnectionAborted, error),
            Error::Truncated { .. } => io::Error::new(io::ErrorKind::UnexpectedEof, error),
            error => io::Error::other(error),
        }
    }
}

impl Error {
    pub(crate) fn socket(op: &'static str) -> impl FnOnce(rustix::io::Errno) -> Error {
        move |e| Error::Socket { op, cause: e.into() }
    }

    pub(crate) fn file(op: &'static str, offset: u64) -> impl FnOnce(rustix::io::Errno) -> Error {
        move |e| Error::File { op, offset, cause: e.into() }
    }

    pub(crate) fn wait(op: &'static str) -> impl FnOnce(rustix::io::Errno) -> Error {
        move |e| Error::Wait { op, cause: e.into() }
    }

    pub(crate) fn unsuitable(why: &'static str) -> Error {
        Error::NotASource(Unsuitable { path: None, why })
    }

    /// Says which file could not be opened, or used.
    pub(crate) fn of(self, path: &Path) -> Error {
        match self {
            Error::File { cause, .. } => Error::Open { path: path.into(), cause },
            Error::NotASource(unsuitable) => {
                Error::NotASource(Unsuitable { path: Some(path.into()), ..unsuitable })
            }
            error => error,
        }
    }

    /// The operating system's error beneath, where there is one.
    #[must_use]
    pub fn io_error(&self) -> Option<&io::Error> {
        match self {
            Error::Open { cause, .. }
            | Error::File { cause, .. }
            | Error::Socket { cause, .. }
            | Error::Wait { cause, .. } => Some(cause),
            Error::NotDetached(why) => why.io_error(),
            _ => None,
        }
    }
}
