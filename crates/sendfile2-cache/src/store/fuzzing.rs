//! The calls that a fuzzer makes with an input, which has a region's hashes made good: without that it would
//! see no more than that they are wrong.

use super::layout::{
    ALIGN, ENTRY, FOOTER, RECORD_HEADER, REGION_HEADER, Record, Secret, read_superblock,
};
use super::scan::{Body, contents};

const SIZE: u32 = 4 << 10;
const GENERATION: u64 = 5;

/// Reads a region that begins and ends with the input's halves.
///
/// # Panics
/// If what is found is not within the region.
pub fn region(data: &[u8]) {
    let _ = read_superblock(data);
    let secret = Secret([3; 32]);
    let mut bytes = vec![0; SIZE as usize];
    let Some((front, data)) = data.split_first_chunk::<2>() else { return };
    let front = usize::from(u16::from_le_bytes(*front)).min(data.len()).min(SIZE as usize / 2);
    let (front, back) = data.split_at(front);
    let back = &back[back.len().saturating_sub(SIZE as usize / 2)..];
    let start = REGION_HEADER as usize;
    bytes[start..start + front.len()].copy_from_slice(front);
    let at = bytes.len() - back.len();
    bytes[at..].copy_from_slice(back);
    seal(&secret, &mut bytes);
    let read =
        |at: std::ops::Range<u32>| Ok::<_, ()>(bytes[at.start as usize..at.end as usize].to_vec());
    let Ok(contents) = contents(&secret, GENERATION, SIZE, read) else { return };
    assert!(contents.used <= SIZE);
    for found in contents.found {
        let tabled = found.tabled;
        let here = if tabled.refresh { 0 } else { tabled.body_len };
        let span = Record::span_of(tabled.head_len, here).expect("it is within the region");
        assert!(tabled.offset >= REGION_HEADER && tabled.offset + span <= SIZE - FOOTER);
        assert!(tabled.head_at() + tabled.head_len <= tabled.offset + span);
        assert_eq!(matches!(found.body, Body::At(_)), tabled.refresh);
    }
}

/// Gives records, the table and the footer the hashes that they are to have.
fn seal(secret: &Secret, bytes: &mut [u8]) {
    let last = bytes.len() - RECORD_HEADER as usize;
    for at in (0..last).step_by(ALIGN as usize) {
        if bytes[at..].starts_with(b"rec1") {
            let mac = secret.mac(&bytes[at..at + 112]);
            bytes[at + 112..at + 128].copy_from_slice(&mac);
        }
    }
    let footer = bytes.len() - FOOTER as usize;
    if bytes[footer..].starts_with(b"sf2tabl1") {
        let count = u16::from_le_bytes([bytes[footer + 16], bytes[footer + 17]]);
        let table = footer.saturating_sub(usize::from(count) * ENTRY as usize);
        let mac = secret.mac(&bytes[table..footer]);
        bytes[footer + 20..footer + 36].copy_from_slice(&mac);
        let mac = secret.mac(&bytes[footer..footer + 48]);
        bytes[footer + 48..].copy_from_slice(&mac);
    }
}
