//! Every "why not": why an engine cannot serve a socket or a file, and what to do about it.

use std::fmt;
use std::io;

use crate::sys::filesystem;

/// The reason why an engine cannot serve a socket or a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Refusal {
    /// This kind of socket gives no notifications here.
    Socket(&'static str),
    /// The kernel refused a zerocopy send on this socket (EOPNOTSUPP): kernel TLS is on it. To
    /// `io_uring` and `native` it also says so of a socket that is, or was, in a BPF sockmap.
    NotSupported,
    /// `SO_ZEROCOPY` cannot be asked for or set, with this error number: where a seccomp filter
    /// forbids that, for example.
    ZerocopyOption(i32),
    /// The socket is, or was, in a BPF sockmap whose program is given what is sent: nobody knows
    /// how many notification ids a send uses there. The kernel says nothing of it to `zerocopy`.
    Sockmap,
    /// The application has switched `SO_ZEROCOPY` off: the kernel would copy, and never notify.
    SwitchedOff,
    /// `RLIMIT_MEMLOCK` allows no zerocopy send at all; the limit, in bytes.
    Memlock(u64),
    /// TCP may probe the path for larger packets, of which the kernel notifies too early:
    /// `net.ipv4.tcp_mtu_probing`, or `None` where it cannot be read.
    MtuProbing(Option<u8>),
    /// The socket is of another network namespace than the thread that sends (or that cannot be
    /// found out), which cannot read the `net.ipv4.tcp_mtu_probing` that TCP goes by.
    OtherNamespace,
    /// A datagram send failed in a way that may or may not have used an id, or the application's
    /// own sends ended in a panic.
    IdsUnsure,
    /// The file is not sent from a mapping.
    File(Unmappable),
    /// `io_uring` cannot be used.
    IoUring(UringUnavailable),
    /// A send by `sendfile(2)` that is not under a lease of a file that detaches: nobody could say
    /// when it may be overwritten.
    NotDetaching,
    /// A [`Sender`](crate::Sender) was asked for `uring`.
    Driver,
    /// The kernel has nothing to offer to `native`.
    Native(NativeUnavailable),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Socket(why) => f.write_str(why),
            Refusal::NotSupported => f.write_str(
                "the kernel refuses zerocopy sends on this socket (kernel TLS or a sockmap?): take copy \
                 or auto",
            ),
            Refusal::ZerocopyOption(errno) => write!(
                f,
                "SO_ZEROCOPY cannot be set on the socket: {} (does a seccomp filter forbid it?)",
                std::io::Error::from_raw_os_error(*errno)
            ),
            Refusal::Sockmap => f.write_str(
                "the socket is or was in a BPF sockmap with an SK_MSG program (a service mesh?), where \
                 nobody knows how many notification ids a send uses",
            ),
            Refusal::SwitchedOff => f.write_str(
                "SO_ZEROCOPY was switched off on this socket: the kernel would copy, and never notify",
            ),
            Refusal::Memlock(limit) => write!(
                f,
                "RLIMIT_MEMLOCK is {limit} bytes, too few for any zerocopy send: raise it \
                 (ulimit -l, LimitMEMLOCK=)"
            ),
            Refusal::MtuProbing(Some(value)) => write!(
                f,
                "net.ipv4.tcp_mtu_probing is {value}: TCP may probe for a larger MTU, and the kernel \
                 would say that file pages are released while a probe still carries them; switch \
                 that off (sysctl -w net.ipv4.tcp_mtu_probing=0) and connect anew"
            ),
            Refusal::MtuProbing(None) => f.write_str(
                "net.ipv4.tcp_mtu_probing cannot be read (is /proc mounted, and has the process a \
                 descriptor left?); if it is not 0, the kernel says that file pages are released \
                 while it still sends them; mend that, or take copy or auto",
            ),
            Refusal::OtherNamespace => f.write_str(
                "the socket is of another network namespace than this thread (setns(2), or a socket \
                 that was handed over), whose net.ipv4.tcp_mtu_probing cannot be read from here; send \
                 from a thread of that namespace",
            ),
            Refusal::IdsUnsure => f.write_str(
                "a send failed (a datagram was dropped on its way out, or the application panicked), \
                 and nobody can say whether that used a notification id: take copy or auto, or a new \
                 socket",
            ),
            Refusal::File(why) => write!(f, "the file is not sent from a mapping: {why}"),
            Refusal::IoUring(why) => write!(f, "{why}"),
            Refusal::Native(why) => write!(f, "{why}"),
            Refusal::NotDetaching => f.write_str(
                "sendfile(2) never reports a release, so it serves only what is leased of a file whose \
                 overwrites detach (guard::Overwrite::Detach, on a filesystem that can; probe --file)",
            ),
            Refusal::Driver => f.write_str(
                "a sender does not use io_uring, which has a front end of its own: uring::Driver",
            ),
        }
    }
}

/// The reason why a file is sent by `pread` and not from a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unmappable {
    /// A read-only descriptor on overlayfs: after a copy-up, mappings of it show other bytes than
    /// `pread`.
    Overlay,
    /// A filesystem on which mappings are not known to agree with `pread` (FUSE, network
    /// filesystems, and whatever is not on the list of those that are): `f_type` of `fstatfs(2)`.
    Filesystem(u64),
    /// A tmpfs file or memfd with holes: sending from a mapping would allocate them.
    Sparse,
    /// `mmap(2)` failed with this error number.
    Failed(i32),
}

impl fmt::Display for Unmappable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unmappable::Overlay => f.write_str(
                "it is open read-only on overlayfs, where a mapping may show other bytes than pread \
                 after a copy-up (open it for writing, or put it on a volume)",
            ),
            Unmappable::Filesystem(magic) => {
                match filesystem::name(*magic) {
                    Some(name) => write!(f, "its filesystem ({name})")?,
                    None => write!(f, "its filesystem (type {magic:#x})")?,
                }
                f.write_str(
                    " is not one whose mappings are known to agree with pread (engine copy reads it)",
                )
            }
            Unmappable::Sparse => {
                f.write_str(
                    "it has holes on tmpfs, and a send from a mapping would allocate them (engine copy \
                     reads it; fallocate(1) fills them)",
                )
            }
            Unmappable::Failed(errno) => {
                write!(f, "mmap failed: {}", std::io::Error::from_raw_os_error(*errno))
            }
        }
    }
}

/// The reason why `io_uring` cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum UringUnavailable {
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
    /// The library was built without its feature `uring`.
    NotBuilt,
    /// ENOMEM: no room for a ring is left under `RLIMIT_MEMLOCK`, which all rings and zerocopy
    /// sends of a user share (a ring's memory counts since Linux 6.14).
    Memlock,
}

impl fmt::Display for UringUnavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            UringUnavailable::Disabled => {
                "io_uring is disabled (sysctl kernel.io_uring_disabled = 2): set it to 0"
            }
            UringUnavailable::Group => {
                "io_uring is for the group kernel.io_uring_group only (sysctl \
                 kernel.io_uring_disabled = 1): join it, or set that to 0"
            }
            UringUnavailable::Forbidden => {
                "io_uring is forbidden (EPERM): by a seccomp filter, as containers have one, or by \
                 a security module; allow io_uring_setup, io_uring_enter and io_uring_register"
            }
            UringUnavailable::Missing => {
                "there is no io_uring (ENOSYS): the kernel was built without it, or a seccomp \
                 filter hides it; take copy or zerocopy"
            }
            UringUnavailable::Old => {
                "the kernel's io_uring has no SEND_ZC, which came with Linux 6.0: take copy or zerocopy"
            }
            UringUnavailable::NotBuilt => "this build of the library has no io_uring (feature `uring`)",
            UringUnavailable::Memlock => {
                "there is no memory for a ring (ENOMEM): RLIMIT_MEMLOCK, which the rings and \
                 zerocopy sends of this user share, is used up; raise it (ulimit -l, LimitMEMLOCK=)"
            }
        })
    }
}

/// The reason why the kernel has nothing to offer to the engine `native`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NativeUnavailable {
    /// There is no device: the module is not loaded. And the kernel has no sendfile2(2).
    Module,
    /// The device may not be opened by this user.
    Forbidden,
    /// The device is not the module's, or that of another version.
    Version,
    /// Opening the device failed with this error number.
    Failed(i32),
    /// The kernel says that it has sendfile2(2), and a trial did not show it.
    Call,
    /// The library was built without its feature `native`.
    NotBuilt,
}

impl fmt::Display for NativeUnavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NativeUnavailable::Module => {
                "there is no /dev/sendfile2: the kernel module is not loaded (docs/module.md); nor \
                 has this kernel the patch series (docs/patches.md)"
            }
            NativeUnavailable::Forbidden => {
                "/dev/sendfile2 may not be opened: join its group, as docs/module.md says"
            }
            NativeUnavailable::Version => {
                "/dev/sendfile2 is not that of the kernel module which this library knows: load the \
                 one that came with it, version 1"
            }
            NativeUnavailable::Failed(errno) => {
                let error = io::Error::from_raw_os_error(*errno);
                return write!(f, "opening /dev/sendfile2 failed: {error}");
            }
            NativeUnavailable::Call => {
                "/proc/sys/fs/sendfile2_nr names a system call, but a send over a connection of this \
                 process with itself gave no notification (is the interface lo up? is the call \
                 forbidden here?)"
            }
            NativeUnavailable::NotBuilt => {
                "this build of the library has no engine native (feature `native`)"
            }
        })
    }
}
