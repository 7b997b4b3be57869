//! The means by which a task of tokio waits: a thread's means, which tokio knows as one descriptor.

use std::sync::Arc;
use std::time::Instant;

use ::tokio::io::unix::AsyncFd;

use super::{Event, Parker as Thread};
use crate::error::Error;
use crate::sys::tokio::{Registered, register};

/// A task's place to wait, for one wait.
#[derive(Debug)]
pub(crate) struct Parker {
    thread: Thread,
    registered: AsyncFd<Registered>,
}

impl Parker {
    pub(crate) fn new() -> Result<Self, Error> {
        let thread = Thread::new()?;
        let registered = register(Arc::clone(&thread.epoll)).map_err(failed)?;
        Ok(Parker { thread, registered })
    }

    /// The parker, which is told of events as a thread's is.
    pub(crate) fn as_thread(&self) -> &Thread {
        &self.thread
    }

    /// Sleeps until something watched happened, the bell rang, or the deadline passed.
    pub(crate) async fn park(&self, deadline: Option<Instant>) -> Result<Vec<Event>, Error> {
        let heard = async {
            loop {
                let mut guard = self.registered.readable().await.map_err(failed)?;
                let events = self.as_thread().park(Some(Instant::now()))?;
                if !events.is_empty() {
                    // There may be more, so that readiness is not cleared.
                    return Ok(events);
                }
                guard.clear_ready();
            }
        };
        match deadline {
            None => heard.await,
            Some(deadline) => match ::tokio::time::timeout_at(deadline.into(), heard).await {
                Ok(events) => events,
                Err(_) => Ok(Vec::new()),
            },
        }
    }
}

/// The runtime refuses a descriptor, or is going away.
pub(crate) fn failed(cause: std::io::Error) -> Error {
    Error::Wait { op: "tokio's AsyncFd", cause }
}
