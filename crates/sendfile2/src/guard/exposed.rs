//! The ranges that are exposed: they may be in flight without anybody's knowing.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of bytes, kept as sorted ranges that do not touch.
#[derive(Debug, Default, Clone)]
pub(super) struct Exposed(BTreeMap<u64, u64>);

impl Exposed {
    pub(super) fn add(&mut self, range: &Range<u64>) {
        if range.is_empty() {
            return;
        }
        // Mostly it is in it already.
        let first = self.0.range(..=range.start).next_back();
        if first.is_some_and(|(_, end)| range.end <= *end) {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        // Those that touch it become one with it.
        while let Some((&s, &e)) = self.0.range(..=end).next_back() {
            if e < start {
                break;
            }
            self.0.remove(&s);
            start = start.min(s);
            end = end.max(e);
        }
        self.0.insert(start, end);
    }

    pub(super) fn remove(&mut self, range: &Range<u64>) {
        if range.is_empty() {
            return;
        }
        while let Some((&s, &e)) = self.0.range(..range.end).next_back() {
            if e <= range.start {
                break;
            }
            self.0.remove(&s);
            if range.end < e {
                self.0.insert(range.end, e);
            }
            if s < range.start {
                self.0.insert(s, range.start);
            }
        }
    }

    /// Whether any byte of `range` is in it.
    pub(super) fn overlaps(&self, range: &Range<u64>) -> bool {
        self.overlapping(range).next().is_some()
    }

    /// Those of its ranges that share a byte with `range`.
    pub(super) fn overlapping(&self, range: &Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let Range { start, end } = *range;
        let first = self.0.range(..=start).next_back().map_or(start, |(&first, _)| first);
        self.0
            .range(first..end.max(first))
            .map(|(&s, &e)| s..e)
            .filter(move |r| r.end > start && start < end)
    }

    /// The number of bytes in it.
    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.0.iter().map(|(&start, &end)| start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn like_a_list_of_bytes(
            ops in prop::collection::vec((any::<bool>(), 0..60u64, 0..20u64), 1..60),
            asked in prop::collection::vec((0..80u64, 0..20u64), 1..20),
        ) {
            let mut set = Exposed::default();
            let mut bytes = [false; 100];
            for (add, start, len) in ops {
                let range = start..start + len;
                if add { set.add(&range) } else { set.remove(&range) }
                for at in range {
                    bytes[usize::try_from(at).unwrap_or(0)] = add;
                }
            }
            let is = |at: u64| bytes[usize::try_from(at).unwrap_or(0)];
            for (start, len) in asked {
                let asked = start..start + len;
                prop_assert_eq!(set.overlaps(&asked), asked.clone().any(is));
                let meets = |r: &Range<u64>| asked.contains(&r.start) || r.contains(&start);
                let met: Vec<_> = set.iter().filter(|r| len > 0 && meets(r)).collect();
                prop_assert_eq!(set.overlapping(&asked).collect::<Vec<_>>(), met);
            }
            let ranges: Vec<_> = set.iter().collect();
            prop_assert!(ranges.windows(2).all(|two| two[0].end < two[1].start), "{ranges:?}");
            prop_assert!(ranges.iter().all(|range| !range.is_empty()));
            let all = ranges.iter().flat_map(Clone::clone).count();
            prop_assert_eq!(all, bytes.iter().filter(|b| **b).count());
            prop_assert_eq!(all as u64, set.bytes());
        }
    }
}
