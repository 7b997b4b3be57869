//! `libsendfile2_preload.so`: the `sendfile(2)` of programs that cannot be rebuilt, made safe.
//!
//! `LD_PRELOAD=libsendfile2_preload.so PROGRAM` replaces `sendfile` and `sendfile64`. The
//! environment variable `SENDFILE2_MODE` chooses what they do; it is read once, when the library is
//! loaded: `safe` (the default, and what everything else means), `notify`, or `off`. See
//! `sendfile2(7)`.
//!
//! Nothing here allocates, locks, or keeps anything between calls but counts, so that it works after
//! a fork and in signal handlers, as the system call does. What was counted is told at the exit, where
//! `SENDFILE2_REPORT` asks for it, and by `sendfile2 probe --pid` while the program runs.
#![cfg(all(target_os = "linux", target_pointer_width = "64"))]
#![allow(unsafe_code)]

mod report;

use std::ffi::{CStr, c_int};

use libc::{off_t, size_t, ssize_t};
use sendfile2_c::shim::{self, Counters, Mode};

/// The mode, by its place in [`MODES`], and the counts. Until the mode is known the safe one holds.
static COUNTERS: Counters = Counters::new();

const MODES: [(&str, Mode); 3] =
    [("safe", Mode::Safe), ("notify", Mode::Notify), ("off", Mode::Off)];

const COMPLAINT: &[u8] =
    b"libsendfile2_preload: SENDFILE2_MODE is none of safe, notify, off: taken as safe\n";

/// Returns the place in [`MODES`] of the mode that a value of the variable names; `None` if it
/// names none.
fn meaning(value: &[u8]) -> Option<usize> {
    match value.trim_ascii() {
        [] => Some(0),
        value => MODES.iter().position(|(name, _)| value.eq_ignore_ascii_case(name.as_bytes())),
    }
}

/// The function that runs when the library is loaded.
#[used]
#[unsafe(link_section = ".init_array")]
static LOADED: extern "C" fn() = {
    extern "C" fn loaded() {
        report::prepare();
        if let Some(cookie) = cookie() {
            shim::set_cookie(cookie);
        }
        // SAFETY: the name is a C string; nothing changes the environment while libraries load.
        let mode = unsafe { libc::getenv(c"SENDFILE2_MODE".as_ptr()) };
        if mode.is_null() {
            return;
        }
        // SAFETY: a variable of the environment is a C string.
        let known = meaning(unsafe { CStr::from_ptr(mode) }.to_bytes());
        if known.is_none() {
            // SAFETY: it is that long. If it cannot be written, there is nobody to inform.
            unsafe {
                libc::syscall(
                    libc::SYS_write,
                    libc::STDERR_FILENO,
                    COMPLAINT.as_ptr(),
                    COMPLAINT.len(),
                )
            };
            // Not by each program that this one starts again: for those it is not set.
            // SAFETY: the value is this process's own, and has at least one byte; nothing else looks
            // at the environment while libraries load.
            unsafe { *mode = 0 };
        }
        COUNTERS.set_mode(known.unwrap_or(0) as u64);
    }
    loaded
};

/// Returns the cookie of the supervisor that has started this program, if one has.
fn cookie() -> Option<u64> {
    // SAFETY: the name is a C string; nothing changes the environment while libraries load.
    let value = unsafe { libc::getenv(c"SENDFILE2_COOKIE".as_ptr()) };
    if value.is_null() {
        return None;
    }
    // SAFETY: a variable of the environment is a C string.
    let value = unsafe { CStr::from_ptr(value) }.to_str().ok()?;
    u64::from_str_radix(value, 16).ok()
}

fn mode() -> Mode {
    let number = usize::try_from(COUNTERS.mode()).ok();
    number.and_then(|number| MODES.get(number)).map_or(Mode::Safe, |(_, mode)| *mode)
}

/// `sendfile(2)`.
///
/// # Safety
/// `offset` must be null, or as for `sendfile(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendfile(
    out_fd: c_int,
    in_fd: c_int,
    offset: *mut off_t,
    count: size_t,
) -> ssize_t {
    // SAFETY: as the caller's.
    unsafe { shim::sendfile(mode(), &COUNTERS, out_fd, in_fd, offset, count) }
}

/// `sendfile(2)` by the name that programs with large files know.
///
/// # Safety
/// `offset` must be null, or as for `sendfile(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendfile64(
    out_fd: c_int,
    in_fd: c_int,
    offset: *mut off_t,
    count: size_t,
) -> ssize_t {
    // SAFETY: as the caller's.
    unsafe { shim::sendfile(mode(), &COUNTERS, out_fd, in_fd, offset, count) }
}
