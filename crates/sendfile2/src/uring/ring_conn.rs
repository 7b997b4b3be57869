//! A socket of a driver, as those who wait for its completions know it.

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use rustix::event::epoll;

use super::shared::Shared;
use crate::error::Error;
use crate::holder::{CompletionSource, Held, InFlight, Link, Waitable};
use crate::park::{Interest, Wakers};
use crate::queued::Failure;
use crate::socket::acknowledged::{self, Acknowledgement};
use crate::socket::endpoint::Endpoint;
use crate::sync::lock;
use crate::trace;

/// A socket of a driver as leases, tickets and the reaper know it, with a descriptor of its own of
/// the ring.
pub(super) struct RingConn {
    pub(super) shared: Arc<Shared>,
    pub(super) index: usize,
    pub(super) ring: OwnedFd,
    pub(super) endpoint: Arc<Endpoint>,
    /// For its tickets.
    pub(super) link: Arc<Link>,
}

impl RingConn {
    pub(super) fn is_drained(&self) -> bool {
        lock(&self.shared.state).lane(self.index).is_drained()
    }

    /// Ends the stream after what is queued.
    pub(super) fn end(&self) {
        if !self.shared.is_ours() {
            return;
        }
        let mut deferred = Vec::new();
        let mut state = lock(&self.shared.state);
        let lane = state.lane(self.index);
        lane.ending = true;
        state.ready.push_back(self.index);
        state.begin(&mut deferred);
        drop(state);
        self.shared.finish(deferred, None);
    }
}

impl fmt::Debug for RingConn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Socket");
        debug.field("cookie", &self.endpoint.cookie()).field("kind", &self.endpoint.kind());
        if self.shared.is_ours() {
            debug.field("in_flight", &CompletionSource::in_flight(self));
        }
        debug.finish_non_exhaustive()
    }
}

impl CompletionSource for RingConn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }

    fn readiness(&self) -> Interest {
        Interest::Readable
    }

    fn reap(&self) -> Result<usize, Error> {
        self.shared.reap(None)
    }

    fn abort(&self) -> Result<(), Error> {
        self.shared.ours()?;
        let mut deferred = Vec::new();
        let mut state = lock(&self.shared.state);
        let lane = state.lane(self.index);
        if lane.account.aborted {
            return Ok(());
        }
        // What is acknowledged by now stays so.
        let _ = acknowledged::look(&self.endpoint, &lane.account, &self.link.acknowledged);
        let parts = lane.parts;
        let aborted = lane.abort();
        state.ready.push_back(self.index);
        state.begin(&mut deferred);
        drop(state);
        self.shared.finish(deferred, None);
        trace::debug!(cookie = self.endpoint.cookie(), parts, "abort");
        aborted
    }

    fn in_flight(&self) -> InFlight {
        if !self.shared.is_ours() {
            return InFlight::default();
        }
        let mut state = lock(&self.shared.state);
        let parts = state.queues.all_kept().filter(|part| part.lane == self.index);
        let oldest = parts.map(|part| part.at).min().map(|at| at.elapsed());
        let lane = state.lane(self.index);
        InFlight { bytes: lane.account.bytes + lane.queued(), sends: lane.sends(), oldest }
    }

    fn holds(&self, which: &dyn Fn(&Held) -> bool) -> bool {
        let mut state = lock(&self.shared.state);
        let parts = state.queues.all_kept().filter(|part| part.lane == self.index);
        let mut held = parts.filter_map(|part| part.held.as_ref());
        if held.any(which) {
            return true;
        }
        drop(held);
        let queue = &state.lane(self.index).queue;
        queue.iter().filter_map(|job| job.held.as_ref()).any(which)
    }

    fn peer(&self) -> Option<SocketAddr> {
        self.endpoint.peer()
    }

    fn orphan(&self) {
        self.endpoint.orphan();
        self.end();
    }
}

impl Waitable for RingConn {
    fn ours(&self) -> Result<(), Error> {
        self.shared.ours()
    }

    fn is_unknown(&self) -> bool {
        self.endpoint.is_orphaned()
    }

    fn wakers(&self) -> &Mutex<Wakers> {
        &self.shared.wakers
    }

    fn reap_as(&self, key: Option<u64>) -> Result<usize, Error> {
        self.shared.reap(key)
    }

    /// While a send is being answered the socket has accepted more than is known here, so that
    /// fewer bytes seem acknowledged.
    fn acknowledgement(&self, end: u64) -> Result<Acknowledgement, Error> {
        self.shared.ours()?;
        let mut state = lock(&self.shared.state);
        let account = &state.lane(self.index).account;
        acknowledged::ask(&self.endpoint, account, &self.link.acknowledged, end)
    }
}

impl Drop for RingConn {
    fn drop(&mut self) {
        // A fork has the same epoll instance, and must leave it alone.
        if !self.shared.is_ours() {
            return;
        }
        let mut deferred = Vec::new();
        let mut state = lock(&self.shared.state);
        // Somebody may have a duplicate. It fails only if it was not added.
        let _ = epoll::delete(&state.epoll, &self.endpoint);
        let lane = state.lane(self.index);
        lane.gone = true;
        if !lane.is_drained() {
            // Its hand-over has failed. Nothing more of it is sent, which the peer sees as a reset;
            // what is in flight stays held.
            lane.ending = true;
            if !lane.queue.is_empty() {
                lane.failed = lane.failed.or(Some(Failure::Aborted));
            }
            state.begin_one(self.index, &mut Vec::new(), &mut deferred);
        }
        state.bury(self.index, &mut deferred);
        drop(state);
        self.shared.finish(deferred, None);
    }
}
