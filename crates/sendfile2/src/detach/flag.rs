//! `RWF_DETACH`: writes that detach by themselves, on a kernel with the patch series that adds them.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::{Errno, ReadWriteFlags, retry_on_intr};
use rustix::pipe::{PipeFlags, SpliceFlags};

use super::detacher::{Detacher, anew};
use super::pages::{TRIES, page};
use crate::not_detached::NotDetached;

/// `kernel/patches/detach-6.12`; Linux itself has no such flag, and may give the bit another meaning.
const RWF_DETACH: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x8000);

impl Detacher {
    /// The file, open for writes that detach; none where a try on a file beside it did not show that
    /// they do.
    pub(super) fn flagged(&self) -> Option<&OwnedFd> {
        let find = || {
            let scratch = self.scratch().ok()?;
            let file = anew(&self.source, OFlags::empty()).ok()?.0;
            shows(scratch.as_fd()).unwrap_or(false).then_some(file)
        };
        self.flagged.get_or_init(find).as_ref()
    }

    /// Writes `data` at `offset` by `RWF_DETACH`.
    pub(super) fn overwrite_flagged(
        &self,
        file: &OwnedFd,
        data: &[u8],
        offset: u64,
        written: &mut u64,
    ) -> Result<(), NotDetached> {
        let mut done = 0;
        let mut tries = 0;
        while done < data.len() {
            let at = offset + done as u64;
            match put(file.as_fd(), &data[done..], at, RWF_DETACH) {
                // A full disk is told by an error.
                Ok(n) => {
                    done += n;
                    *written += n as u64;
                }
                Err(Errno::BUSY) if tries < TRIES => tries += 1,
                Err(Errno::BUSY) => {
                    let range = at..offset + data.len() as u64;
                    let pages = self.cached(&range)?;
                    return Err(NotDetached::Cached { range, pages, tries });
                }
                Err(Errno::OPNOTSUPP) => {
                    return Err(NotDetached::unsupported("RWF_DETACH")(Errno::OPNOTSUPP));
                }
                Err(e) => return Err(NotDetached::io("pwritev2", at)(e)),
            }
        }
        Ok(())
    }
}

/// Whether a page of this file that a pipe refers to stays as it is under a write with the flag, and
/// (the control, without which that shows nothing) changes under one without.
fn shows(file: BorrowedFd<'_>) -> Result<bool, Errno> {
    let len = usize::try_from(page()).map_err(|_| Errno::INVAL)?;
    let refers = |old: u8, new: u8, flags| {
        put(file, &vec![old; len], 0, ReadWriteFlags::empty())?;
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let put_in =
            rustix::pipe::splice(file, Some(&mut 0), &writer, None, len, SpliceFlags::empty());
        let written = put(file, &vec![new; len], 0, flags)?;
        let (mut seen, mut now) = (vec![0; len], vec![0; len]);
        let whole = put_in? == len
            && written == len
            && rustix::io::read(&reader, &mut seen)? == len
            && rustix::io::pread(file, &mut now, 0)? == len
            && now.iter().all(|byte| *byte == new);
        Ok::<_, Errno>((whole, seen))
    };
    let (whole, seen) = refers(1, 2, RWF_DETACH)?;
    let (control_whole, control) = refers(3, 4, ReadWriteFlags::empty())?;
    Ok(whole
        && control_whole
        && seen.iter().all(|byte| *byte == 1)
        && control.iter().all(|byte| *byte == 4))
}

fn put(
    file: BorrowedFd<'_>,
    data: &[u8],
    offset: u64,
    flags: ReadWriteFlags,
) -> Result<usize, Errno> {
    retry_on_intr(|| rustix::io::pwritev2(file, &[IoSlice::new(data)], offset, flags))
}
