//! One attempt at a send: which engine makes it, and what follows where that one cannot.

use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::{Arc, PoisonError};

use super::origin::Origin;
use super::outcome::Sent;
use super::sender::{FULL, Sender};
use crate::conn::{Conn, LockedConn, Outcome, Payload, SendOp};
use crate::deadline::Deadline;
use crate::engine::{Choice, Engine, Reason};
use crate::error::Error;
use crate::holder::{CompletionSource, Held};
use crate::policy::{self, Contents, Situation};
use crate::progress::SendProgress;
use crate::refusal::Refusal;
use crate::send::zerocopy::ByReference;
use crate::send::{copy, zerocopy};
use crate::send_buffer::Slot;
use crate::source::View;
use crate::sys::mapping::Region;
use crate::ticket::Ticket;
use crate::trace;
use crate::transfer::{IncompleteSend, Transfer};
use crate::wait;

impl Sender {
    /// Runs one attempt with a ticket of its own.
    pub(super) fn once(
        &mut self,
        attempt: impl FnOnce(&Sender, &mut SendProgress) -> Result<Outcome, Error>,
    ) -> Result<Sent<Ticket>, Error> {
        let mut progress = SendProgress::new(self.asked());
        let outcome = attempt(self, &mut progress)?;
        self.sent(outcome, || Ticket::sent(progress, Some(Arc::clone(self.conn.link()))))
    }

    /// Tells the caller the outcome of an attempt.
    #[inline(always)]
    pub(super) fn sent<T>(
        &self,
        outcome: Outcome,
        ticket: impl FnOnce() -> T,
    ) -> Result<Sent<T>, Error> {
        self.conn.read_acknowledgements();
        Ok(match outcome {
            Outcome::Accepted(bytes) => Sent::Accepted { bytes, ticket: ticket() },
            Outcome::WouldBlock => Sent::WouldBlock,
            Outcome::Limit(limit) => Sent::Limit(limit),
            // Memory that was handed over cannot fault, unless it is a mapping of its own.
            // And none of it is leased.
            Outcome::Fault | Outcome::Aside => {
                return Err(Error::socket("send")(rustix::io::Errno::FAULT));
            }
            Outcome::Refused(reason) => return Err(self.conn.refuse(Engine::Zerocopy, reason)),
        })
    }

    /// Repeats `attempt`, given the bytes done so far, until `total` bytes are accepted.
    pub(super) fn all(
        &mut self,
        total: u64,
        more: bool,
        deadline: Deadline,
        mut attempt: impl FnMut(&Sender, u64, &mut SendProgress) -> Result<Outcome, Error>,
    ) -> Result<Transfer, IncompleteSend> {
        let mut progress = SendProgress::new(self.asked());
        let mut error = None;
        if total == 0 && !more {
            self.conn.flush();
        }
        while progress.bytes() < total {
            let mut step = || {
                let done = progress.bytes();
                let outcome = attempt(self, done, &mut progress)?;
                // The ticket is made of all progress, later.
                let sent = self.sent(outcome, || ())?;
                if let Sent::Limit(_) = sent {
                    // What is in flight must go, and not wait for more, before it makes room.
                    self.conn.flush();
                }
                Ok(matches!(sent, Sent::Accepted { .. }).then_some(()))
            };
            let stepped = match step() {
                Ok(None) => wait::until_writable(&*self.conn, deadline, FULL, step),
                Ok(Some(())) => Ok(()),
                Err(e) => Err(e),
            };
            if let Err(e) = stepped {
                error = Some(e);
                break;
            }
        }
        self.transfer(progress, error.map_or(Ok(()), Err))
    }

    /// The result of a send of all, whose progress is `progress`.
    pub(crate) fn transfer(
        &self,
        progress: SendProgress,
        sent: Result<(), Error>,
    ) -> Result<Transfer, IncompleteSend> {
        let transfer = Transfer {
            bytes: progress.bytes(),
            ticket: Ticket::sent(progress, Some(Arc::clone(self.conn.link()))),
        };
        match sent {
            Ok(()) => Ok(transfer),
            Err(error) => Err(IncompleteSend { error, transfer }),
        }
    }

    /// Sends what follows of a transfer whose progress are `progress`, without blocking.
    #[cfg(feature = "tokio")]
    pub(crate) fn try_further(
        &self,
        origin: Origin<'_>,
        range: Range<u64>,
        more: bool,
        progress: &mut SendProgress,
    ) -> Result<Sent<()>, Error> {
        let outcome = self.attempt_file(origin, range, more, progress)?;
        self.sent(outcome, || ())
    }

    /// Sends from `bytes`, which follow what `progress` has, without blocking.
    #[cfg(feature = "tokio")]
    pub(crate) fn try_further_slice(
        &self,
        bytes: &[u8],
        more: bool,
        progress: &mut SendProgress,
    ) -> Result<Sent<()>, Error> {
        let outcome = self.attempt_slice(bytes, more, progress)?;
        self.sent(outcome, || ())
    }

    pub(super) fn attempt_slice(
        &self,
        bytes: &[u8],
        more: bool,
        progress: &mut SendProgress,
    ) -> Result<Outcome, Error> {
        let choice = Choice { engine: Engine::Copy, reason: Reason::Slice };
        let region = Region::from(bytes);
        copy::region(&self.conn, self.conn.locked()?, region, None, more, choice, progress)
    }

    pub(super) fn attempt_buffer<B>(
        &self,
        slot: &Arc<Slot<B>>,
        from: usize,
        more: bool,
        progress: &mut SendProgress,
    ) -> Result<Outcome, Error>
    where
        B: AsRef<[u8]> + Send + 'static,
    {
        let buffer = slot.lock().unwrap_or_else(PoisonError::into_inner);
        // The slot is empty only when its buffer is gone.
        let bytes = buffer.as_ref().map_or(&[][..], |b| b.as_ref()).get(from..).unwrap_or_default();
        let held: Held = Arc::clone(slot) as Held;
        self.attempt_region(Region::from(bytes), None, more, progress, Some(&held))
    }

    #[inline(always)]
    pub(super) fn attempt_file(
        &self,
        origin: Origin<'_>,
        wanted: Range<u64>,
        more: bool,
        progress: &mut SendProgress,
    ) -> Result<Outcome, Error> {
        if wanted.is_empty() {
            if !more {
                self.conn.flush();
            }
            return Ok(Outcome::Accepted(0));
        }
        if self.engine == Engine::Native {
            return self.attempt_native(origin, wanted, more, progress);
        }
        if self.engine == Engine::Sendfile {
            return self.attempt_sendfile(origin, wanted, more, self.asked(), progress);
        }
        if origin.is_overwritten(&wanted) {
            return self.read_instead(origin, wanted, more, Reason::KeptAside, progress);
        }
        if let Some(choice) = self.auto_takes_sendfile(origin, &wanted, more)? {
            return self.attempt_sendfile(origin, wanted, more, choice, progress);
        }
        let extent = origin.extent(&wanted)?;
        let (file, held) = origin.parts();
        let records = self.conn.endpoint().kind().records();
        if records && wanted.end > extent.size {
            // Before memory is asked for to read it into.
            return Err(Error::Truncated { at: extent.size, wanted: wanted.start });
        }
        match file.view(wanted.clone(), extent)? {
            View::Mapped(mapping, clamped) if !records || clamped == wanted => {
                if let Some(region) = mapping.region(clamped.clone()) {
                    let more = more && clamped.end == wanted.end;
                    let at = Some((origin, clamped.start));
                    match self.attempt_region(region, at, more, progress, held)? {
                        Outcome::Fault => {}
                        Outcome::Aside => {
                            let why = Reason::KeptAside;
                            return self.read_instead(origin, wanted, more, why, progress);
                        }
                        outcome => return Ok(outcome),
                    }
                }
            }
            View::Mapped(..) => {}
            View::Read(why, clamped) => {
                let choice = self.forced_copy(Refusal::File(why))?;
                return self.read(origin, clamped, more, choice, progress);
            }
        }
        self.read_instead(origin, wanted, more, Reason::Fault, progress)
    }

    /// The mapping faulted, or a record does not fit into one, or the kernel could not read the
    /// file: reading tells what is there, or what is wrong. Or the pages are of another generation.
    pub(super) fn read_instead(
        &self,
        origin: Origin<'_>,
        wanted: Range<u64>,
        more: bool,
        reason: Reason,
        progress: &mut SendProgress,
    ) -> Result<Outcome, Error> {
        let choice = Choice { engine: Engine::Copy, reason };
        trace::debug!(?wanted, %choice, "reading instead");
        self.read(origin, wanted, more, choice, progress)
    }

    fn read(
        &self,
        origin: Origin<'_>,
        wanted: Range<u64>,
        more: bool,
        choice: Choice,
        progress: &mut SendProgress,
    ) -> Result<Outcome, Error> {
        let whole = self.conn.endpoint().kind().records();
        let read = |buffer: &mut [u8], at| origin.read_at(buffer, at);
        copy::read(&self.conn, read, wanted, more, whole, choice, progress)
    }

    /// Sends by `native`, which was asked for by name. Any file will do, mapped or not: the kernel
    /// sends what `pread` would read, and knows itself where the file ends.
    pub(super) fn attempt_native(
        &self,
        origin: Origin<'_>,
        wanted: Range<u64>,
        more: bool,
        progress: &mut SendProgress,
    ) -> Result<Outcome, Error> {
        let (guarded, aside) = (origin.is_guarded(&wanted), origin.aside(wanted.start));
        let (file, held) = origin.parts();
        let mut locked = self.locked()?;
        if let Err(reason) = locked.native() {
            return Err(locked.refuse(self.engine, reason));
        }
        let len = usize::try_from(wanted.end - wanted.start).unwrap_or(usize::MAX);
        let payload = Payload::File(file.as_fd(), wanted.start, len);
        let op = SendOp { choice: self.asked(), more, guarded, aside };
        match zerocopy::send(&self.conn, locked, payload, op, progress, held)? {
            ByReference::Done(Outcome::Refused(reason)) => {
                Err(self.conn.refuse(self.engine, reason))
            }
            ByReference::Done(Outcome::Fault) => {
                let size = file.size()?;
                if wanted.start >= size {
                    return Err(Error::Truncated { at: size, wanted: wanted.start });
                }
                self.read_instead(origin, wanted, more, Reason::Fault, progress)
            }
            ByReference::Done(Outcome::Aside) => {
                self.read_instead(origin, wanted, more, Reason::KeptAside, progress)
            }
            ByReference::Done(outcome) => Ok(outcome),
            ByReference::NoRoom(limit) => {
                let choice = Choice { engine: Engine::Copy, reason: Reason::Limit(limit) };
                self.read(origin, wanted, more, choice, progress)
            }
        }
    }

    /// Locks the connection, when what was completed is read, if that is due.
    pub(super) fn locked(&self) -> Result<LockedConn<'_>, Error> {
        let locked = self.conn.locked()?;
        if !locked.reap_is_due() {
            return Ok(locked);
        }
        drop(locked);
        CompletionSource::reap(&*self.conn)?;
        self.conn.locked()
    }

    /// `file` is where the region's bytes come from, if they are a file's, and from where on.
    pub(super) fn attempt_region(
        &self,
        region: Region<'_>,
        file: Option<(Origin<'_>, u64)>,
        more: bool,
        progress: &mut SendProgress,
        held: Option<&Held>,
    ) -> Result<Outcome, Error> {
        let conn = &self.conn;
        let range = |at: u64| at..at + region.len() as u64;
        let contents = if file.is_some() { Contents::File } else { Contents::Memory };
        let aside = file.and_then(|(origin, at)| origin.aside(at));
        let mut locked = self.locked()?;
        let mut choice = match self.choose(&mut locked, region.len() as u64, contents, more) {
            Ok(choice) => choice,
            Err(reason) => return Err(locked.refuse(self.engine, reason)),
        };
        while choice.engine != Engine::Copy {
            let payload = match (choice.engine, file) {
                (Engine::Native, Some((origin, at))) => {
                    Payload::File(origin.parts().0.as_fd(), at, region.len())
                }
                _ => Payload::Memory(region),
            };
            let guarded = file.is_some_and(|(origin, at)| origin.is_guarded(&range(at)));
            let op = SendOp { choice, more, guarded, aside };
            choice = match zerocopy::send(conn, locked, payload, op, progress, held)? {
                ByReference::Done(Outcome::Refused(reason)) => self.forced_copy(reason)?,
                ByReference::Done(outcome) => return Ok(outcome),
                // RLIMIT_MEMLOCK may be used up by others, which is no limit to native.
                ByReference::NoRoom(limit) => {
                    let native = choice.engine == Engine::Zerocopy
                        && self.engine == Engine::Auto
                        && file.is_some()
                        && conn.locked()?.native().is_ok();
                    let engine = if native { Engine::Native } else { Engine::Copy };
                    Choice { engine, reason: Reason::Limit(limit) }
                }
            };
            locked = conn.locked()?;
        }
        let outcome = copy::region(conn, locked, region, aside, more, choice, progress);
        trace::trace!(%choice, bytes = region.len(), "plain send");
        outcome
    }

    pub(crate) fn asked(&self) -> Choice {
        let engine = match self.engine {
            Engine::Zerocopy | Engine::Native | Engine::Sendfile => self.engine,
            Engine::Copy | Engine::Uring | Engine::Auto => Engine::Copy,
        };
        Choice { engine, reason: Reason::Requested }
    }

    /// The engine that a send of `bytes` takes, or why the one that was asked for cannot.
    #[inline(always)]
    pub(super) fn choose(
        &self,
        locked: &mut LockedConn<'_>,
        bytes: u64,
        contents: Contents,
        more: bool,
    ) -> Result<Choice, Refusal> {
        if bytes == 0 {
            return Ok(Choice { engine: Engine::Copy, reason: Reason::Small });
        }
        match self.engine {
            // No sender has `uring`.
            Engine::Copy | Engine::Uring => Ok(self.asked()),
            Engine::Sendfile => Ok(Choice { engine: Engine::Copy, reason: Reason::Buffer }),
            Engine::Zerocopy => locked.zerocopy(bytes, more).map(|()| self.asked()),
            Engine::Native => Ok(match locked.zerocopy(bytes, more) {
                Ok(()) => Choice { engine: Engine::Zerocopy, reason: Reason::Buffer },
                Err(reason) => Choice { engine: Engine::Copy, reason: Reason::Refused(reason) },
            }),
            Engine::Auto => Ok(self.choose_auto(locked, bytes, contents, more)),
        }
    }

    /// The engine that `auto` would take now for a send of `bytes`, whatever engine was asked for.
    pub(crate) fn choose_auto(
        &self,
        locked: &mut LockedConn<'_>,
        bytes: u64,
        contents: Contents,
        more: bool,
    ) -> Choice {
        let (mostly_copied, since_zerocopy) = locked.history();
        let zerocopy = locked.zerocopy(bytes, more);
        policy::choose(&Situation {
            bytes,
            zerocopy,
            native: contents != Contents::Memory && zerocopy.is_err() && locked.native().is_ok(),
            peer_on_this_host: self.conn.endpoint().peer_on_this_host(),
            mostly_copied,
            since_zerocopy,
            sendfile: contents == Contents::Detachable,
        })
    }

    pub(crate) fn conn(&self) -> &Arc<Conn> {
        &self.conn
    }

    /// `copy` in place of what was refused, unless that was asked for by name.
    pub(super) fn forced_copy(&self, reason: Refusal) -> Result<Choice, Error> {
        match self.engine {
            Engine::Copy | Engine::Uring => Ok(self.asked()),
            Engine::Zerocopy => Err(self.conn.refuse(self.engine, reason)),
            // A buffer, which is not what it was asked for.
            Engine::Native | Engine::Sendfile | Engine::Auto => {
                Ok(Choice { engine: Engine::Copy, reason: Reason::Refused(reason) })
            }
        }
    }
}
