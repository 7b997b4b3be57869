//! A range that one writer has, and what may be done with it.

use std::fmt;
use std::ops::Range;
use std::sync::Weak;
use std::sync::atomic::Ordering;

use rustix::fs::FallocateFlags;

use super::file::GuardedFile;
use super::ranges::folios;
use crate::error::Error;

impl GuardedFile {
    pub(super) fn writer(&self, range: Range<u64>, key: u64) -> Exclusive {
        Exclusive { file: self.clone(), pages: range.clone(), range, key }
    }

    /// The bytes that a write to `range` changes: these, and, where they begin behind the end of the
    /// file, all from there on, which become zeroes.
    pub(super) fn changed(&self, range: &Range<u64>) -> Result<Range<u64>, Error> {
        if range.is_empty() {
            return Ok(range.clone());
        }
        Ok(range.start.min(self.0.source.size()?)..range.end)
    }

    /// The bytes that nobody else may have while the size of the file changes from `size` to `len`:
    /// those that change; and what is left of a page of which so little is left that it cannot be
    /// detached any more, nor could what of it is in flight.
    pub(super) fn resized(&self, size: u64, len: u64) -> Range<u64> {
        let from = size.min(len);
        let page = rustix::param::page_size() as u64;
        let start = from / page * page;
        let cut = self.detacher().is_ok_and(|detacher| {
            detacher.is_some_and(|detacher| {
                detacher.allows_with(&(start..size), size)
                    && !detacher.always_allows_with(&(start..from), from)
            })
        });
        if cut { start..u64::MAX } else { from..u64::MAX }
    }
}

/// A range that nobody else sends or writes, until this is dropped.
pub struct Exclusive {
    pub(super) file: GuardedFile,
    pub(super) range: Range<u64>,
    pub(super) key: u64,
    /// The pages that were detached for it.
    pub(super) pages: Range<u64>,
}

impl Exclusive {
    /// The range: what was asked for, and, where that begins behind the end of the file, what is
    /// between.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Writes all of `data` at `offset` of the file, which must be within the range. Where that is
    /// behind the end of the file, what is between becomes zeroes, and must be within it, too: it was
    /// when the range was asked for, but the file may have been shortened since.
    ///
    /// # Errors
    /// [`Error::NotLeased`] with the bytes that it must cover, if they are not within: queue again.
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
        let span = self.file.changed(&span(offset, data)?)?;
        if !data.is_empty() {
            self.covers(&span)?;
        }
        let _busy = self.file.0.shared.detaching.regions.enter(&span, false);
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
    /// new end is in: a sender in flight would send NULs.) Where the new end leaves less of a page
    /// than direct I/O can write, mostly 512 bytes, it must cover that, too: later it could not be
    /// detached.
    ///
    /// # Errors
    /// [`Error::NotLeased`] with the bytes that it must cover, if they are not within the range;
    /// [`Error::File`], with EFBIG behind `RLIMIT_FSIZE`; [`Error::Forked`].
    pub fn set_len(&self, len: u64) -> Result<(), Error> {
        self.file.0.shared.ours()?;
        let source = self.file.source();
        let size = source.size()?;
        self.covers(&self.file.resized(size, len))?;
        if size < len {
            source.allowed(len, 0)?;
        }
        let changed = folios(size.min(len)..size.max(len));
        let _busy = self.file.0.shared.detaching.regions.enter(&changed, true);
        rustix::io::retry_on_intr(|| rustix::fs::ftruncate(&self.file, len))
            .map_err(Error::file("ftruncate", len))?;
        self.file.0.shared.reach.fetch_min(len, Ordering::Relaxed);
        self.dropped(size);
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
        let folios = folios(hole.clone());
        self.covers(&folios)?;
        let size = self.file.source().size()?;
        let _busy = self.file.0.shared.detaching.regions.enter(&folios, true);
        let Range { start, end } = hole;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::io::retry_on_intr(|| rustix::fs::fallocate(&self.file, flags, start, end - start))
            .map_err(Error::file("fallocate", start))?;
        self.dropped(size);
        self.count();
        Ok(())
    }

    pub(super) fn covers(&self, range: &Range<u64>) -> Result<(), Error> {
        if range.start < self.range.start || range.end > self.range.end {
            return Err(Error::NotLeased { range: range.clone() });
        }
        Ok(())
    }

    /// No page of the range is in the cache as it was in the file of this size: those at its edges
    /// were detached, and the others have been dropped as a whole, and stay with the packets.
    pub(super) fn dropped(&self, size: u64) {
        let shared = &self.file.0.shared;
        let there = self.range.start..self.range.end.min(size);
        let (leases, _) = shared.table.blockers(self.key);
        leases.iter().filter_map(Weak::upgrade).for_each(|lease| lease.keep(&there));
        shared.detaching.note_exposed(shared.table.exposed_folios(&there));
        shared.table.detached(self.key, &self.pages).wake();
    }

    pub(super) fn count(&self) {
        self.file.0.shared.writes.fetch_add(1, Ordering::Relaxed);
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

pub(super) fn span(offset: u64, data: &[u8]) -> Result<Range<u64>, Error> {
    let end = offset.checked_add(data.len() as u64);
    end.map(|end| offset..end).ok_or_else(|| Error::file("pwrite", offset)(rustix::io::Errno::FBIG))
}
