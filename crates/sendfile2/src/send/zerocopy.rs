//! `zerocopy`: `MSG_ZEROCOPY` from the mapping. The kernel pins the file's pages and reports
//! their release on the error queue. What is common to all sends by reference is here, too.

use crate::conn::{Conn, LockedConn, Outcome, Payload, SendOp};
use crate::engine::{Engine, Limit};
use crate::error::Error;
use crate::holder::{CompletionSource, Held};
use crate::progress::SendProgress;

/// Bytes handed over by one call at most. The kernel charges a call's whole length to
/// `RLIMIT_MEMLOCK`, also where the socket takes little of it.
pub(crate) const CALL: usize = 1 << 20;

/// The outcome of a send by reference.
pub(crate) enum ByReference {
    Done(Outcome),
    /// ENOBUFS with nothing in flight on this socket: no notification will ever make room, so
    /// whoever waits for one waits for ever.
    NoRoom(Limit),
}

/// Sends `payload` by reference, clamped to what the limits allow one call.
pub(crate) fn send(
    conn: &Conn,
    mut locked: LockedConn<'_>,
    payload: Payload<'_>,
    op: SendOp<'_>,
    progress: &mut SendProgress,
    held: Option<&Held>,
) -> Result<ByReference, Error> {
    let most = if op.choice.engine == Engine::Zerocopy { locked.memlock_call() } else { CALL };
    let clamped =
        if conn.endpoint().kind().records() { payload } else { payload.truncate(CALL.min(most)) };
    // Not MSG_MORE where only the clamp says that more follows: if the next call met the limit,
    // it would wait for the release of a segment that waits for the next call.
    let op = SendOp { more: op.more && clamped.len() == payload.len(), ..op };
    let mut outcome = locked.transmit(clamped, op, progress, held)?;
    if let Outcome::Limit(_) = outcome {
        conn.reap()?;
        outcome = conn.locked()?.transmit(clamped, op, progress, held)?;
        if let Outcome::Limit(limit) = outcome {
            if conn.sends_in_flight() == 0 {
                return Ok(ByReference::NoRoom(limit));
            }
        }
    }
    Ok(ByReference::Done(outcome))
}
