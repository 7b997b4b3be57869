//! `sendfile(2)` that raises no signal.

use std::os::fd::BorrowedFd;
use std::{mem, ptr};

use rustix::io::Errno;

/// Sends up to `len` bytes of `file` from `offset` on by `sendfile(2)`, and returns how many the
/// socket took; 0 at the end of the file. Where the peer is gone it fails with EPIPE, and SIGPIPE,
/// which `sendfile(2)` raises and has no flag against, is not delivered. Waits unless the socket is
/// in non-blocking mode.
///
/// Where the program ignores SIGPIPE, as those in Rust do, it is left at that, which costs one
/// system call in place of two or three.
pub fn sendfile(
    socket: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    offset: u64,
    len: usize,
) -> Result<usize, Errno> {
    let held_back = (!sigpipe_is_ignored()).then(SigpipeHeldBack::new);
    let mut offset = offset;
    let sent = rustix::fs::sendfile(socket, file, Some(&mut offset), len);
    // Also where a part was taken before the peer was found to be gone.
    if sent == Err(Errno::PIPE) || sent.is_ok_and(|bytes| bytes < len) {
        if let Some(held_back) = &held_back {
            held_back.discard();
        }
    }
    sent
}

/// Asked each time, since it may change at any time.
fn sigpipe_is_ignored() -> bool {
    // SAFETY: the action is plain data, for which all zeroes is a value, and lives as long as the
    // call, which only writes to it.
    unsafe {
        let mut now: libc::sigaction = mem::zeroed();
        let asked = libc::sigaction(libc::SIGPIPE, ptr::null(), &raw mut now);
        asked == 0 && now.sa_sigaction == libc::SIG_IGN
    }
}

/// SIGPIPE is blocked for this thread until this is dropped.
struct SigpipeHeldBack {
    sigpipe: libc::sigset_t,
    before: libc::sigset_t,
    was_pending: bool,
}

impl SigpipeHeldBack {
    fn new() -> Self {
        // SAFETY: signal sets are plain data, for which all zeroes is a value; each call is given
        // sets that live as long as it takes.
        unsafe {
            let mut sigpipe: libc::sigset_t = mem::zeroed();
            libc::sigemptyset(&raw mut sigpipe);
            libc::sigaddset(&raw mut sigpipe, libc::SIGPIPE);
            let mut before: libc::sigset_t = mem::zeroed();
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const sigpipe, &raw mut before);
            // One that waits already, since it was blocked, is somebody else's.
            let was_pending = libc::sigismember(&raw const before, libc::SIGPIPE) == 1 && {
                let mut pending: libc::sigset_t = mem::zeroed();
                libc::sigpending(&raw mut pending);
                libc::sigismember(&raw const pending, libc::SIGPIPE) == 1
            };
            SigpipeHeldBack { sigpipe, before, was_pending }
        }
    }

    /// Takes back the signal that the call has raised, if it is not ignored anyway.
    fn discard(&self) {
        if !self.was_pending {
            let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            // SAFETY: the set and the time live as long as the call; nothing is written.
            unsafe {
                libc::sigtimedwait(&raw const self.sigpipe, ptr::null_mut(), &raw const now);
            }
        }
    }
}

impl Drop for SigpipeHeldBack {
    fn drop(&mut self) {
        // SAFETY: the set is the one that the thread had.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, ptr::null_mut());
        }
    }
}
