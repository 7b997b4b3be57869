//! Tickets: what became of a send.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
#[cfg(feature = "tokio")]
use std::time::Duration;

use crate::deadline::Deadline;
use crate::engine::Choice;
use crate::error::Error;
use crate::holder::{Link, Waitable};
use crate::progress::{Release, SendProgress, Status};
use crate::queued::QueuedProgress;
use crate::socket::acknowledged::Acknowledgement;
use crate::wait;

/// The pauses of a task that waits for an acknowledgement, which nothing tells it of: they double
/// from the first to the last.
#[cfg(feature = "tokio")]
const FIRST_PAUSE: Duration = Duration::from_micros(100);
#[cfg(feature = "tokio")]
const LAST_PAUSE: Duration = Duration::from_millis(10);

const NOT_RELEASED: &str = "the send was not released";

/// A view of a send: whether it is accepted, released, acknowledged.
///
/// A ticket only looks on. Dropping it ends nothing and frees nothing, keeping it holds nothing
/// back.
#[derive(Clone)]
pub struct Ticket {
    progress: Progress,
    /// The link of the connection; none of a buffer that nothing was sent of.
    link: Option<Arc<Link>>,
}

#[derive(Clone)]
enum Progress {
    /// A sender's: the kernel had accepted all that the ticket is of.
    Made(SendProgress),
    /// On a socket of a driver, which goes on with it.
    #[cfg_attr(not(feature = "uring"), expect(dead_code, reason = "only a driver queues"))]
    Queued(Arc<QueuedProgress>),
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket")
            .field("bytes", &self.bytes())
            .field("choice", &self.choice())
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

impl Ticket {
    /// The ticket of what a sender has sent.
    pub(crate) fn sent(progress: SendProgress, link: Option<Arc<Link>>) -> Self {
        Ticket { progress: Progress::Made(progress), link }
    }

    /// The ticket of what was queued.
    #[cfg(feature = "uring")]
    pub(crate) fn queued(progress: Arc<QueuedProgress>, link: &Arc<Link>) -> Self {
        Ticket { progress: Progress::Queued(progress), link: Some(Arc::clone(link)) }
    }

    /// Bytes of the send that the kernel has accepted.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match &self.progress {
            Progress::Made(progress) => progress.bytes(),
            Progress::Queued(progress) => progress.bytes(),
        }
    }

    /// The engine that served the send (its last part, where it had several), and the reason.
    #[must_use]
    pub fn choice(&self) -> Choice {
        match &self.progress {
            Progress::Made(progress) => progress.choice(),
            Progress::Queued(progress) => progress.choice(),
        }
    }

    /// The reason why a queued send ended before all of it was accepted; `None` if it did not, and
    /// for what a [`Sender`](crate::Sender) has sent, which says so itself.
    #[must_use]
    pub fn error(&self) -> Option<Error> {
        match &self.progress {
            Progress::Made(_) => None,
            Progress::Queued(progress) => progress.failure().map(Error::from),
        }
    }

    /// Whether the kernel has released it, as far as the completions read so far say. (Reading them
    /// is [`Sender::reap`](crate::Sender::reap), and every wait does it.)
    ///
    /// What is queued counts as in flight; what ended early is released when the part that was
    /// accepted is.
    #[must_use]
    pub fn status(&self) -> Status {
        match (self.release(), self.source()) {
            _ if self.is_exposed() => Status::Exposed,
            (Some(release), _) => Status::Released(release),
            (None, Some(source)) if !source.is_unknown() => Status::InFlight,
            (None, _) => Status::Unknown,
        }
    }

    /// Whether the peer's TCP has all of it; asks the kernel, without waiting.
    ///
    /// # Errors
    /// [`Error::Socket`] if SIOCOUTQ fails; [`Error::Forked`].
    pub fn acknowledgement(&self) -> Result<Acknowledgement, Error> {
        let source = self.source();
        if let Some(source) = &source {
            source.ours()?;
        }
        if let Progress::Queued(progress) = &self.progress {
            // In this order: what is over is accepted no further.
            let over = progress.is_over() || source.is_none();
            if !progress.is_accepted() {
                return Ok(if over {
                    Acknowledgement::Unknowable
                } else {
                    Acknowledgement::Pending
                });
            }
        }
        let end = self.end();
        if let Some(source) = source {
            return source.acknowledgement(end);
        }
        let known = |link: &Arc<Link>| link.acknowledged.load(Ordering::Relaxed) >= end;
        Ok(if self.link.as_ref().is_some_and(known) {
            Acknowledgement::Acknowledged
        } else {
            Acknowledgement::Unknowable
        })
    }

    /// Waits until the kernel has accepted all of it: for what was queued on a socket of a
    /// [`Driver`](crate::uring::Driver). What a [`Sender`](crate::Sender) has sent is accepted.
    ///
    /// # Errors
    /// The reason why it ended early, if it did (see [`error`](Self::error)); [`Error::Deadline`];
    /// [`Error::Wait`]; [`Error::Forked`].
    pub fn wait_accepted(&self, deadline: impl Into<Deadline>) -> Result<(), Error> {
        let deadline = deadline.into();
        let Progress::Queued(progress) = &self.progress else { return Ok(()) };
        self.wait(deadline, "the peer does not read: the send is still queued", || {
            match progress.failure() {
                Some(failure) => Err(failure.into()),
                None => Ok(progress.is_accepted().then_some(())),
            }
        })
    }

    /// Waits until the kernel has released it, reading completions meanwhile.
    ///
    /// # Errors
    /// [`Error::Deadline`] if that has not happened by `deadline`; [`Error::NotIssued`] and
    /// [`Error::TooEarly`] if the ids of the connection do not add up; [`Error::Wait`] if waiting
    /// is not possible; [`Error::Exposed`] if the release is never reported; [`Error::Forked`].
    /// That a queued send ended early is none:
    /// [`error`](Self::error) says so.
    pub fn wait_released(&self, deadline: impl Into<Deadline>) -> Result<Release, Error> {
        let deadline = deadline.into();
        self.reported()?;
        self.wait(deadline, NOT_RELEASED, || Ok(self.release()))
    }

    /// Whether a part of it was sent by `sendfile(2)`.
    fn is_exposed(&self) -> bool {
        matches!(&self.progress, Progress::Made(progress) if progress.is_exposed())
    }

    /// Fails where the release is never reported.
    fn reported(&self) -> Result<(), Error> {
        if self.is_exposed() { Err(Error::Exposed) } else { Ok(()) }
    }

    /// Waits until the peer's TCP has acknowledged it, or that can never be known:
    /// what it returns is never [`Acknowledgement::Pending`].
    ///
    /// With [`Options::acknowledgements`](crate::Options::acknowledgements) the kernel wakes it;
    /// without, only completions do, which come with acknowledgements where the peer is elsewhere,
    /// and it looks by itself every 0.1 to 10 ms.
    ///
    /// # Errors
    /// [`Error::Deadline`]; [`Error::Wait`]; [`Error::Socket`] if SIOCOUTQ fails;
    /// [`Error::Forked`].
    pub fn wait_acknowledged(
        &self,
        deadline: impl Into<Deadline>,
    ) -> Result<Acknowledgement, Error> {
        let deadline = deadline.into();
        if let Progress::Queued(progress) = &self.progress {
            // Only then its end is known.
            self.wait(deadline, "the send was not acknowledged", || {
                Ok((progress.is_accepted() || progress.is_over()).then_some(()))
            })?;
        }
        Ok(match (self.acknowledgement()?, self.source()) {
            (Acknowledgement::Pending, Some(source)) => {
                wait::until_acknowledged(&*source, self.end(), deadline)?
            }
            // It went away between the two, and what it knew stays.
            (Acknowledgement::Pending, None) => self.acknowledgement()?,
            (known, _) => known,
        })
    }

    /// As [`wait_released`](Self::wait_released), for a task of tokio. To wait no longer than some
    /// time, drop the future (`tokio::time::timeout`); that ends nothing but the waiting.
    ///
    /// # Errors
    /// As [`wait_released`](Self::wait_released), without the deadline.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O enabled.
    #[cfg(feature = "tokio")]
    pub async fn released(&self) -> Result<Release, Error> {
        self.reported()?;
        match (self.release(), self.source()) {
            (Some(release), _) => Ok(release),
            (None, Some(source)) => wait::until_as_task(&*source, || Ok(self.release())).await,
            // It went away between the two: it only does when nothing is in flight.
            (None, None) => self.release().ok_or(Error::Deadline(NOT_RELEASED)),
        }
    }

    /// As [`wait_acknowledged`](Self::wait_acknowledged), for a task of tokio; dropping the future
    /// ends nothing but the waiting.
    ///
    /// # Errors
    /// [`Error::Socket`] if SIOCOUTQ fails; [`Error::Forked`].
    ///
    /// # Panics
    /// Outside of a tokio runtime with its timer enabled.
    #[cfg(feature = "tokio")]
    pub async fn acknowledged(&self) -> Result<Acknowledgement, Error> {
        let mut pause = FIRST_PAUSE;
        if let Some(source) = self.source() {
            source.flush();
        }
        loop {
            match self.acknowledgement()? {
                Acknowledgement::Pending => {}
                known => return Ok(known),
            }
            ::tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    /// Waits until `check` gives a value.
    fn wait<T>(
        &self,
        deadline: Deadline,
        what: &'static str,
        mut check: impl FnMut() -> Result<Option<T>, Error>,
    ) -> Result<T, Error> {
        if let Some(value) = check()? {
            return Ok(value);
        }
        match self.source() {
            Some(source) => {
                source.ours()?;
                wait::until(&*source, deadline, what, check)
            }
            // It went away meanwhile: it only does when nothing is in flight.
            None => check()?.ok_or(Error::Deadline(what)),
        }
    }

    /// Returns how it was released, once all of it is.
    fn release(&self) -> Option<Release> {
        let copied = match &self.progress {
            Progress::Made(progress) => progress.released(),
            Progress::Queued(progress) => progress.released(),
        };
        copied.map(|copied| Release { copied })
    }

    /// Bytes that the connection had accepted after it.
    fn end(&self) -> u64 {
        match &self.progress {
            Progress::Made(progress) => progress.end(),
            Progress::Queued(progress) => progress.end(),
        }
    }

    fn source(&self) -> Option<Arc<dyn Waitable>> {
        self.link.as_ref()?.source.upgrade()
    }
}
