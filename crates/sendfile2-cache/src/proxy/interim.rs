//! Interim answers (1xx), which hyper's server cannot send: they are written on the connection
//! before the answer's head, where hyper has nothing to write.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use http::{HeaderMap, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::policy;

/// The interim answers of one connection of HTTP/1.1, for its [`Interim`] I/O and, in the extensions
/// of its requests, for the [`Cache`](super::Cache).
#[derive(Debug, Clone, Default)]
pub struct Interim(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Whether a request is there whose answer has not begun.
    open: bool,
    bytes: Vec<u8>,
    connection: Option<Waker>,
    request: Option<Waker>,
}

impl Interim {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Interim::default()
    }

    /// The connection's I/O, on which they are written.
    pub fn on<I>(&self, io: I) -> WithInterim<I> {
        WithInterim { io, interim: self.clone() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request has begun.
    pub(super) fn open(&self) {
        self.state().open = true;
    }

    /// Takes one that the origin has sent. The client has asked for 100 or 101 by itself, if at all.
    pub(super) fn push(&self, status: StatusCode, headers: &HeaderMap) {
        if matches!(status.as_u16(), 100 | 101) {
            return;
        }
        let mut headers = headers.clone();
        policy::strip_hop_by_hop(&mut headers);
        let mut state = self.state();
        if !state.open {
            return;
        }
        let reason = status.canonical_reason().unwrap_or("");
        state
            .bytes
            .extend_from_slice(format!("HTTP/1.1 {} {reason}\r\n", status.as_u16()).as_bytes());
        for (name, value) in &headers {
            for bytes in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                state.bytes.extend_from_slice(bytes);
            }
        }
        state.bytes.extend_from_slice(b"\r\n");
        let waker = state.connection.clone();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Waits until those that came are written, and takes no more: the answer begins.
    pub(super) async fn written(&self) {
        std::future::poll_fn(|cx| {
            let mut state = self.state();
            if state.bytes.is_empty() {
                state.open = false;
                return Poll::Ready(());
            }
            state.request = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// A connection's I/O, with [`Interim`] answers.
#[derive(Debug)]
pub struct WithInterim<I> {
    io: I,
    interim: Interim,
}

impl<I: AsyncRead + Unpin> AsyncRead for WithInterim<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for WithInterim<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    /// Hyper comes here only when it has written all that it has: between two answers, then.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let WithInterim { io, interim } = self.get_mut();
        loop {
            let mut state = interim.state();
            if state.bytes.is_empty() {
                if state.open {
                    state.connection = Some(cx.waker().clone());
                }
                break;
            }
            let written = ready!(Pin::new(&mut *io).poll_write(cx, &state.bytes))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            state.bytes.drain(..written);
            if state.bytes.is_empty() {
                state.request.take().into_iter().for_each(Waker::wake);
            }
        }
        Pin::new(io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
