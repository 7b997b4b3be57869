//! Requests that nobody hears to their end: what comes of a body that is not read, and of an offer
//! to speak something else.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::BoxError;
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::rt::Write;
use hyper::upgrade::OnUpgrade;
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_service::Service;

/// The longest for which a body that nobody wants is read, and the longest for which nothing of it
/// may come.
const DRAIN: Duration = Duration::from_secs(30);
const QUIET: Duration = Duration::from_secs(2);

/// A look at what an app leaves of a request, so that the client can read the answer, though it is
/// still sending, or would speak something else than HTTP. [`serve`](crate::serve()) has it by
/// itself; with hyper alone it is for the service to call.
///
/// Over HTTP/1 the answer to a request whose body was dropped before its end says `Connection:
/// close`, since no other one will be answered there; and a connection on which the client
/// offered another protocol (`Upgrade`), which the app did not take, ends by shutting it down, where
/// hyper would drop it. What comes then is thrown away by [`Io`](crate::Io). Over HTTP/2 what comes
/// of the body is thrown away for a while: the stream would be reset, and some clients then lose the
/// answer.
#[derive(Debug)]
pub struct Unread {
    http1: bool,
    /// Whether the body was dropped before its end; of one that has something in it.
    left: Option<Arc<AtomicBool>>,
    connects: bool,
    upgrade: Option<OnUpgrade>,
}

impl Unread {
    /// Returns the request with a body that is looked at, and the look.
    pub fn of<B>(request: Request<B>) -> (Request<Body>, Self)
    where
        B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
    {
        let http1 = request.version() < Version::HTTP_2;
        let upgrade = request.extensions().get::<OnUpgrade>().filter(|_| http1).cloned();
        let connects = request.method() == Method::CONNECT;
        if request.body().is_end_stream() {
            return (
                request.map(|_| Body::empty()),
                Unread { http1, left: None, connects, upgrade },
            );
        }
        let left = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&left);
        let watched =
            |body| Body::new(Watched { body: Some(body), ended: false, left: seen, http1 });
        (request.map(watched), Unread { http1, left: Some(left), connects, upgrade })
    }

    /// Tells the client in the answer, and sees to the end of the connection.
    pub fn tell<B>(self, response: &mut Response<B>) {
        let status = response.status();
        if status == StatusCode::SWITCHING_PROTOCOLS || (self.connects && status.is_success()) {
            return;
        }
        if self.http1 && self.left.is_some_and(|left| left.load(Relaxed)) {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(upgrade) = self.upgrade {
            tokio::spawn(async {
                if let Ok(mut io) = upgrade.await {
                    let _ = poll_fn(|cx| Pin::new(&mut io).poll_shutdown(cx)).await;
                }
            });
        }
    }
}

/// A request's body, which tells when it is dropped before its end.
struct Watched<B>
where
    B: HttpBody + Send + Unpin + 'static,
{
    /// Until it is dropped.
    body: Option<B>,
    ended: bool,
    left: Arc<AtomicBool>,
    http1: bool,
}

impl<B: HttpBody + Send + Unpin + 'static> HttpBody for Watched<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(cx));
        self.ended |= !matches!(frame, Some(Ok(_)));
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(HttpBody::size_hint).unwrap_or_default()
    }
}

impl<B: HttpBody + Send + Unpin + 'static> Drop for Watched<B> {
    fn drop(&mut self) {
        if self.ended || self.is_end_stream() {
            return;
        }
        self.left.store(true, Relaxed);
        // Over HTTP/1 the connection throws it away when it ends, as it will.
        if let (false, Some(body), Ok(runtime)) =
            (self.http1, self.body.take(), tokio::runtime::Handle::try_current())
        {
            runtime.spawn(throw_away(body));
        }
    }
}

/// Reads what comes of a body, for a while.
async fn throw_away<B: HttpBody + Unpin>(mut body: B) {
    let latest = Instant::now() + DRAIN;
    loop {
        let quiet = (Instant::now() + QUIET).min(latest);
        let frame = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx));
        match tokio::time::timeout_at(quiet, frame).await {
            Ok(Some(Ok(_))) if Instant::now() < latest => {}
            _ => return,
        }
    }
}

/// An app whose answers tell what it left [unread](Unread), by [`serve`](crate::serve()).
#[derive(Debug, Clone)]
pub struct TellsUnread<S>(pub(crate) S);

impl<S, R> Service<Request<Body>> for TellsUnread<S>
where
    S: Service<Request<Body>, Response = Response<R>>,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = TellsUnreadFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (request, unread) = Unread::of(request);
        TellsUnreadFuture { inner: self.0.call(request), unread: Some(unread) }
    }
}

pin_project! {
    /// The future of [`TellsUnread`].
    #[derive(Debug)]
    pub struct TellsUnreadFuture<F> {
        #[pin]
        inner: F,
        unread: Option<Unread>,
    }
}

impl<F, R, E> Future for TellsUnreadFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let mut response = ready!(this.inner.poll(cx))?;
        if let Some(unread) = this.unread.take() {
            unread.tell(&mut response);
        }
        Poll::Ready(Ok(response))
    }
}
