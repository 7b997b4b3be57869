//! The system calls that rustix does not offer, and mappings.
//!
//! The calls are made by number, and not by libc's functions: some of those are cancellation
//! points, and a thread that is cancelled there would be unwound through this code; and the shim's
//! own `sendfile` is the one that a program calls.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use io_uring::types;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use sendfile2_sys::syscall::Sendfile2;

fn check(ret: i64) -> Result<usize, Errno> {
    usize::try_from(ret).map_err(|_| {
        // SAFETY: the address of this thread's errno is valid.
        Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
    })
}

/// `sendfile(2)` itself.
///
/// # Safety
/// `offset` must be null, or the address of something that may be changed as `sendfile(2)` changes
/// it. An address where nothing is gives EFAULT.
pub(crate) unsafe fn sendfile(
    out: c_int,
    file: c_int,
    offset: *mut i64,
    count: usize,
) -> Result<usize, Errno> {
    // SAFETY: the kernel checks the descriptors and the address; the caller vouches for what is
    // written there.
    check(unsafe { libc::syscall(libc::SYS_sendfile, out, file, offset, count) })
}

/// Calls [`sendfile`] with an offset of its own, which the caller does not see.
pub(crate) fn sendfile_at(out: c_int, file: c_int, at: u64, count: usize) -> Result<usize, Errno> {
    let mut offset = i64::try_from(at).map_err(|_| Errno::INVAL)?;
    // SAFETY: the offset is this function's own.
    unsafe { sendfile(out, file, &raw mut offset, count) }
}

/// Returns the number of sendfile2(2), where the kernel has the patch series. The kernel is asked
/// once a process; no lock is taken, as this may be a signal handler.
pub(crate) fn series() -> Option<i64> {
    const UNKNOWN: i64 = 0;
    const NONE: i64 = -1;
    static NUMBER: AtomicI64 = AtomicI64::new(UNKNOWN);
    let mut number = NUMBER.load(Ordering::Relaxed);
    if number == UNKNOWN {
        number = Sendfile2::find().map_or(NONE, Sendfile2::number);
        NUMBER.store(number, Ordering::Relaxed);
    }
    Some(number).filter(|number| *number != NONE)
}

/// sendfile2(2), whose number [`series`] gave.
///
/// # Safety
/// As for [`sendfile`].
pub(crate) unsafe fn sendfile2(
    number: i64,
    out: c_int,
    file: c_int,
    offset: *mut i64,
    count: usize,
    flags: c_int,
) -> Result<usize, Errno> {
    // SAFETY: as for `sendfile`; the kernel has reported that this is its number.
    check(unsafe { libc::syscall(number, out, file, offset, count, flags) })
}

/// `send(2)` from `bytes`, with just these flags: where the socket is gone, SIGPIPE comes.
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: Bytes<'_>, flags: c_int) -> Result<usize, Errno> {
    let none: *const c_void = std::ptr::null();
    // SAFETY: the bytes are mapped for the time of the call; the kernel only reads them, and
    // answers EFAULT where a page is gone.
    check(unsafe {
        libc::syscall(
            libc::SYS_sendto,
            socket.as_raw_fd(),
            bytes.start,
            bytes.len,
            flags,
            none,
            0_usize,
        )
    })
}

/// `write(2)` of `bytes` to a socket, which is `send(2)` without flags by another number.
pub(crate) fn write(socket: BorrowedFd<'_>, bytes: Bytes<'_>) -> Result<usize, Errno> {
    // SAFETY: as for `send`.
    check(unsafe { libc::syscall(libc::SYS_write, socket.as_raw_fd(), bytes.start, bytes.len) })
}

/// Returns whether a filter of system calls (seccomp) makes the calls that it forbids fail with
/// this error.
pub(crate) fn is_forbidden(errno: Errno) -> bool {
    matches!(errno, Errno::PERM | Errno::ACCESS | Errno::NOSYS)
}

/// Returns whether `SO_ZEROCOPY` is set; an error where the socket has no such option.
pub(crate) fn zerocopy(socket: BorrowedFd<'_>) -> Result<bool, Errno> {
    let mut value: c_int = 0;
    let mut len = INT;
    // SAFETY: the value and its length are valid for writes.
    let ret = unsafe {
        let value = (&raw mut value).cast();
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ZEROCOPY,
            value,
            &raw mut len,
        )
    };
    check(ret.into()).map(|_| value != 0)
}

/// Returns whether `out` is a socket on which `SO_ZEROCOPY` is set.
pub(crate) fn wants_notifications(out: c_int) -> bool {
    // SAFETY: it is not -1; a number that is no descriptor is refused by the kernel.
    out >= 0 && zerocopy(unsafe { BorrowedFd::borrow_raw(out) }) == Ok(true)
}

/// Sets `SO_ZEROCOPY`, without which `MSG_ZEROCOPY` is accepted and gives no notification.
pub(crate) fn set_zerocopy(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    let on: c_int = 1;
    // SAFETY: the value is valid for reads of its size.
    let ret = unsafe {
        let on = (&raw const on).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ZEROCOPY, on, INT)
    };
    check(ret.into()).map(drop)
}

#[expect(clippy::cast_possible_truncation, reason = "it is 4")]
const INT: libc::socklen_t = size_of::<c_int>() as libc::socklen_t;

/// Registers a ring with the calling thread, under an index that no closing of descriptors changes
/// (`IORING_REGISTER_RING_FDS`, Linux 5.18).
pub(crate) fn register_ring(ring: c_int) -> Result<c_int, Errno> {
    const IORING_REGISTER_RING_FDS: c_int = 20;
    /// `struct io_uring_rsrc_update`.
    #[repr(C)]
    struct Update {
        offset: u32,
        reserved: u32,
        data: u64,
    }
    let data = u64::try_from(ring).map_err(|_| Errno::BADF)?;
    // The kernel chooses the index, and writes it there.
    let mut update = Update { offset: u32::MAX, reserved: 0, data };
    // SAFETY: one update is read and written, which is this function's own.
    check(unsafe {
        let number = libc::SYS_io_uring_register;
        libc::syscall(number, ring, IORING_REGISTER_RING_FDS, &raw mut update, 1)
    })?;
    c_int::try_from(update.offset).map_err(|_| Errno::IO)
}

/// `io_uring_enter(2)`, for a ring that the calling thread has registered: submits `submit`
/// entries, and waits for `want` completions, for `limit` if it is given (then ETIME).
///
/// # Safety
/// The memory that the submitted entries refer to must stay until their completions.
pub(crate) unsafe fn enter_ring(
    index: c_int,
    submit: u32,
    want: u32,
    limit: Option<Duration>,
) -> Result<usize, Errno> {
    const GETEVENTS: u32 = 1 << 0;
    const EXT_ARG: u32 = 1 << 3;
    const REGISTERED_RING: u32 = 1 << 4;
    let time = limit.map(types::Timespec::from);
    let mut argument = types::SubmitArgs::new();
    if let Some(time) = &time {
        argument = argument.timespec(time);
    }
    let flags = EXT_ARG | REGISTERED_RING | if want > 0 { GETEVENTS } else { 0 };
    // SAFETY: the argument and the time in it are this function's own; the entries are as the
    // caller promises.
    check(unsafe {
        let (number, size) = (libc::SYS_io_uring_enter, size_of_val(&argument));
        libc::syscall(number, index, submit, want, flags, &raw const argument, size)
    })
}

/// Returns the device and inode of a descriptor's file, which identify a ring: each ring has a file
/// of its own.
pub(crate) fn identity(fd: c_int) -> Result<(u64, u64), Errno> {
    if fd < 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: it is not -1; a number that is no descriptor is refused.
    let stat = rustix::fs::fstat(unsafe { BorrowedFd::borrow_raw(fd) })?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Memory that the kernel may read. No reference to it is ever made: others may change it, or
/// truncate the file that it shows.
#[derive(Clone, Copy)]
pub(crate) struct Bytes<'a> {
    start: *const u8,
    len: usize,
    alive: PhantomData<&'a Mapping>,
}

impl Bytes<'_> {
    pub(crate) fn start(self) -> *const u8 {
        self.start
    }

    pub(crate) fn len(self) -> usize {
        self.len
    }

    /// Returns the first `len` bytes at most.
    pub(crate) fn first(self, len: usize) -> Self {
        Bytes { len: self.len.min(len), ..self }
    }

    /// Returns the bytes after the first `len`.
    pub(crate) fn after(self, len: usize) -> Self {
        let len = self.len.min(len);
        // SAFETY: it is within the memory, or one past its end.
        let start = unsafe { self.start.add(len) };
        Bytes { start, len: self.len - len, ..self }
    }
}

/// A read-only mapping of a file range, until it is dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    address: *mut c_void,
    /// The length of the whole mapping, which begins at a page.
    length: usize,
    /// Bytes of the mapping before those that were asked for.
    skip: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread, and is never read or written here.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of the file from `at` on, read-only.
    pub(crate) fn of(file: BorrowedFd<'_>, at: u64, len: usize) -> Result<Self, Errno> {
        let page = rustix::param::page_size() as u64;
        let skip = at % page;
        let start = at - skip;
        // Less than a page.
        let skip = usize::try_from(skip).unwrap_or(0);
        let length = len.checked_add(skip).ok_or(Errno::NOMEM)?;
        // SAFETY: the kernel chooses the address, so no other memory is affected.
        let address = unsafe {
            let flags = MapFlags::SHARED;
            rustix::mm::mmap(std::ptr::null_mut(), length, ProtFlags::READ, flags, file, start)
        }?;
        Ok(Mapping { address, length, skip })
    }

    pub(crate) fn bytes(&self) -> Bytes<'_> {
        // SAFETY: the skip is less than the length.
        let start = unsafe { self.address.cast::<u8>().add(self.skip).cast_const() };
        Bytes { start, len: self.length - self.skip, alive: PhantomData }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was mapped so, and nothing refers to it any more: what the kernel still reads
        // for a zerocopy send it has pinned. It cannot fail.
        let _ = unsafe { rustix::mm::munmap(self.address, self.length) };
    }
}

/// Memory to read into, which the allocator knows nothing of.
#[derive(Debug)]
pub(crate) enum Buffer<'a> {
    Own(Mapping),
    /// Memory of the caller's, for where nothing can be mapped.
    Lent(&'a mut [u8]),
}

impl Buffer<'_> {
    pub(crate) fn new(length: usize) -> Result<Self, Errno> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE;
        // SAFETY: the kernel chooses the address, so no other memory is affected.
        let address =
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), length, protection, flags) }?;
        Ok(Buffer::Own(Mapping { address, length, skip: 0 }))
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Buffer::Own(it) => it.length,
            Buffer::Lent(memory) => memory.len(),
        }
    }

    /// Reads `len` bytes of the file from `at` on, fewer where it ends. What was read before an
    /// error counts.
    pub(crate) fn read(
        &mut self,
        file: BorrowedFd<'_>,
        at: u64,
        len: usize,
    ) -> Result<Bytes<'_>, Errno> {
        let memory = match self {
            // SAFETY: as long as that, zeroed by the kernel, and borrowed exclusively.
            Buffer::Own(it) => unsafe {
                std::slice::from_raw_parts_mut(it.address.cast::<u8>(), it.length)
            },
            Buffer::Lent(memory) => memory,
        };
        let len = len.min(memory.len());
        let mut filled = 0;
        while filled < len {
            match rustix::io::pread(file, &mut memory[filled..len], at + filled as u64) {
                Ok(0) => break,
                Ok(more) => filled += more,
                Err(Errno::INTR) => {}
                Err(_) if filled > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(Bytes { start: memory.as_ptr(), len: filled, alive: PhantomData })
    }
}
