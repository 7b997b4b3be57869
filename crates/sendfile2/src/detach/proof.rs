//! Asking the page cache, by a way that was seen to answer.

use std::fmt;
use std::ops::Range;
use std::os::fd::AsFd;

use rustix::io::Errno;

use super::pages::page;
use crate::not_detached::NotDetached;
use crate::source::Source;
use crate::sys::mapping::{Mapping, Region};
use crate::sys::page_cache;

/// A page that was read may be gone again before it is asked for.
const TRIES: u32 = 8;

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
    /// Finds a way that shows a page which was just read.
    pub(super) fn of(source: &Source) -> Result<Self, NotDetached> {
        let size = source.size()?;
        if size == 0 {
            // Nothing to read, and nothing to detach. mincore was right wherever it was tried.
            return Ok(Proof::Mincore);
        }
        let first = 0..size.min(page());
        for _ in 0..TRIES {
            source.read_at(&mut [0], 0)?;
            for way in [Proof::Cachestat, Proof::Mincore] {
                if way.cached(source, &first).is_ok_and(|pages| pages > 0) {
                    return Ok(way);
                }
            }
        }
        Err(NotDetached::NoProof)
    }

    /// Counts the pages of `range` that are in the page cache; `range` is not empty.
    pub(super) fn cached(self, source: &Source, range: &Range<u64>) -> Result<u64, NotDetached> {
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
    pub(super) fn is_unsettled(self, source: &Source, range: &Range<u64>) -> bool {
        let found = page_cache::cachestat(source.as_fd(), range).unwrap_or_default();
        found.dirty + found.writeback > 0
    }
}
