//! The body of an origin's answer, whose errors name the target and the origin.

use std::error::Error;
use std::fmt::Display;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

/// A body that an origin sends.
#[derive(Debug)]
pub(super) struct OriginBody {
    body: Incoming,
    /// The target, and the origin.
    of: String,
}

impl OriginBody {
    pub(super) fn new(body: Incoming, of: String) -> Self {
        OriginBody { body, of }
    }

    /// An error that says of which answer it is.
    pub(super) fn error(&self, kind: ErrorKind, why: impl Display) -> io::Error {
        io::Error::new(kind, format!("{}: {why}", self.of))
    }
}

impl Body for OriginBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        frame.map_err(|e| self.error(ErrorKind::Other, whole(&e)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An error and its causes, in one line.
pub(super) fn whole(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| (*error).source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
