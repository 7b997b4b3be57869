//! Reading notifications, and what follows from them.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use super::connection::{Conn, ConnState, Desynced, ErrorQueueMessage, InFlightSend, REAP_EVERY};
use crate::apart::Apart;
use crate::error::Error;
use crate::socket::kind::Kind;
use crate::sync::lock;
use crate::sys::errqueue::{self, Entry};
use crate::sys::ledger::Done;
use crate::sys::socket::{self as sys, TcpState};
use crate::trace;

/// The number of looks at the kernel's account where a notification was just read: it is
/// queued a moment before what counted it is freed.
const LOOKS: usize = 64;

/// The worth of a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// The notification is that of the send with its id.
    Ours,
    /// Whose notification it is cannot be known.
    Unknowable,
    /// The notification cannot be that of the send with its id.
    TooEarly,
}

/// After this many sends whose acknowledgements come to the error queue, it is read.
const MOST_UNREAD: u32 = 16;

impl Conn {
    /// Reads notifications and drops what they release; a waiter with `key` is not woken. Returns how
    /// many messages were read.
    pub(super) fn reap_as(&self, key: Option<u64>) -> Result<usize, Error> {
        self.endpoint.ours()?;
        // A unix socket does not know MSG_ERRQUEUE and would hand out what its peer has sent.
        if self.endpoint.kind().notifies().is_err() {
            return Ok(0);
        }
        let mut count = 0;
        let mut error = None;
        let mut trusted = false;
        loop {
            let mut entries = errqueue::Batch::new();
            let mut done = Vec::new();
            let mut messages = Vec::new();
            let mut state = lock(&self.state);
            if state.account.retired {
                return Ok(count);
            }
            let more = errqueue::read(self.endpoint.as_fd(), &mut entries)
                .map_err(Error::socket("recvmmsg(MSG_ERRQUEUE)"))?;
            count += entries.len();
            state.unread = 0;
            let empty = entries.is_empty();
            let released = empty && {
                let looks = if count > 0 && state.doubts(&self.endpoint) { LOOKS } else { 1 };
                (0..looks).any(|look| {
                    if look > 0 {
                        std::thread::yield_now();
                    }
                    self.all_are_released(&mut state, &mut done)
                })
            };
            if empty && !released {
                state.reap_from = state.ledger.in_flight() + REAP_EVERY;
                let error = error.or(state.desynced.filter(|_| trusted).map(Error::from));
                return error.map_or(Ok(count), Err);
            }
            let before = state.desynced;
            trusted |= before.is_none();
            for entry in entries {
                match entry {
                    Ok(Entry::Completion { lo, hi, copied }) => {
                        self.complete(&mut state, (lo, hi), copied, &mut done);
                    }
                    Ok(Entry::Foreign(f)) if self.ack_timestamps && f.is_acknowledgement() => {}
                    Ok(Entry::Foreign(foreign)) => {
                        messages.push(ErrorQueueMessage::Foreign(foreign));
                    }
                    Err(e) => {
                        error.get_or_insert(Error::from(e));
                    }
                }
            }
            for done in &done {
                match *done {
                    Done::Released { ref held, copied, .. } => {
                        state.account.ended(held.bytes, held.guarded);
                        state.account.released(copied);
                        state.recent.note(copied);
                    }
                    Done::Application { lo, hi, .. }
                        if lo == hi && state.ambiguous_id == Some(lo) => {}
                    Done::Application { lo, hi, copied } => {
                        messages.push(ErrorQueueMessage::Application { lo, hi, copied });
                    }
                }
            }
            state.account.unguard(&self.endpoint);
            state.reap_from = state.ledger.in_flight() + REAP_EVERY;
            let desynced = state.desynced;
            let over = state.doubts(&self.endpoint);
            drop(state);
            // A destructor or hook that panics must not keep the others, the tickets or the waiters
            // from what is due to them, for it was read off the queue and does not come again.
            let mut apart = Apart::default();
            for done in done {
                if let Done::Released { held: sending, copied, id } = done {
                    // First the hold, then the ticket: who sees "released" finds the range free.
                    apart.run(|| {
                        drop(sending.held);
                        trace::trace!(cookie = self.endpoint.cookie(), id, copied, "released");
                    });
                    sending.pending.part_released(copied);
                }
            }
            // Listed only now: who registers later finds the tickets changed already.
            let wakers = lock(&self.wakers).all(key);
            for waker in wakers {
                waker.wake();
            }
            for message in messages {
                apart.run(|| match &self.hook {
                    Some(hook) => hook(message),
                    None => trace::debug!(
                        cookie = self.endpoint.cookie(),
                        ?message,
                        "nobody asked for it"
                    ),
                });
            }
            if let Some(doubt) = desynced.filter(|_| before.is_none()) {
                let cookie = self.endpoint.cookie();
                apart.run(|| trace::error!(cookie, "{}", Error::from(doubt)));
            }
            if let Some(error) = &error {
                apart.run(|| trace::error!(cookie = self.endpoint.cookie(), "{error}"));
            }
            apart.resume();
            // Where ids are in doubt, to the end of the queue: then it is seen whether all is
            // released.
            if !more && (empty || !over) {
                let error = error.or(desynced.filter(|_| trusted).map(Error::from));
                return error.map_or(Ok(count), Err);
            }
        }
    }

    /// Takes in a notification, unless it cannot be that of our sends.
    fn complete(
        &self,
        state: &mut ConnState,
        (lo, hi): (u32, u32),
        copied: bool,
        done: &mut Vec<Done<InFlightSend>>,
    ) {
        if let Some(Desynced::NotIssued(_)) = state.desynced {
            return;
        }
        let verdict = match state.ledger.last_of(lo, hi) {
            Err(e) => Err(Desynced::NotIssued(e)),
            Ok(_) if state.desynced.is_some() => Err(Desynced::TooEarly { lo, hi }),
            Ok(Some(last)) => match self.judge(state, last.end) {
                Verdict::Ours => Ok(true),
                Verdict::Unknowable => Ok(false),
                Verdict::TooEarly => Err(Desynced::TooEarly { lo, hi }),
            },
            Ok(None) => Ok(true),
        };
        if matches!(verdict, Ok(false) | Err(Desynced::TooEarly { .. })) {
            state.unattributed.push((lo, hi, copied));
        }
        let taken = verdict.and_then(|ours| match ours {
            true => state.ledger.complete(lo, hi, copied, done).map_err(Desynced::NotIssued),
            false => Ok(()),
        });
        if let Err(doubt) = taken {
            state.desynced = Some(doubt);
        }
    }

    /// Judges a notification for bytes that end before `end`. TCP keeps what counts a send's pages until
    /// the peer has acknowledged its bytes, so that before that no notification is due.
    ///
    /// (Where a route cannot gather, TCP copies in the call, and notifies at once. That is made
    /// good when all is found to be released, [`all_are_released`](Self::all_are_released).)
    fn judge(&self, state: &ConnState, end: u64) -> Verdict {
        let known = &self.link.acknowledged;
        if self.endpoint.kind() != Kind::Tcp || known.load(Ordering::Relaxed) >= end {
            return Verdict::Ours;
        }
        // What the application has sent by itself is no part of what is counted here.
        let since = state.others.map_or(u64::MAX, |at| state.accepted() - at);
        let acknowledged = |left: u64| state.accepted().saturating_sub(left.min(since)) >= end;
        // What TCP says is left is never too little, whatever its state, but for an abort of ours.
        let mut before = None;
        let asked = || (!state.account.aborted).then(|| sys::unacknowledged(&self.endpoint).ok());
        while let Some(left) = asked().flatten() {
            if acknowledged(left) {
                return Verdict::Ours;
            }
            // The end of the stream counts as a byte, where it was sent already: the state must be
            // the same before and after. States only go on, so that this ends.
            let tcp = Some(sys::tcp_state(self.endpoint.as_fd()));
            match tcp {
                _ if tcp != before => before = tcp,
                Some(Ok(TcpState::EndSent)) if acknowledged(left - 1) => return Verdict::Ours,
                Some(Ok(TcpState::EndSent | TcpState::Other)) => return Verdict::TooEarly,
                _ => break,
            }
        }
        // On a connection that is over it cannot be known whose send a notification is of.
        if state.sole_user { Verdict::Unknowable } else { Verdict::Ours }
    }

    /// Whether the kernel has nothing by reference any more, though sends are in flight by their
    /// ids: those were lost, or cannot be attributed. To be asked when the error queue is empty.
    fn all_are_released(&self, state: &mut ConnState, done: &mut Vec<Done<InFlightSend>>) -> bool {
        let nothing = state.ledger.in_flight() == 0 && state.unattributed.is_empty();
        if nothing || sys::option_memory(self.endpoint.as_fd()) != Ok(0) {
            return false;
        }
        for (lo, hi, copied) in std::mem::take(&mut state.unattributed) {
            // It says whether these were copied, and which of the application's have ended.
            let _ = state.ledger.complete(lo, hi, copied, done);
        }
        state.ledger.complete_all(done);
        if let Some(Desynced::TooEarly { hi, .. }) = state.desynced {
            if hi.wrapping_add(1) == state.ledger.next_id() {
                // The ids do add up: it was no mistake to tell so early.
                state.desynced = None;
            }
        }
        true
    }

    /// Keeps the error queue short, where acknowledgements come to it: they take their room from
    /// what the socket may receive.
    pub(crate) fn read_acknowledgements(&self) {
        if self.ack_timestamps && lock(&self.state).unread >= MOST_UNREAD {
            // An error shows itself to the next who reads.
            let _ = self.reap_as(None);
        }
    }
}
