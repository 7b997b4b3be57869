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

use std::sync::Arc;
use std::task::{Context, Poll};

use super::hub::Entry;
use super::readiness::{Known, Readiness, Reaped, Side, SideState, Tick};
use crate::conn::Conn;
use crate::error::Error;
use crate::holder::{CompletionSource, Registered};
use crate::park::task::failed;
use crate::socket::kind::Kind;

pub(super) struct Ready {
    // Before the connection, whose descriptor it refers to.
    _entry: Entry,
    shared: Arc<Readiness>,
    _reaped: Registered<Arc<Conn>>,
    conn: Arc<Conn>,
}

impl Ready {
    pub(super) fn new(conn: Arc<Conn>) -> Result<Self, Error> {
        let shared = Arc::<Readiness>::default();
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
            if CompletionSource::reap(&*self.conn)? == 0 || self.conn.endpoint().kind() != Kind::Tcp
            {
                self.shared.change(|known| known.sides.iter_mut().for_each(SideState::set));
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
