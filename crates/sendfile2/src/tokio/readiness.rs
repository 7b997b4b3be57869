//! The readiness of a socket for two tasks: what is known, and who is woken.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};

use rustix::event::epoll::EventFlags;

/// One of the two directions of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Read = 0,
    Write = 1,
}

/// The readiness of a socket, and who waits for it.
#[derive(Debug, Default)]
pub(super) struct Readiness(Mutex<Known>);

#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) sides: [SideState; 2],
    /// EPOLLERR was seen, and nobody has looked why.
    pub(super) error: bool,
    /// The runtime is going away: nothing more will be told.
    pub(super) gone: bool,
}

#[derive(Debug)]
pub(super) struct SideState {
    pub(super) ready: bool,
    /// The number of times it became ready: what was learned since a call was made is not cleared
    /// by what the call found.
    pub(super) tick: Tick,
    /// The peer has ended the stream, which is told once only.
    pub(super) closed: bool,
    pub(super) waker: Option<Waker>,
}

/// When a side was ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tick(u64);

impl Default for SideState {
    fn default() -> Self {
        // The first call finds out.
        SideState { ready: true, tick: Tick(0), closed: false, waker: None }
    }
}

impl SideState {
    pub(super) fn set(&mut self) {
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

impl Readiness {
    pub(super) fn lock(&self) -> MutexGuard<'_, Known> {
        // Nothing panics while holding it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Known)) {
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

/// A waker for when somebody has read the error queue: a limit may have made room for another send.
pub(super) struct Reaped(pub(super) Arc<Readiness>);

impl Wake for Reaped {
    fn wake(self: Arc<Self>) {
        self.0.change(|known| known.sides[Side::Write as usize].set());
    }
}
