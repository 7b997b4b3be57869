//! Kinds of sockets.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, ipproto, sockopt};

use crate::error::Error;
use crate::refusal::Refusal;

/// The kind of a socket, as far as sending goes by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Tcp,
    Udp,
    UnixStream,
    /// A unix socket with record boundaries.
    UnixRecords,
    /// A stream of a family this library knows nothing of.
    OtherStream,
    /// Anything else; a raw socket, whatever protocol its packets are of.
    OtherRecords,
}

impl Kind {
    pub(crate) fn of(socket: BorrowedFd<'_>) -> Result<Self, Error> {
        let ask = || -> Result<Kind, Errno> {
            let family = sockopt::socket_domain(socket)?;
            let kind = sockopt::socket_type(socket)?;
            let ip = family == AddressFamily::INET || family == AddressFamily::INET6;
            let protocol = if ip { sockopt::socket_protocol(socket)? } else { None };
            Ok(if kind == SocketType::STREAM && protocol == Some(ipproto::TCP) {
                Kind::Tcp
            } else if kind == SocketType::DGRAM && protocol == Some(ipproto::UDP) {
                Kind::Udp
            } else if family == AddressFamily::UNIX && kind == SocketType::STREAM {
                Kind::UnixStream
            } else if family == AddressFamily::UNIX {
                Kind::UnixRecords
            } else if kind == SocketType::STREAM {
                Kind::OtherStream
            } else {
                Kind::OtherRecords
            })
        };
        ask().map_err(Error::socket("getsockopt"))
    }

    /// Whether each send is a record of its own, which must not be split or merged.
    pub(crate) fn records(self) -> bool {
        matches!(self, Kind::Udp | Kind::UnixRecords | Kind::OtherRecords)
    }

    /// In words.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Tcp => "TCP",
            Kind::Udp => "UDP",
            Kind::UnixStream => "unix stream",
            Kind::UnixRecords => "unix, with record boundaries",
            Kind::OtherStream => "a stream of another family",
            Kind::OtherRecords => "another kind, with record boundaries",
        }
    }

    /// Whether sockets of this kind notify the release of what they send by reference.
    pub(crate) fn notifies(self) -> Result<(), Refusal> {
        match self {
            Kind::Tcp | Kind::Udp => Ok(()),
            Kind::UnixStream | Kind::UnixRecords => {
                Err(Refusal::Socket("a unix socket gives no notifications"))
            }
            Kind::OtherStream | Kind::OtherRecords => {
                Err(Refusal::Socket("only TCP and UDP sockets give notifications here"))
            }
        }
    }
}
