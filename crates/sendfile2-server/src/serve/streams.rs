//! Streams of HTTP/2 that end when nothing of their bodies moves.
//!
//! A client that gives a stream no window is not written to, so that its connection does not stall;
//! and PINGs move bytes for ever. So what counts here are requests and bytes of bodies, stream by
//! stream.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use hyper::rt::Executor;
use tokio::time::{Instant, Sleep};

/// Runs the streams of one connection.
#[derive(Clone)]
pub(super) struct Streams {
    stall: Duration,
    open: Open,
}

/// How many streams are open, and when the last one was.
#[derive(Clone)]
pub(super) struct Open(Arc<Mutex<(usize, Instant)>>);

impl Streams {
    pub(super) fn new(stall: Duration) -> Self {
        Streams { stall, open: Open(Arc::new(Mutex::new((0, Instant::now())))) }
    }

    pub(super) fn open(&self) -> Open {
        self.open.clone()
    }
}

impl Open {
    /// The time since which there is no stream.
    pub(super) fn last(&self) -> Instant {
        let (open, last) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if open > 0 { Instant::now() } else { last }
    }

    fn change(&self, to: impl FnOnce(usize) -> usize) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = (to(state.0), Instant::now());
    }
}

/// The stream is no longer open when it is dropped.
struct Counted(Open);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.change(|open| open - 1);
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        self.open.change(|open| open + 1);
        tokio::spawn(Stream {
            stream: Box::pin(stream),
            _open: Counted(self.open.clone()),
            stall: self.stall,
            since: None,
            timer: None,
        });
    }
}

/// The news of a stream's body while the stream was polled.
#[derive(Clone, Copy)]
enum Told {
    Nothing,
    /// It waits for the disk, and not for the client.
    Waits,
    Moved,
}

thread_local! {
    static TOLD: Cell<Told> = const { Cell::new(Told::Nothing) };
}

struct Stream<F> {
    stream: Pin<Box<F>>,
    _open: Counted,
    stall: Duration,
    /// When something moved last, if it waits for the client.
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<F: Future<Output = ()>> Future for Stream<F> {
    type Output = ();

    /// Is ready, too, when the client has taken nothing for too long: what is dropped then is reset.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        TOLD.set(Told::Nothing);
        if self.stream.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        match TOLD.get() {
            Told::Nothing => {}
            Told::Waits => self.since = None,
            Told::Moved => self.since = Some(Instant::now()),
        }
        let Some(since) = self.since else { return Poll::Pending };
        let deadline = since + self.stall;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        // Where it comes too early it is set again.
        while timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

/// A body that tells its stream what it does; of HTTP/1 nobody listens.
pub(super) struct Telling<B>(B);

impl<B> Telling<B> {
    /// The body of an answer, which has begun.
    pub(super) fn new(body: B) -> Self {
        TOLD.set(Told::Moved);
        Telling(body)
    }
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for Telling<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let next = Pin::new(&mut self.0).poll_frame(cx);
        TOLD.set(if next.is_pending() { Told::Waits } else { Told::Moved });
        next
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}
