//! Where the bytes of a file come from.

use std::ops::Range;

use crate::error::Error;
use crate::guard::Lease;
use crate::holder::Held;
use crate::source::{Extent, Source};

/// Where the bytes of a file come from.
#[derive(Clone, Copy)]
pub(crate) enum Origin<'a> {
    File(&'a Source),
    /// Under a lease, and what a send of it holds.
    Lease(&'a Lease, &'a Held),
}

impl<'a> Origin<'a> {
    pub(super) fn parts(self) -> (&'a Source, Option<&'a Held>) {
        match self {
            Origin::File(file) => (file, None),
            Origin::Lease(lease, held) => (lease.source(), Some(held)),
        }
    }

    /// Whether the pages of `range` must not outlive this process on their way.
    pub(super) fn is_guarded(self, range: &Range<u64>) -> bool {
        matches!(self, Origin::Lease(lease, _) if !lease.detaches(range))
    }

    /// The properties of the file, as far as `range` is concerned.
    pub(super) fn extent(self, range: &Range<u64>) -> Result<Extent, Error> {
        match self {
            Origin::File(file) => file.extent(),
            Origin::Lease(lease, _) => lease.extent(range),
        }
    }
}
