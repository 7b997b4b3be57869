//! The reaper: a thread that adopts connections whose sends are still in flight.
//!
//! A sender that is dropped too early hands its descriptor and its ledger over. The reaper shuts
//! down writing (or the peer would never see the end), drains the notifications, aborts after a
//! time limit, and only when the last id has arrived closes the descriptor and drops what
//! was held. What cannot be accounted for stays held, and is never freed by guess.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::deadline::Deadline;
use crate::error::Error;
use crate::holder::{CompletionSource, InFlight};
use crate::park::Parker;
use crate::sys::process::Process;
use crate::trace;

/// The time after which all of them are looked at, whether or not an event said so.
const LOOK: Duration = Duration::from_secs(1);

/// The same where none is known: the bell may have been closed by the program.
const IDLE: Duration = Duration::from_secs(10);

/// The reaper of a process.
#[derive(Debug)]
pub(crate) struct Reaper {
    process: Process,
    bell: Waker,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// Handed over, and not looked at by the thread yet.
    arriving: Vec<(u64, Orphan)>,
    adopted: HashMap<u64, Orphan>,
}

#[derive(Debug, Clone)]
struct Orphan {
    holder: Arc<dyn CompletionSource>,
    /// `None` if it is never to be aborted, or was already.
    abort_at: Option<Instant>,
}

/// Replaced in a fork, where the thread does not exist and the connections are the parent's.
static REAPER: Mutex<Option<&'static Reaper>> = Mutex::new(None);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Reaper {
    /// The process's reaper, started if need be: where a failure can be reported, and not when a
    /// descriptor must be handed over.
    pub(crate) fn start() -> Result<&'static Reaper, Error> {
        let mut current = lock(&REAPER);
        let process = Process::current();
        if let Some(reaper) = current.filter(|r| r.process == process) {
            return Ok(reaper);
        }
        let parker = Parker::new()?;
        let reaper: &'static Reaper = Box::leak(Box::new(Reaper {
            process,
            bell: parker.waker(),
            state: Mutex::default(),
            changed: Condvar::new(),
        }));
        std::thread::Builder::new()
            .name("sendfile2-reaper".into())
            .spawn(move || {
                loop {
                    // What panics here (who listens to traces) must not end it.
                    let _ = std::panic::catch_unwind(AssertUnwindSafe(|| reaper.run(&parker)));
                }
            })
            .map_err(|cause| Error::Wait { op: "starting the reaper thread", cause })?;
        *current = Some(reaper);
        Ok(reaper)
    }

    /// Takes over `holder`, and aborts it if it is not drained by `abort_at`, if that is given.
    pub(crate) fn adopt(&self, holder: Arc<dyn CompletionSource>, abort_at: Option<Instant>) {
        let adopted = Arc::clone(&holder);
        // First of all, and without strangers' code: whatever panics then, it is handed over.
        let mut state = lock(&self.state);
        state.next += 1;
        let key = state.next;
        state.arriving.push((key, Orphan { holder, abort_at }));
        drop(state);
        self.bell.wake_by_ref();
        self.changed.notify_all();
        adopted.orphan();
        trace::debug!(in_flight = ?adopted.in_flight(), "handed over to the reaper");
    }

    fn run(&self, parker: &Parker) -> ! {
        let mut looked = Instant::now();
        let mut deaf = false;
        loop {
            let mut keys = Vec::new();
            let mut unwatched = None;
            let mut state = lock(&self.state);
            while let Some((key, orphan)) = state.arriving.pop() {
                let holder = Arc::clone(&orphan.holder);
                // First of all: it has no other place.
                state.adopted.insert(key, orphan);
                keys.push(key);
                unwatched = parker.add(holder.as_fd(), key, holder.readiness()).err().or(unwatched);
            }
            let next_abort = state.adopted.values().filter_map(|o| o.abort_at).min();
            let empty = state.adopted.is_empty();
            drop(state);
            if let Some(e) = unwatched {
                trace::warn!("the reaper looks every {LOOK:?} only: {e}");
            }

            if keys.is_empty() {
                let look = looked + if empty { IDLE } else { LOOK };
                match parker.park(Some(next_abort.map_or(look, |at| at.min(look)))) {
                    Ok(events) => keys.extend(events.iter().map(|e| e.key)),
                    Err(e) => {
                        // The program has closed its descriptors.
                        if !std::mem::replace(&mut deaf, true) {
                            trace::error!("the reaper looks every {LOOK:?} only: {e}");
                        }
                        let state = lock(&self.state);
                        if state.arriving.is_empty() {
                            drop(self.changed.wait_timeout(state, LOOK));
                        }
                    }
                }
            }
            let now = Instant::now();
            let all = now >= looked + LOOK;
            if all {
                looked = now;
            }
            let state = lock(&self.state);
            let due: Vec<(u64, Orphan)> = state
                .adopted
                .iter()
                .filter(|(key, o)| {
                    all || keys.contains(key) || o.abort_at.is_some_and(|at| at <= now)
                })
                .map(|(key, orphan)| (*key, orphan.clone()))
                .collect();
            drop(state);
            for (key, orphan) in due {
                let tended = AssertUnwindSafe(|| self.tend(parker, key, &orphan, now));
                if std::panic::catch_unwind(tended).is_err() {
                    trace::error!("what a send held panicked when dropped by the reaper");
                }
                // Maybe the last to know the connection, and what its hook holds.
                if std::panic::catch_unwind(AssertUnwindSafe(|| drop(orphan))).is_err() {
                    trace::error!("what a hook holds panicked when dropped by the reaper");
                }
            }
        }
    }

    fn tend(&self, parker: &Parker, key: u64, orphan: &Orphan, now: Instant) {
        // What is dropped may run the application's destructor or hook; the others must not suffer.
        let reaped = std::panic::catch_unwind(AssertUnwindSafe(|| orphan.holder.reap()));
        match reaped {
            Ok(Ok(_)) => {}
            Ok(Err(e)) => trace::warn!("reaping an orphan: {e}"),
            Err(_) => trace::error!("a hook or destructor panicked in the reaper"),
        }
        if orphan.holder.in_flight().sends == 0 {
            parker.remove(orphan.holder.as_fd());
            let gone = lock(&self.state).adopted.remove(&key);
            drop(gone);
            self.changed.notify_all();
        } else if orphan.abort_at.is_some_and(|at| at <= now) {
            if let Some(kept) = lock(&self.state).adopted.get_mut(&key) {
                kept.abort_at = None;
            }
            if let Err(e) = orphan.holder.abort() {
                trace::error!("aborting an orphan: {e}");
            }
            trace::warn!(in_flight = ?orphan.holder.in_flight(), "an orphan did not drain: abort");
        }
    }

    fn orphans(state: &State) -> impl Iterator<Item = &Orphan> {
        state.arriving.iter().map(|(_, o)| o).chain(state.adopted.values())
    }
}

fn current() -> Option<&'static Reaper> {
    lock(&REAPER).filter(|r| r.process.is_current())
}

/// The sends that the reaper is still draining, which have lost their sender. Their state is
/// *unknown*.
#[must_use]
pub fn pending() -> InFlight {
    let mut sum = InFlight::default();
    let Some(reaper) = current() else { return sum };
    for orphan in Reaper::orphans(&lock(&reaper.state)) {
        let one = orphan.holder.in_flight();
        sum.bytes += one.bytes;
        sum.sends += one.sends;
        sum.oldest = sum.oldest.max(one.oldest);
    }
    sum
}

/// Waits until the reaper has nothing left: before a program exits, for example, since with the
/// process the notifications are gone.
///
/// # Errors
/// [`Error::Deadline`] if something is left at `deadline`.
pub fn drain(deadline: impl Into<Deadline>) -> Result<(), Error> {
    let deadline = deadline.into();
    let Some(reaper) = current() else { return Ok(()) };
    let mut state = lock(&reaper.state);
    while Reaper::orphans(&state).next().is_some() {
        let left = deadline.remaining();
        if left.is_zero() {
            return Err(Error::Deadline("the reaper still has sends in flight"));
        }
        state = reaper.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
    }
    Ok(())
}
