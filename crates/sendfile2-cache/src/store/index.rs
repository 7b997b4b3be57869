//! The index: what is stored, and where. At most 100 bytes a response.

use hashbrown::HashTable;

use super::key::{Key, State};
use super::layout::Role;

/// A stored response, or a part of one, or its head where it is in parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: Key,
    pub(super) state: State,
    /// The record's number, as on disk.
    pub(super) seq: u64,
    /// The region and the place of the record that has the body, right behind its header.
    pub(super) region: u32,
    pub(super) record: u32,
    pub(super) body_len: u32,
    /// The region and the place of the head.
    pub(super) head_region: u32,
    pub(super) head_at: u32,
    pub(super) head_len: u32,
    pub(super) role: Role,
    pub(super) hits: u8,
    /// Whether its bytes were compared with their checksums, or written by this process.
    pub(super) verified: bool,
}

/// Hits beyond these make a response no more useful.
pub(super) const MOST_HITS: u8 = 3;

impl Entry {
    pub(super) fn useful(&self) -> u64 {
        u64::from(self.hits.min(MOST_HITS)) * u64::from(self.body_len)
    }

    /// Whether it is the same record as another, whatever has become of it since.
    pub(super) fn is(&self, other: &Entry) -> bool {
        (self.key, self.seq) == (other.key, other.seq)
    }
}

/// Entries of one piece of memory: there is never more than one piece too much.
const PIECE: usize = 512;
const NONE: u32 = u32::MAX;

/// Entries by their keys. A slot is a number by which a region knows them.
#[derive(Debug, Default)]
pub(super) struct Index {
    table: HashTable<u32>,
    pieces: Vec<Vec<Entry>>,
    /// Slots that are free, each with the next one in its `record`.
    free: Option<u32>,
    len: usize,
}

fn hash(key: &Key) -> u64 {
    let (half, _) = key.0.split_first_chunk().unwrap_or((&[0; 8], &[]));
    u64::from_le_bytes(*half)
}

impl Index {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    fn find(&self, key: &Key) -> Option<u32> {
        self.table.find(hash(key), |slot| self.at(*slot).key == *key).copied()
    }

    /// The entry of a slot, which may have become another one's.
    pub(super) fn at(&self, slot: u32) -> &Entry {
        &self.pieces[slot as usize / PIECE][slot as usize % PIECE]
    }

    fn at_mut(&mut self, slot: u32) -> &mut Entry {
        &mut self.pieces[slot as usize / PIECE][slot as usize % PIECE]
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Entry> {
        self.find(key).map(|slot| self.at(slot))
    }

    pub(super) fn get_mut(&mut self, key: &Key) -> Option<&mut Entry> {
        self.find(key).map(|slot| self.at_mut(slot))
    }

    /// Adds an entry whose key is not there, and returns its slot.
    pub(super) fn insert(&mut self, entry: Entry) -> u32 {
        let slot = if let Some(slot) = self.free {
            let next = self.at(slot).record;
            self.free = (next != NONE).then_some(next);
            *self.at_mut(slot) = entry;
            slot
        } else {
            if self.pieces.last().is_none_or(|piece| piece.len() == PIECE) {
                self.pieces.push(Vec::with_capacity(PIECE));
            }
            let piece = self.pieces.len() - 1;
            self.pieces[piece].push(entry);
            // As many as there can be headers in 2^32 regions never are in memory.
            u32::try_from(piece * PIECE + self.pieces[piece].len() - 1).unwrap_or(NONE)
        };
        let Index { table, pieces, .. } = self;
        let rehash = |slot: &u32| hash(&pieces[*slot as usize / PIECE][*slot as usize % PIECE].key);
        table.insert_unique(hash(&entry.key), slot, rehash);
        self.len += 1;
        slot
    }

    pub(super) fn remove(&mut self, key: &Key) -> Option<Entry> {
        let pieces = &self.pieces;
        let is = |slot: &u32| pieces[*slot as usize / PIECE][*slot as usize % PIECE].key == *key;
        let (slot, _) = self.table.find_entry(hash(key), is).ok()?.remove();
        let entry = *self.at(slot);
        let next = self.free.unwrap_or(NONE);
        *self.at_mut(slot) = Entry { region: NONE, head_region: NONE, record: next, ..entry };
        self.free = Some(slot);
        self.len -= 1;
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn entry(key: u32, seq: u64) -> Entry {
        Entry {
            key: Key::of(&[&key.to_le_bytes()]),
            state: [0; 24],
            seq,
            region: 0,
            record: 64,
            body_len: 10,
            head_region: 0,
            head_at: 0,
            head_len: 0,
            role: Role::Whole,
            hits: 0,
            verified: true,
        }
    }

    proptest! {
        #[test]
        fn like_a_map(ops in prop::collection::vec((0..3u8, 0..20u32), 1..200)) {
            let (mut index, mut map) = (Index::default(), HashMap::new());
            for (seq, (op, key)) in ops.into_iter().enumerate() {
                let entry = entry(key, seq as u64);
                if op == 0 {
                    prop_assert_eq!(index.remove(&entry.key), map.remove(&key));
                } else {
                    index.remove(&entry.key);
                    let slot = index.insert(entry);
                    prop_assert_eq!(index.at(slot), &entry);
                    map.insert(key, entry);
                }
                prop_assert_eq!(index.len(), map.len());
                prop_assert!(map.values().all(|e| index.get(&e.key) == Some(e)));
            }
        }
    }

    #[test]
    fn an_entry_has_80_bytes() {
        assert_eq!(size_of::<Entry>(), 80);
    }
}
