//! Ranges of bytes: sorted, disjoint, and none of them empty.

use std::ops::Range;

use smallvec::SmallVec;

/// The largest folio (page-cache unit) that truncating or punching may zero parts of.
pub(super) const FOLIO: u64 = 2 << 20;

/// The folios (the page cache's units, up to 2 MiB, aligned) that `range` touches: the range that a
/// writer must have to [punch a hole](super::Exclusive::punch_hole) there.
#[must_use]
pub fn folios(range: Range<u64>) -> Range<u64> {
    let end = range.end.checked_next_multiple_of(FOLIO).unwrap_or(u64::MAX);
    range.start / FOLIO * FOLIO..end
}

/// The ranges of a lease, in bytes of the file: one [`Range`], or several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranges(pub(super) SmallVec<[Range<u64>; 1]>);

impl FromIterator<Range<u64>> for Ranges {
    /// Sorts them, merges those that touch, and passes over the empty ones.
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(ranges: I) -> Self {
        let mut sorted: SmallVec<[Range<u64>; 1]> =
            ranges.into_iter().filter(|r| !r.is_empty()).collect();
        sorted.sort_unstable_by_key(|r| r.start);
        let mut merged: SmallVec<[Range<u64>; 1]> = SmallVec::new();
        for range in sorted {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        Ranges(merged)
    }
}

impl From<Range<u64>> for Ranges {
    fn from(range: Range<u64>) -> Self {
        Ranges(if range.is_empty() { SmallVec::new() } else { SmallVec::from_buf([range]) })
    }
}

impl From<&[Range<u64>]> for Ranges {
    fn from(ranges: &[Range<u64>]) -> Self {
        ranges.iter().cloned().collect()
    }
}

impl<const N: usize> From<[Range<u64>; N]> for Ranges {
    fn from(ranges: [Range<u64>; N]) -> Self {
        ranges.into_iter().collect()
    }
}
