//! The progress of a task's send, and the part that one call sent.

use std::ops::Range;
use std::sync::Arc;

use crate::engine::{Choice, Engine, Reason};
use crate::error::Error;
use crate::holder::Link;
use crate::progress::SendProgress;
use crate::sender::Sender;
use crate::ticket::Ticket;

/// The part of a send that the kernel took in one call.
#[derive(Debug)]
#[must_use = "the kernel may have taken fewer bytes than it was given: send the rest next"]
#[non_exhaustive]
pub struct Part<T = Ticket> {
    /// Bytes taken, from the front.
    pub bytes: usize,
    /// The ticket of these bytes.
    pub ticket: T,
}

/// The progress of a send of a range, which outlives the future that sends it.
pub struct Progress {
    range: Range<u64>,
    pub(super) progress: SendProgress,
    /// The cookie of the sender, from its first send on.
    link: Option<Arc<Link>>,
}

impl Progress {
    /// Begins the progress of `range`, in bytes of the file, of which nothing is sent yet.
    #[must_use]
    pub fn new(range: Range<u64>) -> Self {
        Progress::of(range, Choice { engine: Engine::Auto, reason: Reason::Requested })
    }

    pub(super) fn of(range: Range<u64>, choice: Choice) -> Self {
        Progress { range, progress: SendProgress::new(choice), link: None }
    }

    /// Bytes that the kernel accepted, from the front.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.progress.bytes()
    }

    /// The range that is still to be sent, in bytes of the file.
    #[must_use]
    pub fn remaining(&self) -> Range<u64> {
        self.range.start + self.sent()..self.range.end
    }

    /// A ticket for all that was sent so far.
    #[must_use]
    pub fn ticket(&self) -> Ticket {
        Ticket::sent(self.progress.clone(), self.link.clone())
    }

    pub(super) fn belongs_to(&mut self, sender: &Sender) -> Result<(), Error> {
        let link = sender.conn().link();
        if self.sent() > 0 && !self.link.as_ref().is_some_and(|of| Arc::ptr_eq(of, link)) {
            return Err(Error::OtherSender);
        }
        self.link = Some(Arc::clone(link));
        Ok(())
    }
}

impl std::fmt::Debug for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Progress")
            .field("remaining", &self.remaining())
            .field("ticket", &self.ticket())
            .finish()
    }
}
