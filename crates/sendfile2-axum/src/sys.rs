//! The one place with unsafe code.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use sendfile2::Mapped;

/// Reads up to `len` bytes of the file from `at` on into what is free of `buffer`, where nothing need
/// be waited for, and returns how many. Room for them is not filled with zeroes first, which for small files costs as much as
/// reading them. preadv2(2).
pub(crate) fn read_at_once(
    file: impl AsFd,
    buffer: &mut Vec<u8>,
    len: usize,
    at: u64,
) -> io::Result<usize> {
    buffer.reserve(len);
    let room = buffer.spare_capacity_mut();
    let into = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: len };
    let at = at.try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
    let file = file.as_fd().as_raw_fd();
    loop {
        // SAFETY: the iovec's memory is free, and writable: `reserve` made `len` bytes of it.
        let read = unsafe { libc::preadv2(file, &raw const into, 1, at, libc::RWF_NOWAIT) };
        if let Ok(read) = usize::try_from(read) {
            // SAFETY: the kernel has written so many bytes behind what was there.
            unsafe { buffer.set_len(buffer.len() + read) };
            return Ok(read);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// The address and length of what is mapped, in the form in which hyper passes bytes on.
pub(crate) fn bytes(mapped: &Mapped) -> &[u8] {
    let range = mapped.range();
    // It is mapped, so its length is a usize.
    let len = usize::try_from(range.end - range.start).unwrap_or(0);
    // SAFETY: the memory is mapped for as long as `mapped` lives. That others may change it is
    // answered in the crate's documentation: nobody reads the slice but the kernel.
    unsafe { std::slice::from_raw_parts(mapped.as_ptr(), len) }
}

/// Returns the limit of descriptors; `None` if there is none, or if it cannot be had. getrlimit(2).
pub(crate) fn descriptors() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the memory is there, and is of the type that the call fills.
    let done = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    (done == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}
