//! The head of a response, as it is stored, and the fields that are of one connection only.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use crate::store::Head;

/// A response's head, as it is stored.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The text of its key, for bans.
    pub id: String,
    /// The status that it was received with.
    pub status: StatusCode,
    /// Its fields, each line by itself.
    pub headers: HeaderMap,
}

impl Stored {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut rest = self.status.as_u16().to_le_bytes().to_vec();
        for (name, value) in &self.headers {
            for bytes in [name.as_str().as_bytes(), value.as_bytes()] {
                // No line is as long as 4 GiB.
                let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                rest.extend_from_slice(&len.to_le_bytes());
                rest.extend_from_slice(bytes);
            }
        }
        Head { id: &self.id, tags: &tags(&self.headers), rest: &rest }.encode()
    }

    /// Reads such bytes, which the values of its fields keep; `None` if they are none.
    #[must_use]
    pub fn parse(bytes: &Bytes) -> Option<Self> {
        let head = Head::parse(bytes)?;
        let (status, mut rest) = head.rest.split_first_chunk()?;
        let status = StatusCode::from_u16(u16::from_le_bytes(*status)).ok()?;
        // As many as most answers have with what is added to them.
        let mut headers = HeaderMap::with_capacity(16);
        let mut next = || {
            let (len, behind) = rest.split_first_chunk()?;
            let len = usize::try_from(u32::from_le_bytes(*len)).ok()?;
            let (bytes, behind) = behind.split_at_checked(len)?;
            rest = behind;
            Some(bytes)
        };
        while let Some(name) = next() {
            let name = HeaderName::from_bytes(name).ok()?;
            let value = HeaderValue::from_maybe_shared(bytes.slice_ref(next()?)).ok()?;
            headers.try_append(name, value).ok()?;
        }
        rest.is_empty().then_some(Stored { id: head.id.to_owned(), status, headers })
    }
}

/// The tags by which a response can be banned, one a line: of `Surrogate-Key`, with spaces between
/// them, and of `Cache-Tag`, with commas.
fn tags(headers: &HeaderMap) -> String {
    let mut tags = Vec::new();
    for (name, separators) in [("surrogate-key", &b" \t"[..]), ("cache-tag", b",")] {
        for line in headers.get_all(name) {
            // A byte that no text has hides no other tag of its line.
            let words = line.as_bytes().split(|byte| separators.contains(byte));
            let words = words.map(|word| String::from_utf8_lossy(word.trim_ascii()));
            tags.extend(words.filter(|word| !word.is_empty()));
        }
    }
    tags.join("\n")
}

/// Whether a field is of one connection, whether `Connection` names it or not.
fn is_of_connection(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authentication-info"
            | "proxy-authorization"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// Fields that `Connection` must not name (RFC 9110, 7.6.1), since they are for all: without them a
/// private answer would look like one that may be stored, or a request like another user's, or like
/// the proxy's own.
fn is_for_all(name: &HeaderName) -> bool {
    let name = name.as_str();
    [
        "cache-control",
        "cdn-cache-control",
        "vary",
        "host",
        "authorization",
        "expires",
        "date",
        "age",
    ]
    .contains(&name)
        || name == "forwarded"
        || name.starts_with("x-forwarded-")
        || name.starts_with("content-")
}

/// The fields that `Connection` names.
pub fn connection_fields(headers: &HeaderMap) -> impl Iterator<Item = HeaderName> + '_ {
    let lines = headers.get_all(header::CONNECTION).iter();
    let words = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    words.filter_map(|word| HeaderName::from_bytes(word.trim_ascii()).ok())
}

/// Removes the fields that are of one connection only.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named = connection_fields(headers).filter(|name| !is_for_all(name));
    let of_connection = headers.keys().filter(|name| is_of_connection(name));
    let names: Vec<_> = named.chain(of_connection.cloned()).collect();
    for name in names {
        headers.remove(name);
    }
}

/// Makes one field of the cookies that a client of HTTP/2 sends one by one (RFC 9113, 8.2.3).
pub fn join_cookies(headers: &mut HeaderMap) {
    let all: Vec<_> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if all.len() > 1 {
        // What is valid in each is valid in all.
        if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
            headers.insert(header::COOKIE, joined);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn heads_come_back_line_by_line() {
        let mut headers = HeaderMap::new();
        headers.append("set-cookie", HeaderValue::from_static("a=b"));
        headers.append("set-cookie", HeaderValue::from_static("c=d"));
        headers.append("etag", HeaderValue::from_bytes(b"\"\xfc\"").unwrap());
        headers.append("surrogate-key", HeaderValue::from_static("red  blue"));
        headers.append("cache-tag", HeaderValue::from_static("one, two,"));
        headers.append("empty", HeaderValue::from_static(""));
        let stored = Stored { id: "a/b".into(), status: StatusCode::NOT_FOUND, headers };
        let bytes = Bytes::from(stored.encode());
        assert_eq!(Head::parse(&bytes).unwrap().tags, "red\nblue\none\ntwo");
        let again = Stored::parse(&bytes).unwrap();
        assert_eq!(
            (again.id, again.status, again.headers),
            (stored.id, stored.status, stored.headers)
        );
        for end in 0..bytes.len() {
            let _ = Stored::parse(&bytes.slice(..end));
        }
        assert!(Stored::parse(&bytes.slice(..bytes.len() - 1)).is_none());
    }

    #[test]
    fn what_is_of_one_connection_goes_no_further() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "a, Cache-Control"),
            ("connection", "close,b"),
            ("keep-alive", "x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("a", "1"),
            ("b", "2"),
            ("c", "3"),
            ("cache-control", "private"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        strip_hop_by_hop(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["c", "cache-control"]);
    }
}
