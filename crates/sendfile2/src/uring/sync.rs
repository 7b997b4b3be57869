//! The synchronous safe `sendfile`, on a ring of its own: a page of code, whose comments say what
//! there is to know of `SEND_ZC`.

use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use super::{available, leftover, part};
use crate::deadline::Deadline;
use crate::engine::{Choice, Engine, Reason};
use crate::error::Error;
use crate::progress::{Release, SendProgress};
use crate::refusal::Refusal;
use crate::source::Source;
use crate::sys::recover::{self, Attempt, Next};
use crate::sys::uring::{Event, Queues, Request, Send, Size};
use crate::ticket::Ticket;
use crate::transfer::{IncompleteSend, Transfer};

/// The kernel waits for room in the socket, and goes on with the rest itself.
const ALL: Send = Send { more: false, wait: true };
const ZEROCOPY: Request = Request::Zerocopy(ALL);
const COPY: Request = Request::Copy(ALL);

/// One call: the ring keeps with each send how many bytes it has.
struct Call {
    queues: Queues<u64>,
    sent: u64,
    copied: bool,
}

pub(super) fn send_file_sync(
    socket: impl AsFd,
    file: &Source,
    range: Range<u64>,
    deadline: Deadline,
) -> Result<Release, IncompleteSend> {
    let choice = Choice { engine: Engine::Uring, reason: Reason::Requested };
    let mut progress = SendProgress::new(choice);
    let unsent = |error| incomplete(error, SendProgress::new(choice));
    let socket = Arc::new(part::stream(socket.as_fd()).map_err(unsent)?);
    let mut call =
        Call { queues: available::ring(Size::SMALL).map_err(unsent)?, sent: 0, copied: false };
    let sent = call.send(&socket, file, range, deadline);
    // Who keeps a duplicate withholds the end of the stream.
    drop(socket);
    // Also after an error the kernel may have said that it will notify.
    let released = call.release(deadline);
    let Call { queues, sent: bytes, copied } = call;
    progress.accepted(bytes, bytes, choice);
    if copied {
        progress.copied();
    }
    if released.is_err() {
        // The peer does not read. The notifications may come in a week; nobody may guess.
        progress.in_flight();
        leftover::hand_over(queues);
    }
    sent.and(released).map_err(|error| incomplete(error, progress))?;
    Ok(Release { copied })
}

/// The error of a send that ended early: what was sent is released by now, or never known to be.
fn incomplete(error: Error, progress: SendProgress) -> IncompleteSend {
    let (bytes, ticket) = (progress.bytes(), Ticket::sent(progress, None));
    IncompleteSend { error, transfer: Transfer { bytes, ticket } }
}

impl Call {
    /// Sends all of `range`, part by part, each when the result of the one before is there: two
    /// sends at once on one socket would arrive in any order.
    fn send(
        &mut self,
        socket: &Arc<OwnedFd>,
        file: &Source,
        range: Range<u64>,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let (mut request, mut faulted) = (ZEROCOPY, None);
        while range.start + self.sent < range.end {
            let left = range.start + self.sent..range.end;
            let (memory, part) = part::next(file, file.extent()?, &left, part::limit()?)?;
            // The ring keeps the mapping until the result: by then the kernel has pinned the pages.
            let bytes = part.end - part.start;
            let Ok(key) = self.queues.push(request, socket, memory, bytes) else {
                self.completion(deadline)?; // as many notifications are due as a ring has room for
                continue;
            };
            let mut until = deadline;
            let (result, own) = loop {
                match self.event(until)? {
                    // The result, after which a notification comes (F_MORE), ...
                    Some(Event::Answered { result, .. }) => break (result, 1),
                    // ... or does not, or came before; ...
                    Some(Event::Ended { result, copied, .. }) => {
                        self.copied |= copied;
                        break (result, 0);
                    }
                    // ... or the notification of an earlier send.
                    Some(Event::Released { copied, .. }) => self.copied |= copied,
                    // What waits for room in the socket is told to stop, and then has a result.
                    None => {
                        self.queues.cancel(key);
                        until = Duration::from_secs(1).into();
                    }
                }
            };
            match result {
                Ok(_) if request == Request::Writable => request = ZEROCOPY,
                // Fewer than asked for, if the wait was ended.
                Ok(bytes) => {
                    self.sent += u64::from(bytes);
                    self.copied |= request == COPY;
                    request = ZEROCOPY;
                }
                Err(errno) => {
                    let attempt = Attempt {
                        by_reference: request == ZEROCOPY,
                        // That of this send, which has nothing, may be one.
                        others_in_flight: self.queues.len() > own,
                        reports_usage: self.queues.reports_usage(),
                        faulted_before: faulted == Some(part.start),
                    };
                    match recover::next(errno, attempt) {
                        Next::Again => {}
                        Next::WhenWritable => request = Request::Writable,
                        // Its own notification makes no room.
                        Next::AfterRelease => {
                            for _ in 0..=own {
                                self.completion(deadline)?;
                            }
                        }
                        Next::Copy => request = COPY,
                        Next::WithoutUsage => self.queues.forget_usage(),
                        Next::Refused => return Err(part::refused(Refusal::NotSupported)),
                        Next::Read => {
                            part::explain_fault(file, &part)?;
                            faulted = Some(part.start);
                        }
                        Next::Failed => return Err(Error::socket("send")(errno)),
                    }
                }
            }
            if deadline.has_passed() && range.start + self.sent < range.end {
                return Err(Error::Deadline("the peer does not read: the socket stayed full"));
            }
        }
        Ok(())
    }

    /// Waits until everything is released.
    fn release(&mut self, deadline: Deadline) -> Result<(), Error> {
        while !self.queues.is_empty() {
            self.completion(deadline)?;
        }
        Ok(())
    }

    fn completion(&mut self, deadline: Deadline) -> Result<(), Error> {
        match self.event(deadline)? {
            Some(Event::Released { copied, .. } | Event::Ended { copied, .. }) => {
                self.copied |= copied;
                Ok(())
            }
            Some(Event::Answered { .. }) => Ok(()),
            None => Err(Error::Deadline("the kernel still reads from the file")),
        }
    }

    /// Submits what is queued and waits for a completion; `None` if there is none by `deadline`.
    fn event(&mut self, deadline: Deadline) -> Result<Option<Event<u64>>, Error> {
        loop {
            let left = deadline.remaining();
            match self.queues.next_event() {
                Some(event) => return Ok(Some(event?)),
                None if left.is_zero() && !self.queues.is_pending() => return Ok(None),
                None => {
                    let entered = self.queues.ring().enter(1, left);
                    entered.map_err(Error::wait("io_uring_enter"))?;
                }
            }
        }
    }
}
