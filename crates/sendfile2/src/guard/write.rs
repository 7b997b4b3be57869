//! Writing to a guarded file: the forms that wait, and those that try.

use std::ops::Range;
use std::sync::{Arc, Weak};

use super::clear::{DetachJob, Detaches, Need};
#[cfg(doc)]
use super::detaching::Overwrite;
use super::exclusive::{Exclusive, span};
use super::file::GuardedFile;
use super::lease::{Inner, Leased};
use super::queue::{InTheWay, reap};
use super::ranges::{FOLIO, folios};
use crate::deadline::Deadline;
use crate::error::Error;

/// The outcome of a write that does not wait.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
#[non_exhaustive]
pub enum TryWrite {
    /// All of it is written.
    Written,
    /// Nothing is written. These leases are in the way; none of them if another writer is.
    Blocked(Vec<Leased>),
}

impl GuardedFile {
    /// Writes all of `data` at `offset`, aligned or not, as soon as no lease overlaps it that could not
    /// be [detached](Overwrite::Detach), or fails at `deadline` with nothing written. From the call on,
    /// no overlapping lease is granted until it is done. Behind the end of the file it takes all from
    /// there on, since what is between becomes zeroes.
    ///
    /// # Errors
    /// [`Error::Deadline`]; [`Error::NotDetached`] if the range may be in flight without our
    /// knowing, and could not be detached until then: try again later; [`Error::OwnLease`] if this
    /// thread's own lease is in the way; [`Error::File`] and [`Error::NotASource`] as
    /// [`Exclusive::write_at`], maybe after a part was written (by [`write_with`](Self::write_with)
    /// it can be mended before anybody sees it); [`Error::Wait`]; [`Error::Forked`].
    pub fn write_at(
        &self,
        data: &[u8],
        offset: u64,
        deadline: impl Into<Deadline>,
    ) -> Result<(), Error> {
        let deadline = deadline.into();
        self.write_with(span(offset, data)?, deadline, |range| range.write_at(data, offset))
    }

    /// As [`write_at`](Self::write_at), but waits for no peer and no lease (detaching waits for the
    /// disk), and takes no place in the queue: beside leases that overlap one another it may never
    /// come to its turn. [`queue_writer`](Self::queue_writer) does.
    ///
    /// # Errors
    /// [`Error::NotDetached`]; [`Error::File`] and [`Error::NotASource`] as [`Exclusive::write_at`]; [`Error::Forked`].
    pub fn try_write_at(&self, data: &[u8], offset: u64) -> Result<TryWrite, Error> {
        self.0.shared.ours()?;
        let span = span(offset, data)?;
        loop {
            let range = self.changed(&span)?;
            let writer = match self.unhindered(&range)? {
                Some(writer) => writer,
                None => match self.try_exclusive(&range)? {
                    Ok(writer) => writer,
                    Err(blocked) => return Ok(blocked),
                },
            };
            match writer.write_at(data, offset) {
                // The file was shortened meanwhile.
                Err(Error::NotLeased { .. }) => {}
                written => return written.map(|()| TryWrite::Written),
            }
        }
    }

    /// The range, after what is merely not reaped yet has been, and what is in flight was detached.
    fn try_exclusive(&self, range: &Range<u64>) -> Result<Result<Exclusive, TryWrite>, Error> {
        let table = &self.0.shared.table;
        let upgraded =
            |leases: Vec<Weak<_>>| leases.iter().filter_map(Weak::upgrade).collect::<Vec<_>>();
        let held = InTheWay::of(&upgraded(table.try_writer(range).map_or_else(
            |l| l,
            |key| {
                drop(self.writer(range.clone(), key));
                Vec::new()
            },
        )));
        held.known().iter().for_each(reap);
        drop(held);
        // While it is in the queue no lease is added; it is out of it again at once.
        let writer = self.writer(range.clone(), table.queue_writer(range.clone(), None));
        let (leases, earlier) = table.blockers(writer.key);
        let leases = upgraded(leases);
        let blocked = |leases: Vec<Arc<Inner>>| {
            Ok(Err(TryWrite::Blocked(leases.iter().flat_map(|l| l.describe(range)).collect())))
        };
        if earlier {
            return blocked(leases);
        }
        if leases.is_empty() && !table.is_exposed(range) {
            return Ok(Ok(writer));
        }
        if !leases.is_empty() && self.detaches(range, &leases) != Detaches::Now {
            return blocked(leases);
        }
        let weak = leases.iter().map(Arc::downgrade).collect();
        match DetachJob::new(self, writer.key, range, Need::All, weak, None).run() {
            Ok(Some(_)) => Ok(Ok(writer)),
            Ok(None) => blocked(leases),
            Err(why) if leases.is_empty() => Err(Error::NotDetached(why.into())),
            Err(_) => blocked(leases),
        }
    }

    /// As [`write_at`](Self::write_at), but at `deadline` it aborts the connections on which the
    /// range is still in flight (and those that have sent under a lease that is still in hand, of
    /// which more may follow), revokes the leases that are in hand, waits for the notifications, and
    /// then writes: for a cache that must not wait for one stalled peer.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at); [`Error::Deadline`] if the notifications do not come
    /// within 30 seconds of the abort, or a lease in somebody's hands, or another writer, is in
    /// the way that long.
    pub fn write_at_abort(
        &self,
        data: &[u8],
        offset: u64,
        deadline: impl Into<Deadline>,
    ) -> Result<(), Error> {
        let deadline = deadline.into();
        self.acquire_to_write(&span(offset, data)?, deadline, true)?.write_at(data, offset)
    }

    /// Waits until no lease overlaps `range` that could not be detached, and keeps everybody else out
    /// of it while `write` runs: to fill a slot by several writes, and then publish it. A range that
    /// begins behind the end of the file is taken from there on, since what is between becomes zeroes.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at), and what `write` fails with.
    pub fn write_with<T>(
        &self,
        range: Range<u64>,
        deadline: impl Into<Deadline>,
        write: impl FnOnce(&Exclusive) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let deadline = deadline.into();
        write(&self.acquire_to_write(&range, deadline, false)?)
    }

    /// Sets the size of the file, when no lease is on the bytes that this changes and could not be
    /// detached: all from the smaller of both sizes on. (The kernel zeroes the rest of the folio that the new end is in:
    /// a sender in flight would send NULs.) Where the new end leaves less of a page than direct I/O
    /// can write, mostly 512 bytes, no lease may be on that either: later it could not be detached.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    pub fn set_len(&self, len: u64, deadline: impl Into<Deadline>) -> Result<(), Error> {
        let deadline = deadline.into();
        loop {
            let size = self.0.source.size()?;
            let range = self.resized(size, len);
            // Pages that are dropped as a whole stay with the packets; the rest of the one that the
            // new end is in is zeroed. That is the second if somebody makes it larger meanwhile.
            let edge = |at: u64| folios(at..at.saturating_add(1)).end;
            let need = Need::Parts(vec![range.start..edge(size.min(len)), len..edge(len)]);
            match self.acquire(range, need, deadline, false)?.set_len(len) {
                // Another one has shrunk it meanwhile.
                Err(Error::NotLeased { .. }) => {}
                set => return set,
            }
        }
    }

    /// Punches a hole: the bytes of `range` become zeroes and their space is freed. Detaches, or waits
    /// for, leases on all folios (up to 2 MiB, aligned) that the range touches, since the kernel may
    /// split and zero them.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at); [`Error::File`] where the filesystem cannot punch.
    pub fn punch_hole(
        &self,
        range: Range<u64>,
        deadline: impl Into<Deadline>,
    ) -> Result<(), Error> {
        let deadline = deadline.into();
        if range.is_empty() {
            return Ok(());
        }
        let folios = folios(range.clone());
        let ends = [
            folios.start..folios.start.saturating_add(FOLIO),
            folios.end.saturating_sub(FOLIO)..folios.end,
        ];
        let need = Need::Parts(ends.into());
        self.acquire(folios, need, deadline, false)?.punch_hole(range)
    }
}
