//! The sender: a socket that sends file ranges and buffers, and hands out tickets.
//!
//! `try_…` never blocks and decides nothing about waiting: what the kernel did is a value. The
//! blocking forms are a thin layer over them, each with a deadline.

mod attempt;
mod by_sendfile;
mod io;
mod options;
mod origin;
mod outcome;
mod returned;
#[expect(clippy::module_inception, reason = "the others are about it")]
mod sender;

pub use options::Options;
#[cfg(feature = "tokio")]
pub(crate) use origin::Origin;
pub use outcome::Sent;
pub use returned::{IntoSocketError, ReturnedSocket};
pub use sender::Sender;
