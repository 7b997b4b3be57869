//! The layer that puts mapped bodies in the place of file bodies.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response, Version};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::body::{FileBody, Offer};
use crate::io::Io;

/// A layer that puts a mapped body in the place of each [file body](crate::FileBody) that nothing has
/// changed, for HTTP/1. [`serve`](crate::serve()) adds it by itself.
///
/// It is made for one connection, and must be outermost there: only the kernel may read a mapped
/// body. The [crate](crate#mapped-bytes) says why.
///
/// A body stays as it is, and is read from the file, where the request is not HTTP/1, and where the
/// body was encoded, resized, polled or replaced since it was made. The extensions of each response
/// that had a file body hold the outcome ([`MappedBody`]), and the counter
/// `sendfile2_http_bodies_total` counts the outcomes.
#[derive(Debug, Clone, Copy)]
pub struct ZeroCopyLayer(());

/// Whether a file body that passed the layer became a mapped one; in the response's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MappedBody(
    /// `Ok` if a mapped body took its place, or else the reason why not.
    pub Result<(), &'static str>,
);

impl ZeroCopyLayer {
    /// Returns the layer for the answers on this very connection, which hyper must write to it: not
    /// TLS, or anything else that reads what it passes on. And with hyper's defaults:
    /// `writev(false)` and `pipeline_flush(true)` copy bodies.
    #[must_use]
    pub fn of(_: &Io) -> Self {
        ZeroCopyLayer(())
    }

    /// Returns the mapped body that takes the place of the response's file body, for who has the
    /// response to a request of this version without a service: as the service of this layer does
    /// it, and as the [layer](Self) says. `None` if the response keeps the body that it has.
    pub fn replacement<R>(&self, version: Version, response: &mut Response<R>) -> Option<FileBody>
    where
        R: http_body::Body,
    {
        let offer = response.extensions_mut().remove::<Offer>()?;
        let body =
            if version < Version::HTTP_2 { offer.accept(response) } else { Err("not HTTP/1") };
        let became = body.as_ref().map_or_else(|why| *why, |_| "mapped");
        metrics::counter!("sendfile2_http_bodies_total", "became" => became).increment(1);
        response.extensions_mut().insert(MappedBody(body.as_ref().map(|_| ()).map_err(|why| *why)));
        body.inspect_err(|why| tracing::debug!(why, "a file body is not mapped")).ok()
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
        Poll::Ready(Ok(match ZeroCopyLayer(()).replacement(*this.version, &mut response) {
            Some(mapped) => response.map(|_| Body::new(mapped)),
            None => response.map(Body::new),
        }))
    }
}
