//! `native`: the kernel sends the file's pages from the page cache, without a mapping. Its
//! notification is that of a zerocopy send, so ledger, leases and tickets are the same.
//!
//! The kernel module does it; or, where that is not loaded, sendfile2(2) of a kernel with the patch
//! series.

use std::fmt;
use std::io::ErrorKind;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::OnceLock;

use rustix::io::Errno;

use crate::refusal::NativeUnavailable;
use crate::sys::module::{Args, Device, flags};
use crate::sys::syscall::{self, MSG_DONTWAIT, MSG_MORE, MSG_NOSIGNAL, SENDFILE_ZC, Sendfile2};

/// The offer of the kernel.
#[derive(Debug)]
pub(crate) enum Kernel {
    /// The device, kept open by the first who finds it.
    Module(Device),
    Series(Sendfile2),
}

impl Kernel {
    /// Whether TCP makes no MTU probe of what is sent by reference.
    pub(crate) fn mends_probing(&self) -> bool {
        matches!(self, Kernel::Series(_))
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kernel::Module(_) => write!(f, "the kernel module, {}", Device::PATH),
            Kernel::Series(call) => {
                write!(
                    f,
                    "sendfile2(2) of a kernel with the patch series, number {}",
                    call.number()
                )
            }
        }
    }
}

/// The offer of the kernel; once found, it stays.
pub(crate) fn kernel() -> Result<&'static Kernel, NativeUnavailable> {
    static KERNEL: OnceLock<Kernel> = OnceLock::new();
    if let Some(kernel) = KERNEL.get() {
        return Ok(kernel);
    }
    let found = match device() {
        Ok(device) => Kernel::Module(device),
        Err(missing) => Kernel::Series(series(missing)?),
    };
    Ok(KERNEL.get_or_init(|| found))
}

fn device() -> Result<Device, NativeUnavailable> {
    Device::open().map_err(|e| match e.kind() {
        ErrorKind::NotFound => NativeUnavailable::Module,
        ErrorKind::PermissionDenied => NativeUnavailable::Forbidden,
        ErrorKind::Unsupported => NativeUnavailable::Version,
        // What the kernel says where there is a node, but nothing behind it.
        _ if e.raw_os_error() == Some(Errno::NXIO.raw_os_error())
            || e.raw_os_error() == Some(Errno::NODEV.raw_os_error()) =>
        {
            NativeUnavailable::Module
        }
        _ => NativeUnavailable::Failed(e.raw_os_error().unwrap_or(Errno::IO.raw_os_error())),
    })
}

/// The system call, where the module is missing.
fn series(module: NativeUnavailable) -> Result<Sendfile2, NativeUnavailable> {
    let call = Sendfile2::find().map_err(|e| match e.kind() {
        ErrorKind::NotFound => module,
        _ => NativeUnavailable::Call,
    })?;
    // Nobody is told the error: a connection may be locked.
    syscall::probe().map(|()| call).map_err(|_| NativeUnavailable::Call)
}

/// Sends from `range` of the file by reference, without blocking and without SIGPIPE. EFAULT if
/// there is nothing to send, or it cannot be read: reading tells why.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    range: &Range<u64>,
    more: bool,
) -> Result<usize, Errno> {
    // Found before, or the engine would not have been taken.
    let kernel = kernel().map_err(|_| Errno::OPNOTSUPP)?;
    loop {
        let sent = match kernel {
            Kernel::Module(device) => by_module(device, socket, file, range, more),
            Kernel::Series(call) => by_call(*call, socket, file, range, more),
        };
        match sent {
            Err(Errno::INTR) => {}
            // Truncated meanwhile, or the file's own error.
            Ok(0) | Err(Errno::IO | Errno::INVAL) => return Err(Errno::FAULT),
            result => return result,
        }
    }
}

fn by_module(
    device: &Device,
    socket: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    range: &Range<u64>,
    more: bool,
) -> Result<usize, Errno> {
    let mut args = Args::default();
    args.offset = i64::try_from(range.start).map_err(|_| Errno::OVERFLOW)?;
    args.count = range.end - range.start;
    args.flags = flags::ZC | flags::DONTWAIT | flags::NOSIGNAL | if more { flags::MORE } else { 0 };
    device.send(socket, file, &mut args)
}

fn by_call(
    call: Sendfile2,
    socket: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    range: &Range<u64>,
    more: bool,
) -> Result<usize, Errno> {
    /// The most that one call sends (`MAX_RW_COUNT`), in bytes. More than an `ssize_t` holds is
    /// refused.
    const MOST: u64 = 0x7fff_f000;
    let mut offset = range.start;
    let count = usize::try_from((range.end - range.start).min(MOST)).unwrap_or(usize::MAX);
    let more = if more { MSG_MORE } else { 0 };
    let flags = SENDFILE_ZC | MSG_DONTWAIT | MSG_NOSIGNAL | more;
    call.send(socket, file, Some(&mut offset), count, flags)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::module::VERSION;

    #[test]
    fn refusals_name_what_is_looked_for() {
        assert!(NativeUnavailable::Module.to_string().contains(Device::PATH));
        assert!(NativeUnavailable::Version.to_string().ends_with(&format!("version {VERSION}")));
        assert!(NativeUnavailable::Call.to_string().contains(Sendfile2::SYSCTL));
    }
}
