//! The store behind its handles: what they and its keeper do to the file and to its state.

use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sendfile2::guard::Lease;

use super::ban::Ban;
use super::banlog::BanLog;
use super::check;
use super::disk::{Disk, read_leased};
use super::error::{MayWait, StoreError};
use super::hit::{Hit, Part};
use super::index::Entry;
use super::key::{Key, State as Opaque};
use super::layout::{BodyAt, Kind, RECORD_HEADER, Record, Role, Tabled, sums_len};
use super::options::Admission;
use super::parts;
use super::state::{Slot, State};

/// The time for which a fill waits for a region that can be filled.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Core {
    pub(super) disk: Disk,
    pub(super) admission: Admission,
    pub(super) state: Mutex<State>,
    /// Something to do for the keeper, or done by it.
    pub(super) changed: Condvar,
    pub(super) log: Mutex<BanLog>,
}

/// A response that is being stored.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) id: u64,
    /// Bans with a larger number concern it.
    pub(super) since: u64,
}

/// The parts of a record, but for its place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parts<'a> {
    pub(super) key: Key,
    pub(super) state: Opaque,
    pub(super) head: &'a [u8],
    pub(super) body_len: u32,
    pub(super) sums: &'a [u8],
    pub(super) kind: Kind,
}

/// An entry that was found, with the generations that its records must have.
#[derive(Debug)]
struct Leased {
    entry: Entry,
    lease: Lease,
    generations: [u64; 2],
}

impl Core {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds a response whose state fits, and leases it, with its parts if it has any.
    fn look_up(&self, key: &Key, fits: impl Fn(&Opaque) -> bool) -> Option<(Leased, Vec<Leased>)> {
        let state = self.state();
        let generation = |region: u32| state.regions[region as usize].generation;
        let leased = |entry: Entry| {
            let lease = self.lease(&entry)?;
            let generations = [generation(entry.region), generation(entry.head_region)];
            Some(Leased { entry, lease, generations })
        };
        let entry = *state.index.get(key).filter(|entry| fits(&entry.state))?;
        let parts = match entry.role {
            Role::Whole => Vec::new(),
            Role::Head => state.parts_of(key, *state.sets.get(key)?)?,
            Role::Part => return None,
        };
        let parts = parts.into_iter().map(leased).collect::<Option<_>>()?;
        Some((leased(entry)?, parts))
    }

    /// Leases what there is of a response. Asked under the lock, so that it is still there.
    fn lease(&self, entry: &Entry) -> Option<Lease> {
        let sizes = &self.disk.sizes;
        let start = sizes.start(entry.region) + u64::from(entry.record);
        let len = RECORD_HEADER + entry.body_len + sums_len(entry.body_len);
        let head = self.head_of(entry);
        let head = head.start - u64::from(RECORD_HEADER).min(head.start)..head.end;
        self.disk.file.try_lease([start..start + u64::from(len), head])
    }

    pub(super) fn body_of(&self, entry: &Entry) -> Range<u64> {
        let start = self.disk.sizes.start(entry.region) + u64::from(entry.record + RECORD_HEADER);
        start..start + u64::from(entry.body_len)
    }

    pub(super) fn head_of(&self, entry: &Entry) -> Range<u64> {
        let start = self.disk.sizes.start(entry.head_region) + u64::from(entry.head_at);
        start..start + u64::from(entry.head_len)
    }

    /// Finds a response that is not banned, and whose bytes are what was stored.
    pub(super) fn find(&self, key: &Key, count: bool) -> Option<(Entry, Hit)> {
        let (leased, parts) = self.look_up(key, |_| true)?;
        let entry = leased.entry;
        let head = read_leased(&leased.lease, self.head_of(&entry));
        let is_whole = |it: &Leased, head: &Result<Vec<u8>, StoreError>| {
            it.entry.verified || check::is_whole(self, &it.entry, &it.lease, it.generations, head)
        };
        let whole =
            is_whole(&leased, &head) && parts.iter().all(|it| is_whole(it, &Ok(Vec::new())));
        let Some(head) = head.ok().filter(|_| whole) else {
            let mut state = self.state();
            state.counters.damaged += 1;
            state.remove_entry(&entry);
            return None;
        };
        self.found(leased, parts, Bytes::from(head), count)
    }

    /// As [`find`](Self::find), of one whose state fits, if that takes no waiting for the disk.
    pub(super) fn try_find(
        &self,
        key: &Key,
        fits: impl Fn(&Opaque) -> bool,
    ) -> Result<Option<(Entry, Hit)>, MayWait> {
        let Some((leased, parts)) = self.look_up(key, fits) else { return Ok(None) };
        if !leased.entry.verified || parts.iter().any(|part| !part.entry.verified) {
            return Err(MayWait);
        }
        // An error is the other's affair, too.
        let head = self.disk.read_leased_now(&leased.lease, self.head_of(&leased.entry));
        let head = Bytes::from(head.ok().flatten().ok_or(MayWait)?);
        Ok(self.found(leased, parts, head, true))
    }

    fn found(
        &self,
        leased: Leased,
        parts: Vec<Leased>,
        head: Bytes,
        count: bool,
    ) -> Option<(Entry, Hit)> {
        let Leased { entry, lease, .. } = leased;
        let mut state = self.state();
        if state.bans.hit_entry(&entry, &head) {
            state.remove_entry(&entry);
            return None;
        }
        for it in std::iter::once(&entry).chain(parts.iter().map(|part| &part.entry)) {
            state.found(it, count);
        }
        state.counters.hits += u64::from(count);
        drop(state);
        let parts = parts.into_iter().map(|it| (it.lease, self.body_of(&it.entry)));
        Some((entry, self.hit(&entry, lease, head, parts)))
    }

    /// Makes a hit of what was found: the parts are those of an entry that has only the head.
    fn hit(
        &self,
        entry: &Entry,
        lease: Lease,
        head: Bytes,
        parts: impl IntoIterator<Item = Part>,
    ) -> Hit {
        let mut parts = parts.into_iter();
        let first = parts.next().unwrap_or_else(|| (lease, self.body_of(entry)));
        Hit { state: entry.state, head, first: Some(first), others: parts.collect(), small: None }
    }

    /// Room for a record, waited for shortly.
    pub(super) fn reserve(&self, span: u32) -> Result<Slot, StoreError> {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.state();
        loop {
            if let Some(slot) = state.reserve(span) {
                drop(state);
                self.changed.notify_all();
                return Ok(slot);
            }
            state.is_hopeless()?;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(StoreError::Full);
            }
            let woken = self.changed.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub(super) fn release(&self, slot: &Slot, span: u32) {
        self.state().release(slot, span);
        self.changed.notify_all();
    }

    /// Notes that a response is being stored: bans from now on concern it.
    pub(super) fn begin(&self, key: Key, since: Option<u64>) -> Running {
        let mut state = self.state();
        let since = since.unwrap_or(state.clock);
        // Ids are of the same clock: nobody else has this one.
        let id = state.tick();
        state.running.insert(id, (key, since));
        Running { id, since }
    }

    pub(super) fn end(&self, running: &Running) {
        self.state().running.remove(&running.id);
    }

    /// The header of a record, which has its number now: bans from now on have a larger one.
    pub(super) fn record(
        &self,
        slot: &Slot,
        parts: &Parts<'_>,
        running: &Running,
    ) -> Result<Record, StoreError> {
        let mut state = self.state();
        if state.bans.hit(&parts.key, running.since, parts.head) {
            return Err(StoreError::Banned);
        }
        let seq = state.tick();
        drop(state);
        let too_large = || StoreError::TooLarge {
            length: parts.head.len() as u64 + u64::from(parts.body_len),
            most: self.disk.sizes.most(),
        };
        let head_len = u32::try_from(parts.head.len()).map_err(|_| too_large())?;
        let here = if matches!(parts.kind, Kind::Refresh(_)) { 0 } else { parts.body_len };
        let span = Record::span_of(head_len, here).filter(|span| *span <= slot.span);
        Ok(Record {
            kind: parts.kind,
            generation: slot.generation,
            offset: slot.offset,
            span: span.ok_or_else(too_large)?,
            key: parts.key.0,
            state: parts.state,
            seq,
            head_len,
            body_len: parts.body_len,
            sum: crc32fast::hash(parts.sums),
            head_sum: crc32fast::hash(parts.head),
        })
    }

    /// Writes at an offset of a slot. A region that cannot be written is filled no more.
    pub(super) fn write(&self, slot: &Slot, bytes: &[u8], offset: u32) -> Result<(), StoreError> {
        let at = self.disk.sizes.start(slot.region) + u64::from(slot.offset + offset);
        self.disk.write(bytes, at).inspect_err(|_| self.state().region(slot.region).broken = true)
    }

    /// Returns when all that was written is on disk. If it is not, the kernel does not tell which of
    /// it is lost, nor tell again: all that is in no table yet is dropped.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        self.disk.sync().inspect_err(|_| self.state().lose())
    }

    /// Puts a record that is written into the index, or makes it none again. `instead` is the entry
    /// whose body it has.
    pub(super) fn commit_or_undo(
        &self,
        slot: &Slot,
        record: &Record,
        head: &[u8],
        instead: Option<&Entry>,
    ) -> Result<Hit, StoreError> {
        self.commit(slot, record, head, instead).inspect_err(|_| {
            // If this fails, it is newer than what is in its place, and was stored as it is.
            let _ = self.write(slot, &[0; RECORD_HEADER as usize], 0);
        })
    }

    fn commit(
        &self,
        slot: &Slot,
        record: &Record,
        head: &[u8],
        instead: Option<&Entry>,
    ) -> Result<Hit, StoreError> {
        let mut state = self.state();
        let key = Key(record.key);
        if state.bans.hit(&key, record.seq, head) {
            return Err(StoreError::Banned);
        }
        if state.region(slot.region).broken {
            return Err(StoreError::Full);
        }
        let known = state.index.get(&key).copied();
        if instead.is_some_and(|old| !known.is_some_and(|known| known.is(old))) {
            return Err(StoreError::Absent);
        }
        let parts = match record.kind {
            // One of them was overwritten, or lost, while the others came.
            Kind::Head(set) => state.parts_of(&key, set).ok_or(StoreError::Full)?,
            _ => Vec::new(),
        };
        let leased = |part: &Entry| Some((self.lease(part)?, self.body_of(part)));
        let parts = parts.iter().map(leased).collect::<Option<Vec<_>>>();
        let mut entry = entry_of(slot.region, record, instead);
        let (lease, parts) = self.lease(&entry).zip(parts).ok_or(StoreError::Full)?;
        entry.hits = known.map_or(0, |known| known.hits);
        let region = state.region(slot.region);
        region.table.push(Tabled::of(record));
        region.oldest = region.oldest.min(record.seq);
        let newest = match record.kind {
            Kind::Head(set) => state.insert_head(entry, set),
            _ => state.insert(entry),
        };
        state.counters.stored += u64::from(newest && instead.is_none());
        drop(state);
        Ok(self.hit(&entry, lease, Bytes::copy_from_slice(head), parts))
    }

    /// Ends a part of a body, which is written but for its checksums.
    pub(super) fn end_part(
        &self,
        slot: &Slot,
        (response, id, number): (&Key, u64, u64),
        body_len: u32,
        sums: &[u8],
    ) -> Result<(Record, Part), StoreError> {
        let seq = self.state().tick();
        let span = Record::span_of(0, body_len).filter(|span| *span <= slot.span);
        let record = Record {
            kind: Kind::Part,
            generation: slot.generation,
            offset: slot.offset,
            span: span.ok_or(StoreError::Full)?,
            key: parts::key_of(response, id, number).0,
            state: parts::state_of(response, id),
            seq,
            head_len: 0,
            body_len,
            sum: crc32fast::hash(sums),
            head_sum: crc32fast::hash(b""),
        };
        self.write(slot, sums, RECORD_HEADER + body_len)?;
        self.write(slot, &record.encode(&self.disk.secret), 0)?;
        let mut state = self.state();
        if state.region(slot.region).broken {
            return Err(StoreError::Full);
        }
        let entry = entry_of(slot.region, &record, None);
        let lease = self.lease(&entry).ok_or(StoreError::Full)?;
        let region = state.region(slot.region);
        region.table.push(Tabled::of(&record));
        region.oldest = region.oldest.min(seq);
        state.insert(entry);
        Ok((record, (lease, self.body_of(&entry))))
    }

    /// Replaces the head of a response by a record of its own.
    pub(super) fn refresh(&self, key: &Key, state: Opaque, head: &[u8]) -> Result<(), StoreError> {
        let (entry, _) = self.find(key, false).ok_or(StoreError::Absent)?;
        let kind = {
            let state = self.state();
            let generation = state.regions[entry.region as usize].generation;
            let body = BodyAt { region: entry.region, generation, record: entry.record };
            let set = state.sets.get(key).filter(|_| entry.role == Role::Head);
            // A head has no body to be left where it is.
            set.map_or(Kind::Refresh(body), |set| Kind::Head(*set))
        };
        let parts = Parts { key: *key, state, head, body_len: entry.body_len, sums: &[], kind };
        self.store(None, &parts, &[], Some(entry.seq), Some(&entry)).map(drop)
    }

    /// Stores a record in one go, in this region or in any.
    pub(super) fn store(
        &self,
        region: Option<u32>,
        parts: &Parts<'_>,
        body: &[u8],
        since: Option<u64>,
        instead: Option<&Entry>,
    ) -> Result<Hit, StoreError> {
        let running = self.begin(parts.key, since);
        let stored = self.store_running(region, parts, body, &running, instead);
        self.end(&running);
        stored
    }

    pub(super) fn store_running(
        &self,
        region: Option<u32>,
        parts: &Parts<'_>,
        body: &[u8],
        running: &Running,
        instead: Option<&Entry>,
    ) -> Result<Hit, StoreError> {
        let length = parts.head.len() as u64 + body.len() as u64;
        let most = self.disk.sizes.most_in_one();
        let span = u32::try_from(length).ok().filter(|_| length <= most).and_then(|_| {
            Record::span_of(u32::try_from(parts.head.len()).ok()?, u32::try_from(body.len()).ok()?)
        });
        let span = span.ok_or(StoreError::TooLarge { length, most })?;
        let slot = match region {
            Some(region) => self.state().reserve_in(region, span).ok_or(StoreError::Full)?,
            None => self.reserve(span)?,
        };
        let stored = self.record(&slot, parts, running).and_then(|record| {
            let mut bytes = Vec::with_capacity(span as usize);
            bytes.extend_from_slice(&record.encode(&self.disk.secret));
            [body, parts.sums, parts.head].iter().for_each(|part| bytes.extend_from_slice(part));
            bytes.resize(span as usize, 0);
            self.write(&slot, &bytes, 0)?;
            self.commit_or_undo(&slot, &record, parts.head, instead)
        });
        self.release(&slot, if stored.is_ok() { span } else { 0 });
        stored
    }

    /// Bans in this process at once, and then on disk.
    pub(super) fn ban(&self, ban: &Ban) -> Result<(), StoreError> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.state();
        let seq = state.tick();
        match ban {
            Ban::Key(key) => {
                state.remove(key);
            }
            Ban::All => state.clear(),
            Ban::Prefix(_) | Ban::Tag(_) => {}
        }
        state.bans.add(seq, ban.clone());
        drop(state);
        log.append(self, seq, ban)
    }
}

fn entry_of(region: u32, record: &Record, instead: Option<&Entry>) -> Entry {
    let here = (region, record.offset);
    let (body_region, body_record) =
        instead.filter(|old| old.role == Role::Whole).map_or(here, |old| (old.region, old.record));
    Entry {
        key: Key(record.key),
        state: record.state,
        seq: record.seq,
        region: body_region,
        record: body_record,
        body_len: record.body_len,
        head_region: region,
        head_at: record.head_at(),
        head_len: record.head_len,
        role: record.kind.role(),
        hits: 0,
        verified: true,
    }
}
