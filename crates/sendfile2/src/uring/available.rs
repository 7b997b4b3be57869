//! Whether `io_uring` can be used, and if not, why.

use std::fmt;

use rustix::io::Errno;

use crate::engine::{Engine, Refusal};
use crate::error::Error;
use crate::sys::uring::{Queues, Size};

/// Why `io_uring` cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unavailable {
    /// `kernel.io_uring_disabled` is 2: nobody may.
    Disabled,
    /// `kernel.io_uring_disabled` is 1: only `CAP_SYS_ADMIN` and the group
    /// `kernel.io_uring_group` may.
    Group,
    /// EPERM, and it is not that sysctl: a seccomp filter (containers have one) or a security
    /// module.
    Forbidden,
    /// ENOSYS: the kernel was built without it, or a seccomp filter says so.
    Missing,
    /// The kernel has `io_uring`, but not `IORING_OP_SEND_ZC` (Linux 6.0).
    Old,
    /// ENOMEM: no room for a ring is left under `RLIMIT_MEMLOCK`, which all rings and zerocopy sends
    /// of a user share (a ring's memory counts since Linux 6.14).
    Memlock,
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unavailable::Disabled => {
                "io_uring is disabled (sysctl kernel.io_uring_disabled = 2): set it to 0"
            }
            Unavailable::Group => {
                "io_uring is for the group kernel.io_uring_group only (sysctl \
                 kernel.io_uring_disabled = 1): join it, or set that to 0"
            }
            Unavailable::Forbidden => {
                "io_uring is forbidden (EPERM): by a seccomp filter, as containers have one, or by \
                 a security module; allow io_uring_setup, io_uring_enter and io_uring_register"
            }
            Unavailable::Missing => {
                "there is no io_uring (ENOSYS): the kernel was built without it, or a seccomp \
                 filter hides it; take copy or zerocopy"
            }
            Unavailable::Old => {
                "the kernel's io_uring has no SEND_ZC, which came with Linux 6.0: take copy or zerocopy"
            }
            Unavailable::Memlock => {
                "there is no memory for a ring (ENOMEM): RLIMIT_MEMLOCK, which the rings and \
                 zerocopy sends of this user share, is used up; raise it (ulimit -l, LimitMEMLOCK=)"
            }
        })
    }
}

/// Makes a ring of that size.
pub(super) fn ring<H>(size: Size) -> Result<Queues<H>, Error> {
    match Queues::open(size) {
        Ok(Some(queues)) => Ok(queues),
        Ok(None) => Err(refused(Unavailable::Old)),
        Err(errno) => {
            let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
            Err(match why(errno, disabled.as_deref().map(str::trim)) {
                Some(why) => refused(why),
                None => Error::wait("io_uring_setup")(errno),
            })
        }
    }
}

fn refused(why: Unavailable) -> Error {
    Error::Refused { engine: Engine::Uring, reason: Refusal::IoUring(why) }
}

/// Why a ring could not be made, given `kernel.io_uring_disabled` (Linux 6.6); `None` if it is
/// something that passes (no descriptors).
fn why(errno: Errno, disabled: Option<&str>) -> Option<Unavailable> {
    match (errno, disabled) {
        (Errno::PERM, Some("2")) => Some(Unavailable::Disabled),
        (Errno::PERM, Some("1")) => Some(Unavailable::Group),
        (Errno::PERM | Errno::ACCESS, _) => Some(Unavailable::Forbidden),
        (Errno::NOSYS, _) => Some(Unavailable::Missing),
        // A flag of the ring, or the probe, is not known.
        (Errno::INVAL, _) => Some(Unavailable::Old),
        (Errno::NOMEM, _) => Some(Unavailable::Memlock),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_as_a_table() {
        #[rustfmt::skip]
        let table = [
            (Errno::PERM,   Some("2"), Some(Unavailable::Disabled)),
            (Errno::PERM,   Some("1"), Some(Unavailable::Group)),
            (Errno::PERM,   Some("0"), Some(Unavailable::Forbidden)),
            (Errno::PERM,   None,      Some(Unavailable::Forbidden)),
            (Errno::ACCESS, Some("0"), Some(Unavailable::Forbidden)),
            (Errno::NOSYS,  None,      Some(Unavailable::Missing)),
            (Errno::INVAL,  None,      Some(Unavailable::Old)),
            (Errno::MFILE,  Some("0"), None),
            (Errno::NOMEM,  Some("0"), Some(Unavailable::Memlock)),
        ];
        for (errno, disabled, expected) in table {
            assert_eq!(why(errno, disabled), expected, "{errno:?} {disabled:?}");
        }
    }
}
