//! The store: responses in one file, which is overwritten in place while it is sent.

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
mod head;
mod hit;
mod index;
mod keeper;
mod key;
mod layout;
mod log;
mod options;
mod recover;
mod scan;
mod state;
#[expect(clippy::module_inception, reason = "the type that the module is named after")]
mod store;

pub use ban::Ban;
pub use error::StoreError;
pub use fill::{Fill, FillReader};
pub use head::Head;
pub use hit::Hit;
pub use key::{Key, State};
pub use options::{Admission, Counters, Dropped, Opened, Options, RegionState};
pub use store::Store;

#[cfg(test)]
mod tests;
