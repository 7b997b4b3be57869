//! The traits of a completion source: of something that has sends in flight, and can be asked for
//! their release.

use std::any::Any;
use std::ops::Deref;
use std::os::fd::BorrowedFd;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, Weak};
use std::task::Waker;

use crate::error::Error;
use crate::park::{Interest, Wakers};
use crate::socket::acknowledged::Acknowledgement;
use crate::sync::lock;

/// Something that has sends in flight and can be asked for their release: a connection, a socket of a
/// driver, or the ring that a synchronous send left.
///
/// A writer finds by it the sends that keep a lease, and reads their completions itself: in a
/// program of one thread nobody else would. The reaper drains what it adopts by it.
pub(crate) trait CompletionSource: std::fmt::Debug + Send + Sync {
    /// The descriptor that becomes ready when there may be something to reap. No other source has
    /// the same one.
    fn as_fd(&self) -> BorrowedFd<'_>;
    /// The readiness that means that there may be completions.
    fn readiness(&self) -> Interest;
    /// Reads completions and drops what they release. Never blocks. Returns how many
    /// messages were read.
    fn reap(&self) -> Result<usize, Error>;
    /// Sends what is held back for more to follow, since somebody waits for its release; does
    /// nothing where the next acknowledgement sends it, as it does with `MSG_MORE` alone.
    fn flush(&self) {}
    /// Ends the connection at once. Frees nothing by itself.
    fn abort(&self) -> Result<(), Error>;
    /// Sends that are still in flight; none in a fork, which knows of none, and waits for no lock.
    fn in_flight(&self) -> InFlight;
    /// Whether a send in flight holds what `which` says yes to. It is called under a lock.
    fn holds(&self, which: &dyn Fn(&Held) -> bool) -> bool;
    /// Where the bytes go, if it has an address.
    fn peer(&self) -> Option<std::net::SocketAddr>;
    /// Says that nobody but the reaper looks after this any more: shuts down writing, so that the
    /// peer sees the end.
    fn orphan(&self);
}

/// A source of completions that a ticket can wait for.
pub(crate) trait Waitable: CompletionSource {
    /// Fails in a fork of the process that made it.
    fn ours(&self) -> Result<(), Error>;
    /// Returns whether what is in flight may never be accounted for, as far as anybody can say now.
    fn is_unknown(&self) -> bool;
    /// The error that makes waiting for completions pointless.
    fn check(&self) -> Result<(), Error> {
        Ok(())
    }
    /// Reads the error of the socket.
    fn socket_error(&self) -> Result<(), Error> {
        Ok(())
    }
    /// Those that are woken when completions were read.
    fn wakers(&self) -> &Mutex<Wakers>;
    /// As [`reap`](CompletionSource::reap), by a waiter that is registered with `key` and need not
    /// be woken.
    fn reap_as(&self, key: Option<u64>) -> Result<usize, Error>;
    /// Whether the peer has acknowledged the first `end` bytes that were accepted.
    fn acknowledgement(&self, end: u64) -> Result<Acknowledgement, Error>;
    /// Whether acknowledgements make its descriptor ready.
    fn acknowledgements_wake(&self) -> bool {
        false
    }
}

/// The part of a connection that its tickets know; it outlives the connection.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) source: Weak<dyn Waitable>,
    /// Bytes that the peer is known to have acknowledged, of those the connection had accepted.
    pub(crate) acknowledged: AtomicU64,
}

impl Link {
    pub(crate) fn new(source: Weak<dyn Waitable>) -> Arc<Self> {
        Arc::new(Link { source, acknowledged: AtomicU64::new(0) })
    }
}

/// A place in the list of those who are woken when completions were read; dropping it ends that.
pub(crate) struct Registered<S>
where
    S: Deref,
    S::Target: Waitable,
{
    source: S,
    key: u64,
}

impl<S> Registered<S>
where
    S: Deref,
    S::Target: Waitable,
{
    pub(crate) fn new(source: S, waker: Waker) -> Self {
        let key = lock(source.wakers()).insert(waker);
        Registered { source, key }
    }

    /// Reads completions; whoever is registered here looks at what has changed before it waits.
    pub(crate) fn reap(&self) -> Result<usize, Error> {
        self.source.reap_as(Some(self.key))
    }
}

impl<S> Drop for Registered<S>
where
    S: Deref,
    S::Target: Waitable,
{
    fn drop(&mut self) {
        lock(self.source.wakers()).remove(self.key);
    }
}

/// The sends in flight, of one connection or of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct InFlight {
    /// Bytes handed to the kernel by zerocopy sends and not released.
    pub bytes: u64,
    /// Zerocopy sends that are not released.
    pub sends: usize,
    /// The age of the oldest of them.
    pub oldest: Option<std::time::Duration>,
}

/// Anything that a send holds. It is dropped when the kernel has released the send.
pub(crate) type Held = Arc<dyn Any + Send + Sync>;
