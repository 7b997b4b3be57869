//! Ranges of bytes that may overlap, each with a value; asked which of them overlap another.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;

use smallvec::SmallVec;

/// A plain `BTreeMap` by start. A query looks back by the longest range there is, which is enough
/// for leases: they are about as long as one another, and few at a time.
#[derive(Debug)]
pub(super) struct Intervals<T> {
    by_start: BTreeMap<(u64, u64), (u64, T)>,
    /// No range is longer. Exact again when the map has been empty.
    longest: u64,
}

impl<T> Default for Intervals<T> {
    fn default() -> Self {
        Intervals { by_start: BTreeMap::new(), longest: 0 }
    }
}

impl<T> Intervals<T> {
    /// Adds `range`, which must not be empty, under a key that tells it from others.
    pub(super) fn insert(&mut self, range: Range<u64>, key: u64, value: T) {
        self.longest = self.longest.max(range.end - range.start);
        self.by_start.insert((range.start, key), (range.end, value));
    }

    /// Removes what there is of `range` under `key`: all of it, or the pieces that are left.
    pub(super) fn remove(&mut self, range: &Range<u64>, key: u64) -> SmallVec<[Range<u64>; 1]> {
        let mut pieces = SmallVec::<[Range<u64>; 1]>::new();
        // Mostly it is whole.
        if let Entry::Occupied(first) = self.by_start.entry((range.start, key)) {
            pieces.push(range.start..first.remove().0);
        }
        if pieces.first().is_none_or(|first| first.end < range.end) {
            let rest = pieces.len();
            let ours = self.overlapping(range).filter(|(_, of, _)| *of == key);
            pieces.extend(ours.map(|(piece, ..)| piece));
            for piece in &pieces[rest..] {
                self.by_start.remove(&(piece.start, key));
            }
        }
        if self.by_start.is_empty() {
            self.longest = 0;
        }
        pieces
    }

    /// Those that share at least one byte with `range`.
    pub(super) fn overlapping(
        &self,
        range: &Range<u64>,
    ) -> impl Iterator<Item = (Range<u64>, u64, &T)> {
        let Range { start, end } = *range;
        let from = start.saturating_sub(self.longest);
        self.by_start
            .range((from, 0)..(end.max(from), 0))
            .filter(move |(_, (e, _))| *e > start && start < end)
            .map(|((s, key), (e, value))| (*s..*e, *key, value))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Range<u64>, u64, &T)> {
        self.by_start.iter().map(|((s, key), (e, value))| (*s..*e, *key, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Op {
        Insert(u64, u64),
        Remove(usize),
        Ask(u64, u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        // Small numbers meet, large ones overflow.
        let point = prop_oneof![0..50u64, (u64::MAX - 50)..=u64::MAX];
        prop_oneof![
            (point.clone(), 1..20u64).prop_map(|(s, l)| Op::Insert(s, s.saturating_add(l))),
            (0..8usize).prop_map(Op::Remove),
            (point.clone(), point).prop_map(|(a, b)| Op::Ask(a.min(b), a.max(b))),
        ]
    }

    /// Miri is slow.
    const OPS: usize = if cfg!(miri) { 20 } else { 200 };

    proptest! {
        #[test]
        fn like_a_list(ops in prop::collection::vec(op(), 1..OPS)) {
            let mut map = Intervals::default();
            let mut list: Vec<(Range<u64>, u64)> = Vec::new();
            for (key, op) in (0u64..).zip(ops) {
                match op {
                    Op::Insert(s, e) if s < e => {
                        map.insert(s..e, key, key);
                        list.push((s..e, key));
                    }
                    Op::Remove(i) if i < list.len() => {
                        let (range, key) = list.remove(i);
                        prop_assert_eq!(&map.remove(&range, key)[..], &[range]);
                    }
                    Op::Ask(s, e) => {
                        let mut got: Vec<u64> =
                            map.overlapping(&(s..e)).map(|(_, key, _)| key).collect();
                        let mut expected: Vec<u64> = list
                            .iter()
                            .filter(|(r, _)| r.start.max(s) < r.end.min(e))
                            .map(|(_, key)| *key)
                            .collect();
                        got.sort_unstable();
                        expected.sort_unstable();
                        prop_assert_eq!(got, expected);
                    }
                    _ => {}
                }
                prop_assert_eq!(map.iter().count(), list.len());
            }
        }
    }
}
