//! The C interface. What is written here is the text of `sendfile2.h`.
#![allow(unsafe_code)]
#![allow(
    clippy::doc_markdown,
    clippy::missing_safety_doc,
    reason = "the text is read in a C header: what C asks of pointers holds"
)]

use std::ffi::c_int;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use libc::{loff_t, size_t, ssize_t, timespec};
use rustix::io::Errno;

use crate::file::Kept;
use crate::request::Request;
use crate::sync::State;
use crate::{kernel, send, sync};

/// Flag of sendfile2(): as sendfile(2), as without flags.
pub const SENDFILE_DEFAULT: c_int = 0x1;
/// Flag of sendfile2(): a call that returns more than 0 uses one notification id of the socket. Its
/// completion arrives on the socket's error queue, as for MSG_ZEROCOPY.
pub const SENDFILE_ZC: c_int = 0x2;
/// Flag of sendfile2(): when the call returns, the kernel no longer reads what was sent. It reads
/// nothing from the socket's error queue, and uses no id. Not a flag of the RFC.
pub const SENDFILE_SYNC: c_int = 0x4;

/// State in a sendfile2_result: sent by reference, and released.
pub const SENDFILE2_RELEASED: c_int = 1;
/// State in a sendfile2_result: the kernel has made a copy; released.
pub const SENDFILE2_COPIED: c_int = 2;
/// State in a sendfile2_result: the deadline passed first; the kernel may still read the range.
pub const SENDFILE2_UNKNOWN: c_int = 3;

/// What sendfile2_deadline() tells beside the number of bytes.
#[repr(C)]
#[allow(non_camel_case_types)]
#[derive(Debug, Clone, Copy)]
pub struct sendfile2_result {
    /// SENDFILE2_RELEASED, SENDFILE2_COPIED or SENDFILE2_UNKNOWN.
    pub state: c_int,
}

/// Calls `body` for its result in the manner of C: -1 and errno if it fails; errno is left alone
/// if not.
pub(crate) fn answer(body: impl FnOnce() -> Result<usize, Errno>) -> ssize_t {
    // SAFETY: it has no preconditions.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: the address of this thread's errno is valid, and nothing keeps a reference to it.
    let before = unsafe { *errno };
    let result = body();
    let after = result.as_ref().map_or_else(|e| e.raw_os_error(), |_| before);
    // SAFETY: as above.
    unsafe { *errno = after };
    match result {
        // No more than was asked for, which was no more than this can hold.
        Ok(count) => ssize_t::try_from(count).unwrap_or(ssize_t::MAX),
        Err(_) => -1,
    }
}

/// Sends up to count bytes of the file in_fd to out_fd, as sendfile(2) does, and, as the flag says,
/// tells when they may be overwritten.
///
/// flags is 0, SENDFILE_DEFAULT, SENDFILE_ZC or SENDFILE_SYNC. See sendfile2(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendfile2(
    out_fd: c_int,
    in_fd: c_int,
    offset: *mut loff_t,
    count: size_t,
    flags: c_int,
) -> ssize_t {
    // SAFETY: as the caller's.
    answer(|| unsafe { send_by(how(flags)?, out_fd, in_fd, offset, count, None) })
}

/// As sendfile2() with SENDFILE_SYNC, but waits no longer than until the deadline, an absolute time
/// of CLOCK_MONOTONIC (NULL: for ever). What is known of the range is written to result unless it
/// is NULL; it is set if the call returns more than 0.
///
/// Fails with ETIMEDOUT if nothing was sent by then. flags is SENDFILE_SYNC.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendfile2_deadline(
    out_fd: c_int,
    in_fd: c_int,
    offset: *mut loff_t,
    count: size_t,
    flags: c_int,
    deadline: *const timespec,
    result: *mut sendfile2_result,
) -> ssize_t {
    answer(|| {
        let How::Sync(_) = how(flags)? else { return Err(Errno::INVAL) };
        // SAFETY: it is null or points at a time, as C asks of pointers.
        let deadline = unsafe { deadline.as_ref() }.map(instant).transpose()?;
        let mut state = State::Unknown;
        let how = How::Sync(Some((deadline, &mut state)));
        // SAFETY: as the caller's.
        let sent = unsafe { send_by(how, out_fd, in_fd, offset, count, None) }?;
        // SAFETY: it is null or points at a result, as C asks of pointers.
        if let Some(result) = unsafe { result.as_mut() }.filter(|_| sent > 0) {
            result.state = match state {
                State::Released => SENDFILE2_RELEASED,
                State::Copied => SENDFILE2_COPIED,
                State::Unknown => SENDFILE2_UNKNOWN,
            };
        }
        Ok(sent)
    })
}

/// A file that is kept open and mapped, for programs that send from it again and again.
#[allow(non_camel_case_types)]
#[derive(Debug)]
pub struct sendfile2_file(Kept);

/// Keeps in_fd, of which it makes a duplicate, and a mapping of it, until sendfile2_file_close().
/// While it is kept, so are locks of flock(2) on it, and the space of a deleted file; F_SEAL_WRITE
/// fails. NULL and errno if that fails.
#[unsafe(no_mangle)]
pub extern "C" fn sendfile2_file_open(in_fd: c_int) -> *mut sendfile2_file {
    let mut file = std::ptr::null_mut();
    answer(|| {
        file = Box::into_raw(Box::new(sendfile2_file(Kept::new(in_fd)?)));
        Ok(0)
    });
    file
}

/// As sendfile2(), from a file that is kept. With SENDFILE_ZC and SENDFILE_SYNC it is not mapped
/// anew for each call. If offset is NULL, the position of the descriptor that was kept counts.
/// Threads may use one file at the same time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendfile2_file_send(
    out_fd: c_int,
    file: *const sendfile2_file,
    offset: *mut loff_t,
    count: size_t,
    flags: c_int,
) -> ssize_t {
    answer(|| {
        // SAFETY: it is null or open, as C asks of pointers.
        let file = &unsafe { file.as_ref() }.ok_or(Errno::BADF)?.0;
        let in_fd = file.as_fd().as_raw_fd();
        // SAFETY: as the caller's.
        unsafe { send_by(how(flags)?, out_fd, in_fd, offset, count, Some(file)) }
    })
}

/// Lets go of a file. What is in flight is not affected. NULL is no error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendfile2_file_close(file: *mut sendfile2_file) {
    if !file.is_null() {
        // SAFETY: sendfile2_file_open made it so, and it is closed once, as C asks of pointers.
        drop(unsafe { Box::from_raw(file) });
    }
}

/// How a range is sent.
enum How<'a> {
    Kernel,
    Notify,
    /// With a deadline perhaps, and where to tell what is known of the range.
    Sync(Option<(Option<Instant>, &'a mut State)>),
}

fn how(flags: c_int) -> Result<How<'static>, Errno> {
    match flags {
        0 | SENDFILE_DEFAULT => Ok(How::Kernel),
        SENDFILE_ZC => Ok(How::Notify),
        SENDFILE_SYNC => Ok(How::Sync(None)),
        _ => Err(Errno::INVAL),
    }
}

/// # Safety
/// `offset` must be null, or as for sendfile(2).
unsafe fn send_by(
    how: How<'_>,
    out_fd: c_int,
    in_fd: c_int,
    offset: *mut loff_t,
    count: size_t,
    kept: Option<&Kept>,
) -> Result<usize, Errno> {
    if let How::Kernel = how {
        // SAFETY: as the caller's.
        return unsafe { kernel::sendfile(out_fd, in_fd, offset, count) };
    }
    // SAFETY: as the caller's.
    let (request, offset) = unsafe { Request::new(out_fd, in_fd, offset, count) }?;
    let sent = match how {
        How::Sync(told) => {
            let deadline = told.as_ref().and_then(|(deadline, _)| *deadline);
            let (sent, state) = sync::sync(&request, kept, deadline)?;
            if let Some((_, place)) = told {
                *place = state;
            }
            sent
        }
        How::Notify | How::Kernel => send::notify(&request, kept)?,
    };
    if sent > 0 {
        offset.advance(&request, sent);
    }
    Ok(sent)
}

/// A time of CLOCK_MONOTONIC.
fn instant(at: &timespec) -> Result<Instant, Errno> {
    let seconds = u64::try_from(at.tv_sec).map_err(|_| Errno::INVAL)?;
    let nanoseconds = u32::try_from(at.tv_nsec).map_err(|_| Errno::INVAL)?;
    if nanoseconds >= 1_000_000_000 {
        return Err(Errno::INVAL);
    }
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // It does not run backwards from 0.
    let now = Duration::try_from(now).unwrap_or_default();
    let left = Duration::new(seconds, nanoseconds).saturating_sub(now);
    // A time that this cannot hold is for ever, or as good as that.
    Ok(Instant::now() + left.min(Duration::from_secs(1 << 32)))
}
