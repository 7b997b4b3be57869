//! The thread that has a region ready before one is needed, and ends those that are full.

use std::sync::PoisonError;
use std::time::Duration;

use super::check::Sums;
use super::core::{Core, Parts};
use super::disk::Cleared;
use super::error::StoreError;
use super::evict::{Candidate, choose, survivors};
use super::index::Entry;
use super::layout::{BodyAt, Kind, REGION_HEADER, region_header, table};
use super::state::{Phase, State};

/// The time after which it tries again what has failed, or was not there to be done.
const PAUSE: Duration = Duration::from_millis(100);

enum Work {
    Seal(u32),
    Prepare(u32),
}

/// Works until the store is dropped.
pub(super) fn run(core: &Core) {
    while let Some(work) = next(core) {
        let (region, done) = match work {
            Work::Seal(region) => (region, seal(core, region)),
            Work::Prepare(region) => (region, prepare(core, region)),
        };
        if let Err(why) = done {
            tracing::warn!(region, %why, "a region of the store cannot be used");
            let mut state = core.state();
            if is_of_the_disk(&why) {
                state.suspect(region);
            } else {
                // A lease that has to be waited for, or a program that maps the file: others first.
                state.postpone(region);
                let waited = core.changed.wait_timeout(state, PAUSE);
                drop(waited.unwrap_or_else(PoisonError::into_inner));
            }
        }
        core.changed.notify_all();
    }
}

/// Whether it would be in vain to try again. Where a write finds no space now, it may later.
fn is_of_the_disk(why: &StoreError) -> bool {
    match why {
        StoreError::Io { .. } => true,
        StoreError::Guard(sendfile2::Error::File { cause, .. }) => {
            cause.kind() != std::io::ErrorKind::StorageFull
        }
        _ => false,
    }
}

fn next(core: &Core) -> Option<Work> {
    let mut state = core.state();
    loop {
        if state.stopped {
            return None;
        }
        if let Some(region) = state.full.pop_front() {
            return Some(Work::Seal(region));
        }
        if state.ready.is_none() {
            if let Some(region) = victim(core, &state) {
                state.region(region).phase = Phase::Busy;
                return Some(Work::Prepare(region));
            }
        }
        state = core.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
}

/// The region to be overwritten next: one that is free, or the least useful of the old ones.
fn victim(core: &Core, state: &State) -> Option<u32> {
    let all = || (0..state.sizes.regions).zip(&state.regions);
    if let Some((free, _)) = all().find(|(_, r)| r.phase == Phase::Free) {
        return Some(free);
    }
    // What is stored already is not to make room for what may never be complete.
    if state.filling.len() > state.regions.len() / 2 {
        return None;
    }
    let in_hand: Vec<u64> = core
        .disk
        .file
        .in_flight()
        .into_iter()
        .filter(|leased| leased.held_by_app)
        .map(|leased| leased.range.start)
        .collect();
    let candidates = all().filter(|(_, r)| r.phase == Phase::Sealed).map(|(region, r)| {
        let range = core.disk.region(region);
        Candidate {
            region,
            generation: r.generation,
            useful: r.useful,
            leased: in_hand.iter().any(|at| range.contains(at)),
        }
    });
    choose(candidates.collect())
}

/// Writes the table of a region, when all that it tells of is on disk.
fn seal(core: &Core, region: u32) -> Result<(), StoreError> {
    core.sync()?;
    let (generation, entries) = {
        let mut state = core.state();
        let entries = std::mem::take(&mut state.region(region).table);
        let lives = |key, seq| state.index.get(&key).is_some_and(|known| known.seq == seq);
        let entries: Vec<_> =
            entries.into_iter().filter(|e| lives(super::key::Key(e.key), e.seq)).collect();
        let its = state.region(region);
        its.slots.shrink_to_fit();
        (its.generation, entries)
    };
    let table = table(&core.disk.secret, generation, &entries);
    core.disk.write(&table, core.disk.region(region).end - table.len() as u64)?;
    let mut state = core.state();
    let its = state.region(region);
    (its.phase, its.failures) = (Phase::Sealed, 0);
    Ok(())
}

/// A response that is moved before its region is overwritten.
struct Survivor {
    entry: Entry,
    head: Vec<u8>,
    /// `None` where the body is in another region.
    body: Option<Vec<u8>>,
}

/// Overwrites a region: moves what is to stay, clears it, and has it ready.
fn prepare(core: &Core, region: u32) -> Result<(), StoreError> {
    let saved = save(core, region);
    let generation = {
        let mut state = core.state();
        let dropped = state.empty(region);
        state.counters.evicted += dropped - (saved.len() as u64).min(dropped);
        state.generation += 1;
        state.generation
    };
    let Cleared { erased, revoked } = core.disk.clear(region)?;
    let header = region_header(&core.disk.secret, region, generation);
    core.disk.write(&header, core.disk.region(region).start)?;
    {
        let mut state = core.state();
        state.counters.recycled += 1;
        state.counters.erased += u64::from(erased);
        state.counters.revoked += revoked;
        let its = state.region(region);
        (its.generation, its.used, its.reserved) = (generation, REGION_HEADER, 0);
        its.broken = false;
    }
    let oldest = saved.iter().map(|s| s.entry.seq).min();
    for survivor in &saved {
        move_to(core, region, survivor);
    }
    let mut state = core.state();
    let its = state.region(region);
    // Until here bans that concern what was in it were kept.
    its.oldest = its.table.iter().map(|e| e.seq).min().unwrap_or(u64::MAX);
    tracing::debug!(region, generation, erased, moved = saved.len(), oldest, "a region is ready");
    state.ready = Some(region);
    Ok(())
}

/// Reads what is to stay of a region.
fn save(core: &Core, region: u32) -> Vec<Survivor> {
    let entries = core.state().entries(region);
    let room = u64::from(core.disk.sizes.region) / 4;
    let keep = survivors(entries, room).into_iter();
    keep.filter_map(|entry| {
        let (found, hit) = core.find(&entry.key, false)?;
        if !found.is(&entry) {
            return None;
        }
        let (lease, range) = hit.first.clone()?;
        let here = entry.region == region;
        let body = here.then(|| super::disk::read_leased(&lease, range));
        Some(Survivor { entry, head: hit.head().to_vec(), body: body.transpose().ok()? })
    })
    .collect()
}

/// Stores a response again in this region, unless another one of its key is there or is coming.
fn move_to(core: &Core, region: u32, survivor: &Survivor) {
    let Survivor { entry, head, body } = survivor;
    let (key, state, body_len) = (entry.key, entry.state, entry.body_len);
    let generation = {
        let state = core.state();
        let coming = state.running.values().any(|(running, _)| *running == key);
        if coming || state.index.get(&key).is_some() {
            return;
        }
        state.regions[entry.region as usize].generation
    };
    let at = BodyAt { region: entry.region, generation, record: entry.record };
    let kind = if body.is_some() { Kind::Whole } else { Kind::Refresh(at) };
    let body = body.as_deref().unwrap_or_default();
    let sums = Sums::of(body);
    let parts = Parts { key, state, head, body_len, sums: &sums, kind };
    let instead = matches!(kind, Kind::Refresh(_)).then_some(entry);
    match core.store(Some(region), &parts, body, Some(entry.seq), instead) {
        Ok(_) => core.state().counters.reinserted += 1,
        Err(why) => tracing::debug!(?key, %why, "not moved"),
    }
}
