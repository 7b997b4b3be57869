//! [`GuardedFile`]: overwrite a file in place while parts of it are being sent.
//!
//! Between senders and writers stands one lease table for each file, however often it is opened. A
//! send under a [`Lease`] holds its ranges until the kernel has released them. A writer that meets
//! such a range [detaches](crate::detach) it, keeps aside a copy of what leases in hand have still to
//! send, and writes at once, where the file can be detached; else it waits until nothing holds the
//! range ([`Overwrite`]).
//!
//! ```no_run
//! use sendfile2::{SendFlags, Sender, guard::GuardedFile};
//! use std::time::Duration;
//!
//! # fn main() -> Result<(), sendfile2::Error> {
//! # let socket = std::net::TcpStream::connect("192.0.2.1:80").unwrap();
//! let slab = GuardedFile::open("slab")?;
//! let soon = Duration::from_secs(10);
//!
//! // One lease covers all of a response, before its first byte.
//! let lease = slab.lease([0..4096, 65_536..131_072], soon)?;
//! let mut sender = Sender::new(socket)?;
//! sender.send_lease(&lease, 0..4096, SendFlags::MORE, soon)?;
//! sender.send_lease(&lease, 65_536..131_072, SendFlags::NONE, soon)?;
//! drop(lease); // what is in flight stays leased
//!
//! // What is in flight keeps its pages; or this waits until the kernel has released them.
//! slab.write_at(&[0; 4096], 0, soon)?;
//! # Ok(())
//! # }
//! ```
//!
//! [`probe::detaches`](crate::probe::detaches) tells whether writers of a file detach, or wait, and
//! [`GuardedFile::counters`] how often they did.
//!
//! A program that polls queues a writer ([`GuardedFile::queue_writer`]) and watches its descriptor:
//! all that the waiting forms do can be done so.
//!
//! # What remains the application's problem
//! The table knows what goes through a `GuardedFile` of this process. It does not know of writers
//! that bypass it (another descriptor, an `mmap`, a disk's partition or a file's filesystem beside
//! the disk, an overlay beside its upper layer), of `truncate` by others (after which a leased
//! range that reached past the new end is sent up to the end of that page, with NULs, or not at
//! all), and of other processes, forked children among them ([there](crate#fork)). One lease must
//! cover all of a response: a lease for each part would let a writer in between, and mix
//! generations.
//!
//! Writers that detach read whole blocks of the filesystem and write them back. So write to a
//! guarded file through it only, also beside other ranges: in [`Exclusive::write_at`], which keeps
//! out of their way.
//!
//! The table dies with the process. Of a file that detaches, all that is in flight then stays as it
//! was sent, and whoever guards the file next detaches what it overwrites, since it takes the whole
//! file for exposed ([`GuardOptions::nothing_exposed`] says otherwise). Of other files, what was in
//! flight under a lease is reset with its connection, unless another process has the socket, too (a
//! forked child, for example): then the kernel goes on sending from the file, and a restarted
//! program that overwrites it changes what the peer receives. See
//! [`Options::reset_on_exit`](crate::Options::reset_on_exit).
//!
//! Overlap is by byte. A write that shares a page with a lease, but no byte, does not wait: the
//! kernel sends the leased bytes of the page only.

mod clear;
mod detaching;
mod erase;
mod exclusive;
mod exposed;
mod file;
mod in_hand;
mod intervals;
mod lease;
mod queue;
mod ranges;
mod regions;
mod table;
#[cfg(feature = "tokio")]
mod task;
mod write;
mod writer;

pub use detaching::Overwrite;
pub use exclusive::Exclusive;
pub use file::{GuardCounters, GuardOptions, GuardedFile};
#[cfg(feature = "uring")]
pub(crate) use in_hand::{Answered, QueuedLease};
pub use lease::{Lease, Leased};
pub use ranges::{Ranges, folios};
pub use write::TryWrite;
pub use writer::QueuedWriter;
