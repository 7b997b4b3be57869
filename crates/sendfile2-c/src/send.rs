//! The two ways in which the bytes travel: copied by the kernel, and by reference with a
//! notification.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use crate::file::Kept;
use crate::kernel::{self, Buffer, Bytes, Mapping};
use crate::request::{Boundaries, File, Notifier, Request, no_mtu_probes};

/// Bytes to ask for at once after the whole was too much for `RLIMIT_MEMLOCK`: of the usual 8 MiB
/// several such calls can be in flight.
const MEMLOCK_CALL: u64 = 1 << 20;

/// The most bytes of a record, where `sendfile(2)` sends on a socket that keeps record boundaries: a
/// pipe of sixteen pages.
const RECORD: u64 = 64 << 10;

/// Bytes read at a time where a file cannot be mapped.
const READ: usize = 128 << 10;

/// Bytes read at a time where nothing can be mapped: little, as this may be the stack of a signal
/// handler.
const READ_ON_THE_STACK: usize = 2 << 10;

/// Sends by reference: each call that returns more than 0 uses one notification id.
///
/// # Errors
/// The errors of `send(2)`; EINVAL and EOPNOTSUPP as in `sendfile2(3)`, with nothing sent.
pub(crate) fn notify(request: &Request<'_>, kept: Option<&Kept>) -> Result<usize, Errno> {
    Boundaries::of(request.socket.as_raw_fd()).ok_or(Errno::INVAL)?;
    let File::Mapped(left) = request.file()? else {
        if request.count > 0 {
            request.refused_by_the_kernel()?;
        }
        return Err(Errno::OPNOTSUPP);
    };
    let notifier = Notifier::of(request.socket).ok_or(Errno::OPNOTSUPP)?;
    if notifier == Notifier::Tcp && !no_mtu_probes(request.socket) {
        return Err(Errno::OPNOTSUPP);
    }
    let set = kernel::so_zerocopy(request.socket).map_err(|_| Errno::OPNOTSUPP)?;
    let Some(mut len) = request.within(left) else { return request.at_the_end() };
    if !set {
        kernel::set_so_zerocopy(request.socket).map_err(|_| Errno::OPNOTSUPP)?;
    }
    let view = View::new(request, len, kept)?;
    loop {
        if notifier == Notifier::Tcp {
            one_id(request)?;
        }
        match kernel::send(request.socket, view.bytes().first(len), libc::MSG_ZEROCOPY) {
            Err(Errno::NOBUFS) if notifier == Notifier::Tcp => {
                len = below_memlock(len).ok_or(Errno::NOBUFS)?;
            }
            Err(Errno::FAULT) => match request.explain_fault(len)? {
                0 => return Ok(0),
                less => len = less,
            },
            result => return result,
        }
    }
}

/// Refuses a TCP socket in a BPF sockmap, where one send may use any number of ids.
fn one_id(request: &Request<'_>) -> Result<(), Errno> {
    match sendfile2::sent_by_tcp(request.socket) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Errno::OPNOTSUPP),
        // The send itself waits, or raises SIGPIPE; any other error was the socket's, and is gone.
        Err(e) => match Errno::from_io_error(&e).unwrap_or(Errno::IO) {
            Errno::AGAIN | Errno::PIPE => Ok(()),
            errno => Err(errno),
        },
    }
}

/// Returns how many bytes to ask for when the notification of `len` did not fit: so many that
/// `RLIMIT_MEMLOCK` allows them when nothing else is in flight. `None` if that is no fewer.
///
/// The kernel charges a call `(len >> PAGE_SHIFT) + 2` pages (`mm_account_pinned_pages`). Whether
/// the limit applies at all (`CAP_IPC_LOCK`) need not be known: the whole was tried first.
fn below_memlock(len: usize) -> Option<usize> {
    let limit = getrlimit(Resource::Memlock).current?;
    let page = rustix::param::page_size() as u64;
    let most = (limit / page).saturating_sub(2) * page;
    usize::try_from(most.min(MEMLOCK_CALL)).ok().filter(|most| (1..len).contains(most))
}

/// The end of a wait for space in the socket.
#[derive(Debug, Clone, Copy)]
pub(crate) enum WaitForSpace {
    /// The socket's own end: none, `SO_SNDTIMEO`, or at once (`O_NONBLOCK`).
    AsTheSocketDoes,
    /// A deadline.
    Until(Instant),
}

/// Sends so that the kernel has its own copy when the call returns.
///
/// Bytes that `sendfile(2)` itself sends from files that have no pages of their own are a copy
/// already.
///
/// # Errors
/// The errors of `sendfile(2)`; ETIMEDOUT if the deadline passed before anything was sent.
pub(crate) fn copy(
    request: &Request<'_>,
    boundaries: Boundaries,
    kept: Option<&Kept>,
    space: WaitForSpace,
) -> Result<usize, Errno> {
    let (left, mapped) = match request.file()? {
        File::Mapped(left) => (left, true),
        File::Read(left) => (left, false),
        File::Other => {
            let (out, file) = (request.socket.as_raw_fd(), request.file.as_raw_fd());
            return kernel::sendfile_at(out, file, request.at, request.count);
        }
    };
    if !mapped && request.count > 0 {
        request.refused_by_the_kernel()?;
    }
    let Some(len) = request.within(left) else { return request.at_the_end() };
    let view = if mapped { View::new(request, len, kept).ok() } else { None };
    // A mapping may fail where a file could be sent all the same: RLIMIT_AS.
    let buffer = if view.is_some() { None } else { Some(Buffer::new(READ.min(len))) };
    let from = match (view, buffer) {
        (Some(view), _) => From::View(view),
        (None, Some(Ok(buffer))) => From::Buffer(buffer),
        // A record cannot be sent piece by piece.
        (None, Some(Err(_))) if boundaries == Boundaries::None || len <= READ_ON_THE_STACK => {
            return copy_by_the_stack(request, len, boundaries, kept, space);
        }
        (None, Some(Err(e))) => return Err(e),
        (None, None) => return Err(Errno::NOMEM),
    };
    copy_from(from, request, len, boundaries, kept, space)
}

/// Copies by way of the stack, where nothing can be mapped but by the program itself.
#[inline(never)]
fn copy_by_the_stack(
    request: &Request<'_>,
    len: usize,
    boundaries: Boundaries,
    kept: Option<&Kept>,
    space: WaitForSpace,
) -> Result<usize, Errno> {
    let mut memory = [0; READ_ON_THE_STACK];
    let from = From::Buffer(Buffer::Lent(&mut memory));
    copy_from(from, request, len, boundaries, kept, space)
}

/// The source of the bytes of a copying send.
enum From<'a> {
    View(View),
    Buffer(Buffer<'a>),
}

fn copy_from(
    mut from: From<'_>,
    request: &Request<'_>,
    len: usize,
    boundaries: Boundaries,
    kept: Option<&Kept>,
    space: WaitForSpace,
) -> Result<usize, Errno> {
    let most = match &from {
        From::View(_) => len,
        From::Buffer(buffer) => buffer.len(),
    };
    let mut sent = 0;
    while sent < len {
        let most = if boundaries == Boundaries::Records {
            // Where sendfile(2) begins a new record: after what fills sixteen pages.
            let page = rustix::param::page_size() as u64;
            usize::try_from(RECORD - (request.at + sent as u64) % page).unwrap_or(1)
        } else {
            most
        };
        let wanted = most.min(len - sent);
        let part = match &mut from {
            From::View(view) => Ok(view.bytes().after(sent).first(wanted)),
            From::Buffer(buffer) => buffer.read(request.file, request.at + sent as u64, wanted),
        };
        let result = part.and_then(|part| match part.len() {
            0 => Ok(0), // The file has become shorter, or had no size.
            // A short one is the last.
            n => {
                let stream = boundaries == Boundaries::None;
                transmit(request, part, n == wanted && sent + n < len, stream, space)
            }
        });
        match result {
            Ok(0) => break,
            Ok(some) => {
                sent += some;
                if some < wanted {
                    break;
                }
            }
            // The bytes that were sent are reported first; the next call meets the error.
            Err(_) if sent > 0 => break,
            Err(Errno::FAULT) if matches!(from, From::View(_)) => {
                let less = request.explain_fault(len)?;
                return if less == 0 {
                    Ok(0)
                } else {
                    copy(&Request { count: less, ..*request }, boundaries, kept, space)
                };
            }
            Err(e) => return Err(e),
        }
    }
    if sent == 0 { request.at_the_end() } else { Ok(sent) }
}

/// Sends one part of a copying send; a stream takes all of it unless something comes in between.
fn transmit(
    request: &Request<'_>,
    bytes: Bytes<'_>,
    more: bool,
    stream: bool,
    space: WaitForSpace,
) -> Result<usize, Errno> {
    let more = if more { libc::MSG_MORE } else { 0 };
    let WaitForSpace::Until(deadline) = space else {
        return match kernel::send(request.socket, bytes, more) {
            // A send without flags can be a write. (A packet filter's answer is EPERM, too, and
            // write(2) gets it again.)
            Err(e) if kernel::is_forbidden(e) && (more == 0 || stream) => {
                kernel::write(request.socket, bytes)
            }
            sent => sent,
        };
    };
    let mut sent = 0;
    while sent < bytes.len() {
        match kernel::send(request.socket, bytes.after(sent), more | libc::MSG_DONTWAIT) {
            Ok(some) => sent += some,
            Err(Errno::AGAIN) => {
                if !writable(request, deadline)? {
                    return if sent > 0 { Ok(sent) } else { Err(Errno::TIMEDOUT) };
                }
            }
            Err(_) if sent > 0 => break,
            Err(e) => return Err(e),
        }
    }
    Ok(sent)
}

/// Waits until the socket has space, or is dead; `false` if the deadline passes first.
fn writable(request: &Request<'_>, deadline: Instant) -> Result<bool, Errno> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
        let mut fds = [PollFd::new(&request.socket, PollFlags::OUT)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) => {}
            Ok(_) => return Ok(true),
            Err(e) => return Err(e),
        }
    }
}

/// The part of a file that a request is about, as memory.
#[derive(Debug)]
pub(crate) enum View {
    Fresh(Mapping),
    /// A part of a file that is kept open and mapped; so many bytes of the mapping come before it.
    Kept(Arc<Mapping>, usize),
}

impl View {
    pub(crate) fn new(
        request: &Request<'_>,
        len: usize,
        kept: Option<&Kept>,
    ) -> Result<Self, Errno> {
        match kept {
            Some(kept) => kept.view(request.at, len),
            None => Mapping::of(request.file, request.at, len).map(View::Fresh),
        }
    }

    pub(crate) fn bytes(&self) -> Bytes<'_> {
        match self {
            View::Fresh(mapping) => mapping.bytes(),
            View::Kept(mapping, skip) => mapping.bytes().after(*skip),
        }
    }
}
