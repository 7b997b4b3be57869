//! Erasing whole regions of a guarded file before they are filled anew.

use std::ops::Range;

use super::clear::Need;
use super::exclusive::Exclusive;
use super::file::GuardedFile;
use crate::deadline::Deadline;
use crate::detach::Eraser;
use crate::error::Error;
use crate::not_detached::NotDetached;

impl GuardedFile {
    /// Makes zeroes of `range`, whole [`REGION`](crate::detach::REGION)s, by an [`Eraser`]: the
    /// cheaper way to overwrite them whole. What is in flight keeps its pages, and of leases in hand
    /// the rest is kept aside, as with any writer. Writes that follow have nothing in their way until
    /// the range is leased again. It waits where the file can be erased only (tmpfs).
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at); [`Error::NotDetached`] where it cannot be erased: then the old
    /// content may be gone, and the next writer detaches it, or waits.
    pub fn erase(&self, range: Range<u64>, deadline: impl Into<Deadline>) -> Result<(), Error> {
        let eraser = Eraser::new(self.source()).map_err(refused)?;
        let need = Need::Parts(Vec::new());
        self.acquire(range, need, deadline.into(), false)?.erase(&eraser)
    }
}

impl Exclusive {
    /// Erases the range. Whole folios leave the page cache, so that nothing at its edges has to be
    /// detached first.
    fn erase(&self, eraser: &Eraser) -> Result<(), Error> {
        let size = self.file.source().size()?;
        let _busy = self.file.0.shared.detaching.regions.enter(&self.range, true);
        eraser.erase(&self.range).map_err(refused)?;
        self.dropped(size);
        self.count();
        Ok(())
    }
}

fn refused(why: NotDetached) -> Error {
    Error::NotDetached(why.into())
}
