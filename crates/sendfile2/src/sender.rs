//! The sender: a socket that sends file ranges and buffers, and hands out tickets.
//!
//! `try_…` never blocks and decides nothing about waiting: what the kernel did is a value. The
//! blocking forms are a thin layer over them, each with a deadline.

use std::fmt;
use std::io::IoSlice;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crate::apart::Apart;
use crate::conn::{Config, Conn, ErrorQueueMessage, Hook, LockedConn, Outcome, Payload, SendOp};
use crate::engine::{Choice, Engine, Limit, Why};
use crate::error::Error;
use crate::guard::Lease;
use crate::holder::{CompletionSource, Held, InFlight, Link};
use crate::parcel::{Parcel, Slot};
use crate::policy::{self, Situation};
use crate::progress::SendProgress;
use crate::reaper::Reaper;
use crate::refusal::Refusal;
use crate::send::copy;
use crate::send::zerocopy;
use crate::send::zerocopy::ByReference;
use crate::socket::account::Counters;
use crate::source::{Extent, Source, View};
use crate::sys::mapping::Region;
use crate::ticket::Ticket;
use crate::wait;

/// How a [`Sender`] is to behave.
#[derive(Clone, Default)]
pub struct Options {
    engine: Engine,
    next_id: Option<u32>,
    reset_on_death: bool,
    hook: Option<Hook>,
    linger: Option<Duration>,
    acknowledgements: bool,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("engine", &self.engine)
            .field("next_id", &self.next_id)
            .field("reset_on_death", &self.reset_on_death)
            .field("linger", &self.linger)
            .field("acknowledgements", &self.acknowledgements)
            .finish_non_exhaustive()
    }
}

impl Options {
    /// The defaults: engine `auto`, a socket on which no zerocopy send was made yet.
    #[must_use]
    pub fn new() -> Self {
        Options::default()
    }

    /// The engine to use; [`Engine::Auto`] if not said.
    #[must_use]
    pub fn engine(mut self, engine: Engine) -> Self {
        self.engine = engine;
        self
    }

    /// The notification id that the next zerocopy send on the socket will get: how many were made
    /// on it before, modulo 2³². Completions of earlier ids are passed to the
    /// [notice hook](Self::on_notice).
    #[must_use]
    pub fn next_id(mut self, id: u32) -> Self {
        self.next_id = Some(id);
        self
    }

    /// While zerocopy sends are in flight, let the death of the process reset the connection.
    ///
    /// Without it the kernel goes on sending from the page cache after a crash, and a restarted
    /// program that overwrites the file at once changes what the peer receives. With it (`SO_LINGER
    /// {1, 0}`, restored when drained) a program that exits in a hurry cuts its peers short. Sends
    /// under a lease do this always. TCP only. Segments already in a queueing discipline remain.
    ///
    /// It resets nothing while another process has the socket, too, by fork(2), by an exec without
    /// `CLOEXEC`, or over a unix socket: the kernel closes a socket with its last descriptor, and
    /// goes on sending until then. Overwrite the file only when those processes are gone.
    ///
    /// An `SO_LINGER` that the application sets meanwhile stays, and is not replaced until nothing is
    /// in flight: until then the process's death does what that says. (A `{1, 0}` of its own cannot be
    /// told from this one; set it before the sends, or after them.)
    #[must_use]
    pub fn reset_on_death(mut self, reset: bool) -> Self {
        self.reset_on_death = reset;
        self
    }

    /// Who is given what the socket's error queue holds beside our completions: ICMP errors,
    /// timestamps, completions of the application's own sends. Called by whoever reaps, also the
    /// reaper's thread, outside all locks. Without a hook they are traced and dropped.
    #[must_use]
    pub fn on_notice(mut self, hook: impl Fn(ErrorQueueMessage) + Send + Sync + 'static) -> Self {
        self.hook = Some(Arc::new(hook));
        self
    }

    /// Let the kernel put each acknowledgement of a send on the error queue (`TX_ACK` stamps,
    /// Linux 3.17), so that [`Ticket::wait_acknowledged`] is woken by it and need not look again and
    /// again. That costs each send an entry there, which is read here and there. TCP only; not where
    /// the application has set `SO_TIMESTAMPING` already.
    #[must_use]
    pub fn acknowledgements(mut self, tell: bool) -> Self {
        self.acknowledgements = tell;
        self
    }

    /// How long the reaper waits for what is in flight when the sender is dropped, before it
    /// aborts the connection; 60 seconds if not said, and for ever with [`Duration::MAX`].
    #[must_use]
    pub fn linger(mut self, limit: Duration) -> Self {
        self.linger = Some(limit);
        self
    }
}

/// What a non-blocking send came to.
#[derive(Debug)]
pub enum Sent<T> {
    /// The kernel took `bytes` of it, maybe fewer than given: send the rest next. Fewer do not mean
    /// that the socket is full (a call is not given everything at once); only
    /// [`WouldBlock`](Self::WouldBlock) does.
    Accepted {
        /// Bytes taken.
        bytes: usize,
        /// What becomes of them.
        ticket: T,
    },
    /// The socket buffer is full: try again when the socket is writable.
    WouldBlock,
    /// A kernel limit is in the way, and sends of this socket are in flight: try again when one
    /// of them is released.
    Limit(Limit),
}

/// What a blocking send came to.
#[derive(Debug)]
pub struct Transfer {
    /// Bytes the kernel took.
    pub bytes: u64,
    /// What becomes of them, together.
    pub ticket: Ticket,
}

/// A blocking send that stopped early: why, and how far it had got.
#[derive(Debug, thiserror::Error)]
#[error("stopped after {} bytes: {error}", transfer.bytes)]
pub struct Stopped {
    /// Why.
    pub error: Error,
    /// The part that the kernel took.
    pub transfer: Transfer,
}

impl From<Stopped> for Error {
    fn from(stopped: Stopped) -> Self {
        stopped.error
    }
}

/// A socket that sends file ranges and buffers and knows what of them is still in flight.
///
/// It owns the socket. [`AsFd`] lends it for reading, for options and for `poll`; do not read
/// its error queue there, nor send with `MSG_ZEROCOPY` other than in
/// [`application_sends`](Self::application_sends). While `SO_ZEROCOPY` is off, zerocopy is refused.
///
/// Dropping a sender frees nothing that is in flight, which is handed over to the
/// [reaper](crate::reaper). The peer gets everything and then the end of the stream, with two
/// exceptions: what is still in flight after [`Options::linger`] is aborted, however steadily the
/// peer reads; and where input of the peer's has not been read, the kernel closes a TCP socket by
/// a reset, as it always does, and what it had not sent yet is lost. To know that the peer got
/// everything, use [`close`](Self::close) and the [tickets](Ticket::wait_acknowledged).
#[derive(Debug)]
pub struct Sender {
    conn: Arc<Conn>,
    engine: Engine,
    linger: Duration,
    reaper: &'static Reaper,
}

impl Sender {
    /// Takes `socket`, with the default [`Options`].
    ///
    /// It is taken by value because a duplicate in other hands would withhold the end of the
    /// stream, and reading its error queue there would steal notifications.
    ///
    /// # Errors
    /// As [`with`](Self::with).
    pub fn new(socket: impl Into<OwnedFd>) -> Result<Self, Error> {
        Sender::with(socket, Options::default())
    }

    /// Takes `socket`: connected TCP, connected UDP, or any other stream or datagram socket
    /// (which is then served by `copy`). Whether it is in non-blocking mode does not matter.
    ///
    /// # Errors
    /// [`Error::Socket`] if it is no socket; [`Error::AlreadyOwned`] if a sender has it already;
    /// [`Error::NextIdUnknown`] if `SO_ZEROCOPY` is set on it and [`Options::next_id`] is not
    /// given; [`Error::Refused`] for the engine `uring`, which no sender takes; [`Error::Wait`] if
    /// the reaper cannot be started. The socket is then closed.
    pub fn with(socket: impl Into<OwnedFd>, options: Options) -> Result<Self, Error> {
        let reaper = Reaper::start()?;
        let Options { engine, next_id, reset_on_death, hook, linger, acknowledgements } = options;
        if engine == Engine::Uring {
            return Err(Error::Refused { engine, reason: Refusal::Driver });
        }
        let conn = Conn::new(
            socket.into(),
            Config {
                next_id,
                reset_on_exit: reset_on_death,
                hook,
                ack_timestamps: acknowledgements,
            },
        )?;
        let linger = linger.unwrap_or(Duration::from_secs(60));
        Ok(Sender { conn, engine, linger, reaper })
    }

    /// Sends from `range` of the file, without blocking, as far as the kernel takes it in one
    /// call. `more` says that more follows at once, so that the kernel may wait with a segment
    /// that is not full (`MSG_MORE`; for a series of such sends on TCP, `TCP_CORK`, until one
    /// that says otherwise, or somebody waits for a release). What does not follow after all
    /// delays the last segment by up to 200 ms.
    ///
    /// On a socket with record boundaries the range is one record, and is sent whole or not.
    /// An empty range sends nothing.
    ///
    /// # Errors
    /// [`Error::Truncated`] if the file ends at or before the start of the range (on a socket
    /// with record boundaries: before its end); [`Error::File`] if it cannot be read;
    /// [`Error::Socket`]; [`Error::Refused`] if the engine is `zerocopy` or `native` and cannot
    /// serve it;
    /// [`Error::Aborted`]; [`Error::NotIssued`] and [`Error::TooEarly`]. Nothing was sent then.
    pub fn try_send_file(
        &mut self,
        file: &Source,
        range: Range<u64>,
        more: bool,
    ) -> Result<Sent<Ticket>, Error> {
        self.once(|sender, progress| sender.attempt_file(Origin::File(file), range, more, progress))
    }

    /// Sends `range` of the file, all of it, waiting for the socket until `deadline`.
    ///
    /// # Errors
    /// [`Stopped`], which says why and how much was sent; the causes are those of
    /// [`try_send_file`](Self::try_send_file), [`Error::Deadline`] and [`Error::Wait`].
    pub fn send_file(
        &mut self,
        file: &Source,
        range: Range<u64>,
        more: bool,
        deadline: Instant,
    ) -> Result<Transfer, Stopped> {
        let (start, end) = (range.start, range.end.max(range.start));
        let origin = Origin::File(file);
        self.all(end - start, more, deadline, |sender, done, progress| {
            sender.attempt_file(origin, start + done..end, more, progress)
        })
    }

    /// As [`try_send_file`](Self::try_send_file), from a range under `lease`: it stays leased until
    /// the kernel has released it, whatever happens to the lease's handles, the ticket and this
    /// sender. While it is in flight, the death of the process resets the connection, unless another
    /// process has the socket, too (see [`Options::reset_on_death`]).
    ///
    /// # Errors
    /// As [`try_send_file`](Self::try_send_file), and [`Error::NotLeased`].
    pub fn try_send_lease(
        &mut self,
        lease: &Lease,
        range: Range<u64>,
        more: bool,
    ) -> Result<Sent<Ticket>, Error> {
        let held = self.hold(lease, &range)?;
        self.once(|sender, progress| {
            sender.attempt_file(Origin::Lease(lease, &held), range, more, progress)
        })
    }

    /// As [`send_file`](Self::send_file), from a range under `lease`; see
    /// [`try_send_lease`](Self::try_send_lease).
    ///
    /// # Errors
    /// As [`send_file`](Self::send_file), and [`Error::NotLeased`].
    pub fn send_lease(
        &mut self,
        lease: &Lease,
        range: Range<u64>,
        more: bool,
        deadline: Instant,
    ) -> Result<Transfer, Stopped> {
        let (start, end) = (range.start, range.end.max(range.start));
        let held = match self.hold(lease, &range) {
            Ok(held) => held,
            Err(error) => {
                let ticket = Ticket::sent(
                    SendProgress::new(self.asked()),
                    Some(Arc::clone(self.conn.link())),
                );
                return Err(Stopped { error, transfer: Transfer { bytes: 0, ticket } });
            }
        };
        let origin = Origin::Lease(lease, &held);
        self.all(end - start, more, deadline, |sender, done, progress| {
            sender.attempt_file(origin, start + done..end, more, progress)
        })
    }

    pub(crate) fn hold(&self, lease: &Lease, range: &Range<u64>) -> Result<Held, Error> {
        lease.ours()?;
        if lease.covers(range) {
            Ok(lease.hold(&self.conn))
        } else {
            Err(Error::NotLeased { range: range.clone() })
        }
    }

    /// Sends `bytes` by a plain `send(2)`, without blocking: the kernel has copied what it
    /// accepted when this returns. For headers and the like.
    ///
    /// # Errors
    /// [`Error::Socket`]; [`Error::Aborted`]; [`Error::NotIssued`] and [`Error::TooEarly`].
    pub fn try_send(&mut self, bytes: &[u8], more: bool) -> Result<Sent<Ticket>, Error> {
        self.once(|sender, progress| sender.attempt_slice(bytes, more, progress))
    }

    /// As [`try_send`](Self::try_send), from several slices by one `sendmsg(2)`.
    ///
    /// # Errors
    /// As [`try_send`](Self::try_send).
    pub fn try_send_vectored(
        &mut self,
        slices: &[IoSlice<'_>],
        more: bool,
    ) -> Result<Sent<Ticket>, Error> {
        self.once(|sender, progress| sender.conn.locked()?.transmit_slices(slices, more, progress))
    }

    /// Sends all of `bytes` by plain sends, waiting for the socket until `deadline`.
    ///
    /// # Errors
    /// [`Stopped`]; the causes are those of [`try_send`](Self::try_send), [`Error::Deadline`] and
    /// [`Error::Wait`].
    pub fn send(
        &mut self,
        bytes: &[u8],
        more: bool,
        deadline: Instant,
    ) -> Result<Transfer, Stopped> {
        self.all(bytes.len() as u64, more, deadline, |sender, done, progress| {
            // done < bytes.len(), so it fits.
            let done = usize::try_from(done).unwrap_or(bytes.len());
            sender.attempt_slice(&bytes[done..], more, progress)
        })
    }

    /// Sends from what is left of `parcel`, by the sender's engine, without blocking. What the
    /// kernel took is in flight until it is released; then the parcel gives its buffer back.
    ///
    /// # Errors
    /// As [`try_send`](Self::try_send); [`Error::Refused`]; [`Error::OtherSender`].
    pub fn try_send_buffer<B>(
        &mut self,
        parcel: &mut Parcel<B>,
        more: bool,
    ) -> Result<Sent<Ticket>, Error>
    where
        B: AsRef<[u8]> + Send + 'static,
    {
        let link = self.conn.link();
        if !parcel.link.as_ref().is_some_and(|of| Arc::ptr_eq(of, link)) {
            // Also where the other sender is gone: this peer would get the tail for the whole.
            let other = |of: &Arc<Link>| of.source.strong_count() > 0;
            if parcel.sent() > 0 || parcel.link.as_ref().is_some_and(other) {
                return Err(Error::OtherSender);
            }
            parcel.link = Some(Arc::clone(link));
        }
        let from = parcel.sent();
        if from > 0 && parcel.remaining() == 0 {
            // On a socket with record boundaries another send would be an empty record.
            return Ok(Sent::Accepted { bytes: 0, ticket: parcel.ticket() });
        }
        let outcome = self.attempt_buffer(&parcel.slot, from, more, &mut parcel.progress)?;
        self.sent(outcome, || parcel.ticket())
    }

    /// Sends all that is left of `parcel`, waiting for the socket until `deadline`.
    /// [`Parcel::sent`] says how far it got.
    ///
    /// # Errors
    /// As [`try_send_buffer`](Self::try_send_buffer); [`Error::Deadline`]; [`Error::Wait`].
    pub fn send_buffer<B>(
        &mut self,
        parcel: &mut Parcel<B>,
        more: bool,
        deadline: Instant,
    ) -> Result<Ticket, Error>
    where
        B: AsRef<[u8]> + Send + 'static,
    {
        let conn = Arc::clone(&self.conn);
        loop {
            let mut attempt = || match self.try_send_buffer(parcel, more)? {
                Sent::Accepted { .. } => Ok(Some(())),
                Sent::WouldBlock | Sent::Limit(_) => Ok(None),
            };
            if attempt()?.is_none() {
                wait::until_writable(&*conn, deadline, FULL, attempt)?;
            }
            if parcel.remaining() == 0 {
                return Ok(parcel.ticket());
            }
        }
    }

    /// Lets the application make zerocopy sends of its own on the socket. `send` makes them, with
    /// `MSG_DONTWAIT`, and returns beside its result how many succeeded with at least one byte (at
    /// most 2²⁰ at a time).
    /// Their completions come to the [notice hook](Options::on_notice).
    ///
    /// Wait for all of these before you give the sender up: they do not count as in flight here,
    /// so neither [`wait_all`](Self::wait_all) nor [`close`](Self::close) nor the reaper waits for
    /// them, and closing the socket discards their notifications while the kernel may still send.
    ///
    /// The connection is locked meanwhile: `send` must not use this sender or its tickets.
    ///
    /// # Errors
    /// [`Error::Aborted`]; [`Error::WindowFull`].
    pub fn application_sends<T>(
        &mut self,
        send: impl FnOnce(BorrowedFd<'_>) -> (T, u32),
    ) -> Result<T, Error> {
        self.conn.application_sends(send)
    }

    /// Reads completions and lets go of what they release, without blocking. Returns how many
    /// messages were read. To be called when the socket reports EPOLLERR, or whenever convenient.
    ///
    /// # Errors
    /// [`Error::NotIssued`], [`Error::TooEarly`], [`Error::ErrorQueue`], [`Error::Socket`]: nothing is
    /// released for what could not be understood.
    pub fn reap(&self) -> Result<usize, Error> {
        CompletionSource::reap(&*self.conn)
    }

    /// Waits until nothing is in flight.
    ///
    /// # Errors
    /// [`Error::Deadline`] if something still is at `deadline`; as [`reap`](Self::reap);
    /// [`Error::Wait`].
    pub fn wait_all(&self, deadline: Instant) -> Result<(), Error> {
        let drained = || Ok((self.conn.sends_in_flight() == 0).then_some(()));
        if drained()?.is_some() {
            return Ok(());
        }
        wait::until(&*self.conn, deadline, "sends are still in flight", drained)
    }

    /// What is in flight, as far as the notifications read so far say.
    #[must_use]
    pub fn in_flight(&self) -> InFlight {
        CompletionSource::in_flight(&*self.conn)
    }

    /// What a send of `bytes` from a mapped file would be made by now, and why.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn choice(&self, bytes: u64) -> Result<Choice, Error> {
        let mut locked = self.conn.look();
        if self.engine == Engine::Native && bytes > 0 {
            return match locked.native() {
                Ok(()) => Ok(self.asked()),
                Err(reason) => Err(self.conn.refuse(self.engine, reason)),
            };
        }
        self.choose(&mut locked, bytes, true, false)
    }

    /// What this sender did so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.conn.counters()
    }

    /// Ends the connection at once: the peer sees a reset, and what it had not received is lost.
    /// Frees nothing by itself: what is in flight is released when its notifications arrive.
    ///
    /// # Errors
    /// [`Error::Socket`] if the kernel refuses.
    pub fn abort(&self) -> Result<(), Error> {
        CompletionSource::abort(&*self.conn)
    }

    /// Ends the stream towards the peer, which sees its end after everything that was sent.
    ///
    /// # Errors
    /// [`Error::Socket`].
    pub fn shutdown(&mut self) -> Result<(), Error> {
        self.conn.shut_down_writing()
    }

    /// Ends the stream, waits until nothing is in flight, and closes the socket.
    ///
    /// # Errors
    /// As [`wait_all`](Self::wait_all). The sender is gone also then; what is in flight is handed
    /// over to the reaper.
    pub fn close(mut self, deadline: Instant) -> Result<(), Error> {
        self.shutdown()?;
        self.wait_all(deadline)
    }

    /// Waits until nothing is in flight and gives the socket back, with the notification id that
    /// its next zerocopy send would get (see [`Options::next_id`]).
    ///
    /// # Errors
    /// The cause and the sender, if something is still in flight at `deadline`, the next id is not
    /// known ([`Error::NotIssued`]; [`Error::Refused`] after a datagram send that may have used
    /// one), or the descriptor cannot be duplicated.
    pub fn into_socket(self, deadline: Instant) -> Result<(OwnedFd, u32), (Error, Self)> {
        if let Err(error) = self.wait_all(deadline) {
            return Err((error, self));
        }
        // A duplicate, because a ticket that is being waited for may know the original a little
        // longer.
        let socket = match self.conn.as_fd().try_clone_to_owned() {
            Ok(socket) => socket,
            Err(cause) => return Err((Error::Socket { op: "dup", cause }, self)),
        };
        match self.conn.retire() {
            Ok(next) => Ok((socket, next)),
            Err(error) => Err((error, self)),
        }
    }

    /// Runs one attempt with a ticket of its own.
    fn once(
        &mut self,
        attempt: impl FnOnce(&Sender, &mut SendProgress) -> Result<Outcome, Error>,
    ) -> Result<Sent<Ticket>, Error> {
        let mut progress = SendProgress::new(self.asked());
        let outcome = attempt(self, &mut progress)?;
        self.sent(outcome, || Ticket::sent(progress, Some(Arc::clone(self.conn.link()))))
    }

    /// What an attempt came to, for its caller.
    #[inline(always)]
    fn sent<T>(&self, outcome: Outcome, ticket: impl FnOnce() -> T) -> Result<Sent<T>, Error> {
        self.conn.read_acknowledgements();
        Ok(match outcome {
            Outcome::Accepted(bytes) => Sent::Accepted { bytes, ticket: ticket() },
            Outcome::WouldBlock => Sent::WouldBlock,
            Outcome::Limit(limit) => Sent::Limit(limit),
            // Memory that was handed over cannot fault, unless it is a mapping of its own.
            Outcome::Fault => return Err(Error::socket("send")(rustix::io::Errno::FAULT)),
            Outcome::Refused(reason) => return Err(self.conn.refuse(Engine::Zerocopy, reason)),
        })
    }

    /// Repeats `attempt`, given the bytes done so far, until `total` bytes are accepted.
    fn all(
        &mut self,
        total: u64,
        more: bool,
        deadline: Instant,
        mut attempt: impl FnMut(&Sender, u64, &mut SendProgress) -> Result<Outcome, Error>,
    ) -> Result<Transfer, Stopped> {
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
        let transfer = Transfer {
            bytes: progress.bytes(),
            ticket: Ticket::sent(progress, Some(Arc::clone(self.conn.link()))),
        };
        match error {
            None => Ok(transfer),
            Some(error) => Err(Stopped { error, transfer }),
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

    fn attempt_slice(
        &self,
        bytes: &[u8],
        more: bool,
        progress: &mut SendProgress,
    ) -> Result<Outcome, Error> {
        let choice = Choice { engine: Engine::Copy, why: Why::Slice };
        copy::region(&self.conn, self.conn.locked()?, Region::from(bytes), more, choice, progress)
    }

    fn attempt_buffer<B>(
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
        // The slot is empty only when its parcel is gone.
        let bytes = buffer.as_ref().map_or(&[][..], |b| b.as_ref()).get(from..).unwrap_or_default();
        let held: Held = Arc::clone(slot) as Held;
        self.attempt_region(Region::from(bytes), None, more, progress, Some(&held), false)
    }

    #[inline(always)]
    fn attempt_file(
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
            let (file, held) = origin.parts();
            return self.attempt_native(file, wanted, more, progress, held);
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
                    let at = Some((file, clamped.start));
                    match self.attempt_region(region, at, more, progress, held, held.is_some())? {
                        Outcome::Fault => {}
                        outcome => return Ok(outcome),
                    }
                }
            }
            View::Mapped(..) => {}
            View::Read(why, clamped) => {
                let choice = self.forced_copy(Refusal::File(why))?;
                return copy::read(&self.conn, file, clamped, more, records, choice, progress);
            }
        }
        self.read_after_fault(file, wanted, more, progress)
    }

    /// The mapping faulted, or a record does not fit into one, or the kernel could not read the
    /// file: reading tells what is there, or what is wrong.
    fn read_after_fault(
        &self,
        file: &Source,
        wanted: Range<u64>,
        more: bool,
        progress: &mut SendProgress,
    ) -> Result<Outcome, Error> {
        let choice = Choice { engine: Engine::Copy, why: Why::Fault };
        tracing::debug!(?wanted, %choice, "reading instead");
        let records = self.conn.endpoint().kind().records();
        copy::read(&self.conn, file, wanted, more, records, choice, progress)
    }

    /// By `native`, which was asked for by name. Any file will do, mapped or not: the kernel sends
    /// what `pread` would read, and knows itself where the file ends.
    fn attempt_native(
        &self,
        file: &Source,
        wanted: Range<u64>,
        more: bool,
        progress: &mut SendProgress,
        held: Option<&Held>,
    ) -> Result<Outcome, Error> {
        let mut locked = self.locked()?;
        locked.native().map_err(|reason| self.conn.refuse(self.engine, reason))?;
        let len = usize::try_from(wanted.end - wanted.start).unwrap_or(usize::MAX);
        let payload = Payload::File(file.as_fd(), wanted.start, len);
        let op = SendOp { choice: self.asked(), more, guarded: held.is_some() };
        match zerocopy::send(&self.conn, locked, payload, op, progress, held)? {
            ByReference::Done(Outcome::Refused(reason)) => {
                Err(self.conn.refuse(self.engine, reason))
            }
            ByReference::Done(Outcome::Fault) => {
                let size = file.size()?;
                if wanted.start >= size {
                    return Err(Error::Truncated { at: size, wanted: wanted.start });
                }
                self.read_after_fault(file, wanted, more, progress)
            }
            ByReference::Done(outcome) => Ok(outcome),
            ByReference::NoRoom(limit) => {
                let choice = Choice { engine: Engine::Copy, why: Why::Limit(limit) };
                copy::read(&self.conn, file, wanted, more, false, choice, progress)
            }
        }
    }

    /// Locks the connection, when what was completed is read, if that is due.
    fn locked(&self) -> Result<LockedConn<'_>, Error> {
        let locked = self.conn.locked()?;
        if !locked.reap_is_due() {
            return Ok(locked);
        }
        drop(locked);
        CompletionSource::reap(&*self.conn)?;
        self.conn.locked()
    }

    /// `file` is where the region's bytes come from, if they are a file's, and from where on.
    fn attempt_region(
        &self,
        region: Region<'_>,
        file: Option<(&Source, u64)>,
        more: bool,
        progress: &mut SendProgress,
        held: Option<&Held>,
        guarded: bool,
    ) -> Result<Outcome, Error> {
        let conn = &self.conn;
        let mut locked = self.locked()?;
        let mut choice = self.choose(&mut locked, region.len() as u64, file.is_some(), more)?;
        while choice.engine != Engine::Copy {
            let op = SendOp { choice, more, guarded };
            let payload = match (choice.engine, file) {
                (Engine::Native, Some((file, at))) => Payload::File(file.as_fd(), at, region.len()),
                _ => Payload::Memory(region),
            };
            let done = zerocopy::send(conn, locked, payload, op, progress, held)?;
            locked = conn.locked()?;
            choice = match done {
                ByReference::Done(Outcome::Refused(reason)) => self.forced_copy(reason)?,
                ByReference::Done(outcome) => return Ok(outcome),
                // RLIMIT_MEMLOCK may be used up by others, which is no limit to native.
                ByReference::NoRoom(limit) => {
                    let native = choice.engine == Engine::Zerocopy
                        && self.engine == Engine::Auto
                        && file.is_some()
                        && locked.native().is_ok();
                    let engine = if native { Engine::Native } else { Engine::Copy };
                    Choice { engine, why: Why::Limit(limit) }
                }
            };
        }
        tracing::trace!(%choice, bytes = region.len(), "plain send");
        copy::region(conn, locked, region, more, choice, progress)
    }

    pub(crate) fn asked(&self) -> Choice {
        let engine = match self.engine {
            Engine::Zerocopy | Engine::Native => self.engine,
            Engine::Copy | Engine::Uring | Engine::Auto => Engine::Copy,
        };
        Choice { engine, why: Why::Asked }
    }

    #[inline(always)]
    fn choose(
        &self,
        locked: &mut LockedConn<'_>,
        bytes: u64,
        file: bool,
        more: bool,
    ) -> Result<Choice, Error> {
        if bytes == 0 {
            return Ok(Choice { engine: Engine::Copy, why: Why::Small });
        }
        match self.engine {
            // No sender has `uring`.
            Engine::Copy | Engine::Uring => Ok(self.asked()),
            Engine::Zerocopy => match locked.zerocopy(bytes, more) {
                Ok(()) => Ok(self.asked()),
                Err(reason) => Err(self.conn.refuse(self.engine, reason)),
            },
            Engine::Native => Ok(match locked.zerocopy(bytes, more) {
                Ok(()) => Choice { engine: Engine::Zerocopy, why: Why::Buffer },
                Err(reason) => Choice { engine: Engine::Copy, why: Why::Refused(reason) },
            }),
            Engine::Auto => Ok(self.choose_auto(locked, bytes, file, more)),
        }
    }

    /// What `auto` would take now for a send of `bytes`, whatever engine was asked for.
    pub(crate) fn choose_auto(
        &self,
        locked: &mut LockedConn<'_>,
        bytes: u64,
        file: bool,
        more: bool,
    ) -> Choice {
        let (mostly_copied, since_zerocopy) = locked.history();
        let zerocopy = locked.zerocopy(bytes, more);
        policy::choose(&Situation {
            bytes,
            zerocopy,
            native: file && zerocopy.is_err() && locked.native().is_ok(),
            peer_on_this_host: self.conn.endpoint().peer_on_this_host(),
            mostly_copied,
            since_zerocopy,
        })
    }

    pub(crate) fn conn(&self) -> &Arc<Conn> {
        &self.conn
    }

    /// `copy` in place of what was refused, unless that was asked for by name.
    fn forced_copy(&self, reason: Refusal) -> Result<Choice, Error> {
        match self.engine {
            Engine::Copy | Engine::Uring => Ok(self.asked()),
            Engine::Zerocopy => Err(self.conn.refuse(self.engine, reason)),
            // A buffer, which is not what it was asked for.
            Engine::Native | Engine::Auto => {
                Ok(Choice { engine: Engine::Copy, why: Why::Refused(reason) })
            }
        }
    }
}

const FULL: &str = "the peer does not read: the socket stayed full";

/// Where the bytes of a file come from.
#[derive(Clone, Copy)]
pub(crate) enum Origin<'a> {
    File(&'a Source),
    /// Under a lease, and what a send of it holds.
    Lease(&'a Lease, &'a Held),
}

impl<'a> Origin<'a> {
    fn parts(self) -> (&'a Source, Option<&'a Held>) {
        match self {
            Origin::File(file) => (file, None),
            Origin::Lease(lease, held) => (lease.source(), Some(held)),
        }
    }

    /// What the file is like, as far as `range` is concerned.
    fn extent(self, range: &Range<u64>) -> Result<Extent, Error> {
        match self {
            Origin::File(file) => file.extent(),
            Origin::Lease(lease, _) => lease.extent(range),
        }
    }
}

impl AsFd for Sender {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.conn.as_fd()
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        // Of a fork's copy the notifications are the parent's, and so is the end of the stream.
        if !self.conn.endpoint().is_ours() || self.conn.sends_in_flight() == 0 {
            return;
        }
        let mut apart = Apart::default();
        // What has arrived already needs no reaper. An error shows itself there again.
        apart.run(|| drop(CompletionSource::reap(&*self.conn)));
        if self.conn.sends_in_flight() > 0 {
            // No clock counts as far as never.
            let abort_at = Instant::now().checked_add(self.linger);
            apart.run(|| self.reaper.adopt(Arc::clone(&self.conn) as _, abort_at));
        }
        apart.resume();
    }
}
