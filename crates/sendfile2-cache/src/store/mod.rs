//! The store: responses in one file, which is overwritten in place while it is sent.
//!
//! The file has regions of 2 to 16 MiB. One is erased as a whole, which takes its folios out of the
//! page cache: packets in flight keep them, and of leases in hand the rest is kept aside. Then it is
//! filled by buffered writes, so that what was just stored is in the page cache. When it is full, and
//! its data is on disk, it gets a table, by which it is read when the store is opened; what was being
//! filled when the process ended is found by its records, which describe themselves.
//!
//! # What it promises
//! * [`Store::get`] gives what was stored under the key, or nothing: after `kill -9`, and after a
//!   power failure as far as the disk keeps what it has said it has. What another process wrote is
//!   compared with its checksums first.
//! * What was [banned](Store::ban) does not come back. [`Store::remove`] does not last that long.
//! * A file that is no store, or one of another version, is refused, and not touched.
//! * A [`Hit`] stays as it is, whatever becomes of its region, or ends with an error: what has been
//!   overwritten is kept in memory, 64 MiB of it at most. Whose bytes are neither there nor taken two
//!   seconds later is cut off, where most of the older regions are held so.
//!
//! # What it does not
//! * A response is no larger than a sixteenth of the store. One that does not fit into a region, or
//!   whose length is not known and which turns out to be large, is stored in parts of a quarter of a
//!   region: they go together, when the first of them is overwritten, also if it is asked for often.
//! * The last responses before a power failure may be gone: only bans are waited for.
//! * Where the disk fails to keep what it is given, the kernel tells so when it is asked next, when a
//!   region is full or something is banned. Until then what it has dropped from the page cache may be
//!   read again as it is on disk.

mod ban;
mod banlog;
mod bans;
mod bytes;
mod check;
mod core;
mod disk;
mod error;
mod evict;
mod fill;
mod filter;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod head;
mod hit;
mod index;
mod keeper;
mod key;
mod layout;
mod log;
mod options;
mod parts;
mod recover;
mod scan;
mod small;
mod state;
#[expect(clippy::module_inception, reason = "the type that the module is named after")]
mod store;

pub use ban::Ban;
pub use error::{MayWait, StoreError};
pub use fill::{Fill, FillReader};
pub use head::Head;
pub use hit::Hit;
pub use key::{Key, State};
pub use options::{Admission, Counters, Dropped, Opened, Options, RegionState};
pub use store::Store;

#[cfg(test)]
mod tests;
