//! The names of stored responses.

use std::fmt;

/// The state that the policy keeps of a response; opaque to the store, in the index and on disk.
pub type State = [u8; 24];

/// A name of a stored response: a hash of its primary key, and of the values that its Vary names.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key(pub(super) [u8; 16]);

impl Key {
    /// Hashes these parts; other parts give another key, also where they are the same bytes in a
    /// row.
    #[must_use]
    pub fn of(parts: &[&[u8]]) -> Self {
        // In one row: a hasher that takes it in pieces costs more than a few short ones.
        let mut row = Vec::with_capacity(parts.iter().map(|part| 8 + part.len()).sum());
        for part in parts {
            row.extend_from_slice(&(part.len() as u64).to_le_bytes());
            row.extend_from_slice(part);
        }
        let mut key = [0; 16];
        key.copy_from_slice(&blake3::hash(&row).as_bytes()[..16]);
        Key(key)
    }

    /// The bytes of the hash.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::Key;

    #[test]
    fn parts_are_told_apart() {
        assert_ne!(Key::of(&[b"ab", b"c"]), Key::of(&[b"a", b"bc"]));
        assert_ne!(Key::of(&[b"a"]), Key::of(&[b"a", b""]));
        assert_eq!(Key::of(&[b"a", b"b"]), Key::of(&[b"a", b"b"]));
    }

    /// They are in stores that are there.
    #[test]
    fn keys_stay_what_they_are() {
        let mut hasher = blake3::Hasher::new();
        for part in [&b"example.org"[..], b"/a"] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        let mut bytes = [0; 16];
        hasher.finalize_xof().fill(&mut bytes);
        let key = Key::of(&[b"example.org", b"/a"]);
        assert_eq!(key, Key(bytes));
        assert_eq!(format!("{key:?}"), "455e15d2703fb0cc79e66a82d63a15bd");
    }
}
