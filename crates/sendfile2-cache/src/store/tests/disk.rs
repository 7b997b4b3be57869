//! Tests that everything on disk comes back, and nothing else does.

use proptest::prelude::*;

use crate::store::layout::{
    BodyAt, ENTRY, FOOTER, Kind, REGION_HEADER, Record, Secret, Set, Sizes, Tabled,
    read_region_header, read_superblock, region_header, superblock, table,
};
use crate::store::scan::{Body, Contents, contents};

const SIZE: u32 = 64 << 10;
const GENERATION: u64 = 5;

fn secret() -> Secret {
    Secret([3; 32])
}

#[derive(Debug, Clone)]
struct Made {
    key: [u8; 16],
    body_len: u32,
    head_len: u32,
    kind: u8,
}

fn made() -> impl Strategy<Value = Made> {
    (any::<[u8; 16]>(), 0..3000u32, 0..200u32, 0..5u8).prop_map(
        |(key, body_len, head_len, kind)| {
            let body_len = if kind == 3 { 0 } else { body_len };
            Made { key, body_len, head_len, kind }
        },
    )
}

/// A region with these records, as far as they have room, and what is in it.
fn region(made: &[Made], filler: u8) -> (Vec<u8>, Vec<Record>) {
    let mut bytes = vec![0; SIZE as usize];
    bytes[..64].copy_from_slice(&region_header(&secret(), 7, GENERATION));
    let (mut at, mut records) = (REGION_HEADER, Vec::new());
    for (seq, made) in made.iter().enumerate() {
        let body = BodyAt { region: 9, generation: 2, record: 640 };
        let set = Set { id: 77, total: 1 << 40 };
        let kinds = [Kind::Pending, Kind::Whole, Kind::Refresh(body), Kind::Head(set), Kind::Part];
        let kind = kinds[usize::from(made.kind)];
        let here = if made.kind == 2 { 0 } else { made.body_len };
        let span = Record::span_of(made.head_len, here).unwrap();
        if at + span + ENTRY * (made_len(seq) + 1) + FOOTER > SIZE {
            break;
        }
        let record = Record {
            kind,
            generation: GENERATION,
            offset: at,
            span,
            key: made.key,
            state: [made.kind; 24],
            seq: seq as u64,
            head_len: made.head_len,
            body_len: made.body_len,
            sum: 1,
            head_sum: 2,
        };
        let (start, end) = (at as usize, (at + span) as usize);
        bytes[start..end].fill(filler);
        bytes[start..start + 128].copy_from_slice(&record.encode(&secret()));
        at += span;
        records.push(record);
    }
    (bytes, records)
}

fn made_len(seq: usize) -> u32 {
    u32::try_from(seq).unwrap()
}

fn read(bytes: &[u8]) -> Contents {
    let read =
        |at: std::ops::Range<u32>| Ok::<_, ()>(bytes[at.start as usize..at.end as usize].to_vec());
    contents(&secret(), GENERATION, SIZE, read).unwrap()
}

fn whole(records: &[Record]) -> Vec<Tabled> {
    records.iter().filter(|r| r.kind != Kind::Pending).map(Tabled::of).collect()
}

fn found(contents: &Contents) -> Vec<Tabled> {
    contents.found.iter().map(|found| found.tabled).collect()
}

proptest! {
    #[test]
    fn records_are_found_with_and_without_a_table(
        made in prop::collection::vec(made(), 0..30),
        filler in any::<u8>(),
    ) {
        let (mut bytes, records) = region(&made, filler);
        let scanned = read(&bytes);
        prop_assert!(scanned.scanned);
        prop_assert_eq!(found(&scanned), whole(&records));
        let refreshed = scanned.found.iter().filter(|f| matches!(f.body, Body::At(_))).count();
        prop_assert_eq!(refreshed, scanned.found.iter().filter(|f| f.tabled.refresh).count());
        let table = table(&secret(), GENERATION, &whole(&records));
        let start = bytes.len() - table.len();
        bytes[start..].copy_from_slice(&table);
        let tabled = read(&bytes);
        prop_assert!(!tabled.scanned);
        prop_assert_eq!(tabled.found, scanned.found);
        // Another generation's is nobody's.
        let read = |at: std::ops::Range<u32>| {
            Ok::<_, ()>(bytes[at.start as usize..at.end as usize].to_vec())
        };
        let other = contents(&secret(), GENERATION + 1, SIZE, read).unwrap();
        prop_assert!(other.found.is_empty() && other.scanned);
        let stranger = Secret([4; 32]);
        prop_assert!(contents(&stranger, GENERATION, SIZE, read).unwrap().found.is_empty());
    }

    #[test]
    fn what_is_torn_is_not_there_and_the_rest_is(
        made in prop::collection::vec(made(), 1..30),
        torn in prop::collection::vec((0..SIZE, any::<u8>()), 1..20),
        with_table in any::<bool>(),
    ) {
        let (mut bytes, records) = region(&made, 0);
        if with_table {
            let table = table(&secret(), GENERATION, &whole(&records));
            let start = bytes.len() - table.len();
            bytes[start..].copy_from_slice(&table);
        }
        let before = bytes.clone();
        for (at, xor) in torn {
            bytes[at as usize] ^= xor;
        }
        let contents = read(&bytes);
        let known = whole(&records);
        prop_assert!(found(&contents).iter().all(|f| known.contains(f)), "nothing is made up");
        if contents.scanned {
            let same = |r: &&Record| {
                let at = r.offset as usize;
                bytes[at..at + 128] == before[at..at + 128]
            };
            // What a damaged header says about its length is not believed.
            let intact = records.iter().filter(same).filter(|r| r.kind != Kind::Pending);
            prop_assert_eq!(found(&contents), intact.map(Tabled::of).collect::<Vec<_>>());
        }
    }

    #[test]
    fn any_bytes_are_nothing(bytes in prop::collection::vec(any::<u8>(), SIZE as usize)) {
        prop_assert!(read(&bytes).found.is_empty());
        prop_assert!(read_region_header(&secret(), 7, &bytes).is_none());
        prop_assert!(read_superblock(&bytes).is_err());
    }
}

/// A body is what somebody else has made up: one that has records and a table in it, too.
#[test]
fn a_body_that_looks_like_a_record_is_none() {
    let (mut bytes, records) =
        region(&[Made { key: [1; 16], body_len: 3000, head_len: 0, kind: 1 }], 0);
    let forger = Secret([9; 32]);
    let forged = Record { offset: 320, key: [6; 16], span: 192, body_len: 0, ..records[0] };
    bytes[320..448].copy_from_slice(&forged.encode(&forger));
    // The first header is torn, so that its body is looked at.
    bytes[70] ^= 1;
    assert!(read(&bytes).found.is_empty());
}

#[test]
fn sizes_come_back() {
    let sizes = Sizes::of(100 << 20, 8 << 20).unwrap();
    let block = superblock(&sizes, &secret());
    assert_eq!(read_superblock(&block), Ok((sizes, secret())));
    for at in [0, 9, 20, 30, 2000, 4095] {
        let mut block = block.clone();
        block[at] ^= 1;
        assert!(read_superblock(&block).is_err(), "{at}");
    }
    assert!(read_superblock(&block[..4000]).is_err());
    for (size, region) in
        [(100 << 20, 3 << 20), (100 << 20, 1 << 20), (100 << 20, 32 << 20), (8 << 20, 2 << 20)]
    {
        assert!(Sizes::of(size, region).is_err(), "{size} in {region}");
    }
    assert!(sizes.size() <= 100 << 20 && sizes.half(false).end == sizes.half(true).start);
    assert_eq!(sizes.start(3) % (2 << 20), 0);
}
