//! The books of a store, under one lock: no call here waits for anything.

use std::collections::{HashMap, VecDeque};

use super::bans::Bans;
use super::error::StoreError;
use super::filter::Filter;
use super::index::{Entry, Index};
use super::key::Key;
use super::layout::{ENTRY, FOOTER, REGION_HEADER, Role, Set, Sizes, Tabled};
use super::options::{Counters, RegionState};

/// Failures one after another after which a region is not used any more.
const TRIES: u32 = 3;

/// The state of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Phase {
    /// Nothing is in it.
    #[default]
    Free,
    /// Being made ready, or ready, or filled and without a table yet.
    Busy,
    /// Records are added.
    Filling,
    /// Closed by its table, or found without one.
    Sealed,
    /// Reading or writing failed time and again: it is not used any more.
    Failed,
}

#[derive(Debug, Default)]
pub(super) struct Region {
    pub(super) phase: Phase,
    pub(super) generation: u64,
    /// Bytes that records have, or are to have.
    pub(super) used: u32,
    /// Responses that are being written to it.
    pub(super) fills: u32,
    /// Records that it has room for in its table, while it is filled.
    pub(super) reserved: u32,
    /// A write to it failed: no more is.
    pub(super) broken: bool,
    /// Failures of the disk since it was last closed by a table.
    pub(super) failures: u32,
    /// The smallest number of a record in it, as on disk.
    pub(super) oldest: u64,
    /// Slots of the index whose entries have a body or a head here, or had.
    pub(super) slots: Vec<u32>,
    /// The table to be, until it is written.
    pub(super) table: Vec<Tabled>,
    pub(super) live: u64,
    pub(super) objects: u32,
    pub(super) useful: u64,
}

impl Region {
    /// Whether it has room for one more record of `span` bytes.
    fn has_room(&self, span: u32, sizes: &Sizes) -> bool {
        let table = u64::from(ENTRY) * u64::from(self.reserved + 1) + u64::from(FOOTER);
        !self.broken && u64::from(self.used) + u64::from(span) + table <= u64::from(sizes.region)
    }
}

/// Room for a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) region: u32,
    pub(super) generation: u64,
    pub(super) offset: u32,
    pub(super) span: u32,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) sizes: Sizes,
    pub(super) index: Index,
    /// The parts of those that have any, by the keys of their heads.
    pub(super) sets: HashMap<Key, Set>,
    /// Entries of the index that are parts.
    parts: usize,
    pub(super) regions: Vec<Region>,
    /// Those that are filled, the newest last.
    pub(super) filling: Vec<u32>,
    /// Those that are full, and whose tables are to be written.
    pub(super) full: VecDeque<u32>,
    /// One that can be filled at once.
    pub(super) ready: Option<u32>,
    pub(super) bans: Bans,
    /// The number of the last record or ban.
    pub(super) clock: u64,
    /// The generation of the last region that was taken.
    pub(super) generation: u64,
    pub(super) counters: Counters,
    pub(super) filter: Filter,
    /// Responses that are being stored, each with the number since which bans concern it.
    pub(super) running: HashMap<u64, (Key, u64)>,
    pub(super) stopped: bool,
}

impl State {
    pub(super) fn new(sizes: Sizes) -> Self {
        let regions = (0..sizes.regions).map(|_| Region::default()).collect();
        let capacity = u64::from(sizes.region) * u64::from(sizes.regions);
        State {
            sizes,
            index: Index::default(),
            sets: HashMap::new(),
            parts: 0,
            regions,
            filling: Vec::new(),
            full: VecDeque::new(),
            ready: None,
            bans: Bans::default(),
            clock: 0,
            generation: 0,
            counters: Counters { capacity, ..Counters::default() },
            filter: Filter::default(),
            running: HashMap::new(),
            stopped: false,
        }
    }

    pub(super) fn region(&mut self, region: u32) -> &mut Region {
        &mut self.regions[region as usize]
    }

    pub(super) fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Puts an entry in the place of an older one of its key.
    pub(super) fn insert(&mut self, entry: Entry) -> bool {
        if self.index.get(&entry.key).is_some_and(|known| known.seq >= entry.seq) {
            return false;
        }
        self.remove(&entry.key);
        let slot = self.index.insert(entry);
        self.region(entry.region).slots.push(slot);
        if entry.head_region != entry.region {
            self.region(entry.head_region).slots.push(slot);
        }
        let useful = entry.useful();
        let part = entry.role == Role::Part;
        self.parts += usize::from(part);
        let region = self.region(entry.region);
        region.live += u64::from(entry.body_len);
        region.objects += u32::from(!part);
        region.useful += useful;
        self.counters.bytes += u64::from(entry.body_len);
        true
    }

    /// Responses that are there.
    pub(super) fn objects(&self) -> u64 {
        (self.index.len() - self.parts) as u64
    }

    /// Removes an entry; with a head its parts, and with a part its head and the others.
    pub(super) fn remove(&mut self, key: &Key) -> Option<Entry> {
        let entry = self.take(key)?;
        self.removed(&entry);
        Some(entry)
    }

    /// Removes one entry.
    pub(super) fn take(&mut self, key: &Key) -> Option<Entry> {
        let entry = self.index.remove(key)?;
        let part = entry.role == Role::Part;
        self.parts -= usize::from(part);
        let region = self.region(entry.region);
        region.live -= u64::from(entry.body_len);
        region.objects -= u32::from(!part);
        region.useful -= entry.useful();
        self.counters.bytes -= u64::from(entry.body_len);
        Some(entry)
    }

    /// Removes an entry, if it is still the same.
    pub(super) fn remove_entry(&mut self, entry: &Entry) {
        if self.index.get(&entry.key).is_some_and(|known| known.is(entry)) {
            self.remove(&entry.key);
        }
    }

    /// Notes that an entry is what was stored, and that it was asked for; returns whether it is still
    /// there.
    pub(super) fn found(&mut self, entry: &Entry, hit: bool) -> bool {
        let known = self.index.get_mut(&entry.key).filter(|known| known.is(entry));
        let Some(known) = known else { return false };
        known.verified = true;
        let before = known.useful();
        known.hits = known.hits.saturating_add(u8::from(hit));
        let (region, more) = (known.region, known.useful() - before);
        self.region(region).useful += more;
        true
    }

    /// The entries that have a body or a head in a region.
    pub(super) fn entries(&self, region: u32) -> Vec<Entry> {
        let mut slots = self.regions[region as usize].slots.clone();
        slots.sort_unstable();
        slots.dedup();
        let here = |e: &Entry| e.region == region || e.head_region == region;
        slots.into_iter().map(|slot| *self.index.at(slot)).filter(here).collect()
    }

    /// Room for a record of `span` bytes in a region that is being filled, or in the one that is
    /// ready; `None` if there is none.
    pub(super) fn reserve(&mut self, span: u32) -> Option<Slot> {
        let sizes = self.sizes;
        let fits = |region: &&u32| self.regions[**region as usize].has_room(span, &sizes);
        let region = match self.filling.iter().find(fits) {
            Some(region) => *region,
            None => self.next_region()?,
        };
        self.reserve_in(region, span)
    }

    /// Room in this region.
    pub(super) fn reserve_in(&mut self, region: u32, span: u32) -> Option<Slot> {
        let sizes = self.sizes;
        let its = self.region(region);
        if !its.has_room(span, &sizes) {
            return None;
        }
        let slot = Slot { region, generation: its.generation, offset: its.used, span };
        its.used += span;
        its.reserved += 1;
        its.fills += 1;
        Some(slot)
    }

    /// Begins to fill the region that is ready. Of the others, those that nobody is writing to are
    /// full.
    fn next_region(&mut self) -> Option<u32> {
        let ready = self.ready.take()?;
        let idle: Vec<u32> = self.filling.clone();
        self.filling.push(ready);
        self.region(ready).phase = Phase::Filling;
        idle.into_iter().for_each(|region| self.retire(region));
        Some(ready)
    }

    /// Ends the filling of a region that nobody is writing to, if another one is being filled.
    fn retire(&mut self, region: u32) {
        let newest = self.filling.last() == Some(&region);
        let its = self.region(region);
        if its.fills > 0 || newest && !its.broken {
            return;
        }
        if let Some(at) = self.filling.iter().position(|r| *r == region) {
            self.filling.remove(at);
            self.region(region).phase = Phase::Busy;
            self.full.push_back(region);
        }
    }

    /// Gives back what a record did not need of its room, as far as nothing is behind it, and ends
    /// the writing of it.
    pub(super) fn release(&mut self, slot: &Slot, span: u32) {
        let region = self.region(slot.region);
        if slot.offset + slot.span == region.used {
            region.used = slot.offset + span;
        }
        if span == 0 {
            region.reserved -= 1;
        }
        region.fills -= 1;
        self.retire(slot.region);
    }

    /// Drops all that is in a region; tells how many responses that were.
    pub(super) fn empty(&mut self, region: u32) -> u64 {
        let before = self.objects();
        for entry in &self.entries(region) {
            self.remove(&entry.key);
        }
        let its = self.region(region);
        (its.slots, its.table) = (Vec::new(), Vec::new());
        before - self.objects()
    }

    /// Drops all that may not have come to the disk.
    pub(super) fn lose(&mut self) {
        for region in 0..self.sizes.regions {
            let phase = self.region(region).phase;
            if matches!(phase, Phase::Busy | Phase::Filling) {
                self.counters.damaged += self.empty(region);
            }
            if phase == Phase::Filling {
                // What is being written to it now, too; and no more is, also if nothing is now.
                self.region(region).broken = true;
                self.retire(region);
            }
        }
    }

    /// Drops all that is in the index.
    pub(super) fn clear(&mut self) {
        self.index = Index::default();
        self.sets.clear();
        self.parts = 0;
        self.counters.bytes = 0;
        for region in &mut self.regions {
            region.slots = Vec::new();
            (region.live, region.objects, region.useful) = (0, 0, 0);
        }
    }

    /// Drops a region that cannot be read or written.
    pub(super) fn fail(&mut self, region: u32) {
        self.counters.damaged += self.empty(region);
        self.region(region).phase = Phase::Failed;
        self.counters.failed += 1;
    }

    /// Drops what is in a region for which the disk failed, and the region if that goes on. Not at
    /// once: the kernel tells an error of one region to whoever syncs next.
    pub(super) fn suspect(&mut self, region: u32) {
        let its = self.region(region);
        its.failures += 1;
        if its.failures == TRIES {
            self.fail(region);
        } else {
            self.counters.damaged += self.empty(region);
            self.postpone(region);
        }
    }

    /// Has a region that the keeper works on tried again, after all the others.
    pub(super) fn postpone(&mut self, region: u32) {
        self.generation += 1;
        let generation = self.generation;
        let its = self.region(region);
        (its.phase, its.generation) = (Phase::Sealed, generation);
    }

    /// Whether a region may come to be ready without anybody's doing.
    pub(super) fn is_hopeless(&self) -> Result<(), StoreError> {
        let lost = |r: &Region| r.phase == Phase::Failed;
        if self.stopped || self.regions.iter().all(lost) { Err(StoreError::Full) } else { Ok(()) }
    }

    /// The smallest number of a record that is on disk: older bans have nothing to ban.
    pub(super) fn floor(&self) -> u64 {
        let holds = |r: &&Region| r.phase != Phase::Free;
        let stored = self.regions.iter().filter(holds).map(|r| r.oldest);
        let coming = self.running.values().map(|(_, since)| *since);
        stored.chain(coming).min().unwrap_or(u64::MAX)
    }

    pub(super) fn describe(&self) -> Vec<RegionState> {
        let describe = |r: &Region| RegionState {
            generation: r.generation,
            used: if r.phase == Phase::Free { 0 } else { u64::from(r.used.max(REGION_HEADER)) },
            live: r.live,
            objects: r.objects,
            useful: r.useful,
            open: r.phase == Phase::Filling,
            failed: r.phase == Phase::Failed,
        };
        self.regions.iter().map(describe).collect()
    }
}
