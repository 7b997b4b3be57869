//! Calls of `sendfile(2)` that another process answers: a filter of system calls, and the listener
//! that it reports them to.
//!
//! Source: seccomp(2), `seccomp_unotify`(2); `kernel/seccomp.c`. Linux 5.19, for
//! `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV`: a call that was received is not interrupted by signals
//! (but by the death of its thread), so that it is not made a second time.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::{sock_filter, sock_fprog};
use rustix::io::Errno;

use crate::socket::last_error;

/// A call that waits for its answer.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// The number of the call, which no other one of this listener ever has.
    pub id: u64,
    /// The id of its thread; 0 where the thread is not to be seen from here.
    pub thread: u32,
    /// Its arguments.
    pub arguments: [u64; 6],
}

/// The answer to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The call returns a number of bytes.
    Sent(usize),
    /// The call fails.
    Failed(Errno),
    /// The call is made again after a signal was handled, or fails with EINTR, as the handler of the
    /// signal has it. Only for a thread that has a signal pending: else the program would see an
    /// errno that no program knows.
    Interrupted,
    /// The kernel's own `sendfile(2)`.
    Continued,
}

/// Room for the kernel's structures, which may grow.
const ROOM: usize = 64;
type Buffer = [u64; ROOM];

/// A filter's program, as long as it gets.
type Program = Vec<sock_filter>;

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const COUNT: u32 = 16 + 3 * 8;
const COOKIE: u32 = 16 + 4 * 8;

/// The architecture of 64-bit calls, and the 32-bit ones that its kernels know (`linux/audit.h`).
#[cfg(target_arch = "x86_64")]
const OWN: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const OWN: u32 = 0xc000_00b7;
/// The numbers of `sendfile` and `sendfile64` on i386 and on ARM.
const OF_32_BITS: [u32; 2] = [187, 239];
/// The bit of x32's calls.
const X32: u32 = 0x4000_0000;

/// Sends every `sendfile(2)` that this thread, and whatever it starts, makes from now on to the
/// listener that is returned; but not one of no bytes, nor one whose fifth argument, which the
/// kernel does not look at, is `cookie`. Calls of other architectures (i386, x32, 32-bit ARM) fail with
/// ENOSYS.
///
/// Without `CAP_SYS_ADMIN` the thread gives up gaining privileges (`no_new_privs`).
///
/// # Errors
/// EBUSY if there is a listener already; EINVAL before Linux 5.19.
pub fn listen(cookie: u64) -> Result<OwnedFd, Errno> {
    sizes()?;
    match install(cookie) {
        Err(Errno::ACCESS) => {
            rustix::thread::set_no_new_privs(true)?;
            install(cookie)
        }
        listener => listener,
    }
}

fn install(cookie: u64) -> Result<OwnedFd, Errno> {
    let mut program = program(cookie);
    let len = u16::try_from(program.len()).map_err(|_| Errno::INVAL)?;
    let filter = sock_fprog { len, filter: program.as_mut_ptr() };
    let flags =
        libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    // SAFETY: the filter is as long as it says, and is only read.
    let ret = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const filter)
    };
    match i32::try_from(ret) {
        // SAFETY: it is a new descriptor, which nobody else has.
        Ok(listener) if listener >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(listener) }),
        _ => Err(last_error()),
    }
}

/// Checks that the kernel's structures fit into the room here.
fn sizes() -> Result<(), Errno> {
    let mut sizes =
        libc::seccomp_notif_sizes { seccomp_notif: 0, seccomp_notif_resp: 0, seccomp_data: 0 };
    // SAFETY: it writes the sizes.
    let ret = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_NOTIF_SIZES, 0_usize, &raw mut sizes)
    };
    if ret != 0 {
        return Err(last_error());
    }
    let most = sizes.seccomp_notif.max(sizes.seccomp_notif_resp);
    if usize::from(most) > size_of::<Buffer>() { Err(Errno::NOSYS) } else { Ok(()) }
}

/// The filter: conditions, each of which leads to one of four ends.
fn program(cookie: u64) -> Program {
    let [low, high] = halves(cookie);
    let sendfile = u32::try_from(libc::SYS_sendfile).unwrap_or(0);
    // A jump's targets are counted from the next instruction on; "next" is 0.
    let load = |at| step(LOAD, at, 0, 0);
    vec![
        load(ARCHITECTURE),
        step(EQUAL, OWN, 0, 11), // to 13
        load(NUMBER),
        step(EQUAL, X32 | sendfile, 13, 0), // refused
        step(EQUAL, sendfile, 0, 11),       // allowed
        load(COUNT + LOW),
        step(EQUAL, 0, 0, 2), // to 9
        load(COUNT + HIGH),
        step(EQUAL, 0, 7, 0), // allowed
        load(COOKIE + LOW),
        step(EQUAL, low, 0, 7), // answered
        load(COOKIE + HIGH),
        step(EQUAL, high, 3, 5), // allowed, answered
        load(NUMBER),            // 13: another architecture
        step(EQUAL, OF_32_BITS[0], 2, 0),
        step(EQUAL, OF_32_BITS[1], 1, 0),
        step(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0), // 16
        step(RETURN, libc::SECCOMP_RET_ERRNO | ENOSYS, 0, 0), // 17
        step(RETURN, libc::SECCOMP_RET_USER_NOTIF, 0, 0), // 18
    ]
}

const ENOSYS: u32 = libc::ENOSYS.unsigned_abs();

const LOW: u32 = if cfg!(target_endian = "little") { 0 } else { 4 };
const HIGH: u32 = 4 - LOW;

#[expect(clippy::cast_possible_truncation, reason = "its halves are wanted")]
fn halves(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

fn step(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: u16::try_from(code).unwrap_or(0), jt, jf, k }
}

/// Receives a call; `None` if it is gone again, interrupted before it was received. Only to be called
/// when the listener is readable: else it waits.
///
/// # Errors
/// What `ioctl(2)` fails with.
pub fn receive(listener: BorrowedFd<'_>) -> Result<Option<Call>, Errno> {
    let mut buffer: Buffer = [0; ROOM];
    let ret = ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_RECV, buffer.as_mut_ptr());
    match ret {
        Ok(()) => {
            // SAFETY: the kernel has written one there; the buffer is as aligned, and longer.
            let call = unsafe { buffer.as_ptr().cast::<libc::seccomp_notif>().read() };
            Ok(Some(Call { id: call.id, thread: call.pid, arguments: call.data.args }))
        }
        Err(Errno::NOENT | Errno::INTR) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Returns whether a call that was received still waits for its answer; if not, its thread is dead, or
/// it was answered.
#[must_use]
pub fn is_open(listener: BorrowedFd<'_>, id: u64) -> bool {
    let mut id = id;
    ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw mut id).is_ok()
}

/// Answers a call. Nothing is done if it is gone.
///
/// # Errors
/// What `ioctl(2)` fails with.
pub fn answer(listener: BorrowedFd<'_>, id: u64, answer: Answer) -> Result<(), Errno> {
    /// The kernel's, which no program sees: it makes the call again.
    const ERESTARTSYS: i32 = 512;
    let mut response = libc::seccomp_notif_resp { id, val: 0, error: 0, flags: 0 };
    match answer {
        Answer::Sent(bytes) => response.val = i64::try_from(bytes).unwrap_or(0),
        Answer::Failed(errno) => response.error = -errno.raw_os_error(),
        Answer::Interrupted => response.error = -ERESTARTSYS,
        Answer::Continued => response.flags = 1, // SECCOMP_USER_NOTIF_FLAG_CONTINUE
    }
    let mut buffer: Buffer = [0; ROOM];
    // SAFETY: the buffer is as aligned, and longer.
    unsafe { buffer.as_mut_ptr().cast::<libc::seccomp_notif_resp>().write(response) };
    match ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_SEND, buffer.as_mut_ptr()) {
        Err(Errno::NOENT) => Ok(()),
        done => done,
    }
}

/// Makes sure that signals no longer interrupt a call that was received: returns when its thread has
/// begun to wait so that only its death ends that. `false` if the call is gone.
///
/// Before Linux 6.18 a call that a signal met just before it was received is made a second time if it
/// is answered before its thread has looked again (mended by "seccomp: Fix a race with
/// `WAIT_KILLABLE_RECV` if the tracer replies too fast"). Here the thread is made to look, by asking it
/// for what it refuses: a descriptor beyond every limit.
#[must_use]
pub fn settle(listener: BorrowedFd<'_>, id: u64) -> bool {
    let Ok(srcfd) = u32::try_from(listener.as_raw_fd()) else { return false };
    loop {
        let mut request = libc::seccomp_notif_addfd {
            id,
            flags: 1, // SECCOMP_ADDFD_FLAG_SETFD
            srcfd,
            newfd: i32::MAX.unsigned_abs(),
            newfd_flags: 0,
        };
        match ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_ADDFD, &raw mut request) {
            Err(Errno::INTR) => {}
            Err(Errno::NOENT | Errno::SRCH | Errno::INPROGRESS) => return false,
            _ => return true,
        }
    }
}

fn ioctl<T>(listener: BorrowedFd<'_>, request: libc::Ioctl, argument: *mut T) -> Result<(), Errno> {
    // SAFETY: each caller gives the request its structure, and the room for it.
    let ret = unsafe { libc::ioctl(listener.as_raw_fd(), request, argument) };
    if ret >= 0 { Ok(()) } else { Err(last_error()) }
}
