//! Bans: what is not to be served any more.

use super::head::Head;
use super::key::Key;

/// A ban of what is stored now; what is stored afterwards is not touched by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ban {
    /// The response of this key.
    Key(Key),
    /// The responses whose [`Head::id`] begins with this text.
    Prefix(String),
    /// The responses that have this one among their [`Head::tags`].
    Tag(String),
    /// All of them.
    All,
}

impl Ban {
    /// Whether it bans the response of `key` with this head.
    pub(super) fn hits(&self, key: &Key, head: &[u8]) -> bool {
        let head = || Head::parse(head);
        match self {
            Ban::Key(banned) => banned == key,
            Ban::Prefix(prefix) => head().is_none_or(|head| head.id.starts_with(prefix.as_str())),
            Ban::Tag(tag) => head().is_none_or(|head| head.tags.split('\n').any(|t| t == tag)),
            Ban::All => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hits_what_it_names() {
        let key = Key::of(&[b"k"]);
        let head = Head { id: "http://a/b/c", tags: "red\nblue", rest: b"" }.encode();
        let hits = |ban: Ban| ban.hits(&key, &head);
        assert!(hits(Ban::Key(key)) && hits(Ban::All));
        assert!(hits(Ban::Prefix("http://a/b".into())) && !hits(Ban::Prefix("http://a/c".into())));
        assert!(hits(Ban::Tag("blue".into())) && !hits(Ban::Tag("blu".into())));
        assert!(Ban::Tag("blue".into()).hits(&key, b"not a head"));
        assert!(!hits(Ban::Key(Key::of(&[b"other"]))));
    }
}
