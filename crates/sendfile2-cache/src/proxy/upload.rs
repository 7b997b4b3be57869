//! The body of a request on its way to an origin: whether it moves, and for whom it waits.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::LengthLimitError;
use tokio::time::Instant;

use super::body::{BoxError, RequestBody};
use super::origin::NoAnswer;

/// How far a request is.
#[derive(Debug, Clone)]
pub(super) struct Progress(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// When something of the request went to the origin last.
    moved: Instant,
    /// Whether the client's next bytes are waited for.
    awaits_client: bool,
    /// The reason for which the client's body broke off.
    broken: Option<NoAnswer>,
}

/// A body that notes its progress.
struct Upload {
    body: RequestBody,
    progress: Progress,
}

impl Progress {
    /// Begins a request, whose body is to be the one returned.
    pub(super) fn of(body: RequestBody) -> (Self, RequestBody) {
        let (moved, awaits_client, broken) = (Instant::now(), false, None);
        let progress = Progress(Arc::new(Mutex::new(State { moved, awaits_client, broken })));
        let upload = Upload { body, progress: progress.clone() };
        (progress, RequestBody::new(upload))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn moved(&self) -> Instant {
        self.state().moved
    }

    /// Returns why there is no answer, where that is the client's doing.
    pub(super) fn of_client(&self, timed_out: bool) -> Option<NoAnswer> {
        let mut state = self.state();
        let late = (timed_out && state.awaits_client).then_some(NoAnswer::SlowClient);
        state.broken.take().or(late)
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        let mut state = self.progress.state();
        state.awaits_client = frame.is_pending();
        match &frame {
            Poll::Pending => {}
            Poll::Ready(Some(Err(e))) => {
                state.broken = Some(match e.downcast_ref::<LengthLimitError>() {
                    Some(_) => NoAnswer::TooLong,
                    None => NoAnswer::BrokenClient,
                });
            }
            Poll::Ready(_) => state.moved = Instant::now(),
        }
        drop(state);
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
