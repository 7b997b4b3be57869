//! Where the bytes of a file come from.

use std::ops::Range;

use crate::aside::Aside;
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

    /// Reads at `offset`; 0 at the end of the file.
    pub(super) fn read_at(self, buffer: &mut [u8], offset: u64) -> Result<usize, Error> {
        match self {
            Origin::File(file) => file.read_at(buffer, offset),
            Origin::Lease(lease, _) => lease.read_at(buffer, offset),
        }
    }

    /// The bytes that its lease has aside, for a send from `at` on.
    pub(super) fn aside(self, at: u64) -> Option<(&'a Aside, u64)> {
        match self {
            Origin::File(_) => None,
            Origin::Lease(lease, _) => Some((lease.aside(), at)),
        }
    }

    /// Whether a byte of `range` was overwritten under the lease.
    pub(super) fn is_overwritten(self, range: &Range<u64>) -> bool {
        matches!(self, Origin::Lease(lease, _) if lease.aside().has(range))
    }

    /// The properties of the file, as far as `range` is concerned.
    pub(super) fn extent(self, range: &Range<u64>) -> Result<Extent, Error> {
        match self {
            Origin::File(file) => file.extent(),
            Origin::Lease(lease, _) => lease.extent(range),
        }
    }
}
