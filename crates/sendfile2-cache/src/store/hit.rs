//! A stored response that was found.

use std::ops::Range;

use bytes::Bytes;
use sendfile2::guard::Lease;

use super::key::State;

/// A stored response, which stays as it is while this is there. Where too many are held for too long,
/// and the store can take no other region, it is revoked: reading or sending it fails then.
#[derive(Debug, Clone)]
pub struct Hit {
    pub(super) state: State,
    pub(crate) head: Bytes,
    /// The parts of the body, where it was not read with the head.
    pub(super) first: Option<Part>,
    pub(super) others: Vec<Part>,
    /// The body, where it was.
    pub(crate) small: Option<Bytes>,
}

/// A part of a body: a lease of it, and where in the store's file it is.
pub(super) type Part = (Lease, Range<u64>);

impl Hit {
    /// The policy's state.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// The head, as it was stored.
    #[must_use]
    pub fn head(&self) -> Bytes {
        self.head.clone()
    }

    /// The length of the body, in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        let small = self.small.as_ref().map_or(0, |small| small.len() as u64);
        small + self.parts().map(|(_, at)| at.end - at.start).sum::<u64>()
    }

    /// Whether the body is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Leases that cover these bytes of the body, in their order, each with where in the store's file
    /// its own are: one, or several of a large body.
    #[must_use]
    pub fn leases(&self, within: Range<u64>) -> Vec<(Lease, Range<u64>)> {
        let mut from = 0;
        let parts = self.parts().filter_map(|(lease, at)| {
            let (before, behind) = (from, from + at.end - at.start);
            from = behind;
            let start = at.start + (within.start.clamp(before, behind) - before);
            let end = at.start + (within.end.clamp(before, behind) - before);
            (start < end).then(|| (lease.clone(), start..end))
        });
        parts.collect()
    }

    fn parts(&self) -> impl Iterator<Item = &Part> {
        self.first.iter().chain(&self.others)
    }
}
