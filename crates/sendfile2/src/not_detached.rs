//! The reasons why a range could not be detached.

use std::io;
use std::ops::Range;

use rustix::io::Errno;

/// The reason why a range could not be detached. No byte of the file
/// was changed by this (its times may have, since old bytes are rewritten), but by
/// [`Eraser::erase`](crate::detach::Eraser::erase).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotDetached {
    /// The file cannot be opened for direct I/O: its filesystem has none (tmpfs, ext4 with
    /// `data=journal`), or it may not be written.
    #[error(
        "the file cannot be opened for direct I/O, which takes pages out of the cache: {cause}"
    )]
    NoDirect {
        /// The operating system's error.
        #[source]
        cause: io::Error,
    },
    /// Neither `cachestat(2)` nor `mincore(2)` showed a page that had just been read.
    #[error(
        "the page cache cannot be asked: neither cachestat nor mincore showed a page that had just \
         been read"
    )]
    NoProof,
    /// The last page of the file has less in it than direct I/O can write.
    #[error(
        "the file ends {bytes} bytes into its last page, and direct I/O writes {unit} at least: make \
         its size a multiple of {unit}"
    )]
    End {
        /// The bytes of the file that its last page has.
        bytes: u64,
        /// The least that direct I/O writes, in bytes.
        unit: u64,
    },
    /// Pages came back, or stayed.
    #[error(
        "{pages} pages of bytes {}..{} were still in the page cache after {tries} tries: is a \
         program storing to them, or does the filesystem keep them (btrfs with checksums)?",
        range.start, range.end
    )]
    Cached {
        /// The range, in bytes of the file.
        range: Range<u64>,
        /// The pages that were cached.
        pages: u64,
        /// How often it was tried.
        tries: u32,
    },
    /// The kernel would have to wait before it writes, and none of the pages is cached, or was any more
    /// when that was asked. XFS does where the file's time of modification is to be changed.
    #[error(
        "the kernel did not write bytes {}..{} without waiting in {tries} tries, though none of their \
         pages is in the page cache: on XFS a program that asks for the file's times all the while \
         (stat) may be the reason; try again, or stop it meanwhile",
        range.start, range.end
    )]
    WouldWait {
        /// The range, in bytes of the file.
        range: Range<u64>,
        /// How often it was tried.
        tries: u32,
    },
    /// The time was over before this was reached. What was detached before stays so.
    #[error("bytes {}..{} could not be detached in time", range.start, range.end)]
    Deadline {
        /// The rest of the range, in bytes of the file.
        range: Range<u64>,
    },
    /// The range is not made of whole units.
    #[error("bytes {}..{} are not whole units of {unit} bytes", range.start, range.end)]
    Unaligned {
        /// The range, in bytes of the file.
        range: Range<u64>,
        /// The unit, in bytes.
        unit: u64,
    },
    /// The range reaches behind the end of the file: there is nothing to overwrite.
    #[error("bytes {}..{} reach behind the end of the file at {size}", range.start, range.end)]
    BehindEnd {
        /// The range, in bytes of the file.
        range: Range<u64>,
        /// The size of the file, in bytes.
        size: u64,
    },
    /// The kernel or the filesystem does not offer what this needs.
    #[error("{op} is not supported on this file: {cause}")]
    Unsupported {
        /// The system call.
        op: &'static str,
        /// The operating system's error.
        #[source]
        cause: io::Error,
    },
    /// A system call failed: a disk error, or a full disk, for example.
    #[error("{op} failed at byte {offset}: {cause}")]
    Io {
        /// The system call.
        op: &'static str,
        /// The file offset, in bytes.
        offset: u64,
        /// The operating system's error.
        #[source]
        cause: io::Error,
    },
}

/// Errors by which the kernel, the filesystem or a filter says that it does not offer something, or
/// forbids it, or that there is no `/proc`.
const LASTING: [Errno; 15] = [
    Errno::OPNOTSUPP,
    Errno::NOSYS,
    Errno::INVAL,
    Errno::PERM,
    Errno::ACCESS,
    Errno::ROFS,
    Errno::NODEV,
    Errno::NOTTY,
    Errno::XDEV,
    Errno::STALE,
    Errno::NOENT,
    Errno::NOTDIR,
    Errno::ISDIR,
    Errno::LOOP,
    Errno::NXIO,
];

impl NotDetached {
    pub(crate) fn io(op: &'static str, offset: u64) -> impl FnOnce(Errno) -> NotDetached {
        move |e| NotDetached::Io { op, offset, cause: e.into() }
    }

    pub(crate) fn unsupported(op: &'static str) -> impl FnOnce(Errno) -> NotDetached {
        move |e| NotDetached::Unsupported { op, cause: e.into() }
    }

    /// The operating system's error beneath, where there is one.
    #[must_use]
    pub fn io_error(&self) -> Option<&io::Error> {
        match self {
            NotDetached::NoDirect { cause }
            | NotDetached::Unsupported { cause, .. }
            | NotDetached::Io { cause, .. } => Some(cause),
            _ => None,
        }
    }

    /// Whether another try may come to something else.
    pub(crate) fn is_for_now(&self) -> bool {
        matches!(
            self,
            NotDetached::Cached { .. }
                | NotDetached::WouldWait { .. }
                | NotDetached::Deadline { .. }
        )
    }

    /// Whether it may be otherwise later, with the file as it is: the disk or a quota is full, there
    /// is no descriptor or no memory, or whatever else is no answer to whether it can be done.
    pub(crate) fn is_passing(&self) -> bool {
        let errno = self.io_error().and_then(Errno::from_io_error);
        errno.is_some_and(|errno| !LASTING.contains(&errno))
    }
}
