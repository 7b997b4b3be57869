//! `copy`: the kernel copies the bytes once, and the range is released when the call returns.

use std::ops::Range;

use rustix::io::Errno;

use crate::aside::Aside;
use crate::conn::{Conn, LockedConn, Outcome, Payload, SendOp};
use crate::engine::Choice;
use crate::error::Error;
use crate::progress::SendProgress;
use crate::sys::mapping::Region;

/// Bytes read and sent at a time where a file is not mapped: large enough that the calls cost
/// little, small enough to stay in the cache.
const READ: u64 = 256 << 10;

/// No record is larger: a unix socket's is bounded by its send buffer, whose size is an int.
const RECORD: usize = 1 << 30;

/// Bytes given to one call at most. In a longer one the kernel holds the socket's lock for so long,
/// and with several connections queues so much, that the bytes have left the cache when the peer
/// is served: `sendfile2 bench engines --chunk 256K,512K,1M,4M` shows the difference.
const CALL: usize = 512 << 10;

/// Sends `region`, or as much as one call is given; the kernel copies it. It is a file's from there
/// on, if that is leased.
#[inline(always)]
pub(crate) fn region(
    conn: &Conn,
    locked: LockedConn<'_>,
    region: Region<'_>,
    aside: Option<(&Aside, u64)>,
    more: bool,
    choice: Choice,
    progress: &mut SendProgress,
) -> Result<Outcome, Error> {
    let clamped = if conn.endpoint().kind().records() { region } else { region.truncate(CALL) };
    let more = more || clamped.len() < region.len();
    locked.transmit(
        Payload::Memory(clamped),
        SendOp { choice, more, guarded: false, aside },
        progress,
        None,
    )
}

/// Reads up to `range` of a file, by `read`, and sends it. `whole` where a record must not be split.
pub(crate) fn read(
    conn: &Conn,
    read: impl Fn(&mut [u8], u64) -> Result<usize, Error>,
    range: Range<u64>,
    more: bool,
    whole: bool,
    choice: Choice,
    progress: &mut SendProgress,
) -> Result<Outcome, Error> {
    let wanted = range.end - range.start;
    let bytes = if whole { wanted } else { wanted.min(READ) };
    let bytes = usize::try_from(bytes).ok().filter(|bytes| *bytes <= RECORD);
    let bytes = bytes.ok_or_else(|| Error::socket("send")(Errno::MSGSIZE))?;
    let mut buffer = vec![0; bytes];
    let mut filled = 0;
    // A read may be short; the end of the file shows as 0.
    while filled < buffer.len() {
        match read(&mut buffer[filled..], range.start + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            // What was read is sent first; the next call meets the error.
            Err(_) if filled > 0 && !whole => break,
            Err(e) => return Err(e),
        }
    }
    let short = filled < buffer.len();
    if filled == 0 || (whole && short) {
        return Err(Error::Truncated { at: range.start + filled as u64, wanted: range.start });
    }
    let more = more && filled as u64 == wanted;
    region(conn, conn.locked()?, Region::from(&buffer[..filled]), None, more, choice, progress)
}
