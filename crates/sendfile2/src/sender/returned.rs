//! Giving a socket back.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;

use rustix::fs::OFlags;

use super::sender::Sender;
use crate::deadline::Deadline;
use crate::error::Error;

impl Sender {
    /// Waits until nothing is in flight and gives the socket back.
    ///
    /// # Errors
    /// [`IntoSocketError`], which has the sender, if something is still in flight at `deadline`,
    /// the next id is not known ([`Error::NotIssued`]; [`Error::Refused`] after a datagram send
    /// that may have used one), or the descriptor cannot be duplicated.
    pub fn into_socket(
        self,
        deadline: impl Into<Deadline>,
    ) -> Result<ReturnedSocket, IntoSocketError> {
        let deadline = deadline.into();
        if let Err(error) = self.drain(deadline) {
            return Err(IntoSocketError { error, sender: self });
        }
        // A duplicate, because a ticket that is being waited for may know the original a little
        // longer.
        let socket = match self.conn.as_fd().try_clone_to_owned() {
            Ok(socket) => socket,
            Err(cause) => {
                let error = Error::Socket { op: "dup", cause };
                return Err(IntoSocketError { error, sender: self });
            }
        };
        if self.made_nonblocking.load(Ordering::Relaxed) {
            let flags = rustix::fs::fcntl_getfl(&socket).map_err(Error::socket("fcntl"));
            let restored = flags.and_then(|flags| {
                rustix::fs::fcntl_setfl(&socket, flags - OFlags::NONBLOCK)
                    .map_err(Error::socket("fcntl"))
            });
            if let Err(error) = restored {
                return Err(IntoSocketError { error, sender: self });
            }
        }
        match self.conn.retire() {
            Ok(next_id) => Ok(ReturnedSocket { socket, next_id }),
            Err(error) => Err(IntoSocketError { error, sender: self }),
        }
    }
}

/// The socket of a [`Sender`] that is gone.
#[derive(Debug)]
#[non_exhaustive]
pub struct ReturnedSocket {
    /// The socket, of which nothing is in flight.
    pub socket: OwnedFd,
    /// The notification id that its next zerocopy send would get (see [`Options::next_id`](crate::Options::next_id)).
    pub next_id: u32,
}

/// A [`Sender`] that cannot give its socket back.
#[derive(Debug, thiserror::Error)]
#[error("the socket stays with its sender: {error}")]
#[non_exhaustive]
pub struct IntoSocketError {
    /// The reason.
    pub error: Error,
    /// The sender, which can still be used.
    pub sender: Sender,
}

impl From<IntoSocketError> for Error {
    fn from(failed: IntoSocketError) -> Self {
        failed.error
    }
}
