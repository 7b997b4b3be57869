//! Small bodies, which are read into memory with their heads, in one call.

use std::ops::Range;

use bytes::Bytes;

use super::core::Core;
use super::error::MayWait;
use super::hit::Hit;
use super::index::Entry;
use super::key::{Key, State as Opaque};
use super::layout::{Role, sums_len};

/// The longest of them, in bytes: as many as leave with a head in one call.
const SMALL: u32 = 16 << 10;

impl Core {
    /// As [`try_find`](Self::try_find); a small body is read with its head, and has no lease.
    pub(super) fn try_find_small(
        &self,
        key: &Key,
        fits: impl Fn(&Opaque) -> bool,
    ) -> Result<Option<Hit>, MayWait> {
        let known = self.state().index.get(key).filter(|entry| fits(&entry.state)).copied();
        let Some(entry) = known else { return Ok(None) };
        let (body, head) = (self.body_of(&entry), self.head_of(&entry));
        // A body that is whole is before its own head, with only its checksums between them.
        let together = entry.role == Role::Whole
            && entry.body_len <= SMALL
            && head.start == body.end + u64::from(sums_len(entry.body_len));
        if together {
            self.read_small(&entry, body.start..head.end)
        } else {
            Ok(self.try_find(key, fits)?.map(|(_, hit)| hit))
        }
    }

    /// Reads a small body, and the head behind it. A region is erased only when the index has nothing
    /// of it any more: what is there still, when it was read, was read as it was stored.
    pub(super) fn read_small(
        &self,
        entry: &Entry,
        range: Range<u64>,
    ) -> Result<Option<Hit>, MayWait> {
        if !entry.verified {
            return Err(MayWait);
        }
        let read = Bytes::from(self.disk.read_now(range).ok_or(MayWait)?);
        let head = read.slice(read.len() - entry.head_len as usize..);
        let small = Some(read.slice(..entry.body_len as usize));
        let mut state = self.state();
        if !state.found(entry, true) {
            return Err(MayWait);
        }
        if state.bans.hit_entry(entry, &head) {
            state.remove_entry(entry);
            return Ok(None);
        }
        state.counters.hits += 1;
        Ok(Some(Hit { state: entry.state, head, first: None, others: Vec::new(), small }))
    }
}
