//! Pages and parts of a range; pure.

use std::ops::Range;

/// How often a range is taken out of the page cache before that is given up.
pub(super) const TRIES: u32 = 8;

/// The largest folio of the page cache, where its pages have 4 KiB: erasing a region that is aligned
/// to it zeroes no part of one in place.
pub const REGION: u64 = 2 << 20;

/// The largest folio of the page cache here: what one entry of the table above the pages' maps.
pub(super) fn region() -> u64 {
    page() * (page() / size_of::<u64>() as u64)
}

/// Bytes taken out at a time.
const CHUNK: u64 = 1 << 20;

/// The parts of `range` that are taken out one after another.
pub(super) fn chunks(range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let Range { start, end } = *range;
    let next = |at: &u64| (at / CHUNK + 1).checked_mul(CHUNK);
    std::iter::successors(Some(start), next)
        .take_while(move |at| *at < end)
        .map(move |at| at..next(&at).map_or(end, |next| next.min(end)))
}

pub(super) fn page() -> u64 {
    rustix::param::page_size() as u64
}

/// The whole pages that `range` touches, cut at the end of the file.
pub(super) fn pages(range: &Range<u64>, size: u64) -> Range<u64> {
    if range.start >= range.end {
        return range.start..range.start;
    }
    range.start / page() * page()..range.end.next_multiple_of(page()).min(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_the_largest_folio() {
        assert!(page() != 4096 || region() == REGION);
        assert_eq!(region() % page(), 0);
    }

    #[test]
    fn pages_are_cut_at_the_end_of_the_file() {
        let p = page();
        for (range, size, expected) in [
            (0..0, 10 * p, 0..0),
            (0..1, 10 * p, 0..p),
            (p - 1..p + 1, 10 * p, 0..2 * p),
            (p..2 * p, 2 * p, p..2 * p),
            (p..2 * p - 10, 2 * p - 5, p..2 * p - 5),
            (3 * p..2 * p, 2 * p, 3 * p..3 * p),
        ] {
            assert_eq!(pages(&range, size), expected, "{range:?} of {size}");
        }
    }
}
