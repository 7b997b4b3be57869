//! `zerocopy`: `MSG_ZEROCOPY` from the mapping. The kernel pins the file's pages and says on the
//! error queue when it has let go of them.

use crate::conn::{Conn, Outcome, Part, Turn};
use crate::engine::Limit;
use crate::error::Error;
use crate::holder::Held;
use crate::sys::mapping::Region;
use crate::ticket::Parts;

/// Bytes handed over by one call at most. The kernel charges a call's whole length to
/// `RLIMIT_MEMLOCK`, also where the socket takes little of it.
pub(crate) const CALL: usize = 1 << 20;

/// What a zerocopy send came to.
pub(crate) enum Zerocopy {
    Done(Outcome),
    /// ENOBUFS with nothing in flight on this socket: no notification will ever make room, so
    /// whoever waits for one waits for ever.
    NoRoom(Limit),
}

/// Sends `region` by reference, clamped to what the limits allow one call.
pub(crate) fn region(
    conn: &Conn,
    mut turn: Turn<'_>,
    region: Region<'_>,
    part: Part,
    parts: &mut Parts,
    held: Option<&Held>,
) -> Result<Zerocopy, Error> {
    let clamped =
        if conn.kind().records() { region } else { region.truncate(CALL.min(turn.memlock_call())) };
    // Not MSG_MORE where only the clamp says that more follows: if the next call met the limit,
    // it would wait for the release of a segment that waits for the next call.
    let part = Part { more: part.more && clamped.len() == region.len(), ..part };
    let mut outcome = turn.transmit(clamped, part, parts, held)?;
    if let Outcome::Limit(_) = outcome {
        turn.forget_memlock();
        drop(turn);
        conn.reap()?;
        outcome = conn.turn().transmit(clamped, part, parts, held)?;
        if let Outcome::Limit(limit) = outcome {
            if conn.sends_in_flight() == 0 {
                return Ok(Zerocopy::NoRoom(limit));
            }
        }
    }
    Ok(Zerocopy::Done(outcome))
}
