//! Overwriting what others may be sending, where nobody can keep them out.

use std::io::IoSlice;
use std::ops::Range;
use std::sync::atomic::Ordering;

use rustix::fs::{Timespec, Timestamps, UTIME_NOW, futimens};
use rustix::io::{Errno, ReadWriteFlags, retry_on_intr};

use super::detacher::Detacher;
use super::pages::TRIES;
use crate::not_detached::NotDetached;
use crate::sys::page_cache::DirectBuffer;

/// Bytes written by one call.
const CHUNK: u64 = 1 << 20;

/// An overwrite that was refused.
#[derive(Debug, thiserror::Error)]
#[error("{}{why}", if *.written > 0 { format!("after {} bytes: ", .written) } else { String::new() })]
#[non_exhaustive]
pub struct NotOverwritten {
    /// The bytes that were written, from the start on, none of them in place.
    pub written: u64,
    /// The reason why no more were.
    #[source]
    pub why: NotDetached,
}

impl Detacher {
    /// Returns the unit, in bytes, of what [`overwrite`](Self::overwrite) writes now: the block of
    /// the filesystem, or what direct I/O asks for. A reflink changes it.
    ///
    /// # Errors
    /// [`NotDetached::NoDirect`]; [`NotDetached::Io`].
    pub fn unit(&self) -> Result<u64, NotDetached> {
        let (direct, block) = self.direct_units()?;
        Ok(direct.offset.max(block))
    }

    /// Overwrites the file with `data` from `offset` on, whoever sends from it meanwhile: nothing
    /// that was in flight before changes, and nothing is ever written in place. Whole
    /// [units](Self::unit) within the file only.
    ///
    /// The pages are taken out as by [`detach`](Self::detach); then the bytes are written by
    /// direct I/O with `RWF_NOWAIT`, which fails while any of their pages is in the page cache. On
    /// btrfs they are cloned into their place, which is one step. On a kernel with the patch series
    /// that adds `RWF_DETACH`, one such write does it all, and the new bytes are cached.
    ///
    /// # Errors
    /// [`NotOverwritten`], with the bytes that were written before. The rest of the file has not
    /// changed.
    pub fn overwrite(&self, data: &[u8], offset: u64) -> Result<(), NotOverwritten> {
        let mut written = 0;
        self.overwrite_all(data, offset, &mut written)
            .map_err(|why| NotOverwritten { written, why })
    }

    fn overwrite_all(
        &self,
        data: &[u8],
        offset: u64,
        written: &mut u64,
    ) -> Result<(), NotDetached> {
        let size = self.source.size()?;
        let end = offset.saturating_add(data.len() as u64);
        let unit = self.unit()?;
        if offset % unit != 0 || end % unit != 0 {
            return Err(NotDetached::Unaligned { range: offset..end, unit });
        }
        if end > size {
            return Err(NotDetached::BehindEnd { range: offset..end, size });
        }
        self.source.allowed(offset, end - offset)?;
        if let Some(file) = self.flagged() {
            return self.overwrite_flagged(file, data, offset, written);
        }
        let chunk = usize::try_from(CHUNK.next_multiple_of(unit)).unwrap_or(usize::MAX);
        let mut buffer = self.buffer(chunk.min(data.len()))?;
        for data in data.chunks(chunk) {
            let start = offset + *written;
            if !self.no_clone.load(Ordering::Relaxed) {
                let cloned = self.clone_in(data, start);
                if !self.was_refused_clone(&cloned) {
                    cloned?;
                    *written += data.len() as u64;
                    continue;
                }
            }
            buffer.as_mut_slice()[..data.len()].copy_from_slice(data);
            self.overwrite_chunk(&buffer, start..start + data.len() as u64, size, written)?;
        }
        Ok(())
    }

    fn overwrite_chunk(
        &self,
        buffer: &DirectBuffer,
        range: Range<u64>,
        size: u64,
        written: &mut u64,
    ) -> Result<(), NotDetached> {
        let mut done = 0;
        let mut tries = 0;
        let len = usize::try_from(range.end - range.start).unwrap_or(0);
        while done < len {
            let at = range.start + done as u64;
            let slice = [IoSlice::new(&buffer.as_slice()[done..len])];
            let write = || rustix::io::pwritev2(&self.direct, &slice, at, ReadWriteFlags::NOWAIT);
            match retry_on_intr(write) {
                // A full disk is told by an error.
                Ok(n) => {
                    done += n;
                    *written += n as u64;
                }
                Err(Errno::AGAIN) => {
                    let left = at..range.end;
                    // Cached, or blocks that are not allocated yet: the rewrite mends both. Or a new
                    // time of modification, which XFS does not set without waiting.
                    if tries == TRIES {
                        let pages = self.cached(&left)?;
                        return Err(given_up(left, pages, tries));
                    }
                    tries += 1;
                    self.take_out_once(&left, size)?;
                    self.set_times();
                }
                Err(e @ (Errno::OPNOTSUPP | Errno::INVAL)) => {
                    return Err(NotDetached::unsupported("a direct write with RWF_NOWAIT")(e));
                }
                Err(e) => return Err(NotDetached::io("pwritev2", at)(e)),
            }
        }
        Ok(())
    }
}

impl Detacher {
    /// Sets the file's times to now, so that a write that follows at once need not. If it fails, the
    /// write is refused where that is in its way.
    fn set_times(&self) {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let _ = futimens(&self.direct, &Timestamps { last_access: now, last_modification: now });
    }
}

/// The reason why a write that does not wait was refused to the end; so many pages of `range` are
/// cached now.
fn given_up(range: Range<u64>, pages: u64, tries: u32) -> NotDetached {
    match pages {
        0 => NotDetached::WouldWait { range, tries },
        pages => NotDetached::Cached { range, pages, tries },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_to_blame_depends_on_what_is_cached() {
        let why = given_up(0..4096, 0, 8);
        assert!(matches!(&why, NotDetached::WouldWait { tries: 8, .. }) && why.is_for_now());
        let text = why.to_string();
        assert!(text.contains("none of their pages") && text.contains("try again"), "{text}");
        let why = given_up(0..8192, 2, 8);
        assert!(matches!(&why, NotDetached::Cached { pages: 2, .. }) && why.is_for_now());
    }
}
