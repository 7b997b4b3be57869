//! The socket of a connection: tokio's, until the first mapped body comes.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use rustix::net::{SendAncillaryBuffer, SendFlags};
use sendfile2::tokio::AsyncSender;
use sendfile2::{Error, Options};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// A connection, by who knows its socket. A sender's readiness, its lock and the epoll instance
/// that its runtime has for it cost as much as a small answer, which has no use for them.
#[derive(Debug)]
pub(crate) enum Conn {
    Tokio(Box<Plain>),
    Sender(AsyncSender),
    /// A socket that could not be made a sender.
    Lost,
}

/// A stream that tokio knows, which has sent nothing from a file.
#[derive(Debug)]
pub(crate) struct Plain {
    stream: TcpStream,
    options: Options,
    /// The task that waits for something to read, which is to ask the sender then.
    reader: Option<Waker>,
}

impl Conn {
    pub(crate) fn plain(stream: TcpStream, options: Options) -> Self {
        Conn::Tokio(Box::new(Plain { stream, options, reader: None }))
    }

    /// Returns the sender that it is from now on.
    pub(crate) fn sender(&mut self) -> io::Result<&mut AsyncSender> {
        if matches!(self, Conn::Tokio(_)) {
            if let Conn::Tokio(plain) = std::mem::replace(self, Conn::Lost) {
                let Plain { stream, options, reader } = *plain;
                *self = Conn::Sender(AsyncSender::with(stream, options)?);
                // tokio has forgotten whom it was to wake.
                reader.into_iter().for_each(Waker::wake);
            }
        }
        match self {
            Conn::Sender(sender) => Ok(sender),
            Conn::Tokio(_) | Conn::Lost => Err(lost()),
        }
    }

    pub(crate) fn unacknowledged(&self) -> io::Result<u64> {
        match self {
            Conn::Tokio(plain) => sendfile2::unacknowledged(&plain.stream),
            Conn::Sender(sender) => sendfile2::unacknowledged(sender),
            Conn::Lost => Err(lost()),
        }
    }

    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self {
            Conn::Tokio(plain) => plain.poll_read(cx, buf),
            Conn::Sender(sender) => Pin::new(sender).poll_read(cx, buf),
            Conn::Lost => Poll::Ready(Err(lost())),
        }
    }

    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            // Nothing is held back.
            Conn::Tokio(_) => Poll::Ready(Ok(())),
            Conn::Sender(sender) => Pin::new(sender).poll_flush(cx),
            Conn::Lost => Poll::Ready(Err(lost())),
        }
    }

    /// Ends the stream towards the peer.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Conn::Tokio(plain) => Pin::new(&mut plain.stream).poll_shutdown(cx),
            Conn::Sender(sender) => Pin::new(sender).poll_shutdown(cx),
            Conn::Lost => Poll::Ready(Err(lost())),
        }
    }

    /// Returns whether nothing is in flight.
    pub(crate) fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        match self {
            Conn::Sender(sender) => sender.poll_drain(cx),
            Conn::Tokio(_) | Conn::Lost => Poll::Ready(Ok(())),
        }
    }
}

fn lost() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

impl Plain {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        let known = |waker: &Waker| waker.will_wake(cx.waker());
        if read.is_pending() && !self.reader.as_ref().is_some_and(known) {
            self.reader = Some(cx.waker().clone());
        }
        read
    }

    /// Sends from `slices`, without the signal that tokio's own vectored writes raise where the peer
    /// has gone.
    pub(crate) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            let sent = self.stream.try_io(Interest::WRITABLE, || {
                let mut control = SendAncillaryBuffer::default();
                Ok(rustix::io::retry_on_intr(|| {
                    rustix::net::sendmsg(&self.stream, slices, &mut control, flags)
                })?)
            });
            match sent {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
        }
    }
}
