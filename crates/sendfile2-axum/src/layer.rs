//! The layer that makes mapped bodies.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response, Version};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::body::Offer;

/// Makes mapped bodies of the [file bodies](crate::FileBody) that nothing has touched, for HTTP/1.
///
/// **It must be the outermost layer, and the connection must be plain TCP (or a unix socket)**:
/// what it lets out is to be read by nobody but the kernel. The [crate](crate#mapped-bytes) says
/// why. In a router it is the last one that is added; beneath TLS it must not be at all.
///
/// Bodies are left alone, and sent by reading, when the request is not HTTP/1, and when they were
/// encoded, resized, polled or replaced since they were made. Each response says in its extensions
/// what became of it ([`Untouched`]), and the counter `sendfile2_http_bodies_total` counts them by
/// that.
#[derive(Debug, Clone, Copy, Default)]
pub struct ZeroCopyLayer(());

/// The fate of a file body that passed the layer; in the response's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Untouched(
    /// A mapped body took its place; or why not.
    pub Result<(), &'static str>,
);

impl ZeroCopyLayer {
    /// The layer.
    #[must_use]
    pub fn new() -> Self {
        ZeroCopyLayer::default()
    }
}

impl<S> Layer<S> for ZeroCopyLayer {
    type Service = ZeroCopy<S>;

    fn layer(&self, inner: S) -> ZeroCopy<S> {
        ZeroCopy(inner)
    }
}

/// The service that [`ZeroCopyLayer`] makes.
#[derive(Debug, Clone)]
pub struct ZeroCopy<S>(S);

impl<S, B, R> Service<Request<B>> for ZeroCopy<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: http_body::Body<Data = Bytes> + Send + 'static,
    R::Error: Into<axum::BoxError>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = ZeroCopyFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> ZeroCopyFuture<S::Future> {
        let version = request.version();
        ZeroCopyFuture { version, inner: self.0.call(request) }
    }
}

pin_project! {
    /// The future of [`ZeroCopy`].
    #[derive(Debug)]
    pub struct ZeroCopyFuture<F> {
        version: Version,
        #[pin]
        inner: F,
    }
}

impl<F, R, E> Future for ZeroCopyFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
    R: http_body::Body<Data = Bytes> + Send + 'static,
    R::Error: Into<axum::BoxError>,
{
    type Output = Result<Response<Body>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = ready!(this.inner.poll(cx))?;
        let Some(offer) = response.extensions_mut().remove::<Offer>() else {
            return Poll::Ready(Ok(response.map(Body::new)));
        };
        let body = if *this.version < Version::HTTP_2 {
            offer.accept(&response)
        } else {
            Err("not HTTP/1")
        };
        let became = body.as_ref().map_or_else(|why| *why, |_| "mapped");
        metrics::counter!("sendfile2_http_bodies_total", "became" => became).increment(1);
        response.extensions_mut().insert(Untouched(body.as_ref().map(|_| ()).map_err(|why| *why)));
        Poll::Ready(Ok(match body {
            Ok(body) => response.map(|_| Body::new(body)),
            Err(why) => {
                tracing::debug!(why, "a file body is not mapped");
                response.map(Body::new)
            }
        }))
    }
}
