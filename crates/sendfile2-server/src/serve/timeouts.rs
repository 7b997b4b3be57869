//! A connection that ends when nothing moves on it.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use sendfile2_axum::Io;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::MissedTickBehavior;

use super::streams::Open;
use crate::args::operation::Operation;

/// The least time between two looks at all connections.
const SWEEP: Duration = Duration::from_secs(1);

/// The time that has not come.
const NEVER: u64 = u64::MAX;

/// A clock that counts its looks at all connections, one a second, at which those that have exceeded
/// a limit are woken. A timer for each limit, set anew with each request, would cost a small
/// request a tenth of its time. It also tells them that the server ends.
#[derive(Default)]
pub(super) struct Clock {
    looks: AtomicU64,
    /// The server ends, and its connections are to.
    ends: AtomicBool,
    connections: Mutex<Vec<Weak<Pulse>>>,
}

/// The limits of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) header: Duration,
    pub(super) idle: Duration,
    pub(super) stall: Duration,
}

impl Limits {
    pub(super) fn of(args: &Operation) -> Self {
        let (header, idle, stall) = (args.header_timeout, args.idle_timeout, args.stall_timeout);
        Limits { header, idle, stall }
    }
}

/// The times from which a connection's limits count, by the clock, or `NEVER`.
pub(super) struct Pulse {
    clock: Arc<Clock>,
    limits: Limits,
    /// The time at which something came or went last.
    moved: AtomicU64,
    /// The time from which on the peer has not taken what is ready for it.
    stalled: AtomicU64,
    /// The time from which on a request's headers are awaited.
    awaiting: AtomicU64,
    /// The streams of HTTP/2, by which it is idle or not: PINGs come and go without end.
    streams: OnceLock<Open>,
    /// The waker of the connection's task.
    waker: Waker,
}

impl Clock {
    /// Begins a clock, which runs as long as somebody has it.
    pub(super) fn start() -> Arc<Self> {
        let clock = Arc::<Clock>::default();
        let running = Arc::downgrade(&clock);
        tokio::spawn(async move {
            let mut sweep = tokio::time::interval(SWEEP);
            // Where it was late, the next look comes no sooner for that: no limit ends too early.
            sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                sweep.tick().await;
                let Some(clock) = running.upgrade() else { return };
                clock.look();
            }
        });
        clock
    }

    fn look(&self) {
        self.looks.fetch_add(1, Relaxed);
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let mut overdue = Vec::new();
        connections.retain(|pulse| {
            let pulse = pulse.upgrade();
            overdue.extend(pulse.clone().filter(|pulse| pulse.is_overdue()));
            pulse.is_some()
        });
        drop(connections);
        for pulse in overdue {
            pulse.waker.wake_by_ref();
        }
    }

    /// Tells all connections to end, from now on.
    pub(super) fn end(&self) {
        self.ends.store(true, Relaxed);
        let connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let all: Vec<_> = connections.iter().filter_map(Weak::upgrade).collect();
        drop(connections);
        for pulse in all {
            pulse.waker.wake_by_ref();
        }
    }

    /// Returns whether connections are to end. Their tasks are woken for it.
    pub(super) fn ends(&self) -> bool {
        self.ends.load(Relaxed)
    }

    fn now(&self) -> u64 {
        self.looks.load(Relaxed)
    }
}

impl Pulse {
    /// Begins to watch the connection of the task that this is called in.
    pub(super) async fn begin(clock: &Arc<Clock>, limits: Limits) -> Arc<Self> {
        let pulse = Arc::new(Pulse {
            clock: Arc::clone(clock),
            limits,
            moved: clock.now().into(),
            stalled: NEVER.into(),
            awaiting: NEVER.into(),
            streams: OnceLock::new(),
            waker: poll_fn(|cx| Poll::Ready(cx.waker().clone())).await,
        });
        let mut connections = clock.connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.push(Arc::downgrade(&pulse));
        drop(connections);
        pulse
    }

    pub(super) fn has_streams(&self, streams: Open) {
        // A connection has one kind of them.
        let _ = self.streams.set(streams);
    }

    /// A request's headers are awaited from here on.
    pub(super) fn awaits_headers(&self) {
        self.awaiting.store(self.clock.now(), Relaxed);
    }

    /// A request is there. The next one's headers are awaited when what this returns is dropped.
    pub(super) fn answers(self: Arc<Self>) -> Answering {
        self.awaiting.store(NEVER, Relaxed);
        Answering(self)
    }

    fn moves(&self) {
        self.moved.store(self.clock.now(), Relaxed);
    }

    /// The peer takes what is ready for it. The time for the next headers counts from the end of
    /// the answer before.
    fn takes(&self) {
        self.moves();
        self.stalled.store(NEVER, Relaxed);
        if self.awaiting.load(Relaxed) != NEVER {
            self.awaits_headers();
        }
    }

    /// Returns whether a limit is exceeded, for certain: a time may be as old as the clock's last
    /// look.
    fn is_overdue(&self) -> bool {
        let now = self.clock.now();
        let exceeds = |since: &AtomicU64, limit: Duration| {
            let looks = now.saturating_sub(since.load(Relaxed));
            u128::from(looks) * SWEEP.as_millis() >= (limit + SWEEP).as_millis()
        };
        let Limits { header, idle, stall } = self.limits;
        let idles = match self.streams.get() {
            Some(streams) => streams.last().elapsed() >= idle,
            None => exceeds(&self.moved, idle),
        };
        idles
            || exceeds(&self.stalled, stall)
            // The answer before has not ended while the peer does not take it.
            || (self.stalled.load(Relaxed) == NEVER && exceeds(&self.awaiting, header))
    }
}

/// An answer is being given.
pub(super) struct Answering(Arc<Pulse>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.awaits_headers();
    }
}

pub(super) struct Timed {
    io: Io,
    pulse: Arc<Pulse>,
    /// The amount that waited in the kernel when the peer stalled: bytes that the peer has not
    /// acknowledged (TCP), or memory of what it has not read, which becomes less a whole buffer at a
    /// time (unix sockets); `None` if the kernel does not report it. The socket has space for more
    /// only when a third of its buffer is free, for which a slow peer may need minutes; but this
    /// amount becomes less.
    queued: Option<u64>,
}

impl Timed {
    pub(super) fn new(io: Io, pulse: Arc<Pulse>) -> Self {
        Timed { io, pulse, queued: None }
    }

    fn watch<T>(&mut self, writes: bool, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            // Bytes from the peer do not show that it reads.
            if writes {
                self.pulse.takes();
            } else {
                self.pulse.moves();
            }
            return result;
        }
        if writes && !self.stalled() {
            self.stalls();
        }
        if self.pulse.is_overdue() && !self.drains() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    }

    fn stalled(&self) -> bool {
        self.pulse.stalled.load(Relaxed) != NEVER
    }

    fn stalls(&mut self) {
        self.queued = self.queued_now();
        self.pulse.stalled.store(self.pulse.clock.now(), Relaxed);
    }

    fn queued_now(&self) -> Option<u64> {
        self.io.unacknowledged().ok()
    }

    /// Returns whether the peer has taken something since the last look. The stall then begins
    /// anew.
    fn drains(&mut self) -> bool {
        if !self.stalled() {
            return false;
        }
        let less =
            matches!((self.queued_now(), self.queued), (Some(now), Some(then)) if now < then);
        if less {
            self.pulse.takes();
            self.stalls();
        }
        less
    }
}

impl AsyncRead for Timed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        self.watch(false, read)
    }
}

impl AsyncWrite for Timed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.watch(true, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.watch(true, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Nothing is kept here or beneath: a socket has taken what was written.
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection has a limit of its own where it waits for releases and for the peer.
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_limit_is_exceeded_for_certain() {
        let second = Duration::from_secs(1);
        let limits = Limits { header: second, stall: 2 * second, idle: 4 * second };
        let clock = Arc::<Clock>::default();
        let pulse = Pulse::begin(&clock, limits).await;
        // So many looks are that many seconds and one more, or less: the first may come at once.
        let ends_after = |looks: u32| {
            for look in 1..looks {
                clock.look();
                assert!(!pulse.is_overdue(), "after {look} of {looks} looks");
            }
            clock.look();
            assert!(pulse.is_overdue(), "after {looks} looks");
        };
        pulse.awaits_headers();
        ends_after(2);
        let answering = Arc::clone(&pulse).answers();
        pulse.stalled.store(clock.now(), Relaxed);
        ends_after(3);
        pulse.takes();
        ends_after(5);
        pulse.moves();
        drop(answering);
        ends_after(2);
        pulse.takes();
        ends_after(2);
    }
}
