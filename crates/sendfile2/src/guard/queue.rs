//! The place of a writer in the queue, and whom it watches there.

use std::borrow::Borrow;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::clear::{DetachJob, Detaches, Need};
use super::exclusive::Exclusive;
use super::file::GuardedFile;
use super::lease::{Inner, held_lease};
use crate::error::Error;
use crate::holder::CompletionSource;
use crate::not_detached::NotDetached;
use crate::park::{Event, Parker};
use crate::trace;

/// After aborting the connections in its way, a writer gives their notifications this long to
/// arrive; queueing disciplines were seen to keep segments for seconds.
const AFTER_ABORT: Duration = Duration::from_secs(30);

/// A writer in the queue, where it stays until it is dropped, whatever happens. Who waits, and how,
/// is its owner's affair.
pub(super) struct Queued<P: Borrow<Parker>> {
    pub(super) writer: Exclusive,
    /// The parts of the range that are to be detached.
    pub(super) need: Need,
    began: Instant,
    pub(super) deadline: Option<Instant>,
    /// At the deadline, the connections in the way are to be aborted.
    abort: bool,
    pub(super) watched: Watched<P>,
    in_the_way: InTheWay,
    /// There may be another connection to watch.
    changed: bool,
    /// It is time to revoke leases.
    revokes: bool,
    /// All that is in the way was handed over or can be kept aside, and can be detached.
    detachable: bool,
    /// A lease in the way is in its own thread's hands, and waits for nobody else.
    own: bool,
    /// Only a limit forbids that, which others may make room in.
    limited: bool,
    /// Why it could not be detached the last time, when that is to be tried again, and how long
    /// after.
    not_detached: Option<NotDetached>,
    pub(super) retry_at: Option<Instant>,
    pause: Duration,
}

/// The next step of a writer in the queue.
pub(super) enum Looked {
    /// Write.
    Exclusive,
    /// Detach what is in flight, by [`Queued::detaching`].
    Detach,
    /// Wait, until then at most.
    Wait(Option<Instant>),
}

/// After how long a range that could not be detached is tried again, the first time and at most.
const RETRY: Duration = Duration::from_millis(5);
const RETRY_AT_MOST: Duration = Duration::from_millis(500);

impl<P: Borrow<Parker>> Queued<P> {
    pub(super) fn new(
        file: &GuardedFile,
        range: Range<u64>,
        need: Need,
        parker: P,
        deadline: Option<Instant>,
        abort: bool,
    ) -> Result<Self, Error> {
        file.exposes()?;
        let shared = &file.0.shared;
        let key = shared.table.queue_writer(range.clone(), Some(parker.borrow().waker()));
        if !shared.table.is_active(key) {
            shared.waits.fetch_add(1, Ordering::Relaxed);
        }
        Ok(Queued {
            writer: file.writer(range, key),
            need,
            began: Instant::now(),
            deadline,
            abort,
            watched: Watched::new(parker),
            in_the_way: InTheWay::of(&[]),
            changed: true,
            revokes: false,
            detachable: false,
            own: false,
            limited: false,
            not_detached: None,
            retry_at: None,
            pause: RETRY,
        })
    }

    /// Whether it waits for others, as whoever polls is told; and not only for what cannot be
    /// detached.
    pub(super) fn waits_for_others(&mut self) -> Result<bool, Error> {
        match self.not_detached.take() {
            Some(why) if self.is_active() => Err(Error::NotDetached(why.into())),
            _ => Ok(false),
        }
    }

    fn is_active(&self) -> bool {
        let active = self.writer.file.0.shared.table.is_active(self.writer.key);
        if active {
            trace::trace!(range = ?self.writer.range, waited = ?self.began.elapsed(), "exclusive");
        }
        active
    }

    /// Returns the next step. Who is in the way is watched and reaped, and aborted when it is time.
    /// `thread` says that its own thread waits for it, and must not hold what it waits for.
    pub(super) fn look(&mut self, thread: bool) -> Result<Looked, Error> {
        if self.is_active() {
            return self.look_at_exposure();
        }
        if std::mem::take(&mut self.limited) && self.may_try() {
            self.changed = true;
        }
        if std::mem::take(&mut self.changed) {
            let Exclusive { file, range, key, .. } = &self.writer;
            let (leases, earlier) = file.0.shared.table.blockers(*key);
            let leases: Vec<_> = leases.iter().filter_map(Weak::upgrade).collect();
            let own = |l: &Arc<Inner>| l.is_in_hand_of_this_thread() && !l.aside.is_with_a_ring();
            self.own = thread && leases.iter().any(own);
            self.in_the_way = InTheWay::of(&leases);
            if self.revokes {
                // A ring has answered meanwhile.
                self.in_the_way.revoke();
            }
            let detaches = file.detaches(range, &leases);
            self.detachable = !earlier && detaches == Detaches::Now;
            self.limited = !earlier && detaches == Detaches::WithRoom;
            if self.limited {
                self.pause();
            }
            // A lease that ends now must not end later because of us.
            drop(leases);
            // What cannot be watched now is to be tried again.
            self.watched.add(self.in_the_way.known()).inspect_err(|_| self.changed = true)?;
            if self.is_active() {
                return self.look_at_exposure();
            }
        }
        if self.own && !self.detachable {
            return Err(Error::OwnLease);
        }
        if self.detachable && self.may_try() {
            return Ok(Looked::Detach);
        }
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            if !std::mem::take(&mut self.abort) {
                let (leases, _) = self.writer.file.0.shared.table.blockers(self.writer.key);
                return Err(Error::Deadline(if leases.is_empty() {
                    "another writer is in the way of the writer"
                } else {
                    "leases are in the way of the writer (GuardedFile::in_flight tells on which \
                     connections)"
                }));
            }
            self.deadline = Some(Instant::now() + AFTER_ABORT);
            self.abort_blockers();
            return self.look(thread);
        }
        if self.is_active() {
            return self.look_at_exposure();
        }
        Ok(Looked::Wait(self.until()))
    }

    /// Nobody is in the way; but the range may be in flight without anybody's knowing.
    fn look_at_exposure(&mut self) -> Result<Looked, Error> {
        if !self.writer.file.0.shared.table.is_exposed(&self.writer.range) {
            return Ok(Looked::Exclusive);
        }
        if self.may_try() {
            return Ok(Looked::Detach);
        }
        let late = self.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if late && std::mem::take(&mut self.abort) {
            // Nobody is left to be aborted: the disk has as long as the notifications would.
            self.deadline = Some(Instant::now() + AFTER_ABORT);
            return Ok(Looked::Wait(self.until()));
        }
        match self.not_detached.take() {
            Some(why) if late => Err(Error::NotDetached(why.into())),
            why => {
                self.not_detached = why;
                Ok(Looked::Wait(self.until()))
            }
        }
    }

    fn may_try(&self) -> bool {
        self.retry_at.is_none_or(|at| Instant::now() >= at)
    }

    fn until(&self) -> Option<Instant> {
        let retries = self.detachable || self.limited || self.is_active();
        let retry = self.retry_at.filter(|_| retries);
        [self.deadline, retry].into_iter().flatten().min()
    }

    /// Returns the job that detaches the range, whose result [`detached`](Self::detached) is given.
    pub(super) fn detaching(&self) -> DetachJob {
        let Exclusive { file, range, key, .. } = &self.writer;
        let leases = self.in_the_way.0.values().cloned().collect();
        DetachJob::new(file, *key, range, self.need.clone(), leases, self.deadline)
    }

    /// Notes what became of it.
    pub(super) fn detached(
        &mut self,
        result: Result<Option<Range<u64>>, NotDetached>,
    ) -> Result<(), Error> {
        let why = match result {
            Ok(pages) => {
                self.changed |= pages.is_none();
                self.writer.pages = pages.unwrap_or_else(|| self.writer.range());
                self.not_detached = None;
                return Ok(());
            }
            Err(why) => why,
        };
        if !why.is_for_now() {
            if self.is_active() {
                return Err(Error::NotDetached(why.into()));
            }
            // What is in flight is waited for.
            self.detachable = false;
            return Ok(());
        }
        self.not_detached = Some(why);
        self.pause();
        Ok(())
    }

    /// Lets some time pass before the next try.
    fn pause(&mut self) {
        self.retry_at = Some(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(RETRY_AT_MOST);
    }

    /// Aborts the connections that keep the range, and says how many they were; revokes the leases
    /// that are in hand. Who that is has been looked at before; since the writer is in the queue,
    /// no lease was added.
    pub(super) fn abort_blockers(&mut self) -> usize {
        let holders = self.in_the_way.holders();
        for holder in &holders {
            trace::debug!(range = ?self.writer.range, peer = ?holder.peer(), "aborted for a writer");
            self.writer.file.0.shared.aborts.fetch_add(1, Ordering::Relaxed);
            if let Err(e) = holder.abort() {
                trace::error!("aborting for a writer: {e}");
            }
            reap(holder);
        }
        self.revokes = true;
        self.changed = true;
        self.in_the_way.revoke();
        holders.len()
    }

    pub(super) fn heard(&mut self, events: &[Event]) {
        for event in events {
            self.watched.reap(event.key);
        }
        self.changed |= events.iter().any(Event::is_bell);
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

    /// Revokes those that can be.
    fn revoke(&self) {
        self.0.values().filter_map(Weak::upgrade).for_each(|lease| lease.revoke());
    }

    /// Those of them that keep a lease: on which it is in flight, or, while somebody has it in
    /// hand, that may be about to send more of it (a copied send is nowhere in flight).
    fn holders(&self) -> Vec<Arc<dyn CompletionSource>> {
        let in_hand: HashSet<*const ()> = self
            .0
            .values()
            .filter_map(Weak::upgrade)
            .filter(|lease| !lease.is_handed_over())
            .flat_map(|lease| lease.holders())
            .map(|holder| Arc::as_ptr(&holder).cast())
            .collect();
        let ours =
            |held: &crate::holder::Held| held_lease(held).is_some_and(|l| self.0.contains_key(&l));
        let keeps = |h: &Arc<dyn CompletionSource>| {
            in_hand.contains(&Arc::as_ptr(h).cast()) || h.holds(&ours)
        };
        self.known().into_iter().filter(keeps).collect()
    }
}

/// The connections that a waiting writer watches. It does not keep them: one that is drained may
/// be closed by its sender meanwhile, and then its peer is to see the end.
pub(super) struct Watched<P: Borrow<Parker>> {
    pub(super) parker: P,
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
        trace::warn!("reaping for a writer: {e}");
    }
}
