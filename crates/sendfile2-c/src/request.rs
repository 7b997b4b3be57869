//! The arguments of a call, after the kernel has checked them as `sendfile(2)` does.

use std::cell::Cell;
use std::ffi::c_int;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{FileType, SeekFrom};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, ipproto, sockopt};
use sendfile2::{Error, Source};

use crate::kernel;

/// The most that one call transfers (`MAX_RW_COUNT`), in bytes: the largest multiple of a page
/// below 2 GiB, for pages of 4 KiB.
pub(crate) const MOST: usize = 0x7fff_f000;

/// A call that `sendfile(2)` would not refuse.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) socket: BorrowedFd<'a>,
    pub(crate) file: BorrowedFd<'a>,
    /// The offset in the file to begin at, in bytes.
    pub(crate) at: u64,
    /// Bytes to send, [`MOST`] at most.
    pub(crate) count: usize,
}

/// The way a file can be sent.
#[derive(Debug, Clone, Copy)]
pub(crate) enum File {
    /// The file can be mapped, and a mapping shows what `pread` would give; so many bytes are left
    /// in it.
    Mapped(u64),
    /// The file must be read; no more bytes are left in it than these.
    Read(u64),
    /// The file has no pages of its own: what `sendfile(2)` sends from it is a private copy.
    Other,
}

/// The place where the position is kept: in memory, or in the open file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Offset(*mut i64);

impl<'a> Request<'a> {
    /// Has the kernel check the call, in its own order and with its security hooks, by a real
    /// `sendfile(2)` of no bytes. Checks that depend on the count are left to the kernel, too.
    ///
    /// `EFAULT` comes for an offset that cannot be written as well, before anything is sent (the
    /// system call would send first).
    ///
    /// # Safety
    /// `offset` must be null, or an address that `sendfile(2)` might be given.
    #[allow(unsafe_code)]
    pub(crate) unsafe fn new(
        out: c_int,
        file: c_int,
        offset: *mut i64,
        count: usize,
    ) -> Result<(Request<'a>, Offset), Errno> {
        if isize::try_from(count).is_err() {
            // The kernel refuses this for certain; it knows best with which error.
            // SAFETY: as the caller's.
            return Err(unsafe { kernel::sendfile(out, file, offset, count) }
                .err()
                .unwrap_or(Errno::INVAL));
        }
        // SAFETY: as the caller's.
        let checked = unsafe { kernel::sendfile(out, file, offset, 0) };
        if let Err(e @ (Errno::FAULT | Errno::SPIPE)) = checked {
            return Err(e);
        }
        let offset = Offset(offset);
        // The range is looked at before the output.
        let at = match offset.get(file) {
            Ok(at) => at,
            Err(e) => return Err(checked.err().unwrap_or(e)),
        };
        let end = at.checked_add(count as u64);
        if end.is_none_or(|end| i64::try_from(end).is_err()) {
            return Err(kernel::sendfile_at(out, file, at, count).err().unwrap_or(Errno::INVAL));
        }
        // A file that can reach no further is reported before what is wrong with the output.
        if checked == Err(Errno::INVAL) && count > 0 && past_the_largest_file(out, file, at) {
            return Err(Errno::OVERFLOW);
        }
        checked?;
        // SAFETY: the kernel has just found them open, so neither is -1.
        let (socket, file) = unsafe { (BorrowedFd::borrow_raw(out), BorrowedFd::borrow_raw(file)) };
        Ok((Request { socket, file, at, count: count.min(MOST) }, offset))
    }

    /// Returns what a call gives at the end of the file, or behind it: nothing, or the error for an
    /// offset that no such file can have.
    pub(crate) fn at_the_end(&self) -> Result<usize, Errno> {
        let (out, file) = (self.socket.as_raw_fd(), self.file.as_raw_fd());
        if self.count > 0 && past_the_largest_file(out, file, self.at) {
            return Err(Errno::OVERFLOW);
        }
        Ok(0)
    }

    /// Returns the way in which the file can be sent.
    pub(crate) fn file(&self) -> Result<File, Errno> {
        match Source::examine(self.file) {
            Ok((size, None)) => Ok(File::Mapped(size.saturating_sub(self.at))),
            // Files that are made when they are read (/proc) have no size. Reading finds the end.
            Ok((0, Some(_))) => Ok(File::Read(u64::MAX)),
            Ok((size, Some(_))) => Ok(File::Read(size.saturating_sub(self.at))),
            Err(Error::File { cause, .. }) => match Errno::from_io_error(&cause) {
                // The kind of the file cannot be asked for here; reading is always right.
                Some(errno) if kernel::is_forbidden(errno) => Ok(File::Read(u64::MAX)),
                errno => Err(errno.unwrap_or(Errno::IO)),
            },
            Err(_) => Ok(File::Other),
        }
    }

    /// Fails with the error with which `sendfile(2)` would refuse a file of this kind, if it would:
    /// a directory, or a file of `/proc` that cannot be spliced. The error is found by letting
    /// `sendfile(2)` send some bytes into a pipe, no more than fit.
    pub(crate) fn refused_by_the_kernel(&self) -> Result<(), Errno> {
        match self.piped() {
            // From its own position it was to be sent: only a place that was named gives ESPIPE.
            Some(Err(Errno::SPIPE)) => Err(Errno::INVAL),
            Some(result) => result.map(drop),
            // Where there is no pipe to be had it is not known.
            None => Ok(()),
        }
    }

    fn piped(&self) -> Option<Result<usize, Errno>> {
        let (_reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).ok()?;
        let (out, file) = (writer.as_raw_fd(), self.file.as_raw_fd());
        Some(kernel::sendfile_at(out, file, self.at, self.count.min(4096)))
    }

    /// Returns whether `sendfile(2)` would send nothing, since the file ends here; found by reading
    /// it.
    pub(crate) fn ends_here(&self) -> bool {
        self.count == 0 || self.piped() == Some(Ok(0))
    }

    /// Returns the number of bytes to send where `left` are left in the file; `None` if there are
    /// none.
    pub(crate) fn within(&self, left: u64) -> Option<usize> {
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        Some(self.count.min(left)).filter(|len| *len > 0)
    }

    /// Returns the request for what remains after `sent` bytes.
    pub(crate) fn after(&self, sent: usize) -> Self {
        Request { at: self.at + sent as u64, count: self.count.saturating_sub(sent), ..*self }
    }

    /// Finds out, after an EFAULT for `len` bytes of a mapping, how many to try instead: 0 if the
    /// file ends here by now; or the error of reading it.
    pub(crate) fn explain_fault(&self, len: usize) -> Result<usize, Errno> {
        let mut byte = [0];
        loop {
            match rustix::io::pread(self.file, &mut byte, self.at) {
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
                Ok(0) => return Ok(0),
                Ok(_) => break,
            }
        }
        let left = match self.file()? {
            File::Mapped(left) => usize::try_from(left).unwrap_or(usize::MAX),
            File::Read(_) | File::Other => return Err(Errno::IO),
        };
        // The file has become shorter, or a page further on cannot be read. One that can, and
        // faults all the same, is a page whose reading has just failed.
        match left.min(len.div_ceil(2)) {
            less if less < len => Ok(less),
            _ => Err(Errno::IO),
        }
    }
}

/// Returns whether no file of this kind can have a byte at `at`: no bytes at the next position are
/// refused exactly if one byte at this one is.
fn past_the_largest_file(out: c_int, file: c_int, at: u64) -> bool {
    kernel::sendfile_at(out, file, at + 1, 0) == Err(Errno::OVERFLOW)
}

impl Offset {
    #[allow(unsafe_code)]
    fn get(self, file: c_int) -> Result<u64, Errno> {
        if self.0.is_null() {
            if file < 0 {
                return Err(Errno::BADF);
            }
            // SAFETY: it is not -1; what is no descriptor is refused.
            return match rustix::fs::tell(unsafe { BorrowedFd::borrow_raw(file) }) {
                // Files that cannot be sought in sendfile(2) does not send from.
                Err(Errno::SPIPE) => Err(Errno::INVAL),
                at => at,
            };
        }
        // SAFETY: the kernel has just read and written it.
        u64::try_from(unsafe { self.0.read_unaligned() }).map_err(|_| Errno::INVAL)
    }

    /// Moves the position, as `sendfile(2)` does when it has sent something.
    #[allow(unsafe_code)]
    pub(crate) fn advance(self, request: &Request<'_>, sent: usize) {
        let next = request.at + sent as u64;
        if self.0.is_null() {
            // As the kernel does: a change of the position meanwhile is overruled.
            let _ = rustix::fs::seek(request.file, SeekFrom::Start(next));
        } else if let Ok(next) = i64::try_from(next) {
            // SAFETY: the kernel has read and written it at the begin of the call.
            unsafe { self.0.write_unaligned(next) };
        }
    }
}

/// Returns whether `file` is a file that has no pages of its own (a device, a timer): what
/// `sendfile(2)` sends from it is a private copy, and how it moves the position is the kernel's
/// affair. `false` in doubt.
pub(crate) fn is_pageless(file: c_int) -> bool {
    if file < 0 {
        return false;
    }
    #[allow(unsafe_code)]
    // SAFETY: it is not -1; a number that is no descriptor is refused by the kernel.
    let stat = rustix::fs::fstat(unsafe { BorrowedFd::borrow_raw(file) });
    stat.is_ok_and(|stat| {
        !matches!(
            FileType::from_raw_mode(stat.st_mode),
            FileType::RegularFile | FileType::BlockDevice
        )
    })
}

/// The places where the bytes of one send end for the receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Boundaries {
    None,
    /// Each send is a record of its own, or begins one (`MSG_MORE`).
    Records,
}

impl Boundaries {
    /// Returns the boundaries that the socket `out` keeps; `None` if it is no socket.
    pub(crate) fn of(out: c_int) -> Option<Self> {
        if out < 0 {
            return None;
        }
        #[allow(unsafe_code)]
        // SAFETY: it is not -1; a number that is no descriptor is refused by the kernel.
        let socket = unsafe { BorrowedFd::borrow_raw(out) };
        match sockopt::socket_type(socket) {
            Ok(SocketType::STREAM) => Some(Boundaries::None),
            Ok(_) => Some(Boundaries::Records),
            // Where that may not be asked, something else may; in doubt it is a socket of any kind.
            Err(_) => match rustix::net::getsockname(socket) {
                Err(Errno::NOTSOCK | Errno::BADF) => None,
                _ => Some(Boundaries::Records),
            },
        }
    }
}

/// A protocol that can give notifications.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Notifier {
    Tcp,
    Udp,
}

impl Notifier {
    pub(crate) fn of(socket: BorrowedFd<'_>) -> Option<Self> {
        match sockopt::socket_domain(socket).ok()? {
            AddressFamily::INET | AddressFamily::INET6 => {}
            _ => return None,
        }
        // A raw socket has the number of a protocol, too.
        match (sockopt::socket_type(socket).ok()?, sockopt::socket_protocol(socket).ok()??) {
            (SocketType::STREAM, ipproto::TCP) => Some(Notifier::Tcp),
            (SocketType::DGRAM, ipproto::UDP) => Some(Notifier::Udp),
            _ => None,
        }
    }

    /// Returns whether the descriptor that a call was given is a UDP socket.
    pub(crate) fn is_udp(out: c_int) -> bool {
        #[allow(unsafe_code)]
        // SAFETY: it is not -1; a number that is no descriptor is refused by the kernel.
        let socket = unsafe { BorrowedFd::borrow_raw(out.max(0)) };
        Notifier::of(socket) == Some(Notifier::Udp)
    }
}

/// Returns whether the socket waits (no `O_NONBLOCK`).
pub(crate) fn waits(socket: BorrowedFd<'_>) -> bool {
    rustix::fs::fcntl_getfl(socket).is_ok_and(|flags| !flags.contains(rustix::fs::OFlags::NONBLOCK))
}

/// Returns whether TCP sends no MTU probes on this connection; the release of what is in one is
/// reported too early. The sysctl is read once a connection and thread, not in each call, and not for
/// a socket of another network namespace, which goes by the value there.
pub(crate) fn no_mtu_probes(socket: BorrowedFd<'_>) -> bool {
    /// The number of connections that a thread remembers, by their cookies, which are never used
    /// again.
    const REMEMBERED: usize = 64;
    thread_local! {
        static UNPROBED: [Cell<u64>; REMEMBERED] = const { [const { Cell::new(0) }; REMEMBERED] };
    }
    let Ok(cookie) = sockopt::socket_cookie(socket) else { return false };
    #[expect(clippy::cast_possible_truncation, reason = "its low bits are wanted")]
    let place = cookie as usize % REMEMBERED;
    UNPROBED.with(|remembered| {
        if remembered[place].get() == cookie {
            return true;
        }
        let safe = sendfile2::in_own_namespace(socket) != Some(false)
            && sendfile2::tcp_mtu_probing() == Some(0);
        if safe {
            remembered[place].set(cookie);
        }
        safe
    })
}
