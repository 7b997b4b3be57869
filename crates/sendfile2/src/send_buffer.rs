//! Buffers that are sent by reference and come back.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::engine::{Choice, Engine, Reason};
use crate::holder::Link;
use crate::progress::SendProgress;
use crate::ticket::Ticket;

/// A buffer to be sent by reference. It is handed over part by part
/// ([`Sender::try_send_buffer`](crate::Sender::try_send_buffer)), and comes back when everything
/// that was sent of it is released.
///
/// Dropping it early is harmless: what is in flight keeps the buffer.
pub struct SendBuffer<B> {
    pub(crate) slot: Arc<Slot<B>>,
    pub(crate) progress: SendProgress,
    /// The sender that has it, from its first send on.
    pub(crate) link: Option<Arc<Link>>,
}

/// Where a buffer waits for its release: held by the ledger, and by the [`SendBuffer`] it came in.
pub(crate) type Slot<B> = Mutex<Option<B>>;

impl<B> fmt::Debug for SendBuffer<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendBuffer")
            .field("sent", &self.sent())
            .field("choice", &self.progress.choice())
            .field("status", &self.ticket().status())
            .finish_non_exhaustive()
    }
}

impl<B: AsRef<[u8]> + Send + 'static> SendBuffer<B> {
    /// Wraps `buffer`. Its [`AsRef`] must give the same bytes each time.
    pub fn new(buffer: B) -> Self {
        let choice = Choice { engine: Engine::Auto, reason: Reason::Requested };
        let slot = Arc::new(Mutex::new(Some(buffer)));
        SendBuffer { slot, progress: SendProgress::new(choice), link: None }
    }
}

impl<B: AsRef<[u8]> + Send + 'static> From<B> for SendBuffer<B> {
    fn from(buffer: B) -> Self {
        SendBuffer::new(buffer)
    }
}

impl<B: AsRef<[u8]>> SendBuffer<B> {
    /// Bytes of it that are still to be sent.
    #[must_use]
    pub fn remaining(&self) -> usize {
        let slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        slot.as_ref().map_or(0, |b| b.as_ref().len().saturating_sub(self.sent()))
    }
}

impl<B> SendBuffer<B> {
    /// Bytes of it that the kernel accepted so far, from the front.
    #[must_use]
    pub fn sent(&self) -> usize {
        // The buffer has a usize of bytes.
        usize::try_from(self.progress.bytes()).unwrap_or(usize::MAX)
    }

    /// A ticket for all that was sent of it so far.
    #[must_use]
    pub fn ticket(&self) -> Ticket {
        Ticket::sent(self.progress.clone(), self.link.clone())
    }

    /// Takes the buffer back.
    ///
    /// # Errors
    /// The same again, while the kernel may still read from the buffer.
    pub fn into_buffer(self) -> Result<B, Self> {
        let buffer = self
            .progress
            .released()
            .and_then(|_| self.slot.lock().unwrap_or_else(PoisonError::into_inner).take());
        buffer.ok_or(self)
    }
}
