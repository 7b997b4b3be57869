//! The connections to origins, each of which is read to its end though nobody hears what is written.
//!
//! An origin may answer before it has read a request's body, and be gone: writing fails, while the
//! answer waits to be read. Hyper's client would look no further. Here what is written then goes
//! nowhere, as it does in the kernel when the origin is about to go, and what is read says the rest.

use std::future::Future;
use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::coop;
use tower_service::Service;

/// The connector, whose connections are [`ReadToEnd`].
#[derive(Clone)]
pub(super) struct Connector(pub(super) HttpConnector);

impl Service<Uri> for Connector {
    type Response = TokioIo<ReadToEnd>;
    type Error = <HttpConnector as Service<Uri>>::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let connecting = self.0.call(to);
        Box::pin(async move {
            let stream = connecting.await?.into_inner();
            Ok(TokioIo::new(ReadToEnd { stream, gone: None }))
        })
    }
}

/// A connection whose end is known when all was read.
pub(super) struct ReadToEnd {
    stream: TcpStream,
    /// The error of the first write after the peer was gone.
    gone: Option<ErrorKind>,
}

impl ReadToEnd {
    fn written(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<usize>>,
        len: usize,
    ) -> Poll<io::Result<usize>> {
        if self.gone.is_none() {
            match ready!(write(Pin::new(&mut self.stream), cx)) {
                // Only these say that nothing will arrive any more.
                Err(e)
                    if matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) =>
                {
                    self.gone = Some(e.kind());
                }
                written => return Poll::Ready(written),
            }
        }
        // A body without end leaves time to read.
        ready!(coop::poll_proceed(cx)).made_progress();
        Poll::Ready(Ok(len))
    }
}

impl AsyncRead for ReadToEnd {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.remaining();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let at_end = before > 0 && buf.remaining() == before;
        match self.gone {
            // It was told to who wrote; the end of an answer without a length must not be taken from it.
            Some(ErrorKind::ConnectionReset) if at_end => {
                Poll::Ready(Err(ErrorKind::ConnectionReset.into()))
            }
            _ => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for ReadToEnd {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.written(cx, |stream, cx| stream.poll_write(cx, bytes), bytes.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let len = slices.iter().map(|slice| slice.len()).sum();
        self.written(cx, |stream, cx| stream.poll_write_vectored(cx, slices), len)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Connection for ReadToEnd {
    fn connected(&self) -> Connected {
        self.stream.connected()
    }
}
