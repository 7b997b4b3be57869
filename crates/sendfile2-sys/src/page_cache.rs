//! The page cache of a file: which pages are in it, and what takes them out.
//!
//! `cachestat(2)` (Linux 6.5), `mincore(2)` by [`Region::resident_pages`], `sync_file_range(2)`,
//! `STATX_DIOALIGN` (Linux 6.1) and `FICLONERANGE` (`ioctl_ficlonerange(2)`).
//!
//! [`Region::resident_pages`]: crate::mapping::Region::resident_pages

use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{AtFlags, StatxFlags};
use rustix::io::Errno;

use crate::socket::last_error;

/// The pages of a file range that are in the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CachedPages {
    /// All of them.
    pub cached: u64,
    /// Those that are yet to be written out.
    pub dirty: u64,
    /// Those that are being written out.
    pub writeback: u64,
}

/// `cachestat(2)` has this number on every architecture that Rust's standard library knows.
const SYS_CACHESTAT: libc::c_long = 451;

#[repr(C)]
struct CachestatRange {
    off: u64,
    len: u64,
}

#[repr(C)]
#[derive(Default)]
struct Cachestat {
    cache: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Counts the pages of `range` that are in the page cache (Linux 6.5). On overlayfs it counts none,
/// whatever there is.
pub fn cachestat(file: BorrowedFd<'_>, range: &Range<u64>) -> Result<CachedPages, Errno> {
    // A length of 0 would mean the rest of the file.
    let len = range.end.saturating_sub(range.start);
    if len == 0 {
        return Ok(CachedPages::default());
    }
    let asked = CachestatRange { off: range.start, len };
    let mut found = Cachestat::default();
    let flags: libc::c_uint = 0;
    // SAFETY: both structures are as the kernel knows them (linux/mman.h) and live until it returns;
    // it reads the first and writes the second.
    let ret = unsafe {
        libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), &raw const asked, &raw mut found, flags)
    };
    if ret != 0 {
        return Err(last_error());
    }
    Ok(CachedPages { cached: found.cache, dirty: found.dirty, writeback: found.writeback })
}

/// Writes out the dirty pages of `range`, and waits for those that are being written out
/// (`sync_file_range(2)`; no metadata, no disk cache).
pub fn write_out(file: BorrowedFd<'_>, range: &Range<u64>) -> Result<(), Errno> {
    let (Ok(start), Ok(len)) = (range.start.try_into(), (range.end - range.start).try_into())
    else {
        return Err(Errno::INVAL);
    };
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: it takes numbers only.
    let ret = unsafe { libc::sync_file_range(file.as_raw_fd(), start, len, flags) };
    if ret == 0 { Ok(()) } else { Err(last_error()) }
}

/// The units in which a file is read and written, in bytes, now: a reflink changes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Units {
    /// The block of the filesystem (`stx_blksize`).
    pub block: u64,
    /// Those of direct I/O; `None` where the filesystem has none.
    pub direct: Option<DirectUnits>,
}

/// The alignment that direct I/O asks for, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectUnits {
    /// The alignment of addresses.
    pub memory: u64,
    /// The alignment of offsets and lengths.
    pub offset: u64,
}

/// Returns the units of the file. Where the kernel or the filesystem does not report those of
/// direct I/O (`STATX_DIOALIGN`), they are taken to be pages, or larger blocks.
pub fn units(file: BorrowedFd<'_>) -> Result<Units, Errno> {
    let mask = StatxFlags::DIOALIGN | StatxFlags::BASIC_STATS;
    let page = rustix::param::page_size() as u64;
    let stat = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, mask)?;
    let block = u64::from(stat.stx_blksize).max(1);
    let direct = if stat.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
        Some(DirectUnits { memory: page, offset: page.max(block) })
    } else {
        let offset = stat.stx_dio_offset_align.into();
        (offset > 0).then_some(DirectUnits { memory: stat.stx_dio_mem_align.into(), offset })
    };
    Ok(Units { block, direct })
}

/// Makes `range` of `to` share the blocks of the same length at offset 0 of `from`
/// (`FICLONERANGE`). The kernel takes the whole folios of `to` out of the page cache.
pub fn clone_range(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    range: &Range<u64>,
) -> Result<(), Errno> {
    let request = libc::file_clone_range {
        src_fd: from.as_raw_fd().into(),
        src_offset: 0,
        // A length of 0 would mean all of the source.
        src_length: range.end.checked_sub(range.start).filter(|l| *l > 0).ok_or(Errno::INVAL)?,
        dest_offset: range.start,
    };
    // SAFETY: the structure lives until the call returns; the kernel only reads it.
    let ret = unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONERANGE, &raw const request) };
    if ret == 0 { Ok(()) } else { Err(last_error()) }
}

/// Memory for direct I/O, aligned as it asks.
#[derive(Debug)]
pub struct DirectBuffer {
    bytes: Vec<u8>,
    skip: usize,
    len: usize,
}

impl DirectBuffer {
    /// `len` bytes, all 0, at a multiple of `align`.
    #[must_use]
    pub fn new(len: usize, align: usize) -> Self {
        let align = align.max(1);
        let bytes = vec![0; len + align];
        let skip = (align - bytes.as_ptr().addr() % align) % align;
        DirectBuffer { bytes, skip, len }
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[self.skip..self.skip + self.len]
    }

    /// The bytes, to be written to.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.skip..self.skip + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned() {
        for (len, align) in [(0, 1), (1, 512), (4096, 4096), (1 << 20, 4096), (7, 65536)] {
            let mut buffer = DirectBuffer::new(len, align);
            assert_eq!(buffer.as_slice().len(), len);
            assert_eq!(buffer.as_slice().as_ptr().addr() % align, 0);
            assert_eq!(buffer.as_mut_slice().as_ptr().addr() % align, 0);
        }
    }
}
