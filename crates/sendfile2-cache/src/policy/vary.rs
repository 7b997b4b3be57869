//! The fields of a request that decide between variants (RFC 9111, 4.1).

use std::fmt::Write;

use http::{HeaderMap, HeaderName, header};

/// The fields that a response names, in an order of their own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vary(Vec<HeaderName>);

impl Vary {
    /// Reads those of a response; `None` if it depends on more (`*`), or if they cannot be read.
    #[must_use]
    pub fn of(response: &HeaderMap) -> Option<Self> {
        let mut names = Vec::new();
        for line in response.get_all(header::VARY) {
            for word in line.as_bytes().split(|byte| *byte == b',') {
                match word.trim_ascii() {
                    b"" => {}
                    b"*" => return None,
                    word => names.push(HeaderName::from_bytes(word).ok()?),
                }
            }
        }
        names.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        names.dedup();
        Some(Vary(names))
    }

    /// Whether it names none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it names this one.
    #[must_use]
    pub fn names(&self, name: &HeaderName) -> bool {
        self.0.contains(name)
    }

    /// The field's value, by which it is read again.
    #[must_use]
    pub fn text(&self) -> String {
        let names: Vec<_> = self.0.iter().map(HeaderName::as_str).collect();
        names.join(", ")
    }

    /// The values that a request has for them, as far as their meaning goes, in one text. With a
    /// `language` it takes the place of the request's own.
    #[must_use]
    pub fn values(&self, request: &HeaderMap, language: Option<&str>) -> Vec<u8> {
        let mut values = Vec::new();
        for name in &self.0 {
            let value = match language {
                Some(language) if *name == header::ACCEPT_LANGUAGE => Some(language.into()),
                _ => normalized(request, name),
            };
            // No field and an empty one are different.
            let mut text = String::new();
            let _ = match &value {
                Some(value) => write!(text, "{name} {}:", value.len()),
                None => write!(text, "{name} -"),
            };
            values.extend_from_slice(text.as_bytes());
            values.extend_from_slice(value.as_deref().unwrap_or_default());
        }
        values
    }
}

/// A field's value without what has no meaning: several lines are one list, spaces beside its commas
/// are none. Languages are in lower case, and in the order of preference.
#[must_use]
pub fn normalized(request: &HeaderMap, name: &HeaderName) -> Option<Vec<u8>> {
    let mut lines = request.get_all(name).iter().peekable();
    lines.peek()?;
    if *name == header::ACCEPT_LANGUAGE {
        let list: Vec<_> =
            languages(request).into_iter().map(|(q, tag)| format!("{tag};q={q}")).collect();
        return Some(list.join(",").into_bytes());
    }
    // A comma within quotation marks belongs to a value; what is taken for another value by that
    // only costs a miss.
    let mut list: Vec<u8> = Vec::new();
    for (i, line) in lines.enumerate() {
        if i > 0 {
            list.push(b',');
        }
        let mut quoted = false;
        let words = line.as_bytes().split(|byte| {
            quoted ^= *byte == b'"';
            *byte == b',' && !quoted
        });
        for (i, word) in words.enumerate() {
            if i > 0 {
                list.push(b',');
            }
            list.extend_from_slice(word.trim_ascii());
        }
    }
    Some(list)
}

/// The languages that a request accepts, with their preference in thousandths: the most preferred
/// ones first.
fn languages(request: &HeaderMap) -> Vec<(u16, String)> {
    let mut list = Vec::new();
    for line in request.get_all(header::ACCEPT_LANGUAGE) {
        let text = String::from_utf8_lossy(line.as_bytes()).to_ascii_lowercase();
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            let (tag, parameters) = word.split_once(';').unwrap_or((word, ""));
            let quality = parameters.trim().strip_prefix("q=").and_then(|q| {
                let digits = |byte: u8| byte.is_ascii_digit() || byte == b'.';
                let q: f32 = q.trim().parse().ok().filter(|_| q.trim().bytes().all(digits))?;
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "it is 0 to 1000"
                )]
                Some((q.clamp(0.0, 1.0) * 1000.0).round() as u16)
            });
            list.push((quality.unwrap_or(1000), tag.trim().to_owned()));
        }
    }
    list.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    list
}

/// The one language that a request prefers to all others.
#[must_use]
pub fn favourite_language(request: &HeaderMap) -> Option<String> {
    let list = languages(request);
    let (best, tag) = list.first()?;
    let only = list.get(1).is_none_or(|(second, _)| second < best);
    (only && *best > 0 && tag != "*").then(|| tag.clone())
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
    fn names_are_read() {
        let read = |lines: &[&str]| {
            let lines: Vec<_> = lines.iter().map(|line| ("vary", *line)).collect();
            Vary::of(&map(&lines)).map(|vary| vary.text())
        };
        assert_eq!(read(&[]).as_deref(), Some(""));
        assert_eq!(read(&["Foo, bar,,foo", "Baz"]).as_deref(), Some("bar, baz, foo"));
        for star in
            [&["*"][..], &["*, *"], &[", *"], &["", "*"], &["*, Foo"], &["Foo, *"], &["a b"]]
        {
            assert_eq!(read(star), None, "{star:?}");
        }
    }

    #[test]
    fn values_are_compared_by_their_meaning() {
        let same = |vary: &str, a: &[(&str, &str)], b: &[(&str, &str)]| {
            let vary = Vary::of(&map(&[("vary", vary)])).unwrap();
            vary.values(&map(a), None) == vary.values(&map(b), None)
        };
        let foo = |value| [("foo", value)];
        assert!(same("foo", &foo("1, 2"), &[("foo", "1"), ("foo", "2")]));
        assert!(same("foo", &foo("1,2"), &foo("1 ,  2")));
        assert!(same("foo", &[("foo", "1"), ("other", "2")], &[("foo", "1"), ("other", "3")]));
        assert!(same("foo, bar", &foo("1"), &foo("1")));
        assert!(!same("foo", &foo("1"), &foo("2")));
        assert!(!same("foo", &foo("a"), &foo("A")));
        assert!(!same("foo", &foo(""), &[]));
        assert!(!same("foo", &foo("\"a, b\""), &foo("\"a,b\"")));
        assert!(!same("foo, bar", &[("foo", "1"), ("bar", "2")], &[("foo", "1")]));
        assert!(!same("foo, bar", &[("foo", "1bar 1:2")], &[("foo", "1"), ("bar", "2")]));
        let language = |value| [("accept-language", value)];
        let alike = |a, b| same("accept-language", &language(a), &language(b));
        assert!(alike("en, de", "DE , eN"));
        assert!(alike("en;q=1.0, de;q=0.5", "de;q=0.500,en"));
        assert!(!alike("en, de;q=0.5", "de, en;q=0.5"));
        assert!(!alike("en", "de"));
    }

    #[test]
    fn the_favourite_language_is_the_only_one() {
        let favourite = |value| favourite_language(&map(&[("accept-language", value)]));
        assert_eq!(favourite("fr;q=0.5, de;q=1.0").as_deref(), Some("de"));
        assert_eq!(favourite("De").as_deref(), Some("de"));
        for none in ["en, de", "*", "", "de;q=0"] {
            assert_eq!(favourite(none), None, "{none}");
        }
    }
}
