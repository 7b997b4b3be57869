//! Asking the page cache, by a way that was seen to answer.

use std::fmt;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::OnceLock;

use rustix::fs::MemfdFlags;
use rustix::io::Errno;

use super::pages::page;
use crate::not_detached::NotDetached;
use crate::source::Source;
use crate::sys::mapping::{Mapping, Region};
use crate::sys::page_cache;

/// A page that was read may be gone again before it is asked for.
const TRIES: u32 = 8;

/// The bytes of a file that are looked at before any is read.
const LOOK: u64 = 1 << 20;

/// The way in which the page cache of a file is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Proof {
    /// `cachestat(2)`, Linux 6.5. On overlayfs it never shows anything.
    Cachestat,
    /// `mincore(2)` on a mapping, which shows what may be asked, and else says that all is there.
    Mincore,
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Proof::Cachestat => "cachestat",
            Proof::Mincore => "mincore",
        })
    }
}

impl Proof {
    /// Finds a way that shows what is cached, or else a page which is read for that; none for an
    /// empty file.
    fn of(source: &Source) -> Result<Option<Self>, NotDetached> {
        let size = source.size()?;
        if size == 0 {
            return Ok(None);
        }
        let cached = Proof::showing(source, &(0..size.min(LOOK)))?;
        if cached.is_some() {
            return Ok(cached);
        }
        for _ in 0..TRIES {
            source.read_at(&mut [0], 0)?;
            let read = Proof::showing(source, &(0..size.min(page())))?;
            if read.is_some() {
                return Ok(read);
            }
        }
        if source.is_in_memory() {
            // A hole, of which nothing is kept.
            return Proof::of_memory().map(Some);
        }
        Err(NotDetached::NoProof)
    }

    /// Finds a way that shows a page of a file in memory.
    fn of_memory() -> Result<Self, NotDetached> {
        let memory = rustix::fs::memfd_create(c"page", MemfdFlags::CLOEXEC)
            .map_err(NotDetached::io("memfd_create", 0))?;
        rustix::io::pwrite(&memory, &[0], 0).map_err(NotDetached::io("pwrite", 0))?;
        Proof::showing(&Source::new(memory)?, &(0..1))?.ok_or(NotDetached::NoProof)
    }

    /// Returns the first way by which something of `range` is cached.
    ///
    /// # Errors
    /// A failure that may pass: it says nothing of the way.
    fn showing(source: &Source, range: &Range<u64>) -> Result<Option<Self>, NotDetached> {
        let mut failed = None;
        for way in [Proof::Cachestat, Proof::Mincore] {
            match way.cached(source, range) {
                Ok(0) => {}
                Ok(_) => return Ok(Some(way)),
                Err(why) => failed = Some(why).filter(NotDetached::is_passing).or(failed),
            }
        }
        failed.map_or(Ok(None), Err)
    }

    /// Counts the pages of `range` that are in the page cache; `range` is not empty.
    fn cached(self, source: &Source, range: &Range<u64>) -> Result<u64, NotDetached> {
        match self {
            Proof::Cachestat => page_cache::cachestat(source.as_fd(), range)
                .map(|pages| pages.cached)
                .map_err(NotDetached::io("cachestat", range.start)),
            Proof::Mincore => {
                // A mapping of its own: one that is kept may end before the file's end.
                let start = range.start / page() * page();
                let failed = |cause| NotDetached::Io { op: "mmap", offset: start, cause };
                let mapping = Mapping::new(source.as_fd(), start..range.end).map_err(failed)?;
                let region = mapping.region(start..range.end).ok_or(Errno::INVAL);
                region
                    .and_then(Region::resident_pages)
                    .map_err(NotDetached::io("mincore", range.start))
            }
        }
    }

    /// Whether pages of `range` are dirty, or being written out, as far as that can be asked.
    pub(super) fn is_unsettled(source: &Source, range: &Range<u64>) -> bool {
        let found = page_cache::cachestat(source.as_fd(), range).unwrap_or_default();
        found.dirty + found.writeback > 0
    }
}

/// The way that was found for a file; none yet while that is empty.
#[derive(Debug, Default)]
pub(super) struct Found(OnceLock<Proof>);

impl Found {
    pub(super) fn of(source: &Source) -> Result<Self, NotDetached> {
        let found = Found::default();
        found.way(source)?;
        Ok(found)
    }

    /// The way; of an empty file, in which there is nothing to be asked for, any.
    pub(super) fn way(&self, source: &Source) -> Result<Proof, NotDetached> {
        if let Some(way) = self.0.get() {
            return Ok(*way);
        }
        Ok(Proof::of(source)?.map_or(Proof::Mincore, |way| *self.0.get_or_init(|| way)))
    }

    /// Counts the pages of `range` that are in the page cache; `range` is not empty.
    pub(super) fn cached(&self, source: &Source, range: &Range<u64>) -> Result<u64, NotDetached> {
        self.way(source)?.cached(source, range)
    }
}
