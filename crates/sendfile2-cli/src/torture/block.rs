//! The oracle: blocks that say what they are, and the check of what arrived.
//!
//! Every block of 512 bytes holds its slot, its generation, its position in the slot, a payload
//! derived from these, and a checksum. A receiver knows which generation was announced and compares
//! every byte; the checksum distinguishes a whole block of another time or place from a torn one.

use serde::{Deserialize, Serialize};

/// Bytes of a block.
pub(super) const BLOCK: usize = 512;

const GENERATION: usize = 8;
const POSITION: usize = 16;
const PAYLOAD: usize = 24;
const CHECKSUM: usize = BLOCK - 4;

/// The identity that a block claims: its slot, generation and position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Label {
    pub(super) slot: u64,
    pub(super) generation: u64,
    /// The number of the block in its slot.
    pub(super) position: u64,
}

impl Label {
    /// Makes `block`, which is [`BLOCK`] bytes long, the block with this label.
    fn fill(self, block: &mut [u8]) {
        block[..GENERATION].copy_from_slice(&self.slot.to_le_bytes());
        block[GENERATION..POSITION].copy_from_slice(&self.generation.to_le_bytes());
        block[POSITION..PAYLOAD].copy_from_slice(&self.position.to_le_bytes());
        let mut state = mix(self.slot ^ mix(self.generation ^ mix(self.position)));
        for word in block[PAYLOAD..].chunks_exact_mut(8) {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            word.copy_from_slice(&mix(state).to_le_bytes());
        }
        let checksum = crc32fast::hash(&block[..CHECKSUM]);
        block[CHECKSUM..].copy_from_slice(&checksum.to_le_bytes());
    }

    /// Returns the label of a block, if its checksum agrees.
    pub(super) fn read(block: &[u8; BLOCK]) -> Option<Self> {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&block[at..at + 8]);
            u64::from_le_bytes(word)
        };
        let checksum = crc32fast::hash(&block[..CHECKSUM]);
        (block[CHECKSUM..] == checksum.to_le_bytes()).then(|| Label {
            slot: word(0),
            generation: word(GENERATION),
            position: word(POSITION),
        })
    }
}

/// The mixing function of `SplitMix64`.
pub(super) fn mix(n: u64) -> u64 {
    let z = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Fills `buffer`, a whole slot or the blocks of it from number `first` on.
pub(super) fn fill_blocks(buffer: &mut [u8], slot: u64, generation: u64, first: u64) {
    for (position, block) in (first..).zip(buffer.chunks_exact_mut(BLOCK)) {
        Label { slot, generation, position }.fill(block);
    }
}

/// A block, or the part of one that was received, that is not what was announced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Wrong {
    pub(super) announced: Label,
    pub(super) found: Found,
}

/// The bytes that were there instead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Found {
    /// A whole block, of another generation or from another place.
    Whole(Label),
    /// Something whose checksum is wrong. `from` is the first wrong byte in the block.
    Torn { from: usize },
    /// Only a part of the block was asked for or received. `from` as above.
    Part { from: usize },
}

/// Checks a range of a slot as it arrives.
#[derive(Debug)]
pub(super) struct Checker {
    slot: u64,
    generation: u64,
    /// The offset in the slot of the next byte.
    at: u64,
    end: u64,
    /// The block being received, from byte `from` on.
    block: [u8; BLOCK],
    from: usize,
}

impl Checker {
    /// Expects the bytes `start..end` of a slot.
    pub(super) fn new(slot: u64, generation: u64, start: u64, end: u64) -> Self {
        Checker { slot, generation, at: start, end, block: [0; BLOCK], from: offset(start) }
    }

    /// Bytes still to come.
    pub(super) fn remaining(&self) -> u64 {
        self.end - self.at
    }

    /// Takes the next bytes, at most [`remaining`](Self::remaining).
    pub(super) fn feed(&mut self, mut bytes: &[u8], wrong: &mut Vec<Wrong>) {
        while !bytes.is_empty() {
            let within = offset(self.at);
            let n = bytes.len().min(BLOCK - within);
            self.block[within..within + n].copy_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            self.at += n as u64;
            if within + n == BLOCK || self.at == self.end {
                self.judge(within + n, wrong);
                self.from = offset(self.at);
            }
        }
    }

    /// Ends the check, as nothing more comes: checks the part of a block that did.
    pub(super) fn cut(&mut self, wrong: &mut Vec<Wrong>) {
        let received = offset(self.at);
        if self.at < self.end && received > self.from {
            self.judge(received, wrong);
        }
        self.end = self.at;
    }

    /// Compares the block being received, up to its byte `to`.
    fn judge(&self, to: usize, wrong: &mut Vec<Wrong>) {
        let position = (self.at - 1) / BLOCK as u64;
        let announced = Label { slot: self.slot, generation: self.generation, position };
        let mut expected = [0; BLOCK];
        announced.fill(&mut expected);
        let range = self.from..to;
        if self.block[range.clone()] == expected[range.clone()] {
            return;
        }
        let differs = |i: &usize| self.block[*i] != expected[*i];
        let from = range.clone().find(differs).unwrap_or(self.from);
        let found = if range.len() < BLOCK {
            Found::Part { from }
        } else {
            Label::read(&self.block).map_or(Found::Torn { from }, Found::Whole)
        };
        wrong.push(Wrong { announced, found });
    }
}

/// The offset in its block.
fn offset(at: u64) -> usize {
    // Less than a block.
    usize::try_from(at % BLOCK as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: u64 = 3;
    const GENERATION: u64 = 7;

    fn slot(generation: u64) -> Vec<u8> {
        let mut buffer = vec![0; 8 * BLOCK];
        fill_blocks(&mut buffer, SLOT, generation, 0);
        buffer
    }

    /// Returns what the checker finds wrong in `bytes`, received in pieces of `piece`.
    fn check(bytes: &[u8], range: std::ops::Range<u64>, piece: usize) -> Vec<Wrong> {
        let mut checker = Checker::new(SLOT, GENERATION, range.start, range.end);
        let mut wrong = Vec::new();
        for piece in bytes.chunks(piece) {
            checker.feed(piece, &mut wrong);
        }
        checker.cut(&mut wrong);
        wrong
    }

    #[test]
    fn what_was_announced_is_right_in_any_range_and_any_pieces() {
        let slot = slot(GENERATION);
        for range in [0..8 * BLOCK, 100..200, 500..520, 511..513, 512..1024, 1..8 * BLOCK - 1] {
            for piece in [1, 7, 511, 512, 513, 4096] {
                let wide = range.start as u64..range.end as u64;
                assert_eq!(check(&slot[range.clone()], wide, piece), [], "{range:?} by {piece}");
            }
        }
    }

    #[test]
    fn one_wrong_bit_is_one_wrong_block_wherever_it_is() {
        let right = slot(GENERATION);
        for at in (0..right.len()).step_by(37).chain([511, 508, 512, right.len() - 1]) {
            let mut bytes = right.clone();
            bytes[at] ^= 1;
            for piece in [1, 100, 4096] {
                let wrong = check(&bytes, 0..8 * BLOCK as u64, piece);
                let [wrong] = &wrong[..] else { panic!("byte {at}: {wrong:?}") };
                assert_eq!(wrong.announced.position, (at / BLOCK) as u64);
                assert_eq!(wrong.found, Found::Torn { from: at % BLOCK });
            }
        }
    }

    #[test]
    fn another_generation_another_place_and_another_slot_are_wrong_and_named() {
        let mut bytes = slot(GENERATION);
        bytes[BLOCK..2 * BLOCK].copy_from_slice(&slot(8)[BLOCK..2 * BLOCK]);
        let (low, high) = (3 * BLOCK..4 * BLOCK, 5 * BLOCK);
        bytes.copy_within(low, high);
        fill_blocks(&mut bytes[6 * BLOCK..7 * BLOCK], 4, GENERATION, 6);
        let wrong = check(&bytes, 0..8 * BLOCK as u64, 1000);
        let found: Vec<_> = wrong.into_iter().map(|w| w.found).collect();
        let label = |slot, generation, position| Found::Whole(Label { slot, generation, position });
        assert_eq!(found, [label(3, 8, 1), label(3, 7, 3), label(4, 7, 6)]);
    }

    #[test]
    fn a_block_of_two_generations_is_torn() {
        let mut bytes = slot(GENERATION);
        bytes[256..BLOCK].copy_from_slice(&slot(8)[256..BLOCK]);
        let wrong = check(&bytes, 0..8 * BLOCK as u64, 4096);
        assert_eq!(wrong.len(), 1);
        assert_eq!(wrong[0].found, Found::Torn { from: 256 });
    }

    #[test]
    fn the_part_of_a_block_that_arrived_before_the_end_is_checked_too() {
        let new = slot(8);
        assert_eq!(check(&new[..100], 0..4096, 64).len(), 1);
        assert_eq!(check(&slot(GENERATION)[..100], 0..4096, 64), []);
        assert_eq!(check(&new[600..700], 600..700, 64)[0].found, Found::Part { from: 88 });
    }

    #[test]
    fn labels_are_read_back() {
        let mut block = [0; BLOCK];
        let label = Label { slot: 1, generation: 2, position: 3 };
        label.fill(&mut block);
        assert_eq!(Label::read(&block), Some(label));
        block[100] ^= 1;
        assert_eq!(Label::read(&block), None);
    }
}
