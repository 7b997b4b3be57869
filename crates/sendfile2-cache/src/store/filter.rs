//! A small memory of what was asked for once.

use super::key::Key;

/// The number of keys that it remembers at most.
const PLACES: usize = 1 << 16;

/// Keys that were seen lately, by their hashes; a newer one drives out an older one.
#[derive(Debug, Default)]
pub(super) struct Filter(Vec<u32>);

impl Filter {
    /// Whether the key was seen before, as far as is remembered; from now on it was.
    pub(super) fn seen(&mut self, key: &Key) -> bool {
        self.0.resize(PLACES, 0);
        let [a, b, c, d, e, f, g, h, ..] = key.0;
        let place = &mut self.0[u32::from_le_bytes([a, b, c, d]) as usize % PLACES];
        let print = u32::from_le_bytes([e, f, g, h]) | 1;
        std::mem::replace(place, print) == print
    }
}
