//! The driver: one ring for the sends of many sockets.
//!
//! What is queued on a socket is sent in order, and one send at a time: a socket has at most one
//! whose result is not known. So a batch is made of sends on different sockets, and costs one
//! system call.
//!
//! No request waits in the kernel on a socket, where it would keep the socket open after the death
//! of the process, and so the reset away that protects leased ranges. Who waits for room is an
//! epoll set, which keeps nothing open, and on which the ring waits.
//!
//! The state is behind one lock, which no wait holds. Whoever reads completions (the driver, a
//! ticket's wait, a writer that the range is in the way of, the reaper) also goes on with what is
//! queued, so that a single thread never waits for what only itself could send. Values are dropped
//! and waiters woken after unlocking.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, Weak};

use rustix::event::epoll;
use slab::Slab;

use super::lane::Lane;
use super::ring_conn::RingConn;
use super::shared::Shared;
use super::socket::Socket;
use super::state::State;
use super::{available, part};
use crate::deadline::Deadline;
use crate::error::Error;
use crate::holder::Link;
use crate::mtu;
use crate::park::Mark;
use crate::reaper::Reaper;
use crate::refusal::Refusal;
use crate::socket::endpoint::Endpoint;
use crate::sync::lock;
use crate::sys::process::Process;
use crate::sys::uring::Size;

/// A ring for the sends of many sockets.
///
/// [`add`](Self::add) a socket, queue sends on it, and [`wait`](Self::wait): that submits what is
/// queued on all sockets and sleeps until so many completions are there, by one system call.
///
/// For an event loop [`AsFd`] lends the ring's descriptor, which is readable when there are
/// completions: then [`reap`](Self::reap), and after queueing sends [`submit`](Self::submit).
/// (epoll takes it as it is; give tokio's `AsyncFd` a duplicate, with interest in reading.) The
/// sockets themselves report nothing on their error queues, so that their readiness stays what it
/// was.
///
/// Dropping the driver does nothing to its sockets: what is queued and in flight on them is sent
/// and released as before, by whoever waits for one of their tickets, and by the reaper for those
/// that are dropped.
///
/// A forked child can do nothing with its parent's driver ([`Error::Forked`]), and may drop it.
pub struct Driver {
    pub(super) shared: Arc<Shared>,
}

impl Driver {
    /// Makes a ring.
    ///
    /// # Errors
    /// [`Error::Refused`] with [`Refusal::IoUring`] where `io_uring` cannot be used;
    /// [`Error::Wait`] if there are no descriptors for it.
    pub fn new() -> Result<Self, Error> {
        let queues = available::ring(Size::LARGE)?;
        let ring = Arc::clone(queues.ring());
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC);
        let epoll = Arc::new(epoll.map_err(Error::wait("epoll_create1"))?);
        Ok(Driver {
            shared: Arc::new(Shared {
                ring,
                state: Mutex::new(State {
                    queues,
                    lanes: Slab::new(),
                    ready: VecDeque::new(),
                    counting: false,
                    epoll,
                    mark: Mark::new(),
                    polling: false,
                    blocked: 0,
                    most: None,
                    stray: None,
                }),
                wakers: Mutex::default(),
                process: Process::current(),
            }),
        })
    }

    /// Takes `socket`, a connected stream socket, in blocking mode or not. Nobody else must send on
    /// it.
    ///
    /// # Errors
    /// [`Error::Refused`] for a socket with record boundaries, or where TCP may probe for a larger
    /// MTU ([`Refusal::MtuProbing`], [`Refusal::OtherNamespace`]); [`Error::AlreadyOwned`];
    /// [`Error::Socket`] if it is no socket, or no descriptor is left; [`Error::Wait`] if the
    /// reaper cannot be started. The socket is then closed.
    pub fn add(&self, socket: impl Into<OwnedFd>) -> Result<Socket, Error> {
        self.shared.ours()?;
        let reaper = Reaper::start()?;
        let endpoint = Arc::new(Endpoint::new(socket.into())?);
        let kind = endpoint.kind();
        if kind.records() {
            return Err(part::refused(Refusal::Socket("io_uring serves stream sockets only")));
        }
        mtu::no_mtu_probes(kind, endpoint.as_fd()).map_err(part::refused)?;
        // Now, and not at the hand-over, where there may be none left.
        let ring = self.shared.ring.as_fd().try_clone_to_owned();
        let ring = ring.map_err(|cause| Error::Socket { op: "dup", cause })?;
        let mut state = lock(&self.shared.state);
        let index = state.lanes.insert(Lane::new(Arc::clone(&endpoint)));
        let flags = epoll::EventFlags::OUT | epoll::EventFlags::ET;
        let key = state.mark.with(index as u64);
        let watched = epoll::add(&state.epoll, &endpoint, key, flags);
        drop(state);
        // From here on it is undone by dropping it.
        let conn = Arc::new_cyclic(|conn: &Weak<RingConn>| RingConn {
            shared: Arc::clone(&self.shared),
            index,
            ring,
            endpoint,
            link: Link::new(conn.clone()),
        });
        watched.map_err(Error::wait("epoll_ctl"))?;
        Ok(Socket::new(conn, reaper))
    }

    /// Gives the kernel what is queued, as far as it may have it yet, without waiting: one system
    /// call for up to 128 sockets.
    ///
    /// # Errors
    /// [`Error::Wait`] if `io_uring_enter(2)` fails.
    pub fn submit(&mut self) -> Result<(), Error> {
        self.shared.submit()
    }

    /// Gives the kernel what is queued, as [`submit`](Self::submit), sleeps until `completions` are
    /// there (or those of all sends under way, if these are fewer), and reads them; all by one
    /// system call. Returns how many there were, which may be any number: fewer at the `deadline`,
    /// or for a signal, or where another thread has read them.
    ///
    /// A send has two completions, its result and its notification.
    ///
    /// # Errors
    /// [`Error::Wait`]; as [`reap`](Self::reap).
    pub fn wait(
        &mut self,
        completions: usize,
        deadline: impl Into<Deadline>,
    ) -> Result<usize, Error> {
        let deadline = deadline.into();
        self.shared.wait_counting(completions, deadline)
    }

    /// Sends that are queued or in flight, over all sockets, as far as the completions read so far
    /// say; 0 in a forked child.
    #[must_use]
    pub fn under_way(&self) -> usize {
        if !self.shared.is_ours() {
            return 0;
        }
        lock(&self.shared.state).lanes.iter().map(|(_, lane)| lane.sends()).sum()
    }

    /// Reads the completions that are there, drops what they release, and gives the kernel
    /// what is queued behind them. Never blocks. Returns how many there were.
    ///
    /// # Errors
    /// [`Error::Stray`] if the ring completes what nobody had asked for; [`Error::Wait`].
    pub fn reap(&self) -> Result<usize, Error> {
        self.shared.reap(None)
    }
}

impl AsFd for Driver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.ring.as_fd()
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("ring", &self.shared.ring).finish_non_exhaustive()
    }
}
