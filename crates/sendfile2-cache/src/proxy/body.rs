//! Bodies: of what is stored, of what is being stored, and of what only passes.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use sendfile2_axum::FileBody;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Sleep};

use crate::store::FillReader;

pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of a request to an origin.
pub(super) type RequestBody = UnsyncBoxBody<Bytes, BoxError>;

/// The body of an answer of a [`Cache`](super::Cache).
#[derive(Debug)]
pub struct CacheBody(Inner);

#[derive(Debug)]
enum Inner {
    Text(Bytes),
    Stored(FileBody),
    Filling(Filling),
    Passing(Box<Passing>),
}

impl CacheBody {
    pub(super) fn text(text: impl Into<Bytes>) -> Self {
        CacheBody(Inner::Text(text.into()))
    }

    pub(super) fn stored(body: FileBody) -> Self {
        CacheBody(Inner::Stored(body))
    }

    pub(super) fn filling(filling: Filling) -> Self {
        CacheBody(Inner::Filling(filling))
    }

    pub(super) fn passing(body: Incoming, stall: Duration) -> Self {
        CacheBody(Inner::Passing(Box::new(Passing::new(body, stall))))
    }
}

impl Body for CacheBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match &mut self.get_mut().0 {
            Inner::Text(text) => {
                let text = std::mem::take(text);
                Poll::Ready((!text.is_empty()).then(|| Ok(Frame::data(text))))
            }
            Inner::Stored(body) => Pin::new(body).poll_frame(cx),
            Inner::Filling(body) => body.poll(cx),
            Inner::Passing(body) => body.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Inner::Text(text) => text.is_empty(),
            Inner::Stored(body) => body.is_end_stream(),
            Inner::Filling(body) => body.size() == Some(0),
            Inner::Passing(body) => body.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Text(text) => SizeHint::with_exact(text.len() as u64),
            Inner::Stored(body) => body.size_hint(),
            Inner::Filling(body) => {
                body.size().map_or_else(SizeHint::default, SizeHint::with_exact)
            }
            Inner::Passing(body) => body.body.size_hint(),
        }
    }
}

/// A body of what is being stored, by a reader of it: from where it is on, to an end if there is one.
pub(super) struct Filling {
    state: Reading,
    at: u64,
    end: Option<u64>,
}

type Read = (Reader, io::Result<Bytes>);

enum Reading {
    Idle(Reader),
    Busy(Pin<Box<dyn Future<Output = Read> + Send + Sync>>),
    Over,
}

impl std::fmt::Debug for Filling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filling")
            .field("at", &self.at)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

/// A reader of what is being stored, and of the rest that the store did not take.
struct Reader {
    reader: FillReader,
    rest: Option<Rest>,
}

/// The rest of a body that the store did not take, for the one client that asked for it first.
#[derive(Debug)]
pub(super) struct Rest {
    /// From which byte on.
    pub(super) from: watch::Receiver<Option<u64>>,
    pub(super) bytes: mpsc::Receiver<Bytes>,
    /// Whether all that the store has was read.
    pub(super) begun: bool,
}

impl Reader {
    async fn next(mut self, at: u64) -> Read {
        let read = self.read(at).await;
        (self, read)
    }

    async fn read(&mut self, at: u64) -> io::Result<Bytes> {
        let Some(Rest { from, bytes, begun }) = &mut self.rest else {
            return self.reader.read().await.map_err(io::Error::other);
        };
        if !*begun {
            let stored = tokio::select! {
                biased;
                stored = self.reader.read() => Some(stored),
                Ok(_) = from.wait_for(|from| *from == Some(at)) => None,
            };
            match stored {
                Some(Ok(stored)) => return Ok(stored),
                Some(Err(e)) if *from.borrow() != Some(at) => return Err(io::Error::other(e)),
                _ => *begun = true,
            }
        }
        // Its end is no end where the sender goes away without a word.
        bytes.recv().await.ok_or(io::ErrorKind::UnexpectedEof.into())
    }
}

impl Filling {
    pub(super) fn new(reader: FillReader, at: u64, end: Option<u64>, rest: Option<Rest>) -> Self {
        let mut reader = reader;
        reader.seek(at);
        Filling { state: Reading::Idle(Reader { reader, rest }), at, end }
    }

    fn size(&self) -> Option<u64> {
        self.end.map(|end| end.saturating_sub(self.at))
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.size() == Some(0) {
            self.state = Reading::Over;
        }
        let mut read = match std::mem::replace(&mut self.state, Reading::Over) {
            Reading::Idle(reader) => Box::pin(reader.next(self.at)) as Pin<Box<_>>,
            Reading::Busy(read) => read,
            Reading::Over => return Poll::Ready(None),
        };
        let Poll::Ready((reader, bytes)) = read.as_mut().poll(cx) else {
            self.state = Reading::Busy(read);
            return Poll::Pending;
        };
        let mut bytes = match bytes {
            Ok(bytes) => bytes,
            Err(e) => return Poll::Ready(Some(Err(e))),
        };
        if let Some(size) = self.size() {
            if bytes.is_empty() {
                return Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into())));
            }
            bytes.truncate(usize::try_from(size).unwrap_or(usize::MAX));
        } else if bytes.is_empty() {
            return Poll::Ready(None);
        }
        self.at += bytes.len() as u64;
        self.state = Reading::Idle(reader);
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}

/// A body of the origin's, of which something must come before long.
#[derive(Debug)]
pub(super) struct Passing {
    body: Incoming,
    stall: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Passing {
    pub(super) fn new(body: Incoming, stall: Duration) -> Self {
        Passing { body, stall, timer: None }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.timer = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(io::Error::other)));
        }
        let latest = Instant::now() + self.stall;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(latest)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Some(Err(io::ErrorKind::TimedOut.into())))
    }

    pub(super) fn into_inner(self) -> Incoming {
        self.body
    }

    /// The next bytes; `None` at the end.
    pub(super) async fn next(&mut self) -> Option<io::Result<Bytes>> {
        loop {
            match std::future::poll_fn(|cx| self.poll(cx)).await? {
                Ok(frame) => {
                    if let Ok(data) = frame.into_data() {
                        return Some(Ok(data));
                    }
                }
                Err(e) => return Some(Err(e)),
            }
        }
    }

    pub(super) fn length(&self) -> Option<u64> {
        self.body.size_hint().exact()
    }
}
