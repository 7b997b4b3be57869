//! A thread of another process: its descriptors, its memory, its signals.
//!
//! A thread is known by a descriptor, and not by its id, which may be another's in the next moment. What
//! is read by its id counts only if the thread is known to have been there afterwards.

use std::ffi::{c_int, c_void};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal};

use crate::socket::last_error;

/// A thread, or the process that it is of, by a descriptor.
#[derive(Debug)]
pub struct Thread {
    id: Pid,
    file: OwnedFd,
    /// Whether the descriptor is that of the thread itself (Linux 6.9), and not of its process.
    own: bool,
}

/// The signals that wait for a thread, and are not blocked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pending {
    /// None.
    No,
    /// One that only this thread can take.
    Own,
    /// One of its process, which another thread may take.
    Shared,
}

impl Thread {
    /// Opens the thread of this id.
    ///
    /// # Errors
    /// ESRCH if there is none; EPERM where the thread has other descriptors than its process, and the
    /// kernel cannot open threads; what `pidfd_open(2)` fails with.
    pub fn open(id: u32) -> Result<Self, Errno> {
        let raw = i32::try_from(id).map_err(|_| Errno::SRCH)?;
        let id = Pid::from_raw(raw).ok_or(Errno::SRCH)?;
        // PIDFD_THREAD, of Linux 6.9.
        match rustix::process::pidfd_open(
            id,
            PidfdFlags::from_bits_retain(libc::O_EXCL.unsigned_abs()),
        ) {
            Ok(file) => return Ok(Thread { id, file, own: true }),
            Err(Errno::INVAL) => {}
            Err(e) => return Err(e),
        }
        let process = status(raw, "Tgid:").and_then(|it| it.parse().ok()).and_then(Pid::from_raw);
        let process = process.ok_or(Errno::SRCH)?;
        if process != id && !same_files(process, id) {
            return Err(Errno::PERM);
        }
        let file = rustix::process::pidfd_open(process, PidfdFlags::empty())?;
        Ok(Thread { id, file, own: false })
    }

    /// Duplicates a descriptor of the thread (`pidfd_getfd(2)`, Linux 5.6).
    ///
    /// # Errors
    /// EBADF if the thread has none of this number; EPERM where that is not allowed.
    pub fn duplicate(&self, number: c_int) -> Result<OwnedFd, Errno> {
        if number < 0 {
            return Err(Errno::BADF);
        }
        rustix::process::pidfd_getfd(&self.file, number, PidfdGetfdFlags::empty())
    }

    /// Sends a signal to the thread; SIGKILL ends its process.
    ///
    /// # Errors
    /// EPERM where that is not allowed; ESRCH if the thread is gone.
    pub fn signal(&self, signal: Signal) -> Result<(), Errno> {
        if self.own || signal == Signal::KILL {
            return rustix::process::pidfd_send_signal(&self.file, signal);
        }
        let id = self.id.as_raw_nonzero().get();
        let process =
            status(id, "Tgid:").and_then(|it| it.parse::<c_int>().ok()).ok_or(Errno::SRCH)?;
        // SAFETY: it takes three numbers.
        let ret = unsafe { libc::syscall(libc::SYS_tgkill, process, id, signal.as_raw()) };
        if ret == 0 { Ok(()) } else { Err(last_error()) }
    }

    /// Returns which signals wait for the thread.
    #[must_use]
    pub fn pending(&self) -> Pending {
        let id = self.id.as_raw_nonzero().get();
        let Ok(text) = std::fs::read_to_string(format!("/proc/{id}/status")) else {
            return Pending::No;
        };
        let of = |name| field(&text, name);
        let set = |name| of(name).and_then(|it| u64::from_str_radix(it, 16).ok()).unwrap_or(0);
        let free = !set("SigBlk:");
        if set("SigPnd:") & free != 0 {
            Pending::Own
        } else if set("ShdPnd:") & free == 0 {
            Pending::No
        } else if of("Threads:") == Some("1") {
            Pending::Own
        } else {
            Pending::Shared
        }
    }

    /// Reads the eight bytes at an address of the thread.
    ///
    /// # Errors
    /// EFAULT if there are none; EPERM where that is not allowed.
    pub fn read(&self, address: u64) -> Result<i64, Errno> {
        let mut value = 0_i64;
        self.transfer(address, (&raw mut value).cast(), true)?;
        Ok(value)
    }

    /// Writes the eight bytes at an address of the thread.
    ///
    /// # Errors
    /// As [`read`](Self::read); also EFAULT if they cannot be written.
    pub fn write(&self, address: u64, value: i64) -> Result<(), Errno> {
        self.transfer(address, (&raw const value).cast_mut().cast(), false)
    }

    fn transfer(&self, address: u64, here: *mut c_void, read: bool) -> Result<(), Errno> {
        const LENGTH: usize = size_of::<i64>();
        let local = libc::iovec { iov_base: here, iov_len: LENGTH };
        let there = usize::try_from(address).map_err(|_| Errno::FAULT)?;
        let there = std::ptr::without_provenance_mut(there);
        let remote = libc::iovec { iov_base: there, iov_len: LENGTH };
        let number = if read { libc::SYS_process_vm_readv } else { libc::SYS_process_vm_writev };
        let id = self.id.as_raw_nonzero().get();
        // SAFETY: each caller's eight bytes are alive, and writable where they are written; what is at
        // the other address is the other process's, and the kernel checks it.
        let ret = unsafe {
            libc::syscall(
                number,
                id,
                &raw const local,
                1_usize,
                &raw const remote,
                1_usize,
                0_usize,
            )
        };
        match usize::try_from(ret) {
            Ok(LENGTH) => Ok(()),
            Ok(_) => Err(Errno::FAULT),
            Err(_) => Err(last_error()),
        }
    }
}

/// Returns a field of a thread's status.
fn status(id: i32, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    field(&text, name).map(ToOwned::to_owned)
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// Returns whether two threads have the same descriptors; `false` where the kernel cannot say.
fn same_files(one: Pid, other: Pid) -> bool {
    /// `KCMP_FILES` of `linux/kcmp.h`.
    const KCMP_FILES: c_int = 2;
    let [one, other] = [one, other].map(|id| id.as_raw_nonzero().get());
    // SAFETY: it takes five numbers.
    unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_FILES, 0_usize, 0_usize) == 0 }
}
