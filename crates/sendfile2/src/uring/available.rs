//! Whether `io_uring` can be used, and if not, why.

use rustix::io::Errno;

use crate::engine::Engine;
use crate::error::Error;
use crate::refusal::{Refusal, UringUnavailable};
use crate::sys::uring::{Queues, Size};

/// Makes a ring of that size.
pub(super) fn ring<H>(size: Size) -> Result<Queues<H>, Error> {
    match Queues::open(size) {
        Ok(Some(queues)) => Ok(queues),
        Ok(None) => Err(refused(UringUnavailable::Old)),
        Err(errno) => {
            let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
            Err(match why(errno, disabled.as_deref().map(str::trim)) {
                Some(why) => refused(why),
                None => Error::wait("io_uring_setup")(errno),
            })
        }
    }
}

fn refused(why: UringUnavailable) -> Error {
    Error::Refused { engine: Engine::Uring, reason: Refusal::IoUring(why) }
}

/// The reason why a ring could not be made, given `kernel.io_uring_disabled` (Linux 6.6); `None` if
/// it is something that passes (no descriptors).
fn why(errno: Errno, disabled: Option<&str>) -> Option<UringUnavailable> {
    match (errno, disabled) {
        (Errno::PERM, Some("2")) => Some(UringUnavailable::Disabled),
        (Errno::PERM, Some("1")) => Some(UringUnavailable::Group),
        (Errno::PERM | Errno::ACCESS, _) => Some(UringUnavailable::Forbidden),
        (Errno::NOSYS, _) => Some(UringUnavailable::Missing),
        // A flag of the ring, or the probe, is not known.
        (Errno::INVAL, _) => Some(UringUnavailable::Old),
        (Errno::NOMEM, _) => Some(UringUnavailable::Memlock),
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
            (Errno::PERM,   Some("2"), Some(UringUnavailable::Disabled)),
            (Errno::PERM,   Some("1"), Some(UringUnavailable::Group)),
            (Errno::PERM,   Some("0"), Some(UringUnavailable::Forbidden)),
            (Errno::PERM,   None,      Some(UringUnavailable::Forbidden)),
            (Errno::ACCESS, Some("0"), Some(UringUnavailable::Forbidden)),
            (Errno::NOSYS,  None,      Some(UringUnavailable::Missing)),
            (Errno::INVAL,  None,      Some(UringUnavailable::Old)),
            (Errno::MFILE,  Some("0"), None),
            (Errno::NOMEM,  Some("0"), Some(UringUnavailable::Memlock)),
        ];
        for (errno, disabled, expected) in table {
            assert_eq!(why(errno, disabled), expected, "{errno:?} {disabled:?}");
        }
    }
}
