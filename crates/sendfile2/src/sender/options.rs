//! Options of a sender.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::conn::{ErrorQueueMessage, Hook};
use crate::engine::Engine;

/// The options of a [`Sender`](crate::Sender).
#[derive(Clone, Default)]
pub struct Options {
    pub(super) engine: Engine,
    pub(super) next_id: Option<u32>,
    pub(super) reset_on_exit: bool,
    pub(super) hook: Option<Hook>,
    pub(super) linger: Option<Duration>,
    pub(super) acknowledgements: bool,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("engine", &self.engine)
            .field("next_id", &self.next_id)
            .field("reset_on_exit", &self.reset_on_exit)
            .field("linger", &self.linger)
            .field("acknowledgements", &self.acknowledgements)
            .finish_non_exhaustive()
    }
}

impl Options {
    /// The defaults: engine `auto`, a socket on which no zerocopy send was made yet.
    #[must_use]
    pub fn new() -> Self {
        Options::default()
    }

    /// The engine to use; [`Engine::Auto`] if not said.
    #[must_use]
    pub fn engine(mut self, engine: Engine) -> Self {
        self.engine = engine;
        self
    }

    /// The notification id that the next zerocopy send on the socket will get: how many were made
    /// on it before, modulo 2³². Notifications of earlier ids are passed to the
    /// [hook](Self::on_error_queue).
    #[must_use]
    pub fn next_id(mut self, id: u32) -> Self {
        self.next_id = Some(id);
        self
    }

    /// Lets the death of the process reset the connection while zerocopy sends are in flight.
    ///
    /// Without it the kernel goes on sending from the page cache after a crash, and a restarted
    /// program that overwrites the file at once changes what the peer receives. With it (`SO_LINGER
    /// {1, 0}`, restored when drained) a program that exits in a hurry cuts its peers short. Sends
    /// under a lease do this always, except of files that writers
    /// [detach](crate::guard::Overwrite::Detach); those of a ring do it for these, too. TCP only. Segments already in a queueing discipline remain.
    ///
    /// It resets nothing while another process has the socket, too, by fork(2), by an exec without
    /// `CLOEXEC`, or over a unix socket: the kernel closes a socket with its last descriptor, and
    /// goes on sending until then. Overwrite the file only when those processes are gone.
    ///
    /// An `SO_LINGER` that the application sets meanwhile stays, and is not replaced until nothing
    /// is in flight: until then the process's death does what that says. (A `{1, 0}` of its own
    /// cannot be told from this one; set it before the sends, or after them.)
    #[must_use]
    pub fn reset_on_exit(mut self, reset: bool) -> Self {
        self.reset_on_exit = reset;
        self
    }

    /// Sets the hook that is given what the socket's error queue holds beside our notifications:
    /// ICMP errors, timestamps, notifications of the application's own sends. Called by whoever
    /// reaps, also the reaper's thread, outside all locks. Without a hook they are traced and
    /// dropped.
    #[must_use]
    pub fn on_error_queue(
        mut self,
        hook: impl Fn(ErrorQueueMessage) + Send + Sync + 'static,
    ) -> Self {
        self.hook = Some(Arc::new(hook));
        self
    }

    /// Lets the kernel put each acknowledgement of a send on the error queue (`TX_ACK` stamps,
    /// Linux 3.17), so that [`Ticket::wait_acknowledged`](crate::Ticket::wait_acknowledged) is
    /// woken by it and need not look again and again. That costs each send an entry there, which is
    /// read here and there. TCP only; not where the application has set `SO_TIMESTAMPING` already.
    #[must_use]
    pub fn acknowledgements(mut self, tell: bool) -> Self {
        self.acknowledgements = tell;
        self
    }

    /// Sets how long the reaper waits for what is in flight when the sender is dropped, before it
    /// aborts the connection; 60 seconds if not said, and for ever with [`Duration::MAX`].
    #[must_use]
    pub fn linger(mut self, limit: Duration) -> Self {
        self.linger = Some(limit);
        self
    }
}
