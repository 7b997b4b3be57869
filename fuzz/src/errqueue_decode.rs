//! Any bytes as a message of the error queue of a 64-bit kernel.
//!
//! Input: `msg_flags` (4 bytes, little-endian), the length of the control data (2 bytes), the
//! control data, the payload.

use sendfile2_sys::errqueue::{Entry, ExtendedError, decode};

/// Decodes the input and compares with what a reader that goes by offsets makes of it.
///
/// # Panics
/// If the two differ.
pub fn run(data: &[u8]) {
    let Some((flags, rest)) = data.split_first_chunk() else { return };
    let Some((len, rest)) = rest.split_first_chunk() else { return };
    let flags = i32::from_le_bytes(*flags);
    let len = usize::from(u16::from_le_bytes(*len)).min(rest.len());
    let (control, payload) = rest.split_at(len);

    let expected = if flags & libc::MSG_CTRUNC == 0 { last_error(control) } else { Err(()) };
    match (decode(control, payload, flags), expected) {
        (Ok(Entry::Completion { lo, hi, copied }), Ok(Some(e))) => {
            assert_eq!((e.errno, e.origin), (0, 5), "only a zerocopy completion releases");
            assert_eq!((lo, hi, copied), (e.info, e.data, e.code & 1 == 1));
        }
        (Ok(Entry::Foreign(foreign)), Ok(e)) => {
            assert!(e.is_none_or(|e| (e.errno, e.origin) != (0, 5)), "a completion was missed");
            assert_eq!(foreign.error, e);
            assert_eq!(foreign.control, control, "the control data is handed on whole");
            assert_eq!(foreign.payload, payload, "the payload is handed on whole");
            assert_eq!(foreign.truncated, flags & libc::MSG_TRUNC != 0);
        }
        (Err(_), Err(())) => {}
        (got, expected) => panic!("decoded as {got:?}, but it is {expected:?}"),
    }
}

/// The last extended error of the control data; `Err` if anything in it is malformed.
fn last_error(control: &[u8]) -> Result<Option<ExtendedError>, ()> {
    let u32_at = |at: usize| {
        u32::from_ne_bytes([control[at], control[at + 1], control[at + 2], control[at + 3]])
    };
    let mut found = None;
    let mut at = 0;
    while at + 16 <= control.len() {
        let len = u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        let left = (control.len() - at) as u64;
        if len < 16 || len > left {
            return Err(());
        }
        // SOL_IP and IP_RECVERR, SOL_IPV6 and IPV6_RECVERR.
        if matches!((u32_at(at + 8), u32_at(at + 12)), (0, 11) | (41, 25)) {
            if len < 32 {
                return Err(());
            }
            found = Some(ExtendedError {
                errno: u32_at(at + 16),
                origin: control[at + 20],
                kind: control[at + 21],
                code: control[at + 22],
                info: u32_at(at + 24),
                data: u32_at(at + 28),
            });
        }
        // The padding of the last one may be missing.
        at += usize::try_from(len.next_multiple_of(8).min(left)).expect("it is within control");
    }
    Ok(found)
}
