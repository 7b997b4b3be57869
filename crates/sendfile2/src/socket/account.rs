//! The account of a socket: what was sent, what is in flight.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::sockopt;

use super::endpoint::Endpoint;
use super::kind::Kind;
use crate::error::Error;

/// The counters of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Bytes the kernel has accepted.
    pub accepted: u64,
    /// Zerocopy sends released.
    pub released: u64,
    /// The number of these whose notification said COPIED.
    pub copied: u64,
}

/// The account of what was sent on a socket, and what is in flight. It is kept under the lock of
/// whoever sends.
#[derive(Debug, Default)]
pub(crate) struct Account {
    pub(crate) counters: Counters,
    /// Bytes in flight.
    pub(crate) bytes: u64,
    /// This side has ended the connection at once.
    pub(crate) aborted: bool,
    /// The socket was given back to the application.
    pub(crate) retired: bool,
    /// Sends in flight whose pages must not outlive this process.
    guarded: usize,
    reset: ResetOnExit,
}

impl Account {
    /// Lets the exit of the process reset the connection, before a guarded send is made.
    pub(crate) fn guard(&mut self, endpoint: &Endpoint) -> Result<(), Error> {
        self.reset.arm(endpoint.socket(), endpoint.kind())
    }

    /// Takes that back where no guarded send is in flight.
    pub(crate) fn unguard(&mut self, endpoint: &Endpoint) {
        if self.guarded == 0 {
            self.reset.disarm(endpoint.socket());
        }
    }

    /// Notes that a send is in flight, whose bytes are added by [`Self::bytes`].
    pub(crate) fn begun(&mut self, guarded: bool) {
        self.guarded += usize::from(guarded);
    }

    /// Notes that a send of `bytes` is not in flight any more.
    pub(crate) fn ended(&mut self, bytes: u64, guarded: bool) {
        self.bytes -= bytes;
        self.guarded -= usize::from(guarded);
    }

    /// Notes that a zerocopy send was released.
    pub(crate) fn released(&mut self, copied: bool) {
        self.counters.released += 1;
        self.counters.copied += u64::from(copied);
    }

    /// Whether nothing that is asked of the kernel now means this connection.
    pub(crate) fn is_over(&self) -> bool {
        self.aborted || self.retired
    }
}

/// Lets the exit of the process reset a connection, by `SO_LINGER {1, 0}`.
#[derive(Debug, Default)]
struct ResetOnExit {
    /// The application's `SO_LINGER` while ours is set.
    theirs: Option<Option<Duration>>,
}

impl ResetOnExit {
    fn arm(&mut self, socket: &OwnedFd, kind: Kind) -> Result<(), Error> {
        if self.theirs.is_some() || kind != Kind::Tcp {
            return Ok(());
        }
        let theirs = sockopt::socket_linger(socket).map_err(Error::socket("SO_LINGER"))?;
        sockopt::set_socket_linger(socket, Some(Duration::ZERO))
            .map_err(Error::socket("SO_LINGER"))?;
        self.theirs = Some(theirs);
        Ok(())
    }

    fn disarm(&mut self, socket: &OwnedFd) {
        if let Some(theirs) = self.theirs.take() {
            // What the application has set meanwhile stays.
            if sockopt::socket_linger(socket) == Ok(Some(Duration::ZERO)) {
                // It succeeded before with the same arguments.
                let _ = sockopt::set_socket_linger(socket, theirs);
            }
        }
    }
}
