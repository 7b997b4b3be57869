//! The lease table of one file: who may send which bytes, and who may overwrite them.
//!
//! Any number of leases may overlap. A writer gets its range when no lease and no earlier writer
//! overlaps it, in the order of queueing; no overlapping lease is granted from the moment it
//! queued, so that readers cannot starve it. The table only says who may and who is to be woken:
//! it never waits, and never calls anybody while it is locked.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::PoisonError;
use std::task::Waker;

use super::exposed::Exposed;
use super::intervals::Intervals;
use super::ranges::folios;

#[cfg(loom)]
use loom::sync::{Mutex, MutexGuard};
#[cfg(not(loom))]
use std::sync::{Mutex, MutexGuard};

/// `L` is what is kept with a lease.
#[derive(Debug)]
pub(super) struct Table<L> {
    state: Mutex<State<L>>,
}

#[derive(Debug)]
struct State<L> {
    next: u64,
    leases: Intervals<L>,
    /// Queued and active, in order.
    writers: BTreeMap<u64, Writer>,
    /// The waiters for a lease.
    lessees: BTreeMap<u64, Waker>,
    /// May be in flight without anybody's knowing; only leases that were granted know more.
    exposed: Exposed,
}

#[derive(Debug)]
struct Writer {
    range: Range<u64>,
    /// Overlapping ranges of leases and overlapping earlier writers; it is active at 0.
    blockers: usize,
    waker: Option<Waker>,
    detaching: Option<Around>,
}

/// The bytes around those that are detached, which share pages with them.
#[derive(Debug)]
struct Around {
    range: Range<u64>,
    /// A lease was there since, under which pages that are new may have been sent.
    leased: bool,
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start.max(b.start) < a.end.min(b.end)
}

/// Wakers to be woken when the table is unlocked.
#[must_use = "whoever became able to go on must be woken"]
pub(super) struct Wake(Vec<Waker>);

impl Wake {
    pub(super) fn wake(self) {
        for waker in self.0 {
            waker.wake();
        }
    }
}

impl<L: Clone> Table<L> {
    pub(super) fn new() -> Self {
        Table {
            state: Mutex::new(State {
                next: 0,
                leases: Intervals::default(),
                writers: BTreeMap::new(),
                lessees: BTreeMap::new(),
                exposed: Exposed::default(),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<L>> {
        // Nothing panics while holding it; if something did, what is leased stays leased.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Grants all of `ranges` (disjoint, none empty) or none, under a key that is not in use.
    pub(super) fn try_lease(&self, ranges: &[Range<u64>], key: u64, lease: &L) -> bool {
        let mut state = self.lock();
        // Queued or active, it makes no difference.
        if state.writers.values().any(|w| ranges.iter().any(|r| overlap(r, &w.range))) {
            return false;
        }
        for around in state.writers.values_mut().filter_map(|w| w.detaching.as_mut()) {
            around.leased |= ranges.iter().any(|r| overlap(r, &around.range));
        }
        for range in ranges {
            state.leases.insert(range.clone(), key, lease.clone());
        }
        true
    }

    /// Ends a lease; does nothing for one that was not granted.
    pub(super) fn end_lease(&self, ranges: &[Range<u64>], key: u64) -> Wake {
        let mut state = self.lock();
        let mut wake = Vec::new();
        for range in ranges {
            // What was detached of it has ended before.
            for piece in state.leases.remove(range, key) {
                state.unblock(0, &piece, &mut wake);
            }
        }
        Wake(wake)
    }

    /// Ends leases on what of the range of a writer is in `pages`, which were detached, and its exposure.
    /// Nothing for a writer that has gone, or is not the first.
    pub(super) fn detached(&self, key: u64, pages: &Range<u64>) -> Wake {
        let mut state = self.lock();
        let mut wake = Vec::new();
        let Some(writer) = state.writers.get(&key) else { return Wake(wake) };
        let range = writer.range.start.max(pages.start)..writer.range.end.min(pages.end);
        let alone = writer.detaching.as_ref().is_some_and(|around| !around.leased);
        if state.earlier(key, &range) > 0 {
            return Wake(wake);
        }
        let cut: Vec<_> =
            state.leases.overlapping(&range).map(|(r, key, l)| (r, key, l.clone())).collect();
        for (leased, lease, value) in cut {
            state.leases.remove(&leased, lease);
            for rest in [leased.start..range.start, range.end..leased.end] {
                if !rest.is_empty() {
                    state.leases.insert(rest, lease, value.clone());
                }
            }
            state.recount(&leased, &mut wake);
        }
        state.exposed.remove(&range);
        // What else is in those pages, unless somebody has sent it since, or may: where the file is
        // cut later, its last page may be one that cannot be detached.
        if alone {
            for beside in [pages.start..range.start, range.end..pages.end] {
                state.exposed.remove(&beside);
            }
        }
        Wake(wake)
    }

    /// Notes that the writer's range begins to be detached, by pages within `around`.
    pub(super) fn detaching(&self, key: u64, around: Range<u64>) {
        let mut state = self.lock();
        let State { writers, leases, .. } = &mut *state;
        if let Some(writer) = writers.get_mut(&key) {
            let Range { start, end } = writer.range;
            let beside = [around.start..start, end..around.end];
            let leased = beside.iter().any(|beside| leases.overlapping(beside).next().is_some());
            writer.detaching = Some(Around { range: around, leased });
        }
    }

    /// Notes that `range` may be in flight from here on without anybody's knowing. Its lease is
    /// still there, or no writer is yet.
    pub(super) fn expose(&self, range: &Range<u64>) {
        self.lock().exposed.add(range);
    }

    /// Returns the parts of a writer's range that are leased, or exposed.
    pub(super) fn in_flight(&self, key: u64) -> Vec<Range<u64>> {
        let state = self.lock();
        let Some(range) = state.writers.get(&key).map(|writer| &writer.range) else {
            return Vec::new();
        };
        let mut parts = Exposed::default();
        let leased = state.leases.overlapping(range).map(|(leased, ..)| leased);
        for part in leased.chain(state.exposed.overlapping(range)) {
            parts.add(&(part.start.max(range.start)..part.end.min(range.end)));
        }
        parts.iter().collect()
    }

    /// Whether a byte of `range` is exposed.
    pub(super) fn is_exposed(&self, range: &Range<u64>) -> bool {
        self.lock().exposed.overlaps(range)
    }

    /// The bytes, in whole folios, of what in `range` is exposed.
    pub(super) fn exposed_folios(&self, range: &Range<u64>) -> u64 {
        let mut kept = Exposed::default();
        for part in self.lock().exposed.overlapping(range) {
            kept.add(&folios(part.start.max(range.start)..part.end.min(range.end)));
        }
        kept.bytes()
    }

    /// All that is exposed.
    pub(super) fn exposed(&self) -> Vec<Range<u64>> {
        self.lock().exposed.iter().collect()
    }

    /// Queues a writer; from here on no overlapping lease is granted until
    /// [`remove_writer`](Self::remove_writer). `waker` is woken when it becomes active.
    pub(super) fn queue_writer(&self, range: Range<u64>, waker: Option<Waker>) -> u64 {
        let mut state = self.lock();
        let blockers = state.leases.overlapping(&range).count()
            + state.writers.values().filter(|w| overlap(&w.range, &range)).count();
        state.next += 1;
        let key = state.next;
        state.writers.insert(key, Writer { range, blockers, waker, detaching: None });
        key
    }

    /// Queues a writer only if it is active at once; otherwise who is in its way: the leases.
    pub(super) fn try_writer(&self, range: &Range<u64>) -> Result<u64, Vec<L>> {
        let mut state = self.lock();
        let leases: Vec<L> = state.leases.overlapping(range).map(|(_, _, l)| l.clone()).collect();
        if !leases.is_empty() || state.writers.values().any(|w| overlap(&w.range, range)) {
            return Err(leases);
        }
        state.next += 1;
        let key = state.next;
        let writer = Writer { range: range.clone(), blockers: 0, waker: None, detaching: None };
        state.writers.insert(key, writer);
        Ok(key)
    }

    /// Whether a writer may write.
    pub(super) fn is_active(&self, key: u64) -> bool {
        self.lock().writers.get(&key).is_some_and(|w| w.blockers == 0)
    }

    /// The leases that a writer waits for, and whether it waits for another writer, too.
    pub(super) fn blockers(&self, key: u64) -> (Vec<L>, bool) {
        let state = self.lock();
        let Some(writer) = state.writers.get(&key) else { return (Vec::new(), false) };
        let range = &writer.range;
        let leases = state.leases.overlapping(range).map(|(_, _, l)| l.clone()).collect();
        let writers = state.writers.range(..key).any(|(_, w)| overlap(&w.range, range));
        (leases, writers)
    }

    /// A writer is done, or gives up.
    pub(super) fn remove_writer(&self, key: u64) -> Wake {
        let mut state = self.lock();
        let mut wake = Vec::new();
        if let Some(writer) = state.writers.remove(&key) {
            state.unblock(key, &writer.range, &mut wake);
            wake.extend(state.lessees.values().cloned());
        }
        Wake(wake)
    }

    /// The writers that wait for a lease of these ranges, to be told of a new holder.
    pub(super) fn waiting_writers(&self, ranges: &[Range<u64>]) -> Wake {
        let state = self.lock();
        if state.writers.is_empty() {
            return Wake(Vec::new());
        }
        let waiting = state
            .writers
            .values()
            .filter(|w| ranges.iter().any(|r| overlap(r, &w.range)))
            .filter_map(|w| w.waker.clone());
        Wake(waiting.collect())
    }

    /// Registers who waits for a lease; it is woken when a writer has gone.
    pub(super) fn add_lessee(&self, waker: Waker) -> u64 {
        let mut state = self.lock();
        state.next += 1;
        let key = state.next;
        state.lessees.insert(key, waker);
        key
    }

    pub(super) fn remove_lessee(&self, key: u64) {
        let gone = self.lock().lessees.remove(&key);
        drop(gone);
    }

    /// All leased ranges.
    pub(super) fn leases(&self) -> Vec<(Range<u64>, L)> {
        self.lock().leases.iter().map(|(range, _, lease)| (range, lease.clone())).collect()
    }

    /// Writers, queued and active.
    pub(super) fn writers(&self) -> usize {
        self.lock().writers.len()
    }
}

impl<L> State<L> {
    /// The number of writers before `key` that overlap `range`.
    fn earlier(&self, key: u64, range: &Range<u64>) -> usize {
        self.writers.range(..key).filter(|(_, w)| overlap(&w.range, range)).count()
    }

    /// Counts anew what blocks the writers on `range`, of whose leases some were cut.
    fn recount(&mut self, range: &Range<u64>, wake: &mut Vec<Waker>) {
        let keys: Vec<u64> = self
            .writers
            .iter()
            .filter(|(_, w)| overlap(&w.range, range))
            .map(|(k, _)| *k)
            .collect();
        for key in keys {
            let Some(writer) = self.writers.get(&key) else { continue };
            let blockers =
                self.leases.overlapping(&writer.range).count() + self.earlier(key, &writer.range);
            let Some(writer) = self.writers.get_mut(&key) else { continue };
            if blockers == 0 && writer.blockers > 0 {
                wake.extend(writer.waker.clone());
            }
            writer.blockers = blockers;
        }
    }

    /// Something that blocked the writers after `after` on `range` has gone.
    fn unblock(&mut self, after: u64, range: &Range<u64>, wake: &mut Vec<Waker>) {
        for writer in self.writers.range_mut(after..).map(|(_, w)| w) {
            if overlap(&writer.range, range) {
                writer.blockers -= 1;
                if writer.blockers == 0 {
                    wake.extend(writer.waker.clone());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
