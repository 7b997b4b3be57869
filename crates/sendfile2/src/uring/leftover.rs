//! The rest of a synchronous send whose deadline passed: a ring on which notifications are due.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::error::Error;
use crate::holder::{CompletionSource, Held, InFlight};
use crate::park::Interest;
use crate::reaper::Reaper;
use crate::sys::uring::{Queues, Ring};
use crate::trace;

#[derive(Debug)]
struct Leftover {
    ring: Arc<Ring>,
    queues: Mutex<Queues<u64>>,
    since: Instant,
}

/// Lets the reaper wait for what is due. It has no socket, and aborts nothing: that is its owner's.
pub(super) fn hand_over(queues: Queues<u64>) {
    let ring = Arc::clone(queues.ring());
    let leftover = Leftover { ring, queues: Mutex::new(queues), since: Instant::now() };
    match Reaper::start() {
        Ok(reaper) => reaper.adopt(Arc::new(leftover), None),
        Err(e) => {
            // Nothing is freed by it; only nobody can say how much is due.
            trace::error!("{e}: notifications of a synchronous send will not be read");
            std::mem::forget(leftover);
        }
    }
}

impl CompletionSource for Leftover {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }

    fn readiness(&self) -> Interest {
        Interest::Readable
    }

    fn reap(&self) -> Result<usize, Error> {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let mut count = 0;
        while let Some(event) = queues.next_event() {
            event?;
            count += 1;
        }
        Ok(count)
    }

    fn abort(&self) -> Result<(), Error> {
        Ok(())
    }

    fn in_flight(&self) -> InFlight {
        let queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let sends = queues.len();
        let oldest = (sends > 0).then(|| self.since.elapsed());
        InFlight { bytes: queues.all_kept().sum(), sends, oldest }
    }

    fn holds(&self, _which: &dyn Fn(&Held) -> bool) -> bool {
        false
    }

    fn peer(&self) -> Option<SocketAddr> {
        None
    }

    fn orphan(&self) {}
}
