//! Asking whether a stored response is still right, and what follows from the answer (RFC 9111, 4.3).

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use super::date::parse_date;

/// The meaning of a response to a request for validation, for the stored one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validated {
    /// The stored one is right.
    Unchanged,
    /// A 304 about another response than the stored one.
    Another,
    /// A response that is to be used instead.
    Changed,
}

impl Validated {
    /// Judges a response by its status and fields.
    #[must_use]
    pub fn of(stored: &HeaderMap, status: StatusCode, new: &HeaderMap) -> Self {
        match status.as_u16() {
            304 => {
                let same = match (new.get(header::ETAG), stored.get(header::ETAG)) {
                    (Some(new), Some(old)) => opaque(new) == opaque(old),
                    (Some(_), None) => false,
                    (None, _) => true,
                };
                if same { Validated::Unchanged } else { Validated::Another }
            }
            _ => Validated::Changed,
        }
    }
}

/// An entity tag without the mark of a weak one.
fn opaque(tag: &HeaderValue) -> &[u8] {
    tag.as_bytes().strip_prefix(b"W/").unwrap_or(tag.as_bytes())
}

/// The conditions of a request, and its wish for a part: of the client's response, not of the
/// stored one.
const CONDITIONS: [HeaderName; 6] = [
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_UNMODIFIED_SINCE,
    header::IF_RANGE,
    header::RANGE,
];

/// Removes a client's conditions, and its wish for a part.
pub fn without_conditions(request: &mut HeaderMap) {
    for name in CONDITIONS {
        request.remove(name);
    }
}

/// Makes a request for validation of one for the response with these stored fields.
pub fn ask_if_changed(request: &mut HeaderMap, stored: &HeaderMap) {
    without_conditions(request);
    if let Some(tag) = stored.get(header::ETAG) {
        request.insert(header::IF_NONE_MATCH, tag.clone());
    }
    if let Some(date) = stored.get(header::LAST_MODIFIED).filter(|date| parse_date(date).is_some())
    {
        request.insert(header::IF_MODIFIED_SINCE, date.clone());
    }
}

/// The fields that are of the stored body, which an answer without one does not change.
const OF_BODY: [HeaderName; 4] = [
    header::CONTENT_LENGTH,
    header::CONTENT_ENCODING,
    header::CONTENT_RANGE,
    header::TRANSFER_ENCODING,
];

/// Puts the fields of a 304 (or of an answer to HEAD) into those of the stored response. A field of
/// several lines is replaced by all of its new lines.
pub fn merge(stored: &mut HeaderMap, new: &HeaderMap) {
    // It was the age of what was stored before.
    stored.remove(header::AGE);
    for name in new.keys().filter(|name| !OF_BODY.contains(name)) {
        stored.remove(name);
        for value in new.get_all(name) {
            stored.append(name, value.clone());
        }
    }
}

/// Whether an answer to HEAD is of the response that is stored (RFC 9111, 4.3.5).
#[must_use]
pub fn head_confirms(stored: &HeaderMap, new: &HeaderMap) -> bool {
    let same =
        |name: &HeaderName| new.get(name).is_none_or(|value| stored.get(name) == Some(value));
    [header::ETAG, header::LAST_MODIFIED, header::CONTENT_LENGTH, header::CONTENT_ENCODING]
        .iter()
        .all(same)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn map(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn answers_to_validations() {
        let tag = |value| [("etag", value)];
        for (stored, status, new, expected) in [
            (&tag("\"a\"")[..], 304, &[][..], Validated::Unchanged),
            (&tag("\"a\""), 304, &tag("\"a\"")[..], Validated::Unchanged),
            (&tag("W/\"a\""), 304, &tag("\"a\""), Validated::Unchanged),
            (&tag("\"a\""), 304, &tag("\"b\""), Validated::Another),
            (&[], 304, &tag("\"b\""), Validated::Another),
            (&[], 304, &[], Validated::Unchanged),
            (&[], 200, &[], Validated::Changed),
            (&[], 404, &[], Validated::Changed),
            (&[], 501, &[], Validated::Changed),
            (&[], 503, &[], Validated::Changed),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(
                Validated::of(&map(stored), status, &map(new)),
                expected,
                "{stored:?} {new:?}"
            );
        }
    }

    #[test]
    fn a_validation_asks_for_what_is_stored() {
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        let client = [
            ("if-none-match", "\"x\""),
            ("range", "bytes=0-1"),
            ("if-range", "\"x\""),
            ("if-match", "*"),
            ("accept", "a"),
        ];
        let ask = |stored: &[(&str, &str)]| {
            let mut request = map(&client);
            ask_if_changed(&mut request, &map(stored));
            request
        };
        let both = ask(&[("etag", "W/\"a\""), ("last-modified", date)]);
        let expected = [("accept", "a"), ("if-none-match", "W/\"a\""), ("if-modified-since", date)];
        assert_eq!(both, map(&expected));
        assert_eq!(ask(&[("last-modified", "yesterday")]), map(&[("accept", "a")]));
    }

    #[test]
    fn a_304_changes_all_but_the_body() {
        let mut stored = map(&[
            ("age", "9"),
            ("set-cookie", "a"),
            ("set-cookie", "b"),
            ("x", "1"),
            ("content-length", "5"),
            ("content-encoding", "gzip"),
            ("date", "old"),
        ]);
        let new = [
            ("set-cookie", "c"),
            ("set-cookie", "d"),
            ("date", "new"),
            ("content-length", "0"),
            ("content-encoding", "br"),
            ("content-range", "x"),
            ("y", "2"),
        ];
        merge(&mut stored, &map(&new));
        let expected = [
            ("x", "1"),
            ("content-length", "5"),
            ("content-encoding", "gzip"),
            ("set-cookie", "c"),
            ("set-cookie", "d"),
            ("date", "new"),
            ("y", "2"),
        ];
        assert_eq!(stored, map(&expected));
    }
}
