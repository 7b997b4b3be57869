//! File names that are not UTF-8, by way of tower-http, which passes on only what is: each byte of
//! them that is not becomes a character of the last private plane on the way there, and a byte
//! again behind it.

use std::borrow::Cow;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};

/// The character that stands for the byte 0; those for the others follow.
const FIRST: u32 = 0x10_FF00;

/// The UTF-8 of any of them begins with these.
const LEAD: [u8; 2] = [0xF4, 0x8F];

/// The characters that a path's segment may have as they are: unreserved (RFC 3986, 2.3).
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The path of a URI, for a file of this name.
pub(crate) fn encoded(name: &[u8]) -> String {
    format!("/{}", percent_encode(name, ENCODED))
}

/// The path of a URI as tower-http will take it, where that is another one.
pub(crate) fn escaped(path: &str) -> Option<String> {
    let segments = || path.split('/').map(|s| Cow::from(percent_decode_str(s)));
    let plain = |s: Cow<'_, [u8]>| std::str::from_utf8(&s).is_ok_and(|s| !s.chars().any(stands));
    if segments().all(plain) {
        return None;
    }
    let segments: Vec<_> =
        segments().map(|s| percent_encode(escape(&s).as_bytes(), ENCODED).to_string()).collect();
    Some(segments.join("/"))
}

fn stands(c: char) -> bool {
    u32::from(c) >= FIRST
}

/// The character that stands for a byte.
fn stand_in(byte: u8) -> char {
    // All of that block are characters.
    char::from_u32(FIRST + u32::from(byte)).unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn escape(bytes: &[u8]) -> String {
    let mut escaped = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if stands(c) {
                let mut utf8 = [0; 4];
                escaped.extend(c.encode_utf8(&mut utf8).bytes().map(stand_in));
            } else {
                escaped.push(c);
            }
        }
        escaped.extend(chunk.invalid().iter().copied().map(stand_in));
    }
    escaped
}

/// The path that tower-http was given as an [`escaped`] one.
pub(crate) fn unescaped(path: PathBuf) -> PathBuf {
    if !path.as_os_str().as_bytes().windows(2).any(|two| two == LEAD) {
        return path;
    }
    let Some(text) = path.to_str() else { return path };
    let mut bytes = Vec::with_capacity(text.len());
    for c in text.chars() {
        match u8::try_from(u32::from(c).wrapping_sub(FIRST)) {
            Ok(byte) => bytes.push(byte),
            Err(_) => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// Where a directory that was asked for as `path` is redirected to: on this very host, whatever the
/// path begins with. To a browser `//x` is another one, and so is `/\x`.
pub(crate) fn redirected(prefix: &str, path: &str, query: Option<&str>) -> String {
    let mut to = String::from(prefix);
    for segment in path.split('/') {
        if !matches!(&*Cow::from(percent_decode_str(segment)), b"" | b".") {
            to.push('/');
            to.push_str(&segment.replace('\\', "%5C"));
        }
    }
    to.push('/');
    if let Some(query) = query {
        to.push('?');
        to.push_str(query);
    }
    to
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn every_name_arrives() {
        let names: [&[u8]; 6] = [
            b"caf\xe9.txt",
            b"\xff\xfe",
            "\u{10FF41}".as_bytes(),
            "a \u{10FFFF}\u{e9}".as_bytes(),
            b"\xf4\x8f",
            b"%2f",
        ];
        for name in names {
            let uri = encoded(name);
            let taken = escaped(&uri).unwrap_or(uri);
            let decoded = percent_decode_str(&taken[1..]).decode_utf8().unwrap();
            let found = unescaped(PathBuf::from(&*decoded));
            assert_eq!(found.as_os_str().as_bytes(), name);
        }
        for plain in ["/a/b", "/%C3%A9", "//%2e/"] {
            assert_eq!(escaped(plain), None);
            assert_eq!(unescaped(plain.into()), Path::new(plain));
        }
    }

    #[test]
    fn a_redirect_stays_on_this_host() {
        for (path, to) in [
            ("/a", "/a/"),
            ("//a", "/a/"),
            ("////a//b", "/a/b/"),
            ("/.//a", "/a/"),
            ("/%2e//a", "/a/"),
            ("/\\a", "/%5Ca/"),
            ("\\\\a", "/%5C%5Ca/"),
            ("/a%2Fb", "/a%2Fb/"),
        ] {
            assert_eq!(redirected("", path, None), to, "{path}");
        }
        assert_eq!(redirected("/x", "//a", Some("q=//b")), "/x/a/?q=//b");
    }
}
