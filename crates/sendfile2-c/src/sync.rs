//! `SENDFILE_SYNC`: the range is released when the call returns.

use std::os::fd::AsRawFd;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::sockopt;

use crate::abi::SENDFILE_SYNC;
use crate::file::Kept;
use crate::kernel;
use crate::request::{Boundaries, File, Notifier, Request, unprobed, waits};
use crate::ring::{self, Stop};
use crate::send::{self, Patience, View};

/// The number of bytes from which on waiting for a notification is worth what copying costs.
const WORTH_A_NOTIFICATION: usize = 16 << 10;

/// The state of the range that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// The range was sent by reference, and is released.
    Released,
    /// The kernel has made a copy, at the call or later; the range is released.
    Copied,
    /// The time was over first: the kernel may still read the range.
    Unknown,
}

/// Sends, and waits until the range is released, or until the deadline. Reads nothing from the
/// socket's error queue, and uses no id.
pub(crate) fn sync(
    request: &Request<'_>,
    kept: Option<&Kept>,
    deadline: Option<Instant>,
) -> Result<(usize, State), Errno> {
    let boundaries = Boundaries::of(request.socket.as_raw_fd()).ok_or(Errno::INVAL)?;
    let (mut sent, mut state) = (0, State::Copied);
    if let Some(view) = view(request, kept)? {
        if let Some(done) = ring::send(request, view.bytes(), deadline) {
            (sent, state) = (done.bytes, done.state);
            match done.stop {
                Stop::Done => return Ok((sent, state)),
                Stop::Failed(_) if sent > 0 => return Ok((sent, state)),
                Stop::Failed(e) => return Err(e),
                Stop::Plain => {}
                Stop::Lost => {
                    // Not unmapped ever.
                    std::mem::forget(view);
                    return if sent > 0 { Ok((sent, state)) } else { Err(Errno::IO) };
                }
            }
        }
    }
    let patience = match deadline {
        Some(deadline) if waits(request.socket) => Patience::Until(deadline),
        _ => Patience::Socket,
    };
    match send::copy(&request.after(sent), boundaries, kept, patience) {
        Ok(0) | Err(_) if sent > 0 => Ok((sent, state)),
        // Part of it by reference: what is known of that is what counts.
        Ok(more) if sent > 0 && state == State::Released => Ok((sent + more, State::Copied)),
        Ok(more) => Ok((sent + more, state)),
        Err(e) => Err(e),
    }
}

/// Sends as [`sync`] does without a deadline, and does not report whether a copy was made: a kernel
/// with the patch series does all of it.
pub(crate) fn untold(request: &Request<'_>, kept: Option<&Kept>) -> Result<usize, Errno> {
    if let Some(number) = kernel::series().filter(|_| by_reference(request)) {
        let mut offset = i64::try_from(request.at).map_err(|_| Errno::INVAL)?;
        let (out, file) = (request.socket.as_raw_fd(), request.file.as_raw_fd());
        // SAFETY: the offset is this function's own.
        #[allow(unsafe_code)]
        let sent = unsafe {
            kernel::sendfile2(number, out, file, &raw mut offset, request.count, SENDFILE_SYNC)
        };
        if sent != Err(Errno::NOSYS) {
            return sent;
        }
    }
    match sync(request, kept, None)? {
        // Returning would say that it is.
        (_, State::Unknown) => Err(Errno::IO),
        (sent, _) => Ok(sent),
    }
}

/// Returns whether the range is to be sent by reference, where the file allows it.
fn by_reference(request: &Request<'_>) -> bool {
    let socket = request.socket;
    request.count >= WORTH_A_NOTIFICATION
        && Notifier::of(socket) == Some(Notifier::Tcp)
        && waits(socket)
        // A request on the ring knows nothing of that limit.
        && sockopt::socket_timeout(socket, sockopt::Timeout::Send).is_ok_and(|limit| limit.is_none())
        // Behind a request that waits in the socket, the program's own zerocopy sends would fail.
        && kernel::zerocopy(socket) == Ok(false)
        && !sendfile2::peer_on_this_host(socket)
        && unprobed(socket)
}

/// Returns the range, if it is to be sent by reference.
fn view(request: &Request<'_>, kept: Option<&Kept>) -> Result<Option<View>, Errno> {
    if !by_reference(request) {
        return Ok(None);
    }
    let File::Mapped(left) = request.file()? else { return Ok(None) };
    let length = request.within(left).filter(|length| *length >= WORTH_A_NOTIFICATION);
    Ok(length.and_then(|length| View::new(request, length, kept).ok()))
}
