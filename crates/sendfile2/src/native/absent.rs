//! `native` in a library that was built without it: whatever the kernel has, nobody asks.

use std::fmt;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use crate::refusal::NativeUnavailable;

/// The offer of the kernel, of which there is none.
#[derive(Debug)]
pub(crate) enum Kernel {}

impl Kernel {
    pub(crate) fn mends_probing(&self) -> bool {
        match *self {}
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {}
    }
}

pub(crate) fn kernel() -> Result<&'static Kernel, NativeUnavailable> {
    Err(NativeUnavailable::NotBuilt)
}

/// Never called, since there is no [`Kernel`].
pub(crate) fn send(
    _socket: BorrowedFd<'_>,
    _file: BorrowedFd<'_>,
    _range: &Range<u64>,
    _more: bool,
) -> Result<usize, Errno> {
    Err(Errno::OPNOTSUPP)
}
