//! The parts that a file range is sent in, and what is wrong where one faults.

use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{SocketType, sockopt};

use crate::engine::Engine;
use crate::error::Error;
use crate::guard::QueuedLease;
use crate::holder::Held;
use crate::mtu;
use crate::queued::QueuedProgress;
use crate::refusal::Refusal;
use crate::send::zerocopy::CALL;
use crate::socket::kind::Kind;
use crate::source::{Extent, Source, View};
use crate::sys::rlimit;
use crate::sys::uring::Memory;
use crate::trace;

/// Bytes read at a time, under the driver's lock, of what is kept aside, or a writer waits for.
const READ: usize = 256 << 10;

/// The operation that the kernel is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Zerocopy,
    Copy,
    /// No send: a wait for the epoll set.
    Room,
}

/// The part of a send that the ring keeps with an operation.
pub(super) struct Part {
    pub(super) lane: usize,
    pub(super) op: Op,
    /// The file range; empty for bytes.
    pub(super) range: Range<u64>,
    pub(super) accepted: u64,
    /// The kernel was asked to report whether it copies.
    pub(super) reports_usage: bool,
    pub(super) guarded: bool,
    pub(super) held: Option<Held>,
    pub(super) progress: Arc<QueuedProgress>,
    pub(super) at: Instant,
}

/// A descriptor of our own of `socket`, which must be a stream socket: sends are continued in the
/// middle, which would split a record; and not one that TCP sends MTU probes on.
pub(super) fn stream(socket: BorrowedFd<'_>) -> Result<OwnedFd, Error> {
    if sockopt::socket_type(socket).map_err(Error::socket("SO_TYPE"))? != SocketType::STREAM {
        return Err(refused(Refusal::Socket("io_uring serves stream sockets only")));
    }
    mtu::no_mtu_probes(Kind::of(socket)?, socket).map_err(refused)?;
    socket.try_clone_to_owned().map_err(|cause| Error::Socket { op: "dup", cause })
}

/// Bytes that one send may ask for: what `RLIMIT_MEMLOCK` is charged for a whole send, and no
/// peer should keep many pages pinned at once.
///
/// # Errors
/// [`Error::Refused`] if the limit allows no send at all.
pub(super) fn limit() -> Result<u64, Error> {
    match CALL.min(rlimit::call()) {
        0 => Err(refusal(Refusal::Memlock(rlimit::memlock().unwrap_or(0)))),
        most => Ok(most as u64),
    }
}

/// The beginning of `range`, as far as one send of at most `most` bytes can take it now.
///
/// # Errors
/// [`Error::Truncated`]; [`Error::Refused`] if the file is not mapped.
pub(super) fn next(
    file: &Source,
    extent: Extent,
    range: &Range<u64>,
    most: u64,
) -> Result<(Memory, Range<u64>), Error> {
    let end = range.end.min(range.start.saturating_add(most));
    match file.view(range.start..end, extent)? {
        View::Mapped(mapping, part) => Ok((Memory::Mapped(mapping, part.clone()), part)),
        View::Read(why, _) => Err(refusal(Refusal::File(why))),
    }
}

/// The beginning of `range`, read under the lease, as it was; and whether it reaches `end`.
///
/// # Errors
/// [`Error::Truncated`]; [`Error::File`].
pub(super) fn read(
    lease: &QueuedLease,
    range: Range<u64>,
    end: u64,
) -> Result<(Memory, Range<u64>, bool), Error> {
    let len = usize::try_from(range.end - range.start).unwrap_or(READ).min(READ);
    let mut bytes = vec![0; len];
    let read = lease.read_at(&mut bytes, range.start)?;
    if read == 0 {
        return Err(Error::Truncated { at: range.start, wanted: range.start });
    }
    bytes.truncate(read);
    let range = range.start..range.start + read as u64;
    let last = range.end == end;
    Ok((Memory::Bytes(bytes.into(), 0), range, last))
}

/// Refuses the engine with `reason`, for all to see.
pub(super) fn refused(reason: Refusal) -> Error {
    trace::debug!(engine = %Engine::Uring, %reason, "refused");
    refusal(reason)
}

/// As [`refused`], under a lock, where nobody is told.
fn refusal(reason: Refusal) -> Error {
    Error::Refused { engine: Engine::Uring, reason }
}

/// Finds what is wrong with `part`, which faulted. Nothing any more, if the file is shorter now:
/// then what there is can be sent.
pub(super) fn explain_fault(file: &Source, part: &Range<u64>) -> Result<(), Error> {
    if file.size()? < part.end {
        return Ok(());
    }
    // A disk error shows itself to who reads.
    let mut buffer = vec![0; 64 << 10];
    let mut at = part.start;
    while at < part.end {
        match file.read_at(&mut buffer, at)? {
            0 => return Ok(()),
            n => at += n as u64,
        }
    }
    Err(Error::socket("send")(Errno::FAULT))
}
