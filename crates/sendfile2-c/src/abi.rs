//! The C interface. What is written here is the text of `sendfile2.h`.
#![allow(unsafe_code)]
#![allow(
    clippy::doc_markdown,
    clippy::missing_safety_doc,
    reason = "the text is read in a C header: what C asks of pointers holds"
)]

use std::ffi::{c_int, c_void};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use libc::{loff_t, off_t, size_t, ssize_t, timespec};
use rustix::io::Errno;
use sendfile2_sys::errqueue::Foreign;

use crate::file::Kept;
use crate::queue::{Queue, Read};
use crate::request::{Boundaries, Notifier, Request, is_pageless};
use crate::sync::State;
use crate::{kernel, send, sync, write};

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
/// State in a sendfile2_result: released; the kernel has copied at least a part.
pub const SENDFILE2_COPIED: c_int = 2;
/// State in a sendfile2_result: the release is not known: the deadline passed, or the ring was lost.
/// The kernel may still read the range.
pub const SENDFILE2_UNKNOWN: c_int = 3;

/// The outcome of sendfile2_deadline(), beside the number of bytes.
#[repr(C)]
#[allow(non_camel_case_types)]
#[derive(Debug, Clone, Copy)]
pub struct sendfile2_result {
    /// SENDFILE2_RELEASED, SENDFILE2_COPIED or SENDFILE2_UNKNOWN.
    pub state: c_int,
    /// 0; space for what later versions tell.
    pub reserved: [u32; 7],
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

/// Sends up to count bytes of the file in_fd to out_fd, as sendfile(2) does, and reports, in the
/// way that the flag asks for, when they may be overwritten.
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

/// Sends as sendfile2() with SENDFILE_SYNC does, but waits no longer than until the deadline, an
/// absolute time of CLOCK_MONOTONIC (NULL: for ever). The state of the range is written to result
/// unless result is NULL; it is set if the call returns more than 0.
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
            let state = match state {
                State::Released => SENDFILE2_RELEASED,
                State::Copied => SENDFILE2_COPIED,
                State::Unknown => SENDFILE2_UNKNOWN,
            };
            *result = sendfile2_result { state, reserved: [0; 7] };
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

/// Sends as sendfile2() does, from a file that is kept. With SENDFILE_ZC and SENDFILE_SYNC the file
/// is not mapped anew for each call. If offset is NULL, the position of the descriptor that was
/// kept counts. Threads may use one file at the same time.
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

/// Closes a file that was kept. What is in flight is not affected. NULL is no error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendfile2_file_close(file: *mut sendfile2_file) {
    if !file.is_null() {
        // SAFETY: sendfile2_file_open made it so, and it is closed once, as C asks of pointers.
        drop(unsafe { Box::from_raw(file) });
    }
}

/// Overwrites count bytes of a file at offset, whole units of sendfile2_pwrite_unit() within the
/// file, while anybody may be sending them: what is in flight, by sendfile(2) of any program, keeps
/// the old bytes. Nothing is ever written in place: where that is impossible it is refused. Neither
/// the descriptor nor its position is changed, and it may be open for reading only if the file may
/// be written. flags is 0.
///
/// Returns the bytes written, which may be fewer than count; or, if none were, -1 and errno:
/// EOPNOTSUPP: not on this file (tmpfs, overlayfs, no direct I/O, no way to ask the page cache).
/// EINVAL: not whole units; not a regular file or block device; flags.
/// ENXIO: behind the end of the file.
/// EBUSY: pages came back into the page cache at each try: another program writes there; or, on
/// XFS, asks for the file's times all the while.
/// EBADF; EFAULT: buf is NULL; EACCES, EROFS, EFBIG, ENOSPC, EIO and others, as open(2) and write(2).
/// See sendfile2_pwrite(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendfile2_pwrite(
    fd: c_int,
    buf: *const c_void,
    count: size_t,
    offset: off_t,
    flags: c_int,
) -> ssize_t {
    without_cancellation(|| {
        let offset = u64::try_from(offset).map_err(|_| Errno::INVAL)?;
        if flags != 0 || isize::try_from(count).is_err() {
            return Err(Errno::INVAL);
        }
        let data = match count {
            0 => &[],
            _ if buf.is_null() => return Err(Errno::FAULT),
            // SAFETY: it points at so many bytes that do not change meanwhile, as C asks of
            // pointers; no more than a slice can have.
            _ => unsafe { std::slice::from_raw_parts(buf.cast(), count) },
        };
        write::pwrite(fd, data, offset)
    })
}

/// Returns the unit, in bytes, of what sendfile2_pwrite() writes now: offsets and counts are
/// multiples of it. A reflink of the file changes it. -1 and errno, as of sendfile2_pwrite(), if it
/// is known that the file cannot be overwritten so; some filesystems tell only when it is tried.
#[unsafe(no_mangle)]
pub extern "C" fn sendfile2_pwrite_unit(fd: c_int) -> ssize_t {
    without_cancellation(|| write::unit(fd))
}

/// Kind of a sendfile2_entry: sends are released.
pub const SENDFILE2_COMPLETION: c_int = 1;
/// Kind of a sendfile2_entry: another message, for the code that asked for it: an ICMP error, a
/// timestamp.
pub const SENDFILE2_FOREIGN: c_int = 2;
/// Kind of a sendfile2_entry: a message that could not be decoded; nothing is released for it.
pub const SENDFILE2_BROKEN: c_int = 3;

/// An entry of an error queue.
#[repr(C)]
#[allow(non_camel_case_types)]
#[derive(Debug, Clone, Copy)]
pub struct sendfile2_entry {
    /// SENDFILE2_COMPLETION, SENDFILE2_FOREIGN or SENDFILE2_BROKEN.
    pub kind: c_int,
    /// Not 0 in a completion if the kernel has made a copy of (at least the first of) these sends.
    pub copied: c_int,
    /// The first id of a completion.
    pub first: u64,
    /// The last id of a completion, inclusive.
    pub last: u64,
    /// The control messages of a foreign entry, for CMSG_FIRSTHDR(3) as msg_control. They stay
    /// until the next sendfile2_queue_reap() or sendfile2_queue_close().
    pub control: *const c_void,
    /// Bytes of control messages.
    pub control_length: size_t,
    /// The payload of a foreign entry. It stays until then, too.
    pub payload: *const c_void,
    /// Bytes of payload.
    pub payload_length: size_t,
    /// Not 0 in a foreign entry if the payload was longer than 2048 bytes, and cut off.
    pub truncated: c_int,
    /// 0; space for what later versions tell.
    pub reserved: [u32; 9],
}

/// The error queue of one socket, and the account of its ids.
#[allow(non_camel_case_types)]
#[derive(Debug)]
pub struct sendfile2_queue {
    queue: Queue,
    /// The messages that the entries handed out point at.
    foreign: Mutex<Vec<Foreign>>,
}

/// Opens a queue, which keeps the account of the notifications of a TCP or UDP socket, and must
/// read all of them from now on. next_id is the number of zerocopy sends made on it so far, and so
/// the id of the next one; 0 on a new socket. Ids are counted in 64 bits, where the kernel's wrap
/// at 32.
///
/// The socket stays the program's, which closes it after the queue. NULL and errno if that fails.
#[unsafe(no_mangle)]
pub extern "C" fn sendfile2_queue_open(socket: c_int, next_id: u64) -> *mut sendfile2_queue {
    let mut opened = std::ptr::null_mut();
    answer(|| {
        let queue = Queue::new(socket, next_id)?;
        opened = Box::into_raw(Box::new(sendfile2_queue { queue, foreign: Mutex::default() }));
        Ok(0)
    });
    opened
}

/// Reads up to room entries of the error queue, without waiting, and returns how many. If another
/// thread waits for ids that are read here, it is woken. Completions that sendfile2_queue_wait() has read
/// are not returned; its other entries are. One thread at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendfile2_queue_reap(
    queue: *mut sendfile2_queue,
    entries: *mut sendfile2_entry,
    room: size_t,
) -> ssize_t {
    without_cancellation(|| {
        // SAFETY: it is null or open, as C asks of pointers.
        let queue = unsafe { queue.as_ref() }.ok_or(Errno::BADF)?;
        let mut foreign = queue.foreign.lock().unwrap_or_else(PoisonError::into_inner);
        foreign.clear();
        let read = queue.queue.reap(room)?;
        let count = read.len();
        // The memory that entries point at does not move: the contents of a vector stay where they
        // are.
        for (i, read) in read.into_iter().enumerate() {
            let mut entry = NO_ENTRY;
            match read {
                Read::Completion { first, last, copied } => {
                    entry.kind = SENDFILE2_COMPLETION;
                    (entry.first, entry.last, entry.copied) = (first, last, copied.into());
                }
                Read::Foreign(it) => {
                    entry.kind = SENDFILE2_FOREIGN;
                    entry.control = it.control.as_ptr().cast();
                    entry.control_length = it.control.len();
                    entry.payload = it.payload.as_ptr().cast();
                    entry.payload_length = it.payload.len();
                    entry.truncated = it.truncated.into();
                    foreign.push(it);
                }
                Read::Broken => {}
            }
            // SAFETY: there is space for so many, as C asks of pointers, and no more were read.
            unsafe { entries.add(i).write(entry) };
        }
        Ok(count)
    })
}

/// Waits until the send with this id is released, or until the deadline, an absolute time of
/// CLOCK_MONOTONIC (NULL: for ever). Returns 0, or -1 and errno: ETIMEDOUT, or ENOBUFS if entries
/// that are no completions have piled up: sendfile2_queue_reap() hands them out. Any number of threads
/// may wait.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendfile2_queue_wait(
    queue: *mut sendfile2_queue,
    id: u64,
    deadline: *const timespec,
) -> c_int {
    let result = without_cancellation(|| {
        // SAFETY: it is null or open, as C asks of pointers.
        let queue = unsafe { queue.as_ref() }.ok_or(Errno::BADF)?;
        // SAFETY: it is null or points at a time, as C asks of pointers.
        let deadline = unsafe { deadline.as_ref() }.map(instant).transpose()?;
        queue.queue.wait(id, deadline).map(|()| 0)
    });
    if result == 0 { 0 } else { -1 }
}

/// Ends the account; what is in flight is not affected. Before the socket is closed. NULL is no
/// error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendfile2_queue_close(queue: *mut sendfile2_queue) {
    if !queue.is_null() {
        // SAFETY: sendfile2_queue_open made it so, and it is closed once, as C asks of pointers.
        drop(unsafe { Box::from_raw(queue) });
    }
}

const NO_ENTRY: sendfile2_entry = sendfile2_entry {
    kind: SENDFILE2_BROKEN,
    copied: 0,
    first: 0,
    last: 0,
    control: std::ptr::null(),
    control_length: 0,
    payload: std::ptr::null(),
    payload_length: 0,
    truncated: 0,
    reserved: [0; 9],
};

/// Calls `body` as [`answer`] does, with thread cancellation disabled: `body` calls functions of
/// libc that are cancellation points, and a thread that is cancelled must not be unwound through
/// this code.
fn without_cancellation(body: impl FnOnce() -> Result<usize, Errno>) -> ssize_t {
    unsafe extern "C" {
        fn pthread_setcancelstate(state: c_int, old: *mut c_int) -> c_int;
    }
    const DISABLE: c_int = 1; // PTHREAD_CANCEL_DISABLE
    let mut before = 0;
    // SAFETY: the old state is written to this function's own variable.
    unsafe { pthread_setcancelstate(DISABLE, &raw mut before) };
    let result = answer(body);
    // SAFETY: as above.
    unsafe { pthread_setcancelstate(before, &raw mut before) };
    result
}

/// The way a range is sent.
enum How<'a> {
    Kernel,
    Notify,
    /// A send that is released when it returns; with a deadline perhaps, and a place for the state
    /// of the range.
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
    if let (How::Notify, Some(number)) = (&how, kernel::sendfile2_number()) {
        // SAFETY: as the caller's.
        match unsafe { kernel::sendfile2(number, out_fd, in_fd, offset, count, SENDFILE_ZC) } {
            // The kernel's call serves TCP only.
            Err(Errno::OPNOTSUPP) if Notifier::is_udp(out_fd) => {}
            // A sandbox may have been put up since.
            Err(Errno::NOSYS) => {}
            result => return result,
        }
    }
    if let (How::Sync(_), true) = (&how, Boundaries::of(out_fd).is_some() && is_pageless(in_fd)) {
        if let How::Sync(Some((_, place))) = how {
            *place = State::Copied;
        }
        // SAFETY: as the caller's.
        return unsafe { kernel::sendfile(out_fd, in_fd, offset, count) };
    }
    // SAFETY: as the caller's.
    let (request, offset) = unsafe { Request::new(out_fd, in_fd, offset, count) }?;
    let sent = match how {
        How::Sync(None) => sync::sync_fully(&request, kept)?,
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
    // The clock does not run backwards from 0.
    let now = Duration::try_from(now).unwrap_or_default();
    let left = Duration::new(seconds, nanoseconds).saturating_sub(now);
    // A time that this cannot hold is for ever, or as good as that.
    Ok(Instant::now() + left.min(Duration::from_secs(1 << 32)))
}
