//! Engines: the ways bytes travel, and which of them a send takes.

use std::fmt;
use std::str::FromStr;

use crate::refusal::Refusal;

/// The way bytes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Engine {
    /// `send(2)` from the file's mapping, or `pread(2)` and `send(2)`: the kernel copies once, and
    /// the range is released when the call returns. Needs nothing.
    Copy,
    /// `send(2)` with `MSG_ZEROCOPY` from the file's mapping: released when its notification
    /// arrives. Needs Linux 4.14 and a TCP or UDP socket.
    Zerocopy,
    /// `IORING_OP_SEND_ZC` from the file's mapping: released when its second completion arrives.
    /// Needs Linux 6.0, `io_uring`, and a stream socket. It has a front end of its own,
    /// [`uring::Driver`](crate::uring::Driver): a [`Sender`](crate::Sender) does not take it.
    Uring,
    /// The kernel module, or sendfile2(2) of a kernel with the patch series; either sends the pages
    /// of the page cache without a mapping and without charging `RLIMIT_MEMLOCK`: released when its
    /// notification arrives. Needs one of them (the module is taken where both are), and a TCP
    /// socket. It sends files; buffers go by `zerocopy`, or `copy` where that cannot serve them.
    Native,
    /// `sendfile(2)`, under a lease of a file that [detaches](crate::detach): the release is never
    /// reported, and need not be, since every overwrite of such a file detaches what may be in
    /// flight. Needs a stream socket, which is set to non-blocking mode. Buffers go by `copy`.
    Sendfile,
    /// `copy`, `zerocopy`, `native` or `sendfile`, whichever serves the send best.
    #[default]
    Auto,
}

impl Engine {
    /// All of them.
    pub const ALL: &'static [Engine] = &[
        Engine::Copy,
        Engine::Zerocopy,
        Engine::Uring,
        Engine::Native,
        Engine::Sendfile,
        Engine::Auto,
    ];

    /// The name of the engine, as [`FromStr`] reads it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Engine::Copy => "copy",
            Engine::Zerocopy => "zerocopy",
            Engine::Uring => "uring",
            Engine::Native => "native",
            Engine::Sendfile => "sendfile",
            Engine::Auto => "auto",
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The error of parsing a name that no engine has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no engine is called {0:?}: there are copy, zerocopy, uring, native, sendfile and auto")]
pub struct UnknownEngine(String);

impl FromStr for Engine {
    type Err = UnknownEngine;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Engine::ALL
            .iter()
            .copied()
            .find(|e| e.name() == name)
            .ok_or_else(|| UnknownEngine(name.into()))
    }
}

/// The bytes from which on pinning pages and reading a notification is cheaper than copying
/// (the kernel's documentation says "over around 10 KB").
pub(crate) const WORTH_A_NOTIFICATION: u64 = 16 << 10;

/// The engine that served a send, and the reason why it was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Choice {
    /// Every engine but [`Engine::Auto`].
    pub engine: Engine,
    /// The reason why it was taken.
    pub reason: Reason,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.engine, self.reason)
    }
}

/// The reason why an engine was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// The engine was asked for by name.
    Requested,
    /// The bytes were given as a slice, which is not held.
    Slice,
    /// `native` was asked for, which sends files, and this is a buffer.
    Buffer,
    /// Zerocopy cannot serve this send.
    Refused(Refusal),
    /// The peer is on this host, where the kernel copies a zerocopy send all the same.
    PeerOnThisHost,
    /// Most of the recent zerocopy sends came back COPIED.
    MostlyCopied,
    /// Most came back COPIED, but now and then it is tried again.
    TriedAgain,
    /// Too few bytes to be worth a notification.
    Small,
    /// Enough bytes to be worth a notification.
    Large,
    /// The file detaches, and many connections are sending: `sendfile(2)` costs less than copies
    /// that leave the processor's cache before they are read.
    ManyStreams,
    /// The kernel had no room for another zerocopy send (ENOBUFS) though nothing was in flight
    /// on this socket.
    Limit(Limit),
    /// The mapping faulted (the file was truncated, or a page could not be read), so the bytes
    /// that there are were read.
    Fault,
    /// A writer has overwritten bytes of it under the lease, which has the old ones
    /// [aside](crate::guard).
    KeptAside,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Requested => f.write_str("asked for"),
            Reason::Slice => f.write_str("a slice is not held"),
            Reason::Buffer => f.write_str("a buffer is no file"),
            Reason::Refused(reason) => write!(f, "zerocopy refused: {reason}"),
            Reason::PeerOnThisHost => f.write_str("the peer is on this host"),
            Reason::MostlyCopied => {
                f.write_str("most of the recent zerocopy sends came back COPIED")
            }
            Reason::TriedAgain => f.write_str("most came back COPIED; trying again"),
            Reason::Small => write!(f, "under {} bytes", WORTH_A_NOTIFICATION),
            Reason::Large => write!(f, "at least {} bytes", WORTH_A_NOTIFICATION),
            Reason::ManyStreams => f.write_str("many connections, and the file detaches"),
            Reason::Limit(limit) => write!(f, "{limit}"),
            Reason::Fault => f.write_str("the mapping faulted"),
            Reason::KeptAside => {
                f.write_str("the file was overwritten: the old bytes were kept aside")
            }
        }
    }
}

/// A kernel limit that stands in the way of a zerocopy send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Limit {
    /// ENOBUFS: `RLIMIT_MEMLOCK`, which is shared by all processes of the user, or
    /// `net.core.optmem_max`, a socket's own. The kernel does not say which.
    Buffers,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "ENOBUFS: RLIMIT_MEMLOCK (ulimit -l) or net.core.optmem_max is used up: raise it, or send \
             when more is released",
        )
    }
}
