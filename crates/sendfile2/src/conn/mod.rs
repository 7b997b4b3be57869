//! A connection: one socket, its one ledger, and the lock under which ids are issued and reaped.
//!
//! A send and the issuing of its id happen under one lock, which reaping takes too: otherwise a
//! notification may be read before its id is recorded. No wait ever holds that lock. Values are
//! dropped, hooks called and waiters woken after it is unlocked.

mod connection;
mod cork;
mod eligible;
mod ids;
mod reap;
mod transmit;

pub use connection::ErrorQueueMessage;
pub(crate) use connection::{Config, Conn, Hook, LockedConn};
pub(crate) use transmit::{Outcome, Payload, SendOp};
