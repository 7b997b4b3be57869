//! A file whose ranges are detached.

use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::pages::{chunks, page, pages};
use super::proof::{Found, Proof};
use crate::error::Error;
use crate::not_detached::NotDetached;
use crate::refusal::Unmappable;
use crate::source::Source;
use crate::trace;

/// A file whose pages can be taken out of the page cache.
#[derive(Debug)]
pub struct Detacher {
    pub(super) source: Source,
    /// The same file, open for direct I/O.
    pub(super) direct: OwnedFd,
    proof: Found,
    /// Only direct I/O takes its pages out. On btrfs a clone does, except where it was refused, as
    /// that of a file without checksums is.
    pub(super) no_clone: AtomicBool,
    /// The unit of direct I/O is no larger, whatever becomes of the file, or as it is now.
    later: u64,
    /// Multiples of this can be written by direct I/O whatever becomes of the file.
    whole: u64,
    /// The file for writes that detach by themselves, if they were found to; once looked for.
    pub(super) flagged: OnceLock<Option<OwnedFd>>,
    /// Times that pages were still cached after they had been taken out.
    pub(crate) stayed: AtomicU64,
}

/// A range that was detached.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Detached {
    /// The range that was detached, in bytes: whole pages, cut at the end of the file.
    pub range: Range<u64>,
    /// How often the old bytes were rewritten (of the part of 1 MiB that took most), or the range was
    /// zeroed; 0 if nothing was cached.
    pub tries: u32,
    /// The time that it took.
    pub elapsed: Duration,
}

impl Detacher {
    /// Opens the file of `source` anew for direct I/O, and finds a way to ask the page cache: it
    /// must show a page that was just read. The descriptor of `source` is left as it is.
    ///
    /// # Errors
    /// [`NotDetached::NoDirect`] on filesystems without direct I/O (tmpfs) and for files that may
    /// not be written; [`NotDetached::NoProof`]; [`NotDetached::Io`].
    pub fn new(source: &Source) -> Result<Self, NotDetached> {
        if source.is_in_memory() {
            // It may be opened so since Linux 6.6, and keeps its pages all the same.
            return Err(NotDetached::NoDirect { cause: Errno::OPNOTSUPP.into() });
        }
        let (direct, source) = anew(source, OFlags::DIRECT).map_err(|why| match why {
            NotDetached::Unsupported { cause, .. } => NotDetached::NoDirect { cause },
            why => why,
        })?;
        let proof = Found::of(&source)?;
        let no_clone = AtomicBool::new(!source.is_btrfs());
        let (later, whole, stayed) = (1, page(), AtomicU64::new(0));
        let flagged = OnceLock::new();
        let mut detacher =
            Detacher { source, direct, proof, no_clone, later, whole, flagged, stayed };
        if detacher.no_clone.load(Ordering::Relaxed) {
            let (_, block) = detacher.direct_units()?;
            if !detacher.source.keeps_direct_unit() {
                detacher.later = block;
                detacher.whole = block.max(page());
            }
        }
        Ok(detacher)
    }

    /// Returns the way in which the page cache of this file is asked. Of an empty file, of which there
    /// is nothing to ask, it is found later.
    #[must_use]
    pub fn proof(&self) -> Proof {
        self.proof.way(&self.source).unwrap_or(Proof::Mincore)
    }

    pub(super) fn cached(&self, range: &Range<u64>) -> Result<u64, NotDetached> {
        self.proof.cached(&self.source, range)
    }

    /// Takes every page of `range` out of the page cache: writes them out, rewrites the old bytes
    /// by direct I/O (on btrfs: by a clone of a copy), and proves that each has been out since the
    /// call began. What was in flight before the call keeps its pages. Bytes behind the end of
    /// the file cannot be in flight and are passed over.
    ///
    /// Whoever sends from the range between this call and a write to it refers to the new pages.
    /// So keep senders out from before this call until after the write, and writers of the same
    /// [`REGION`](super::REGION)s as well, whose bytes may be overwritten by older ones.
    ///
    /// Waits for the disk: a rewrite of 64 KiB takes some 300 µs.
    ///
    /// # Errors
    /// [`NotDetached`], after a bounded number of tries. What is in the file has not changed.
    pub fn detach(&self, range: &Range<u64>) -> Result<Detached, NotDetached> {
        let began = Instant::now();
        let result = self.detach_untold(range, began);
        match &result {
            Ok(Detached { tries, elapsed, .. }) => {
                trace::debug!(?range, tries, ?elapsed, "detached");
            }
            Err(why) => trace::debug!(?range, elapsed = ?began.elapsed(), %why, "not detached"),
        }
        result
    }

    /// As [`detach`](Self::detach), without an event for who listens to traces.
    pub(crate) fn detach_untold(
        &self,
        range: &Range<u64>,
        began: Instant,
    ) -> Result<Detached, NotDetached> {
        let size = self.source.size()?;
        let range = range.start..range.end.min(size);
        let mut tries = 0;
        for chunk in chunks(&range) {
            tries = self.take_out(&chunk, size)?.max(tries);
        }
        Ok(Detached { range: pages(&range, size), tries, elapsed: began.elapsed() })
    }
}

/// Opens the file of `source` anew, for reading and writing and with more `flags`. Returns with it a
/// source that shows what is written to it.
///
/// # Errors
/// [`NotDetached::Unsupported`] where it may not be written; [`NotDetached::Io`].
pub(super) fn anew(source: &Source, flags: OFlags) -> Result<(OwnedFd, Source), NotDetached> {
    let refused = NotDetached::unsupported("opening it for writing");
    // By this name an unlinked file, too, is opened anew.
    let name = format!("/proc/self/fd/{}", source.as_fd().as_raw_fd());
    let open = |flags| rustix::fs::open(&*name, flags, Mode::empty());
    let both = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file = match open(both | flags) {
        Ok(file) => file,
        Err(errno) => return Err(refused(errno)),
    };
    let stat = |file| rustix::fs::fstat(file).map_err(NotDetached::io("fstat", 0));
    let (ours, anew) = (stat(source.as_fd())?, stat(file.as_fd())?);
    if (ours.st_dev, ours.st_ino) != (anew.st_dev, anew.st_ino) {
        // Something else is mounted where /proc should be.
        return Err(refused(Errno::STALE));
    }
    let source = match source.unmappable() {
        // It may show the lower file for ever, which was copied up at the latest just now.
        Some(Unmappable::Overlay) => Source::new(open(both).map_err(refused)?)?,
        _ => source.clone(),
    };
    Ok((file, source))
}

impl From<Error> for NotDetached {
    fn from(error: Error) -> Self {
        match error {
            Error::File { op, offset, cause } => NotDetached::Io { op, offset, cause },
            error => NotDetached::Io { op: "asking the file", offset: 0, cause: error.into() },
        }
    }
}

impl Detacher {
    /// Whether a send from `range` can be detached now, as far as that does not depend on what others
    /// do: the last page of the file may have too little in it.
    pub(crate) fn allows(&self, range: &Range<u64>) -> bool {
        self.source.size().is_ok_and(|size| self.allows_with(range, size))
    }

    /// The same, if the file had this size.
    pub(crate) fn allows_with(&self, range: &Range<u64>, size: u64) -> bool {
        self.allows_by(range, size, 1)
    }

    /// Whether a send from `range` can be detached now and later, whoever makes a reflink of the
    /// file meanwhile.
    pub(crate) fn always_allows(&self, range: &Range<u64>) -> bool {
        self.source.size().is_ok_and(|size| self.always_allows_with(range, size))
    }

    /// The same, if the file had this size.
    pub(crate) fn always_allows_with(&self, range: &Range<u64>, size: u64) -> bool {
        self.allows_by(range, size, self.later)
    }

    /// Whether all sends that end before `end` can be detached, now and later, where the file has
    /// `size` bytes at least.
    pub(crate) fn always_allows_before(&self, end: u64, size: u64) -> bool {
        end <= size / self.whole * self.whole
    }

    fn allows_by(&self, range: &Range<u64>, size: u64, least: u64) -> bool {
        let whole = page().max(least);
        range.start >= size
            || range.end <= size / whole * whole
            || !self.no_clone.load(Ordering::Relaxed)
            || self.blocks_with(&(range.start..range.end.min(size)), size, least).is_ok()
    }
}
