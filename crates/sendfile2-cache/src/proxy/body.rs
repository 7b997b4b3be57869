//! Bodies: of what is stored, of what is being stored, and of what only passes.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use sendfile2_axum::FileBody;
use tokio::time::{Instant, Sleep};

use super::again::{self, Again};
use super::incoming::OriginBody;
use super::rest::{Joined, Next};
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

    pub(super) fn passing(body: OriginBody, stall: Duration) -> Self {
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

/// A reader of what is being stored, of the rest that the store does not take, and of what the origin
/// sends for it alone, one behind the other.
struct Reader {
    /// As long as it may have more.
    stored: Option<FillReader>,
    rest: Option<Sharing>,
    alone: Option<Passing>,
}

/// The rest of a body that is being stored, for one of its readers.
#[derive(Debug)]
pub(super) struct Sharing {
    pub(super) joined: Joined,
    pub(super) again: Option<Box<Again>>,
}

impl Reader {
    async fn next(mut self, at: u64) -> Read {
        let mut read = self.read(at).await;
        if let (Err(_), Some(why)) = (&read, self.rest.as_ref().and_then(|rest| rest.joined.why()))
        {
            read = Err(io::Error::other(why));
        }
        if let (Ok(bytes), Some(Sharing { again: Some(again), .. })) = (&read, &mut self.rest) {
            again.read(bytes);
        }
        (self, read)
    }

    async fn read(&mut self, at: u64) -> io::Result<Bytes> {
        if let Some(stored) = &mut self.stored {
            let Some(Sharing { joined, .. }) = &mut self.rest else {
                return stored.read().await.map_err(io::Error::other);
            };
            let read = tokio::select! {
                biased;
                read = stored.read() => Some(read),
                () = joined.begins(at) => None,
            };
            if let Some(Ok(bytes)) = read {
                return Ok(bytes);
            }
            self.stored = None;
            match (joined.leave_store(), read) {
                (Some(from), _) if from == at => {}
                // It was in the store for as long as others wanted it.
                (Some(_), _) if !joined.is_broken() => self.ask_again(at).await?,
                (_, Some(Err(e))) => return Err(io::Error::other(e)),
                _ => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        if let Some(Sharing { joined, .. }) = &mut self.rest {
            match joined.next(at).await? {
                Next::Piece(piece) => return Ok(piece),
                Next::End => return Ok(Bytes::new()),
                Next::LeftBehind => self.ask_again(at).await?,
            }
        }
        match &mut self.alone {
            Some(body) => again::next(body).await,
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    async fn ask_again(&mut self, at: u64) -> io::Result<()> {
        let again = self.rest.take().and_then(|rest| rest.again);
        let again = again.ok_or(io::ErrorKind::UnexpectedEof)?;
        self.alone = Some(again.body(at).await?);
        Ok(())
    }
}

impl Filling {
    pub(super) fn new(
        reader: FillReader,
        at: u64,
        end: Option<u64>,
        rest: Option<Sharing>,
    ) -> Self {
        let (mut reader, mut rest) = (reader, rest);
        reader.seek(at);
        if let Some(again) = rest.as_mut().and_then(|rest| rest.again.as_mut()) {
            again.seek(at);
        }
        let reader = Reader { stored: Some(reader), rest, alone: None };
        Filling { state: Reading::Idle(reader), at, end }
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
    /// Bytes that were put back, and come first.
    first: Bytes,
    body: OriginBody,
    stall: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Passing {
    pub(super) fn new(body: OriginBody, stall: Duration) -> Self {
        Passing { first: Bytes::new(), body, stall, timer: None }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if !self.first.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.first)))));
        }
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.timer = None;
            return Poll::Ready(frame);
        }
        let latest = Instant::now() + self.stall;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(latest)));
        ready!(timer.as_mut().poll(cx));
        let why = format!("nothing came for {:?}", self.stall);
        Poll::Ready(Some(Err(self.body.error(io::ErrorKind::TimedOut, why))))
    }

    /// Puts back what comes next.
    pub(super) fn put_back(&mut self, bytes: Bytes) {
        self.first = bytes;
    }

    pub(super) fn into_inner(self) -> OriginBody {
        self.body
    }

    /// An error of what came, with its names.
    pub(super) fn wrong(&self, why: &str) -> io::Error {
        self.body.error(io::ErrorKind::InvalidData, why)
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
