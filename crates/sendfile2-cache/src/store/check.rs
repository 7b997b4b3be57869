//! Whether what is in the file is what was stored there.

use std::ops::Range;

use sendfile2::guard::Lease;

use super::core::Core;
use super::disk::read_leased;
use super::error::StoreError;
use super::index::Entry;
use super::layout::{self, FOOTER, Kind, RECORD_HEADER, Record, sums_len};

const CHUNK: usize = layout::CHUNK as usize;

/// The checksums of a body's chunks, while it comes.
#[derive(Debug, Default)]
pub(super) struct Sums {
    done: Vec<u8>,
    chunk: crc32fast::Hasher,
    in_chunk: usize,
}

impl Sums {
    pub(super) fn of(body: &[u8]) -> Vec<u8> {
        let mut sums = Sums::default();
        sums.update(body);
        sums.finish()
    }

    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(CHUNK - self.in_chunk));
            self.chunk.update(now);
            self.in_chunk += now.len();
            bytes = rest;
            if self.in_chunk == CHUNK {
                self.end_chunk();
            }
        }
    }

    fn end_chunk(&mut self) {
        let chunk = std::mem::take(&mut self.chunk);
        self.done.extend_from_slice(&chunk.finalize().to_le_bytes());
        self.in_chunk = 0;
    }

    pub(super) fn finish(&mut self) -> Vec<u8> {
        if self.in_chunk > 0 {
            self.end_chunk();
        }
        std::mem::take(&mut self.done)
    }
}

/// Whether the records of an entry are there, and all its bytes have their checksums.
pub(super) fn is_whole(
    core: &Core,
    entry: &Entry,
    lease: &Lease,
    generations: [u64; 2],
    head: &Result<Vec<u8>, StoreError>,
) -> bool {
    let Ok(head) = head else { return false };
    let read = |range: Range<u64>| read_leased(lease, range).ok();
    let header = |region: u32, record: u32, generation: u64| {
        let start = core.disk.sizes.start(region) + u64::from(record);
        let bytes = read(start..start + u64::from(RECORD_HEADER))?;
        let end = core.disk.sizes.region - FOOTER;
        let record = Record::decode(&core.disk.secret, &bytes, generation, record, end)?;
        (record.key == entry.key.0 && record.body_len == entry.body_len).then_some(record)
    };
    let Some(record) = header(entry.region, entry.record, generations[0]) else { return false };
    let of_head = if (entry.head_region, entry.head_at) == (entry.region, record.head_at()) {
        Some(record)
    } else {
        entry
            .head_at
            .checked_sub(RECORD_HEADER)
            .and_then(|at| header(entry.head_region, at, generations[1]))
            .filter(|record| matches!(record.kind, Kind::Refresh(_)))
    };
    record.kind.role() == entry.role
        && !matches!(record.kind, Kind::Pending | Kind::Refresh(_))
        && of_head.is_some_and(|of| of.head_sum == crc32fast::hash(head))
        && body_is_whole(core, entry, &record, read)
}

fn body_is_whole(
    core: &Core,
    entry: &Entry,
    record: &Record,
    read: impl Fn(Range<u64>) -> Option<Vec<u8>>,
) -> bool {
    let Range { start, end } = core.body_of(entry);
    let Some(sums) = read(end..end + u64::from(sums_len(entry.body_len))) else { return false };
    crc32fast::hash(&sums) == record.sum
        && (start..end).step_by(CHUNK).zip(sums.chunks(4)).all(|(at, sum)| {
            let chunk = read(at..end.min(at + CHUNK as u64));
            chunk.is_some_and(|chunk| crc32fast::hash(&chunk).to_le_bytes() == *sum)
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn in_pieces_as_at_once(cuts in prop::collection::vec(0..200_000usize, 0..5)) {
            let body: Vec<u8> = (0..200_000u32).map(|at| at.to_le_bytes()[0]).collect();
            let mut cuts = cuts;
            cuts.sort_unstable();
            let (mut sums, mut from) = (Sums::default(), 0);
            for cut in cuts {
                sums.update(&body[from..cut]);
                from = cut;
            }
            sums.update(&body[from..]);
            let expected: Vec<u8> = body
                .chunks(CHUNK)
                .flat_map(|chunk| crc32fast::hash(chunk).to_le_bytes())
                .collect();
            prop_assert_eq!(sums.finish(), expected);
        }
    }
}
