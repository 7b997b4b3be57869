//! Compared with a model: values are made by the grammar, together with what they mean.
#![allow(clippy::unwrap_used)]

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn of(value: &str, len: u64) -> Asked {
    let mut headers = HeaderMap::new();
    headers.insert(header::RANGE, value.parse().unwrap());
    asked(&headers, len)
}

/// A range, and how it is written.
#[derive(Debug, Clone)]
enum Model {
    From(u128),
    FromTo(u128, u128),
    Last(u128),
}

impl Model {
    /// The bytes of `len` that it selects; `None` if it is not valid.
    fn selects(&self, len: u64) -> Option<Asked> {
        let chosen = |i: u128| match *self {
            Model::From(first) => i >= first,
            Model::FromTo(first, last) => i >= first && i <= last,
            Model::Last(bytes) => i.saturating_add(bytes) >= u128::from(len),
        };
        if matches!(self, Model::FromTo(first, last) if last < first) {
            return None;
        }
        let bytes: Vec<u64> = (0..len).filter(|i| chosen(u128::from(*i))).collect();
        Some(match bytes[..] {
            [] => Asked::Unsatisfiable,
            [first, ..] => Asked::Part(first..first + bytes.len() as u64),
        })
    }
}

fn number() -> impl Strategy<Value = u128> {
    let huge = u128::from(u64::MAX);
    prop_oneof![8 => 0..40_u128, 1 => huge - 2..huge + 3, 1 => Just(u128::MAX)]
}

fn spec() -> impl Strategy<Value = (Model, String)> {
    let zeroes = "0{0,3}";
    prop_oneof![
        (number(), zeroes).prop_map(|(n, z)| (Model::From(n), format!("{z}{n}-"))),
        (number(), number(), zeroes, zeroes)
            .prop_map(|(n, m, y, z)| (Model::FromTo(n, m), format!("{y}{n}-{z}{m}"))),
        (number(), zeroes).prop_map(|(n, z)| (Model::Last(n), format!("-{z}{n}"))),
    ]
}

/// A list: its elements, and how it is written, with commas and spaces wherever they may be.
fn list() -> impl Strategy<Value = (Vec<Model>, String)> {
    let comma = "[ \t]{0,2},[ \t]{0,2}";
    let commas = "([ \t]{0,2},[ \t]{0,2}){0,2}";
    (commas, vec((spec(), comma, commas), 1..3), commas).prop_map(|(before, specs, after)| {
        let mut written = before;
        let last = specs.len() - 1;
        let mut models = Vec::new();
        for (i, ((model, text), comma, commas)) in specs.into_iter().enumerate() {
            written += &text;
            if i < last {
                written += &comma;
                written += &commas;
            }
            models.push(model);
        }
        (models, written + &after)
    })
}

fn unit() -> impl Strategy<Value = String> {
    "[bB][yY][tT][eE][sS]"
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_the_grammar_makes_is_understood((models, set) in list(), unit in unit(), len in 0..40_u64) {
        let expected = match &models[..] {
            [only] if len > 0 => only.selects(len).unwrap_or(Asked::Whole),
            _ => Asked::Whole,
        };
        let value = format!("{unit}={set}");
        prop_assert_eq!(of(&value, len), expected, "{} of {}", value, len);
    }

    #[test]
    fn what_the_grammar_does_not_make_is_ignored(
        value in "[bB]?bytes ?=?[-0-9,a ]{0,8}",
        len in 1..40_u64,
    ) {
        let value = value.trim();
        if valid(value.as_bytes()) {
            prop_assert!(of(value, len) != Asked::Whole || value.contains(',') || whole(value));
        } else {
            prop_assert_eq!(of(value, len), Asked::Whole, "{}", value);
        }
    }

    #[test]
    fn other_units_are_ignored(unit in "[a-z]{1,6}", (_, set) in list()) {
        prop_assume!(unit != "bytes");
        prop_assert_eq!(of(&format!("{unit}={set}"), 10), Asked::Whole);
    }

    #[test]
    fn no_value_is_a_part_that_is_not_there(value in "[ -~]{0,20}", len in any::<u64>()) {
        if let Asked::Part(part) = of(&value, len) {
            prop_assert!(part.start < part.end && part.end <= len);
        }
    }
}

/// Whether a single range ends before it begins.
fn whole(value: &str) -> bool {
    let (first, last) = value.split_once('=').unwrap().1.split_once('-').unwrap();
    matches!((first.parse::<u64>(), last.parse::<u64>()), (Ok(first), Ok(last)) if last < first)
}

/// A recogniser of `"bytes=" 1#( int-range / suffix-range )`, as a machine of states.
fn valid(value: &[u8]) -> bool {
    #[derive(Clone, Copy, PartialEq)]
    enum At {
        Start,
        /// In an empty element that only a comma may end.
        Blank,
        /// After a comma.
        Next,
        First,
        Dash,
        Suffix,
        Last,
        /// Behind an element.
        After,
    }
    let Some(set) = value.strip_prefix(b"bytes=") else { return false };
    let (mut at, mut any) = (At::Start, false);
    for &byte in set {
        at = match (at, byte) {
            (At::Start | At::Blank, b' ') => At::Blank,
            (At::Next, b' ') => At::Next,
            (At::Start | At::Blank | At::Next, b',') => At::Next,
            (At::Start | At::Next, b'0'..=b'9') | (At::First, b'0'..=b'9') => At::First,
            (At::Start | At::Next, b'-') => At::Suffix,
            (At::First, b'-') => At::Dash,
            (At::Dash | At::Suffix | At::Last, b'0'..=b'9') => At::Last,
            (At::Dash | At::Last, b' ') | (At::After, b' ') => At::After,
            (At::Dash | At::Last | At::After, b',') => At::Next,
            _ => return false,
        };
        any |= matches!(at, At::Dash | At::Last);
    }
    any && !matches!(at, At::First | At::Suffix)
}

#[test]
fn what_real_clients_send() {
    for (value, expected) in [
        ("bytes=0-", Asked::Part(0..10)),
        ("bytes=-500", Asked::Part(0..10)),
        ("bytes=-3", Asked::Part(7..10)),
        ("Bytes=002-0004", Asked::Part(2..5)),
        ("bytes=,3-3, ,", Asked::Part(3..4)),
        ("bytes=9-99999999999999999999999", Asked::Part(9..10)),
        ("bytes=10-", Asked::Unsatisfiable),
        ("bytes=99999999999999999999999-", Asked::Unsatisfiable),
        ("bytes=-0", Asked::Unsatisfiable),
        ("bytes=0-1,3-4", Asked::Whole),
        ("bytes=10-11,20-21", Asked::Whole),
        ("bytes=4-2", Asked::Whole),
        ("bytes=-", Asked::Whole),
        ("bytes=", Asked::Whole),
        ("bytes=+1-2", Asked::Whole),
        ("bytes 0-4", Asked::Whole),
        ("pages=1-2", Asked::Whole),
    ] {
        assert_eq!(of(value, 10), expected, "{value}");
        assert_eq!(of(value, 0), Asked::Whole, "{value} of an empty file");
    }
    let mut twice = HeaderMap::new();
    twice.append(header::RANGE, "bytes=0-1".parse().unwrap());
    twice.append(header::RANGE, "bytes=0-1".parse().unwrap());
    assert_eq!(asked(&twice, 10), Asked::Whole, "it is no list");
}
