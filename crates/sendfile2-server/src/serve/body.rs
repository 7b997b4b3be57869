//! Bodies of answers, and what is counted when they end.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::StatusCode;
use http_body_util::Full;
use sendfile2_axum::{FileBody, ServeBody};
use sendfile2_cache::proxy::CacheBody;

use super::access::Line;
use super::connection::Server;
use super::timeouts::Answering;

/// The body of an answer of the site.
pub(super) enum FilesBody {
    Dir(ServeBody),
    Text(Full<Bytes>),
}

impl Default for FilesBody {
    fn default() -> Self {
        FilesBody::Text(Full::default())
    }
}

impl HttpBody for FilesBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, std::io::Error>>> {
        match self.get_mut() {
            FilesBody::Dir(body) => Pin::new(body).poll_frame(cx),
            FilesBody::Text(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            FilesBody::Dir(body) => body.is_end_stream(),
            FilesBody::Text(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self {
            FilesBody::Dir(body) => body.size_hint(),
            FilesBody::Text(body) => body.size_hint(),
        }
    }
}

/// The body of an answer before it is counted: boxes only where layers have been around it.
pub(super) enum Uncounted {
    Files(FilesBody),
    Cached(CacheBody),
    Stored(FileBody),
    Layered(Body),
}

impl HttpBody for Uncounted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, axum::Error>>> {
        match self.get_mut() {
            Uncounted::Files(body) => Pin::new(body).poll_frame(cx).map_err(axum::Error::new),
            Uncounted::Cached(body) => Pin::new(body).poll_frame(cx).map_err(axum::Error::new),
            Uncounted::Stored(body) => Pin::new(body).poll_frame(cx).map_err(axum::Error::new),
            Uncounted::Layered(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Uncounted::Files(body) => body.is_end_stream(),
            Uncounted::Cached(body) => body.is_end_stream(),
            Uncounted::Stored(body) => body.is_end_stream(),
            Uncounted::Layered(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self {
            Uncounted::Files(body) => body.size_hint(),
            Uncounted::Cached(body) => body.size_hint(),
            Uncounted::Stored(body) => body.size_hint(),
            Uncounted::Layered(body) => body.size_hint(),
        }
    }
}

/// An answer's body, which counts and logs the answer when it ends, however it does.
pub(super) struct Answer {
    pub(super) body: Uncounted,
    pub(super) server: Arc<Server>,
    pub(super) began: Instant,
    pub(super) status: StatusCode,
    pub(super) bytes: u64,
    pub(super) line: Option<Line>,
    /// With HTTP/1, until the answer ends.
    pub(super) _answering: Option<Answering>,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                // Not a byte of it is looked at: it may be mapped.
                this.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
            }
            // With HTTP/2 it ends a stream, and not the connection.
            Some(Err(error)) => this.server.broke_off(error),
            None => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let took = self.began.elapsed();
        self.server.meters.ended.record(took);
        if let Some(line) = self.line.take() {
            self.server.log.write(|log| line.end(self.status, self.bytes, took, log));
        }
    }
}
