//! One send call, and the record of what the kernel took.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{SendAncillaryBuffer, SendFlags};

use super::connection::{InFlightSend, LockedConn};
use crate::aside::Aside;
use crate::engine::{Choice, Engine, Limit, Reason};
use crate::error::Error;
use crate::holder::Held;
use crate::native;
use crate::progress::SendProgress;
use crate::refusal::Refusal;
use crate::socket::kind::Kind;
use crate::sys::mapping::Region;
use crate::sys::recover::{self, Attempt, Next};
use crate::sys::sendfile;
use crate::sys::socket as sys;
use crate::trace;

/// The bytes that one call sends.
#[derive(Clone, Copy)]
pub(crate) enum Payload<'a> {
    Memory(Region<'a>),
    /// So many bytes of the file, from here on.
    File(BorrowedFd<'a>, u64, usize),
}

impl Payload<'_> {
    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        match self {
            Payload::Memory(region) => region.len(),
            Payload::File(.., len) => *len,
        }
    }

    /// The first `len` bytes of it.
    pub(crate) fn truncate(self, len: usize) -> Self {
        match self {
            Payload::Memory(region) => Payload::Memory(region.truncate(len)),
            Payload::File(file, at, all) => Payload::File(file, at, all.min(len)),
        }
    }
}

/// One send call: how it is to be made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SendOp<'a> {
    /// The engine, and why.
    pub(crate) choice: Choice,
    pub(crate) more: bool,
    /// The pages must not outlive this process on their way.
    pub(crate) guarded: bool,
    /// The bytes that its lease has aside, and where in the file its own begin.
    pub(crate) aside: Option<(&'a Aside, u64)>,
}

/// The outcome of one send call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Accepted(usize),
    WouldBlock,
    Limit(Limit),
    /// EFAULT: a page of the mapping is gone; or the file has ended, or cannot be read.
    Fault,
    /// EOPNOTSUPP for a send by reference.
    Refused(Refusal),
    /// A byte of it was overwritten under the lease, which has the old one aside.
    Aside,
}

impl LockedConn<'_> {
    /// Sends from `slices` once, without blocking; the kernel copies what it takes.
    pub(crate) fn transmit_slices(
        &mut self,
        slices: &[IoSlice<'_>],
        more: bool,
        progress: &mut SendProgress,
    ) -> Result<Outcome, Error> {
        let (conn, state) = (self.conn, &mut *self.state);
        state.usable()?;
        if more {
            conn.cork(state);
        }
        let more_flag = if more { SendFlags::MORE } else { SendFlags::empty() };
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL | more_flag;
        let sent = retry_on_intr(|| {
            rustix::net::sendmsg(&conn.endpoint, slices, &mut SendAncillaryBuffer::default(), flags)
        });
        match sent {
            Ok(bytes) => {
                let whole = bytes == slices.iter().map(|slice| slice.len()).sum();
                conn.follow(state, more, whole);
                state.account.counters.accepted += bytes as u64;
                let choice = Choice { engine: Engine::Copy, reason: Reason::Slice };
                progress.accepted(bytes as u64, state.account.counters.accepted, choice);
                state.since_zerocopy = state.since_zerocopy.saturating_add(1);
                progress.copied();
                Ok(Outcome::Accepted(bytes))
            }
            Err(Errno::AGAIN) => Ok(Outcome::WouldBlock),
            Err(errno) => Err(Error::socket("sendmsg")(errno)),
        }
    }

    /// Sends `payload` once, without blocking, records what the kernel took, and unlocks: who
    /// listens to traces may ask about the connection.
    #[inline(always)]
    pub(crate) fn transmit(
        mut self,
        payload: Payload<'_>,
        op: SendOp<'_>,
        progress: &mut SendProgress,
        held: Option<&Held>,
    ) -> Result<Outcome, Error> {
        self.state.usable()?;
        // No writer detaches it between this and the call.
        let pages = match op.aside {
            None => None,
            Some((aside, at)) => match aside.pages(&(at..at + payload.len() as u64)) {
                None => return Ok(Outcome::Aside),
                pages => pages,
            },
        };
        // A datagram of no bytes would use an id (the kernel counts its header), and a stream send
        // of none would not: by plain sends neither does.
        let len = payload.len();
        let exposed = op.choice.engine == Engine::Sendfile;
        let by_reference = op.choice.engine != Engine::Copy && !exposed && len > 0;
        let refusal = match op.choice.engine {
            // Asked before, but not under this lock; and the attempt before may have been refused.
            Engine::Native => self.native(),
            _ if by_reference && self.state.zerocopy.is_ok() => match self.counted() {
                Err(Errno::AGAIN) => return Ok(Outcome::WouldBlock),
                counted => counted.map_err(Error::socket("send"))?,
            },
            _ => self.state.zerocopy,
        };
        let (conn, state) = (self.conn, &mut *self.state);
        let guarded = by_reference && (op.guarded || conn.reset_on_exit);
        if by_reference {
            if let Err(reason) = refusal {
                return Ok(Outcome::Refused(reason));
            }
            state.ledger.room(1)?;
            if guarded {
                state.account.guard(&conn.endpoint)?;
            }
        }
        if op.more {
            if exposed {
                // sendfile(2) has no MSG_MORE.
                conn.follow(state, true, false);
            }
            conn.cork(state);
        }
        let socket = conn.endpoint.as_fd();
        let result = match payload {
            Payload::Memory(region) => sys::send(socket, region, by_reference, op.more),
            Payload::File(file, at, len) if exposed => sendfile::sendfile(socket, file, at, len),
            Payload::File(file, at, len) => {
                native::send(socket, file, &(at..at + len as u64), op.more)
            }
        };
        drop(pages);
        if exposed && result == Ok(0) {
            // The file has ended.
            return Ok(Outcome::Fault);
        }
        if let Ok(bytes) = result {
            if !op.more && len == 0 {
                conn.push(state);
            } else {
                conn.follow(state, op.more, bytes == len);
            }
            state.account.counters.accepted += bytes as u64;
            state.unread += u32::from(conn.ack_timestamps);
            progress.accepted(bytes as u64, state.account.counters.accepted, op.choice);
            if by_reference {
                state.since_zerocopy = 0;
                state.account.bytes += bytes as u64;
                state.account.begun(guarded);
                let at = Instant::now();
                let id = state.ledger.issue(InFlightSend {
                    held: held.cloned(),
                    pending: progress.in_flight(),
                    bytes: bytes as u64,
                    end: state.account.counters.accepted,
                    at,
                    guarded,
                });
                drop(self);
                trace::trace!(cookie = conn.endpoint.cookie(), id, bytes, "zerocopy send");
            } else {
                state.since_zerocopy = state.since_zerocopy.saturating_add(1);
                if exposed {
                    progress.exposed();
                } else {
                    progress.copied();
                }
            }
            return Ok(Outcome::Accepted(bytes));
        }
        if guarded {
            state.account.unguard(&conn.endpoint);
        }
        match result {
            Ok(bytes) => Ok(Outcome::Accepted(bytes)),
            Err(errno) => self.failed(errno, payload, by_reference),
        }
    }

    /// Does what follows from a send that failed.
    #[cold]
    fn failed(
        mut self,
        errno: Errno,
        payload: Payload<'_>,
        by_reference: bool,
    ) -> Result<Outcome, Error> {
        let (conn, state) = (self.conn, &mut *self.state);
        let udp = conn.endpoint.kind() == Kind::Udp;
        let unsure = by_reference && udp && conn.maybe_used_an_id(errno, payload.len());
        if unsure {
            // The kernel gives the id back when building the datagram fails, but not when a filter
            // or a queue drops it afterwards. So that the next id stays known, there is no next
            // one.
            state.ambiguous_id = Some(state.ledger.next_id());
            state.ledger.skip(1);
            state.zerocopy = Err(Refusal::IdsUnsure);
        }
        let others_in_flight = state.ledger.in_flight() > 0;
        let attempt = Attempt { by_reference, others_in_flight, ..Attempt::default() };
        let outcome = match recover::next(errno, attempt) {
            _ if unsure && errno == Errno::NOBUFS => Ok(Outcome::Refused(Refusal::IdsUnsure)),
            Next::WhenWritable => Ok(Outcome::WouldBlock),
            Next::AfterRelease | Next::Copy => {
                // It may have been changed: the next send asks for it anew.
                state.memlock = None;
                Ok(Outcome::Limit(Limit::Buffers))
            }
            Next::Read => Ok(Outcome::Fault),
            Next::Refused => {
                match payload {
                    Payload::Memory(_) => state.zerocopy = Err(Refusal::NotSupported),
                    Payload::File(..) => state.native = Some(Err(Refusal::NotSupported)),
                }
                Ok(Outcome::Refused(Refusal::NotSupported))
            }
            // The call itself is repeated when a signal interrupts it.
            Next::Again | Next::WithoutUsage | Next::Failed => Err(Error::socket("send")(errno)),
        };
        drop(self);
        if unsure {
            trace::warn!(cookie = conn.endpoint.cookie(), %errno, "{}", Refusal::IdsUnsure);
        }
        outcome
    }
}
