//! One call of `sendfile(2)` that is answered here: its arguments, checked as the kernel checks them,
//! and its bytes, copied piece by piece.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use rustix::net::{SocketType, sockopt};
use rustix::process::Signal;
use sendfile2_sys::mapping::Region;
use sendfile2_sys::seccomp::{Answer, Call};
use sendfile2_sys::thread::{Pending, Thread};

/// The most that one call transfers (`MAX_RW_COUNT`).
const MOST: u64 = 0x7fff_f000;

/// The most bytes of a record, where `sendfile(2)` sends on a socket that keeps record boundaries: a
/// pipe of sixteen pages.
const RECORD: u64 = 64 << 10;

/// Bytes that are read at a time.
pub(super) const PIECE: usize = 128 << 10;

/// The pieces of one call that are sent before it is the next one's turn.
const PIECES: usize = 8;

/// The answer to calls that cannot be protected. Programs that know it go on by read(2) and write(2).
pub(super) const REFUSED: Errno = Errno::NOSYS;

/// A call whose bytes are being sent.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) id: u64,
    thread: Thread,
    socket: OwnedFd,
    file: OwnedFd,
    /// The address of the offset; `None` if the file's position is it.
    offset: Option<u64>,
    /// The offset at the call's begin.
    at: u64,
    /// Bytes that were asked for.
    count: u64,
    /// The end of the file; `None` if it is found by reading.
    end: Option<u64>,
    /// Whether each send is a record of its own.
    records: bool,
    /// Whether the call waits for space.
    pub(super) waits: bool,
    pub(super) sent: u64,
}

/// The outcome of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// All is sent, or the file has ended.
    Done,
    Failed(Errno),
    /// The socket has no space.
    Full,
    /// There is more to send.
    More,
}

impl Open {
    /// Takes over a call; `None` if it is the kernel's own affair: not to a socket, or from a file that
    /// has no pages of its own.
    ///
    /// # Errors
    /// What the call fails with; [`REFUSED`] where it cannot be taken over.
    pub(super) fn new(call: &Call) -> Result<Option<Self>, Errno> {
        let [out, file, offset, count, ..] = call.arguments;
        let refused = |e| if matches!(e, Errno::BADF | Errno::FAULT) { e } else { REFUSED };
        let thread = Thread::open(call.thread).map_err(refused)?;
        let offset = (offset != 0).then_some(offset);
        let given = offset.map(|offset| thread.read(offset)).transpose().map_err(refused)?;
        if let (Some(offset), Some(given)) = (offset, given) {
            // Whatever else is wrong: the kernel writes it back after each call.
            thread.write(offset, given).map_err(refused)?;
        }
        // What is negative as an i64 is refused.
        let mut position = given.map(|given| u64::from_ne_bytes(given.to_ne_bytes()));
        let file = thread.duplicate(number(file)).map_err(refused)?;
        let socket = match thread.duplicate(number(out)) {
            // The kernel says what is wrong with the file and the offset before that.
            Err(Errno::BADF) => {
                let nothing = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
                return match rustix::fs::sendfile(&nothing, &file, position.as_mut(), 0) {
                    Err(errno) => Err(errno),
                    Ok(_) => Err(Errno::BADF),
                };
            }
            socket => socket.map_err(refused)?,
        };
        let stat = rustix::fs::fstat(&file)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if !matches!(kind, FileType::RegularFile | FileType::BlockDevice) || !is_socket(&socket) {
            return Ok(None);
        }
        // The kernel checks it, in its own order and with its security hooks.
        rustix::fs::sendfile(&socket, &file, position.as_mut(), 0)?;
        let at = match given {
            Some(given) => u64::try_from(given).map_err(|_| Errno::INVAL)?,
            None => rustix::fs::tell(&file)?,
        };
        let end = at.checked_add(count).and_then(|end| i64::try_from(end).ok());
        let length = usize::try_from(count).ok().filter(|count| isize::try_from(*count).is_ok());
        let (Some(_), Some(_)) = (end, length) else {
            // The kernel refuses this for certain; it knows best with which error.
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            let refused = rustix::fs::sendfile(&socket, &file, Some(&mut { at }), count);
            return Err(refused.err().unwrap_or(Errno::INVAL));
        };
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        // Files that are made when they are read (/proc) have no size, and no block device has.
        let end = Some(size).filter(|size| *size > 0);
        let records = !matches!(sockopt::socket_type(&socket), Ok(SocketType::STREAM));
        let flags = rustix::fs::fcntl_getfl(&socket)?;
        Ok(Some(Open {
            id: call.id,
            thread,
            socket,
            file,
            offset,
            at,
            count: count.min(MOST),
            end,
            records,
            waits: !flags.contains(OFlags::NONBLOCK),
            sent: 0,
        }))
    }

    pub(super) fn socket(&self) -> impl AsFd {
        self.socket.as_fd()
    }

    /// The time after which the socket gives up waiting for space, if it does.
    pub(super) fn timeout(&self) -> Option<Duration> {
        sockopt::socket_timeout(&self.socket, sockopt::Timeout::Send).ok().flatten()
    }

    pub(super) fn pending(&self) -> Pending {
        self.thread.pending()
    }

    fn left(&self) -> u64 {
        let place = self.at + self.sent;
        let in_file = self.end.map_or(u64::MAX, |end| end.saturating_sub(place));
        (self.count - self.sent).min(in_file)
    }

    /// Sends some pieces, without waiting.
    pub(super) fn turn(&mut self, buffer: &mut [u8]) -> Turn {
        for _ in 0..PIECES {
            let (left, at) = (self.left(), self.at + self.sent);
            if left == 0 {
                return self.ended();
            }
            let most = if self.records {
                // Where sendfile(2) begins a new record: after what fills sixteen pages.
                RECORD - at % rustix::param::page_size() as u64
            } else {
                PIECE as u64
            };
            let wanted = usize::try_from(most.min(left)).unwrap_or(PIECE).min(buffer.len());
            let piece = match self.read(&mut buffer[..wanted], at) {
                Ok(0) => return self.ended(),
                Ok(length) => &buffer[..length],
                Err(e) => return Turn::Failed(e),
            };
            // A short one is the last.
            let last = piece.len() < wanted;
            let more = !last && (piece.len() as u64) < left;
            match sendfile2_sys::socket::send(self.socket.as_fd(), Region::from(piece), false, more)
            {
                Ok(accepted) => self.sent += accepted as u64,
                Err(Errno::AGAIN) => return Turn::Full,
                Err(e) => return Turn::Failed(e),
            }
            if last {
                return Turn::Done;
            }
        }
        Turn::More
    }

    /// Reads until the memory is full, or the file ends, or an error comes after the first byte.
    fn read(&self, memory: &mut [u8], at: u64) -> Result<usize, Errno> {
        let mut filled = 0;
        while filled < memory.len() {
            match rustix::io::pread(&self.file, &mut memory[filled..], at + filled as u64) {
                Ok(0) => break,
                Ok(more) => filled += more,
                Err(Errno::INTR) => {}
                Err(_) if filled > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(filled)
    }

    /// Returns what a call gives at the end of the file, or behind it: the number of bytes, or the
    /// error for an offset that no such file can have.
    fn ended(&self) -> Turn {
        let beyond = |at| rustix::fs::sendfile(&self.socket, &self.file, Some(&mut { at }), 0);
        if self.sent == 0 && self.count > 0 && beyond(self.at + 1) == Err(Errno::OVERFLOW) {
            return Turn::Failed(Errno::OVERFLOW);
        }
        Turn::Done
    }

    /// Moves the offset, lets go of the socket and the file, raises SIGPIPE if that is due, and returns
    /// the answer to give now.
    pub(super) fn end(self, failed: Option<Errno>) -> Answer {
        let Open { thread, socket, file, offset, at, sent, .. } = self;
        let next = at + sent;
        let moved = match offset {
            _ if sent == 0 => Ok(()),
            Some(offset) => thread.write(offset, i64::try_from(next).unwrap_or(i64::MAX)),
            // As the kernel does: a change of the position meanwhile is overruled.
            None => rustix::fs::seek(&file, SeekFrom::Start(next)).map(drop),
        };
        // Before the answer: else the program's close(2) closes nothing.
        drop((socket, file));
        if failed == Some(Errno::PIPE) {
            // A thread that is gone needs none.
            let _ = thread.signal(Signal::PIPE);
        }
        match failed {
            // As sendfile(2) has it. With any other answer the program would send the bytes again.
            _ if moved.is_err() => Answer::Failed(Errno::FAULT),
            Some(errno) if sent == 0 => Answer::Failed(errno),
            _ => Answer::Sent(usize::try_from(sent).unwrap_or(usize::MAX)),
        }
    }
}

/// The number of a descriptor: the kernel looks at no more than an int of the argument.
fn number(argument: u64) -> i32 {
    #[expect(clippy::cast_possible_truncation, reason = "the kernel does so")]
    let low = argument as u32;
    i32::from_ne_bytes(low.to_ne_bytes())
}

fn is_socket(file: &OwnedFd) -> bool {
    rustix::fs::fstat(file)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Socket)
}
