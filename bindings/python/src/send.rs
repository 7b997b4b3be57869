//! The blocking send.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{ipproto, sockopt};
use sendfile2::{Deadline, Engine, Error, IncompleteSend, Source, uring};

use crate::arguments::{self, Origin};
use crate::copier::{Copies, Step};
use crate::errors::Failure;

/// The size, in bytes, from which waiting for a notification costs less than a copy.
const WORTH_A_NOTIFICATION: u64 = 16 << 10;

/// The time after which Python looks whether a signal is to be handled.
const SIGNALS: Duration = Duration::from_millis(100);

const FULL: &str = "the peer does not read: the socket stayed full";

/// Sends, and returns the bytes that were sent when they are released.
#[pyfunction]
pub(crate) fn send_file(
    py: Python<'_>,
    socket: &Bound<'_, PyAny>,
    file: &Bound<'_, PyAny>,
    offset: Option<i64>,
    count: Option<i64>,
    deadline: Option<f64>,
    engine: &str,
) -> PyResult<u64> {
    let until = arguments::deadline(deadline)?;
    let engine = match engine.parse() {
        Ok(engine @ (Engine::Auto | Engine::Copy | Engine::Uring)) => engine,
        _ => {
            let text = format!("engine is {engine:?}: choose one of auto, copy, uring");
            return Err(PyValueError::new_err(text));
        }
    };
    let (origin, range) = arguments::origin(file, offset, count)?;
    let socket = arguments::stream(socket)?;
    let mut sent = 0;
    if let Origin::File(file) = &origin {
        let send = || by_reference(&socket, file.as_fd(), &range, until, engine);
        match py.detach(send)? {
            Sent::All(bytes) => return Ok(bytes),
            Sent::Some(bytes) => sent = bytes,
        }
    } else if engine == Engine::Uring {
        return Err(PyValueError::new_err(
            "what is leased is sent by copies: take the engine copy",
        ));
    }
    copied(py, Copies::new(socket, origin, range, sent), until)
}

/// The outcome of a send by reference, of which nothing is in flight any more.
enum Sent {
    All(u64),
    /// The rest is to be copied.
    Some(u64),
}

/// Sends by reference, if that was asked for, or can be done and pays.
fn by_reference(
    socket: &OwnedFd,
    file: BorrowedFd<'_>,
    range: &Range<u64>,
    deadline: Deadline,
    engine: Engine,
) -> Result<Sent, Failure> {
    let nothing = |error| Failure::copied(error, 0);
    if engine == Engine::Copy
        || (engine == Engine::Auto && !pays(socket.as_fd(), file, range, deadline))
    {
        return Ok(Sent::Some(0));
    }
    let dup = |cause| Error::File { op: "dup", offset: 0, cause };
    let file = file.try_clone_to_owned().map_err(dup).and_then(Source::new);
    let file = match file {
        Err(Error::NotASource(_)) if engine == Engine::Auto => return Ok(Sent::Some(0)),
        file => file.map_err(nothing)?,
    };
    let end = range.end.min(file.size().map_err(nothing)?);
    if end <= range.start {
        return Ok(Sent::All(0));
    }
    match uring::send_file_sync(socket, &file, range.start..end, deadline) {
        Ok(_) => Ok(Sent::All(end - range.start)),
        Err(IncompleteSend { error, transfer, .. }) => {
            let sent = transfer.bytes;
            let failure = Failure::of(error, sent, &transfer.ticket);
            match failure.error {
                // It ends where the file does now.
                Error::Truncated { .. } if failure.released => Ok(Sent::All(sent)),
                Error::Refused { .. } if failure.released && engine == Engine::Auto => {
                    Ok(Sent::Some(sent))
                }
                _ => Err(failure),
            }
        }
    }
}

/// Returns whether a send by reference is worth trying. No signal ends one, so only with a deadline.
fn pays(
    socket: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    range: &Range<u64>,
    deadline: Deadline,
) -> bool {
    let size = rustix::fs::fstat(file).map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0));
    range.end.min(size).saturating_sub(range.start) >= WORTH_A_NOTIFICATION
        && deadline.instant().is_some()
        && sockopt::socket_protocol(socket) == Ok(Some(ipproto::TCP))
        // Behind an operation that waits in the socket, the program's own zerocopy sends would fail.
        && sendfile2_sys::socket::zerocopy_enabled(socket) == Ok(false)
        && !sendfile2::peer_on_this_host(socket)
}

/// Sends by copies, and waits for the socket; signals are handled meanwhile.
fn copied(py: Python<'_>, mut copies: Copies, deadline: Deadline) -> PyResult<u64> {
    loop {
        let step = py.detach(|| match copies.step(false)? {
            Step::Full if deadline.has_passed() => {
                Err(Failure::copied(Error::Deadline(FULL), copies.sent()))
            }
            Step::Full => writable(copies.socket(), deadline.remaining().min(SIGNALS))
                .map(|()| Step::Full)
                .map_err(|error| Failure::copied(error, copies.sent())),
            step => Ok(step),
        })?;
        if step == Step::Done {
            return Ok(copies.sent());
        }
        py.check_signals()?;
    }
}

/// Waits until the socket has room, for a signal, or for `time`.
fn writable(socket: BorrowedFd<'_>, time: Duration) -> Result<(), Error> {
    let mut ready = [PollFd::from_borrowed_fd(socket, PollFlags::OUT)];
    let time = Timespec { tv_sec: 0, tv_nsec: time.subsec_nanos().into() };
    match rustix::event::poll(&mut ready, Some(&time)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(e) => Err(Error::Wait { op: "poll", cause: e.into() }),
    }
}
