//! Erasing whole regions, for stores that overwrite all of them.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::{Errno, retry_on_intr};

use super::detacher::{Detached, anew};
use super::pages::{TRIES, region};
use super::proof::Found;
use crate::not_detached::NotDetached;
use crate::source::Source;
use crate::trace;

/// A file of which whole regions are erased before they are overwritten: the cheaper way to detach
/// them, where all of their old content is to go. It works on tmpfs, too.
#[derive(Debug)]
pub struct Eraser {
    source: Source,
    file: OwnedFd,
    proof: Found,
}

impl Eraser {
    /// Opens the file of `source` anew for writing, and finds a way to ask the page cache.
    ///
    /// # Errors
    /// [`NotDetached::Unsupported`] for files that may not be written; [`NotDetached::NoProof`];
    /// [`NotDetached::Io`].
    pub fn new(source: &Source) -> Result<Self, NotDetached> {
        let (file, source) = anew(source, OFlags::empty())?;
        let proof = Found::of(&source)?;
        Ok(Eraser { source, file, proof })
    }

    /// Makes zeroes of `range`, whole [`REGION`](super::REGION)s, and proves that no page of it has been
    /// in the page cache since the call began: whole folios leave it, and what is in flight keeps
    /// them. Keep senders out from before this call until after the write, as with
    /// [`Detacher::detach`](super::Detacher::detach); then any write will do.
    ///
    /// The filesystem keeps the space (`FALLOC_FL_ZERO_RANGE`), except where it cannot, as on tmpfs
    /// and ext3: there the region becomes a hole (`FALLOC_FL_PUNCH_HOLE`), and a write that follows
    /// may fail with ENOSPC. Then zeroes are what is there, which nobody has sent; the old content was
    /// given up before, and in flight nothing has changed.
    ///
    /// # Errors
    /// [`NotDetached::Unaligned`] and [`NotDetached::BehindEnd`], with nothing changed. After any
    /// other the old content may be gone: do not write, but try again.
    pub fn erase(&self, range: &Range<u64>) -> Result<Detached, NotDetached> {
        let began = Instant::now();
        let size = self.source.size()?;
        if range.end > size {
            return Err(NotDetached::BehindEnd { range: range.clone(), size });
        }
        let unit = region();
        if range.start % unit != 0 || range.end % unit != 0 || range.start >= range.end {
            return Err(NotDetached::Unaligned { range: range.clone(), unit });
        }
        for tries in 1..=TRIES {
            self.zero(range)?;
            if self.proof.cached(&self.source, range)? == 0 {
                let elapsed = began.elapsed();
                trace::debug!(?range, tries, ?elapsed, "erased");
                return Ok(Detached { range: range.clone(), tries, elapsed });
            }
        }
        let pages = self.proof.cached(&self.source, range)?;
        Err(NotDetached::Cached { range: range.clone(), pages, tries: TRIES })
    }

    fn zero(&self, range: &Range<u64>) -> Result<(), NotDetached> {
        let by = |flags| {
            let (start, len) = (range.start, range.end - range.start);
            let flags = flags | FallocateFlags::KEEP_SIZE;
            retry_on_intr(|| rustix::fs::fallocate(&self.file, flags, start, len))
        };
        let zeroed = match by(FallocateFlags::ZERO_RANGE) {
            Err(Errno::OPNOTSUPP) => by(FallocateFlags::PUNCH_HOLE),
            zeroed => zeroed,
        };
        zeroed.map_err(|errno| match errno {
            Errno::OPNOTSUPP => NotDetached::unsupported("fallocate")(errno),
            errno => NotDetached::io("fallocate", range.start)(errno),
        })
    }
}
