//! Leases in hand: of those, what was overwritten is kept aside until it is sent.

use std::ops::Range;
#[cfg(feature = "uring")]
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::lease::Inner;
#[cfg(feature = "uring")]
use super::lease::Lease;
use crate::aside::Keeping;
#[cfg(feature = "uring")]
use crate::aside::Pages;
use crate::error::Error;
use crate::not_detached::NotDetached;
use crate::source::Source;
use crate::trace;

/// The lease of a send that is queued.
#[cfg(feature = "uring")]
pub(crate) struct QueuedLease(Arc<Inner>);

/// A lease of which a ring has answered all that it was given.
#[cfg(feature = "uring")]
pub(crate) struct Answered(Arc<Inner>);

#[cfg(feature = "uring")]
impl Lease {
    /// The lease in the hands of a queue, until all of the send is accepted.
    pub(crate) fn queue(&self) -> QueuedLease {
        self.inner.queued.fetch_add(1, Ordering::Relaxed);
        QueuedLease(Arc::clone(&self.inner))
    }
}

#[cfg(feature = "uring")]
impl QueuedLease {
    /// Lets the ring be given an operation on the pages of `range`, until the result is dropped;
    /// `None` where the bytes are to be read.
    pub(crate) fn pages(&self, range: &Range<u64>) -> Option<Pages<'_>> {
        self.0.aside.pages_for_a_ring(range)
    }

    /// Reads at `offset` as [`Lease::read_at`].
    pub(crate) fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize, Error> {
        self.0.read(buffer, offset, Source::read_at)
    }

    /// Notes that the ring is given an operation on pages of the lease.
    pub(crate) fn submit(&self, from: &Pages<'_>) {
        self.0.aside.submit(from);
    }

    /// Notes that the ring has answered it. Returns what is to be dropped without a lock, if writers
    /// may be waiting for that.
    pub(crate) fn answered(&self) -> Option<Answered> {
        self.0.aside.answered().then(|| Answered(Arc::clone(&self.0)))
    }
}

#[cfg(feature = "uring")]
impl Drop for QueuedLease {
    fn drop(&mut self) {
        let last = self.0.queued.fetch_sub(1, Ordering::AcqRel) == 1;
        if last && self.0.shared.is_ours() {
            self.0.left();
        }
    }
}

#[cfg(feature = "uring")]
impl Drop for Answered {
    fn drop(&mut self) {
        if self.0.shared.is_ours() {
            self.0.shared.table.waiting_writers(&self.0.ranges).wake();
        }
    }
}

/// The bytes of `parts` in a file of this size.
pub(super) fn bytes_in_file(parts: &[Range<u64>], size: u64) -> u64 {
    parts.iter().map(|part| part.end.min(size).saturating_sub(part.start)).sum()
}

impl Inner {
    /// Whether all that will ever be sent under it has been handed over to the kernel.
    pub(super) fn is_handed_over(&self) -> bool {
        self.aside.is_revoked() || self.is_let_go()
    }

    /// Whether neither a hand nor a queue has it.
    fn is_let_go(&self) -> bool {
        self.handles.load(Ordering::Acquire) == 0 && self.queued.load(Ordering::Acquire) == 0
    }

    /// Does what follows when a hand, or a queue, has let go of it: from the last on it can be detached,
    /// and needs nothing that was overwritten.
    pub(super) fn left(&self) {
        if self.is_let_go() {
            self.forget_aside();
            self.shared.table.waiting_writers(&self.ranges).wake();
        }
    }

    /// Ends it for all who have it in hand: what they would still send or read under it fails. What
    /// is in flight stays leased until it is released. It does nothing where the addresses of its
    /// mapping were given out, or a ring is yet to answer: then it is waited for.
    pub(super) fn revoke(&self) {
        if self.aside.revoke() {
            trace::debug!(ranges = ?self.ranges, "a lease is revoked for a writer");
            self.forget_aside();
            self.end_revoked();
        }
    }

    /// Ends a revoked lease of which nothing is in flight. From there on nothing comes to be: sends
    /// begin under the lock of what is revoked.
    pub(super) fn end_revoked(&self) {
        // Whoever comes last sees both: the other one's store is before the load.
        if self.sends.load(Ordering::SeqCst) == 0 && self.aside.is_revoked() {
            self.shared.table.end_lease(&self.ranges, self.key).wake();
        }
    }

    pub(super) fn forget_aside(&self) {
        let cleared = self.aside.clear();
        self.shared.detaching.kept_aside.fetch_sub(cleared, Ordering::Relaxed);
    }

    /// The parts of `range` that would have to be kept aside before it is overwritten; `None` where
    /// that cannot be done now.
    pub(super) fn to_keep_aside(&self, range: &Range<u64>) -> Option<Vec<Range<u64>>> {
        if self.is_handed_over() {
            return Some(Vec::new());
        }
        let parts = self.ranges.iter().map(|r| r.start.max(range.start)..r.end.min(range.end));
        let parts = parts.filter(|part| !part.is_empty());
        let missing = || parts.flat_map(|part| self.aside.missing(&part)).collect();
        self.aside.is_possible().then(missing)
    }

    /// Keeps aside what it needs of `range`, which nobody writes meanwhile; `false` where that
    /// cannot be done now.
    ///
    /// # Errors
    /// The bytes cannot be read, or there is no memory for them.
    pub(super) fn keep_aside(&self, range: &Range<u64>) -> Result<bool, NotDetached> {
        let Some(parts) = self.to_keep_aside(range) else { return Ok(false) };
        let size = self.source.size()?;
        let reserved = bytes_in_file(&parts, size);
        if !self.shared.detaching.reserve_aside(reserved) {
            return Ok(false);
        }
        let pieces = parts.into_iter().map(|part| Ok((part.clone(), self.copied(&part, size)?)));
        let pieces = pieces.collect::<Result<Vec<_>, NotDetached>>();
        let keeping = pieces.map(|pieces| self.aside.keep(pieces, || !self.is_handed_over()));
        let kept = if let Ok(Keeping::Done(kept)) = keeping { kept } else { 0 };
        self.shared.detaching.kept_aside.fetch_sub(reserved - kept, Ordering::Relaxed);
        keeping.map(|keeping| keeping != Keeping::Impossible)
    }

    /// The bytes of the file in `range`, or fewer where it ends, at `size` at the latest.
    fn copied(&self, range: &Range<u64>, size: u64) -> Result<Vec<u8>, NotDetached> {
        let no_memory = || NotDetached::io("malloc", range.start)(Errno::NOMEM);
        let len = usize::try_from(range.end.min(size).saturating_sub(range.start));
        let len = len.map_err(|_| no_memory())?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|_| no_memory())?;
        bytes.resize(len, 0);
        let mut filled = 0;
        while filled < len {
            match self.source.read_at(&mut bytes[filled..], range.start + filled as u64)? {
                0 => break,
                n => filled += n,
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }

    pub(super) fn read(
        &self,
        buffer: &mut [u8],
        offset: u64,
        read: impl FnOnce(&Source, &mut [u8], u64) -> Result<usize, Error>,
    ) -> Result<usize, Error> {
        let read = self.aside.read(buffer, offset, |buffer| read(&self.source, buffer, offset));
        read.unwrap_or(Err(Error::Revoked))
    }
}
