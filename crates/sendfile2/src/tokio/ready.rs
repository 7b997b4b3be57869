//! Whether a socket can be read from or written to, for two tasks.
//!
//! Sockets are registered in an epoll instance that a runtime's connections share, and only that is
//! known to tokio. The reason: mio takes EPOLLOUT with EPOLLERR for "closed for writing", and tokio
//! never forgets that; a completion notification raises EPOLLERR, and after a single one
//! `writable()` is true for ever, however full the socket is. Here EPOLLERR means "maybe a
//! completion": the error queue is read, and only if it is empty has the socket itself an error to
//! tell, which the next call does.
//!
//! Sources: epoll(7); mio, `sys/unix/selector/epoll.rs` (`is_write_closed`); tokio,
//! `runtime/io/scheduled_io.rs` (`clear_readiness`).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use rustix::event::epoll::EventFlags;

use super::hub::Entry;
use crate::conn::{Conn, Kind, Registered};
use crate::error::Error;
use crate::park::task::failed;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Read = 0,
    Write = 1,
}

pub(super) struct Ready {
    // Before the connection, whose descriptor it refers to.
    _entry: Entry,
    shared: Arc<Shared>,
    _reaped: Registered<Arc<Conn>>,
    conn: Arc<Conn>,
}

/// What is known of a socket, and who waits for it.
#[derive(Debug, Default)]
pub(super) struct Shared(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    sides: [State; 2],
    /// EPOLLERR was seen, and nobody has looked why.
    error: bool,
    /// The runtime is going away: nothing more will be told.
    gone: bool,
}

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

impl Known {
    /// Those who wait for what is ready, or for anything if there is an error.
    fn awaited(&mut self) -> [Option<Waker>; 2] {
        let all = self.error || self.gone;
        self.sides.each_mut().map(|side| if all || side.ready { side.waker.take() } else { None })
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Known> {
        // Nothing panics while holding it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Known)) {
        let mut known = self.lock();
        change(&mut known);
        let awaited = known.awaited();
        drop(known);
        for waker in awaited.into_iter().flatten() {
            // If it panics, nobody else is to miss what happened.
            let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
        }
    }

    /// The socket has events.
    pub(super) fn tell(&self, flags: EventFlags) {
        self.change(|known| {
            let hangup = flags.contains(EventFlags::HUP);
            let closed = hangup || flags.contains(EventFlags::RDHUP);
            known.error |= flags.contains(EventFlags::ERR);
            let [read, write] = &mut known.sides;
            read.closed |= closed;
            if closed || flags.contains(EventFlags::IN) {
                read.set();
            }
            if hangup || flags.contains(EventFlags::OUT) {
                write.set();
            }
        });
    }

    /// There will be no events any more.
    pub(super) fn gone(&self) {
        self.change(|known| known.gone = true);
    }
}

/// Somebody has read the error queue. A limit may have made room for another send.
struct Reaped(Arc<Shared>);

impl Wake for Reaped {
    fn wake(self: Arc<Self>) {
        self.0.change(|known| known.sides[Side::Write as usize].set());
    }
}

impl Ready {
    pub(super) fn new(conn: Arc<Conn>) -> Result<Self, Error> {
        let shared = Arc::<Shared>::default();
        Ok(Ready {
            _entry: Entry::new(Arc::clone(&conn), Arc::clone(&shared))?,
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
            let mut known = self.shared.lock();
            let Known { sides, error, gone } = &mut *known;
            let state = &mut sides[side as usize];
            if state.ready {
                return Poll::Ready(Ok(state.tick));
            }
            if *gone {
                let gone = std::io::Error::other("the runtime is going away");
                return Poll::Ready(Err(failed(gone)));
            }
            if !*error {
                if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                    let last = state.waker.replace(cx.waker().clone());
                    // With it a task may go that owns the other half.
                    drop(known);
                    drop(last);
                }
                return Poll::Pending;
            }
            *error = false;
            drop(known);
            // Only TCP says in other ways, too, that something has ended.
            if self.conn.reap()? == 0 || self.conn.kind() != Kind::Tcp {
                self.shared.change(|known| known.sides.iter_mut().for_each(State::set));
            }
        }
    }

    /// A call on `side` found nothing to do, or has done all there was. Gives whether there will
    /// not be more: that the stream had ended was known before the call.
    pub(super) fn clear(&self, side: Side, tick: Tick) -> bool {
        let state = &mut self.shared.lock().sides[side as usize];
        let latest = state.tick == tick;
        if latest && !state.closed {
            state.ready = false;
        }
        latest && state.closed
    }
}

impl std::fmt::Debug for Ready {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ready").field("known", &self.shared).finish_non_exhaustive()
    }
}
