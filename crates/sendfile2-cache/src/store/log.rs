//! The list of bans on disk: how it is written and read. Pure.
//!
//! It is in one of two halves; when that is full, what is still in force is written to the other
//! half, with the next epoch.

use super::ban::Ban;
use super::bytes::{Get, Put};
use super::key::Key;
use super::layout::Secret;

/// Bans begin at multiples of this.
const STEP: usize = 64;

/// The bans of one half.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Listed {
    pub(super) epoch: u64,
    pub(super) bans: Vec<(u64, Ban)>,
    /// Where the next ban goes.
    pub(super) end: usize,
    /// There are bans behind one that cannot be read.
    pub(super) damaged: bool,
}

/// The first record of a half: without it the half is not in force.
pub(super) fn marker(secret: &Secret, epoch: u64) -> Vec<u8> {
    record(secret, epoch, 0, 0, b"")
}

pub(super) fn encode(secret: &Secret, epoch: u64, seq: u64, ban: &Ban) -> Vec<u8> {
    match ban {
        Ban::Key(key) => record(secret, epoch, seq, 1, &key.0),
        Ban::Prefix(prefix) => record(secret, epoch, seq, 2, prefix.as_bytes()),
        Ban::Tag(tag) => record(secret, epoch, seq, 3, tag.as_bytes()),
        Ban::All => record(secret, epoch, seq, 4, b""),
    }
}

fn record(secret: &Secret, epoch: u64, seq: u64, kind: u32, content: &[u8]) -> Vec<u8> {
    let mut put = Put::new(b"");
    let len = u32::try_from(content.len()).unwrap_or(u32::MAX);
    put.u64(epoch).u64(seq).u32(kind).u32(len).bytes(content);
    let mut bytes = put.done();
    let mac = secret.mac(&bytes);
    bytes.extend_from_slice(&mac);
    bytes.resize(bytes.len().next_multiple_of(STEP), 0);
    bytes
}

/// Reads a half; `None` if it is not in force.
pub(super) fn read(secret: &Secret, half: &[u8]) -> Option<Listed> {
    let (epoch, _, _, mut at) = next(secret, half, None)?;
    let mut listed = Listed { epoch, ..Listed::default() };
    listed.end = at;
    while at < half.len() {
        let Some((_, seq, ban, len)) = next(secret, &half[at..], Some(epoch)) else {
            // The end; or bytes that were to be bans, with others behind them.
            at += STEP;
            continue;
        };
        listed.damaged |= at != listed.end;
        at += len;
        listed.end = at;
        listed.bans.extend(ban.map(|ban| (seq, ban)));
    }
    Some(listed)
}

/// The record at the beginning: its epoch, its number, its ban, and its length.
fn next(secret: &Secret, bytes: &[u8], of: Option<u64>) -> Option<(u64, u64, Option<Ban>, usize)> {
    let mut get = Get(bytes);
    let (epoch, seq, kind, len) = (get.u64()?, get.u64()?, get.u32()?, get.u32()?);
    if of.is_some_and(|of| of != epoch) || (kind == 0) != of.is_none() {
        return None;
    }
    let (content, rest) = get.0.split_at_checked(usize::try_from(len).ok()?)?;
    let whole = bytes.len() - rest.len();
    if rest.get(..16)? != secret.mac(&bytes[..whole]) {
        return None;
    }
    let text = || std::str::from_utf8(content).ok().map(str::to_owned);
    let ban = match kind {
        0 => None,
        1 => Some(Ban::Key(Key(content.try_into().ok()?))),
        2 => Some(Ban::Prefix(text()?)),
        3 => Some(Ban::Tag(text()?)),
        4 => Some(Ban::All),
        _ => return None,
    };
    Some((epoch, seq, ban, (whole + 16).next_multiple_of(STEP)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ban() -> impl Strategy<Value = Ban> {
        prop_oneof![
            any::<[u8; 16]>().prop_map(|key| Ban::Key(Key(key))),
            ".{0,80}".prop_map(Ban::Prefix),
            ".{0,80}".prop_map(Ban::Tag),
            Just(Ban::All),
        ]
    }

    proptest! {
        #[test]
        fn come_back_up_to_what_was_cut_off(
            bans in prop::collection::vec((any::<u64>(), ban()), 0..20),
            cut in any::<prop::sample::Index>(),
            stale in any::<u8>(),
        ) {
            let secret = Secret([7; 32]);
            let mut half = marker(&secret, 5);
            let mut ends = vec![half.len()];
            for (seq, ban) in &bans {
                half.extend(encode(&secret, 5, *seq, ban));
                ends.push(half.len());
            }
            half.extend(encode(&secret, 4, 1, &Ban::All));
            half.resize(half.len() + 200, stale);
            let listed = read(&secret, &half).unwrap();
            prop_assert_eq!((listed.epoch, &listed.bans, listed.damaged), (5, &bans, false));
            prop_assert_eq!(listed.end, *ends.last().unwrap());
            // What is written last may be torn.
            let cut = ends[0] + cut.index(listed.end - ends[0] + 1);
            half[cut..].fill(0);
            let listed = read(&secret, &half).unwrap();
            let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
            prop_assert!(listed.bans.len() >= whole, "only padding may be cut off");
            prop_assert_eq!(&listed.bans[..], &bans[..listed.bans.len()]);
            prop_assert!(!listed.damaged);
        }

        #[test]
        fn a_ban_that_is_damaged_is_seen(
            bans in prop::collection::vec(ban(), 2..10),
            which in any::<prop::sample::Index>(),
        ) {
            let secret = Secret([7; 32]);
            let mut half = marker(&secret, 5);
            let which = which.index(bans.len() - 1);
            for (at, ban) in bans.iter().enumerate() {
                let from = half.len();
                half.extend(encode(&secret, 5, at as u64, ban));
                half[from] ^= u8::from(at == which);
            }
            prop_assert!(read(&secret, &half).unwrap().damaged);
        }
    }
}
