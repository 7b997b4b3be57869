//! Writers: how a range is waited for, and what may be done with it then.

use std::borrow::Borrow;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustix::fs::FallocateFlags;

use super::file::GuardedFile;
use super::lease::{Inner, Leased};
use crate::deadline::Deadline;
use crate::error::Error;
use crate::holder::CompletionSource;
use crate::park::{Event, Parker};

/// The largest folio (page-cache unit) that truncating or punching may zero parts of.
const FOLIO: u64 = 2 << 20;

/// After aborting the connections in its way, a writer gives their notifications this long to
/// arrive; queueing disciplines were seen to keep segments for seconds.
const AFTER_ABORT: Duration = Duration::from_secs(30);

impl GuardedFile {
    pub(super) fn writer(&self, range: Range<u64>, key: u64) -> Exclusive {
        Exclusive { file: self.clone(), range, key }
    }

    /// Queues a writer of `range`, and returns at once: from here on no overlapping lease is
    /// granted, until it is dropped. For programs that poll; those that wait have
    /// [`write_at`](Self::write_at) and its siblings, which are made of the same.
    ///
    /// Ask [`QueuedWriter::try_acquire`] until it gives the range, and then call its
    /// [`write_at`](Exclusive::write_at), [`set_len`](Exclusive::set_len) or
    /// [`punch_hole`](Exclusive::punch_hole).
    ///
    /// # Errors
    /// [`Error::Wait`] if there are no descriptors left; [`Error::Forked`].
    pub fn queue_writer(&self, range: Range<u64>) -> Result<QueuedWriter, Error> {
        self.0.shared.ours()?;
        Ok(QueuedWriter(Queued::new(self, range, Parker::new()?, None, false)))
    }

    /// Waits for `range`. With `abort`, the connections in the way are aborted at the deadline.
    pub(super) fn acquire(
        &self,
        range: Range<u64>,
        deadline: Deadline,
        abort: bool,
    ) -> Result<Exclusive, Error> {
        self.0.shared.ours()?;
        if let Ok(key) = self.0.shared.table.try_writer(&range) {
            return Ok(self.writer(range, key));
        }
        Parker::with(|parker| {
            let mut queued = Queued::new(self, range, parker, deadline.instant(), abort);
            loop {
                if queued.look(true)? {
                    return Ok(queued.writer);
                }
                queued.heard(&parker.park(queued.deadline)?);
            }
        })
    }
}

/// The folios (the page cache's units, up to 2 MiB, aligned) that `range` touches: the range that a
/// writer must have to [punch a hole](Exclusive::punch_hole) there.
#[must_use]
pub fn folios(range: Range<u64>) -> Range<u64> {
    let end = range.end.checked_next_multiple_of(FOLIO).unwrap_or(u64::MAX);
    range.start / FOLIO * FOLIO..end
}

/// A range that nobody else sends or writes, until this is dropped.
pub struct Exclusive {
    file: GuardedFile,
    range: Range<u64>,
    key: u64,
}

impl Exclusive {
    /// The range.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Writes all of `data` at `offset` of the file, which must be within the range.
    ///
    /// # Errors
    /// [`Error::NotLeased`] if it is not within.
    ///
    /// [`Error::File`], maybe after a part was written: all before the offset that it names. With
    /// EFBIG, and nothing written, where the data would end behind `RLIMIT_FSIZE`: the kernel would
    /// write what fits, and then kill the process (SIGXFSZ).
    ///
    /// [`Error::NotASource`] if `O_APPEND` was set on the open file meanwhile (fcntl(2), by anybody
    /// who shares it) and the kernel cannot be told to ignore that: before Linux 6.9
    /// (`RWF_NOAPPEND`), and on overlayfs and filesystems that are not known. There the flags are
    /// looked at before each write; what is set in that very moment is not seen, and the data is
    /// appended. The same holds for a limit that is lowered in that moment.
    ///
    /// [`Error::Forked`].
    pub fn write_at(&self, data: &[u8], offset: u64) -> Result<(), Error> {
        self.file.0.shared.ours()?;
        let span = span(offset, data)?;
        if !data.is_empty() {
            self.covers(&span)?;
        }
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            match self.file.source().write_at(&data[done..], at)? {
                0 => return Err(Error::file("pwrite", at)(rustix::io::Errno::NOSPC)),
                n => done += n,
            }
        }
        self.count();
        Ok(())
    }

    /// Sets the size of the file. The range must cover the bytes that this changes: all from the
    /// smaller of both sizes on, to [`u64::MAX`]. (The kernel zeroes the rest of the folio that the
    /// new end is in: a sender in flight would send NULs.)
    ///
    /// # Errors
    /// [`Error::NotLeased`] with the bytes that this changes, if they are not within the range;
    /// [`Error::File`], with EFBIG behind `RLIMIT_FSIZE`; [`Error::Forked`].
    pub fn set_len(&self, len: u64) -> Result<(), Error> {
        self.file.0.shared.ours()?;
        let source = self.file.source();
        let size = source.size()?;
        self.covers(&(size.min(len)..u64::MAX))?;
        if size < len {
            source.allowed(len, 0)?;
        }
        rustix::io::retry_on_intr(|| rustix::fs::ftruncate(&self.file, len))
            .map_err(Error::file("ftruncate", len))?;
        self.count();
        Ok(())
    }

    /// Punches a hole: the bytes of `hole` become zeroes and their space is freed. The range must
    /// cover its [`folios`], since the kernel may split and zero them.
    ///
    /// # Errors
    /// [`Error::NotLeased`] with the folios, if they are not within the range; [`Error::File`]
    /// where the filesystem cannot punch; [`Error::Forked`].
    pub fn punch_hole(&self, hole: Range<u64>) -> Result<(), Error> {
        self.file.0.shared.ours()?;
        if hole.is_empty() {
            return Ok(());
        }
        self.covers(&folios(hole.clone()))?;
        let Range { start, end } = hole;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::io::retry_on_intr(|| rustix::fs::fallocate(&self.file, flags, start, end - start))
            .map_err(Error::file("fallocate", start))?;
        self.count();
        Ok(())
    }

    fn covers(&self, range: &Range<u64>) -> Result<(), Error> {
        if range.start < self.range.start || range.end > self.range.end {
            return Err(Error::NotLeased { range: range.clone() });
        }
        Ok(())
    }

    fn count(&self) {
        self.file.0.shared.writes.fetch_add(1, Ordering::Relaxed);
    }
}

/// A writer in the queue that is polled: a place that it keeps until it is dropped, so that no
/// lease and no later writer overtakes it.
///
/// Its descriptor ([`AsFd`]) is readable when [`try_acquire`](Self::try_acquire) may come to
/// something else than before; it is for poll(2), epoll (level- or edge-triggered), or tokio's
/// `AsyncFd`, and must not be read. It costs two descriptors (an epoll instance and an eventfd).
///
/// ```no_run
/// # use std::os::fd::{AsFd, BorrowedFd};
/// # fn readable(_: BorrowedFd<'_>) {}
/// # fn main() -> Result<(), sendfile2::Error> {
/// let slab = sendfile2::guard::GuardedFile::open("slab")?;
/// let mut queued = slab.queue_writer(0..4096)?;
/// loop {
///     match queued.try_acquire()? {
///         Some(range) => break range.write_at(&[0; 4096], 0)?,
///         None => readable(queued.as_fd()), // the event loop's affair
///     }
///     // … and when it has taken too long: queued.abort_blockers()?
/// }
/// # Ok(())
/// # }
/// ```
pub struct QueuedWriter(Queued<Parker>);

impl QueuedWriter {
    /// Returns the range once it is free, and `None` before; once free, it stays this writer's
    /// until that is dropped. Reads the notifications that there are, and never waits.
    ///
    /// A lease that is in this very thread's hands is no error here: drop it.
    ///
    /// # Errors
    /// [`Error::Wait`] if another connection cannot be watched: the place in the queue is kept.
    /// [`Error::Forked`].
    pub fn try_acquire(&mut self) -> Result<Option<&Exclusive>, Error> {
        Ok(self.look()?.then_some(&self.0.writer))
    }

    /// Aborts the connections that keep the range: those on which it is in flight, and those that
    /// have sent under a lease that is still in hand, of which more may follow. Returns how many
    /// they were. It frees nothing by itself: their completions do, which are to be waited for.
    ///
    /// # Errors
    /// As [`try_acquire`](Self::try_acquire).
    pub fn abort_blockers(&mut self) -> Result<usize, Error> {
        Ok(if self.look()? { 0 } else { self.0.abort_blockers() })
    }

    /// The leases that are in the way; none of them if another writer is, or nobody.
    #[must_use]
    pub fn blocked_by(&self) -> Vec<Leased> {
        let Exclusive { file, range, key } = &self.0.writer;
        if !file.0.shared.is_ours() {
            return Vec::new();
        }
        let (leases, _) = file.0.shared.table.blockers(*key);
        leases.iter().filter_map(Weak::upgrade).flat_map(|lease| lease.describe(range)).collect()
    }

    fn look(&mut self) -> Result<bool, Error> {
        self.0.writer.file.0.shared.ours()?;
        // All that there is, so that the next event is an edge.
        loop {
            let events = self.0.watched.parker.park(Some(Instant::now()))?;
            if events.is_empty() {
                return self.0.look(false);
            }
            self.0.heard(&events);
        }
    }
}

impl AsFd for QueuedWriter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.watched.parker.as_fd()
    }
}

impl fmt::Debug for QueuedWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueuedWriter").field("range", &self.0.writer.range).finish_non_exhaustive()
    }
}

/// A writer in the queue, where it stays until it is dropped, whatever happens. Who waits, and how,
/// is its owner's affair.
pub(super) struct Queued<P: Borrow<Parker>> {
    pub(super) writer: Exclusive,
    began: Instant,
    pub(super) deadline: Option<Instant>,
    /// At the deadline, the connections in the way are to be aborted.
    abort: bool,
    watched: Watched<P>,
    in_the_way: InTheWay,
    /// There may be another connection to watch.
    changed: bool,
}

impl<P: Borrow<Parker>> Queued<P> {
    pub(super) fn new(
        file: &GuardedFile,
        range: Range<u64>,
        parker: P,
        deadline: Option<Instant>,
        abort: bool,
    ) -> Self {
        let shared = &file.0.shared;
        let key = shared.table.queue_writer(range.clone(), Some(parker.borrow().waker()));
        if !shared.table.is_active(key) {
            shared.waits.fetch_add(1, Ordering::Relaxed);
        }
        Queued {
            writer: file.writer(range, key),
            began: Instant::now(),
            deadline,
            abort,
            watched: Watched::new(parker),
            in_the_way: InTheWay::of(&[]),
            changed: true,
        }
    }

    fn is_active(&self) -> bool {
        let active = self.writer.file.0.shared.table.is_active(self.writer.key);
        if active {
            tracing::trace!(range = ?self.writer.range, waited = ?self.began.elapsed(), "exclusive");
        }
        active
    }

    /// Whether it may write; if not, who is in the way is watched and reaped, and aborted when it
    /// is time. `thread` says that its own thread waits for it, and must not hold what it waits
    /// for.
    pub(super) fn look(&mut self, thread: bool) -> Result<bool, Error> {
        if self.is_active() {
            return Ok(true);
        }
        let shared = &self.writer.file.0.shared;
        if std::mem::take(&mut self.changed) {
            let (leases, _) = shared.table.blockers(self.writer.key);
            let leases: Vec<_> = leases.iter().filter_map(Weak::upgrade).collect();
            if thread && leases.iter().any(|l| l.is_in_hand_of_this_thread()) {
                return Err(Error::OwnLease);
            }
            self.in_the_way = InTheWay::of(&leases);
            // A lease that ends now must not end later because of us.
            drop(leases);
            // What cannot be watched now is to be tried again.
            self.watched.add(self.in_the_way.known()).inspect_err(|_| self.changed = true)?;
            if self.is_active() {
                return Ok(true);
            }
        }
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            if !std::mem::take(&mut self.abort) {
                let (leases, _) = shared.table.blockers(self.writer.key);
                return Err(Error::Deadline(if leases.is_empty() {
                    "another writer is in the way of the writer"
                } else {
                    "leases are in the way of the writer (GuardedFile::in_flight tells on which \
                     connections)"
                }));
            }
            self.deadline = Some(Instant::now() + AFTER_ABORT);
            self.abort_blockers();
        }
        Ok(self.is_active())
    }

    /// Aborts the connections that keep the range, and says how many they were. Who that is has
    /// been looked at before; since the writer is in the queue, no lease was added.
    fn abort_blockers(&self) -> usize {
        let holders = self.in_the_way.holders();
        for holder in &holders {
            tracing::debug!(range = ?self.writer.range, peer = ?holder.peer(), "aborted for a writer");
            self.writer.file.0.shared.aborts.fetch_add(1, Ordering::Relaxed);
            if let Err(e) = holder.abort() {
                tracing::error!("aborting for a writer: {e}");
            }
            reap(holder);
        }
        holders.len()
    }

    pub(super) fn heard(&mut self, events: &[Event]) {
        for event in events {
            self.watched.reap(event.key);
        }
        self.changed |= events.iter().any(Event::is_bell);
    }
}

impl fmt::Debug for Exclusive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exclusive").field("range", &self.range).finish_non_exhaustive()
    }
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        // In a fork it is the parent's.
        let shared = &self.file.0.shared;
        if shared.is_ours() {
            shared.table.remove_writer(self.key).wake();
        }
    }
}

/// Leases that are in the way, without prolonging them.
pub(super) struct InTheWay(HashMap<usize, Weak<Inner>>);

impl InTheWay {
    pub(super) fn of(leases: &[Arc<Inner>]) -> Self {
        InTheWay(leases.iter().map(|l| (Arc::as_ptr(l).addr(), Arc::downgrade(l))).collect())
    }

    /// The connections that have sent under them and are still there, each once.
    pub(super) fn known(&self) -> Vec<Arc<dyn CompletionSource>> {
        let mut all = HashMap::new();
        for lease in self.0.values().filter_map(Weak::upgrade) {
            for holder in lease.holders() {
                all.entry(Arc::as_ptr(&holder).cast::<()>()).or_insert(holder);
            }
        }
        all.into_values().collect()
    }

    /// Those of them that keep a lease: on which it is in flight, or, while somebody has it in
    /// hand, that may be about to send more of it (a copied send is nowhere in flight).
    fn holders(&self) -> Vec<Arc<dyn CompletionSource>> {
        let in_hand: HashSet<*const ()> = self
            .0
            .values()
            .filter_map(Weak::upgrade)
            .filter(|lease| lease.handles.load(Ordering::Relaxed) > 0)
            .flat_map(|lease| lease.holders())
            .map(|holder| Arc::as_ptr(&holder).cast())
            .collect();
        let ours = |held: &crate::holder::Held| self.0.contains_key(&Arc::as_ptr(held).addr());
        let keeps = |h: &Arc<dyn CompletionSource>| {
            in_hand.contains(&Arc::as_ptr(h).cast()) || h.holds(&ours)
        };
        self.known().into_iter().filter(keeps).collect()
    }
}

/// The connections that a waiting writer watches. It does not keep them: one that is drained may
/// be closed by its sender meanwhile, and then its peer is to see the end.
struct Watched<P: Borrow<Parker>> {
    parker: P,
    /// Each keeps its place, which is its key.
    holders: Vec<Weak<dyn CompletionSource>>,
    known: HashSet<usize>,
}

impl<P: Borrow<Parker>> Watched<P> {
    fn new(parker: P) -> Self {
        Watched { parker, holders: Vec::new(), known: HashSet::new() }
    }

    /// Watches those that it does not watch yet, and reaps them.
    fn add(&mut self, holders: Vec<Arc<dyn CompletionSource>>) -> Result<(), Error> {
        for holder in holders {
            let address = Arc::as_ptr(&holder).addr();
            if !self.known.contains(&address) {
                let key = self.holders.len() as u64;
                self.parker.borrow().add(holder.as_fd(), key, holder.readiness())?;
                self.known.insert(address);
                self.holders.push(Arc::downgrade(&holder));
                holder.flush();
                // Reaped after being watched: what comes later wakes.
                reap(&holder);
            }
        }
        Ok(())
    }

    fn reap(&self, key: u64) {
        let holder = usize::try_from(key).ok().and_then(|key| self.holders.get(key)?.upgrade());
        if let Some(holder) = holder {
            reap(&holder);
        }
    }
}

impl<P: Borrow<Parker>> Drop for Watched<P> {
    fn drop(&mut self) {
        for holder in self.holders.iter().filter_map(Weak::upgrade) {
            self.parker.borrow().remove(holder.as_fd());
        }
    }
}

pub(super) fn reap(holder: &Arc<dyn CompletionSource>) {
    if let Err(e) = holder.reap() {
        // Its leases stay held; the connection's owner meets the error, too.
        tracing::warn!("reaping for a writer: {e}");
    }
}

pub(super) fn span(offset: u64, data: &[u8]) -> Result<Range<u64>, Error> {
    let end = offset.checked_add(data.len() as u64);
    end.map(|end| offset..end).ok_or_else(|| Error::file("pwrite", offset)(rustix::io::Errno::FBIG))
}
