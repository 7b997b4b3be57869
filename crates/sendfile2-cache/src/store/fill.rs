//! A response that is being stored, and those who read it meanwhile.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use bytes::Bytes;
use rustix::io::{Errno, pread};
use sendfile2::guard::Lease;
use tokio::sync::watch;

use super::check::Sums;
use super::core::{Parts, Running};
use super::error::StoreError;
use super::hit::{Hit, Part};
use super::key::{Key, State};
use super::layout::{CHUNK, Kind, RECORD_HEADER, Record, Set};
use super::state::Slot;
use super::store::Store;

/// Bytes that a reader is given at most at a time.
const READ: u64 = 64 << 10;

/// A response that is being stored. Dropped before [`finish`](Self::finish) it is given up, and its
/// readers fail.
///
/// Up to 64 KiB of the body are kept in memory, so that a small one is written at once, whatever its
/// length; a larger one is written as it comes. Where its length is not known, or more than a record
/// has room for, it takes room for one part at a time, and gives back what it does not need.
#[derive(Debug)]
pub struct Fill {
    store: Store,
    running: Running,
    key: Key,
    state: State,
    head: Vec<u8>,
    expected: Option<u64>,
    length: u64,
    /// The most that the part has which is coming, or all of the body.
    most: u64,
    /// Where that part begins in the body, and how many come before it.
    from: u64,
    parts: u64,
    /// The checksums of that part.
    sums: Sums,
    room: Option<Arc<Room>>,
    stored: bool,
    progress: watch::Sender<Progress>,
}

/// The progress of a body, and where to read it.
#[derive(Debug, Default)]
struct Progress {
    /// As long as it is not in the file.
    staged: Vec<u8>,
    /// The parts that have ended, or the whole: where each begins in the body.
    ended: Vec<(u64, Part)>,
    /// The part behind them, which is being written.
    open: Option<Open>,
    length: u64,
    end: End,
}

/// A part that is being written, where it begins in the body and in the file.
#[derive(Debug)]
struct Open {
    from: u64,
    at: u64,
    room: Arc<Room>,
}

/// Room in the file, which nobody else gets as long as this is there.
#[derive(Debug)]
struct Room {
    store: Store,
    slot: Slot,
    /// The bytes of it that are needed in the end.
    span: AtomicU32,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.store.core().release(&self.slot, *self.span.get_mut());
    }
}

#[derive(Debug, Default)]
enum End {
    #[default]
    None,
    /// All of the body is there, stored or not.
    Whole,
    Abandoned,
}

impl Fill {
    pub(super) fn new(
        store: Store,
        running: Running,
        key: Key,
        state: State,
        head: &[u8],
        expected: Option<u64>,
    ) -> Self {
        let (progress, _) = watch::channel(Progress::default());
        let head = head.to_vec();
        let sizes = &store.core().disk.sizes;
        let in_one = |length: &u64| head.len() as u64 + length <= sizes.most_in_one();
        let most = expected.filter(in_one).unwrap_or(u64::from(sizes.part()));
        let sums = Sums::default();
        Fill {
            store,
            running,
            key,
            state,
            head,
            expected,
            length: 0,
            most,
            from: 0,
            parts: 0,
            sums,
            room: None,
            stored: false,
            progress,
        }
    }

    /// Whether so many bytes more are kept in memory: then [`write`](Self::write) waits for nothing.
    #[must_use]
    pub fn stages(&self, bytes: usize) -> bool {
        self.room.is_none() && self.parts == 0 && self.length + bytes as u64 <= u64::from(CHUNK)
    }

    /// Adds bytes of the body. After an error it is of no use any more. Unless they are
    /// [kept in memory](Self::stages), this waits for the disk, and up to a second for room.
    ///
    /// # Errors
    /// [`StoreError::WrongLength`]; [`StoreError::TooLarge`]; [`StoreError::Full`];
    /// [`StoreError::Guard`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let length = self.length + bytes.len() as u64;
        if let Some(expected) = self.expected.filter(|expected| length > *expected) {
            return Err(StoreError::WrongLength { expected });
        }
        self.store.takes(self.head.len() as u64 + length)?;
        if self.stages(bytes.len()) {
            self.sums.update(bytes);
            self.length = length;
            self.progress.send_modify(|progress| {
                progress.staged.extend_from_slice(bytes);
                progress.length = length;
            });
            return Ok(());
        }
        let mut bytes = bytes;
        while !bytes.is_empty() {
            if self.length - self.from == self.most {
                self.end_part()?;
            }
            let left = self.most - (self.length - self.from);
            let left = usize::try_from(left).unwrap_or(usize::MAX);
            let (now, rest) = bytes.split_at(bytes.len().min(left));
            let slot = self.spilled()?;
            let at = RECORD_HEADER + u32_of(self.length - self.from);
            self.store.core().write(&slot, now, at)?;
            self.sums.update(now);
            self.length += now.len() as u64;
            bytes = rest;
        }
        // All of it or nothing: where this fails, somebody may have to go on from here.
        self.progress.send_modify(|progress| progress.length = length);
        Ok(())
    }

    /// Ends the part that is coming, so that another one may begin.
    fn end_part(&mut self) -> Result<(), StoreError> {
        let Some(room) = self.room.take() else { return Ok(()) };
        let sums = self.sums.finish();
        let which = (&self.key, self.running.id, self.parts);
        let body_len = u32_of(self.length - self.from);
        let (record, part) = self.store.core().end_part(&room.slot, which, body_len, &sums)?;
        room.span.store(record.span, Relaxed);
        let from = std::mem::replace(&mut self.from, self.length);
        self.parts += 1;
        self.progress.send_modify(|progress| {
            progress.ended.push((from, part));
            progress.open = None;
        });
        Ok(())
    }

    /// The room in the file; what was staged is written there when it is taken.
    fn spilled(&mut self) -> Result<Slot, StoreError> {
        if let Some(room) = &self.room {
            return Ok(room.slot);
        }
        let core = self.store.core();
        // What may turn out to be all of it has its head behind it.
        let is_part = self.parts > 0 || self.expected.is_some_and(|all| all > self.most);
        let head_len = if is_part { 0 } else { self.head.len() as u64 };
        let left = self.expected.map_or(self.most, |all| self.most.min(all - self.from));
        let span = Record::span_of(u32_of(head_len), u32_of(left));
        let span = span.ok_or(StoreError::TooLarge { length: left, most: self.most })?;
        let slot = core.reserve(span)?;
        let room = Arc::new(Room { store: self.store.clone(), slot, span: AtomicU32::new(0) });
        self.room = Some(Arc::clone(&room));
        // A scan passes over what is not complete.
        let pending = Record {
            kind: Kind::Pending,
            generation: slot.generation,
            offset: slot.offset,
            span: slot.span,
            key: self.key.0,
            state: self.state,
            seq: 0,
            head_len: 0,
            body_len: 0,
            sum: 0,
            head_sum: 0,
        };
        let mut bytes = pending.encode(&core.disk.secret).to_vec();
        bytes.extend_from_slice(&self.progress.borrow().staged);
        core.write(&slot, &bytes, 0)?;
        let at = core.disk.sizes.start(slot.region) + u64::from(slot.offset + RECORD_HEADER);
        let open = Open { from: self.from, at, room };
        self.progress.send_modify(|progress| {
            progress.open = Some(open);
            progress.staged = Vec::new();
        });
        Ok(slot)
    }

    /// A reader from the beginning of the body.
    #[must_use]
    pub fn reader(&self) -> FillReader {
        FillReader {
            store: self.store.clone(),
            progress: self.progress.subscribe(),
            at: 0,
            expected: self.expected,
        }
    }

    /// Ends the body, and puts the response into the store in place of what was there under its key.
    /// Where that fails, those who read it have it all the same.
    ///
    /// # Errors
    /// [`StoreError::WrongLength`] if it is shorter than it was to be; [`StoreError::Banned`];
    /// as [`write`](Self::write).
    pub fn finish(mut self) -> Result<Hit, StoreError> {
        if let Some(expected) = self.expected.filter(|e| *e != self.length) {
            return Err(StoreError::WrongLength { expected });
        }
        match self.store_all() {
            Ok(hit) => {
                self.stored = true;
                self.progress.send_modify(|progress| {
                    if progress.ended.is_empty() {
                        progress.ended.extend(hit.first.clone().map(|first| (0, first)));
                    }
                    (progress.open, progress.end) = (None, End::Whole);
                    progress.staged = Vec::new();
                });
                Ok(hit)
            }
            Err(why) => {
                self.leave();
                Err(why)
            }
        }
    }

    /// Leaves the body, which is whole, to its readers, as a lease of what is in the file.
    fn leave(&self) {
        self.progress.send_modify(|progress| {
            if let Some(Open { from, at, .. }) = progress.open {
                let place = at..at + (progress.length - from);
                let file = &self.store.core().disk.file;
                let Some(lease) = file.try_lease([place.clone()]) else { return };
                progress.ended.push((from, (lease, place)));
            }
            (progress.open, progress.end) = (None, End::Whole);
        });
    }

    fn store_all(&mut self) -> Result<Hit, StoreError> {
        if self.parts > 0 || self.expected.is_some_and(|all| all > self.most) {
            self.end_part()?;
        }
        let kind = match self.parts {
            0 => Kind::Whole,
            _ => Kind::Head(Set { id: self.running.id, total: self.length }),
        };
        let sums = self.sums.finish();
        let (key, state, body_len) = (self.key, self.state, u32_of(self.length - self.from));
        let parts = Parts { key, state, head: &self.head, body_len, sums: &sums, kind };
        match &self.room {
            Some(room) => self.finish_spilled(room, &parts),
            None => {
                // Readers may read it meanwhile.
                let progress = self.progress.borrow();
                let core = self.store.core();
                core.store_running(None, &parts, &progress.staged, &self.running, None)
            }
        }
    }

    fn finish_spilled(&self, room: &Room, parts: &Parts<'_>) -> Result<Hit, StoreError> {
        let (core, slot) = (self.store.core(), &room.slot);
        let record = core.record(slot, parts, &self.running)?;
        let rest = [parts.sums, parts.head].concat();
        core.write(slot, &rest, RECORD_HEADER + parts.body_len)?;
        core.write(slot, &record.encode(&core.disk.secret), 0)?;
        let hit = core.commit_or_undo(slot, &record, parts.head, None)?;
        room.span.store(record.span, Relaxed);
        Ok(hit)
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        // Others give the room back, too, who are reading from it now. From here on nobody does, but
        // under a lease.
        self.progress.send_modify(|progress| {
            progress.open = None;
            if !matches!(progress.end, End::Whole) {
                progress.end = End::Abandoned;
            }
        });
        let core = self.store.core();
        if !self.stored && self.parts > 0 {
            let set = Set { id: self.running.id, total: self.from };
            core.state().remove_parts(&self.key, set);
        }
        core.end(&self.running);
    }
}

/// Returns a length within one record, which is less than a region.
fn u32_of(length: u64) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// A reader of a response that is being stored: it waits for what has not arrived yet. A clone
/// reads on from where this one is.
#[derive(Debug, Clone)]
pub struct FillReader {
    store: Store,
    progress: watch::Receiver<Progress>,
    at: u64,
    expected: Option<u64>,
}

impl FillReader {
    /// The next bytes of the body, at most 64 KiB; empty at its end. Dropping the future loses
    /// nothing. What is not in the page cache is read by a thread of tokio's that may wait.
    ///
    /// # Errors
    /// [`StoreError::Abandoned`] if the response was given up; [`StoreError::Io`].
    pub async fn read(&mut self) -> Result<Bytes, StoreError> {
        let at = self.at;
        let news = |p: &Progress| p.length > at || !matches!(p.end, End::None);
        let next = {
            let progress = self.progress.wait_for(news).await;
            next(&*progress.map_err(|_| StoreError::Abandoned)?, at)?
        };
        let bytes = match next.read_now(self.store.core().disk.in_memory)? {
            Some(bytes) => bytes,
            None => {
                let read = tokio::task::spawn_blocking(move || next.read());
                read.await.unwrap_or(Err(StoreError::Abandoned))?
            }
        };
        self.at += bytes.len() as u64;
        Ok(bytes)
    }

    /// Sets where in the body the next read begins.
    pub fn seek(&mut self, at: u64) {
        self.at = at;
    }

    /// The length of the body, as far as it is known: it was told, or it has ended.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        let progress = self.progress.borrow();
        self.expected.or_else(|| matches!(progress.end, End::Whole).then_some(progress.length))
    }

    /// Waits for the end of the body, and returns its length.
    ///
    /// # Errors
    /// [`StoreError::Abandoned`].
    pub async fn ended(&mut self) -> Result<u64, StoreError> {
        let ended = |p: &Progress| !matches!(p.end, End::None);
        let progress = self.progress.wait_for(ended).await.map_err(|_| StoreError::Abandoned)?;
        match progress.end {
            End::Whole => Ok(progress.length),
            _ => Err(StoreError::Abandoned),
        }
    }
}

/// The place of bytes that a reader wants next.
#[derive(Debug)]
enum Next {
    Memory(Bytes),
    Room(Arc<Room>, Range<u64>),
    Leased(Lease, Range<u64>),
}

fn next(progress: &Progress, at: u64) -> Result<Next, StoreError> {
    let end = progress.length.min(at.saturating_add(READ));
    if matches!(progress.end, End::Abandoned) {
        return Err(StoreError::Abandoned);
    }
    if end <= at {
        return Ok(Next::Memory(Bytes::new()));
    }
    let behind = progress.ended.partition_point(|(from, _)| *from <= at);
    if let Some((from, (lease, place))) = behind.checked_sub(1).map(|last| &progress.ended[last]) {
        let start = place.start + (at - from);
        if start < place.end {
            let end = place.end.min(start + (end - at));
            return Ok(Next::Leased(lease.clone(), start..end));
        }
    }
    if let Some(Open { from, at: place, room }) = &progress.open {
        let here = |at: u64| place + (at - from);
        return Ok(Next::Room(Arc::clone(room), here(at)..here(end)));
    }
    let index = |at| usize::try_from(at).unwrap_or(usize::MAX);
    Ok(Next::Memory(Bytes::copy_from_slice(&progress.staged[index(at)..index(end)])))
}

impl Next {
    /// Reads some of it, if that takes no waiting for the disk.
    fn read_now(&self, in_memory: bool) -> Result<Option<Bytes>, StoreError> {
        if in_memory {
            return self.read().map(Some);
        }
        let read = |range: &Range<u64>, read: &dyn Fn(&mut [u8], u64) -> Result<_, _>| {
            let mut bytes = zeroes(range);
            let read: Option<usize> = read(&mut bytes, range.start)?;
            read.map(|read| some(bytes, read)).transpose()
        };
        match self {
            Next::Memory(bytes) => Ok(Some(bytes.clone())),
            Next::Room(room, range) => {
                let disk = &room.store.core().disk;
                read(range, &|bytes, at| disk.try_read_at(bytes, at))
            }
            Next::Leased(lease, range) => {
                read(range, &|bytes, at| Ok(lease.try_read_at(bytes, at)?))
            }
        }
    }

    /// Reads some of it. Waits for the disk.
    fn read(&self) -> Result<Bytes, StoreError> {
        match self {
            Next::Memory(bytes) => Ok(bytes.clone()),
            Next::Room(room, range) => {
                let mut bytes = zeroes(range);
                let file = &room.store.core().disk.file;
                let read = || pread(file, &mut bytes[..], range.start);
                let read = rustix::io::retry_on_intr(read).map_err(StoreError::io("pread"))?;
                some(bytes, read)
            }
            Next::Leased(lease, range) => {
                let mut bytes = zeroes(range);
                let read = lease.read_at(&mut bytes, range.start)?;
                some(bytes, read)
            }
        }
    }
}

fn zeroes(range: &Range<u64>) -> Vec<u8> {
    vec![0; usize::try_from(range.end - range.start).unwrap_or(0)]
}

fn some(mut bytes: Vec<u8>, read: usize) -> Result<Bytes, StoreError> {
    if read == 0 {
        return Err(StoreError::io("pread")(Errno::IO));
    }
    bytes.truncate(read);
    Ok(Bytes::from(bytes))
}
