//! The bans in force, in memory.

use std::collections::HashMap;

use super::ban::Ban;
use super::index::Entry;
use super::key::Key;

/// The bans in force, each with its number: it bans what has a smaller one.
#[derive(Debug, Default)]
pub(super) struct Bans {
    keys: HashMap<Key, u64>,
    /// Those that have to be compared with the heads, in their order.
    others: Vec<(u64, Ban)>,
}

impl Bans {
    /// Adds a ban; one that says the same before is not needed any more.
    pub(super) fn add(&mut self, seq: u64, ban: Ban) {
        match ban {
            Ban::Key(key) => {
                self.keys.insert(key, seq);
            }
            Ban::All => {
                self.keys.clear();
                self.others = vec![(seq, Ban::All)];
            }
            ban => {
                self.others.retain(|(_, known)| *known != ban);
                self.others.push((seq, ban));
            }
        }
    }

    /// Drops those that can have nothing to ban, with all records' numbers at least `floor`.
    pub(super) fn expire(&mut self, floor: u64) {
        self.keys.retain(|_, seq| *seq > floor);
        self.others.retain(|(seq, _)| *seq > floor);
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len() + self.others.len()
    }

    /// Those in force, in their order.
    pub(super) fn list(&self) -> Vec<(u64, Ban)> {
        let keys = self.keys.iter().map(|(key, seq)| (*seq, Ban::Key(*key)));
        let mut list: Vec<_> = keys.chain(self.others.iter().cloned()).collect();
        list.sort_unstable_by_key(|(seq, _)| *seq);
        list
    }

    /// Whether an entry is banned whatever its head is.
    pub(super) fn ban_by_key(&self, key: &Key, seq: u64) -> bool {
        let all = |(banned, ban): &(u64, Ban)| *banned > seq && *ban == Ban::All;
        self.keys.get(key).is_some_and(|banned| *banned > seq) || self.others.iter().any(all)
    }

    /// Whether what was stored as number `seq`, with this head, is banned.
    pub(super) fn hit(&self, key: &Key, seq: u64, head: &[u8]) -> bool {
        let newer = self.others.iter().rev().take_while(|(banned, _)| *banned > seq);
        self.ban_by_key(key, seq) || newer.into_iter().any(|(_, ban)| ban.hits(key, head))
    }

    /// Whether an entry with this head is banned.
    pub(super) fn hit_entry(&self, entry: &Entry, head: &[u8]) -> bool {
        self.hit(&entry.key, entry.seq, head)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::head::Head;

    fn ban() -> impl Strategy<Value = Ban> {
        prop_oneof![
            (0..4u8).prop_map(|key| Ban::Key(Key::of(&[&[key]]))),
            "[ab]{0,2}".prop_map(Ban::Prefix),
            "[ab]".prop_map(Ban::Tag),
            Just(Ban::All),
        ]
    }

    proptest! {
        #[test]
        fn as_all_of_them_in_a_row(
            bans in prop::collection::vec(ban(), 0..12),
            (key, id, tags, seq) in (0..4u8, "[ab]{0,3}", "[ab]\n[ab]", 0..14u64),
            floor in 0..14u64,
        ) {
            let key = Key::of(&[&[key]]);
            let head = Head { id: &id, tags: &tags, rest: b"" }.encode();
            let mut set = Bans::default();
            for (at, ban) in bans.iter().enumerate() {
                set.add(at as u64 + 1, ban.clone());
            }
            let newer = bans.iter().enumerate().filter(|(at, _)| *at as u64 + 1 > seq);
            let banned = newer.into_iter().any(|(_, ban)| ban.hits(&key, &head));
            prop_assert_eq!(set.hit(&key, seq, &head), banned);
            let mut again = Bans::default();
            set.list().into_iter().for_each(|(seq, ban)| again.add(seq, ban));
            prop_assert_eq!(again.hit(&key, seq, &head), banned);
            set.expire(floor);
            if seq >= floor {
                prop_assert_eq!(set.hit(&key, seq, &head), banned);
            }
        }
    }
}
