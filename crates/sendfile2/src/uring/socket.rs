//! A socket of a driver: what its owner queues on it.

use std::fmt;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::lane::{FileSend, QueuedSend, SendFrom};
use super::part::{self, Op};
use super::ring_conn::RingConn;
use crate::apart::Apart;
use crate::deadline::Deadline;
use crate::engine::{Choice, Engine, Reason};
use crate::error::Error;
use crate::flags::SendFlags;
use crate::guard::Lease;
use crate::holder::{CompletionSource, Held, InFlight};
use crate::queued::QueuedProgress;
use crate::reaper::Reaper;
use crate::refusal::Refusal;
use crate::socket::account::Counters;
use crate::source::Source;
use crate::sync::lock;
use crate::ticket::Ticket;
use crate::wait;

/// A socket of a [`Driver`](super::Driver). It owns the socket.
///
/// A send that ends early ends the stream: what is queued behind it ends with the same error, and
/// so does every later send, since bytes are missing before it.
///
/// Dropping it hands over to the [reaper](crate::reaper) what is queued or in flight, unless that
/// is nothing: the peer gets everything, and then the end of the stream (a reset, if a send ended
/// early); what is left after [the limit](Self::set_linger) is aborted.
pub struct Socket {
    pub(super) conn: Arc<RingConn>,
    linger: Duration,
    reaper: &'static Reaper,
}

impl Socket {
    pub(super) fn new(conn: Arc<RingConn>, reaper: &'static Reaper) -> Self {
        Socket { conn, linger: Duration::from_secs(60), reaper }
    }

    /// Queues `range` of the file, all of it.
    ///
    /// It is sent from [`Driver::submit`](super::Driver::submit) or
    /// [`Driver::wait`](super::Driver::wait) on, by parts of at most 1 MiB, and goes on whenever
    /// somebody reads completions. The bytes are those that the file has then.
    ///
    /// # Errors
    /// [`Error::Refused`] if the file is never mapped; why an earlier send ended early, if one did;
    /// [`Error::Aborted`]. What is found later, the ticket says.
    pub fn queue_file(
        &mut self,
        file: &Source,
        range: Range<u64>,
        flags: SendFlags,
    ) -> Result<Ticket, Error> {
        let from = FileSend { file: file.clone(), start: range.start, extent: None, lease: None };
        self.queue_range(from, range, None, flags.more())
    }

    /// As [`queue_file`](Self::queue_file), from a range under `lease`: it stays leased until the
    /// kernel has released it or a writer has detached it, whatever happens to the lease's handles,
    /// the ticket, this socket and the driver. What a writer overwrites before it was sent is sent as
    /// it was. Where the file cannot be detached, the death of the process resets the connection
    /// while it is in flight, unless another process has the socket, too (see
    /// [`Options::reset_on_exit`](crate::Options::reset_on_exit)).
    ///
    /// # Errors
    /// As [`queue_file`](Self::queue_file); [`Error::NotLeased`]; [`Error::File`].
    pub fn queue_lease(
        &mut self,
        lease: &Lease,
        range: Range<u64>,
        flags: SendFlags,
    ) -> Result<Ticket, Error> {
        lease.ours()?;
        if !lease.covers(&range) {
            return Err(Error::NotLeased { range });
        }
        let from = FileSend {
            file: lease.source().clone(),
            start: range.start,
            extent: Some(lease.extent(&range)?),
            lease: Some(lease.queue()),
        };
        let held = Some((lease.hold(&self.conn), !lease.detaches(&range)));
        self.queue_range(from, range, held, flags.more())
    }

    fn queue_range(
        &mut self,
        from: FileSend,
        range: Range<u64>,
        held: Option<(Held, bool)>,
        more: bool,
    ) -> Result<Ticket, Error> {
        if let Some(why) = from.file.unmappable() {
            return Err(part::refused(Refusal::File(why)));
        }
        let len = range.end.saturating_sub(range.start);
        self.queue(SendFrom::File(from), len, held, more, Op::Zerocopy)
    }

    /// Queues `bytes`, which the kernel copies: headers and the like.
    ///
    /// # Errors
    /// As [`queue_file`](Self::queue_file).
    pub fn queue_bytes(
        &mut self,
        bytes: impl Into<Arc<[u8]>>,
        flags: SendFlags,
    ) -> Result<Ticket, Error> {
        let bytes = bytes.into();
        let len = bytes.len() as u64;
        self.queue(SendFrom::Bytes(bytes), len, None, flags.more(), Op::Copy)
    }

    /// `held` is what it holds, and whether that is guarded.
    fn queue(
        &mut self,
        from: SendFrom,
        len: u64,
        held: Option<(Held, bool)>,
        more: bool,
        op: Op,
    ) -> Result<Ticket, Error> {
        let RingConn { shared, index, link, .. } = &*self.conn;
        shared.ours()?;
        let choice = match op {
            Op::Zerocopy => Choice { engine: Engine::Uring, reason: Reason::Requested },
            _ => Choice { engine: Engine::Copy, reason: Reason::Slice },
        };
        let (held, guarded) = held.map_or((None, false), |(held, guarded)| (Some(held), guarded));
        let progress = QueuedProgress::new(len, choice);
        let ticket = Ticket::queued(Arc::clone(&progress), link);
        let mut state = lock(&shared.state);
        let lane = state.lane(*index);
        if let Some(failure) = lane.failed {
            return Err(failure.into());
        }
        if len == 0 {
            progress.finish(None);
            return Ok(ticket);
        }
        lane.queue.push_back(QueuedSend {
            from,
            len,
            done: 0,
            more,
            held,
            guarded,
            progress,
            op,
            faulted: None,
        });
        if lane.queue.len() == 1 {
            state.ready.push_back(*index);
        }
        Ok(ticket)
    }

    /// Bytes that are queued and that the kernel has not accepted, as far as is known; 0 in a forked
    /// child.
    #[must_use]
    pub fn queued(&self) -> u64 {
        if !self.conn.shared.is_ours() {
            return 0;
        }
        let mut state = lock(&self.conn.shared.state);
        state.lane(self.conn.index).queued()
    }

    /// The sends that are queued or in flight, as far as the completions read so far say. A forked
    /// child, which knows nothing of them, is told of none.
    #[must_use]
    pub fn in_flight(&self) -> InFlight {
        CompletionSource::in_flight(&*self.conn)
    }

    /// The counters of this socket; all of them are 0 in a forked child.
    #[must_use]
    pub fn counters(&self) -> Counters {
        if !self.conn.shared.is_ours() {
            return Counters::default();
        }
        let mut state = lock(&self.conn.shared.state);
        state.lane(self.conn.index).account.counters
    }

    /// Sets how long the reaper waits for what is queued and in flight when this is dropped, before
    /// it aborts the connection; 60 seconds if not said, and for ever with [`Duration::MAX`].
    pub fn set_linger(&mut self, limit: Duration) {
        self.linger = limit;
    }

    /// Ends the connection at once: the peer sees a reset. What is queued ends with
    /// [`Error::Aborted`]. What is in flight is released when its notifications arrive.
    ///
    /// # Errors
    /// [`Error::Socket`] if the kernel refuses.
    pub fn abort(&self) -> Result<(), Error> {
        CompletionSource::abort(&*self.conn)
    }

    /// Ends the stream, after what is queued. Nothing more can be sent.
    pub fn shutdown(&mut self) {
        self.conn.end();
    }

    /// Ends the stream, waits until everything is sent and released, and closes the socket.
    ///
    /// # Errors
    /// [`Error::Deadline`]; [`Error::Wait`]. The socket is gone also then; what is queued or in
    /// flight is handed over to the reaper.
    pub fn close(self, deadline: impl Into<Deadline>) -> Result<(), Error> {
        let deadline = deadline.into();
        self.conn.end();
        self.drain(deadline)
    }

    /// Waits until nothing is queued or in flight.
    ///
    /// # Errors
    /// [`Error::Deadline`]; [`Error::Wait`].
    pub fn drain(&self, deadline: impl Into<Deadline>) -> Result<(), Error> {
        let deadline = deadline.into();
        wait::until(&*self.conn, deadline, "sends are still in flight", || {
            Ok(self.conn.is_drained().then_some(()))
        })
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.conn.endpoint.as_fd()
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.conn.fmt(f)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Of a fork's copy the ring and what it keeps are the parent's.
        if !self.conn.shared.is_ours() {
            return;
        }
        let state = || {
            let mut state = lock(&self.conn.shared.state);
            let lane = state.lane(self.conn.index);
            (lane.is_drained(), lane.is_broken())
        };
        let (mut drained, mut broken) = state();
        if drained && !broken {
            return;
        }
        let mut apart = Apart::default();
        if !drained {
            // What has arrived already needs no reaper. An error shows itself there again.
            apart.run(|| drop(self.conn.shared.reap(None)));
            (drained, broken) = state();
        }
        if broken {
            // If it fails, the error was told already.
            apart.run(|| drop(self.abort()));
        }
        if !drained {
            // No clock counts as far as never.
            let abort_at = Instant::now().checked_add(self.linger);
            apart.run(|| self.reaper.adopt(Arc::clone(&self.conn) as _, abort_at));
        }
        apart.resume();
    }
}
