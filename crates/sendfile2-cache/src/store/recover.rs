//! The contents of a store that is opened: the tables of its regions, read by several threads.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::sync_channel;

use super::disk::Disk;
use super::error::StoreError;
use super::index::Entry;
use super::key::Key;
use super::layout::{BodyAt, Role, read_region_header};
use super::log::Listed;
use super::options::{Dropped, Opened};
use super::scan::{Body, Contents, Found, contents};
use super::state::{Phase, State};

/// More than there can have been records in regions that cannot be read now, and may be later.
const UNSEEN: u64 = 1 << 40;

/// The state of a store, from its file.
pub(super) fn recover(disk: &Disk, bans: Listed) -> (State, Opened) {
    let mut state = State::new(disk.sizes);
    let mut opened = Opened::default();
    for (seq, ban) in bans.bans {
        state.clock = state.clock.max(seq);
        state.bans.add(seq, ban);
    }
    for region in 0..disk.sizes.regions {
        match header(disk, region) {
            Ok(Some(generation)) => {
                let its = state.region(region);
                (its.phase, its.generation) = (Phase::Sealed, generation);
                state.generation = state.generation.max(generation);
            }
            Ok(None) => {}
            Err(why) => fail(&mut state, &mut opened, region, &why),
        }
    }
    let parts = read_all(disk, &mut state, &mut opened);
    state.remove_incomplete(&parts);
    if state.regions.iter().any(|r| r.phase == Phase::Failed) {
        state.clock += UNSEEN;
    }
    opened.recovered = state.objects();
    (state, opened)
}

fn header(disk: &Disk, region: u32) -> Result<Option<u64>, StoreError> {
    let start = disk.sizes.start(region);
    let bytes = disk.read(start..start + 64)?;
    Ok(read_region_header(&disk.secret, region, &bytes))
}

fn fail(state: &mut State, opened: &mut Opened, region: u32, why: &StoreError) {
    // Whatever is in it may be read another time: no ban that concerns it goes.
    state.region(region).oldest = 0;
    state.fail(region);
    opened.dropped.push(Dropped { region: Some(region), why: why.to_string() });
}

/// Reads all regions; returns the keys of the parts that were found.
fn read_all(disk: &Disk, state: &mut State, opened: &mut Opened) -> Vec<Key> {
    let mut parts = Vec::new();
    let written: Vec<(u32, u64)> = (0..disk.sizes.regions)
        .zip(&state.regions)
        .filter(|(_, r)| r.phase == Phase::Sealed)
        .map(|(region, r)| (region, r.generation))
        .collect();
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(8));
    let next = AtomicU32::new(0);
    let (sender, receiver) = sync_channel(2 * threads);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let sender = sender.clone();
            let (written, next) = (&written, &next);
            scope.spawn(move || {
                let take = || written.get(next.fetch_add(1, Ordering::Relaxed) as usize);
                while let Some((region, generation)) = take() {
                    let start = disk.sizes.start(*region);
                    let read = |at: std::ops::Range<u32>| {
                        disk.read(start + u64::from(at.start)..start + u64::from(at.end))
                    };
                    let read = contents(&disk.secret, *generation, disk.sizes.region, read);
                    if sender.send((*region, read)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        for (region, read) in receiver {
            match read {
                Ok(contents) => add(state, opened, region, contents, &mut parts),
                Err(why) => fail(state, opened, region, &why),
            }
        }
    });
    parts
}

/// Adds what a region has to the index, and notes which are parts.
fn add(
    state: &mut State,
    opened: &mut Opened,
    region: u32,
    contents: Contents,
    parts: &mut Vec<Key>,
) {
    let Contents { found, scanned, used } = contents;
    let its = state.region(region);
    its.used = used;
    its.oldest = found.iter().map(|f| f.tabled.seq).min().unwrap_or(u64::MAX);
    if found.is_empty() {
        its.phase = Phase::Free;
    } else if scanned {
        its.phase = Phase::Busy;
        its.table = found.iter().map(|f| f.tabled).collect();
        state.full.push_back(region);
    }
    opened.scanned += u64::from(scanned);
    for found in found {
        state.clock = state.clock.max(found.tabled.seq);
        let Some(entry) = entry(state, region, &found) else { continue };
        if entry.role == Role::Part {
            parts.push(entry.key);
        }
        match found.body {
            Body::Set(set) => state.insert_head(entry, set),
            Body::Here | Body::At(_) => state.insert(entry),
        };
    }
}

/// The entry of a record, unless it is banned by its key, or the region of its body was overwritten.
fn entry(state: &State, region: u32, found: &Found) -> Option<Entry> {
    let tabled = &found.tabled;
    let key = Key(tabled.key);
    if state.bans.ban_by_key(&key, tabled.seq) {
        return None;
    }
    let generation = state.regions[region as usize].generation;
    let body = match found.body {
        Body::At(body) => body,
        Body::Here | Body::Set(_) => BodyAt { region, generation, record: tabled.offset },
    };
    let its = state.regions.get(body.region as usize)?;
    let there = its.generation == body.generation && its.phase != Phase::Failed;
    let end = u64::from(body.record) + u64::from(tabled.body_len) + 128;
    (there && end <= u64::from(state.sizes.region)).then_some(Entry {
        key,
        state: tabled.state,
        seq: tabled.seq,
        region: body.region,
        record: body.record,
        body_len: tabled.body_len,
        head_region: region,
        head_at: tabled.head_at(),
        head_len: tabled.head_len,
        role: tabled.role,
        hits: 0,
        verified: false,
    })
}
