//! Engines: the ways bytes travel, and which of them a send takes.

pub(crate) mod auto;
pub(crate) mod copy;
pub(crate) mod native;
pub(crate) mod zerocopy;

use std::fmt;
use std::str::FromStr;

pub use native::Missing;

use crate::source::Unmappable;
use crate::uring::Unavailable;

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
    /// By the kernel module, or by sendfile2(2) of a kernel with the patch series, which send the
    /// pages of the page cache without a mapping and without charging `RLIMIT_MEMLOCK`: released
    /// when its notification arrives. Needs one of them (the module is taken where both are), and
    /// a TCP socket. It sends files; buffers go by `zerocopy`, or `copy` where that cannot serve them.
    Native,
    /// `copy`, `zerocopy` or `native`, whichever serves the send best.
    #[default]
    Auto,
}

impl Engine {
    /// All of them.
    pub const ALL: [Engine; 5] =
        [Engine::Copy, Engine::Zerocopy, Engine::Uring, Engine::Native, Engine::Auto];

    /// Its name, as [`FromStr`] reads it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Engine::Copy => "copy",
            Engine::Zerocopy => "zerocopy",
            Engine::Uring => "uring",
            Engine::Native => "native",
            Engine::Auto => "auto",
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// No engine has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no engine is called {0:?}: there are copy, zerocopy, uring, native and auto")]
pub struct UnknownEngine(String);

impl FromStr for Engine {
    type Err = UnknownEngine;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Engine::ALL.into_iter().find(|e| e.name() == name).ok_or_else(|| UnknownEngine(name.into()))
    }
}

/// Why an engine cannot serve a socket or a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// This kind of socket gives no completion notifications here.
    Socket(&'static str),
    /// The kernel refused a zerocopy send on this socket (EOPNOTSUPP): kernel TLS is on it. To
    /// `io_uring` and `native` it also says so of a socket that is, or was, in a BPF sockmap.
    NotSupported,
    /// `SO_ZEROCOPY` cannot be asked for or set, with this error number: where a seccomp filter forbids
    /// that, for example.
    ZerocopyOption(i32),
    /// The socket is, or was, in a BPF sockmap whose program is given what is sent: nobody knows how
    /// many notification ids a send uses there. The kernel says nothing of it to `zerocopy`.
    Sockmap,
    /// The application has switched `SO_ZEROCOPY` off: the kernel would copy, and never notify.
    SwitchedOff,
    /// `RLIMIT_MEMLOCK` allows no zerocopy send at all; the limit, in bytes.
    Memlock(u64),
    /// TCP may probe the path for larger packets, of which the kernel notifies too early:
    /// `net.ipv4.tcp_mtu_probing`, or `None` where it cannot be read.
    MtuProbing(Option<u8>),
    /// The socket is of another network namespace than the thread that sends (or that cannot be
    /// found out), which cannot read the `net.ipv4.tcp_mtu_probing` that TCP goes by.
    OtherNamespace,
    /// A datagram send failed in a way that may or may not have used an id, or the application's
    /// own sends ended in a panic.
    IdsUnsure,
    /// The file is not sent from a mapping.
    File(Unmappable),
    /// `io_uring` cannot be used.
    IoUring(Unavailable),
    /// A [`Sender`](crate::Sender) was asked for `uring`.
    Driver,
    /// The kernel has nothing to offer to `native`.
    Native(Missing),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Socket(why) => f.write_str(why),
            Refusal::NotSupported => f.write_str(
                "the kernel refuses zerocopy sends on this socket (kernel TLS or a sockmap?): take copy \
                 or auto",
            ),
            Refusal::ZerocopyOption(errno) => write!(
                f,
                "SO_ZEROCOPY cannot be set on the socket: {} (does a seccomp filter forbid it?)",
                std::io::Error::from_raw_os_error(*errno)
            ),
            Refusal::Sockmap => f.write_str(
                "the socket is or was in a BPF sockmap with an SK_MSG program (a service mesh?), where \
                 nobody knows how many notification ids a send uses",
            ),
            Refusal::SwitchedOff => f.write_str(
                "SO_ZEROCOPY was switched off on this socket: the kernel would copy, and never notify",
            ),
            Refusal::Memlock(limit) => write!(
                f,
                "RLIMIT_MEMLOCK is {limit} bytes, too few for any zerocopy send: raise it \
                 (ulimit -l, LimitMEMLOCK=)"
            ),
            Refusal::MtuProbing(Some(value)) => write!(
                f,
                "net.ipv4.tcp_mtu_probing is {value}: TCP may probe for a larger MTU, and the kernel \
                 would say that file pages are released while a probe still carries them; switch \
                 that off (sysctl -w net.ipv4.tcp_mtu_probing=0) and connect anew"
            ),
            Refusal::MtuProbing(None) => f.write_str(
                "net.ipv4.tcp_mtu_probing cannot be read (is /proc mounted, and has the process a \
                 descriptor left?); if it is not 0, the kernel says that file pages are released \
                 while it still sends them; mend that, or take copy or auto",
            ),
            Refusal::OtherNamespace => f.write_str(
                "the socket is of another network namespace than this thread (setns(2), or a socket \
                 that was handed over), whose net.ipv4.tcp_mtu_probing cannot be read from here; send \
                 from a thread of that namespace",
            ),
            Refusal::IdsUnsure => f.write_str(
                "a send failed (a datagram was dropped on its way out, or the application panicked), \
                 and nobody can say whether that used a notification id: take copy or auto, or a new \
                 socket",
            ),
            Refusal::File(why) => write!(f, "the file is not sent from a mapping: {why}"),
            Refusal::IoUring(why) => write!(f, "{why}"),
            Refusal::Native(why) => write!(f, "{why}"),
            Refusal::Driver => f.write_str(
                "a sender does not use io_uring, which has a front end of its own: uring::Driver",
            ),
        }
    }
}

/// Which engine served a send, and why it was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// [`Engine::Copy`], [`Engine::Zerocopy`], [`Engine::Uring`] or [`Engine::Native`].
    pub engine: Engine,
    /// Why.
    pub why: Why,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.engine, self.why)
    }
}

/// Why an engine was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Why {
    /// It was asked for by name.
    Asked,
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
    /// The kernel had no room for another zerocopy send (ENOBUFS) though nothing was in flight
    /// on this socket.
    Limit(Limit),
    /// The mapping faulted (the file was truncated, or a page could not be read), so the bytes
    /// that there are were read.
    Fault,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Asked => f.write_str("asked for"),
            Why::Slice => f.write_str("a slice is not held"),
            Why::Buffer => f.write_str("a buffer is no file"),
            Why::Refused(reason) => write!(f, "zerocopy refused: {reason}"),
            Why::PeerOnThisHost => f.write_str("the peer is on this host"),
            Why::MostlyCopied => f.write_str("most of the recent zerocopy sends came back COPIED"),
            Why::TriedAgain => f.write_str("most came back COPIED; trying again"),
            Why::Small => write!(f, "under {} bytes", auto::WORTH_A_NOTIFICATION),
            Why::Large => write!(f, "at least {} bytes", auto::WORTH_A_NOTIFICATION),
            Why::Limit(limit) => write!(f, "{limit}"),
            Why::Fault => f.write_str("the mapping faulted"),
        }
    }
}

/// A kernel limit that stands in the way of a zerocopy send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
