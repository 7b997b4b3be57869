//! Sends by `io_uring`: `IORING_OP_SEND_ZC` from the file's mapping (Linux 6.0).
//!
//! Such a send completes twice. Its *result* says what the kernel has accepted; its *notification*,
//! if the result announces one, that the kernel no longer references the file's pages.
//!
//! [`send_file_sync`] does it for one range, and returns when the file may be overwritten. A
//! [`Driver`] does it for many sends on many sockets, a system call for a batch of them:
//!
//! ```no_run
//! use sendfile2::{SendFlags, Source, uring::Driver};
//! use std::time::Duration;
//!
//! # fn main() -> Result<(), sendfile2::Error> {
//! # let accepted: Vec<std::net::TcpStream> = Vec::new();
//! let soon = Duration::from_secs(30);
//! let file = Source::open("segment")?;
//! let mut driver = Driver::new()?;
//! let mut sockets = Vec::new();
//! for stream in accepted {
//!     sockets.push(driver.add(stream)?);
//! }
//! let mut tickets = Vec::new();
//! for socket in &mut sockets {
//!     tickets.push(socket.queue_file(&file, 0..65_536, SendFlags::NONE)?); // queued
//! }
//! driver.wait(tickets.len(), soon)?; // submitted, all by one system call
//! for ticket in &tickets {
//!     ticket.wait_released(soon)?; // now the file may be overwritten
//! }
//! # Ok(())
//! # }
//! ```

mod available;
mod driver;
mod lane;
mod leftover;
mod part;
mod ring_conn;
mod shared;
mod socket;
mod state;
mod sync;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::os::fd::AsFd;

use crate::deadline::Deadline;
#[cfg(doc)]
use crate::error::Error;
use crate::progress::Release;
use crate::source::Source;
use crate::transfer::IncompleteSend;

pub use crate::refusal::UringUnavailable;
pub use driver::Driver;
pub use socket::Socket;

/// Sends `range` of the file, all of it, and returns when the kernel no longer references the
/// file's pages, so that they may be overwritten.
///
/// It waits for room in the socket, and for the peer's acknowledgements, since the kernel keeps the
/// pages until then (towards a peer on this host it copies them when it delivers). A peer that
/// stops reading withholds all that for ever, hence `deadline`.
///
/// The socket is borrowed, a connected stream socket, in blocking mode or not; nobody else must
/// send on it meanwhile. No SIGPIPE is raised. Before Linux 6.2 the kernel does not say whether it
/// copied, and [`Release::copied`] is `false`.
///
/// For many sends use a [`Driver`], which waits for all of them at once. To send under a
/// [lease](crate::guard::Lease) use that, too: this could not prolong a lease when the deadline
/// passes.
///
/// ```no_run
/// use sendfile2::{Source, uring::send_file_sync};
/// use std::time::Duration;
///
/// # fn main() -> Result<(), sendfile2::Error> {
/// # let socket = std::net::TcpStream::connect("192.0.2.1:80").unwrap();
/// let file = Source::open("segment")?;
/// let size = file.size()?;
/// send_file_sync(&socket, &file, 0..size, Duration::from_secs(30))?;
/// // Now the file may be overwritten.
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`IncompleteSend`], whose `transfer.ticket` tells whether the kernel has released what was sent;
/// where that is [`Status::Unknown`](crate::Status::Unknown), it may still send from the file,
/// which must not be overwritten, and only the [reaper](crate::reaper) knows when that ends. The
/// causes are [`Error::Deadline`]; [`Error::Truncated`] or [`Error::File`] where the file ends or
/// cannot be read; [`Error::Socket`]; [`Error::Refused`] where `io_uring` cannot be used, the
/// socket gives no notifications (EOPNOTSUPP: unix, kernel TLS), TCP may probe for a larger MTU
/// ([`Refusal::MtuProbing`](crate::Refusal::MtuProbing)), or the file is not mapped;
/// [`Error::Wait`].
///
/// # How
/// All of it:
/// ```ignore
#[doc = include_str!("sync.rs")]
/// ```
pub fn send_file_sync(
    socket: impl AsFd,
    file: &Source,
    range: Range<u64>,
    deadline: impl Into<Deadline>,
) -> Result<Release, IncompleteSend> {
    let deadline = deadline.into();
    sync::send_file_sync(socket, file, range, deadline)
}
