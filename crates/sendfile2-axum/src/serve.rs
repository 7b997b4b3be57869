//! Directories and single files as services: tower-http's, on our files and bodies.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use http_body::{Body, Frame, SizeHint};
use rustix::io::Errno;
use tower_http::services::fs::DefaultServeDirFallback;
use tower_service::Service;

use crate::answer::decide;
use crate::body::{self, FileBody};
use crate::cache::{Files, Root, is_exhausted, watching};
use crate::conditions::decides;
use crate::fallback::{NoFallback, fall_back};
use crate::heads::Heads;
use crate::layer::ZeroCopyLayer;
use crate::names::{encoded, escaped, redirected};

/// Serves the files beneath a directory: tower-http's `ServeDir` (index files, precompressed
/// siblings, ranges, HEAD, fallbacks, 405) over open files that are kept, with conditional requests
/// and `If-Range`, and with [`FileBody`]s.
///
/// No request leaves the directory: not by `..`, nor by a symbolic link (an absolute one does,
/// wherever it leads; [`follow_links_out`](Self::follow_links_out) allows it). Linux 5.6. If the
/// directory's own path leads to another directory meanwhile (a link that is set anew), that is
/// served within a second.
///
/// Up to 1024 files are kept open, and no more than a fourth of the descriptors that the process
/// may have (`RLIMIT_NOFILE`, when this is made); each is looked at anew for each request. Where
/// there are no descriptors left, those that are only kept are closed. A deleted file's space is
/// freed when it makes room for others, or is asked for.
///
/// To move from tower-http's: [`new`](Self::new) may fail, and there is no size of a buffer to set.
#[derive(Debug, Clone)]
pub struct ServeDir<F = NoFallback> {
    inner: tower_http::services::ServeDir<DefaultServeDirFallback, Files>,
    heads: Arc<Heads>,
    prefix: Arc<str>,
    fallback: Option<F>,
    /// The status that the fallback's answers get.
    status: Option<StatusCode>,
    on_method_not_allowed: bool,
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
        let heads = Heads::new(Arc::clone(&root), false, Duration::ZERO);
        let inner = tower_http::services::ServeDir::with_backend("", Files(root));
        let prefix = "".into();
        ServeDir {
            inner,
            heads,
            prefix,
            fallback: None,
            status: None,
            on_method_not_allowed: false,
        }
    }
}

impl<F> ServeDir<F> {
    /// Sends `FILE.gz`, `FILE.br` or `FILE.zst` in place of `FILE` to clients that take it.
    #[must_use]
    pub fn precompressed(self) -> Self {
        self.precompressed_gzip().precompressed_br().precompressed_zstd()
    }

    /// Sends `FILE.gz` in place of `FILE` to clients that take it.
    #[must_use]
    pub fn precompressed_gzip(self) -> Self {
        self.set(true, tower_http::services::ServeDir::precompressed_gzip)
    }

    /// Sends `FILE.br` in place of `FILE` to clients that take it.
    #[must_use]
    pub fn precompressed_br(self) -> Self {
        self.set(true, tower_http::services::ServeDir::precompressed_br)
    }

    /// Sends `FILE.zz` in place of `FILE` to clients that take `deflate`.
    #[must_use]
    pub fn precompressed_deflate(self) -> Self {
        self.set(true, tower_http::services::ServeDir::precompressed_deflate)
    }

    /// Sends `FILE.zst` in place of `FILE` to clients that take it.
    #[must_use]
    pub fn precompressed_zstd(self) -> Self {
        self.set(true, tower_http::services::ServeDir::precompressed_zstd)
    }

    /// Whether a directory is answered with its `index.html`, as it is if not said.
    #[must_use]
    pub fn append_index_html_on_directories(self, yes: bool) -> Self {
        self.set(false, |inner| inner.append_index_html_on_directories(yes))
    }

    /// Whether a directory that is asked for without a `/` at the end is redirected to the path
    /// with one, as it is if not said, or answered there.
    #[must_use]
    pub fn redirect_to_trailing_slash(self, yes: bool) -> Self {
        self.set(false, |inner| inner.redirect_to_trailing_slash(yes))
    }

    /// Whether `NAME.html` is sent where there is no `NAME`; it is not if not said.
    #[must_use]
    pub fn html_as_default_extension(self, yes: bool) -> Self {
        self.set(false, |inner| inner.html_as_default_extension(yes))
    }

    /// Puts `prefix` before the path of redirects: what was taken away from the request's before
    /// it came here, for example by `nest_service`.
    #[must_use]
    pub fn redirect_path_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into().into();
        self
    }

    /// The time for which a look at a small file is valid to [`at_once`](Self::at_once), in whole
    /// milliseconds: one that was replaced may still be sent for so long. Zero, if not said: each
    /// request looks. What is written to a file, or cut off, is seen at once in any case, though
    /// its `ETag` and `Last-Modified` may be those of before.
    #[must_use]
    pub fn validity(mut self, time: Duration) -> Self {
        self.heads = self.heads.anew(self.heads.encodings(), time);
        self
    }

    /// Answers by `fallback` what is not found, also what was not understood as a path. It gets the
    /// request as it came, with its body.
    #[must_use]
    pub fn fallback<F2>(self, fallback: F2) -> ServeDir<F2> {
        let ServeDir { inner, heads, prefix, on_method_not_allowed, .. } = self;
        let fallback = Some(fallback);
        ServeDir { inner, heads, prefix, fallback, status: None, on_method_not_allowed }
    }

    /// As [`fallback`](Self::fallback), and its answers get the status 404. It sees no range and no
    /// condition, which such an answer is not subject to.
    #[must_use]
    pub fn not_found_service<F2>(self, service: F2) -> ServeDir<F2> {
        ServeDir { status: Some(StatusCode::NOT_FOUND), ..self.fallback(service) }
    }

    /// Whether the fallback answers other methods than GET and HEAD, too; it does not if not said,
    /// and they are answered with 405.
    #[must_use]
    pub fn call_fallback_on_method_not_allowed(mut self, yes: bool) -> Self {
        self.on_method_not_allowed = yes;
        self
    }

    /// The number of files that are kept open at most.
    #[must_use]
    pub fn kept_files(&self) -> usize {
        self.heads.root().capacity()
    }

    /// Sets an option of tower-http's, after which answers are others. `encodings` says that those
    /// that a client accepts decide from now on.
    fn set(mut self, encodings: bool, set: impl FnOnce(Inside) -> Inside) -> Self {
        self.inner = set(self.inner);
        let encodings = encodings || self.heads.encodings();
        self.heads = self.heads.anew(encodings, self.heads.validity());
        self
    }

    async fn answer<B, R>(mut self, request: Request<B>) -> Response<ServeBody>
    where
        F: Service<Request<B>, Response = Response<R>, Error = Infallible>,
        R: Body<Data = Bytes> + Send + 'static,
        R::Error: Into<axum::BoxError>,
    {
        if !is_target(request.method(), request.uri().path()) {
            let mut refusal = Response::new(ServeBody(Inner::Other(axum::body::Body::empty())));
            *refusal.status_mut() = StatusCode::BAD_REQUEST;
            return refusal;
        }
        let method = request.method().clone();
        if self.on_method_not_allowed && !matches!(method, Method::GET | Method::HEAD) {
            if let Some(fallback) = self.fallback.take() {
                return fall_back(fallback, self.status, request).await;
            }
        }
        let plain = self.heads.plain(&request).then(|| request.uri().path().into());
        let (answered, found) = watching(self.inner.try_call(head(&request))).await;
        let mut response =
            answered.map_or_else(|e| failed(&e), |response| response.map(axum::body::Body::new));
        if response.status() == StatusCode::NOT_FOUND {
            if let Some(fallback) = self.fallback.take() {
                return fall_back(fallback, self.status, request).await;
            }
        }
        if response.headers().contains_key(header::LOCATION) {
            let to = redirected(&self.prefix, request.uri().path(), request.uri().query());
            // It was one, or tower-http would not have made one of it.
            match HeaderValue::try_from(to) {
                Ok(to) => drop(response.headers_mut().insert(header::LOCATION, to)),
                Err(_) => *response.status_mut() = StatusCode::NOT_FOUND,
            }
        }
        let Some((path, open)) = found else {
            return response.map(ServeBody::other);
        };
        if response.status() != StatusCode::OK {
            return response.map(ServeBody::other);
        }
        let headers = std::mem::take(response.headers_mut());
        let (status, headers, part) =
            decide(&method, request.headers(), &open.validators, headers, open.len());
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        if let Some(asked) = plain {
            self.heads.keep(asked, path, &open, &response);
        }
        if method == Method::HEAD {
            return response.map(ServeBody::other);
        }
        with(response, FileBody::of_file(open.source.clone(), part))
    }
}

type Inside = tower_http::services::ServeDir<DefaultServeDirFallback, Files>;

/// The answer where a file could not be looked at.
fn failed(error: &io::Error) -> Response<axum::body::Body> {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    let status = match error.kind() {
        NotFound | PermissionDenied | NotADirectory => StatusCode::NOT_FOUND,
        _ => {
            tracing::error!("a file cannot be served: {error}");
            // Others give descriptors back in time.
            match Errno::from_io_error(error) {
                Some(errno) if is_exhausted(errno) => StatusCode::SERVICE_UNAVAILABLE,
                _ => StatusCode::INTERNAL_SERVER_ERROR,
            }
        }
    };
    let mut response = Response::new(axum::body::Body::empty());
    *response.status_mut() = status;
    response
}

impl<F> ServeDir<F> {
    /// The service's answer, with its body in memory, where that costs less than the service: to a
    /// plain GET of a small file (less than 16 KiB), as it was asked for before, which can be read
    /// now without waiting. `None` if the service is to be called.
    ///
    /// It is for servers over HTTP/1 that are to be fast at small files. Whoever puts layers
    /// around the service must do to this answer what they do.
    #[must_use]
    pub fn at_once<B>(&self, request: &Request<B>) -> Option<Response<Bytes>> {
        if !self.heads.plain(request) {
            return None;
        }
        let (headers, open) = self.heads.find_lately(request.uri().path(), body::WORTH_MAPPING)?;
        let mut response = Response::new(body::read_whole(&open.source, open.len())?);
        *response.headers_mut() = headers;
        Some(response)
    }

    /// As [`at_once`](Self::at_once), with a mapped body: to a plain GET of a larger file, over
    /// HTTP/1, on the connection that the layer is for. The file is looked at for each request.
    #[must_use]
    pub fn mapped_at_once<B>(
        &self,
        request: &Request<B>,
        _: &ZeroCopyLayer,
    ) -> Option<Response<ServeBody>> {
        if request.version() >= Version::HTTP_2 || !self.heads.plain(request) {
            return None;
        }
        let (headers, open) = self.heads.find(request.uri().path())?;
        let body = FileBody::mapped(open.source.clone(), 0..open.len());
        let mut response = Response::new(ServeBody(Inner::File(body)));
        *response.headers_mut() = headers;
        Some(response)
    }

    /// The answer that was given before to a request that differs in nothing that matters.
    fn known<B>(&self, request: &Request<B>) -> Option<Response<ServeBody>> {
        if !self.heads.plain(request) {
            return None;
        }
        let (headers, open) = self.heads.find(request.uri().path())?;
        let mut response = Response::new(());
        *response.headers_mut() = headers;
        Some(with(response, FileBody::of_file(open.source.clone(), 0..open.len())))
    }
}

/// Whether such a path is of a target in origin, absolute or asterisk form; CONNECT, which is not
/// allowed anyway, has a form of its own.
fn is_target(method: &Method, path: &str) -> bool {
    path.starts_with('/') || (method == Method::OPTIONS && path == "*") || method == Method::CONNECT
}

/// The response with this body, which [`ZeroCopyLayer`] will know.
fn with<B>(response: Response<B>, body: FileBody) -> Response<ServeBody> {
    let offer = body.offer(response.headers().get(header::CONTENT_ENCODING).cloned());
    let mut response = response.map(|_| ServeBody(Inner::File(body)));
    response.extensions_mut().insert(offer);
    response
}

/// The request as tower-http is to see it: without its body, and without conditions and ranges. It
/// says which file is asked for, and what it is; what is sent of it is for us to say.
fn head<B>(request: &Request<B>) -> Request<()> {
    let mut head = Request::new(());
    *head.method_mut() = request.method().clone();
    *head.uri_mut() = request.uri().clone();
    if let Some(path) = escaped(request.uri().path()) {
        if let Ok(uri) = path.parse() {
            *head.uri_mut() = uri;
        }
    }
    let asked = request.headers().iter().filter(|(name, _)| !decides(name));
    head.headers_mut().extend(asked.map(|(name, value)| (name.clone(), value.clone())));
    head
}

impl<B, F, R> Service<Request<B>> for ServeDir<F>
where
    B: Send + 'static,
    F: Service<Request<B>, Response = Response<R>, Error = Infallible> + Clone + Send + 'static,
    F::Future: Send,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<axum::BoxError>,
{
    type Response = Response<ServeBody>;
    type Error = Infallible;
    type Future = ServeFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> ServeFuture {
        ServeFuture(match self.known(&request) {
            Some(response) => Answer::Known(Some(response)),
            None => {
                let service = self.clone();
                Answer::Asked(Box::pin(async { Ok(service.answer(request).await) }))
            }
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
    /// not end in a name.
    pub fn new(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let uri = encoded(name.as_bytes()).parse().map_err(io::Error::other)?;
        let dir = ServeDir::new(dir.unwrap_or(Path::new(".")))?;
        Ok(ServeFile { dir: dir.append_index_html_on_directories(false), uri })
    }

    /// Sends `FILE.gz`, `FILE.br` or `FILE.zst` in its place to clients that take it.
    #[must_use]
    pub fn precompressed(mut self) -> Self {
        self.dir = self.dir.precompressed();
        self
    }
}

impl<B: Send + 'static> Service<Request<B>> for ServeFile {
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

impl ServeBody {
    /// One that is no file's.
    pub(crate) fn other(body: axum::body::Body) -> Self {
        ServeBody(Inner::Other(body))
    }
}

enum Inner {
    File(FileBody),
    Other(axum::body::Body),
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
            Inner::Other(body) => Pin::new(body).poll_frame(cx).map_err(io::Error::other),
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
