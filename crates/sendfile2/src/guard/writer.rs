//! Writers: how a range is waited for, and what may be done with it then.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::{GuardedFile, Inner, span};
use crate::error::Error;
use crate::holder::Holder;
use crate::park::{Event, Parker};

/// After aborting the connections in its way, a writer gives their notifications this long to
/// arrive; queueing disciplines were seen to keep segments for seconds.
const AFTER_ABORT: Duration = Duration::from_secs(30);

impl GuardedFile {
    pub(super) fn writer(&self, range: Range<u64>, key: u64) -> Exclusive {
        Exclusive { file: self.clone(), range, key }
    }

    /// Waits for `range`. With `abort`, the connections in the way are aborted at the deadline.
    pub(super) fn acquire(
        &self,
        range: Range<u64>,
        deadline: Instant,
        abort: bool,
    ) -> Result<Exclusive, Error> {
        if let Ok(key) = self.0.shared.table.try_writer(&range) {
            return Ok(self.writer(range, key));
        }
        Parker::with(|parker| {
            let mut queued = Queued::new(self, range, parker, Some(deadline), abort);
            loop {
                if queued.look(true)? {
                    return Ok(queued.writer);
                }
                queued.heard(&parker.park(queued.deadline)?);
            }
        })
    }
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
    pub fn write_at(&self, data: &[u8], offset: u64) -> Result<(), Error> {
        let span = span(offset, data)?;
        if !data.is_empty() && (span.start < self.range.start || span.end > self.range.end) {
            return Err(Error::NotLeased { range: span });
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

    pub(super) fn count(&self) {
        self.file.0.shared.writes.fetch_add(1, Ordering::Relaxed);
    }
}

/// A writer in the queue, where it stays until it is dropped, whatever happens. Who waits, and how,
/// is its owner's affair.
pub(super) struct Queued<'a> {
    pub(super) writer: Exclusive,
    began: Instant,
    pub(super) deadline: Option<Instant>,
    /// At the deadline, the connections in the way are to be aborted.
    abort: bool,
    watched: Watched<'a>,
    in_the_way: InTheWay,
    /// There may be another connection to watch.
    changed: bool,
}

impl<'a> Queued<'a> {
    pub(super) fn new(
        file: &GuardedFile,
        range: Range<u64>,
        parker: &'a Parker,
        deadline: Option<Instant>,
        abort: bool,
    ) -> Self {
        let key = file.0.shared.table.queue_writer(range.clone(), Some(parker.waker()));
        file.0.shared.waits.fetch_add(1, Ordering::Relaxed);
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
            self.watched.add(self.in_the_way.known())?;
            if self.is_active() {
                return Ok(true);
            }
        }
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            if !std::mem::take(&mut self.abort) {
                return Err(Error::Deadline("leases are in the way of the writer"));
            }
            self.deadline = Some(Instant::now() + AFTER_ABORT);
            for holder in self.in_the_way.holders() {
                tracing::debug!(range = ?self.writer.range, peer = ?holder.peer(), "aborted for a writer");
                shared.aborts.fetch_add(1, Ordering::Relaxed);
                if let Err(e) = holder.abort() {
                    tracing::error!("aborting for a writer: {e}");
                }
                reap(&holder);
            }
        }
        Ok(self.is_active())
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
        self.file.0.shared.table.remove_writer(self.key).wake();
    }
}

/// Leases that are in the way, without prolonging them.
pub(super) struct InTheWay(HashMap<usize, Weak<Inner>>);

impl InTheWay {
    pub(super) fn of(leases: &[Arc<Inner>]) -> Self {
        InTheWay(leases.iter().map(|l| (Arc::as_ptr(l).addr(), Arc::downgrade(l))).collect())
    }

    /// The connections that have sent under them and are still there, each once.
    pub(super) fn known(&self) -> Vec<Arc<dyn Holder>> {
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
    fn holders(&self) -> Vec<Arc<dyn Holder>> {
        let in_hand: HashSet<*const ()> = self
            .0
            .values()
            .filter_map(Weak::upgrade)
            .filter(|lease| lease.handles.load(Ordering::Relaxed) > 0)
            .flat_map(|lease| lease.holders())
            .map(|holder| Arc::as_ptr(&holder).cast())
            .collect();
        let ours = |held: &crate::holder::Held| self.0.contains_key(&Arc::as_ptr(held).addr());
        let keeps =
            |h: &Arc<dyn Holder>| in_hand.contains(&Arc::as_ptr(h).cast()) || h.holds(&ours);
        self.known().into_iter().filter(keeps).collect()
    }
}

/// The connections that a waiting writer watches. It does not keep them: one that is drained may
/// be closed by its sender meanwhile, and then its peer is to see the end.
struct Watched<'a> {
    parker: &'a Parker,
    /// Each keeps its place, which is its key.
    holders: Vec<Weak<dyn Holder>>,
    known: HashSet<usize>,
}

impl<'a> Watched<'a> {
    fn new(parker: &'a Parker) -> Self {
        Watched { parker, holders: Vec::new(), known: HashSet::new() }
    }

    /// Watches those that it does not watch yet, and reaps them.
    fn add(&mut self, holders: Vec<Arc<dyn Holder>>) -> Result<(), Error> {
        for holder in holders {
            if self.known.insert(Arc::as_ptr(&holder).addr()) {
                let key = self.holders.len() as u64;
                self.parker.add(holder.as_fd(), key, holder.readiness())?;
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

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        for holder in self.holders.iter().filter_map(Weak::upgrade) {
            self.parker.remove(holder.as_fd());
        }
    }
}

pub(super) fn reap(holder: &Arc<dyn Holder>) {
    if let Err(e) = holder.reap() {
        // Its leases stay held; the connection's owner meets the error, too.
        tracing::warn!("reaping for a writer: {e}");
    }
}
