//! Parts of responses (206), and how they fit together (RFC 9111, 3.3 and 3.4).

use std::ops::Range;

use http::{HeaderMap, HeaderValue, header};

/// A part of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The bytes that it has.
    pub range: Range<u64>,
    /// The length of the whole.
    pub whole: u64,
}

impl Part {
    /// Reads the part that a 206 has: with one `Content-Range`, of a length that is known, which fits to
    /// `Content-Length`.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut lines = headers.get_all(header::CONTENT_RANGE).iter();
        let (Some(line), None) = (lines.next(), lines.next()) else { return None };
        let (unit, rest) = line.to_str().ok()?.split_once(' ')?;
        let (range, whole) = rest.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let [first, last, whole] = [first, last, whole].map(number);
        let (first, last, whole) = (first?, last?, whole?);
        let fits = unit.eq_ignore_ascii_case("bytes") && first <= last && last < whole;
        let part = Part { range: first..last.checked_add(1)?, whole };
        let len = headers.get(header::CONTENT_LENGTH);
        let as_long = len.is_none_or(|len| len.to_str().ok().and_then(number) == Some(part.len()));
        (fits && as_long).then_some(part)
    }

    /// The number of its bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// Whether it has all of these bytes of the whole.
    #[must_use]
    pub fn covers(&self, range: &Range<u64>) -> bool {
        self.range.start <= range.start && range.end <= self.range.end
    }

    /// Whether it is all of it.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.range == (0..self.whole)
    }
}

fn number(digits: &str) -> Option<u64> {
    let all = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    all.then(|| digits.parse().ok()).flatten()
}

/// The part that two make together, where they are of the same whole, and touch each other: `None`
/// if they do not, or if the new one adds nothing to the old.
#[must_use]
pub fn completes(old: &Part, new: &Part) -> Option<Part> {
    let touch = old.range.start <= new.range.end && new.range.start <= old.range.end;
    let range = old.range.start.min(new.range.start)..old.range.end.max(new.range.end);
    (old.whole == new.whole && touch && range != old.range)
        .then_some(Part { range, whole: old.whole })
}

/// The `Content-Range` of a part.
#[must_use]
pub fn content_range(part: &Part) -> HeaderValue {
    let Range { start, end } = part.range;
    let text = format!("bytes {start}-{}/{}", end.saturating_sub(1), part.whole);
    // Digits are valid in a header.
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Whether the entity tag of these headers is a strong one: the same for the same bytes only.
pub(super) fn strong_etag(headers: &HeaderMap) -> Option<&HeaderValue> {
    let mut lines = headers.get_all(header::ETAG).iter();
    match (lines.next(), lines.next()) {
        (Some(tag), None) => {
            let bytes = tag.as_bytes();
            let quoted = bytes.len() >= 2 && bytes.starts_with(b"\"") && bytes.ends_with(b"\"");
            quoted.then_some(tag)
        }
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read_where_their_lengths_fit() {
        let read = |range: &str, len: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_RANGE, range.parse().unwrap());
            if let Some(len) = len {
                headers.insert(header::CONTENT_LENGTH, len.parse().unwrap());
            }
            Part::of(&headers).map(|part| (part.range, part.whole))
        };
        assert_eq!(read("bytes 0-4/10", Some("5")), Some((0..5, 10)));
        assert_eq!(read("Bytes 4-9/10", None), Some((4..10, 10)));
        for (range, len) in [
            ("bytes 4-9/10", Some("5")),
            ("bytes 4-10/10", None),
            ("bytes 5-4/10", None),
            ("bytes 0-4/*", None),
            ("bytes */10", None),
            ("bytes 0-18446744073709551615/18446744073709551615", None),
            ("bytes 0-99999999999999999999/999999999999999999999", None),
            ("bytes +0-4/10", None),
            ("lines 0-4/10", None),
            ("bytes 0-4/10", Some("x")),
        ] {
            assert_eq!(read(range, len), None, "{range} {len:?}");
        }
    }

    #[test]
    fn parts_that_touch_make_a_larger_one() {
        let part = |range: Range<u64>| Part { range, whole: 10 };
        for (old, new, together) in [
            (0..5, 5..10, Some(0..10)),
            (5..10, 0..5, Some(0..10)),
            (2..5, 3..8, Some(2..8)),
            (2..5, 0..10, Some(0..10)),
            (0..5, 6..10, None),
            (0..10, 2..4, None),
            (2..5, 2..5, None),
        ] {
            let got = completes(&part(old.clone()), &part(new.clone())).map(|part| part.range);
            assert_eq!(got, together, "{old:?} {new:?}");
        }
        assert_eq!(completes(&part(0..5), &Part { range: 5..9, whole: 9 }), None);
        assert_eq!(content_range(&part(0..5)), "bytes 0-4/10");
    }
}
