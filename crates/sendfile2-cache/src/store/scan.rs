//! The contents of a region, found by its table or by its records. Pure: it is given a way to read.

use std::ops::Range;

use super::layout::{
    ALIGN, BodyAt, ENTRY, FOOTER, Kind, RECORD_HEADER, REGION_HEADER, Record, Role, Secret, Set,
    Tabled, read_footer, read_table,
};

/// A record of a region, with what its header alone says: where the body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) tabled: Tabled,
    pub(super) body: Body,
}

/// The place of a record's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    /// Behind its header.
    Here,
    At(BodyAt),
    /// In parts.
    Set(Set),
}

impl Body {
    fn of(kind: &Kind) -> Self {
        match kind {
            Kind::Refresh(at) => Body::At(*at),
            Kind::Head(set) => Body::Set(*set),
            Kind::Pending | Kind::Whole | Kind::Part => Body::Here,
        }
    }
}

/// The records of a region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) found: Vec<Found>,
    /// There was no table: the region was being filled, or its table is damaged.
    pub(super) scanned: bool,
    /// Bytes from the region's beginning to the end of its last record.
    pub(super) used: u32,
}

/// Reads what a region of `size` bytes and this generation has; `read` gives bytes of it.
pub(super) fn contents<E>(
    secret: &Secret,
    generation: u64,
    size: u32,
    mut read: impl FnMut(Range<u32>) -> Result<Vec<u8>, E>,
) -> Result<Contents, E> {
    let end = size - FOOTER;
    if let Some((count, mac)) = read_footer(secret, generation, &read(end..size)?) {
        let start = count.checked_mul(ENTRY).and_then(|len| end.checked_sub(len));
        if let Some(start) = start.filter(|start| *start >= REGION_HEADER) {
            let table = read(start..end)?;
            if let Some(table) = read_table(secret, &mac, &table, start) {
                return tabled(secret, generation, size, &table, read);
            }
        }
    }
    let bytes = read(0..size)?;
    Ok(scan(secret, generation, &bytes))
}

fn tabled<E>(
    secret: &Secret,
    generation: u64,
    size: u32,
    table: &[Tabled],
    mut read: impl FnMut(Range<u32>) -> Result<Vec<u8>, E>,
) -> Result<Contents, E> {
    let mut found = Vec::with_capacity(table.len());
    let mut used = REGION_HEADER;
    for tabled in table {
        let here = if tabled.refresh { 0 } else { tabled.body_len };
        let span = Record::span_of(tabled.head_len, here).unwrap_or(0);
        used = used.max(tabled.offset.saturating_add(span));
        let mut body = Body::Here;
        if tabled.refresh || tabled.role == Role::Head {
            let header = read(tabled.offset..tabled.offset + RECORD_HEADER)?;
            let record = Record::decode(secret, &header, generation, tabled.offset, size);
            let Some(record) = record.filter(|record| Tabled::of(record) == *tabled) else {
                continue;
            };
            body = Body::of(&record.kind);
        }
        found.push(Found { tabled: *tabled, body });
    }
    Ok(Contents { found, scanned: false, used })
}

/// Finds the records of a region without a table. What is not a record is passed over in steps.
fn scan(secret: &Secret, generation: u64, bytes: &[u8]) -> Contents {
    let end = u32::try_from(bytes.len()).unwrap_or(u32::MAX).saturating_sub(FOOTER);
    let (mut found, mut at, mut used) = (Vec::new(), REGION_HEADER, REGION_HEADER);
    while at < end {
        let header = &bytes[at as usize..];
        let Some(record) = Record::decode(secret, header, generation, at, end) else {
            at += ALIGN;
            continue;
        };
        let body = Body::of(&record.kind);
        at += record.span;
        used = at;
        if record.kind != Kind::Pending {
            found.push(Found { tabled: Tabled::of(&record), body });
        }
    }
    Contents { found, scanned: true, used }
}
