//! A range of a file as an HTTP body.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body::{Body, Frame, SizeHint};
use sendfile2::guard::Lease;
use sendfile2::{Error, Mapped, Source};
use tokio::task::JoinHandle;

use crate::window::{Origin, Passed, Window};

/// Bytes mapped at a time: each window costs the same. Of larger ones more may have left the memory
/// again before a slow client has taken them.
const WINDOW: u64 = 2 << 20;

/// Bytes read at a time: as many as a frame of HTTP/2 has, or a record of TLS. Each body that its client
/// does not take keeps so much in memory, and HTTP/2 has many bodies.
const READ: u64 = 16 << 10;

/// The size below which a file is read also where it might be mapped: it then leaves with its
/// headers, in one call.
pub(crate) const WORTH_MAPPING: u64 = 16 << 10;

/// A range of a file as an HTTP body, with its exact size. It does nothing until it is polled, so
/// that a response to HEAD costs nothing.
///
/// It reads the file, off the event loop where that might wait for the disk. [`ZeroCopyLayer`]
/// makes a mapped one of it. If the file turns out shorter than the range it gives what there is,
/// and then an error, so that hyper ends the connection and the client sees that something is
/// missing.
///
/// [`ZeroCopyLayer`]: crate::ZeroCopyLayer
#[derive(Debug)]
pub struct FileBody {
    shared: Arc<Shared>,
    origin: Origin,
    left: Range<u64>,
    /// The pieces behind it.
    later: VecDeque<Piece>,
    /// Whether it is sent by windows.
    mapped: bool,
    busy: Option<JoinHandle<Done>>,
    /// The last window.
    last: Option<Arc<Passed>>,
    /// To be told when the last window is passed on: hyper drops what it has when it is told.
    error: Option<io::Error>,
}

/// Bytes of a file.
type Piece = (Origin, Range<u64>);

/// The state that a body and the offer to make a mapped one of it share.
#[derive(Debug)]
struct Shared {
    polled: AtomicBool,
    dropped: AtomicBool,
}

/// The work that was done off the event loop.
#[derive(Debug)]
enum Done {
    Read(io::Result<Vec<u8>>),
    /// A mapping, read in as far as it could be; the rest shows when it is sent.
    ReadIn(Mapped),
}

impl FileBody {
    /// Bytes `range` of the file.
    ///
    /// # Errors
    /// [`Error::Truncated`] if the file does not have them, now: an answer that has begun could
    /// only be broken off. [`Error::File`].
    pub fn new(file: Source, range: Range<u64>) -> Result<Self, Error> {
        whole(file.size()?, &range)?;
        Ok(FileBody::of_file(file, range))
    }

    /// Bytes `range` of a file that was seen to have them.
    pub(crate) fn of_file(file: Source, range: Range<u64>) -> Self {
        FileBody::of(Origin::File(file), range, false)
    }

    /// As [`of_file`](Self::of_file), mapped: for a connection of ours that finds windows.
    pub(crate) fn mapped(file: Source, range: Range<u64>) -> Self {
        FileBody::of(Origin::File(file), range, true)
    }

    /// Bytes `range` under the lease, which stays leased until all of it is read, or released by
    /// the kernel.
    ///
    /// # Errors
    /// [`Error::NotLeased`]; as [`new`](Self::new).
    pub fn leased(lease: Lease, range: Range<u64>) -> Result<Self, Error> {
        if !lease.covers(&range) {
            return Err(Error::NotLeased { range });
        }
        whole(lease.file_size()?, &range)?;
        Ok(FileBody::of(Origin::Lease(lease), range, false))
    }

    /// Adds the bytes of another body of files behind its own. The lease of each ends when its bytes
    /// are read, or released by the kernel.
    #[must_use]
    pub fn followed_by(mut self, next: &FileBody) -> Self {
        self.later.push_back((next.origin.clone(), next.left.clone()));
        self.later.extend(next.later.iter().cloned());
        self
    }

    fn of(origin: Origin, range: Range<u64>, mapped: bool) -> Self {
        let range = range.start..range.end.max(range.start);
        FileBody::of_pieces((origin, range), VecDeque::new(), mapped)
    }

    fn of_pieces((origin, left): Piece, later: VecDeque<Piece>, mapped: bool) -> Self {
        let (polled, dropped) = (AtomicBool::new(false), AtomicBool::new(false));
        let all = len(&left) + later.iter().map(|(_, range)| len(range)).sum::<u64>();
        FileBody {
            shared: Arc::new(Shared { polled, dropped }),
            origin,
            left,
            later,
            mapped: mapped && all >= WORTH_MAPPING,
            busy: None,
            last: None,
            error: None,
        }
    }

    /// The bytes of it that are left.
    pub(crate) fn len(&self) -> u64 {
        len(&self.left) + self.later.iter().map(|(_, range)| len(range)).sum::<u64>()
    }

    fn is_over(&self) -> bool {
        self.left.is_empty() && self.later.iter().all(|(_, range)| range.is_empty())
    }

    /// A part of it, counted from its beginning, in its place.
    pub(crate) fn part(self, part: &Range<u64>) -> Self {
        let mut from = 0;
        let of_it = |(origin, Range { start, end }): Piece| {
            let (before, behind) = (from, from + end - start);
            from = behind;
            let here = part.start.clamp(before, behind)..part.end.clamp(before, behind);
            (origin, start + (here.start - before)..start + (here.end - before))
        };
        let first = (self.origin.clone(), self.left.clone());
        let pieces = std::iter::once(first).chain(self.later.iter().cloned()).map(of_it);
        let mut pieces: VecDeque<Piece> = pieces.collect();
        pieces.retain(|(_, range)| !range.is_empty());
        let nothing = (self.origin.clone(), self.left.start..self.left.start);
        FileBody::of_pieces(pieces.pop_front().unwrap_or(nothing), pieces, false)
    }

    /// A response of it, which [`ZeroCopyLayer`](crate::ZeroCopyLayer) knows it by.
    #[must_use]
    pub fn into_response(self) -> Response<Self> {
        self.into_encoded_response(None)
    }

    /// As [`into_response`](Self::into_response), of a file that is encoded itself, as the response's
    /// `Content-Encoding` then says: a layer that encodes it once more is noticed.
    #[must_use]
    pub fn into_encoded_response(self, encoding: Option<HeaderValue>) -> Response<Self> {
        let offer = self.offer(encoding);
        let mut response = Response::new(self);
        response.extensions_mut().insert(offer);
        response
    }

    /// The offer by which the layer makes a mapped body of it, if it is still there then.
    pub(crate) fn offer(&self, encoding: Option<HeaderValue>) -> Offer {
        let (origin, left) = (self.origin.clone(), self.left.clone());
        Offer {
            shared: Arc::clone(&self.shared),
            first: (origin, left),
            later: self.later.clone(),
            encoding,
        }
    }

    fn off_the_loop(&mut self, work: impl FnOnce() -> Done + Send + 'static) {
        self.busy = Some(tokio::task::spawn_blocking(work));
    }

    /// The next piece; `None` if it is being fetched.
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        while self.left.is_empty() {
            let Some((origin, left)) = self.later.pop_front() else { break };
            (self.origin, self.left) = (origin, left);
        }
        let Range { start, end } = self.left;
        let origin = &self.origin;
        if self.mapped {
            if let Some(mapped) =
                origin.mapped(start..end.min(start + WINDOW)).map_err(io::Error::from)?
            {
                if mapped.is_resident() {
                    return Ok(Some(self.window(mapped)));
                }
                self.off_the_loop(move || {
                    if let Err(e) = mapped.populate() {
                        tracing::debug!("{e}");
                    }
                    Done::ReadIn(mapped)
                });
                return Ok(None);
            }
        }
        // It fits: it is at most READ.
        let want = usize::try_from((end - start).min(READ)).unwrap_or(0);
        let mut buffer = Vec::with_capacity(want);
        match origin.try_read(&mut buffer, want, start) {
            Ok(Some(read)) if read > 0 => Ok(Some(self.advance(Bytes::from(buffer)))),
            // The end of the file, something to wait for, or a filesystem that cannot but wait.
            _ => {
                let origin = origin.clone();
                self.off_the_loop(move || {
                    let read = origin.read(&mut buffer, want, start);
                    Done::Read(read.map(|_| buffer))
                });
                Ok(None)
            }
        }
    }

    fn window(&mut self, mapped: Mapped) -> Bytes {
        let (bytes, passed) = Window::into_bytes(mapped, self.origin.clone());
        self.last = Some(passed);
        self.advance(bytes)
    }

    fn advance(&mut self, bytes: Bytes) -> Bytes {
        self.left.start += bytes.len() as u64;
        bytes
    }
}

fn len(range: &Range<u64>) -> u64 {
    range.end - range.start
}

/// Fails where a file of `at` bytes does not have all of `range`.
fn whole(at: u64, range: &Range<u64>) -> Result<(), Error> {
    let wanted = range.start.max(at);
    if range.end > wanted { Err(Error::Truncated { at, wanted }) } else { Ok(()) }
}

/// The contents of a small file of `len` bytes, if all of them, and no more, can be read without
/// waiting for a disk.
pub(crate) fn read_whole(source: &Source, len: u64) -> Option<Bytes> {
    // One byte more shows that the file has grown.
    let wanted = usize::try_from(len).ok()? + 1;
    let mut buffer = Vec::with_capacity(wanted);
    let read = source.try_read_behind(&mut buffer, wanted, 0).ok()??;
    (read as u64 == len).then(|| Bytes::from(buffer))
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.shared.polled.store(true, Ordering::Relaxed);
        if self.is_over() && self.busy.is_none() {
            return Poll::Ready(None);
        }
        loop {
            if self.error.is_some() {
                if let Some(last) = &self.last {
                    ready!(last.poll(cx));
                }
                return Poll::Ready(self.error.take().map(Err));
            }
            let next = match &mut self.busy {
                None => self.next(),
                Some(task) => {
                    let done = ready!(Pin::new(task).poll(cx));
                    self.busy = None;
                    match done.map_err(io::Error::from).and_then(Done::check) {
                        Ok(Done::ReadIn(mapped)) => Ok(Some(self.window(mapped))),
                        Ok(Done::Read(Ok(buffer))) => Ok(Some(self.advance(Bytes::from(buffer)))),
                        Ok(Done::Read(Err(e))) | Err(e) => Err(e),
                    }
                }
            };
            match next {
                Ok(Some(bytes)) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Ok(None) => {}
                Err(e) => self.error = Some(e),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.is_over()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.len())
    }
}

impl Done {
    fn check(self) -> io::Result<Self> {
        match self {
            Done::Read(Ok(buffer)) if buffer.is_empty() => {
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is shorter than it was"))
            }
            done => Ok(done),
        }
    }
}

impl Drop for FileBody {
    fn drop(&mut self) {
        self.shared.dropped.store(true, Ordering::Relaxed);
    }
}

impl axum::response::IntoResponse for FileBody {
    fn into_response(self) -> axum::response::Response {
        FileBody::into_response(self).map(axum::body::Body::new)
    }
}

/// In a response's extensions: its body is a [`FileBody`], or was when this was put there.
#[derive(Debug, Clone)]
pub(crate) struct Offer {
    shared: Arc<Shared>,
    first: Piece,
    later: VecDeque<Piece>,
    /// The content encoding of the file itself.
    encoding: Option<HeaderValue>,
}

impl Offer {
    /// Returns a mapped body in place of the response's own, or what shows that something has
    /// changed that one.
    pub(crate) fn accept(self, response: &Response<impl Body>) -> Result<FileBody, &'static str> {
        let Shared { polled, dropped } = &*self.shared;
        let len = len(&self.first.1) + self.later.iter().map(|(_, range)| len(range)).sum::<u64>();
        let headers = response.headers();
        let length = headers.get(header::CONTENT_LENGTH).map(HeaderValue::as_bytes);
        if dropped.load(Ordering::Relaxed) {
            Err("replaced")
        } else if polled.load(Ordering::Relaxed) {
            Err("polled")
        } else if headers.get(header::CONTENT_ENCODING) != self.encoding.as_ref()
            || headers.contains_key(header::TRANSFER_ENCODING)
        {
            Err("encoded")
        } else if response.body().size_hint().exact() != Some(len)
            || length.is_some_and(|length| length != len.to_string().as_bytes())
        {
            Err("resized")
        } else {
            Ok(FileBody::of_pieces(self.first, self.later, true))
        }
    }
}
