//! The service that answers what a directory does not.

use std::convert::Infallible;
use std::future::poll_fn;
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use tower_service::Service;

use crate::conditions::decides;
use crate::serve::ServeBody;

/// In place of a fallback: there is none.
#[derive(Debug, Clone, Copy)]
pub enum NoFallback {}

impl<B> Service<Request<B>> for NoFallback {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        match *self {}
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        match *self {}
    }
}

/// Answers by the fallback.
pub(crate) async fn fall_back<F, B, R>(
    mut fallback: F,
    status: Option<StatusCode>,
    mut request: Request<B>,
) -> Response<ServeBody>
where
    F: Service<Request<B>, Response = Response<R>, Error = Infallible>,
    R: HttpBody<Data = Bytes> + Send + 'static,
    R::Error: Into<axum::BoxError>,
{
    if status.is_some() {
        let headers = request.headers_mut();
        let decide: Vec<_> = headers.keys().filter(|name| decides(name)).cloned().collect();
        decide.iter().for_each(|name| drop(headers.remove(name)));
    }
    let Ok(()) = poll_fn(|cx| fallback.poll_ready(cx)).await;
    let Ok(response) = fallback.call(request).await;
    let mut response = response.map(|body| ServeBody::other(Body::new(body)));
    if let Some(status) = status {
        *response.status_mut() = status;
    }
    response
}
