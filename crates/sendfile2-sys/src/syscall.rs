//! The system calls of a kernel with this project's patch series.
//!
//! Source: `kernel/patches`, `kernel/man/sendfile2.2`.

use std::ffi::{c_int, c_long};
use std::io::{self, Error, ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::SpliceFlags;

use crate::errqueue::{self, Entry};
use crate::socket::last_error;

/// One notification id of the socket for each call that returned more than 0.
pub const SENDFILE_ZC: c_int = 0x2;
/// The call returns when the pages are released; no id. Not together with another flag.
pub const SENDFILE_SYNC: c_int = 0x4;
/// A flag beside [`SENDFILE_ZC`]: the call does not wait for space in the socket, as in send(2).
pub const MSG_DONTWAIT: c_int = libc::MSG_DONTWAIT;
/// A flag beside [`SENDFILE_ZC`]: more follows, as in send(2).
pub const MSG_MORE: c_int = libc::MSG_MORE;
/// A flag beside [`SENDFILE_ZC`]: no SIGPIPE, as in send(2).
pub const MSG_NOSIGNAL: c_int = libc::MSG_NOSIGNAL;
/// The flag of splice(2) and `IORING_OP_SPLICE`, from a pipe to a socket, with the meaning of
/// [`SENDFILE_ZC`]. A kernel may take the flag and not know it: [`probe`] finds that out.
pub const SPLICE_F_ZC: SpliceFlags = SpliceFlags::from_bits_retain(0x10);

/// The system call sendfile2(2), by its number on this kernel.
#[derive(Debug, Clone, Copy)]
pub struct Sendfile2 {
    number: c_long,
}

impl Sendfile2 {
    /// The file in which the kernel shows the number of the call.
    pub const SYSCTL: &str = "/proc/sys/fs/sendfile2_nr";

    /// Asks the kernel for the number of the call, which is never guessed: it may be another
    /// call's.
    ///
    /// # Errors
    /// `NotFound` where the kernel has no such call; `Unsupported` where it may not be called, as a
    /// sandbox may have it.
    pub fn find() -> io::Result<Self> {
        // Neither allocates nor is a point of thread cancellation: C programs call what calls this.
        let file = rustix::fs::open(Self::SYSCTL, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut text = [0; 16];
        let len = rustix::io::read(&file, &mut text);
        crate::close(file);
        let text = std::str::from_utf8(&text[..len?]).ok();
        let number = text.and_then(|text| text.trim().parse().ok()).filter(|number| *number > 0);
        let call = Sendfile2 { number: number.ok_or(ErrorKind::InvalidData)? };
        // SAFETY: as in `send`; there is neither an offset nor any descriptor.
        let ret = unsafe { libc::syscall(call.number, -1, -1, 0_usize, 0_usize, SENDFILE_ZC) };
        if ret == -1 && last_error() == Errno::BADF {
            Ok(call)
        } else {
            Err(ErrorKind::Unsupported.into())
        }
    }

    /// Returns the number of the call.
    #[must_use]
    pub fn number(self) -> c_long {
        self.number
    }

    /// Sends up to `count` bytes of `file` to `socket`, from `offset` on, which moves, or from the
    /// file's position, which moves; returns how many.
    ///
    /// The call waits for space unless the socket is non-blocking or [`MSG_DONTWAIT`] is there, and
    /// raises SIGPIPE where the peer no longer reads unless [`MSG_NOSIGNAL`] is there.
    ///
    /// # Errors
    /// The kernel's answer.
    #[inline]
    pub fn send(
        self,
        socket: BorrowedFd<'_>,
        file: BorrowedFd<'_>,
        offset: Option<&mut u64>,
        count: usize,
        flags: c_int,
    ) -> Result<usize, Errno> {
        let offset = offset.map_or(std::ptr::null_mut(), std::ptr::from_mut);
        // SAFETY: the number is that of sendfile2, says the kernel, which takes these five
        // arguments. It writes eight bytes at the offset, if there is one, where a u64 is; it
        // refuses what is negative as an i64.
        let sent = unsafe {
            libc::syscall(self.number, socket.as_raw_fd(), file.as_raw_fd(), offset, count, flags)
        };
        usize::try_from(sent).map_err(|_| last_error())
    }
}

/// Splices up to `count` bytes from a pipe to a socket, with one notification id if it returns more
/// than 0. `more` is `SPLICE_F_MORE`. It never waits for the pipe; for the socket it waits unless
/// that is non-blocking.
///
/// # Errors
/// The kernel's answer: EINVAL if it does not know the flag.
#[inline]
pub fn splice(
    pipe: BorrowedFd<'_>,
    socket: BorrowedFd<'_>,
    count: usize,
    more: bool,
) -> Result<usize, Errno> {
    let more = if more { SpliceFlags::MORE } else { SpliceFlags::empty() };
    let flags = SPLICE_F_ZC | SpliceFlags::NONBLOCK | more;
    rustix::pipe::splice(pipe, None, socket, None, count, flags)
}

/// Checks that this kernel does what the series promises, by trying it: one byte that is spliced
/// over a private TCP connection must give exactly one id, the first.
///
/// # Errors
/// `Unsupported` if it does not; what went wrong, if it could not be tried.
pub fn probe() -> io::Result<()> {
    // A kernel that knows the flag by another meaning would do something else with it.
    Sendfile2::find().map_err(|e| match e.kind() {
        ErrorKind::NotFound => unsupported("the kernel has no sendfile2(2)"),
        _ => e,
    })?;
    let (sender, _receiver) = connection()?;
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    std::fs::File::from(writer).write_all(&[0])?;
    match splice(reader.as_fd(), sender.as_fd(), 1, false) {
        Ok(1) => {}
        Ok(_) => return Err(unsupported("a byte in a pipe was not spliced")),
        Err(Errno::INVAL) => return Err(unsupported("splice(2) does not know SPLICE_F_ZC")),
        Err(e) => return Err(e.into()),
    }
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        let mut batch = errqueue::Batch::new();
        errqueue::read(sender.as_fd(), &mut batch)?;
        let mut entries = batch.into_iter();
        match (entries.next(), entries.next()) {
            (Some(Ok(Entry::Completion { lo: 0, hi: 0, .. })), None) => return Ok(()),
            (None, _) => {}
            _ => return Err(unsupported("one byte was notified otherwise than by the id 0")),
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(unsupported("SPLICE_F_ZC is accepted, and no notification comes"));
        }
        let left = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
        // The event is POLLERR, which is reported without being asked for.
        match poll(&mut [PollFd::new(&sender, PollFlags::empty())], Some(&left)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

fn unsupported(why: &'static str) -> Error {
    Error::new(ErrorKind::Unsupported, why)
}

/// A connection of this process with itself.
fn connection() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let sender = TcpStream::connect(listener.local_addr()?)?;
    let own: SocketAddr = sender.local_addr()?;
    loop {
        // Anybody may connect meanwhile.
        let (receiver, from) = listener.accept()?;
        if from == own {
            return Ok((sender, receiver));
        }
    }
}
