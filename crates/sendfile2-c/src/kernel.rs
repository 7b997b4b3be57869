//! System calls, and the memory that the kernel reads for them: mappings of files, and buffers.
//!
//! Calls that send are made by number, and not by libc's functions: some of those are cancellation
//! points, and a thread that is cancelled there would be unwound through this code; and where the
//! shim is loaded, libc's `sendfile` is the shim.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use io_uring::types;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use sendfile2_sys::syscall::Sendfile2;

/// Returns the result of a system call: `ret`, or this thread's errno if it is negative.
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
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    if COOKIE.load(Ordering::Relaxed) != 0 {
        // SAFETY: as the caller's.
        return check(unsafe { marked_sendfile(out, file, offset, count) });
    }
    // SAFETY: as the caller's.
    unsafe { plain_sendfile(out, file, offset, count) }
}

/// `sendfile(2)` itself, which a supervisor may answer.
///
/// # Safety
/// As for [`sendfile`].
pub(crate) unsafe fn plain_sendfile(
    out: c_int,
    file: c_int,
    offset: *mut i64,
    count: usize,
) -> Result<usize, Errno> {
    // SAFETY: the kernel checks the descriptors and the address; the caller vouches for what is
    // written there.
    check(unsafe { libc::syscall(libc::SYS_sendfile, out, file, offset, count) })
}

/// The number by which a supervisor of this process (`sendfile2 run`) knows the calls that the shim
/// makes, and lets them pass; 0 where there is none.
static COOKIE: AtomicU64 = AtomicU64::new(0);

/// Sets the number that a supervisor knows the calls of [`sendfile`] by.
pub(crate) fn set_cookie(cookie: u64) {
    COOKIE.store(cookie, Ordering::Relaxed);
}

/// `sendfile(2)` with the cookie as a fifth argument, of which the kernel knows nothing. The cookie is
/// in no register when it returns: a call of the program's own would carry it by chance.
///
/// # Safety
/// As for [`sendfile`].
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
unsafe fn marked_sendfile(out: c_int, file: c_int, offset: *mut i64, count: usize) -> i64 {
    let ret: i64;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: it is the system call, with its arguments and clobbers; the caller vouches for what the
    // kernel writes.
    unsafe {
        std::arch::asm!(
            "mov r8, qword ptr [{cookie}]",
            "syscall",
            "xor r8d, r8d",
            cookie = in(reg) COOKIE.as_ptr(),
            inlateout("rax") libc::SYS_sendfile => ret,
            in("rdi") i64::from(out),
            in("rsi") i64::from(file),
            in("rdx") offset,
            in("r10") count,
            out("r8") _,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!(
            "ldr x4, [{cookie}]",
            "svc 0",
            "mov x4, xzr",
            cookie = in(reg) COOKIE.as_ptr(),
            in("x8") libc::SYS_sendfile,
            inlateout("x0") i64::from(out) => ret,
            in("x1") i64::from(file),
            in("x2") offset,
            in("x3") count,
            out("x4") _,
            options(nostack),
        );
    }
    if ret < 0 {
        // As libc does, for `check`.
        // SAFETY: the address of this thread's errno is valid.
        unsafe { *libc::__errno_location() = i32::try_from(-ret).unwrap_or(libc::EIO) };
    }
    ret
}

/// Calls [`sendfile`] with an offset of its own, which the caller does not see.
pub(crate) fn sendfile_at(out: c_int, file: c_int, at: u64, count: usize) -> Result<usize, Errno> {
    let mut offset = i64::try_from(at).map_err(|_| Errno::INVAL)?;
    // SAFETY: the offset is this function's own.
    unsafe { sendfile(out, file, &raw mut offset, count) }
}

/// Returns the number of the system call sendfile2(2), where the kernel has the patch series. The
/// kernel is asked once a process; no lock is taken, as this may be a signal handler.
pub(crate) fn sendfile2_number() -> Option<i64> {
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

/// Calls sendfile2(2) by its `number`, which [`sendfile2_number`] has returned.
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

/// Calls `send(2)` with these flags and no others. A socket that is shut down for writing raises
/// SIGPIPE.
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

/// Calls `write(2)`, which does on a socket what `send(2)` does without flags.
pub(crate) fn write(socket: BorrowedFd<'_>, bytes: Bytes<'_>) -> Result<usize, Errno> {
    // SAFETY: as for `send`.
    check(unsafe { libc::syscall(libc::SYS_write, socket.as_raw_fd(), bytes.start, bytes.len) })
}

/// Returns whether `errno` is one of those with which a call fails that a filter of system calls
/// (seccomp) forbids.
pub(crate) fn is_forbidden(errno: Errno) -> bool {
    matches!(errno, Errno::PERM | Errno::ACCESS | Errno::NOSYS)
}

/// Returns whether `SO_ZEROCOPY` is set; an error where the socket has no such option.
pub(crate) fn so_zerocopy(socket: BorrowedFd<'_>) -> Result<bool, Errno> {
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

/// Returns whether `out` is a socket with `SO_ZEROCOPY` set; `false` for any other number.
pub(crate) fn is_socket_with_so_zerocopy(out: c_int) -> bool {
    // SAFETY: it is not -1; a number that is no descriptor is refused by the kernel.
    out >= 0 && so_zerocopy(unsafe { BorrowedFd::borrow_raw(out) }) == Ok(true)
}

/// Sets `SO_ZEROCOPY`, without which `MSG_ZEROCOPY` is accepted and gives no notification.
pub(crate) fn set_so_zerocopy(socket: BorrowedFd<'_>) -> Result<(), Errno> {
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

/// Registers a ring with the calling thread (`IORING_REGISTER_RING_FDS`, Linux 5.18). Returns the
/// index by which [`enter_ring`] knows it from now on, also when its descriptor was closed.
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

/// Calls `io_uring_enter(2)` for a ring that the calling thread has registered: submits `submit`
/// entries, and waits for `want` completions, no longer than `timeout` if it is given (then ETIME).
///
/// # Safety
/// The memory that the submitted entries refer to must stay until their completions.
pub(crate) unsafe fn enter_ring(
    index: c_int,
    submit: u32,
    want: u32,
    timeout: Option<Duration>,
) -> Result<usize, Errno> {
    const GETEVENTS: u32 = 1 << 0;
    const EXT_ARG: u32 = 1 << 3;
    const REGISTERED_RING: u32 = 1 << 4;
    let time = timeout.map(types::Timespec::from);
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

/// Memory for the kernel to read, by its address: a reference would promise that nobody changes it,
/// and others may, or truncate the file that it shows.
#[derive(Clone, Copy)]
pub(crate) struct Bytes<'a> {
    start: *const u8,
    len: usize,
    /// The borrow of the memory.
    memory: PhantomData<&'a ()>,
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

/// Pages that are mapped at an address of the kernel's choice, and unmapped when this is dropped.
#[derive(Debug)]
struct Pages {
    address: *mut c_void,
    length: usize,
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: it was mapped so, and nothing refers to it any more: what the kernel still reads
        // for a zerocopy send it has pinned. It cannot fail.
        let _ = unsafe { rustix::mm::munmap(self.address, self.length) };
    }
}

/// A read-only mapping of a file range.
#[derive(Debug)]
pub(crate) struct Mapping {
    /// The mapping, which begins at a page.
    pages: Pages,
    /// Bytes of the mapping before those that were asked for.
    skip: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread, and only the kernel reads it.
unsafe impl Send for Mapping {}
// SAFETY: as above; and nothing here changes it before it is dropped.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of the file from `at` on.
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
        Ok(Mapping { pages: Pages { address, length }, skip })
    }

    pub(crate) fn bytes(&self) -> Bytes<'_> {
        // SAFETY: the skip is less than the length.
        let start = unsafe { self.pages.address.cast::<u8>().add(self.skip).cast_const() };
        Bytes { start, len: self.pages.length - self.skip, memory: PhantomData }
    }
}

/// Memory of this process alone, to be read and written.
#[derive(Debug)]
pub(crate) struct Anonymous(Pages);

impl Anonymous {
    fn memory(&mut self) -> &mut [u8] {
        // SAFETY: as long as that, zeroed by the kernel, mapped nowhere else, and borrowed
        // exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.0.address.cast::<u8>(), self.0.length) }
    }
}

/// Memory to read a file into. None of it is the allocator's, which a signal handler may have
/// interrupted.
#[derive(Debug)]
pub(crate) enum Buffer<'a> {
    Own(Anonymous),
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
        Ok(Buffer::Own(Anonymous(Pages { address, length })))
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Buffer::Own(it) => it.0.length,
            Buffer::Lent(memory) => memory.len(),
        }
    }

    /// Reads `len` bytes of the file from `at` on; fewer where it ends, or where an error comes
    /// after the first of them.
    pub(crate) fn read(
        &mut self,
        file: BorrowedFd<'_>,
        at: u64,
        len: usize,
    ) -> Result<Bytes<'_>, Errno> {
        let memory = match self {
            Buffer::Own(it) => it.memory(),
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
        Ok(Bytes { start: memory.as_ptr(), len: filled, memory: PhantomData })
    }
}
