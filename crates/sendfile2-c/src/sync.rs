//! `SENDFILE_SYNC`: the range is released when the call returns.

use std::os::fd::AsRawFd;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::sockopt;

use crate::file::Kept;
use crate::kernel;
use crate::request::{Boundaries, File, Notifier, Request, unprobed, waits};
use crate::ring::{self, Stop};
use crate::send::{self, Patience, View};

/// From this many bytes on, waiting for a notification is worth what copying costs.
const WORTH_A_NOTIFICATION: usize = 16 << 10;

/// What is known of the range that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// It was sent by reference, and is released.
    Released,
    /// The kernel has made a copy, at the call or later; it is released.
    Copied,
    /// The time was over first: it may still be read by the kernel.
    Unknown,
}

/// Sends, and waits until the range is released, or until then. Reads nothing from the socket's
/// error queue, and uses no id.
pub(crate) fn sync(
    request: &Request<'_>,
    kept: Option<&Kept>,
    deadline: Option<Instant>,
) -> Result<(usize, State), Errno> {
    let boundaries = Boundaries::of(request.socket.as_raw_fd()).ok_or(Errno::INVAL)?;
    let (mut sent, mut state) = (0, State::Copied);
    if let Some(view) = by_reference(request, kept)? {
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

/// The range, if it is to be sent by reference.
fn by_reference(request: &Request<'_>, kept: Option<&Kept>) -> Result<Option<View>, Errno> {
    let socket = request.socket;
    let worth_it = request.count >= WORTH_A_NOTIFICATION
        && Notifier::of(socket) == Some(Notifier::Tcp)
        && waits(socket)
        // A request on the ring knows nothing of that limit.
        && sockopt::socket_timeout(socket, sockopt::Timeout::Send).is_ok_and(|limit| limit.is_none())
        // Behind a request that waits in the socket, the program's own zerocopy sends would fail.
        && kernel::zerocopy(socket) == Ok(false)
        && !sendfile2::peer_on_this_host(socket)
        && unprobed(socket);
    if !worth_it {
        return Ok(None);
    }
    let File::Mapped(left) = request.file()? else { return Ok(None) };
    let length = request.within(left).filter(|length| *length >= WORTH_A_NOTIFICATION);
    Ok(length.and_then(|length| View::new(request, length, kept).ok()))
}
