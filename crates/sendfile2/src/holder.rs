//! What holds things for the kernel: a connection with sends in flight.

use std::any::Any;
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use crate::error::Error;
use crate::park::Interest;

/// Something that has sends in flight and can be asked about them: a connection, or a driver.
///
/// A lease and the reaper know their holders by this. It is more than a closure to abort with:
/// whoever waits for a release must be able to read it, or a single-threaded program would wait
/// for what only itself could read.
pub(crate) trait Holder: std::fmt::Debug + Send + Sync {
    /// The descriptor that becomes ready when there may be something to reap. No other holder has
    /// the same one.
    fn as_fd(&self) -> BorrowedFd<'_>;
    /// How it becomes ready.
    fn readiness(&self) -> Interest;
    /// Reads completions and lets go of what they release. Never blocks. Returns how many
    /// messages were read.
    fn reap(&self) -> Result<usize, Error>;
    /// Lets go what is held back for more to follow, since somebody waits for its release;
    /// nothing where an acknowledgement lets it go, as it does with `MSG_MORE` alone.
    fn flush(&self) {}
    /// Ends the connection at once. Frees nothing by itself.
    fn abort(&self) -> Result<(), Error>;
    /// Sends that are still in flight.
    fn in_flight(&self) -> InFlight;
    /// Whether a send in flight holds what `which` says yes to. It is called under a lock.
    fn holds(&self, which: &dyn Fn(&Held) -> bool) -> bool;
    /// Where the bytes go, if it has an address.
    fn peer(&self) -> Option<std::net::SocketAddr>;
    /// Says that nobody but the reaper looks after this any more: shuts down writing, so that the
    /// peer sees the end.
    fn orphan(&self);
}

/// What is in flight on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct InFlight {
    /// Bytes handed to the kernel by zerocopy sends and not released.
    pub bytes: u64,
    /// Zerocopy sends that are not released.
    pub sends: usize,
    /// How long ago the oldest of them was made.
    pub oldest: Option<std::time::Duration>,
}

/// Anything a send holds. It is let go of by dropping it, when the kernel has released the send.
pub(crate) type Held = Arc<dyn Any + Send + Sync>;

/// Runs strangers' code (destructors, hooks, who listens to traces) piece by piece: one that panics
/// keeps no other piece from its turn.
#[derive(Debug, Default)]
pub(crate) struct Apart(Option<Box<dyn Any + Send>>);

impl Apart {
    pub(crate) fn run(&mut self, piece: impl FnOnce()) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(piece)) {
            self.0.get_or_insert(panic);
        }
    }

    /// Lets the first panic go on, unless the thread panics already.
    pub(crate) fn resume(self) {
        if let Some(panic) = self.0.filter(|_| !std::thread::panicking()) {
            resume_unwind(panic);
        }
    }
}
