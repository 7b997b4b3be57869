//! A send of all, as far as it got.

use crate::error::Error;
use crate::ticket::Ticket;

/// The result of a send of all.
#[derive(Debug)]
#[non_exhaustive]
pub struct Transfer {
    /// Bytes the kernel took.
    pub bytes: u64,
    /// The ticket of all of these bytes.
    pub ticket: Ticket,
}

/// A send of all that ended early: why, and how far it had got.
#[derive(Debug, thiserror::Error)]
#[error("stopped after {} bytes: {error}", transfer.bytes)]
#[non_exhaustive]
pub struct IncompleteSend {
    /// The reason.
    pub error: Error,
    /// The part that the kernel took.
    pub transfer: Transfer,
}

impl From<IncompleteSend> for Error {
    fn from(incomplete: IncompleteSend) -> Self {
        incomplete.error
    }
}

impl From<IncompleteSend> for std::io::Error {
    fn from(incomplete: IncompleteSend) -> Self {
        incomplete.error.into()
    }
}
