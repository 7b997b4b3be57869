//! The sender's interface.

use std::io::IoSlice;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::options::Options;
use super::origin::Origin;
use super::outcome::Sent;
use crate::apart::Apart;
use crate::conn::{Config, Conn};
use crate::deadline::Deadline;
use crate::engine::{Choice, Engine};
use crate::error::Error;
use crate::flags::SendFlags;
use crate::guard::Lease;
use crate::holder::{CompletionSource, Held, InFlight, Link};
use crate::policy::Contents;
use crate::progress::SendProgress;
use crate::reaper::Reaper;
use crate::refusal::Refusal;
use crate::send_buffer::SendBuffer;
use crate::socket::account::Counters;
use crate::source::Source;
use crate::streams::Stream;
use crate::ticket::Ticket;
use crate::transfer::{IncompleteSend, Transfer};
use crate::wait;

pub(super) const FULL: &str = "the peer does not read: the socket stayed full";

/// A socket that sends file ranges and buffers and knows what of them is still in flight.
///
/// It owns the socket, and reads and writes as a stream does ([`Read`](std::io::Read),
/// [`Write`](std::io::Write)). [`AsFd`] lends the socket for options and for `poll`; do not read
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
    pub(super) conn: Arc<Conn>,
    pub(super) engine: Engine,
    pub(super) linger: Duration,
    pub(super) reaper: &'static Reaper,
    /// The socket was in blocking mode, and is not any more.
    pub(super) made_nonblocking: AtomicBool,
    /// It was seen to be in non-blocking mode.
    pub(super) nonblocking: AtomicBool,
    /// Counts this sender among those that send what is leased.
    stream: Stream,
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
    /// (which is then served by `copy`, or by `sendfile`). Whether it is in non-blocking mode matters
    /// only for `sendfile`, which needs that: `auto` takes it on such sockets, and
    /// [`Engine::Sendfile`] sets it. Leave it so from then on: on a socket that is put back into
    /// blocking mode, sends may wait for the peer.
    ///
    /// # Errors
    /// [`Error::Socket`] if it is no socket; [`Error::AlreadyOwned`] if a sender has it already;
    /// [`Error::NextIdUnknown`] if `SO_ZEROCOPY` is set on it and [`Options::next_id`] is not
    /// given; [`Error::Refused`] for the engine `uring`, which no sender takes; [`Error::Wait`] if
    /// the reaper cannot be started. The socket is then closed.
    pub fn with(socket: impl Into<OwnedFd>, options: Options) -> Result<Self, Error> {
        let reaper = Reaper::start()?;
        let Options { engine, next_id, reset_on_exit, hook, linger, acknowledgements } = options;
        if engine == Engine::Uring {
            return Err(Error::Refused { engine, reason: Refusal::Driver });
        }
        let conn = Conn::new(
            socket.into(),
            Config { next_id, reset_on_exit, hook, ack_timestamps: acknowledgements },
        )?;
        let linger = linger.unwrap_or(Duration::from_secs(60));
        Ok(Sender {
            conn,
            engine,
            linger,
            reaper,
            made_nonblocking: AtomicBool::new(false),
            nonblocking: AtomicBool::new(false),
            stream: Stream::default(),
        })
    }

    /// Sends from `range` of the file, without blocking, as far as the kernel takes it in one
    /// call. A series of sends with [`SendFlags::MORE`] on TCP sets `TCP_CORK`, until one without
    /// it, or until somebody waits for a release.
    ///
    /// On a socket with record boundaries the range is one record, and is sent whole or not.
    /// An empty range sends nothing.
    ///
    /// # Errors
    /// [`Error::Truncated`] if the file ends at or before the start of the range (on a socket
    /// with record boundaries: before its end); [`Error::File`] if it cannot be read;
    /// [`Error::Socket`]; [`Error::Refused`] if the engine is `zerocopy`, `native` or `sendfile` and
    /// cannot serve it;
    /// [`Error::Aborted`]; [`Error::NotIssued`] and [`Error::TooEarly`]. Nothing was sent then.
    pub fn try_send_file(
        &mut self,
        file: &Source,
        range: Range<u64>,
        flags: SendFlags,
    ) -> Result<Sent<Ticket>, Error> {
        self.once(|sender, progress| {
            sender.attempt_file(Origin::File(file), range, flags.more(), progress)
        })
    }

    /// Sends `range` of the file, all of it, waiting for the socket until `deadline`.
    ///
    /// # Errors
    /// [`IncompleteSend`], which says why and how much was sent; the causes are those of
    /// [`try_send_file`](Self::try_send_file), [`Error::Deadline`] and [`Error::Wait`].
    pub fn send_file(
        &mut self,
        file: &Source,
        range: Range<u64>,
        flags: SendFlags,
        deadline: impl Into<Deadline>,
    ) -> Result<Transfer, IncompleteSend> {
        let deadline = deadline.into();
        let (start, end) = (range.start, range.end.max(range.start));
        let origin = Origin::File(file);
        self.all(end - start, flags.more(), deadline, |sender, done, progress| {
            sender.attempt_file(origin, start + done..end, flags.more(), progress)
        })
    }

    /// As [`try_send_file`](Self::try_send_file), from a range under `lease`: it stays leased until
    /// the kernel has released it, or a writer has detached it, whatever happens to the lease's
    /// handles, the ticket and this sender. While it is in flight, and the file cannot be detached,
    /// the death of the process resets the connection, unless another process has the socket, too
    /// (see [`Options::reset_on_exit`]).
    ///
    /// # Errors
    /// As [`try_send_file`](Self::try_send_file), and [`Error::NotLeased`].
    pub fn try_send_lease(
        &mut self,
        lease: &Lease,
        range: Range<u64>,
        flags: SendFlags,
    ) -> Result<Sent<Ticket>, Error> {
        let held = self.hold(lease, &range)?;
        self.once(|sender, progress| {
            sender.attempt_file(Origin::Lease(lease, &held), range, flags.more(), progress)
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
        flags: SendFlags,
        deadline: impl Into<Deadline>,
    ) -> Result<Transfer, IncompleteSend> {
        let deadline = deadline.into();
        let (start, end) = (range.start, range.end.max(range.start));
        let held = match self.hold(lease, &range) {
            Ok(held) => held,
            Err(error) => return self.transfer(SendProgress::new(self.asked()), Err(error)),
        };
        let origin = Origin::Lease(lease, &held);
        self.all(end - start, flags.more(), deadline, |sender, done, progress| {
            sender.attempt_file(origin, start + done..end, flags.more(), progress)
        })
    }

    pub(crate) fn hold(&self, lease: &Lease, range: &Range<u64>) -> Result<Held, Error> {
        lease.ours()?;
        if lease.covers(range) {
            self.stream.sends();
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
    pub fn try_send(&mut self, bytes: &[u8], flags: SendFlags) -> Result<Sent<Ticket>, Error> {
        self.once(|sender, progress| sender.attempt_slice(bytes, flags.more(), progress))
    }

    /// As [`try_send`](Self::try_send), from several slices by one `sendmsg(2)`.
    ///
    /// # Errors
    /// As [`try_send`](Self::try_send).
    pub fn try_send_vectored(
        &mut self,
        slices: &[IoSlice<'_>],
        flags: SendFlags,
    ) -> Result<Sent<Ticket>, Error> {
        self.once(|sender, progress| {
            sender.conn.locked()?.transmit_slices(slices, flags.more(), progress)
        })
    }

    /// Sends all of `bytes` by plain sends, waiting for the socket until `deadline`.
    ///
    /// # Errors
    /// [`IncompleteSend`]; the causes are those of [`try_send`](Self::try_send),
    /// [`Error::Deadline`] and [`Error::Wait`].
    pub fn send(
        &mut self,
        bytes: &[u8],
        flags: SendFlags,
        deadline: impl Into<Deadline>,
    ) -> Result<Transfer, IncompleteSend> {
        let deadline = deadline.into();
        self.all(bytes.len() as u64, flags.more(), deadline, |sender, done, progress| {
            // done < bytes.len(), so it fits.
            let done = usize::try_from(done).unwrap_or(bytes.len());
            sender.attempt_slice(&bytes[done..], flags.more(), progress)
        })
    }

    /// Sends from what is left of `buffer`, by the sender's engine, without blocking. What the
    /// kernel took is in flight until it is released; then [`SendBuffer::into_buffer`] gives it
    /// back.
    ///
    /// # Errors
    /// As [`try_send`](Self::try_send); [`Error::Refused`]; [`Error::OtherSender`].
    pub fn try_send_buffer<B>(
        &mut self,
        buffer: &mut SendBuffer<B>,
        flags: SendFlags,
    ) -> Result<Sent<Ticket>, Error>
    where
        B: AsRef<[u8]> + Send + 'static,
    {
        let link = self.conn.link();
        if !buffer.link.as_ref().is_some_and(|of| Arc::ptr_eq(of, link)) {
            // Also where the other sender is gone: this peer would get the tail for the whole.
            let other = |of: &Arc<Link>| of.source.strong_count() > 0;
            if buffer.sent() > 0 || buffer.link.as_ref().is_some_and(other) {
                return Err(Error::OtherSender);
            }
            buffer.link = Some(Arc::clone(link));
        }
        let from = buffer.sent();
        if from > 0 && buffer.remaining() == 0 {
            // On a socket with record boundaries another send would be an empty record.
            return Ok(Sent::Accepted { bytes: 0, ticket: buffer.ticket() });
        }
        let outcome =
            self.attempt_buffer(&buffer.slot, from, flags.more(), &mut buffer.progress)?;
        self.sent(outcome, || buffer.ticket())
    }

    /// Sends all that is left of `buffer`, waiting for the socket until `deadline`.
    /// [`SendBuffer::sent`] says how far it got.
    ///
    /// # Errors
    /// As [`try_send_buffer`](Self::try_send_buffer); [`Error::Deadline`]; [`Error::Wait`].
    pub fn send_buffer<B>(
        &mut self,
        buffer: &mut SendBuffer<B>,
        flags: SendFlags,
        deadline: impl Into<Deadline>,
    ) -> Result<Ticket, Error>
    where
        B: AsRef<[u8]> + Send + 'static,
    {
        let deadline = deadline.into();
        let conn = Arc::clone(&self.conn);
        loop {
            let mut attempt = || match self.try_send_buffer(buffer, flags)? {
                Sent::Accepted { .. } => Ok(Some(())),
                Sent::WouldBlock => Ok(None),
                Sent::Limit(_) => {
                    // What is in flight must go, and not wait for more, before it makes room.
                    conn.flush();
                    Ok(None)
                }
            };
            if attempt()?.is_none() {
                wait::until_writable(&*conn, deadline, FULL, attempt)?;
            }
            if buffer.remaining() == 0 {
                return Ok(buffer.ticket());
            }
        }
    }

    /// Lets the application make zerocopy sends of its own on the socket. `send` makes them, with
    /// `MSG_DONTWAIT`, and returns beside its result how many succeeded with at least one byte (at
    /// most 2²⁰ at a time).
    /// Their notifications come to the [hook](Options::on_error_queue).
    ///
    /// Wait for all of these before you give the sender up: they do not count as in flight here,
    /// so neither [`drain`](Self::drain) nor [`close`](Self::close) nor the reaper waits for
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

    /// Reads notifications and drops what they release, without blocking. Returns how many
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
    /// [`Error::Wait`]; [`Error::Forked`].
    pub fn drain(&self, deadline: impl Into<Deadline>) -> Result<(), Error> {
        let deadline = deadline.into();
        self.conn.endpoint().ours()?;
        let drained = || Ok((self.conn.sends_in_flight() == 0).then_some(()));
        if drained()?.is_some() {
            return Ok(());
        }
        wait::until(&*self.conn, deadline, "sends are still in flight", drained)
    }

    /// The sends in flight whose release is reported (not those by `sendfile`), as far as the
    /// notifications read so far say. A forked child, which
    /// knows nothing of them, is told of none.
    #[must_use]
    pub fn in_flight(&self) -> InFlight {
        CompletionSource::in_flight(&*self.conn)
    }

    /// Tells writers that this connection is about to send under the lease: one that waits no longer
    /// aborts it ([`GuardedFile::write_at_abort`](crate::guard::GuardedFile::write_at_abort)), also
    /// before the first send.
    pub fn announce(&self, lease: &Lease) {
        drop(lease.hold(&self.conn));
    }

    /// The engine that a send of `bytes` from a mapped file would take now, and the reason.
    ///
    /// # Errors
    /// [`Error::Refused`]; [`Error::Forked`].
    pub fn choice(&self, bytes: u64) -> Result<Choice, Error> {
        let mut locked = self.conn.locked()?;
        let chosen = match self.engine {
            _ if bytes == 0 => self.choose(&mut locked, bytes, Contents::File, false),
            Engine::Native => locked.native().map(|()| self.asked()),
            // Under a lease, of which this knows nothing.
            Engine::Sendfile => Ok(self.asked()),
            _ => self.choose(&mut locked, bytes, Contents::File, false),
        };
        chosen.map_err(|reason| locked.refuse(self.engine, reason))
    }

    /// The counters of this sender; all of them are 0 in a forked child.
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
    /// As [`shutdown`](Self::shutdown) and [`drain`](Self::drain). The sender is gone also then;
    /// what is in flight is handed over to the reaper.
    pub fn close(mut self, deadline: impl Into<Deadline>) -> Result<(), Error> {
        let deadline = deadline.into();
        self.shutdown()?;
        self.drain(deadline)
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
