//! Whether a socket can be read from or written to, for two tasks.
//!
//! The socket is registered in an epoll instance of its own, and only that is known to tokio. The
//! reason: mio takes EPOLLOUT with EPOLLERR for "closed for writing", and tokio never forgets that;
//! a completion notification raises EPOLLERR, and after a single one `writable()` is true for ever,
//! however full the socket is. Here EPOLLERR means "maybe a completion": the error queue is read,
//! and only if it is empty has the socket itself an error to tell, which the next call does.
//!
//! Sources: epoll(7); mio, `sys/unix/selector/epoll.rs` (`is_write_closed`); tokio,
//! `runtime/io/scheduled_io.rs` (`clear_readiness`).

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker, ready};

use ::tokio::io::unix::AsyncFd;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventFlags};

use crate::conn::{Conn, Kind, Registered};
use crate::error::Error;
use crate::park::task::failed;
use crate::sys::tokio as sys;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Read = 0,
    Write = 1,
}

pub(super) struct Ready {
    conn: Arc<Conn>,
    epoll: AsyncFd<sys::Registered<OwnedFd>>,
    shared: Arc<Shared>,
    /// Wakes both sides when there are events.
    events: Waker,
    _reaped: Registered<Arc<Conn>>,
}

/// What is known of both sides, and who waits for them.
#[derive(Debug, Default)]
struct Shared(Mutex<[State; 2]>);

#[derive(Debug)]
struct State {
    ready: bool,
    /// How often it became ready: what was learned since a call was made is not cleared by what
    /// the call found.
    tick: Tick,
    /// The peer has ended the stream, which is told once only.
    closed: bool,
    waker: Option<Waker>,
}

/// When a side was ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tick(u64);

impl Default for State {
    fn default() -> Self {
        // The first call finds out.
        State { ready: true, tick: Tick(0), closed: false, waker: None }
    }
}

impl State {
    fn set(&mut self) {
        self.ready = true;
        self.tick.0 += 1;
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, [State; 2]> {
        // Nothing panics while holding it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The epoll instance has events: whichever side is polled first looks at them.
struct Events(Arc<Shared>);

impl Wake for Events {
    fn wake(self: Arc<Self>) {
        let wakers = self.0.lock().each_mut().map(|side| side.waker.take());
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

/// Somebody has read the error queue. A limit may have made room for another send.
struct Reaped(Arc<Shared>);

impl Wake for Reaped {
    fn wake(self: Arc<Self>) {
        let mut sides = self.0.lock();
        let write = &mut sides[Side::Write as usize];
        write.set();
        let waker = write.waker.take();
        drop(sides);
        waker.into_iter().for_each(Waker::wake);
    }
}

impl Ready {
    pub(super) fn new(conn: Arc<Conn>) -> Result<Self, Error> {
        let epoll =
            epoll::create(epoll::CreateFlags::CLOEXEC).map_err(Error::wait("epoll_create1"))?;
        let interest = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&epoll, conn.as_fd(), epoll::EventData::new_u64(0), interest)
            .map_err(Error::wait("epoll_ctl"))?;
        let shared = Arc::<Shared>::default();
        Ok(Ready {
            epoll: sys::register(epoll).map_err(failed)?,
            events: Arc::new(Events(Arc::clone(&shared))).into(),
            _reaped: Registered::new(
                Arc::clone(&conn),
                Arc::new(Reaped(Arc::clone(&shared))).into(),
            ),
            shared,
            conn,
        })
    }

    pub(super) fn conn(&self) -> &Conn {
        &self.conn
    }

    /// Whether a call on `side` is worth trying. If it finds that it is not after all,
    /// [`clear`](Self::clear) is to be told, with what this gives.
    pub(super) fn poll(&self, side: Side, cx: &mut Context<'_>) -> Poll<Result<Tick, Error>> {
        loop {
            let mut sides = self.shared.lock();
            let state = &mut sides[side as usize];
            if state.ready {
                return Poll::Ready(Ok(state.tick));
            }
            match &mut state.waker {
                Some(waker) => waker.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
            drop(sides);
            ready!(self.look(side))?;
        }
    }

    /// A call on `side` found nothing to do, or has done all there was.
    pub(super) fn clear(&self, side: Side, tick: Tick) {
        let state = &mut self.shared.lock()[side as usize];
        if state.tick == tick && !state.closed {
            state.ready = false;
        }
    }

    /// Looks at the events, on behalf of `side`.
    fn look(&self, side: Side) -> Poll<Result<(), Error>> {
        let mut cx = Context::from_waker(&self.events);
        let mut guard = ready!(self.epoll.poll_read_ready(&mut cx)).map_err(failed)?;
        // Whoever looks is awake.
        self.shared.lock()[side as usize].waker = None;
        let mut buffer =
            [epoll::Event { flags: EventFlags::empty(), data: epoll::EventData::new_u64(0) }];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let got = match epoll::wait(&self.epoll.get_ref().0, &mut buffer, Some(&now)) {
            Ok(got) => got,
            Err(rustix::io::Errno::INTR) => return Poll::Ready(Ok(())),
            Err(e) => return Poll::Ready(Err(Error::wait("epoll_wait")(e))),
        };
        // What comes from here on makes it ready again.
        guard.clear_ready();
        if got == 0 {
            return Poll::Ready(Ok(()));
        }
        let flags = buffer[0].flags;
        let hangup = flags.contains(EventFlags::HUP);
        let mut error = false;
        if flags.contains(EventFlags::ERR) {
            // Only TCP says in other ways, too, that something has ended.
            error = self.conn.reap()? == 0 || self.conn.kind() != Kind::Tcp;
        }
        let mut sides = self.shared.lock();
        let [read, write] = &mut *sides;
        let closed = hangup || flags.contains(EventFlags::RDHUP);
        read.closed |= closed;
        if closed || error || flags.contains(EventFlags::IN) {
            read.set();
        }
        if hangup || error || flags.contains(EventFlags::OUT) {
            write.set();
        }
        let other = &mut sides[1 - side as usize];
        let waker = if other.ready { other.waker.take() } else { None };
        drop(sides);
        waker.into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(()))
    }
}

impl std::fmt::Debug for Ready {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ready").field("sides", &self.shared).finish_non_exhaustive()
    }
}
