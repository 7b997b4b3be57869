//! The outcome of a send.

use crate::engine::Limit;

/// The outcome of a non-blocking send.
#[derive(Debug)]
#[non_exhaustive]
pub enum Sent<T> {
    /// The kernel took `bytes` of it, maybe fewer than given: send the rest next. Fewer do not mean
    /// that the socket is full (a call is not given everything at once); only
    /// [`WouldBlock`](Self::WouldBlock) does.
    Accepted {
        /// Bytes taken.
        bytes: usize,
        /// The ticket of these bytes.
        ticket: T,
    },
    /// The socket buffer is full: try again when the socket is writable.
    WouldBlock,
    /// A kernel limit is in the way, and sends of this socket are in flight: try again when one
    /// of them is released.
    Limit(Limit),
}
