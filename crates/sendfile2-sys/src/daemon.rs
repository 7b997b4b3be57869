//! Processes of this program that go on beside the one that it becomes, and memory that they share.

use std::ffi::{CString, c_char};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use rustix::process::{Pid, PidfdFlags};

use crate::socket::last_error;

/// Runs `child` in a forked process, which ends with the status that it returns. Of the descriptors
/// the child has standard input, output and error, and those that it is given: it must use no other.
/// The child is not seen by a `wait(2)` without `__WALL`, and its end sends no signal.
///
/// # Errors
/// EBUSY if this process has other threads, which would be missing in the child; what `clone(2)` fails
/// with.
pub fn fork(given: Vec<OwnedFd>, child: impl FnOnce(Vec<OwnedFd>) -> u8) -> Result<Forked, Errno> {
    let threads = std::fs::read_dir("/proc/self/task").map_err(|_| Errno::NOENT)?.count();
    if threads != 1 {
        return Err(Errno::BUSY);
    }
    // SAFETY: no flags: a copy of the process, whose only thread this is, so that no other one holds a
    // lock in it.
    let ret =
        unsafe { libc::syscall(libc::SYS_clone, 0_usize, 0_usize, 0_usize, 0_usize, 0_usize) };
    match i32::try_from(ret) {
        Ok(0) => {
            close_all_but(&given);
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| child(given)));
            // SAFETY: it ends the process, and runs nothing of the parent's.
            unsafe { libc::_exit(done.unwrap_or(101).into()) }
        }
        Ok(id) if id > 0 => Ok(Forked(id)),
        _ => Err(last_error()),
    }
}

/// A process that was forked by [`fork`].
#[derive(Debug)]
pub struct Forked(i32);

impl Forked {
    /// Waits for its end, and returns whether it ended with status 0.
    #[must_use]
    pub fn succeeds(self) -> bool {
        let mut status = -1;
        // SAFETY: the status is written there.
        while unsafe { libc::waitpid(self.0, &raw mut status, libc::__WALL) } < 0
            && last_error() == Errno::INTR
        {}
        status == 0
    }

    /// Opens a descriptor of it, which is readable when it has ended.
    ///
    /// # Errors
    /// What `pidfd_open(2)` fails with.
    pub fn open(&self) -> Result<OwnedFd, Errno> {
        let id = Pid::from_raw(self.0).ok_or(Errno::SRCH)?;
        rustix::process::pidfd_open(id, PidfdFlags::empty())
    }
}

/// Closes every descriptor but standard input, output and error, and these.
fn close_all_but(kept: &[OwnedFd]) {
    let numbers = kept.iter().filter_map(|fd| u32::try_from(fd.as_raw_fd()).ok());
    let mut numbers: Vec<_> = numbers.filter(|number| *number > 2).collect();
    numbers.sort_unstable();
    let mut first = 3;
    for number in numbers {
        close_range(first, number - 1);
        first = number + 1;
    }
    close_range(first, u32::MAX);
}

fn close_range(first: u32, last: u32) {
    if first <= last {
        // SAFETY: this is a new process, and what runs in it uses none of these, as `fork` demands. It
        // cannot fail with this range and no flags.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0_usize) };
    }
}

/// Ignores the signals by which processes are asked to end.
pub fn ignore_requests_to_end() {
    for signal in [
        libc::SIGHUP,
        libc::SIGINT,
        libc::SIGQUIT,
        libc::SIGTERM,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGALRM,
        libc::SIGPIPE,
    ] {
        // SAFETY: no function is called by it.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Lets this process look into its children and what else it may look into, and the process of this
/// id look into it, where Yama would not allow that. Does nothing where there is no Yama.
pub fn allow_to_look(id: Pid) {
    let id = id.as_raw_nonzero().get();
    // SAFETY: it takes a number.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, i64::from(id), 0_usize, 0_usize, 0_usize) };
}

/// Becomes another program, which is looked for as `execvp(3)` does; its environment is this. Signals
/// are as they were when this program began, but for SIGPIPE, which Rust ignores, and is not ignored.
/// Returns only where that fails.
#[must_use]
pub fn execute(program: &[CString], environment: &[CString]) -> Errno {
    let pointers = |strings: &[CString]| -> Vec<*const c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let Some(name) = program.first() else { return Errno::NOENT };
    let (arguments, environment) = (pointers(program), pointers(environment));
    // SAFETY: no function is called by the signal; the strings are C strings, which are alive, and null
    // follows the last of each.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::execvpe(name.as_ptr(), arguments.as_ptr(), environment.as_ptr());
    }
    last_error()
}

/// A place for a number and what belongs to it, which forked processes see as well. Empty is 0.
#[derive(Debug)]
#[repr(C)]
pub struct Slot {
    number: AtomicU64,
    with: AtomicU64,
}

impl Slot {
    /// Takes the place.
    pub fn take(&self, number: u64, with: u64) {
        self.with.store(with, Ordering::Release);
        self.number.store(number, Ordering::Release);
    }

    /// Empties the place.
    pub fn clear(&self) {
        self.number.store(0, Ordering::Release);
    }

    /// Returns the number, and what belongs to it, unless the place is empty.
    #[must_use]
    pub fn get(&self) -> Option<(u64, u64)> {
        let number = self.number.load(Ordering::Acquire);
        (number != 0).then(|| (number, self.with.load(Ordering::Acquire)))
    }
}

/// Makes places that this process and those that are forked from it share, for as long as they are.
///
/// # Errors
/// What `mmap(2)` fails with.
pub fn slots(count: usize) -> Result<&'static [Slot], Errno> {
    let length = count.checked_mul(size_of::<Slot>()).ok_or(Errno::NOMEM)?;
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: the kernel chooses the address, so no other memory is affected.
    let memory = unsafe {
        rustix::mm::mmap_anonymous(std::ptr::null_mut(), length, protection, MapFlags::SHARED)
    }?;
    // SAFETY: it is as long as that, zeroed, aligned to a page, never unmapped, and only used by
    // atomics.
    Ok(unsafe { std::slice::from_raw_parts(memory.cast(), count) })
}
