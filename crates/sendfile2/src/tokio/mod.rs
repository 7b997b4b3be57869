//! Senders for tokio's tasks (feature `tokio`).
//!
//! ```no_run
//! use sendfile2::{SendFlags, Source, tokio::AsyncSender};
//!
//! # async fn serve(stream: tokio::net::TcpStream) -> Result<(), sendfile2::Error> {
//! let file = Source::open("segment")?;
//! let mut sender = AsyncSender::new(stream)?;
//! let sent = sender.send_file(&file, 0..file.size()?, SendFlags::NONE).await?;
//! sent.ticket.released().await?; // now it may be overwritten
//! sender.close().await
//! # }
//! ```
//!
//! Tickets have [`released`](crate::Ticket::released) and
//! [`acknowledged`](crate::Ticket::acknowledged), whatever sender they came from; a
//! [`GuardedFile`](crate::guard::GuardedFile) has async forms of its writes and leases.
//!
//! # Cancellation
//! Every future here may be dropped at any time: no completion is lost, and no range becomes free
//! by it. A send of all ([`send_file`](AsyncSender::send_file)) that is dropped has sent a part,
//! and nobody knows how much: end the connection then. To go on with it, keep its state outside of
//! the future ([`Progress`], [`SendBuffer`]), or send by single calls
//! ([`send_file_some`](AsyncSender::send_file_some)), each of which accepts something in at most
//! one of its polls, and is then done (as `write` is).
//!
//! # Waiting
//! tokio does not know a sender's socket, only an epoll instance that all senders of a runtime
//! share: it would take the EPOLLERR of a notification for the end of the stream, for ever. A task
//! of the runtime, which the first sender spawns, tells them what happens. (A wait for a release,
//! or of a writer, has two descriptors of its own.) Whoever waits on a connection, also only to
//! read from it, reads its notifications.
//!
//! A sender belongs to the runtime in which it was made: when that ends, what would wait fails.
//!
//! There are no deadlines here; `tokio::time::timeout` around a future is one. A peer that has
//! stopped reading keeps file pages in flight for as long as it likes: use it.

mod hub;
mod progress;
mod readiness;
mod ready;

use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use ::tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use ::tokio::net::TcpStream;
use ::tokio::task::coop;
use rustix::io::Errno;

use crate::error::Error;
use crate::flags::SendFlags;
use crate::guard::Lease;
use crate::holder::Waitable;
use crate::progress::SendProgress;
use crate::send_buffer::SendBuffer;
use crate::sender::{Options, Origin, Sender, Sent};
use crate::source::Source;
use crate::sys::tokio as sys;
use crate::ticket::Ticket;
use crate::transfer::{IncompleteSend, Transfer};
pub use progress::{Part, Progress};
use readiness::Side;
use ready::Ready;

/// A [`Sender`] for a task of tokio. It also reads ([`AsyncRead`]);
/// [`into_split`](Self::into_split) gives the reading to another task.
///
/// As an [`AsyncWrite`] it sends by plain sends, without `MSG_MORE`, and `poll_flush` sends what
/// earlier sends held back for more to follow.
///
/// Dropping it is dropping a [`Sender`]: what is in flight goes to the reaper.
#[derive(Debug)]
pub struct AsyncSender {
    // Before the sender, whose descriptor it refers to.
    ready: Arc<Ready>,
    sender: Sender,
}

impl AsyncSender {
    /// Takes a connection, with the default [`Options`].
    ///
    /// # Errors
    /// As [`Sender::with`]; [`Error::Wait`] if the stream cannot be taken from the runtime, or the
    /// runtime takes no descriptor.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O enabled.
    pub fn new(stream: TcpStream) -> Result<Self, Error> {
        AsyncSender::with(stream, Options::new())
    }

    /// Takes a connection.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    ///
    /// # Panics
    /// As [`new`](Self::new).
    pub fn with(stream: TcpStream, options: Options) -> Result<Self, Error> {
        let taken = stream.into_std();
        let stream = taken.map_err(|cause| Error::Wait { op: "TcpStream::into_std", cause })?;
        AsyncSender::from_socket(stream, options)
    }

    /// Takes a socket that is registered nowhere: one of the standard library's, or what a tokio
    /// socket's `into_std` gives. (A duplicate of a socket that is still registered would do what
    /// the [module](self) warns of: wake tasks without end.)
    ///
    /// # Errors
    /// As [`Sender::with`]; [`Error::Wait`].
    ///
    /// # Panics
    /// As [`new`](Self::new).
    pub fn from_socket(socket: impl Into<OwnedFd>, options: Options) -> Result<Self, Error> {
        let sender = Sender::with(socket, options)?;
        let ready = Arc::new(Ready::new(Arc::clone(sender.conn()))?);
        Ok(AsyncSender { ready, sender })
    }

    /// The sender beneath: what is in flight, counters, abort.
    #[must_use]
    pub fn sender(&self) -> &Sender {
        &self.sender
    }

    /// Runs `attempt`, which makes one send without blocking, as soon as the socket is worth
    /// trying, until it accepts something: what all sends here are made of.
    ///
    /// # Errors
    /// What `attempt` fails with; as [`Sender::reap`]; [`Error::Wait`] if the runtime is going
    /// away.
    pub fn poll_send<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut attempt: impl FnMut(&mut Sender) -> Result<Sent<T>, Error>,
    ) -> Poll<Result<Part<T>, Error>> {
        let coop = ready!(coop::poll_proceed(cx));
        loop {
            let tick = ready!(self.ready.poll(Side::Write, cx))?;
            match attempt(&mut self.sender)? {
                Sent::Accepted { bytes, ticket } => {
                    coop.made_progress();
                    return Poll::Ready(Ok(Part { bytes, ticket }));
                }
                Sent::WouldBlock => {}
                // What is in flight must go, and not wait for more, before it makes room.
                Sent::Limit(_) => self.sender.conn().flush(),
            }
            self.ready.clear(Side::Write, tick);
        }
    }

    async fn once(
        &mut self,
        mut attempt: impl FnMut(&mut Sender) -> Result<Sent<Ticket>, Error>,
    ) -> Result<Part, Error> {
        poll_fn(|cx| self.poll_send(cx, &mut attempt)).await
    }

    /// Sends `range` of the file, all of it. If the future is dropped, nobody knows how much was
    /// sent: [`send_file_resumable`](Self::send_file_resumable) keeps that.
    ///
    /// # Errors
    /// [`IncompleteSend`], which says why and how much was sent; the causes are those of
    /// [`Sender::try_send_file`] and [`poll_send`](Self::poll_send).
    pub async fn send_file(
        &mut self,
        file: &Source,
        range: Range<u64>,
        flags: SendFlags,
    ) -> Result<Transfer, IncompleteSend> {
        let mut progress = Progress::of(range, self.sender.asked());
        let sent = self.send_file_resumable(file, &mut progress, flags).await;
        self.sender.transfer(progress.progress, sent)
    }

    /// Sends `range` under the lease, all of it. If the future is dropped, nobody knows how much
    /// was sent: [`send_lease_resumable`](Self::send_lease_resumable) keeps that.
    ///
    /// # Errors
    /// As [`send_file`](Self::send_file), and [`Error::NotLeased`].
    pub async fn send_lease(
        &mut self,
        lease: &Lease,
        range: Range<u64>,
        flags: SendFlags,
    ) -> Result<Transfer, IncompleteSend> {
        let mut progress = Progress::of(range, self.sender.asked());
        let sent = self.send_lease_resumable(lease, &mut progress, flags).await;
        self.sender.transfer(progress.progress, sent)
    }

    /// Sends all of `bytes` by plain sends. If the future is dropped, nobody knows how many were
    /// sent: what must not be lost so is sent by [`send_some`](Self::send_some).
    ///
    /// # Errors
    /// [`IncompleteSend`]; the causes are those of [`Sender::try_send`] and
    /// [`poll_send`](Self::poll_send).
    pub async fn send(
        &mut self,
        bytes: &[u8],
        flags: SendFlags,
    ) -> Result<Transfer, IncompleteSend> {
        let mut progress = SendProgress::new(self.sender.asked());
        let sent = self.send_slice(bytes, &mut progress, flags.more()).await;
        self.sender.transfer(progress, sent)
    }

    async fn send_slice(
        &mut self,
        bytes: &[u8],
        progress: &mut SendProgress,
        more: bool,
    ) -> Result<(), Error> {
        if bytes.is_empty() && !more {
            self.sender.conn().flush();
        }
        // At most all of them are sent, so it fits.
        let sent =
            |progress: &SendProgress| usize::try_from(progress.bytes()).unwrap_or(usize::MAX);
        while let Some(left) = bytes.get(sent(progress)..).filter(|left| !left.is_empty()) {
            let _ = poll_fn(|cx| {
                self.poll_send(cx, |sender| sender.try_further_slice(left, more, progress))
            })
            .await?;
        }
        Ok(())
    }

    /// Sends from `range` of the file, as far as the kernel takes it in one call; see
    /// [`Sender::try_send_file`]. If the future is dropped, nothing was sent.
    ///
    /// # Errors
    /// As [`Sender::try_send_file`] and [`poll_send`](Self::poll_send).
    pub async fn send_file_some(
        &mut self,
        file: &Source,
        range: Range<u64>,
        flags: SendFlags,
    ) -> Result<Part, Error> {
        self.once(|sender| sender.try_send_file(file, range.clone(), flags)).await
    }

    /// Sends from `range` under the lease, as far as the kernel takes it in one call; see
    /// [`Sender::try_send_lease`]. If the future is dropped, nothing was sent.
    ///
    /// # Errors
    /// As [`Sender::try_send_lease`] and [`poll_send`](Self::poll_send).
    pub async fn send_lease_some(
        &mut self,
        lease: &Lease,
        range: Range<u64>,
        flags: SendFlags,
    ) -> Result<Part, Error> {
        self.once(|sender| sender.try_send_lease(lease, range.clone(), flags)).await
    }

    /// Sends from `bytes` by a plain send, as far as the kernel takes them in one call; see
    /// [`Sender::try_send`]. If the future is dropped, nothing was sent.
    ///
    /// # Errors
    /// As [`Sender::try_send`] and [`poll_send`](Self::poll_send).
    pub async fn send_some(&mut self, bytes: &[u8], flags: SendFlags) -> Result<Part, Error> {
        self.once(|sender| sender.try_send(bytes, flags)).await
    }

    /// Sends all that is left of `progress` from the file. If the future is dropped, another one
    /// goes on with it.
    ///
    /// # Errors
    /// As [`send_file_some`](Self::send_file_some); [`Error::OtherSender`]. What was accepted
    /// before is in `progress`.
    pub async fn send_file_resumable(
        &mut self,
        file: &Source,
        progress: &mut Progress,
        flags: SendFlags,
    ) -> Result<(), Error> {
        self.further(Origin::File(file), progress, flags.more()).await
    }

    /// Sends all that is left of `progress` under the lease. If the future is dropped, another one
    /// goes on with it.
    ///
    /// # Errors
    /// As [`send_lease_some`](Self::send_lease_some); [`Error::OtherSender`]. What was accepted
    /// before is in `progress`.
    pub async fn send_lease_resumable(
        &mut self,
        lease: &Lease,
        progress: &mut Progress,
        flags: SendFlags,
    ) -> Result<(), Error> {
        let held = self.sender.hold(lease, &progress.remaining())?;
        self.further(Origin::Lease(lease, &held), progress, flags.more()).await
    }

    async fn further(
        &mut self,
        origin: Origin<'_>,
        progress: &mut Progress,
        more: bool,
    ) -> Result<(), Error> {
        progress.belongs_to(&self.sender)?;
        if progress.remaining().is_empty() && !more {
            self.sender.conn().flush();
        }
        while !progress.remaining().is_empty() {
            let _ = poll_fn(|cx| {
                self.poll_send(cx, |sender| {
                    let left = progress.remaining();
                    sender.try_further(origin, left, more, &mut progress.progress)
                })
            })
            .await?;
        }
        Ok(())
    }

    /// Sends all that is left of `buffer`.
    ///
    /// # Errors
    /// As [`Sender::try_send_buffer`] and [`poll_send`](Self::poll_send). [`SendBuffer::sent`] says
    /// how far it got.
    pub async fn send_buffer<B>(
        &mut self,
        buffer: &mut SendBuffer<B>,
        flags: SendFlags,
    ) -> Result<Ticket, Error>
    where
        B: AsRef<[u8]> + Send + 'static,
    {
        loop {
            let _ = poll_fn(|cx| self.poll_send(cx, |s| s.try_send_buffer(buffer, flags))).await?;
            if buffer.remaining() == 0 {
                return Ok(buffer.ticket());
            }
        }
    }

    /// Waits until nothing is in flight.
    ///
    /// # Errors
    /// As [`poll_drain`](Self::poll_drain).
    pub async fn drain(&mut self) -> Result<(), Error> {
        poll_fn(|cx| self.poll_drain(cx)).await
    }

    /// Whether nothing is in flight; the task is woken when that may have changed.
    ///
    /// # Errors
    /// As [`Sender::reap`]; [`Error::Wait`]; [`Error::Forked`].
    pub fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.sender.conn().endpoint().ours()?;
        if self.sender.in_flight().sends == 0 {
            return Poll::Ready(Ok(()));
        }
        self.sender.conn().flush();
        loop {
            // Taken before looking: what is reaped after it makes the socket worth trying again.
            let tick = ready!(self.ready.poll(Side::Write, cx))?;
            self.sender.reap()?;
            if self.sender.in_flight().sends == 0 {
                return Poll::Ready(Ok(()));
            }
            self.sender.conn().check()?;
            self.ready.clear(Side::Write, tick);
        }
    }

    /// Ends the stream, waits until nothing is in flight, and closes the socket.
    ///
    /// # Errors
    /// As [`Sender::shutdown`] and [`drain`](Self::drain). Then, and if the future is dropped,
    /// what is in flight is handed over to the reaper.
    pub async fn close(mut self) -> Result<(), Error> {
        self.sender.shutdown()?;
        self.drain().await
    }

    /// Gives the reading away. Dropping the sender then ends the stream towards the peer, and the
    /// other half can still be read from.
    #[must_use]
    pub fn into_split(self) -> (ReadHalf, AsyncSender) {
        (ReadHalf(Arc::clone(&self.ready)), self)
    }
}

impl Drop for AsyncSender {
    fn drop(&mut self) {
        // A half that reads keeps the socket.
        if Arc::strong_count(&self.ready) > 1 {
            let _ = self.sender.shutdown();
        }
    }
}

impl AsFd for AsyncSender {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.sender.as_fd()
    }
}

impl AsyncRead for AsyncSender {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        read(&self.ready, cx, buf)
    }
}

impl AsyncWrite for AsyncSender {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let sent = ready!(self.poll_send(cx, |sender| sender.try_send(bytes, SendFlags::NONE)));
        Poll::Ready(sent.map(|part| part.bytes).map_err(io::Error::from))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.sender.conn().flush();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.sender.shutdown().map_err(io::Error::from))
    }
}

/// The reading half of an [`AsyncSender`]. While it waits it reads the notifications of the other
/// half's sends, too.
#[derive(Debug)]
pub struct ReadHalf(Arc<Ready>);

impl AsyncRead for ReadHalf {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        read(&self.0, cx, buf)
    }
}

fn read(ready: &Ready, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
    let coop = ready!(coop::poll_proceed(cx));
    loop {
        let tick = ready!(ready.poll(Side::Read, cx))?;
        let wanted = buf.remaining();
        match sys::recv(ready.conn(), buf) {
            Ok(got) => {
                // A stream that gives less than there is room for has no more; its end was told.
                if got > 0 && got < wanted && !ready.conn().endpoint().kind().records() {
                    ready.clear(Side::Read, tick);
                }
                coop.made_progress();
                return Poll::Ready(Ok(()));
            }
            Err(Errno::INTR) => {}
            // A socket of records that was shut down does not say that this is the end.
            Err(Errno::AGAIN) => {
                if ready.clear(Side::Read, tick) {
                    coop.made_progress();
                    return Poll::Ready(Ok(()));
                }
            }
            Err(errno) => return Poll::Ready(Err(errno.into())),
        }
    }
}
