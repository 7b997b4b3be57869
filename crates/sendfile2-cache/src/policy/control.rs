//! The directives of `Cache-Control`, and of the field that is meant for caches like this one
//! (`CDN-Cache-Control`, RFC 9213).

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, header};
use sfv::{BareItem, Dictionary, ListEntry, Parser};

use super::freshness::MOST;

/// The directives of a response.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResponseControl {
    /// Whether nothing of it may be stored.
    pub no_store: bool,
    /// Whether it must be validated before each use.
    pub no_cache: bool,
    /// Whether it is for one user only.
    pub private: bool,
    /// Whether it may be stored though something else says that it might not.
    pub public: bool,
    /// Whether it must not be used when it is stale: `must-revalidate` or `proxy-revalidate`.
    pub must_revalidate: bool,
    /// Whether it may be stored only by those who understand its status, and then whatever
    /// [`no_store`](Self::no_store) says.
    pub must_understand: bool,
    /// Whether it does not change while it is fresh (RFC 8246).
    pub immutable: bool,
    /// The seconds for which it is fresh.
    pub max_age: Option<u32>,
    /// As [`max_age`](Self::max_age), for shared caches.
    pub s_maxage: Option<u32>,
    /// The seconds for which it may be used stale while it is being validated (RFC 5861).
    pub stale_while_revalidate: Option<u32>,
    /// The seconds for which it may be used stale in place of an error (RFC 5861).
    pub stale_if_error: Option<u32>,
    /// Whether these are of the field for this kind of cache, in whose presence `Cache-Control` and
    /// `Expires` say nothing.
    pub targeted: bool,
}

/// The directives of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequestControl {
    /// Whether the answer is to be validated.
    pub no_cache: bool,
    /// Whether nothing of the answer is to be stored.
    pub no_store: bool,
    /// Whether nothing but what is stored is wanted.
    pub only_if_cached: bool,
    /// The greatest age that the answer may have.
    pub max_age: Option<u32>,
    /// The seconds for which the answer may be stale; without an argument all.
    pub max_stale: Option<u32>,
    /// The seconds for which the answer must be fresh still.
    pub min_fresh: Option<u32>,
    /// The seconds for which a stale answer is taken in place of an error (RFC 5861).
    pub stale_if_error: Option<u32>,
}

impl ResponseControl {
    /// Reads those of a response.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        targeted(headers).unwrap_or_else(|| {
            let mut control = ResponseControl::default();
            each(headers, &header::CACHE_CONTROL, |name, argument| {
                control.take(name, || seconds(argument));
            });
            control
        })
    }

    fn take(&mut self, name: &[u8], seconds: impl Fn() -> u32) {
        let known = |n: &str| name.eq_ignore_ascii_case(n.as_bytes());
        // Of several the least counts.
        let least = |slot: &mut Option<u32>| {
            let seconds = seconds();
            *slot = Some(slot.map_or(seconds, |before| before.min(seconds)));
        };
        match () {
            // With field names they are taken as without.
            () if known("no-store") => self.no_store = true,
            () if known("no-cache") => self.no_cache = true,
            () if known("private") => self.private = true,
            () if known("public") => self.public = true,
            () if known("must-revalidate") || known("proxy-revalidate") => {
                self.must_revalidate = true;
            }
            () if known("must-understand") => self.must_understand = true,
            () if known("immutable") => self.immutable = true,
            () if known("max-age") => least(&mut self.max_age),
            () if known("s-maxage") => least(&mut self.s_maxage),
            () if known("stale-while-revalidate") => least(&mut self.stale_while_revalidate),
            () if known("stale-if-error") => least(&mut self.stale_if_error),
            () => {}
        }
    }
}

impl RequestControl {
    /// Reads those of a request.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        let mut control = RequestControl::default();
        each(headers, &header::CACHE_CONTROL, |name, argument| {
            let known = |n: &str| name.eq_ignore_ascii_case(n.as_bytes());
            match () {
                () if known("no-cache") => control.no_cache = true,
                () if known("no-store") => control.no_store = true,
                () if known("only-if-cached") => control.only_if_cached = true,
                () if known("max-age") => control.max_age = Some(seconds(argument)),
                () if known("max-stale") => {
                    control.max_stale = Some(argument.map_or(MOST, |a| seconds(Some(a))));
                }
                // What cannot be read asks for more than there is.
                () if known("min-fresh") => {
                    control.min_fresh = Some(number(argument).unwrap_or(MOST));
                }
                () if known("stale-if-error") => control.stale_if_error = Some(seconds(argument)),
                () => {}
            }
        });
        let pragma = || {
            let lines = headers.get_all(header::PRAGMA).iter();
            lines
                .flat_map(|line| line.as_bytes().split(|b| *b == b','))
                .any(|word| word.trim_ascii().eq_ignore_ascii_case(b"no-cache"))
        };
        if !headers.contains_key(header::CACHE_CONTROL) && pragma() {
            control.no_cache = true;
        }
        control
    }
}

/// The seconds of an argument; none, or one that cannot be read, is as good as expired.
fn seconds(argument: Option<&[u8]>) -> u32 {
    number(argument).unwrap_or(0)
}

fn number(argument: Option<&[u8]>) -> Option<u32> {
    let digits = argument.filter(|a| !a.is_empty() && a.iter().all(u8::is_ascii_digit))?;
    Some(digits.iter().fold(0, |n: u32, digit| {
        n.saturating_mul(10).saturating_add(u32::from(digit - b'0')).min(MOST)
    }))
}

/// Calls `take` with each directive of all lines: its name and its argument, without quotation
/// marks.
fn each(headers: &HeaderMap, name: &HeaderName, mut take: impl FnMut(&[u8], Option<&[u8]>)) {
    for line in headers.get_all(name) {
        let mut rest = line.as_bytes();
        while !rest.is_empty() {
            let (directive, behind) = next(rest);
            rest = behind;
            let (name, argument) = match directive.iter().position(|byte| *byte == b'=') {
                Some(at) => (&directive[..at], Some(&directive[at + 1..])),
                None => (directive, None),
            };
            // Nobody else has a name with a space before the sign; what restricts is to be seen.
            let argument = argument.map(unquoted);
            take(name.trim_ascii(), argument.as_deref());
        }
    }
}

/// The next element of a list, and what is behind its comma. A comma within quotation marks belongs
/// to the element; a mark that is not closed is an ordinary character, so that it hides nothing.
fn next(list: &[u8]) -> (&[u8], &[u8]) {
    let mut at = 0;
    while at < list.len() {
        match list[at] {
            b',' => return (list[..at].trim_ascii(), &list[at + 1..]),
            b'"' => at = closing(list, at).unwrap_or(at) + 1,
            _ => at += 1,
        }
    }
    (list.trim_ascii(), &[])
}

/// Where the quotation mark at `at` is closed.
fn closing(list: &[u8], at: usize) -> Option<usize> {
    let mut at = at + 1;
    loop {
        match list.get(at)? {
            b'"' => return Some(at),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

fn unquoted(argument: &[u8]) -> Cow<'_, [u8]> {
    let Some(inner) = argument.strip_prefix(b"\"").and_then(|a| a.strip_suffix(b"\"")) else {
        return Cow::Borrowed(argument);
    };
    let mut escaped = false;
    let plain = inner.iter().copied().filter(|byte| {
        escaped = *byte == b'\\' && !escaped;
        !escaped
    });
    Cow::Owned(plain.collect())
}

/// Reads the field for caches of a network for distribution; `None` if there is none, if it is
/// empty, or if it is no dictionary with values of the right types.
fn targeted(headers: &HeaderMap) -> Option<ResponseControl> {
    const NAME: HeaderName = HeaderName::from_static("cdn-cache-control");
    let lines: Vec<_> = headers.get_all(NAME).iter().map(http::HeaderValue::as_bytes).collect();
    if lines.is_empty() {
        return None;
    }
    let all: Dictionary = Parser::new(&lines.join(&b", "[..])).parse().ok()?;
    let mut control = ResponseControl { targeted: true, ..ResponseControl::default() };
    for (name, value) in &all {
        let ListEntry::Item(item) = value else { return None };
        let ages = ["max-age", "s-maxage", "stale-while-revalidate", "stale-if-error"];
        let seconds = match &item.bare_item {
            BareItem::Integer(n) => {
                u32::try_from(i64::from(*n).clamp(0, i64::from(MOST))).unwrap_or(MOST)
            }
            BareItem::Boolean(false) => continue,
            _ if ages.contains(&name.as_str()) => return None,
            _ => 0,
        };
        if name.as_str() == "s-maxage" {
            continue; // Each cache that this is for is a shared one: max-age says it.
        }
        control.take(name.as_str().as_bytes(), || seconds);
    }
    (!all.is_empty()).then_some(control)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn response(lines: &[(&str, &str)]) -> ResponseControl {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        ResponseControl::of(&headers)
    }

    fn cc(value: &str) -> ResponseControl {
        response(&[("cache-control", value)])
    }

    #[test]
    fn directives_are_found_however_they_are_written() {
        let age = |value| cc(value).max_age;
        for (value, expected) in [
            ("max-age=5", Some(5)),
            ("MaX-aGe=5", Some(5)),
            ("foo, max-age=5", Some(5)),
            (" , ,max-age=5 , ", Some(5)),
            ("max-age=\"5\"", Some(5)),
            ("max-age=005", Some(5)),
            ("max-age=2147483648", Some(MOST)),
            ("max-age=4294967297", Some(MOST)),
            ("max-age=99999999999999999999999999", Some(MOST)),
            ("max-age=5, max-age=3", Some(3)),
            ("max-age=3, max-age=5", Some(3)),
            // What cannot be read is expired.
            ("max-age", Some(0)),
            ("max-age=", Some(0)),
            ("max-age=-5", Some(0)),
            ("max-age='5'", Some(0)),
            ("max-age=5.0", Some(0)),
            ("max-age=5a", Some(0)),
            ("max-age=5;x", Some(0)),
            ("max-age= 5", Some(0)),
            ("foo=\"max-age=5\"", None),
            ("foo=\"a\\\"b, max-age=5\"", None),
            ("foo=\"max-age=5, max-age=7", Some(7)),
            ("x-max-age=5", None),
            ("", None),
        ] {
            assert_eq!(age(value), expected, "{value}");
        }
        assert_eq!(
            response(&[("cache-control", "a"), ("cache-control", "max-age=1")]).max_age,
            Some(1)
        );
    }

    #[test]
    fn what_restricts_is_seen_in_every_form() {
        for value in [
            "private",
            "PRIVATE",
            "private=\"set-cookie\"",
            "private=\"a, b\"",
            "private=",
            "private =x",
            "a, private",
            "a=\"b, private",
            "max-age=1,private,",
        ] {
            assert!(cc(value).private, "{value}");
            assert!(
                cc(&value.replace("private", "no-cache").replace("PRIVATE", "No-Cache")).no_cache
            );
            assert!(
                cc(&value.replace("private", "no-store").replace("PRIVATE", "No-Store")).no_store
            );
        }
        assert!(!cc("a=\"b, private\"").private);
        assert!(!cc("privately, x-private").private);
    }

    #[test]
    fn the_field_for_this_kind_of_cache_comes_first() {
        let both = |targeted: &str| {
            response(&[("cache-control", "no-store, max-age=1"), ("cdn-cache-control", targeted)])
        };
        for (value, targeted, max_age) in [
            ("max-age=60", true, Some(60)),
            ("max-age=99999999999, foo", true, Some(MOST)),
            ("foo;a=1, max-age=60;b", true, Some(60)),
            ("max-age=-1", true, Some(0)),
            ("no-cache", true, None),
            // Not valid, or empty: the other one counts.
            ("", false, Some(1)),
            ("max-age=\"60\"", false, Some(1)),
            ("max-age=60, &&&", false, Some(1)),
            ("MaX-aGe=60", false, Some(1)),
            ("max-age =60", false, Some(1)),
            ("max-age=(1 2)", false, Some(1)),
            ("max-age", false, Some(1)),
        ] {
            let control = both(value);
            assert_eq!((control.targeted, control.max_age), (targeted, max_age), "{value}");
            assert_eq!(control.no_store, !targeted, "{value}");
        }
        assert!(both("private, no-cache, no-store").no_store);
        assert!(!both("max-age=1, private=?0").private);
        let lines = [("cdn-cache-control", "max-age=6"), ("cdn-cache-control", "no-cache")];
        assert!(response(&lines).no_cache && response(&lines).max_age == Some(6));
    }

    #[test]
    fn directives_of_requests() {
        let read = |lines: &[(&str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
            }
            RequestControl::of(&headers)
        };
        let one = |value| read(&[("cache-control", value)]);
        assert!(one("No-Cache").no_cache && one("no-store").no_store);
        assert!(one("only-if-cached").only_if_cached);
        assert_eq!(one("max-age=7, min-fresh=8, max-stale").max_age, Some(7));
        assert_eq!(one("min-fresh=8").min_fresh, Some(8));
        assert_eq!(one("min-fresh=x").min_fresh, Some(MOST));
        assert_eq!(
            (one("max-stale").max_stale, one("max-stale=9").max_stale),
            (Some(MOST), Some(9))
        );
        assert!(read(&[("pragma", "x, No-Cache")]).no_cache);
        assert!(!read(&[("pragma", "no-cache"), ("cache-control", "max-age=9")]).no_cache);
        assert!(!read(&[("pragma", "x")]).no_cache);
    }
}
