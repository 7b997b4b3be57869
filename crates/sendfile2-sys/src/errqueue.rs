//! Reading a socket's error queue, and decoding its messages.
//!
//! [`decode`] is a safe function over bytes; [`read`] is the system call around it. Always
//! `MSG_DONTWAIT` (a kernel was seen to block without), never `MSG_PEEK` (it consumes the entry),
//! and the error is in the control message, not in `errno`.
//!
//! Sources: `Documentation/networking/msg_zerocopy.rst`, recv(2) (`MSG_ERRQUEUE`), ip(7),
//! ipv6(7), cmsg(3).

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;
use smallvec::SmallVec;

/// `struct sock_extended_err` of `linux/errqueue.h`, without the padding.
// Programs may make one: the kernel's interface fixes its fields, and there is no space for more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExtendedError {
    /// `ee_errno`: the error, 0 for a zerocopy completion.
    pub errno: u32,
    /// `ee_origin`: the origin of the error (`SO_EE_ORIGIN_*`).
    pub origin: u8,
    /// `ee_type`: the ICMP type, for errors of ICMP origin.
    pub kind: u8,
    /// `ee_code`: the ICMP code, or the flags of a zerocopy completion.
    pub code: u8,
    /// `ee_info`: additional information; the first id of a zerocopy completion.
    pub info: u32,
    /// `ee_data`: other data; the last id of a zerocopy completion.
    pub data: u32,
}

/// `SO_EE_ORIGIN_ZEROCOPY` of `linux/errqueue.h`.
pub const ORIGIN_ZEROCOPY: u8 = 5;
/// `SO_EE_CODE_ZEROCOPY_COPIED`: the kernel made a private copy.
pub const CODE_ZEROCOPY_COPIED: u8 = 1;

/// One message of the error queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A zerocopy completion: the ids `lo..=hi` are released.
    Completion {
        /// The first id of the range.
        lo: u32,
        /// The last id of the range; below `lo` where the range wraps.
        hi: u32,
        /// The kernel made a private copy of (at least the first of) these sends.
        copied: bool,
    },
    /// Any other message (an ICMP error, a timestamp), which belongs to the code that asked for it.
    Foreign(Foreign),
}

/// An error-queue message that is no zerocopy completion, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Foreign {
    /// The extended error of the message, if it carries one.
    pub error: Option<ExtendedError>,
    /// All control messages as the kernel wrote them (`struct cmsghdr` and data, aligned).
    pub control: Vec<u8>,
    /// The payload: what was sent, for timestamps; the quoted packet, for ICMP errors.
    pub payload: Vec<u8>,
    /// The payload was longer than [`PAYLOAD_MAX`] and its tail is lost.
    pub truncated: bool,
}

impl Foreign {
    /// Returns whether the message reports that bytes were acknowledged:
    /// `SO_EE_ORIGIN_TIMESTAMPING` with `SCM_TSTAMP_ACK` of `linux/errqueue.h`.
    pub fn is_acknowledgement(&self) -> bool {
        const ORIGIN_TIMESTAMPING: u8 = 4;
        const ACK: u32 = 2;
        self.error.is_some_and(|error| error.origin == ORIGIN_TIMESTAMPING && error.info == ACK)
    }
}

/// The reason why a message could not be decoded. Nothing is released for such a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// `MSG_CTRUNC`: the kernel had more control data than the buffer holds.
    #[error("the kernel cut off the control data of an error-queue message (MSG_CTRUNC)")]
    ControlTruncated,
    /// A control message's length is smaller than its header or reaches past the end.
    #[error("a control message of {len} bytes does not fit the {left} bytes that are left")]
    BadLength {
        /// The length that the header claims.
        len: usize,
        /// The bytes that are left.
        left: usize,
    },
    /// A control message that must hold a `sock_extended_err` is too short for one.
    #[error("an extended error of {len} bytes is too short")]
    ShortError {
        /// The length of the message's data.
        len: usize,
    },
}

const HEADER: usize = size_of::<libc::cmsghdr>();
const ALIGN: usize = size_of::<usize>();

/// One control message: level, type, data.
type Control<'a> = (i32, i32, &'a [u8]);

/// Splits control data into its messages, as `CMSG_FIRSTHDR`/`CMSG_NXTHDR` do.
fn controls(mut rest: &[u8]) -> impl Iterator<Item = Result<Control<'_>, DecodeError>> {
    std::iter::from_fn(move || {
        // struct cmsghdr { size_t cmsg_len; int cmsg_level; int cmsg_type; }
        let (len, tail) = rest.split_first_chunk::<ALIGN>()?;
        let (level, tail) = tail.split_first_chunk::<4>()?;
        let (kind, _) = tail.split_first_chunk::<4>()?;
        let len = usize::from_ne_bytes(*len);
        let Some(data) = rest.get(HEADER..len) else {
            let left = std::mem::take(&mut rest).len();
            return Some(Err(DecodeError::BadLength { len, left }));
        };
        let next = len.next_multiple_of(ALIGN).min(rest.len());
        let control = (i32::from_ne_bytes(*level), i32::from_ne_bytes(*kind), data);
        rest = &rest[next..];
        Some(Ok(control))
    })
}

fn extended_error(data: &[u8]) -> Result<ExtendedError, DecodeError> {
    let Some(&[e0, e1, e2, e3, origin, kind, code, _, i0, i1, i2, i3, d0, d1, d2, d3]) =
        data.first_chunk::<16>()
    else {
        return Err(DecodeError::ShortError { len: data.len() });
    };
    Ok(ExtendedError {
        errno: u32::from_ne_bytes([e0, e1, e2, e3]),
        origin,
        kind,
        code,
        info: u32::from_ne_bytes([i0, i1, i2, i3]),
        data: u32::from_ne_bytes([d0, d1, d2, d3]),
    })
}

/// Decodes one message read with `MSG_ERRQUEUE`: its control data, its payload, and the
/// `msg_flags` that the kernel returned.
///
/// # Errors
/// [`DecodeError`] if the control data was cut off or is malformed.
pub fn decode(control: &[u8], payload: &[u8], msg_flags: i32) -> Result<Entry, DecodeError> {
    if msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(DecodeError::ControlTruncated);
    }
    let mut error = None;
    for item in controls(control) {
        let (level, kind, data) = item?;
        if matches!(
            (level, kind),
            (libc::SOL_IP, libc::IP_RECVERR) | (libc::SOL_IPV6, libc::IPV6_RECVERR)
        ) {
            error = Some(extended_error(data)?);
        }
    }
    match error {
        Some(e) if e.origin == ORIGIN_ZEROCOPY && e.errno == 0 => Ok(Entry::Completion {
            lo: e.info,
            hi: e.data,
            copied: e.code & CODE_ZEROCOPY_COPIED != 0,
        }),
        error => Ok(Entry::Foreign(Foreign {
            error,
            control: control.to_vec(),
            payload: payload.to_vec(),
            truncated: msg_flags & libc::MSG_TRUNC != 0,
        })),
    }
}

/// Messages read by one system call. `recvmmsg` stops at an empty queue by itself, so that a
/// queue with one entry costs one call and not two.
const BATCH: usize = 4;
const BATCH_COUNT: libc::c_uint = 4;

#[cfg(target_env = "musl")]
type Flags = libc::c_uint;
#[cfg(not(target_env = "musl"))]
type Flags = libc::c_int;
const FLAGS: Flags = (libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT) as Flags;
/// The size of the control buffer: an extended error with its offender's address fits beside
/// timestamps and packet info.
const CONTROL: usize = 512;
/// The longest payload of a [`Foreign`] entry that is kept whole, in bytes.
pub const PAYLOAD_MAX: usize = 2048;

/// The messages that one system call read, decoded.
pub type Batch = SmallVec<[Result<Entry, DecodeError>; BATCH]>;

#[repr(C, align(8))]
struct Buffers {
    control: [[MaybeUninit<u8>; CONTROL]; BATCH],
    payload: [[MaybeUninit<u8>; PAYLOAD_MAX]; BATCH],
}

/// Reads up to a batch of messages from a socket's error queue and appends them, decoded, to `out`.
/// Returns whether the queue may hold more. Never blocks.
///
/// Only for TCP and UDP sockets: a unix socket ignores `MSG_ERRQUEUE` and would hand out what its
/// peer has sent. From a socket of a sender it takes away what the sender waits for.
///
/// # Errors
/// The errors of `recvmmsg(2)`; an empty queue is no error.
pub fn read(
    socket: BorrowedFd<'_>,
    out: &mut impl Extend<Result<Entry, DecodeError>>,
) -> Result<bool, Errno> {
    // Left uninitialised: a batch is ten kilobytes, and mostly none of it is used.
    let mut buffers = MaybeUninit::<Buffers>::uninit();
    // SAFETY: Buffers consists of MaybeUninit only, so it needs no initialisation.
    let buffers = unsafe { &mut *buffers.as_mut_ptr() };
    // SAFETY: iovec and mmsghdr are plain C structures, for which all zeroes are a valid value.
    let mut iovecs: [libc::iovec; BATCH] = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    let mut messages: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
    for i in 0..BATCH {
        iovecs[i].iov_base = buffers.payload[i].as_mut_ptr().cast();
        iovecs[i].iov_len = PAYLOAD_MAX;
        let header = &mut messages[i].msg_hdr;
        header.msg_iov = &raw mut iovecs[i];
        header.msg_iovlen = 1;
        header.msg_control = buffers.control[i].as_mut_ptr().cast();
        // musl's type for it has 32 bits.
        header.msg_controllen = CONTROL as _;
    }
    let got = loop {
        // SAFETY: each header points at an iovec, a payload and a control buffer of the lengths
        // it states, all alive until after the call; no address and no timeout are given.
        let ret = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                messages.as_mut_ptr(),
                BATCH_COUNT,
                FLAGS,
                std::ptr::null_mut(),
            )
        };
        match usize::try_from(ret) {
            Ok(got) => break got.min(BATCH),
            Err(_) => match crate::socket::last_error() {
                Errno::INTR => {}
                Errno::AGAIN => return Ok(false),
                error => return Err(error),
            },
        }
    };
    out.extend(messages.iter().enumerate().take(got).map(|(i, message)| {
        let header = &message.msg_hdr;
        #[allow(clippy::unnecessary_cast, reason = "as above")]
        let control = (header.msg_controllen as usize).min(CONTROL);
        let payload = (message.msg_len as usize).min(PAYLOAD_MAX);
        // SAFETY: the kernel wrote the first msg_controllen bytes of the control buffer; the
        // length is bounded by the buffer's.
        let control =
            unsafe { std::slice::from_raw_parts(buffers.control[i].as_ptr().cast(), control) };
        // SAFETY: the kernel wrote msg_len bytes of payload; bounded likewise.
        let payload =
            unsafe { std::slice::from_raw_parts(buffers.payload[i].as_ptr().cast(), payload) };
        decode(control, payload, header.msg_flags)
    }));
    Ok(got == BATCH)
}

#[cfg(test)]
mod tests;
