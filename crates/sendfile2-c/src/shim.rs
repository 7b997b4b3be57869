//! What the preload shim is made of. Nothing here allocates, locks, or keeps anything.

use std::ffi::c_int;

use libc::{off_t, size_t, ssize_t};

use crate::abi::answer;
use crate::kernel;
use crate::request::{Boundaries, Request};
use crate::send::{self, Patience};

/// What the shim does with `sendfile(2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It stays as it is.
    Off,
    /// From a file to a socket it is safe when it returns.
    Safe,
    /// As `Safe`; on a socket on which the program has set `SO_ZEROCOPY` it gives notifications.
    Notify,
}

/// `sendfile(2)` in this mode, in the manner of C.
///
/// # Safety
/// `offset` must be null, or as for `sendfile(2)`.
#[allow(unsafe_code)]
pub unsafe fn sendfile(
    mode: Mode,
    out_fd: c_int,
    in_fd: c_int,
    offset: *mut off_t,
    count: size_t,
) -> ssize_t {
    answer(|| {
        let socket = if mode == Mode::Off { None } else { Boundaries::of(out_fd) };
        let Some(boundaries) = socket else {
            // SAFETY: as the caller's.
            return unsafe { kernel::sendfile(out_fd, in_fd, offset, count) };
        };
        // SAFETY: as the caller's.
        let (request, offset) = unsafe { Request::new(out_fd, in_fd, offset, count) }?;
        let sent = if mode == Mode::Notify && kernel::zerocopy(request.socket) == Ok(true) {
            send::notify(&request, None)
        } else {
            send::copy(&request, boundaries, None, Patience::Socket)
        }?;
        if sent > 0 {
            offset.advance(&request, sent);
        }
        Ok(sent)
    })
}
