//! Directories and single files as services: tower-http's, on our files and bodies.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body::{Body, Frame, SizeHint};
use tower_http::services::fs::{DefaultServeDirFallback, ServeFileSystemResponseBody};
use tower_service::Service;

use crate::body::FileBody;
use crate::cache::{Files, Open, Root, watching};
use crate::heads::Heads;
use crate::range::{self, Asked};

/// Serves the files beneath a directory: tower-http's `ServeDir` (index files, precompressed
/// siblings, ranges, conditional requests, HEAD, 405) over open files that are kept, with
/// `If-Range`, and with [`FileBody`]s.
///
/// No request leaves the directory: not by `..`, nor by a symbolic link (an absolute one does,
/// wherever it leads; [`follow_links_out`](Self::follow_links_out) allows it). Linux 5.6.
///
/// Up to 1024 files are kept open, and each is looked at anew for each request. A deleted file's
/// space is freed when it makes room for others, or is asked for.
#[derive(Debug, Clone)]
pub struct ServeDir {
    inner: tower_http::services::ServeDir<DefaultServeDirFallback, Files>,
    heads: Arc<Heads>,
}

impl ServeDir {
    /// Serves what is beneath `directory`, which is opened now.
    ///
    /// # Errors
    /// What `open(2)` fails with.
    pub fn new(directory: impl AsRef<Path>) -> io::Result<Self> {
        Root::new(directory.as_ref(), true).map(ServeDir::of)
    }

    /// As [`new`](Self::new), and follows symbolic links wherever they lead.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn follow_links_out(directory: impl AsRef<Path>) -> io::Result<Self> {
        Root::new(directory.as_ref(), false).map(ServeDir::of)
    }

    fn of(root: Root) -> Self {
        let root = Arc::new(root);
        let heads = Heads::new(Arc::clone(&root), false);
        let inner = tower_http::services::ServeDir::with_backend("", Files(root));
        ServeDir { inner, heads }
    }

    /// Sends `FILE.gz`, `FILE.br` or `FILE.zst` in place of `FILE` to clients that take it.
    #[must_use]
    pub fn precompressed(mut self) -> Self {
        self.inner = self.inner.precompressed_gzip().precompressed_br().precompressed_zstd();
        self.heads = self.heads.anew(true);
        self
    }

    /// Whether a directory is answered with its `index.html`, as it is if not said.
    #[must_use]
    pub fn index_files(mut self, yes: bool) -> Self {
        self.inner = self.inner.append_index_html_on_directories(yes);
        self.heads = self.heads.anew(self.heads.encodings());
        self
    }

    async fn answer(
        mut self,
        mut request: Request<axum::body::Body>,
    ) -> Result<Response<ServeBody>, Infallible> {
        if !is_target(request.method(), request.uri().path()) {
            let mut refusal = Response::new(ServeBody(Inner::Other(Default::default())));
            *refusal.status_mut() = StatusCode::BAD_REQUEST;
            return Ok(refusal);
        }
        let get = request.method() == Method::GET;
        let plain = self.heads.plain(&request).then(|| request.uri().path().into());
        // tower-http decides about the whole file, and whether there is something to send; which
        // part of it is for us to say.
        let [ranges, known] = [header::RANGE, header::IF_RANGE].map(|name| {
            let mut part = HeaderMap::new();
            if let header::Entry::Occupied(entry) = request.headers_mut().entry(&name) {
                let (_, values) = entry.remove_entry_mult();
                part.extend(values.map(|value| (name.clone(), value)));
            }
            part
        });
        let (Ok(response), found) = watching(self.inner.call(request)).await;
        let whole = get && response.status() == StatusCode::OK;
        let Some((path, open)) = found.filter(|_| whole) else {
            return Ok(response.map(|body| ServeBody(Inner::Other(body))));
        };
        if let Some(asked) = plain {
            self.heads.keep(asked, path, &open, &response);
        }
        let asked = if changed(&response, &known) {
            Asked::Whole
        } else {
            range::asked(&ranges, open.len())
        };
        Ok(part(response, &open, &asked))
    }

    /// The answer that was given before to a request that differs in nothing that matters.
    fn known<B>(&self, request: &Request<B>) -> Option<Response<ServeBody>> {
        if !self.heads.plain(request) {
            return None;
        }
        let (headers, open) = self.heads.find(request.uri().path())?;
        let mut response = Response::new(());
        *response.headers_mut() = headers;
        Some(with(response, FileBody::new(open.source.clone(), 0..open.len())))
    }
}

/// Whether such a path is of a target in origin, absolute or asterisk form; CONNECT, which is not
/// allowed anyway, has a form of its own.
fn is_target(method: &Method, path: &str) -> bool {
    path.starts_with('/') || (method == Method::OPTIONS && path == "*") || method == Method::CONNECT
}

/// The response with this body, which [`ZeroCopyLayer`](crate::ZeroCopyLayer) will know.
fn with<B>(response: Response<B>, body: FileBody) -> Response<ServeBody> {
    let offer = body.offer(response.headers().get(header::CONTENT_ENCODING).cloned());
    let mut response = response.map(|_| ServeBody(Inner::File(body)));
    response.extensions_mut().insert(offer);
    response
}

/// Whether the file is not the one that the client knows a part of.
fn changed<B>(response: &Response<B>, known: &HeaderMap) -> bool {
    // A strong comparison: the very tag, which is a strong one, or the very date.
    let is = |name, known| response.headers().get(name) == Some(known);
    !known
        .get_all(header::IF_RANGE)
        .iter()
        .all(|known| is(header::ETAG, known) || is(header::LAST_MODIFIED, known))
}

/// Makes of the answer that gives a whole file the one that gives what is asked for.
fn part<B>(mut response: Response<B>, open: &Open, asked: &Asked) -> Response<ServeBody> {
    let len = open.len();
    let range = match asked {
        Asked::Whole => 0..len,
        Asked::Part(range) => range.clone(),
        Asked::Unsatisfiable => 0..0,
    };
    let told = match asked {
        Asked::Whole => None,
        Asked::Part(Range { start, end }) => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            Some(format!("bytes {start}-{}/{len}", end - 1))
        }
        Asked::Unsatisfiable => {
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            // They are about the file's content.
            response.headers_mut().remove(header::CONTENT_TYPE);
            response.headers_mut().remove(header::CONTENT_ENCODING);
            Some(format!("bytes */{len}"))
        }
    };
    // Digits are valid in a header.
    if let Some(Ok(told)) = told.map(HeaderValue::try_from) {
        response.headers_mut().insert(header::CONTENT_RANGE, told);
        response.headers_mut().insert(header::CONTENT_LENGTH, (range.end - range.start).into());
    }
    with(response, FileBody::new(open.source.clone(), range))
}

impl<B> Service<Request<B>> for ServeDir {
    type Response = Response<ServeBody>;
    type Error = Infallible;
    type Future = ServeFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> ServeFuture {
        ServeFuture(match self.known(&request) {
            Some(response) => Answer::Known(Some(response)),
            None => Answer::Asked(Box::pin(
                self.clone().answer(request.map(|_| axum::body::Body::empty())),
            )),
        })
    }
}

/// The future of [`ServeDir`].
pub struct ServeFuture(Answer);

enum Answer {
    /// Until it is given.
    Known(Option<Response<ServeBody>>),
    Asked(Pin<Box<dyn Future<Output = Result<Response<ServeBody>, Infallible>> + Send>>),
}

impl Future for ServeFuture {
    type Output = Result<Response<ServeBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.get_mut().0 {
            Answer::Known(response) => {
                response.take().map_or(Poll::Pending, |r| Poll::Ready(Ok(r)))
            }
            Answer::Asked(answer) => answer.as_mut().poll(cx),
        }
    }
}

impl std::fmt::Debug for ServeFuture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServeFuture").finish_non_exhaustive()
    }
}

/// Serves one file, whatever the request's path; else as [`ServeDir`].
#[derive(Debug, Clone)]
pub struct ServeFile {
    dir: ServeDir,
    uri: Uri,
}

impl ServeFile {
    /// Serves the file at `path`, which may be replaced meanwhile by another one of its name. Its
    /// directory is opened now.
    ///
    /// # Errors
    /// What `open(2)` of the directory fails with; [`io::ErrorKind::InvalidInput`] if the path does
    /// not end in a name that is UTF-8.
    pub fn new(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or(io::ErrorKind::InvalidInput)?;
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let encoded =
            percent_encoding::utf8_percent_encode(name, percent_encoding::NON_ALPHANUMERIC);
        let uri = format!("/{encoded}").parse().map_err(io::Error::other)?;
        let dir = ServeDir::new(dir.unwrap_or(Path::new(".")))?.index_files(false);
        Ok(ServeFile { dir, uri })
    }
}

impl<B> Service<Request<B>> for ServeFile {
    type Response = Response<ServeBody>;
    type Error = Infallible;
    type Future = <ServeDir as Service<Request<B>>>::Future;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        *request.uri_mut() = self.uri.clone();
        self.dir.call(request)
    }
}

/// The body of a response of [`ServeDir`].
pub struct ServeBody(Inner);

enum Inner {
    File(FileBody),
    Other(ServeFileSystemResponseBody),
}

impl Body for ServeBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match &mut self.get_mut().0 {
            Inner::File(body) => Pin::new(body).poll_frame(cx),
            Inner::Other(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Inner::File(body) => body.is_end_stream(),
            Inner::Other(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::File(body) => body.size_hint(),
            Inner::Other(body) => body.size_hint(),
        }
    }
}

impl std::fmt::Debug for ServeBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServeBody").field("size", &self.size_hint()).finish_non_exhaustive()
    }
}
