//! Writing to a guarded file: the forms that wait, and those that try.

use std::ops::Range;
use std::sync::Weak;

use super::file::GuardedFile;
use super::lease::Leased;
use super::writer::{Exclusive, InTheWay, folios, reap, span};
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
    /// Writes all of `data` at `offset`, as soon as no lease overlaps it, or fails at `deadline`
    /// with nothing written. From the call on, no overlapping lease is granted until it is done.
    ///
    /// # Errors
    /// [`Error::Deadline`]; [`Error::OwnLease`] if this thread's own lease is in the way;
    /// [`Error::File`] and [`Error::NotASource`] as [`Exclusive::write_at`], maybe after a part was
    /// written (by [`write_with`](Self::write_with) it can be mended before anybody sees it);
    /// [`Error::Wait`]; [`Error::Forked`].
    pub fn write_at(
        &self,
        data: &[u8],
        offset: u64,
        deadline: impl Into<Deadline>,
    ) -> Result<(), Error> {
        let deadline = deadline.into();
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
                    Err(leases) => Ok(TryWrite::Blocked(
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
    pub fn write_at_abort(
        &self,
        data: &[u8],
        offset: u64,
        deadline: impl Into<Deadline>,
    ) -> Result<(), Error> {
        let deadline = deadline.into();
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
        deadline: impl Into<Deadline>,
        write: impl FnOnce(&Exclusive) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let deadline = deadline.into();
        let writer = self.acquire(range, deadline, false)?;
        write(&writer)
    }

    /// Sets the size of the file, when no lease is on the bytes that this changes: all from the
    /// smaller of both sizes on. (The kernel zeroes the rest of the folio that the new end is in:
    /// a sender in flight would send NULs.)
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    pub fn set_len(&self, len: u64, deadline: impl Into<Deadline>) -> Result<(), Error> {
        let deadline = deadline.into();
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
    pub fn punch_hole(
        &self,
        range: Range<u64>,
        deadline: impl Into<Deadline>,
    ) -> Result<(), Error> {
        let deadline = deadline.into();
        if range.is_empty() {
            return Ok(());
        }
        self.acquire(folios(range.clone()), deadline, false)?.punch_hole(range)
    }
}
