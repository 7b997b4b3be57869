//! The next step after a send that failed: one table for every way of sending.
//!
//! Sources: send(2); `Documentation/networking/msg_zerocopy.rst`; `io_uring_enter(2)`,
//! `IORING_OP_SEND_ZC`; the kernel module's header.

use rustix::io::Errno;

/// The circumstances of a send that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attempt {
    /// Whether the kernel was to send from the pages themselves, and to notify their release.
    pub by_reference: bool,
    /// Whether other sends of the socket are in flight, whose release frees some of a limit.
    pub others_in_flight: bool,
    /// Whether the ring was asked to report copies (`IORING_SEND_ZC_REPORT_USAGE`).
    pub reports_usage: bool,
    /// Whether a send of the same bytes has faulted before.
    pub faulted_before: bool,
}

/// The next step after a send that failed. Nothing was sent by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The same send again: it was interrupted, or the thread that had submitted it has ended.
    Again,
    /// The same send when the socket is writable.
    WhenWritable,
    /// The same send when another one is released: `RLIMIT_MEMLOCK` or `net.core.optmem_max` is used
    /// up.
    AfterRelease,
    /// A copy, which those limits do not bound: no release of this socket's sends would help.
    Copy,
    /// The same send, without asking whether the kernel copied, which Linux before 6.2 cannot say.
    WithoutUsage,
    /// A read of the file, whose result is the answer: a page of the mapping is gone, since the
    /// file was truncated or cannot be read.
    Read,
    /// Another way: the socket does not send by reference.
    Refused,
    /// No further step: the error is the answer.
    Failed,
}

/// Returns what to do after `errno`.
#[must_use]
pub fn next(errno: Errno, attempt: Attempt) -> Next {
    let Attempt { by_reference, others_in_flight, reports_usage, faulted_before } = attempt;
    match errno {
        Errno::INTR | Errno::CANCELED => Next::Again,
        Errno::AGAIN => Next::WhenWritable,
        Errno::NOBUFS | Errno::NOMEM if by_reference && others_in_flight => Next::AfterRelease,
        Errno::NOBUFS | Errno::NOMEM if by_reference => Next::Copy,
        Errno::INVAL if by_reference && reports_usage => Next::WithoutUsage,
        Errno::OPNOTSUPP if by_reference => Next::Refused,
        Errno::FAULT if !faulted_before => Next::Read,
        _ => Next::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table() {
        let copy = Attempt::default();
        let reference = Attempt { by_reference: true, ..copy };
        let busy = Attempt { others_in_flight: true, ..reference };
        let ring = Attempt { reports_usage: true, ..reference };
        let faulted = Attempt { faulted_before: true, ..reference };
        #[rustfmt::skip]
        let table = [
            (Errno::INTR,       copy,      Next::Again),
            (Errno::INTR,       busy,      Next::Again),
            (Errno::CANCELED,   ring,      Next::Again),
            (Errno::AGAIN,      copy,      Next::WhenWritable),
            (Errno::AGAIN,      busy,      Next::WhenWritable),
            // A wait for a release that is not outstanding would never end.
            (Errno::NOBUFS,     reference, Next::Copy),
            (Errno::NOMEM,      ring,      Next::Copy),
            (Errno::NOBUFS,     busy,      Next::AfterRelease),
            (Errno::NOMEM,      busy,      Next::AfterRelease),
            // No limit bounds a copy: the kernel has no memory.
            (Errno::NOBUFS,     copy,      Next::Failed),
            (Errno::NOMEM,      copy,      Next::Failed),
            (Errno::INVAL,      ring,      Next::WithoutUsage),
            (Errno::INVAL,      reference, Next::Failed),
            (Errno::INVAL,      copy,      Next::Failed),
            (Errno::OPNOTSUPP,  reference, Next::Refused),
            (Errno::OPNOTSUPP,  copy,      Next::Failed),
            (Errno::FAULT,      copy,      Next::Read),
            (Errno::FAULT,      reference, Next::Read),
            // Read all the same: memory that does not belong to a file, or one that cannot be read.
            (Errno::FAULT,      faulted,   Next::Failed),
            (Errno::PIPE,       reference, Next::Failed),
            (Errno::CONNRESET,  copy,      Next::Failed),
            (Errno::TIMEDOUT,   busy,      Next::Failed),
            (Errno::NOTCONN,    ring,      Next::Failed),
            (Errno::MSGSIZE,    reference, Next::Failed),
        ];
        for (errno, attempt, expected) in table {
            assert_eq!(next(errno, attempt), expected, "{errno:?} {attempt:?}");
        }
    }

    /// A send by reference never waits for a release that cannot come.
    #[test]
    fn only_what_is_in_flight_is_waited_for() {
        for errno in 1..200 {
            let errno = Errno::from_raw_os_error(errno);
            for bits in 0..16 {
                let attempt = Attempt {
                    by_reference: bits & 1 != 0,
                    others_in_flight: bits & 2 != 0,
                    reports_usage: bits & 4 != 0,
                    faulted_before: bits & 8 != 0,
                };
                let waits = next(errno, attempt) == Next::AfterRelease;
                assert!(!waits || attempt.others_in_flight, "{errno:?} {attempt:?}");
            }
        }
    }
}
