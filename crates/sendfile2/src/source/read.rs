//! Reads of a file, with and without waiting for the disk.

use std::io::{self, IoSliceMut};
use std::os::fd::AsFd;

use rustix::io::{Errno, ReadWriteFlags};

use super::Source;
use crate::error::Error;

/// Tells a read that must not wait, and failed because of that, or because nobody could tell, by
/// `None`.
pub(crate) fn if_cached(read: Result<usize, Error>) -> Result<Option<usize>, Error> {
    let would_wait = |cause: &io::Error| {
        let errno = Errno::from_io_error(cause);
        matches!(errno, Some(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS))
    };
    match read {
        Err(Error::File { cause, .. }) if would_wait(&cause) => Ok(None),
        read => read.map(Some),
    }
}

impl Source {
    /// Reads at `offset`; 0 at the end of the file.
    pub(crate) fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize, Error> {
        rustix::io::retry_on_intr(|| rustix::io::pread(&self.0.file, &mut *buffer, offset))
            .map_err(|e| self.failed("pread", offset, e))
    }

    /// As [`read_at`](Self::read_at); where that might wait, an error that [`if_cached`] knows.
    pub(crate) fn read_cached(&self, buffer: &mut [u8], offset: u64) -> Result<usize, Error> {
        let mut slices = [IoSliceMut::new(buffer)];
        let mut read =
            || rustix::io::preadv2(&self.0.file, &mut slices, offset, ReadWriteFlags::NOWAIT);
        rustix::io::retry_on_intr(&mut read).map_err(|e| self.failed("preadv2", offset, e))
    }

    /// Reads up to `len` bytes at `offset` behind what is in `buffer`, if that takes no waiting for
    /// the disk (`RWF_NOWAIT`, Linux 4.14), and returns how many: 0 at the end of the file. `None` if
    /// it may, as on filesystems that cannot tell. The room for them is not filled with zeros first.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn try_read_behind(
        &self,
        buffer: &mut Vec<u8>,
        len: usize,
        offset: u64,
    ) -> Result<Option<usize>, Error> {
        if_cached(self.read_behind(buffer, len, offset))
    }

    /// As [`try_read_behind`](Self::try_read_behind), with an error in place of `None`.
    pub(crate) fn read_behind(
        &self,
        buffer: &mut Vec<u8>,
        len: usize,
        offset: u64,
    ) -> Result<usize, Error> {
        crate::sys::cached_read::read_behind(self.as_fd(), buffer, len, offset)
            .map_err(|e| self.failed("preadv2", offset, e))
    }
}
