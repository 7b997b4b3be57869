//! The answer to what a client knows of a file (RFC 9110, 13).

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use httpdate::{fmt_http_date, parse_http_date};
use rustix::fs::Stat;
use sendfile2::{Error, Source};

/// The first second of the year 10000, which a date of HTTP has no digits for: httpdate panics.
const YEAR_10000: Duration = Duration::from_secs(253_402_300_800);

/// The validators of what is answered: by them a client knows it again, and asks for a part of it,
/// or only for what has changed.
#[derive(Debug, Clone, Default)]
pub struct Validators {
    etag: Option<HeaderValue>,
    modified: Option<SystemTime>,
}

impl Validators {
    /// None: it cannot be known again.
    #[must_use]
    pub fn new() -> Self {
        Validators::default()
    }

    /// The file's own: its time and size, and what tells it from another one that has both: its
    /// number, and the time of its last change.
    ///
    /// # Errors
    /// The error of `fstat(2)`.
    pub fn of(file: &Source) -> Result<Self, Error> {
        let stat = rustix::fs::fstat(file);
        stat.map(|stat| Validators::of_stat(&stat)).map_err(|e| Error::File {
            op: "fstat",
            offset: 0,
            cause: e.into(),
        })
    }

    #[allow(clippy::unnecessary_cast, reason = "the types differ between architectures")]
    pub(crate) fn of_stat(stat: &Stat) -> Self {
        let modified = (stat.st_mtime as i64, stat.st_mtime_nsec as u64);
        let changed = (stat.st_ctime as i64, stat.st_ctime_nsec as u64);
        let ((m, n), (c, d)) = (modified, changed);
        let (len, inode) = (stat.st_size, stat.st_ino);
        let tag = format!("{m:x}.{n:x}-{c:x}.{d:x}-{len:x}-{inode:x}");
        let validators = Validators::new().etag(&tag);
        Validators { modified: time(modified), ..validators }
    }

    /// With a strong entity tag: the same for the same bytes, and never for others. It is without
    /// its quotation marks; one that has characters which a tag cannot have is none.
    #[must_use]
    pub fn etag(mut self, tag: &str) -> Self {
        let fits = |byte: u8| matches!(byte, b'!' | b'#'..=b'~' | 0x80..);
        let quoted = tag.bytes().all(fits).then(|| HeaderValue::try_from(format!("\"{tag}\"")));
        self.etag = quoted.and_then(Result::ok);
        self
    }

    /// With a weak entity tag: the same for what means the same. Else as [`etag`](Self::etag).
    #[must_use]
    pub fn weak_etag(self, tag: &str) -> Self {
        let strong = self.etag(tag);
        let weak = |tag: HeaderValue| HeaderValue::try_from([b"W/", tag.as_bytes()].concat()).ok();
        Validators { etag: strong.etag.and_then(weak), ..strong }
    }

    /// With the time of the last change. A time before 1970 or after 9999 is none: HTTP has no date
    /// for it.
    #[must_use]
    pub fn last_modified(mut self, time: SystemTime) -> Self {
        self.modified = time.duration_since(SystemTime::UNIX_EPOCH).ok().and_then(at);
        self
    }

    /// Puts them into the headers of an answer.
    pub(crate) fn tell(&self, headers: &mut HeaderMap) {
        let date = self.modified.map(fmt_http_date).and_then(|date| date.try_into().ok());
        for (name, value) in [(header::ETAG, self.etag.clone()), (header::LAST_MODIFIED, date)] {
            match value {
                Some(value) => drop(headers.insert(name, value)),
                None => drop(headers.remove(name)),
            }
        }
    }

    /// The answer to a GET or HEAD with these headers, if it is not the file: 304 or 412.
    pub(crate) fn precondition(&self, asked: &HeaderMap) -> Option<StatusCode> {
        let etag = self.etag.as_ref().map(HeaderValue::as_bytes);
        // One that is there twice is none (RFC 9110, 13.1.3 and 13.1.4).
        let since = |name| {
            let mut lines = asked.get_all(name).iter();
            let line = lines.next().filter(|_| lines.next().is_none())?;
            line.to_str().ok().and_then(|date| parse_http_date(date).ok())
        };
        // A date knows no parts of a second.
        let later = |than| self.modified.map(|modified| second(modified) > second(than));
        // A strong comparison.
        let strong = etag.filter(|tag| !tag.starts_with(b"W/"));
        let matches = match tags(asked, &header::IF_MATCH, |tag| strong == Some(tag)) {
            None => !since(header::IF_UNMODIFIED_SINCE).and_then(later).unwrap_or(false),
            Some(matches) => matches,
        };
        if !matches {
            return Some(StatusCode::PRECONDITION_FAILED);
        }
        // A weak comparison.
        let is = |tag: &[u8]| etag.map(opaque) == Some(opaque(tag));
        let same = match tags(asked, &header::IF_NONE_MATCH, is) {
            None => !since(header::IF_MODIFIED_SINCE).and_then(later).unwrap_or(true),
            Some(same) => same,
        };
        same.then_some(StatusCode::NOT_MODIFIED)
    }

    /// Whether a range is of what the client has a part of, as its `If-Range` says.
    pub(crate) fn in_range(&self, known: &HeaderValue, now: SystemTime) -> bool {
        // A strong comparison: the very tag, or the very date, which is a strong one only if
        // nothing can have changed since within its second (RFC 9110, 8.8.2.2).
        if self.etag.as_ref() == Some(known) {
            return !known.as_bytes().starts_with(b"W/");
        }
        let Some(modified) = self.modified else { return false };
        known == fmt_http_date(modified).as_str() && second(modified) < second(now)
    }
}

/// An entity tag without the mark of a weak one.
fn opaque(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// The second of a time since 1970.
fn second(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Whether a list of entity tags has one that is meant; `*` means any. `None` if there is no list.
fn tags(asked: &HeaderMap, name: &HeaderName, meant: impl Fn(&[u8]) -> bool) -> Option<bool> {
    let mut lists = asked.get_all(name).iter().peekable();
    lists.peek()?;
    Some(lists.any(|list| {
        // A comma within quotation marks belongs to the tag.
        let mut quoted = false;
        let mut tags = list.as_bytes().split(|byte| {
            quoted ^= *byte == b'"';
            *byte == b',' && !quoted
        });
        tags.any(|tag| matches!(tag.trim_ascii(), tag if tag == b"*" || meant(tag)))
    }))
}

/// A time in seconds and nanoseconds since 1970, if HTTP has a date for it.
pub(crate) fn time((seconds, nanos): (i64, u64)) -> Option<SystemTime> {
    let seconds = Duration::from_secs(u64::try_from(seconds).ok()?);
    at(seconds.saturating_add(Duration::from_nanos(nanos)))
}

fn at(since: Duration) -> Option<SystemTime> {
    (since < YEAR_10000).then(|| SystemTime::UNIX_EPOCH + since)
}

/// Whether a header is a condition, or asks for a part.
pub(crate) fn decides(name: &HeaderName) -> bool {
    *name == header::RANGE || name.as_str().starts_with("if-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_by_their_precedence() {
        let day = Duration::from_secs(86_400);
        let at = |days: u32| SystemTime::UNIX_EPOCH + day * days + Duration::from_millis(700);
        let known = Validators::new().etag("a,b").last_modified(at(10_000));
        let date = |days| fmt_http_date(at(days));
        let (same, before, after) = (date(10_000), date(9_999), date(10_001));
        let (fails, unchanged) =
            (Some(StatusCode::PRECONDITION_FAILED), Some(StatusCode::NOT_MODIFIED));
        let cases: [(&[(&str, &str)], _); 19] = [
            (&[], None),
            (&[("if-match", "\"a,b\"")], None),
            (&[("if-match", "\"x\" ,W/\"a b\", \"a,b\"")], None),
            (&[("if-match", "\"x\""), ("if-match", "\"a,b\"")], None),
            (&[("if-match", "*")], None),
            (&[("if-match", "W/\"a,b\"")], fails),
            (&[("if-match", "a,b")], fails),
            (&[("if-match", "")], fails),
            (&[("if-none-match", "W/\"a,b\"")], unchanged),
            (&[("if-none-match", "\"a\", \"b\"")], None),
            (&[("if-none-match", "*")], unchanged),
            (&[("if-none-match", "\"x y\"")], None),
            (&[("if-modified-since", &same)], unchanged),
            (&[("if-modified-since", &before)], None),
            (&[("if-modified-since", "tomorrow")], None),
            (&[("if-unmodified-since", &same)], None),
            (&[("if-unmodified-since", &before)], fails),
            // The tag decides where there is one.
            (&[("if-none-match", "\"x\""), ("if-modified-since", &after)], None),
            (&[("if-match", "\"a,b\""), ("if-unmodified-since", &before)], None),
        ];
        for (asked, status) in cases {
            let mut headers = HeaderMap::new();
            for (name, value) in asked {
                let (name, value) = (name.parse::<HeaderName>(), value.parse());
                headers.append(name.expect("a name"), value.expect("a value"));
            }
            assert_eq!(known.precondition(&headers), status, "{asked:?}");
        }
    }

    #[test]
    fn a_weak_tag_is_no_strong_one() {
        let known = Validators::new().weak_etag("a");
        let asks = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            known.precondition(&headers)
        };
        for tag in ["W/\"a\"", "\"a\""] {
            assert_eq!(asks("if-none-match", tag), Some(StatusCode::NOT_MODIFIED), "{tag}");
            assert_eq!(asks("if-match", tag), Some(StatusCode::PRECONDITION_FAILED), "{tag}");
            assert!(!known.in_range(&HeaderValue::from_static(tag), SystemTime::now()), "{tag}");
        }
        assert_eq!(asks("if-none-match", "W/\"b\""), None);
        let mut headers = HeaderMap::new();
        known.tell(&mut headers);
        assert_eq!(headers[header::ETAG], "W/\"a\"");
    }

    #[test]
    fn what_cannot_be_told_is_not() {
        let mut headers = HeaderMap::new();
        let late = SystemTime::UNIX_EPOCH + YEAR_10000;
        Validators::new().etag("a b").last_modified(late).tell(&mut headers);
        assert!(headers.is_empty(), "{headers:?}");
        Validators::new()
            .etag("a")
            .last_modified(late - Duration::from_nanos(1))
            .tell(&mut headers);
        assert_eq!(headers[header::LAST_MODIFIED], "Fri, 31 Dec 9999 23:59:59 GMT");
        assert_eq!(headers[header::ETAG], "\"a\"");
    }
}
