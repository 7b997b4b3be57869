//! libsendfile2: `sendfile2()` for C programs, with the interface of the kernel RFC of March 2025
//! ("Add ZC notifications to splice and sendfile"), on stock kernels.
//!
//! Thin and without state: each call maps what it sends, and unmaps it. A mapping that was kept
//! would hold an `flock(2)` past `close(2)`, make `F_SEAL_WRITE` fail, and delay the freeing of a
//! deleted file's space. Nothing is remembered by descriptor number, since programs close
//! descriptors, and libraries see nothing of it.
//!
//! The promises of the functions are in `sendfile2.h` and in `sendfile2(3)`.
#![cfg(all(target_os = "linux", target_pointer_width = "64"))]

mod abi;
mod file;
mod kernel;
mod queue;
mod request;
mod ring;
mod send;
pub mod shim;
mod sync;
mod write;

pub use abi::*;

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Calls [`sendfile2`](fn@sendfile2) for a Rust program that needs nothing else, and keeps the
/// account of the ids itself. Other programs use the crate `sendfile2`.
///
/// # Errors
/// As `sendfile2(3)`.
pub fn send(
    socket: impl AsFd,
    file: impl AsFd,
    offset: &mut u64,
    count: usize,
    flags: c_int,
) -> io::Result<usize> {
    let mut at = i64::try_from(*offset).map_err(|_| rustix::io::Errno::OVERFLOW)?;
    let (out, file) = (socket.as_fd().as_raw_fd(), file.as_fd().as_raw_fd());
    // SAFETY: the offset is this function's own.
    #[allow(unsafe_code)]
    let sent = unsafe { sendfile2(out, file, &raw mut at, count, flags) };
    *offset = u64::try_from(at).unwrap_or(*offset);
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Returns the number of the system call that does the work of `sendfile2()` here; `None` on a
/// kernel without the patch series, where libsendfile2 does it.
#[must_use]
pub fn system_call() -> Option<i64> {
    kernel::sendfile2_number()
}

/// Sets `SO_ZEROCOPY`, without which `MSG_ZEROCOPY` is accepted and gives no notification.
/// [`SENDFILE_ZC`] sets it itself.
///
/// # Errors
/// As setsockopt(2): EOPNOTSUPP if the socket gives no notifications.
pub fn enable_zerocopy(socket: impl AsFd) -> io::Result<()> {
    Ok(kernel::set_so_zerocopy(socket.as_fd())?)
}
