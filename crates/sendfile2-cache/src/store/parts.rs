//! Responses that are larger than one record: they are stored in parts.
//!
//! Part `n` has the bytes of the body from `n` × [`Sizes::part`] on. It is stored like a response, by
//! a key of its own, which is made of the response's, of a number that no other fill has, and of
//! `n`: parts of one fill never pass for those of another. A head, stored last, names that number,
//! and the length. A response is there where its head is; nobody finds a part by itself.
//!
//! A head and all its parts are in the index, or no head: where one of the parts goes, since its
//! region is overwritten or was lost, the head goes, and with it the other parts. What is left of
//! these on the disk has no head when the store is opened, and is dropped then.

use super::index::Entry;
use super::key::{Key, State as Opaque};
use super::layout::{Role, Set, Sizes};
use super::state::State;

/// The key of a part.
pub(super) fn key_of(response: &Key, id: u64, part: u64) -> Key {
    Key::of(&[b"part", response.as_bytes(), &id.to_le_bytes(), &part.to_le_bytes()])
}

/// The state of each part: the response that it is of, and the number.
pub(super) fn state_of(response: &Key, id: u64) -> Opaque {
    let mut state = [0; 24];
    state[..16].copy_from_slice(response.as_bytes());
    state[16..].copy_from_slice(&id.to_le_bytes());
    state
}

fn owner(state: &Opaque) -> (Key, u64) {
    let (mut key, mut id) = ([0; 16], [0; 8]);
    key.copy_from_slice(&state[..16]);
    id.copy_from_slice(&state[16..]);
    (Key(key), u64::from_le_bytes(id))
}

impl Set {
    /// The keys of the parts, and the bytes that each has.
    fn parts(self, response: &Key, sizes: &Sizes) -> impl Iterator<Item = (Key, u32)> + use<> {
        let (key, part) = (*response, sizes.part());
        (0..self.total.div_ceil(u64::from(part))).map(move |n| {
            let left = self.total - n * u64::from(part);
            (key_of(&key, self.id, n), u32::try_from(left).map_or(part, |left| left.min(part)))
        })
    }
}

impl State {
    /// All parts of a response, if they are there.
    pub(super) fn parts_of(&self, response: &Key, set: Set) -> Option<Vec<Entry>> {
        let part = |(key, len)| {
            let part = self.index.get(&key).filter(|part| part.role == Role::Part);
            part.filter(|part| part.body_len == len).copied()
        };
        let parts: Option<Vec<_>> = set.parts(response, &self.sizes).map(part).collect();
        parts.filter(|parts| !parts.is_empty())
    }

    /// Puts a head in the place of what is older of its key. The parts stay if they are the same; of
    /// one that comes too late they go.
    pub(super) fn insert_head(&mut self, head: Entry, set: Set) -> bool {
        let same = self.sets.get(&head.key).is_some_and(|known| known.id == set.id);
        if self.index.get(&head.key).is_some_and(|known| known.seq >= head.seq) {
            if !same {
                self.remove_parts(&head.key, set);
            }
            return false;
        }
        if same {
            self.sets.remove(&head.key);
        }
        let newest = self.insert(head);
        self.sets.insert(head.key, set);
        newest
    }

    /// Removes what cannot be without an entry that is gone.
    pub(super) fn removed(&mut self, entry: &Entry) {
        match entry.role {
            Role::Whole => {}
            Role::Head => {
                if let Some(set) = self.sets.remove(&entry.key) {
                    self.remove_parts(&entry.key, set);
                }
            }
            Role::Part => {
                let (response, id) = owner(&entry.state);
                if self.sets.get(&response).is_some_and(|set| set.id == id) {
                    self.remove(&response);
                }
            }
        }
    }

    /// Removes the parts of a set without a head.
    pub(super) fn remove_parts(&mut self, response: &Key, set: Set) {
        for (part, _) in set.parts(response, &self.sizes) {
            self.take(&part);
        }
    }

    /// Removes heads that have not all of their parts, and of these parts those without a head.
    pub(super) fn remove_incomplete(&mut self, parts: &[Key]) {
        let lacks = |(key, set): (&Key, &Set)| self.parts_of(key, *set).is_none().then_some(*key);
        let heads: Vec<Key> = self.sets.iter().filter_map(lacks).collect();
        for head in &heads {
            self.remove(head);
        }
        for key in parts {
            let Some(part) = self.index.get(key) else { continue };
            let (response, id) = owner(&part.state);
            if self.sets.get(&response).is_none_or(|set| set.id != id) {
                self.take(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: Key, seq: u64, role: Role, state: Opaque, body_len: u32) -> Entry {
        Entry {
            key,
            state,
            seq,
            region: 0,
            record: 64,
            body_len,
            head_region: 0,
            head_at: 192,
            head_len: 0,
            role,
            hits: 0,
            verified: true,
        }
    }

    /// The newer of two fills of one key stays, whichever comes last.
    #[test]
    fn a_head_that_comes_too_late_leaves_no_part_behind() {
        let sizes = Sizes::of(64 << 20, 2 << 20);
        let Ok(sizes) = sizes else { panic!("{sizes:?}") };
        let response = Key::of(&[b"a"]);
        for newer_last in [true, false] {
            let mut state = State::new(sizes);
            let sets = [1, 2].map(|id| Set { id, total: u64::from(sizes.part()) + 10 });
            for set in sets {
                for (at, (part, len)) in set.parts(&response, &sizes).enumerate() {
                    let seq = 10 * set.id + at as u64;
                    let of = state_of(&response, set.id);
                    state.insert(entry(part, seq, Role::Part, of, len));
                }
            }
            let heads =
                sets.map(|set| (entry(response, 100 + set.id, Role::Head, [0; 24], 0), set));
            let order = if newer_last { [0, 1] } else { [1, 0] };
            let newest = order.map(|at| state.insert_head(heads[at].0, heads[at].1));
            assert_eq!(newest, [true, newer_last]);
            assert_eq!(state.sets.get(&response), Some(&sets[1]));
            assert_eq!(state.counters.bytes, sets[1].total, "the newer one is last: {newer_last}");
            assert!(state.parts_of(&response, sets[1]).is_some());
            state.remove(&response);
            assert_eq!((state.counters.bytes, state.index.len()), (0, 0));
        }
    }
}
