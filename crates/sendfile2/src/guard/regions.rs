//! The regions, of whole folios, that are written on disk at this moment.
//!
//! Detaching reads old bytes and writes them back, in whole blocks: what another writer put beside
//! its range in between would be lost. So a writer that detaches is alone in its regions, for as
//! long as that takes; ordinary writes go on beside one another. Nobody waits here for a peer, only
//! for the disk.

use std::ops::Range;
use std::sync::{Condvar, Mutex, PoisonError};

use crate::sync::lock;

#[derive(Debug, Default)]
pub(super) struct Regions {
    busy: Mutex<Busy>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct Busy {
    next: u64,
    /// Under a key of its own: the range, and whether its user is alone in it.
    ranges: Vec<(u64, Range<u64>, bool)>,
}

/// A range that is written; until it is dropped nobody detaches there.
#[must_use]
pub(super) struct Busied<'a> {
    regions: &'a Regions,
    key: u64,
}

impl Regions {
    /// Waits until the range can be written to beside others, or, `alone`, detached.
    pub(super) fn enter(&self, range: &Range<u64>, alone: bool) -> Busied<'_> {
        let overlap = |other: &Range<u64>| other.start.max(range.start) < other.end.min(range.end);
        let mut busy = lock(&self.busy);
        while busy.ranges.iter().any(|(_, other, theirs)| (alone || *theirs) && overlap(other)) {
            busy = self.freed.wait(busy).unwrap_or_else(PoisonError::into_inner);
        }
        busy.next += 1;
        let key = busy.next;
        busy.ranges.push((key, range.clone(), alone));
        Busied { regions: self, key }
    }
}

impl Drop for Busied<'_> {
    fn drop(&mut self) {
        lock(&self.regions.busy).ranges.retain(|(key, ..)| *key != self.key);
        self.regions.freed.notify_all();
    }
}
