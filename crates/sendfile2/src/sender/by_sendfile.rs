//! Sends by `sendfile(2)`, of what is leased of a file that detaches.

use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use rustix::fs::OFlags;

use super::origin::Origin;
use super::sender::Sender;
use crate::conn::{Outcome, Payload, SendOp};
use crate::engine::{Choice, Engine, Reason};
use crate::error::Error;
use crate::policy::Contents;
use crate::progress::SendProgress;
use crate::refusal::Refusal;
use crate::streams;

/// Bytes sent by one `sendfile(2)`: the connection is locked meanwhile.
const SENDFILE_CALL: usize = 1 << 20;

impl Sender {
    /// Sends by `sendfile(2)` what is leased of a file that detaches.
    pub(super) fn attempt_sendfile(
        &self,
        origin: Origin<'_>,
        wanted: Range<u64>,
        more: bool,
        choice: Choice,
        progress: &mut SendProgress,
    ) -> Result<Outcome, Error> {
        let refuse = |reason| Err(self.conn.refuse(Engine::Sendfile, reason));
        if self.conn.endpoint().kind().records() {
            return refuse(Refusal::Socket("sendfile(2) splits records: it serves streams only"));
        }
        let Origin::Lease(lease, _) = origin else { return refuse(Refusal::NotDetaching) };
        if lease.aside().has(&wanted) {
            return self.read_instead(origin, wanted, more, Reason::KeptAside, progress);
        }
        // The kernel sends nothing from behind the end of the file.
        let end = lease.end_of(&wanted)?;
        if wanted.start >= end {
            return Err(Error::Truncated { at: end, wanted: wanted.start });
        }
        if !lease.detaches(&(wanted.start..end)) {
            return refuse(Refusal::NotDetaching);
        }
        self.make_nonblocking()?;
        let len = usize::try_from(end - wanted.start).unwrap_or(usize::MAX).min(SENDFILE_CALL);
        // Before the first byte of it is anywhere. And no more: the last page may be one that cannot
        // be detached, and is not sent so. Who has cut the file since has kept the bytes aside; who
        // cuts it later detaches what is exposed.
        let sent = wanted.start..wanted.start + len as u64;
        let Some(pages) = lease.aside().pages(&sent) else {
            return self.read_instead(origin, wanted, more, Reason::KeptAside, progress);
        };
        lease.expose(&sent);
        drop(pages);
        let more = more && wanted.start + len as u64 == wanted.end;
        let payload = Payload::File(lease.source().as_fd(), wanted.start, len);
        let aside = origin.aside(wanted.start);
        let op = SendOp { choice, more, guarded: false, aside };
        match self.locked()?.transmit(payload, op, progress, None)? {
            Outcome::Fault => self.read_instead(origin, wanted, more, Reason::Fault, progress),
            Outcome::Aside => self.read_instead(origin, wanted, more, Reason::KeptAside, progress),
            outcome => Ok(outcome),
        }
    }

    /// Sets the socket to non-blocking mode, since `sendfile(2)` has no flag for it.
    fn make_nonblocking(&self) -> Result<(), Error> {
        if !self.is_nonblocking()? {
            let socket = self.conn.endpoint().socket();
            let flags = rustix::fs::fcntl_getfl(socket).map_err(Error::socket("fcntl"))?;
            rustix::fs::fcntl_setfl(socket, flags | OFlags::NONBLOCK)
                .map_err(Error::socket("fcntl"))?;
            self.made_nonblocking.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Whether the socket is in non-blocking mode, in which it then stays.
    fn is_nonblocking(&self) -> Result<bool, Error> {
        if self.nonblocking.load(Ordering::Relaxed) {
            return Ok(true);
        }
        let flags = rustix::fs::fcntl_getfl(self.conn.endpoint().socket());
        let is = flags.map_err(Error::socket("fcntl"))?.contains(OFlags::NONBLOCK);
        self.nonblocking.store(is, Ordering::Relaxed);
        Ok(is)
    }

    /// Returns the choice of `auto`, if that is to send `range` by `sendfile(2)`, which needs no mapping
    /// of it.
    pub(super) fn auto_takes_sendfile(
        &self,
        origin: Origin<'_>,
        range: &Range<u64>,
        more: bool,
    ) -> Result<Option<Choice>, Error> {
        let Origin::Lease(lease, _) = origin else { return Ok(None) };
        if self.engine != Engine::Auto || !streams::are_many() {
            return Ok(None);
        }
        // A mode that is the application's is not changed unasked; nor where it cannot be asked.
        let stream =
            !self.conn.endpoint().kind().records() && self.is_nonblocking().unwrap_or(false);
        if !stream || !lease.detaches(range) {
            return Ok(None);
        }
        let bytes = range.end - range.start;
        let choice = self.choose_auto(&mut self.locked()?, bytes, Contents::Detachable, more);
        Ok((choice.engine == Engine::Sendfile).then_some(choice))
    }
}
