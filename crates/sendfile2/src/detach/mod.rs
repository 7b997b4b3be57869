//! Detaching: taking a range's pages out of the page cache, with the proof that they are out.
//!
//! Pages that leave the page cache stay with the packets that refer to them, old bytes and all.
//! Whoever reads or writes the file afterwards gets new pages. So an overwrite after the proof
//! changes nothing that is in flight, whoever sent it: `sendfile(2)`, `splice(2)`, `MSG_ZEROCOPY`,
//! this process or another.
//!
//! A plain `O_DIRECT` write is **not** that: where the pages cannot be taken out, the kernel writes
//! to them in place and reports success. So here the *old* bytes are rewritten, which changes
//! nothing wherever they go; then the page cache is asked; and only then may new bytes be written.
//!
//! * [`Detacher::detach`] is for programs that keep senders out of the range meanwhile, as a
//!   [`GuardedFile`](crate::guard::GuardedFile) does: after it an ordinary write is safe.
//! * [`Detacher::overwrite`] is for files that others send while they please: it writes whole
//!   blocks by direct I/O that the kernel refuses while any of their pages is cached. Not for a file
//!   that this process guards: leases know nothing of it.
//! * [`Eraser::erase`] is for stores that are about to overwrite whole regions.
//!
//! ```no_run
//! use sendfile2::{Source, detach::Detacher};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let slab = Detacher::new(&Source::open("slab")?)?;
//! // A web server beside us may be sending these bytes.
//! slab.overwrite(&[0; 65_536], 131_072)?;
//! # Ok(())
//! # }
//! ```
//!
//! # What remains the application's problem
//! Others that write the same blocks at the same time lose what they write, since the old bytes are
//! read and written back. Programs that store through a shared mapping bring pages back, and are
//! mostly seen, as [`NotDetached::Cached`]. The memory of a detached page stays in use until the
//! packets are gone: up to 2 MiB (a folio) for each send, however short that was.
//!
//! Needs a filesystem with direct I/O (ext4, XFS, a block device; beneath overlayfs not for
//! [`Detacher::overwrite`]), or btrfs. On tmpfs there is only [`Eraser::erase`]. The project's `docs/detach.md` has what it was
//! tried on.

mod detacher;
mod eraser;
mod flag;
mod overwrite;
mod pages;
mod proof;
mod take_out;

pub use crate::not_detached::NotDetached;
pub use detacher::{Detached, Detacher};
pub use eraser::Eraser;
pub use overwrite::NotOverwritten;
pub use pages::REGION;
pub use proof::Proof;
