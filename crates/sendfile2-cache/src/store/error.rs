//! The errors of a store.

use std::io;
use std::path::PathBuf;

/// The reasons for which a store does not open, or does not store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The file is something else, or damaged; it was not changed.
    #[error("{} is not a store of this version, and was not touched: {why}", path.display())]
    NotAStore {
        /// The file.
        path: PathBuf,
        /// The bytes that it has instead.
        why: String,
    },
    /// Another process has the store open.
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// The sizes asked for do not make a store.
    #[error("no store can have such sizes: {0}")]
    Sizes(String),
    /// The response is larger than what this store takes.
    #[error("a response of {length} bytes is too large: this store takes {most}")]
    TooLarge {
        /// The length that it would have, with its head.
        length: u64,
        /// The most that it may have.
        most: u64,
    },
    /// The response is wanted for the first time, and is stored at the second.
    #[error("not stored at the first request")]
    NotAdmitted,
    /// Each region is being filled by somebody.
    #[error("no region is free now")]
    Full,
    /// The response was given up before its end.
    #[error("the response ended before it was complete")]
    Abandoned,
    /// The response has more or fewer bytes than it was to have.
    #[error("the response has not the {expected} bytes that it was to have")]
    WrongLength {
        /// The length that it was begun with.
        expected: u64,
    },
    /// A ban that was given meanwhile hits the response.
    #[error("the response was banned while it was being stored")]
    Banned,
    /// There is nothing of that key.
    #[error("nothing is stored under this key")]
    Absent,
    /// The bans that are still needed fill the room for them; [`Ban::All`](super::Ban::All) frees it.
    #[error("too many bans are in force: ban all")]
    TooManyBans,
    /// The file cannot be read or written.
    #[error("{op}: {cause}")]
    Io {
        /// The call that failed.
        op: &'static str,
        /// The reason.
        cause: io::Error,
    },
    /// The guarded file cannot be written.
    #[error(transparent)]
    Guard(#[from] sendfile2::Error),
}

impl StoreError {
    pub(super) fn io<E: Into<io::Error>>(op: &'static str) -> impl Fn(E) -> Self {
        move |cause| StoreError::Io { op, cause: cause.into() }
    }
}

/// Something that is not done, since it may take waiting for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it may take waiting for the disk")]
pub struct MayWait;
