//! The `Range` of a request, by RFC 9110, section 14.
//!
//! Written here because none of the crates that parse it does so by the grammar: they refuse
//! leading zeroes, empty list elements or a suffix longer than the file, or take part of a list.

use std::cmp::Ordering;
use std::ops::Range;

use http::{HeaderMap, header};

/// The part of a file that a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Asked {
    /// All of it: no range is asked for, or none that has to be understood.
    Whole,
    Part(Range<u64>),
    /// A range that does not begin within the file.
    Unsatisfiable,
}

/// The part that these headers ask for, of `len` bytes.
///
/// Several ranges are answered by the whole, as the RFC allows, and so is any range of an empty
/// file: there is no `Content-Range` for it, and clients that always send `bytes=0-` are to get it.
pub(crate) fn asked(headers: &HeaderMap, len: u64) -> Asked {
    let mut values = headers.get_all(header::RANGE).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return Asked::Whole };
    match value.to_str().ok().and_then(only_range) {
        Some(spec) if len > 0 => spec.of(len),
        _ => Asked::Whole,
    }
}

/// A range as it is written: its numbers have any number of digits.
#[derive(Clone, Copy)]
enum Spec<'a> {
    FromTo(&'a str, Option<&'a str>),
    Last(&'a str),
}

/// The range of a valid field value that has only one.
fn only_range(value: &str) -> Option<Spec<'_>> {
    let space = [' ', '\t'];
    let (unit, set) = value.split_once('=')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    // Spaces belong to the commas.
    if set.starts_with(space) && !set.trim_start_matches(space).starts_with(',') {
        return None;
    }
    let mut elements = set.split(',').map(|e| e.trim_matches(space)).filter(|e| !e.is_empty());
    let (Some(only), None) = (elements.next(), elements.next()) else { return None };
    Spec::parse(only)
}

impl<'a> Spec<'a> {
    fn parse(spec: &'a str) -> Option<Self> {
        let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
        let (first, last) = spec.split_once('-')?;
        match (first, last) {
            _ if !digits(first) || !digits(last) => None,
            ("", "") => None,
            ("", last) => Some(Spec::Last(last)),
            (first, "") => Some(Spec::FromTo(first, None)),
            (first, last) => (compare(first, last) != Ordering::Greater)
                .then_some(Spec::FromTo(first, Some(last))),
        }
    }

    fn of(self, len: u64) -> Asked {
        let part = match self {
            Spec::FromTo(first, last) => {
                let end = last.map_or(len, |last| number(last).saturating_add(1).min(len));
                number(first)..end
            }
            Spec::Last(bytes) => len.saturating_sub(number(bytes))..len,
        };
        if part.is_empty() { Asked::Unsatisfiable } else { Asked::Part(part) }
    }
}

/// Compares numbers of any length.
fn compare(a: &str, b: &str) -> Ordering {
    let [a, b] = [a, b].map(|n| n.trim_start_matches('0'));
    (a.len(), a).cmp(&(b.len(), b))
}

/// The number, or as much as no file has.
fn number(digits: &str) -> u64 {
    digits.parse().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
