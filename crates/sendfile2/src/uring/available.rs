//! Whether `io_uring` can be used, and if not, why.

use rustix::io::Errno;

use crate::engine::Engine;
use crate::error::Error;
use crate::refusal::{Refusal, Unavailable};
use crate::sys::uring::{Queues, Size};

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
