//! `native`: the kernel module sends the file's pages from the page cache, without a mapping. Its
//! notification is that of a zerocopy send, so ledger, leases and tickets are the same.

use std::fmt;
use std::io::ErrorKind;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;

use rustix::io::Errno;

use crate::source::Source;
use crate::sys::device::{Args, Device, VERSION, flags};

/// Why the kernel has nothing to offer to the engine `native`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Missing {
    /// There is no device: the module is not loaded.
    Module,
    /// The device may not be opened by this user.
    Forbidden,
    /// The device is not the module's, or that of another version.
    Version,
    /// Opening the device failed with this error number.
    Failed(i32),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = Device::PATH;
        match self {
            Missing::Module => write!(f, "there is no {path}: the kernel module is not loaded"),
            Missing::Forbidden => {
                write!(f, "{path} may not be opened: join its group, as docs/module.md says")
            }
            Missing::Version => write!(
                f,
                "{path} is not that of the kernel module in version {VERSION}: load the one that \
                 came with this library"
            ),
            Missing::Failed(errno) => {
                write!(f, "{path}: {}", std::io::Error::from_raw_os_error(*errno))
            }
        }
    }
}

/// The device, kept open by the first who finds it.
fn device() -> Result<&'static Device, Missing> {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    if let Some(device) = DEVICE.get() {
        return Ok(device);
    }
    let opened = Device::open().map_err(|e| match e.kind() {
        ErrorKind::NotFound => Missing::Module,
        ErrorKind::PermissionDenied => Missing::Forbidden,
        ErrorKind::Unsupported => Missing::Version,
        // What the kernel says where there is a node, but nothing behind it.
        _ if e.raw_os_error() == Some(Errno::NXIO.raw_os_error())
            || e.raw_os_error() == Some(Errno::NODEV.raw_os_error()) =>
        {
            Missing::Module
        }
        _ => Missing::Failed(e.raw_os_error().unwrap_or(0)),
    })?;
    Ok(DEVICE.get_or_init(|| opened))
}

/// Whether the kernel has what the engine needs.
pub(crate) fn available() -> Result<(), Missing> {
    device().map(drop)
}

/// Sends from `range` of the file by reference, without blocking and without SIGPIPE. EFAULT if
/// there is nothing to send, or it cannot be read: reading tells why.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    file: &Source,
    range: &Range<u64>,
    more: bool,
) -> Result<usize, Errno> {
    // Found before, or the engine would not have been taken.
    let device = device().map_err(|_| Errno::OPNOTSUPP)?;
    let mut args = Args::default();
    args.offset = i64::try_from(range.start).map_err(|_| Errno::OVERFLOW)?;
    args.count = range.end - range.start;
    args.flags = flags::ZC | flags::DONTWAIT | flags::NOSIGNAL | if more { flags::MORE } else { 0 };
    loop {
        match device.send(socket, file.as_fd(), &mut args) {
            Err(Errno::INTR) => {}
            // Truncated meanwhile, or the file's own error.
            Ok(0) | Err(Errno::IO | Errno::INVAL) => return Err(Errno::FAULT),
            result => return result,
        }
    }
}
