//! The one loop in which a thread waits for completions, and what it waits for.

use std::ops::ControlFlow;

use crate::deadline::Deadline;
use crate::error::Error;
use crate::holder::{Registered, Waitable};
use crate::park::{Event, Interest, Parker};
use crate::socket::acknowledged::{Acknowledgement, PollBackoff};

/// Repeats `step`, which gives the value, or the time when it is to be repeated at the latest.
/// Meanwhile the thread sleeps until the source is ready or somebody has read its completions.
fn wait<T>(
    source: &dyn Waitable,
    interest: Interest,
    mut step: impl FnMut(
        &Registered<&dyn Waitable>,
        &[Event],
    ) -> Result<ControlFlow<T, Deadline>, Error>,
) -> Result<T, Error> {
    source.ours()?;
    Parker::with(|parker| {
        let registered = Registered::new(source, parker.waker());
        let _watch = parker.watch(source.as_fd(), 0, interest)?;
        let mut events = Vec::new();
        loop {
            match step(&registered, &events)? {
                ControlFlow::Break(value) => return Ok(value),
                ControlFlow::Continue(until) => events = parker.park(until.instant())?,
            }
        }
    })
}

/// Waits until `check` gives a value, reading completions meanwhile.
///
/// # Errors
/// [`Error::Deadline`] with `what` when the deadline passes; what `check` fails with; the error
/// that makes waiting pointless.
pub(crate) fn until<T>(
    source: &dyn Waitable,
    deadline: Deadline,
    what: &'static str,
    mut check: impl FnMut() -> Result<Option<T>, Error>,
) -> Result<T, Error> {
    source.flush();
    wait(source, source.readiness(), |registered, _| {
        registered.reap()?;
        match check()? {
            Some(value) => Ok(ControlFlow::Break(value)),
            None => {
                source.check()?;
                before(deadline, what).map(ControlFlow::Continue)
            }
        }
    })
}

/// As [`until`], and the socket becoming writable is worth a look, too.
///
/// # Errors
/// As [`until`]; a genuine error of the socket, but only if nothing is in flight, since until then
/// notifications may come.
pub(crate) fn until_writable<T>(
    source: &dyn Waitable,
    deadline: Deadline,
    what: &'static str,
    mut check: impl FnMut() -> Result<Option<T>, Error>,
) -> Result<T, Error> {
    wait(source, Interest::Writable, |registered, events| {
        let read = registered.reap()?;
        if let Some(value) = check()? {
            return Ok(ControlFlow::Break(value));
        }
        source.check()?;
        let error = events.iter().any(|event| event.error);
        if error && read == 0 && source.in_flight().sends == 0 {
            source.socket_error()?;
        }
        before(deadline, what).map(ControlFlow::Continue)
    })
}

/// Waits until the peer has acknowledged the first `end` bytes that were accepted.
///
/// Nothing needs to tell of an acknowledgement (timestamps of them are lost when the receive buffer
/// is full), so that it looks by itself now and then.
///
/// # Errors
/// [`Error::Deadline`]; [`Error::Socket`] if SIOCOUTQ fails; [`Error::Wait`].
pub(crate) fn until_acknowledged(
    source: &dyn Waitable,
    end: u64,
    deadline: Deadline,
) -> Result<Acknowledgement, Error> {
    source.flush();
    let mut backoff = PollBackoff::new(source.acknowledgements_wake());
    wait(source, source.readiness(), |registered, _| {
        // What is on the queue wakes but once. An error of the ids is not the waiter's.
        let _ = registered.reap();
        match source.acknowledgement(end)? {
            Acknowledgement::Pending => backoff.next(deadline).map(ControlFlow::Continue),
            known => Ok(ControlFlow::Break(known)),
        }
    })
}

/// As [`until`], for a task, which ends it by dropping it.
#[cfg(feature = "tokio")]
pub(crate) async fn until_as_task<T>(
    source: &dyn Waitable,
    mut check: impl FnMut() -> Result<Option<T>, Error>,
) -> Result<T, Error> {
    source.flush();
    // What has arrived already needs no descriptors.
    source.reap()?;
    if let Some(value) = check()? {
        return Ok(value);
    }
    let task = crate::park::task::Parker::new()?;
    let registered = Registered::new(source, task.as_thread().waker());
    let _watch = task.as_thread().watch(source.as_fd(), 0, source.readiness())?;
    loop {
        registered.reap()?;
        if let Some(value) = check()? {
            return Ok(value);
        }
        source.check()?;
        task.park(None).await?;
    }
}

/// Returns the deadline, unless it has passed.
fn before(deadline: Deadline, what: &'static str) -> Result<Deadline, Error> {
    if deadline.has_passed() { Err(Error::Deadline(what)) } else { Ok(deadline) }
}
