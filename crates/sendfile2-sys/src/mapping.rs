//! Read-only shared mappings of file ranges, and the memory regions that sends read.
//!
//! `mmap(2)`. No reference to the mapped bytes is ever made: other processes may change or
//! truncate the file at any time, and user code that touched a truncated page would be killed by
//! SIGBUS. The kernel, reading for a send, gets EFAULT instead.

use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::{io, ops::Range};

use memmap2::{MmapOptions, MmapRaw};
use rustix::io::Errno;

/// A read-only `MAP_SHARED` mapping of the file range `[start, start + len)`.
#[derive(Debug)]
pub struct Mapping {
    raw: MmapRaw,
    start: u64,
    len: u64,
}

impl Mapping {
    /// Maps `range` of the file. `range.start` must be a multiple of the page size, and the range
    /// must not be empty.
    pub fn new(file: BorrowedFd<'_>, range: Range<u64>) -> io::Result<Self> {
        let len = usize::try_from(range.end - range.start)
            .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let raw = MmapOptions::new().offset(range.start).len(len).map_raw_read_only(&file)?;
        Ok(Mapping { raw, start: range.start, len: range.end - range.start })
    }

    /// The file range that is mapped.
    pub fn range(&self) -> Range<u64> {
        self.start..self.start + self.len
    }

    /// The part of the mapping that shows the file range `at`; `None` unless all of it is mapped.
    pub fn region(&self, at: Range<u64>) -> Option<Region<'_>> {
        if at.start < self.start || at.end > self.start + self.len || at.start > at.end {
            return None;
        }
        // Both fit: they are differences within a mapping, whose length is a usize.
        let skip = usize::try_from(at.start - self.start).ok()?;
        let len = usize::try_from(at.end - at.start).ok()?;
        // SAFETY: skip <= self.len, so the result is within the mapping or one past its end.
        let ptr = unsafe { self.raw.as_ptr().add(skip) };
        Some(Region { ptr, len, alive: PhantomData })
    }
}

impl Region<'_> {
    /// Returns the address of the region's first page, and the length from there.
    fn pages(self) -> (*mut libc::c_void, usize) {
        let skip = self.ptr.addr() % rustix::param::page_size();
        (self.ptr.wrapping_sub(skip).cast_mut().cast(), self.len + skip)
    }

    /// Returns whether all pages of the region are in memory, as far as mincore(2) reports it: for
    /// a file that the process neither owns nor may write, mincore always answers yes.
    pub fn is_resident(self) -> bool {
        // For as many pages at a time no memory is asked for.
        let mut states = [0_u8; 512];
        let page = rustix::param::page_size();
        let (start, len) = self.pages();
        (0..len).step_by(states.len() * page).all(|at| {
            let len = (len - at).min(states.len() * page);
            let states = &mut states[..len.div_ceil(page)];
            let start = start.wrapping_byte_add(at);
            // SAFETY: the pages are mapped while the region lives, and there is a byte for each.
            let ret = unsafe { libc::mincore(start, len, states.as_mut_ptr()) };
            ret == 0 && states.iter().fold(1, |all, state| all & state) == 1
        })
    }

    /// Counts the region's pages that are in memory, as [`is_resident`](Self::is_resident) does.
    pub fn resident_pages(self) -> Result<u64, Errno> {
        Ok(self.residents()?.iter().map(|page| u64::from(page & 1)).sum())
    }

    /// A byte for each page, whose lowest bit is set where the page is in memory.
    fn residents(self) -> Result<Vec<u8>, Errno> {
        let (start, len) = self.pages();
        let mut pages = vec![0_u8; len.div_ceil(rustix::param::page_size())];
        // SAFETY: the pages are mapped while the region lives, and there is a byte for each.
        let ret = unsafe { libc::mincore(start, len, pages.as_mut_ptr()) };
        if ret == 0 { Ok(pages) } else { Err(crate::socket::last_error()) }
    }

    /// Reads the region's pages into memory (`MADV_POPULATE_READ`, Linux 5.14).
    pub fn read_in(self) -> Result<(), Errno> {
        let (start, len) = self.pages();
        // SAFETY: the pages are mapped while the region lives, and are only read.
        unsafe { rustix::mm::madvise(start, len, rustix::mm::Advice::LinuxPopulateRead) }
    }
}

/// Memory that the kernel may read: part of a [`Mapping`], or a slice.
#[derive(Debug, Clone, Copy)]
pub struct Region<'a> {
    ptr: *const u8,
    len: usize,
    alive: PhantomData<&'a [u8]>,
}

impl<'a> From<&'a [u8]> for Region<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Region { ptr: bytes.as_ptr(), len: bytes.len(), alive: PhantomData }
    }
}

impl Region<'_> {
    /// Returns the length of the region, in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether the region has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the address of the region's first byte.
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        self.ptr
    }

    /// Returns the first `len` bytes of the region.
    pub fn truncate(self, len: usize) -> Self {
        Region { len: self.len.min(len), ..self }
    }
}

/// The size of a block device, in bytes (BLKGETSIZE64).
pub fn block_device_size(device: BorrowedFd<'_>) -> Result<u64, Errno> {
    let mut size: u64 = 0;
    // SAFETY: BLKGETSIZE64 writes a u64 (its name notwithstanding, the request encodes size_t).
    let ret = unsafe { libc::ioctl(device.as_raw_fd(), BLKGETSIZE64, &raw mut size) };
    if ret == 0 { Ok(size) } else { Err(crate::socket::last_error()) }
}

/// `_IOR(0x12, 114, size_t)` of `linux/fs.h`.
const BLKGETSIZE64: libc::Ioctl = libc::_IOR::<usize>(0x12, 114);
