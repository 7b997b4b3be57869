//! `SENDFILE_SYNC`: the range is released when the call returns, unless a deadline passes first.

use std::os::fd::AsRawFd;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::sockopt;

use crate::abi::SENDFILE_SYNC;
use crate::file::Kept;
use crate::kernel;
use crate::request::{Boundaries, File, Notifier, Request, no_mtu_probes, waits};
use crate::ring::{self, Stop};
use crate::send::{self, View, WaitForSpace};

/// The size, in bytes, from which waiting for a notification costs less than a copy.
const WORTH_A_NOTIFICATION: usize = 16 << 10;

/// The state of the range that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// The range was sent by reference, and is released.
    Released,
    /// The range is released; the kernel has copied at least a part of it.
    Copied,
    /// The release is not known: the deadline passed, or the ring was lost. The kernel may still
    /// read the range.
    Unknown,
}

/// Sends, and waits until the range is released, or until the deadline. Reads nothing from the
/// socket's error queue, and uses no notification id.
pub(crate) fn sync(
    request: &Request<'_>,
    kept: Option<&Kept>,
    deadline: Option<Instant>,
) -> Result<(usize, State), Errno> {
    let boundaries = Boundaries::of(request.socket.as_raw_fd()).ok_or(Errno::INVAL)?;
    let (mut sent, mut state) = (0, State::Copied);
    if let Some(view) = view_for_reference(request, kept)? {
        if let Some(done) = ring::send(request.socket, view.bytes(), deadline) {
            (sent, state) = (done.bytes, done.state);
            match done.stop {
                Stop::Done => return Ok((sent, state)),
                Stop::Failed(_) if sent > 0 => return Ok((sent, state)),
                Stop::Failed(e) => return Err(e),
                Stop::Plain => {}
                Stop::Lost => {
                    // Never unmapped: the kernel may read it at any time.
                    std::mem::forget(view);
                    return if sent > 0 { Ok((sent, state)) } else { Err(Errno::IO) };
                }
            }
        }
    }
    let space = match deadline {
        Some(deadline) if waits(request.socket) => WaitForSpace::Until(deadline),
        _ => WaitForSpace::AsTheSocketDoes,
    };
    match send::copy(&request.after(sent), boundaries, kept, space) {
        Ok(0) | Err(_) if sent > 0 => Ok((sent, state)),
        Ok(more) => Ok((sent + more, with_a_copy(state))),
        Err(e) => Err(e),
    }
}

/// Returns the state of a range of which a first part is in `state`, and the rest was copied.
fn with_a_copy(state: State) -> State {
    match state {
        State::Released | State::Copied => State::Copied,
        State::Unknown => State::Unknown,
    }
}

/// Sends all that [`sync`] would without a deadline, by sendfile2(2) where the kernel has it; fails
/// with EIO if the release is not known.
pub(crate) fn sync_fully(request: &Request<'_>, kept: Option<&Kept>) -> Result<usize, Errno> {
    if let Some(number) = kernel::sendfile2_number().filter(|_| may_go_by_reference(request)) {
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
        // A number of bytes would say that they are released.
        (_, State::Unknown) => Err(Errno::IO),
        (sent, _) => Ok(sent),
    }
}

/// Returns whether the socket and the size of the range allow a send by reference, and make it worth
/// while. The file has not been asked.
fn may_go_by_reference(request: &Request<'_>) -> bool {
    let socket = request.socket;
    request.count >= WORTH_A_NOTIFICATION
        && Notifier::of(socket) == Some(Notifier::Tcp)
        && waits(socket)
        // An operation of the ring knows nothing of SO_SNDTIMEO.
        && sockopt::socket_timeout(socket, sockopt::Timeout::Send)
            .is_ok_and(|timeout| timeout.is_none())
        // Behind an operation that waits in the socket, the program's own zerocopy sends would fail.
        && kernel::so_zerocopy(socket) == Ok(false)
        && !sendfile2::peer_on_this_host(socket)
        && no_mtu_probes(socket)
}

/// Returns the range as memory, if it is to be sent by reference; `None` if it is to be copied.
fn view_for_reference(request: &Request<'_>, kept: Option<&Kept>) -> Result<Option<View>, Errno> {
    if !may_go_by_reference(request) {
        return Ok(None);
    }
    let File::Mapped(left) = request.file()? else { return Ok(None) };
    let length = request.within(left).filter(|length| *length >= WORTH_A_NOTIFICATION);
    Ok(length.and_then(|length| View::new(request, length, kept).ok()))
}
