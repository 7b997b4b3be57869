//! `zerocopy`: `MSG_ZEROCOPY` from the mapping. The kernel pins the file's pages and says on the
//! error queue when it has let go of them. What is common to all sends by reference is here, too.

use crate::conn::{Conn, Outcome, Part, Payload, Turn};
use crate::engine::{Engine, Limit};
use crate::error::Error;
use crate::holder::Held;
use crate::ticket::Parts;

/// Bytes handed over by one call at most. The kernel charges a call's whole length to
/// `RLIMIT_MEMLOCK`, also where the socket takes little of it.
pub(crate) const CALL: usize = 1 << 20;

/// What a send by reference came to.
pub(crate) enum ByReference {
    Done(Outcome),
    /// ENOBUFS with nothing in flight on this socket: no notification will ever make room, so
    /// whoever waits for one waits for ever.
    NoRoom(Limit),
}

/// Sends `payload` by reference, clamped to what the limits allow one call.
pub(crate) fn send(
    conn: &Conn,
    mut turn: Turn<'_>,
    payload: Payload<'_>,
    part: Part,
    parts: &mut Parts,
    held: Option<&Held>,
) -> Result<ByReference, Error> {
    let most = if part.choice.engine == Engine::Zerocopy { turn.memlock_call() } else { CALL };
    let clamped = if conn.kind().records() { payload } else { payload.truncate(CALL.min(most)) };
    // Not MSG_MORE where only the clamp says that more follows: if the next call met the limit,
    // it would wait for the release of a segment that waits for the next call.
    let part = Part { more: part.more && clamped.len() == payload.len(), ..part };
    let mut outcome = turn.transmit(clamped, part, parts, held)?;
    if let Outcome::Limit(_) = outcome {
        turn.forget_memlock();
        drop(turn);
        conn.reap()?;
        outcome = conn.turn()?.transmit(clamped, part, parts, held)?;
        if let Outcome::Limit(limit) = outcome {
            if conn.sends_in_flight() == 0 {
                return Ok(ByReference::NoRoom(limit));
            }
        }
    }
    Ok(ByReference::Done(outcome))
}
