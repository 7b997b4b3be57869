//! [`GuardedFile`]: overwrite a file in place while parts of it are being sent.
//!
//! A send under a [`Lease`] holds its ranges until the kernel has released them; a writer waits
//! until nothing holds its range. Between them stands one lease table for each file, however
//! often it is opened:
//!
//! ```no_run
//! use sendfile2::{Sender, guard::GuardedFile};
//! use std::time::{Duration, Instant};
//!
//! # fn main() -> Result<(), sendfile2::Error> {
//! # let socket = std::net::TcpStream::connect("192.0.2.1:80").unwrap();
//! let slab = GuardedFile::open("slab")?;
//! let soon = || Instant::now() + Duration::from_secs(10);
//!
//! // One lease covers all of a response, before its first byte.
//! let lease = slab.lease([0..4096, 65_536..131_072], soon())?;
//! let mut sender = Sender::new(socket)?;
//! sender.send_lease(&lease, 0..4096, true, soon())?;
//! sender.send_lease(&lease, 65_536..131_072, false, soon())?;
//! drop(lease); // what is in flight stays leased
//!
//! // Waits until the kernel has let go of these bytes.
//! slab.write_at(&[0; 4096], 0, soon())?;
//! # Ok(())
//! # }
//! ```
//!
//! A program that polls queues a writer ([`GuardedFile::queue_writer`]) and watches its descriptor:
//! all that the waiting forms do can be done so.
//!
//! # What remains the application's problem
//! The table knows what goes through a `GuardedFile` of this process. It does not know of writers
//! that bypass it (another descriptor, an `mmap`, a disk's partition or a file's filesystem beside
//! the disk, an overlay beside its upper layer), of `truncate` by others (after which a leased range
//! that reached past the new end is sent up to the end of that page, with NULs, or not at all), and
//! of other processes, forked children among them ([there](crate#fork)).
//! One lease must cover all of a response: a lease for each part would let a writer in between,
//! and mix generations.
//!
//! The table dies with the process. What was in flight under a lease is then reset with its
//! connection, unless another process has the socket, too (a forked child, for example): then the
//! kernel goes on sending from the file, and a restarted program that overwrites it changes what
//! the peer receives. See [`Options::reset_on_death`](crate::Options::reset_on_death).
//!
//! Overlap is by byte. A write that shares a page with a lease, but no byte, does not wait: the
//! kernel sends the leased bytes of the page only.

mod intervals;
mod table;
#[cfg(feature = "tokio")]
mod task;
mod writer;

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use smallvec::SmallVec;

use crate::error::Error;
use crate::holder::CompletionSource;
use crate::park::Parker;
use crate::source::{Extent, Identity, Source};
use crate::sys::process::Process;
use table::Table;
pub use writer::{Exclusive, QueuedWriter, folios};
use writer::{InTheWay, reap};

/// The largest folio (page-cache unit) that truncating or punching may zero parts of.
const FOLIO: u64 = 2 << 20;

/// A file whose ranges are sent under leases and overwritten when no lease is in the way. A
/// shared handle: clone it.
#[derive(Clone)]
pub struct GuardedFile(Arc<Guarded>);

struct Guarded {
    source: Source,
    shared: Arc<Shared>,
}

/// What all handles of one file share.
struct Shared {
    identity: Identity,
    /// Whose leases and writers these are: a fork has a copy, which learns nothing of them.
    process: Process,
    table: Table<Weak<Inner>>,
    /// The key of the next lease.
    next: AtomicU64,
    leases: AtomicU64,
    writes: AtomicU64,
    waits: AtomicU64,
    aborts: AtomicU64,
}

/// The tables of the files that are guarded, a fork's beside those of its parent.
static SHARED: Mutex<Option<HashMap<(Process, Identity), Known>>> = Mutex::new(None);
type Known = Weak<Shared>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The right to send some ranges of a [`GuardedFile`], while nobody overwrites them.
///
/// It ends when all handles to it are dropped **and** the kernel has released every send made
/// under it. Clones are handles to the same lease.
pub struct Lease {
    inner: Arc<Inner>,
    /// Leases in the hands of the thread that took this one.
    taken: Arc<AtomicUsize>,
}

/// The ranges of a lease, in bytes of the file: one [`Range`], or several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranges(SmallVec<[Range<u64>; 1]>);

impl FromIterator<Range<u64>> for Ranges {
    /// Sorts them, merges those that touch, and passes over the empty ones.
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(ranges: I) -> Self {
        let mut sorted: SmallVec<[Range<u64>; 1]> =
            ranges.into_iter().filter(|r| !r.is_empty()).collect();
        sorted.sort_unstable_by_key(|r| r.start);
        let mut merged: SmallVec<[Range<u64>; 1]> = SmallVec::new();
        for range in sorted {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        Ranges(merged)
    }
}

impl From<Range<u64>> for Ranges {
    fn from(range: Range<u64>) -> Self {
        std::iter::once(range).collect()
    }
}

impl From<&[Range<u64>]> for Ranges {
    fn from(ranges: &[Range<u64>]) -> Self {
        ranges.iter().cloned().collect()
    }
}

impl<const N: usize> From<[Range<u64>; N]> for Ranges {
    fn from(ranges: [Range<u64>; N]) -> Self {
        ranges.into_iter().collect()
    }
}

/// What a send under a lease holds.
pub(crate) struct Inner {
    shared: Arc<Shared>,
    source: Source,
    key: u64,
    ranges: SmallVec<[Range<u64>; 1]>,
    since: Instant,
    /// Handles in users' hands; the sends in flight hold the `Arc`.
    handles: AtomicUsize,
    /// The thread that took it, by its counter.
    taken: Arc<AtomicUsize>,
    holders: Mutex<Vec<Weak<dyn CompletionSource>>>,
    /// The file has at least this size and no holes that matter, once somebody looked: nobody
    /// resizes or punches it where it is leased.
    size: AtomicU64,
}

thread_local! {
    /// How many leases that this thread took are still in somebody's hands. A fork counts anew: the
    /// hands that its parent's are in may be of threads that it has not.
    static TAKEN: RefCell<Option<(Process, Arc<AtomicUsize>)>> = const { RefCell::new(None) };
}

/// A lease that is in the way of a writer, or just there.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Leased {
    /// The leased range, in bytes.
    pub range: Range<u64>,
    /// How long ago it was leased.
    pub age: Duration,
    /// The peers of the connections on which it may still be in flight.
    pub peers: Vec<SocketAddr>,
    /// A [`Lease`] handle is still in the application's hands.
    pub in_hand: bool,
}

/// What a write that does not wait came to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum TryWrite {
    /// All of it is written.
    Written,
    /// Nothing is written. These leases are in the way; none of them if another writer is.
    InTheWay(Vec<Leased>),
}

/// What has happened on a file, over all its handles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct GuardCounters {
    /// Leases granted.
    pub leases: u64,
    /// Ranges written, resized or punched.
    pub writes: u64,
    /// Of these, how many had to wait.
    pub waits: u64,
    /// Connections aborted for a writer.
    pub aborts: u64,
}

impl GuardedFile {
    /// Opens the file at `path` for reading and writing; it must exist.
    ///
    /// # Errors
    /// [`Error::Open`], and as [`new`](Self::new); they name the path.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = rustix::fs::open(path, flags, rustix::fs::Mode::empty());
        let guarded = file.map_err(Error::file("open", 0)).and_then(GuardedFile::new);
        guarded.map_err(|e| e.of(path))
    }

    /// Guards an open file: a regular file, a memfd, or a block device, open for reading and
    /// writing. If the file is guarded already, by whatever descriptor, the leases are shared.
    ///
    /// # Errors
    /// [`Error::NotASource`] for anything else, for a read-only descriptor, and for one with
    /// `O_APPEND` (where `pwrite(2)` appends whatever the offset; for what is set later see
    /// [`Exclusive::write_at`]); [`Error::File`].
    pub fn new(file: impl Into<OwnedFd>) -> Result<Self, Error> {
        let file = file.into();
        let flags = rustix::fs::fcntl_getfl(&file).map_err(Error::file("fcntl", 0))?;
        if flags & OFlags::RWMODE == OFlags::RDONLY {
            return Err(Error::unsuitable("it is open for reading only: open it for writing too"));
        }
        if flags.contains(OFlags::APPEND) {
            return Err(Error::unsuitable("it is open with O_APPEND, which ignores offsets"));
        }
        let source = Source::new(file)?;
        let (process, identity) = (Process::current(), source.identity());
        let mut tables = lock(&SHARED);
        let tables = tables.get_or_insert_default();
        let known = tables.get(&(process, identity)).and_then(Weak::upgrade);
        let shared = known.unwrap_or_else(|| {
            let shared = Arc::new(Shared {
                identity,
                process,
                table: Table::new(),
                next: AtomicU64::new(0),
                leases: AtomicU64::new(0),
                writes: AtomicU64::new(0),
                waits: AtomicU64::new(0),
                aborts: AtomicU64::new(0),
            });
            tables.insert((process, identity), Arc::downgrade(&shared));
            shared
        });
        Ok(GuardedFile(Arc::new(Guarded { source, shared })))
    }

    /// Leases `ranges`, all or none, without waiting; `None` while a writer waits for, or is
    /// writing to, a byte of them, and in a forked child. Empty ranges are passed over.
    ///
    /// Lease all of a response before its first byte is sent.
    #[must_use]
    pub fn try_lease(&self, ranges: impl Into<Ranges>) -> Option<Lease> {
        self.0.shared.ours().ok()?;
        self.grant(&ranges.into(), taken())
    }

    /// Leases `ranges`, all or none, waiting for the writers before it until `deadline`.
    ///
    /// # Errors
    /// [`Error::HoldsLease`] if a lease that this thread took is still in somebody's hands (it
    /// counts for the thread that took it, also after it was moved): whoever waits for a lease
    /// while holding one may wait for a writer that waits for it. [`Error::Deadline`];
    /// [`Error::Wait`]; [`Error::Forked`].
    pub fn lease(&self, ranges: impl Into<Ranges>, deadline: Instant) -> Result<Lease, Error> {
        self.0.shared.ours()?;
        let ranges = ranges.into();
        if taken().load(Ordering::Relaxed) > 0 {
            return Err(Error::HoldsLease);
        }
        if let Some(lease) = self.grant(&ranges, taken()) {
            return Ok(lease);
        }
        Parker::with(|parker| {
            let table = &self.0.shared.table;
            let key = table.add_lessee(parker.waker());
            let _registered = Lessee { shared: &self.0.shared, key };
            loop {
                if let Some(lease) = self.grant(&ranges, taken()) {
                    return Ok(lease);
                }
                if Instant::now() >= deadline {
                    return Err(Error::Deadline("a writer was in the way of the lease"));
                }
                parker.park(Some(deadline))?;
            }
        })
    }

    /// `taken` counts the leases in the hands of whoever takes it.
    fn grant(&self, ranges: &Ranges, taken: Arc<AtomicUsize>) -> Option<Lease> {
        let Guarded { source, shared } = &*self.0;
        let inner = Arc::new(Inner {
            shared: Arc::clone(shared),
            source: source.clone(),
            key: shared.next.fetch_add(1, Ordering::Relaxed),
            ranges: ranges.0.clone(),
            since: Instant::now(),
            handles: AtomicUsize::new(1),
            taken: Arc::clone(&taken),
            holders: Mutex::default(),
            size: AtomicU64::new(0),
        });
        if !shared.table.try_lease(&inner.ranges, inner.key, &Arc::downgrade(&inner)) {
            return None;
        }
        shared.leases.fetch_add(1, Ordering::Relaxed);
        taken.fetch_add(1, Ordering::Relaxed);
        Some(Lease { inner, taken })
    }

    /// Writes all of `data` at `offset`, as soon as no lease overlaps it, or fails at `deadline`
    /// with nothing written. From the call on, no overlapping lease is granted until it is done.
    ///
    /// # Errors
    /// [`Error::Deadline`]; [`Error::OwnLease`] if this thread's own lease is in the way;
    /// [`Error::File`] and [`Error::NotASource`] as [`Exclusive::write_at`], maybe after a part was
    /// written (by [`write_with`](Self::write_with) it can be mended before anybody sees it);
    /// [`Error::Wait`]; [`Error::Forked`].
    pub fn write_at(&self, data: &[u8], offset: u64, deadline: Instant) -> Result<(), Error> {
        self.write_with(span(offset, data)?, deadline, |range| range.write_at(data, offset))
    }

    /// As [`write_at`](Self::write_at), but never waits, and takes no place in the queue: beside
    /// leases that overlap one another it may never come to its turn.
    /// [`queue_writer`](Self::queue_writer) does.
    ///
    /// # Errors
    /// [`Error::File`] and [`Error::NotASource`] as [`Exclusive::write_at`]; [`Error::Forked`].
    pub fn try_write_at(&self, data: &[u8], offset: u64) -> Result<TryWrite, Error> {
        self.0.shared.ours()?;
        let range = span(offset, data)?;
        match self.0.shared.table.try_writer(&range) {
            Ok(key) => {
                let writer = self.writer(range, key);
                writer.write_at(data, offset)?;
                Ok(TryWrite::Written)
            }
            Err(leases) => {
                // What is merely not reaped yet is not in the way.
                let leases: Vec<_> = leases.iter().filter_map(Weak::upgrade).collect();
                let held = InTheWay::of(&leases);
                drop(leases);
                held.known().iter().for_each(reap);
                match self.0.shared.table.try_writer(&range) {
                    Ok(key) => {
                        self.writer(range, key).write_at(data, offset)?;
                        Ok(TryWrite::Written)
                    }
                    Err(leases) => Ok(TryWrite::InTheWay(
                        leases
                            .iter()
                            .filter_map(Weak::upgrade)
                            .flat_map(|l| l.describe(&range))
                            .collect(),
                    )),
                }
            }
        }
    }

    /// As [`write_at`](Self::write_at), but at `deadline` it aborts the connections on which the
    /// range is still in flight (and those that have sent under a lease that is still in hand, of
    /// which more may follow), waits for their notifications, and then writes: for a cache that
    /// must not wait for one stalled peer.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at); [`Error::Deadline`] if the notifications do not come
    /// within 30 seconds of the abort, or a lease in somebody's hands, or another writer, is in
    /// the way that long.
    pub fn write_at_abort(&self, data: &[u8], offset: u64, deadline: Instant) -> Result<(), Error> {
        let writer = self.acquire(span(offset, data)?, deadline, true)?;
        writer.write_at(data, offset)
    }

    /// Waits until no lease overlaps `range`, and keeps everybody else out of it while `write`
    /// runs: to fill a slot by several writes, and then publish it.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at), and what `write` fails with.
    pub fn write_with<T>(
        &self,
        range: Range<u64>,
        deadline: Instant,
        write: impl FnOnce(&Exclusive) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let writer = self.acquire(range, deadline, false)?;
        write(&writer)
    }

    /// Sets the size of the file, when no lease is on the bytes that this changes: all from the
    /// smaller of both sizes on. (The kernel zeroes the rest of the folio that the new end is in:
    /// a sender in flight would send NULs.)
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    pub fn set_len(&self, len: u64, deadline: Instant) -> Result<(), Error> {
        loop {
            let from = self.0.source.size()?.min(len);
            match self.acquire(from..u64::MAX, deadline, false)?.set_len(len) {
                // Another one has shrunk it meanwhile.
                Err(Error::NotLeased { .. }) => {}
                set => return set,
            }
        }
    }

    /// Punches a hole: the bytes of `range` become zeroes and their space is freed. Waits for
    /// leases on all folios (up to 2 MiB, aligned) that the range touches, since the kernel may
    /// split and zero them.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at); [`Error::File`] where the filesystem cannot punch.
    pub fn punch_hole(&self, range: Range<u64>, deadline: Instant) -> Result<(), Error> {
        if range.is_empty() {
            return Ok(());
        }
        self.acquire(folios(range.clone()), deadline, false)?.punch_hole(range)
    }

    /// The source of the file, for sends without a lease. Nothing protects those from writers.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.0.source
    }

    /// What is leased now: in somebody's hands, or in flight as far as the notifications read so
    /// far say.
    #[must_use]
    pub fn in_flight(&self) -> Vec<Leased> {
        let leases = self.0.shared.table.leases();
        leases
            .iter()
            .filter_map(|(range, l)| Some(l.upgrade()?.describe_one(range.clone())))
            .collect()
    }

    /// Writers that write or wait now.
    #[must_use]
    pub fn writers(&self) -> usize {
        self.0.shared.table.writers()
    }

    /// What has happened on the file.
    #[must_use]
    pub fn counters(&self) -> GuardCounters {
        let shared = &self.0.shared;
        GuardCounters {
            leases: shared.leases.load(Ordering::Relaxed),
            writes: shared.writes.load(Ordering::Relaxed),
            waits: shared.waits.load(Ordering::Relaxed),
            aborts: shared.aborts.load(Ordering::Relaxed),
        }
    }
}

impl fmt::Debug for GuardedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardedFile")
            .field("identity", &self.0.shared.identity)
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}

impl AsFd for GuardedFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.source.as_fd()
    }
}

impl Shared {
    fn is_ours(&self) -> bool {
        self.process.is_current()
    }

    /// That it is. Asked before the table's lock, which a thread of the parent's may have had when
    /// it forked.
    fn ours(&self) -> Result<(), Error> {
        if self.is_ours() { Ok(()) } else { Err(Error::Forked) }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(tables) = lock(&SHARED).as_mut() {
            // A new one may have taken its place already.
            let key = (self.process, self.identity);
            if tables.get(&key).is_some_and(|t| t.strong_count() == 0) {
                tables.remove(&key);
            }
        }
    }
}

impl Lease {
    /// The leased ranges, sorted and disjoint.
    #[must_use]
    pub fn ranges(&self) -> &[Range<u64>] {
        &self.inner.ranges
    }

    /// Whether all of `range` is leased.
    #[must_use]
    pub fn covers(&self, range: &Range<u64>) -> bool {
        range.is_empty()
            || self.inner.ranges.iter().any(|r| r.start <= range.start && range.end <= r.end)
    }

    /// The source of the file that is leased. Sends of it under the lease are
    /// [`try_send_lease`](crate::Sender::try_send_lease).
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.inner.source
    }

    /// That it is no fork's copy of its parent's.
    pub(crate) fn ours(&self) -> Result<(), Error> {
        self.inner.shared.ours()
    }

    /// What the file is like, as far as `range` is concerned, which is leased.
    pub(crate) fn extent(&self, range: &Range<u64>) -> Result<Extent, Error> {
        let size = self.inner.size.load(Ordering::Relaxed);
        if range.end <= size {
            return Ok(Extent { size, sparse: false });
        }
        let extent = self.inner.source.extent()?;
        if !extent.sparse {
            self.inner.size.store(extent.size, Ordering::Relaxed);
        }
        Ok(extent)
    }

    /// What a send holds, so that the lease ends no earlier than its release. The holder is known
    /// to waiting writers from here on.
    pub(crate) fn hold(
        &self,
        holder: &Arc<impl CompletionSource + 'static>,
    ) -> crate::holder::Held {
        let mut holders = lock(&self.inner.holders);
        // The place of one that is gone is not given to another while it is listed.
        let known = holders.iter().any(|h| std::ptr::addr_eq(h.as_ptr(), Arc::as_ptr(holder)));
        if !known {
            // Connections that are gone have nothing in flight.
            holders.retain(|h| h.strong_count() > 0);
            holders.push(Arc::downgrade(holder) as Weak<dyn CompletionSource>);
        }
        drop(holders);
        if !known {
            self.inner.shared.table.waiting_writers(&self.inner.ranges).wake();
        }
        Arc::clone(&self.inner) as crate::holder::Held
    }
}

impl Clone for Lease {
    fn clone(&self) -> Self {
        self.inner.handles.fetch_add(1, Ordering::Relaxed);
        self.taken.fetch_add(1, Ordering::Relaxed);
        Lease { inner: Arc::clone(&self.inner), taken: Arc::clone(&self.taken) }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.inner.handles.fetch_sub(1, Ordering::Relaxed);
        self.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("ranges", &self.inner.ranges).finish_non_exhaustive()
    }
}

impl Inner {
    fn is_in_hand_of_this_thread(&self) -> bool {
        self.handles.load(Ordering::Relaxed) > 0 && Arc::ptr_eq(&self.taken, &taken())
    }

    /// The connections that have sent under it and are still there.
    fn holders(&self) -> Vec<Arc<dyn CompletionSource>> {
        lock(&self.holders).iter().filter_map(Weak::upgrade).collect()
    }

    fn describe_one(&self, range: Range<u64>) -> Leased {
        let this = std::ptr::from_ref(self);
        let holds = |h: &Arc<dyn CompletionSource>| {
            h.holds(&|held| std::ptr::eq(Arc::as_ptr(held).cast(), this))
        };
        let peers = self.holders().into_iter().filter(holds).filter_map(|h| h.peer()).collect();
        let in_hand = self.handles.load(Ordering::Relaxed) > 0;
        Leased { range, age: self.since.elapsed(), peers, in_hand }
    }

    fn describe(&self, within: &Range<u64>) -> Vec<Leased> {
        let overlap = |r: &&Range<u64>| r.start.max(within.start) < r.end.min(within.end);
        self.ranges.iter().filter(overlap).map(|r| self.describe_one(r.clone())).collect()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // In a fork nothing ends: it is the parent's.
        if self.shared.is_ours() {
            self.shared.table.end_lease(&self.ranges, self.key).wake();
        }
    }
}

struct Lessee<'a> {
    shared: &'a Shared,
    key: u64,
}

impl Drop for Lessee<'_> {
    fn drop(&mut self) {
        if self.shared.is_ours() {
            self.shared.table.remove_lessee(self.key);
        }
    }
}

fn taken() -> Arc<AtomicUsize> {
    let taken = TAKEN.try_with(|taken| {
        let mut taken = taken.borrow_mut();
        taken.take_if(|(process, _)| !process.is_current());
        let (_, count) = taken.get_or_insert_with(|| (Process::current(), Arc::default()));
        Arc::clone(count)
    });
    // While the thread ends there is none any more, and what it takes then is not counted.
    taken.unwrap_or_default()
}

fn span(offset: u64, data: &[u8]) -> Result<Range<u64>, Error> {
    let end = offset.checked_add(data.len() as u64);
    end.map(|end| offset..end).ok_or_else(|| Error::file("pwrite", offset)(rustix::io::Errno::FBIG))
}
