//! Means that take pages out of the page cache and change nothing: the old bytes, written once more.

use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};

use super::detacher::Detacher;
use super::pages::{TRIES, page};
use super::proof::Proof;
use crate::not_detached::NotDetached;
use crate::source::Source;
use crate::sys::page_cache::{self, DirectBuffer, DirectUnits, Units};

const CLONE: &str = "FICLONERANGE";

/// How often dirty pages are written out before the old bytes are rewritten all the same.
const WRITE_OUTS: u32 = 20;

impl Detacher {
    /// Takes the pages of `chunk` out, and returns how often that was tried.
    pub(super) fn take_out(&self, chunk: &Range<u64>, size: u64) -> Result<u32, NotDetached> {
        let mut pages = self.cached(chunk)?;
        for tries in 0..TRIES {
            if pages == 0 {
                return Ok(tries);
            }
            self.take_out_once(chunk, size)?;
            pages = self.cached(chunk)?;
            if pages > 0 {
                self.stayed.fetch_add(1, Ordering::Relaxed);
            }
        }
        if pages == 0 {
            return Ok(TRIES);
        }
        Err(NotDetached::Cached { range: chunk.clone(), pages, tries: TRIES })
    }

    pub(super) fn take_out_once(&self, chunk: &Range<u64>, size: u64) -> Result<(), NotDetached> {
        self.settle(chunk)?;
        self.write_old(chunk, size)
    }

    /// Writes out what is dirty: the kernel writes in place what it cannot write out. By the
    /// descriptor of its own: an error of the disk is told once to each, and the program is to be
    /// told, too.
    fn settle(&self, chunk: &Range<u64>) -> Result<(), NotDetached> {
        for _ in 0..WRITE_OUTS {
            page_cache::write_out(self.direct.as_fd(), chunk)
                .map_err(NotDetached::io("sync_file_range", chunk.start))?;
            if !Proof::is_unsettled(&self.source, chunk) {
                break;
            }
        }
        Ok(())
    }

    /// Writes the old bytes once more, by a means that takes the pages out.
    fn write_old(&self, chunk: &Range<u64>, size: u64) -> Result<(), NotDetached> {
        if !self.no_clone.load(Ordering::Relaxed) {
            let cloned = self.clone_old(chunk, size);
            if cloned.is_err() && self.source.size()? != size {
                // A clone ends at a block or at the end of the file, which is another one by now.
                // The proof shows that nothing was taken out.
                return Ok(());
            }
            if !self.was_refused_clone(&cloned) {
                return cloned;
            }
        }
        self.rewrite_old(chunk, size)
    }

    /// Whether a clone cannot do on this file: one without checksums takes no clone of one that has
    /// them.
    pub(super) fn was_refused_clone(&self, cloned: &Result<(), NotDetached>) -> bool {
        let refused = matches!(cloned, Err(NotDetached::Unsupported { op: CLONE, .. }));
        if refused {
            self.no_clone.store(true, Ordering::Relaxed);
        }
        refused
    }

    /// The whole blocks that direct I/O rewrites so that every page of `range` is touched, and the
    /// unit in which it writes: the last block of the file may be cut.
    pub(super) fn blocks(
        &self,
        range: &Range<u64>,
        size: u64,
    ) -> Result<(Range<u64>, u64), NotDetached> {
        self.blocks_with(range, size, 1)
    }

    /// The same, if the unit is no smaller than `least`.
    pub(super) fn blocks_with(
        &self,
        range: &Range<u64>,
        size: u64,
        least: u64,
    ) -> Result<(Range<u64>, u64), NotDetached> {
        let (direct, block) = self.direct_units()?;
        let unit = direct.offset.max(least);
        let block = unit.max(block);
        let mut end = range.end.next_multiple_of(block);
        if end > size {
            end = size / unit * unit;
            let last = size.saturating_sub(1) / page() * page();
            if end <= last {
                return Err(NotDetached::End { bytes: size - last, unit });
            }
        }
        Ok((range.start / block * block..end, unit))
    }

    fn rewrite_old(&self, chunk: &Range<u64>, size: u64) -> Result<(), NotDetached> {
        let (Range { start, end }, unit) = self.blocks(chunk, size)?;
        self.source.allowed(start, end - start)?;
        let len = usize::try_from(end - start).unwrap_or(0);
        let mut buffer = self.buffer(len)?;
        let old = buffer.as_mut_slice();
        let read = retry_on_intr(|| rustix::io::pread(&self.direct, &mut *old, start))
            .map_err(NotDetached::io("pread", start))?;
        // Less where somebody cut the file meanwhile; the proof shows what is left. Whole units.
        let whole = read - read % usize::try_from(unit).unwrap_or(1).max(1);
        retry_on_intr(|| rustix::io::pwrite(&self.direct, &buffer.as_slice()[..whole], start))
            .map_err(NotDetached::io("pwrite", start))?;
        Ok(())
    }

    pub(super) fn buffer(&self, len: usize) -> Result<DirectBuffer, NotDetached> {
        let (direct, _) = self.direct_units()?;
        Ok(DirectBuffer::new(len, usize::try_from(direct.memory.max(page())).unwrap_or(1)))
    }

    fn units(&self) -> Result<Units, NotDetached> {
        page_cache::units(self.direct.as_fd()).map_err(NotDetached::io("statx", 0))
    }

    /// The units of direct I/O, and the block of the filesystem.
    pub(super) fn direct_units(&self) -> Result<(DirectUnits, u64), NotDetached> {
        let units = self.units()?;
        let no_direct = || NotDetached::NoDirect { cause: Errno::INVAL.into() };
        Ok((units.direct.ok_or_else(no_direct)?, units.block))
    }

    /// Clones a copy of the old bytes into their place.
    fn clone_old(&self, chunk: &Range<u64>, size: u64) -> Result<(), NotDetached> {
        // Blocks of the filesystem, of which the file's last may be cut.
        let block = self.units()?.block.max(page());
        let chunk = chunk.start / block * block..chunk.end.next_multiple_of(block).min(size);
        let mut bytes = vec![0; usize::try_from(chunk.end - chunk.start).unwrap_or(0)];
        let mut done = 0;
        while done < bytes.len() {
            match self.source.read_at(&mut bytes[done..], chunk.start + done as u64)? {
                0 => return Err(NotDetached::io("pread", chunk.start)(Errno::NODATA)),
                n => done += n,
            }
        }
        self.clone_in(&bytes, chunk.start)
    }

    /// Puts `bytes` in their place at `offset` by a clone, which takes whole folios out of the page
    /// cache and exchanges the blocks beneath at once.
    pub(super) fn clone_in(&self, bytes: &[u8], offset: u64) -> Result<(), NotDetached> {
        let scratch = self.scratch()?;
        let mut copied = 0;
        while copied < bytes.len() {
            let write = || rustix::io::pwrite(&scratch, &bytes[copied..], copied as u64);
            match retry_on_intr(write).map_err(NotDetached::io("pwrite to a scratch file", 0))? {
                0 => return Err(NotDetached::io("pwrite to a scratch file", 0)(Errno::NOSPC)),
                n => copied += n,
            }
        }
        let range = offset..offset + bytes.len() as u64;
        let clone = || page_cache::clone_range(scratch.as_fd(), self.direct.as_fd(), &range);
        retry_on_intr(clone).map_err(|e| match e {
            Errno::INVAL | Errno::OPNOTSUPP | Errno::XDEV => NotDetached::unsupported(CLONE)(e),
            e => NotDetached::io(CLONE, offset)(e),
        })
    }

    /// Takes a page of a file beside this one out of the page cache, which nobody else has.
    pub(crate) fn works_on_scratch(&self) -> Result<(), NotDetached> {
        let scratch = self.scratch()?;
        let bytes = vec![0; usize::try_from(page()).unwrap_or(0)];
        retry_on_intr(|| rustix::io::pwrite(&scratch, &bytes, 0))
            .map_err(NotDetached::io("pwrite to a scratch file", 0))?;
        let scratch = Detacher::new(&Source::new(scratch)?)?;
        scratch.detach(&(0..page())).map(drop)
    }

    /// A file without a name, beside the file.
    pub(super) fn scratch(&self) -> Result<std::os::fd::OwnedFd, NotDetached> {
        let unsupported = NotDetached::unsupported("a scratch file beside it (O_TMPFILE)");
        let raw = std::os::fd::AsRawFd::as_raw_fd(&self.direct);
        let path = std::fs::read_link(format!("/proc/self/fd/{raw}"));
        let directory = path.ok().and_then(|path| Some(path.parent()?.to_owned()));
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let open = |directory| rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR);
        directory.ok_or(Errno::NOENT).and_then(open).map_err(unsupported)
    }
}
