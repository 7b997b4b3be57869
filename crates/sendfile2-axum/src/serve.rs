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
        let method = request.method().clone();
        let plain = self.heads.plain(&request).then(|| request.uri().path().into());
        let again = request.headers_mut().remove(header::IF_RANGE).map(|if_range| {
            let mut again = head(&request);
            again.headers_mut().remove(header::RANGE);
            (if_range, again)
        });
        let (Ok(mut response), mut found) = watching(self.inner.call(request)).await;
        if let Some((if_range, request)) = again {
            if changed(&response, &if_range) {
                (Ok(response), found) = watching(self.inner.call(request)).await;
            }
        }
        let Some((path, open)) = found else {
            return Ok(response.map(|body| ServeBody(Inner::Other(body))));
        };
        Ok(match body(&method, &response, &open) {
            Some(body) => {
                if let Some(asked) = plain {
                    self.heads.keep(asked, path, &open, &response);
                }
                with(response, body)
            }
            None => response.map(|body| ServeBody(Inner::Other(body))),
        })
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

/// The response with this body, which [`ZeroCopyLayer`](crate::ZeroCopyLayer) will know.
fn with<B>(response: Response<B>, body: FileBody) -> Response<ServeBody> {
    let offer = body.offer(response.headers().get(header::CONTENT_ENCODING).cloned());
    let mut response = response.map(|_| ServeBody(Inner::File(body)));
    response.extensions_mut().insert(offer);
    response
}

/// The request without its body.
fn head<B>(request: &Request<B>) -> Request<axum::body::Body> {
    let mut head = Request::new(axum::body::Body::empty());
    *head.method_mut() = request.method().clone();
    *head.uri_mut() = request.uri().clone();
    *head.headers_mut() = request.headers().clone();
    head
}

/// Whether the range that was asked for is of a file that is not the one the client knows.
fn changed<B>(response: &Response<B>, known: &HeaderValue) -> bool {
    // A strong comparison: the very tag, which is a strong one, or the very date.
    let is = |name| response.headers().get(name) == Some(known);
    matches!(response.status(), StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE)
        && !is(header::ETAG)
        && !is(header::LAST_MODIFIED)
}

/// The file's part that the response's headers tell of.
fn body<B>(method: &Method, response: &Response<B>, open: &Open) -> Option<FileBody> {
    let range = match response.status() {
        _ if method != Method::GET => return None,
        StatusCode::OK => 0..open.len(),
        StatusCode::PARTIAL_CONTENT => {
            // Of an empty file, tower-http gives bytes that it does not have.
            let range = content_range(response.headers())?;
            range.start..range.end.min(open.len())
        }
        _ => return None,
    };
    Some(FileBody::new(open.source.clone(), range))
}

/// `bytes 0-499/1234`, as tower-http writes it.
fn content_range(headers: &HeaderMap) -> Option<Range<u64>> {
    let range = headers.get(header::CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    let (first, last) = range.split_once('/')?.0.split_once('-')?;
    Some(first.parse().ok()?..last.parse::<u64>().ok()?.checked_add(1)?)
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
