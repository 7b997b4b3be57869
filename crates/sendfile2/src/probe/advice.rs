//! Advice: what to change so that more is possible.

use std::fmt;

use crate::refusal::{Refusal, Unmappable};

/// Under this many bytes of `RLIMIT_MEMLOCK` there is advice: it is the kernel's default since
/// Linux 5.16, and room for the send buffers of a few connections.
pub(super) const MEMLOCK_ENOUGH: u64 = 8 << 20;

/// The kernel's default of `net.core.optmem_max` was 20 KiB for long, and is this now.
pub(super) const OPTMEM_ENOUGH: u64 = 128 << 10;

/// Something that could be changed, in plain words.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Advice {
    /// `RLIMIT_MEMLOCK` is low, and `CAP_IPC_LOCK` is missing.
    Memlock {
        /// The soft limit, in bytes.
        soft: u64,
        /// The hard limit, in bytes; `None` if unlimited.
        hard: Option<u64>,
    },
    /// `net.core.optmem_max` is low; its value, in bytes.
    OptmemMax(u64),
    /// `net.ipv4.tcp_mtu_probing` is not 0; its value.
    MtuProbing(u8),
    /// The file is read and not mapped.
    File(Unmappable),
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let enough = MEMLOCK_ENOUGH >> 20;
        match self {
            Advice::Memlock { soft, hard } => {
                write!(
                    f,
                    "RLIMIT_MEMLOCK lets all zerocopy sends of this user together pin {} only; \
                     those beyond it wait, or are copied. Raise it: LimitMEMLOCK={enough}M in the \
                     systemd unit, or ulimit -l {} in the shell",
                    bytes(*soft),
                    MEMLOCK_ENOUGH >> 10,
                )?;
                match hard {
                    Some(hard) if *hard < MEMLOCK_ENOUGH => {
                        write!(f, " (as root, since the hard limit is {})", bytes(*hard))
                    }
                    _ => Ok(()),
                }
            }
            Advice::OptmemMax(now) => write!(
                f,
                "net.core.optmem_max = {now} leaves a socket little room for notifications, so that \
                 many small zerocopy sends meet ENOBUFS. Raise it: sysctl -w \
                 net.core.optmem_max={OPTMEM_ENOUGH} (the default of newer kernels)"
            ),
            Advice::MtuProbing(value) => write!(f, "{}", Refusal::MtuProbing(Some(*value))),
            Advice::File(why) => {
                f.write_str("this file is read, and zerocopy cannot serve it: ")?;
                match why {
                    Unmappable::Overlay => f.write_str(
                        "on overlayfs only a descriptor that is open for writing, too, is safe to \
                         map. Keep the file on a volume of its own",
                    ),
                    Unmappable::Sparse => {
                        f.write_str("fill its holes (cp --sparse=never), or keep it on a disk")
                    }
                    Unmappable::Filesystem(_) => {
                        f.write_str("keep it on a local disk filesystem, such as ext4 or xfs")
                    }
                    Unmappable::Failed(_) => write!(f, "{why}"),
                }
            }
        }
    }
}

/// A size in its largest whole unit.
pub(super) fn bytes(n: u64) -> String {
    match n {
        0 => "0 bytes".into(),
        n if n % (1 << 30) == 0 => format!("{} GiB", n >> 30),
        n if n % (1 << 20) == 0 => format!("{} MiB", n >> 20),
        n if n % (1 << 10) == 0 => format!("{} KiB", n >> 10),
        n => format!("{n} bytes"),
    }
}
