//! The state that a driver, its sockets and its tickets share: the ring, and the lock around the
//! state.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::state::{Deferred, State};
use crate::apart::Apart;
use crate::deadline::Deadline;
use crate::error::Error;
use crate::park::Wakers;
use crate::sync::lock;
use crate::sys::process::Process;
use crate::sys::uring::Ring;

/// The state that a driver, its sockets and its tickets share.
pub(super) struct Shared {
    pub(super) ring: Arc<Ring>,
    pub(super) state: Mutex<State>,
    pub(super) wakers: Mutex<Wakers>,
    pub(super) process: Process,
}

impl Shared {
    pub(super) fn is_ours(&self) -> bool {
        self.process.is_current()
    }

    /// Fails in a forked child. A fork shares the ring's memory with its parent; and the lock may
    /// be one that a thread of the parent's had when it forked.
    pub(super) fn ours(&self) -> Result<(), Error> {
        if self.is_ours() { Ok(()) } else { Err(Error::Forked) }
    }

    pub(super) fn enter(&self, want: usize, timeout: Duration) -> Result<(), Error> {
        self.ring.enter(want, timeout).map_err(Error::wait("io_uring_enter"))
    }

    pub(super) fn submit(&self) -> Result<(), Error> {
        self.ours()?;
        let mut deferred = Vec::new();
        let result = loop {
            let mut state = lock(&self.state);
            let all = state.begin(&mut deferred);
            let pending = state.queues.is_pending();
            drop(state);
            if pending {
                if let Err(e) = self.enter(0, Duration::ZERO) {
                    break Err(e);
                }
            }
            // If nothing is pending it is the ring's size that is in the way.
            if all || !pending {
                break Ok(());
            }
        };
        self.finish(deferred, None);
        result
    }

    /// Reads completions, and goes on with what is queued; a waiter with `key` is not woken.
    pub(super) fn reap(&self, key: Option<u64>) -> Result<usize, Error> {
        self.ours()?;
        let mut deferred = Vec::new();
        let mut state = lock(&self.state);
        let count = state.take(&mut deferred);
        let all = state.begin(&mut deferred);
        let stray = state.stray.take();
        drop(state);
        // First: who is woken by what was read finds it done.
        self.finish(deferred, key);
        let mut state = lock(&self.state);
        if state.counting {
            // The driver counts what was taken here.
            let taken = state.queues.taken();
            state.queues.no_ops(taken);
        }
        let pending = state.queues.is_pending();
        drop(state);
        if pending {
            self.enter(0, Duration::ZERO)?;
        }
        if !all && pending {
            self.submit()?;
        }
        stray.map_or(Ok(count), |stray| Err(stray.into()))
    }

    pub(super) fn wait_counting(
        &self,
        completions: usize,
        deadline: Deadline,
    ) -> Result<usize, Error> {
        let first = self.take()?;
        let mut deferred = Vec::new();
        let mut state = lock(&self.state);
        let all = state.begin(&mut deferred);
        state.queues.taken();
        state.counting = true;
        // Each of those under way has at least one completion to come.
        let want = completions.saturating_sub(first).min(state.queues.len());
        let pending = state.queues.is_pending();
        drop(state);
        self.finish(deferred, None);
        let left = deadline.remaining();
        let mut result = Ok(());
        if !all && pending {
            result = self.submit();
        }
        if pending || want > 0 {
            result = result.and_then(|()| self.enter(want, left));
        }
        lock(&self.state).counting = false;
        result?;
        Ok(first + self.take()?)
    }

    /// Reads the completions that are there.
    pub(super) fn take(&self) -> Result<usize, Error> {
        self.ours()?;
        let mut deferred = Vec::new();
        let mut state = lock(&self.state);
        let count = state.take(&mut deferred);
        let stray = state.stray.take();
        drop(state);
        self.finish(deferred, None);
        stray.map_or(Ok(count), |stray| Err(stray.into()))
    }

    /// Does what was put off until nothing is locked, and wakes who waits but for `key`.
    pub(super) fn finish(&self, deferred: Vec<Deferred>, key: Option<u64>) {
        if deferred.is_empty() {
            return;
        }
        // A destructor that panics must not keep the others from what is due to them.
        let mut apart = Apart::default();
        for deferred in deferred {
            match deferred {
                Deferred::Released { held, progress, copied } => {
                    // First the hold, then the ticket: who sees "released" finds the range free.
                    apart.run(|| drop(held));
                    progress.pending().part_released(copied);
                }
                Deferred::Over { job, failure } => {
                    let progress = Arc::clone(&job.progress);
                    apart.run(|| drop(job));
                    progress.finish(failure);
                }
                Deferred::Answered(answered) => drop(answered),
                Deferred::Gone(endpoint) => drop(endpoint),
            }
        }
        let wakers = lock(&self.wakers).all(key);
        for waker in wakers {
            waker.wake();
        }
        apart.resume();
    }
}
