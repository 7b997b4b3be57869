//! System calls and kernel structures, one concept a file.
//!
//! This is the only module of the crate that holds `unsafe`. Everything it exports is safe: sizes
//! and addresses are checked here, not by the callers. What rustix already offers safely (epoll,
//! `pread`, socket options, `connect_unspec`) is used from there and not repeated.
#![allow(unsafe_code)]

pub(crate) mod device;
pub(crate) mod errqueue;
pub(crate) mod mapping;
pub(crate) mod patched;
pub(crate) mod socket;
#[cfg(feature = "tokio")]
pub(crate) mod tokio;
pub(crate) mod uring;

/// Closes it, and is no point of thread cancellation, as the standard library's way is: C programs
/// call what calls this.
pub(crate) fn close(file: std::os::fd::OwnedFd) {
    // SAFETY: it was owned, and nobody has it any more.
    unsafe { rustix::io::close(std::os::fd::IntoRawFd::into_raw_fd(file)) }
}
