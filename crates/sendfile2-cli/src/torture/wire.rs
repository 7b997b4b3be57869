//! The protocol between clients and the server.
//!
//! A request names one or two ranges of slots. The response repeats each with the generation that
//! it holds, and then come the bytes, range after range. All numbers are little-endian.

use anyhow::{Context, ensure};

/// Ranges of a request at most.
pub(super) const RANGES: usize = 2;

/// Bytes of a request, and of the header of a response.
pub(super) const REQUEST: usize = 4 + RANGES * 12;
pub(super) const HEADER: usize = 4 + RANGES * 20;

/// The bytes `start..end` of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) slot: u32,
    pub(super) start: u32,
    pub(super) end: u32,
}

/// A part, and the generation that its slot held when it was leased.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Announced {
    pub(super) part: Part,
    pub(super) generation: u64,
}

const MAGIC: [u8; 3] = *b"sf2";

pub(super) fn request(parts: &[Part]) -> [u8; REQUEST] {
    let mut bytes = Vec::with_capacity(REQUEST);
    start(&mut bytes, parts.len());
    for part in parts {
        put(&mut bytes, *part);
    }
    fixed(&bytes)
}

pub(super) fn parse_request(bytes: &[u8; REQUEST]) -> anyhow::Result<Vec<Part>> {
    let count = count(bytes)?;
    bytes[4..].chunks_exact(12).take(count).map(part).collect()
}

pub(super) fn header(announced: &[Announced]) -> [u8; HEADER] {
    let mut bytes = Vec::with_capacity(HEADER);
    start(&mut bytes, announced.len());
    for Announced { part, generation } in announced {
        put(&mut bytes, *part);
        bytes.extend(generation.to_le_bytes());
    }
    fixed(&bytes)
}

pub(super) fn parse_header(bytes: &[u8; HEADER]) -> anyhow::Result<Vec<Announced>> {
    let count = count(bytes)?;
    bytes[4..]
        .chunks_exact(20)
        .take(count)
        .map(|bytes| {
            let generation = u64::from_le_bytes(bytes[12..].try_into()?);
            Ok(Announced { part: part(bytes)?, generation })
        })
        .collect()
}

fn start(bytes: &mut Vec<u8>, count: usize) {
    bytes.extend(MAGIC);
    bytes.push(u8::try_from(count).unwrap_or(u8::MAX));
}

fn put(bytes: &mut Vec<u8>, Part { slot, start, end }: Part) {
    for number in [slot, start, end] {
        bytes.extend(number.to_le_bytes());
    }
}

fn fixed<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut fixed = [0; N];
    fixed[..bytes.len()].copy_from_slice(bytes);
    fixed
}

fn count(bytes: &[u8]) -> anyhow::Result<usize> {
    ensure!(bytes[..3] == MAGIC, "it does not begin as a message of the torture");
    let count = usize::from(bytes[3]);
    ensure!((1..=RANGES).contains(&count), "it has {count} ranges");
    Ok(count)
}

fn part(bytes: &[u8]) -> anyhow::Result<Part> {
    let number = |at: usize| -> anyhow::Result<u32> {
        Ok(u32::from_le_bytes(bytes[at..at + 4].try_into().context("a number")?))
    };
    let part = Part { slot: number(0)?, start: number(4)?, end: number(8)? };
    ensure!(part.start < part.end, "it has an empty range");
    Ok(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_back() {
        let parts = [Part { slot: 1, start: 2, end: 3 }, Part { slot: 4, start: 5, end: 600 }];
        for parts in [&parts[..1], &parts[..]] {
            assert_eq!(parse_request(&request(parts)).unwrap(), parts);
            let announced: Vec<_> = parts
                .iter()
                .map(|part| Announced { part: *part, generation: u64::MAX - 1 })
                .collect();
            assert_eq!(parse_header(&header(&announced)).unwrap(), announced);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(parse_request(&[0; REQUEST]).is_err());
        assert!(parse_header(&[0xff; HEADER]).is_err());
        assert!(parse_request(&request(&[Part { slot: 1, start: 2, end: 2 }])).is_err());
    }
}
