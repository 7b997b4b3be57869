//! `sendfile2_pwrite`: overwriting what others may be sending.

use std::ffi::c_int;
use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use sendfile2::detach::{Detacher, NotDetached};
use sendfile2::{Error, Source};

/// Overwrites whole units, and returns how many bytes that were; fails where it was none.
pub(crate) fn pwrite(file: c_int, data: &[u8], offset: u64) -> Result<usize, Errno> {
    match detacher(file)?.overwrite(data, offset) {
        Ok(()) => Ok(data.len()),
        // No more than there was.
        Err(some) if some.written > 0 => Ok(usize::try_from(some.written).unwrap_or(data.len())),
        Err(none) => Err(errno(&none.why)),
    }
}

/// Returns the unit of [`pwrite`], in bytes.
pub(crate) fn unit(file: c_int) -> Result<usize, Errno> {
    let unit = detacher(file)?.unit().map_err(|why| errno(&why))?;
    usize::try_from(unit).map_err(|_| Errno::OVERFLOW)
}

/// Opens the file anew, for reading and writing, whatever the descriptor is open for.
fn detacher(file: c_int) -> Result<Detacher, Errno> {
    if file < 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: it is not -1; a number that is no descriptor is refused.
    #[allow(unsafe_code)]
    let given = unsafe { BorrowedFd::borrow_raw(file) };
    if rustix::fs::fcntl_getfl(given)?.contains(OFlags::PATH) {
        return Err(Errno::BADF);
    }
    let stat = rustix::fs::fstat(given)?;
    // To open others may do something.
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile | FileType::BlockDevice => {}
        _ => return Err(Errno::INVAL),
    }
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY;
    let name = format!("/proc/self/fd/{file}");
    let anew = rustix::fs::open(name, flags, Mode::empty()).map_err(unsupported)?;
    let opened = rustix::fs::fstat(&anew)?;
    if (stat.st_dev, stat.st_ino) != (opened.st_dev, opened.st_ino) {
        // Something else is mounted where /proc should be.
        return Err(Errno::OPNOTSUPP);
    }
    let source = Source::new(anew).map_err(|error| match error {
        Error::NotASource(_) => Errno::INVAL,
        error => error.io_error().map_or(Errno::IO, beneath),
    })?;
    Detacher::new(&source).map_err(|why| errno(&why))
}

/// The error of `sendfile2_pwrite(3)` for a reason why a range could not be detached.
fn errno(why: &NotDetached) -> Errno {
    match why {
        NotDetached::NoDirect { cause } | NotDetached::Unsupported { cause, .. } => {
            unsupported(beneath(cause))
        }
        NotDetached::NoProof => Errno::OPNOTSUPP,
        NotDetached::Unaligned { .. } | NotDetached::End { .. } => Errno::INVAL,
        NotDetached::BehindEnd { .. } => Errno::NXIO,
        NotDetached::Cached { .. } | NotDetached::WouldWait { .. } => Errno::BUSY,
        NotDetached::Io { cause, .. } => beneath(cause),
        _ => Errno::IO,
    }
}

/// The error for a call without which it cannot be done here. Some of them have errors of their own
/// for what they do not support.
fn unsupported(cause: Errno) -> Errno {
    match cause {
        // Direct I/O and clones; no /proc, or another one.
        Errno::INVAL | Errno::XDEV | Errno::NOENT | Errno::STALE => Errno::OPNOTSUPP,
        cause => cause,
    }
}

fn beneath(cause: &io::Error) -> Errno {
    Errno::from_io_error(cause).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_error() {
        let range = 0..4096;
        let no_direct = |e: Errno| NotDetached::NoDirect { cause: e.into() };
        let unsupported = |e: Errno| NotDetached::Unsupported { op: "it", cause: e.into() };
        let failed = |e: Errno| NotDetached::Io { op: "it", offset: 0, cause: e.into() };
        let nameless =
            NotDetached::Io { op: "mmap", offset: 0, cause: io::ErrorKind::OutOfMemory.into() };
        for (why, expected) in [
            (no_direct(Errno::INVAL), Errno::OPNOTSUPP),
            (no_direct(Errno::OPNOTSUPP), Errno::OPNOTSUPP),
            (no_direct(Errno::NOENT), Errno::OPNOTSUPP),
            (no_direct(Errno::STALE), Errno::OPNOTSUPP),
            (no_direct(Errno::ACCESS), Errno::ACCESS),
            (no_direct(Errno::ROFS), Errno::ROFS),
            (no_direct(Errno::MFILE), Errno::MFILE),
            (unsupported(Errno::OPNOTSUPP), Errno::OPNOTSUPP),
            (unsupported(Errno::INVAL), Errno::OPNOTSUPP),
            (unsupported(Errno::XDEV), Errno::OPNOTSUPP),
            (unsupported(Errno::ACCESS), Errno::ACCESS),
            (NotDetached::NoProof, Errno::OPNOTSUPP),
            (NotDetached::End { bytes: 1, unit: 512 }, Errno::INVAL),
            (NotDetached::Unaligned { range: range.clone(), unit: 512 }, Errno::INVAL),
            (NotDetached::BehindEnd { range: range.clone(), size: 1 }, Errno::NXIO),
            (NotDetached::WouldWait { range: range.clone(), tries: 8 }, Errno::BUSY),
            (NotDetached::Cached { range, pages: 1, tries: 8 }, Errno::BUSY),
            (failed(Errno::IO), Errno::IO),
            (failed(Errno::NOSPC), Errno::NOSPC),
            (failed(Errno::DQUOT), Errno::DQUOT),
            (failed(Errno::FBIG), Errno::FBIG),
            (nameless, Errno::IO),
        ] {
            assert_eq!(errno(&why), expected, "{why}");
        }
    }
}
