//! The part of the preload shim that does the work. Nothing here allocates or locks, and nothing is
//! kept but counts.

use std::ffi::c_int;

use libc::{off_t, size_t, ssize_t};
use rustix::io::Errno;
pub use sendfile2_sys::shim::{Count, Counters};

use crate::abi::answer;
use crate::kernel;
use crate::request::{Boundaries, Request, is_pageless};
use crate::send::{self, WaitForSpace};

/// The shim's treatment of `sendfile(2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// `sendfile(2)` stays as it is.
    Off,
    /// A call from a file to a socket returns when the file may be overwritten.
    Safe,
    /// The mode `Safe`; but on a socket on which the program has set `SO_ZEROCOPY` a call gives
    /// notifications.
    Notify,
}

/// Marks the calls that the shim passes on to the kernel, for the supervisor that knows this cookie.
pub fn set_cookie(cookie: u64) {
    kernel::set_cookie(cookie);
}

/// Calls `sendfile(2)` in this mode, and returns its result in the manner of C; counts what became of
/// the call.
///
/// # Safety
/// `offset` must be null, or as for `sendfile(2)`.
#[allow(unsafe_code)]
pub unsafe fn sendfile(
    mode: Mode,
    counters: &Counters,
    out_fd: c_int,
    in_fd: c_int,
    offset: *mut off_t,
    count: size_t,
) -> ssize_t {
    answer(|| {
        let socket = if mode == Mode::Off { None } else { Boundaries::of(out_fd) };
        let notify = mode == Mode::Notify && kernel::is_socket_with_so_zerocopy(out_fd);
        // A call that sends nothing has no notification.
        let copied = || (!notify || count == 0) && is_pageless(in_fd);
        let passed_on = match socket {
            None if mode == Mode::Off => Err(Count::Off),
            None => Err(Count::NoSocket),
            Some(_) if copied() => Err(Count::NoPages),
            Some(boundaries) => Ok(boundaries),
        };
        let boundaries = match passed_on {
            Ok(boundaries) => boundaries,
            Err(why) => {
                counters.add(why, 1);
                // SAFETY: as the caller's, of both.
                return unsafe {
                    match mode {
                        // A supervisor makes it safe.
                        Mode::Off => kernel::plain_sendfile(out_fd, in_fd, offset, count),
                        _ => kernel::sendfile(out_fd, in_fd, offset, count),
                    }
                };
            }
        };
        // SAFETY: as the caller's.
        let sent = unsafe { send(notify, boundaries, out_fd, in_fd, offset, count) };
        let (calls, bytes) = match notify {
            true => (Count::Notified, Count::NotifiedBytes),
            false => (Count::Safe, Count::SafeBytes),
        };
        match sent {
            Ok(sent) => {
                counters.add(calls, 1);
                counters.add(bytes, sent as u64);
            }
            Err(_) => counters.add(Count::Failed, 1),
        }
        sent
    })
}

/// Sends from a file to a socket.
///
/// # Safety
/// As for [`sendfile`].
#[allow(unsafe_code)]
unsafe fn send(
    notify: bool,
    boundaries: Boundaries,
    out_fd: c_int,
    in_fd: c_int,
    offset: *mut off_t,
    count: size_t,
) -> Result<usize, Errno> {
    // SAFETY: as the caller's.
    let (request, offset) = unsafe { Request::new(out_fd, in_fd, offset, count) }?;
    let sent = if notify {
        match send::notify(&request, None) {
            Err(Errno::OPNOTSUPP) if request.ends_here() => request.at_the_end(),
            result => result,
        }
    } else {
        send::copy(&request, boundaries, None, WaitForSpace::AsTheSocketDoes)
    }?;
    if sent > 0 {
        offset.advance(&request, sent);
    }
    Ok(sent)
}
