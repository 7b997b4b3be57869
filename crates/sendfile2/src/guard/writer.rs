//! Writers: those that wait for a range, and those that poll.

use std::fmt;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Weak;
use std::time::Instant;

use super::clear::Need;
use super::exclusive::Exclusive;
use super::file::GuardedFile;
use super::lease::Leased;
use super::queue::{Looked, Queued};
use crate::deadline::Deadline;
use crate::error::Error;
use crate::park::Parker;

impl GuardedFile {
    /// Queues a writer of `range`, and returns at once: from here on no overlapping lease is
    /// granted, until it is dropped. For programs that poll; those that wait have
    /// [`write_at`](Self::write_at) and its siblings, which are made of the same. A range that begins
    /// behind the end of the file is taken from there on, as by [`write_with`](Self::write_with).
    ///
    /// Ask [`QueuedWriter::try_acquire`] until it gives the range, and then call its
    /// [`write_at`](Exclusive::write_at), [`set_len`](Exclusive::set_len) or
    /// [`punch_hole`](Exclusive::punch_hole).
    ///
    /// # Errors
    /// [`Error::Wait`] or [`Error::NotDetached`] if there are no descriptors left;
    /// [`Error::File`] if the size of the file cannot be asked; [`Error::Forked`].
    pub fn queue_writer(&self, range: Range<u64>) -> Result<QueuedWriter, Error> {
        self.0.shared.ours()?;
        let range = self.changed(&range)?;
        let queued = Queued::new(self, range, Need::All, Parker::new()?, None, false)?;
        Ok(QueuedWriter(queued))
    }

    /// Waits for what a write to `range` changes, as [`acquire`](Self::acquire) does.
    pub(super) fn acquire_to_write(
        &self,
        range: &Range<u64>,
        deadline: Deadline,
        abort: bool,
    ) -> Result<Exclusive, Error> {
        loop {
            let writer = self.acquire(self.changed(range)?, Need::All, deadline, abort)?;
            // The file may have been shortened meanwhile.
            if writer.covers(&self.changed(range)?).is_ok() {
                return Ok(writer);
            }
        }
    }

    /// Waits for `range`, of which `need` is detached where it may still be in flight. With
    /// `abort`, the connections in the way are aborted at the deadline.
    pub(super) fn acquire(
        &self,
        range: Range<u64>,
        need: Need,
        deadline: Deadline,
        abort: bool,
    ) -> Result<Exclusive, Error> {
        self.0.shared.ours()?;
        if let Some(writer) = self.unhindered(&range)? {
            return Ok(writer);
        }
        Parker::with(|parker| {
            let mut queued = Queued::new(self, range, need, parker, deadline.instant(), abort)?;
            loop {
                match queued.look(true)? {
                    Looked::Exclusive => return Ok(queued.writer),
                    Looked::Detach => {
                        let detached = queued.detaching().run();
                        // What is left in the way is what the writer itself ends.
                        let parts =
                            matches!((&detached, &queued.need), (Ok(Some(_)), Need::Parts(_)));
                        queued.detached(detached)?;
                        if parts {
                            return Ok(queued.writer);
                        }
                    }
                    Looked::Wait(until) => queued.heard(&parker.park(until)?),
                }
            }
        })
    }

    /// The range, if nothing at all is in the way.
    pub(super) fn unhindered(&self, range: &Range<u64>) -> Result<Option<Exclusive>, Error> {
        self.exposes()?;
        let table = &self.0.shared.table;
        let Ok(key) = table.try_writer(range) else { return Ok(None) };
        let writer = self.writer(range.clone(), key);
        Ok((!table.is_exposed(range)).then_some(writer))
    }
}

/// A writer in the queue that is polled: a place that it keeps until it is dropped, so that no
/// lease and no later writer overtakes it.
///
/// Its descriptor ([`AsFd`]) is readable when a call of [`try_acquire`](Self::try_acquire) may
/// succeed (after [`Error::NotDetached`] nothing makes it so: try again after a time); it is for poll(2), epoll (level- or edge-triggered), or tokio's
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
    /// until that is dropped. Reads the notifications that there are, and waits for nobody; only
    /// detaching what is still in flight waits for the disk.
    ///
    /// A lease that is in this very thread's hands is no error here: drop it.
    ///
    /// # Errors
    /// [`Error::Wait`] if another connection cannot be watched; [`Error::NotDetached`] if nothing
    /// that is known of is in the way, and the range may be in flight all the same: try again
    /// later. The place in the queue is kept. [`Error::Forked`].
    pub fn try_acquire(&mut self) -> Result<Option<&Exclusive>, Error> {
        Ok(self.look()?.then_some(&self.0.writer))
    }

    /// Aborts the connections that keep the range: those on which it is in flight, and those that
    /// have sent under a lease that is still in hand, of which more may follow. Returns how many
    /// they were. Revokes the leases in hand. What is in flight is freed by its completions alone,
    /// which are to be waited for.
    ///
    /// # Errors
    /// As [`try_acquire`](Self::try_acquire).
    pub fn abort_blockers(&mut self) -> Result<usize, Error> {
        Ok(if self.look()? { 0 } else { self.0.abort_blockers() })
    }

    /// The leases that are in the way; none of them if another writer is, or nobody.
    #[must_use]
    pub fn blocked_by(&self) -> Vec<Leased> {
        let Exclusive { file, range, key, .. } = &self.0.writer;
        if !file.0.shared.is_ours() {
            return Vec::new();
        }
        let (leases, _) = file.0.shared.table.blockers(*key);
        leases.iter().filter_map(Weak::upgrade).flat_map(|lease| lease.describe(range)).collect()
    }

    fn look(&mut self) -> Result<bool, Error> {
        self.0.writer.file.0.shared.ours()?;
        // Whoever polls chooses when it is tried again.
        self.0.retry_at = None;
        loop {
            // All that there is, so that the next event is an edge; but a ring may have more for ever.
            let events = self.0.watched.parker.park(Some(Instant::now()))?;
            self.0.heard(&events);
            match self.0.look(false)? {
                Looked::Exclusive => return Ok(true),
                Looked::Detach => {
                    let detached = self.0.detaching().run();
                    self.0.detached(detached)?;
                }
                Looked::Wait(_) if events.is_empty() => return self.0.waits_for_others(),
                Looked::Wait(_) => {}
            }
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
