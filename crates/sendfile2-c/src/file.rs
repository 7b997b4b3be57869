//! A file that is kept open and mapped, for programs that send from it again and again.

use std::ffi::c_int;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, PoisonError, RwLock};

use rustix::io::Errno;
use sendfile2::Source;

use crate::kernel::Mapping;
use crate::send::View;

/// An open file, and its mapping once there is one.
#[derive(Debug)]
pub(crate) struct Kept {
    file: OwnedFd,
    /// The mapping, which begins at the start of the file, and the number of bytes it shows.
    mapping: RwLock<Option<(Arc<Mapping>, usize)>>,
}

impl Kept {
    /// Keeps a duplicate of the descriptor: the position is shared with it.
    pub(crate) fn new(file: c_int) -> Result<Self, Errno> {
        if file < 0 {
            return Err(Errno::BADF);
        }
        // SAFETY: it is not -1; a number that is no descriptor is refused.
        #[allow(unsafe_code)]
        let file = rustix::io::fcntl_dupfd_cloexec(unsafe { BorrowedFd::borrow_raw(file) }, 0)?;
        Ok(Kept { file, mapping: RwLock::default() })
    }

    /// Returns the range as memory. The file is mapped anew when it has grown beyond the mapping.
    pub(crate) fn view(&self, at: u64, len: usize) -> Result<View, Errno> {
        let at = usize::try_from(at).map_err(|_| Errno::NOMEM)?;
        let end = at.checked_add(len).ok_or(Errno::NOMEM)?;
        let kept = self.mapping.read().unwrap_or_else(PoisonError::into_inner);
        if let Some((mapping, _)) = kept.as_ref().filter(|(_, mapped)| *mapped >= end) {
            return Ok(View::Kept(Arc::clone(mapping), at));
        }
        drop(kept);
        let (size, _) = Source::examine(&self.file).map_err(|_| Errno::IO)?;
        let size = usize::try_from(size).map_err(|_| Errno::NOMEM)?.max(end);
        let mapping = Arc::new(Mapping::of(self.file.as_fd(), 0, size)?);
        let mut kept = self.mapping.write().unwrap_or_else(PoisonError::into_inner);
        // The old mapping goes when the last send from it has returned.
        *kept = Some((Arc::clone(&mapping), size));
        Ok(View::Kept(mapping, at))
    }
}

impl AsFd for Kept {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
