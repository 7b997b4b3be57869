//! A connection, by whichever front end of the library serves its engine.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sendfile2::uring::{self, Driver, Socket};
use sendfile2::{
    Acknowledgement, Choice, Counters, Engine, Error, InFlight, Options, Sender, Sent, Source,
    Status,
};

/// What a ring is asked for at a time, so that progress shows itself.
const PIECE: u64 = 1 << 20;

/// A connection that sends a file.
pub(crate) enum Carrier {
    Sender(Sender),
    Ring {
        driver: Driver,
        socket: Socket,
        /// What is queued and not accepted yet.
        queued: Option<uring::Ticket>,
    },
}

/// A send that was accepted.
#[derive(Clone)]
pub(crate) enum Ticket {
    Sender(sendfile2::Ticket),
    Ring(uring::Ticket),
}

impl Carrier {
    /// With `acknowledgements`, who waits for them is told by the kernel, where that is possible.
    pub(crate) fn new(
        socket: impl Into<OwnedFd>,
        engine: Engine,
        acknowledgements: bool,
    ) -> Result<Self, Error> {
        if engine != Engine::Uring {
            let options = Options::new().engine(engine).acknowledgements(acknowledgements);
            return Ok(Carrier::Sender(Sender::with(socket, options)?));
        }
        let driver = Driver::new()?;
        let socket = driver.add(socket)?;
        Ok(Carrier::Ring { driver, socket, queued: None })
    }

    /// Sends from `range` of the file as far as the kernel takes it now. After would-block it is to
    /// be called again with the same start, as a ring goes on by itself.
    pub(crate) fn try_send_file(
        &mut self,
        file: &Source,
        range: Range<u64>,
    ) -> Result<Sent<Ticket>, Error> {
        let (driver, socket, queued) = match self {
            Carrier::Sender(sender) => {
                return Ok(match sender.try_send_file(file, range, false)? {
                    Sent::Accepted { bytes, ticket } => {
                        Sent::Accepted { bytes, ticket: Ticket::Sender(ticket) }
                    }
                    Sent::WouldBlock => Sent::WouldBlock,
                    Sent::Limit(limit) => Sent::Limit(limit),
                });
            }
            Carrier::Ring { driver, socket, queued } => (driver, socket, queued),
        };
        let ticket = match queued.take() {
            Some(ticket) => ticket,
            None => {
                let piece = range.start..range.end.min(range.start.saturating_add(PIECE));
                let ticket = socket.send_file(file, piece, false)?;
                driver.submit()?;
                ticket
            }
        };
        driver.reap()?;
        if socket.queued() > 0 {
            *queued = Some(ticket);
            return Ok(Sent::WouldBlock);
        }
        match ticket.error() {
            // It was not sent to its end; what was, is.
            Some(error) if ticket.bytes() == 0 => Err(error),
            _ => {
                let bytes = usize::try_from(ticket.bytes()).unwrap_or(usize::MAX);
                Ok(Sent::Accepted { bytes, ticket: Ticket::Ring(ticket) })
            }
        }
    }

    /// Sleeps until there is room, or a completion, or `tick` is over.
    pub(crate) fn wait_for_room(&self, tick: Duration) -> anyhow::Result<()> {
        let tick = Timespec::try_from(tick)?;
        let mut watched = match self {
            Carrier::Sender(sender) => [PollFd::new(sender, PollFlags::OUT)],
            Carrier::Ring { driver, .. } => [PollFd::new(driver, PollFlags::IN)],
        };
        match poll(&mut watched, Some(&tick)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(e) => Err(anyhow::Error::from(e).context("poll failed")),
        }
    }

    pub(crate) fn reap(&self) -> Result<usize, Error> {
        match self {
            Carrier::Sender(sender) => sender.reap(),
            Carrier::Ring { driver, .. } => driver.reap(),
        }
    }

    pub(crate) fn counters(&self) -> Counters {
        match self {
            Carrier::Sender(sender) => sender.counters(),
            Carrier::Ring { socket, .. } => socket.counters(),
        }
    }

    pub(crate) fn in_flight(&self) -> InFlight {
        match self {
            Carrier::Sender(sender) => sender.in_flight(),
            Carrier::Ring { socket, .. } => socket.in_flight(),
        }
    }

    pub(crate) fn wait_all(&self, deadline: Instant) -> Result<(), Error> {
        match self {
            Carrier::Sender(sender) => sender.wait_all(deadline),
            Carrier::Ring { socket, .. } => socket.wait_all(deadline),
        }
    }

    pub(crate) fn abort(&self) -> Result<(), Error> {
        match self {
            Carrier::Sender(sender) => sender.abort(),
            Carrier::Ring { socket, .. } => socket.abort(),
        }
    }

    /// Ends the stream.
    pub(crate) fn shutdown(&mut self) -> Result<(), Error> {
        match self {
            Carrier::Sender(sender) => sender.shutdown(),
            Carrier::Ring { socket, .. } => {
                socket.shutdown();
                Ok(())
            }
        }
    }

    pub(crate) fn close(self, deadline: Instant) -> Result<(), Error> {
        match self {
            Carrier::Sender(sender) => sender.close(deadline),
            Carrier::Ring { socket, .. } => socket.close(deadline),
        }
    }

    /// The peer's address, where it has one of the internet.
    pub(crate) fn peer(&self) -> Option<std::net::SocketAddr> {
        rustix::net::getpeername(self).ok().flatten().and_then(|peer| peer.try_into().ok())
    }
}

impl AsFd for Carrier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Carrier::Sender(sender) => sender.as_fd(),
            Carrier::Ring { socket, .. } => socket.as_fd(),
        }
    }
}

impl Ticket {
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Ticket::Sender(ticket) => ticket.bytes(),
            Ticket::Ring(ticket) => ticket.bytes(),
        }
    }

    pub(crate) fn choice(&self) -> Choice {
        match self {
            Ticket::Sender(ticket) => ticket.choice(),
            Ticket::Ring(ticket) => ticket.choice(),
        }
    }

    pub(crate) fn status(&self) -> Status {
        match self {
            Ticket::Sender(ticket) => ticket.status(),
            Ticket::Ring(ticket) => ticket.status(),
        }
    }

    pub(crate) fn acknowledgement(&self) -> Result<Acknowledgement, Error> {
        match self {
            Ticket::Sender(ticket) => ticket.acknowledgement(),
            Ticket::Ring(ticket) => ticket.acknowledgement(),
        }
    }

    pub(crate) fn wait_released(&self, deadline: Instant) -> Result<bool, Error> {
        match self {
            Ticket::Sender(ticket) => ticket.wait_released(deadline),
            Ticket::Ring(ticket) => ticket.wait_released(deadline),
        }
    }

    pub(crate) fn wait_acknowledged(&self, deadline: Instant) -> Result<bool, Error> {
        match self {
            Ticket::Sender(ticket) => ticket.wait_acknowledged(deadline),
            Ticket::Ring(ticket) => ticket.wait_acknowledged(deadline),
        }
    }
}
