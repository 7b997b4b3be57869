//! A connection that ends when nothing moves on it.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use sendfile2_axum::Io;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::streams::Open;

pub(super) struct Timed {
    io: Io,
    idle: Duration,
    stall: Duration,
    /// The time at which something came or went last.
    moved: Instant,
    stalled: Option<Stalled>,
    /// The streams of HTTP/2, by which it is idle or not: PINGs come and go without end.
    streams: Option<Open>,
    timer: Pin<Box<Sleep>>,
}

/// The peer has not taken what is ready for it.
struct Stalled {
    since: Instant,
    /// The amount that waited in the kernel then: bytes that the peer has not acknowledged (TCP), or
    /// memory of what it has not read, which becomes less a whole buffer at a time (unix sockets);
    /// `None` if the kernel does not report it. The socket has space for more only when a third
    /// of its buffer is free, for which a slow peer may need minutes; but this amount becomes less.
    queued: Option<u64>,
}

impl Timed {
    pub(super) fn new(io: Io, idle: Duration, stall: Duration) -> Self {
        let moved = Instant::now();
        let timer = Box::pin(tokio::time::sleep_until(moved + idle));
        Timed { io, idle, stall, moved, stalled: None, streams: None, timer }
    }

    pub(super) fn has_streams(&mut self, streams: Open) {
        self.streams = Some(streams);
    }

    fn watch<T>(
        &mut self,
        cx: &mut Context<'_>,
        writes: bool,
        result: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.moved = Instant::now();
            if writes {
                self.stalled = None;
            }
            return result;
        }
        if writes && self.stalled.is_none() {
            self.stalled = Some(Stalled { since: Instant::now(), queued: self.queued() });
        }
        let mut deadline = self.deadline();
        // Set only where it would come too late; where it comes too early it is set again.
        if self.timer.deadline() > deadline {
            self.timer.as_mut().reset(deadline);
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                if !self.drains() {
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
                deadline = self.deadline();
            }
            self.timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }

    fn queued(&self) -> Option<u64> {
        sendfile2::unacknowledged(self.io.sender()).ok()
    }

    fn deadline(&self) -> Instant {
        let idle = self.streams.as_ref().map_or(self.moved, Open::last) + self.idle;
        // Bytes from the peer do not show that it reads.
        self.stalled.as_ref().map_or(idle, |stalled| idle.min(stalled.since + self.stall))
    }

    /// Returns whether the peer has taken something since the last look. The stall then begins
    /// anew.
    fn drains(&mut self) -> bool {
        let queued = self.queued();
        let Some(stalled) = &mut self.stalled else { return false };
        let less = matches!((queued, stalled.queued), (Some(now), Some(then)) if now < then);
        if less {
            self.moved = Instant::now();
            *stalled = Stalled { since: self.moved, queued };
        }
        less
    }
}

impl AsyncRead for Timed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        self.watch(cx, false, read)
    }
}

impl AsyncWrite for Timed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.watch(cx, true, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.watch(cx, true, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Nothing is kept here or beneath: a socket has taken what was written.
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection has a limit of its own where it waits for releases and for the peer.
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
