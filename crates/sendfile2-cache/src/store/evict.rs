//! Which region is overwritten next, and what of it is moved elsewhere before. Pure.

use super::index::Entry;
use super::layout::Role;

/// A region that may be overwritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) region: u32,
    /// The order in which they were taken.
    pub(super) generation: u64,
    /// The sum of min(hits, 3) × length.
    pub(super) useful: u64,
    /// Whether a lease of it is in somebody's hands.
    pub(super) leased: bool,
}

/// The region to be overwritten: of the oldest tenth the least useful of which nobody has a lease in
/// hand, or else the oldest such one of the older half. Only if there is none there, a leased one.
pub(super) fn choose(mut candidates: Vec<Candidate>) -> Option<u32> {
    candidates.sort_unstable_by_key(|c| c.generation);
    let oldest = candidates.iter().take(candidates.len().div_ceil(10));
    let best = oldest.min_by_key(|c| (c.leased, c.useful, c.generation))?;
    let mut older = candidates.iter().take(candidates.len().div_ceil(2));
    let other = if best.leased { older.find(|c| !c.leased) } else { None };
    Some(other.unwrap_or(best).region)
}

/// Those with hits, as many as fit into `room` bytes; what was hit most often first. What is in parts
/// is not moved: it goes as a whole, with the oldest of them.
pub(super) fn survivors(mut entries: Vec<Entry>, room: u64) -> Vec<Entry> {
    entries.retain(|e| e.hits > 0 && e.role == Role::Whole);
    entries.sort_unstable_by_key(|e| (std::cmp::Reverse(e.hits), e.seq));
    let mut left = room;
    entries.retain(|e| {
        let takes = u64::from(e.body_len) + u64::from(e.head_len);
        left.checked_sub(takes).inspect(|rest| left = *rest).is_some()
    });
    entries
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::key::Key;

    fn candidate() -> impl Strategy<Value = Candidate> {
        (0..1000u32, 0..1000u64, 0..5u64, any::<bool>()).prop_map(
            |(region, generation, useful, leased)| Candidate { region, generation, useful, leased },
        )
    }

    proptest! {
        #[test]
        fn the_least_useful_of_the_oldest_tenth(
            candidates in prop::collection::vec(candidate(), 0..100),
        ) {
            let chosen = choose(candidates.clone());
            prop_assert_eq!(chosen.is_some(), !candidates.is_empty());
            let Some(chosen) = chosen else { return Ok(()) };
            let sure_half = |c: &&Candidate| {
                candidates.iter().filter(|o| o.generation <= c.generation).count()
                    <= candidates.len().div_ceil(2)
            };
            let ranks = |c: &Candidate| {
                candidates.iter().filter(|o| o.generation < c.generation).count()
            };
            let oldest = |c: &&Candidate| ranks(c) < candidates.len().div_ceil(10);
            let older = |c: &&Candidate| ranks(c) < candidates.len().div_ceil(2);
            let of_it: Vec<_> = candidates.iter().filter(|c| c.region == chosen).collect();
            if candidates.iter().filter(oldest).all(|c| c.leased) {
                prop_assert!(of_it.iter().any(older), "it is among the older ones");
                let free = candidates.iter().filter(sure_half).any(|c| !c.leased);
                prop_assert!(!free || of_it.iter().any(|c| !c.leased), "nobody needs to be cut off");
                return Ok(());
            }
            prop_assert!(of_it.iter().any(oldest), "it is among the oldest");
            // Equal generations are not told apart here.
            let sure = |c: &&Candidate| {
                candidates.iter().filter(|o| o.generation <= c.generation).count()
                    <= candidates.len().div_ceil(10)
            };
            let best = candidates.iter().filter(sure).map(|c| (c.leased, c.useful)).min();
            let worth = of_it.iter().map(|c| (c.leased, c.useful)).min();
            prop_assert!(best.is_none() || worth <= best);
        }

        #[test]
        fn survivors_fit_and_have_hits(
            given in prop::collection::vec((0..5u8, 0..100u32), 0..50),
            room in 0..1000u64,
        ) {
            let entries = given.iter().enumerate().map(|(seq, (hits, body_len))| Entry {
                key: Key::of(&[&seq.to_le_bytes()]), state: [0; 24], seq: seq as u64, region: 0,
                record: 0, body_len: *body_len, head_region: 0, head_at: 0, head_len: 1,
                role: Role::Whole, hits: *hits, verified: true,
            });
            let kept = survivors(entries.collect(), room);
            prop_assert!(kept.iter().all(|e| e.hits > 0));
            prop_assert!(kept.iter().map(|e| u64::from(e.body_len) + 1).sum::<u64>() <= room);
            prop_assert!(kept.windows(2).all(|two| two[0].hits >= two[1].hits));
        }
    }
}
