//! The head of a stored response, as far as the store has to read it: for bans.

/// A response's head in its parts. [`encode`](Self::encode) makes the block of bytes that
/// [`Store::begin`](super::Store::begin) takes and [`Hit::head`](super::Hit::head) gives back.
///
/// A block that was not made so is stored as well, but each ban by prefix or tag hits it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head<'a> {
    /// The primary key's text, which [`Ban::Prefix`](super::Ban::Prefix) is compared with.
    pub id: &'a str,
    /// The tags that [`Ban::Tag`](super::Ban::Tag) is compared with, one a line.
    pub tags: &'a str,
    /// The rest: status, headers, whatever the policy wants to have again.
    pub rest: &'a [u8],
}

impl<'a> Head<'a> {
    /// Makes one block of it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut block = Vec::with_capacity(8 + self.id.len() + self.tags.len() + self.rest.len());
        for text in [self.id, self.tags] {
            // A text of 4 GiB is no key of anything.
            let len = u32::try_from(text.len()).unwrap_or(u32::MAX);
            block.extend_from_slice(&len.to_le_bytes());
            block.extend_from_slice(text.as_bytes());
        }
        block.extend_from_slice(self.rest);
        block
    }

    /// The parts of such a block; `None` if it is none.
    #[must_use]
    pub fn parse(block: &'a [u8]) -> Option<Self> {
        let (id, block) = text(block)?;
        let (tags, rest) = text(block)?;
        Some(Head { id, tags, rest })
    }
}

fn text(block: &[u8]) -> Option<(&str, &[u8])> {
    let (len, block) = block.split_first_chunk()?;
    let len = usize::try_from(u32::from_le_bytes(*len)).ok()?;
    let (text, rest) = block.split_at_checked(len)?;
    Some((std::str::from_utf8(text).ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::Head;

    #[test]
    fn comes_back() {
        let head = Head { id: "http://a/b", tags: "x\ny", rest: b"\x00\xff" };
        assert_eq!(Head::parse(&head.encode()), Some(head));
        assert_eq!(Head::parse(b"\xff\xff\xff\xffabc"), None);
        assert_eq!(Head::parse(b""), None);
    }
}
