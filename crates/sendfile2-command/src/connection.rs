//! A connection that sends, by whichever front end of the library serves its engine.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sendfile2::uring::{Driver, Socket};
use sendfile2::{
    Counters, Engine, Error, InFlight, Options, SendFlags, Sender, Sent, Source, Ticket,
};

/// The bytes that a ring is given at a time, so that progress shows itself.
const PIECE: u64 = 1 << 20;

/// A connection that sends a file.
#[derive(Debug)]
pub enum Connection {
    /// A socket of its own.
    Sender(Sender),
    /// A socket of a ring.
    Ring {
        /// The ring's driver.
        driver: Driver,
        /// The socket on it.
        socket: Socket,
        /// The send that is queued and not accepted yet.
        queued: Option<Ticket>,
    },
}

impl Connection {
    /// Takes over a connected socket, to send by `engine`. With `acknowledgements`, the kernel wakes
    /// those who wait for them, where that is possible.
    pub fn new(
        socket: impl Into<OwnedFd>,
        engine: Engine,
        acknowledgements: bool,
    ) -> Result<Self, Error> {
        if engine != Engine::Uring {
            let options = Options::new().engine(engine).acknowledgements(acknowledgements);
            return Ok(Connection::Sender(Sender::with(socket, options)?));
        }
        let driver = Driver::new()?;
        let socket = driver.add(socket)?;
        Ok(Connection::Ring { driver, socket, queued: None })
    }

    /// Sends from `range` of the file as far as the kernel takes it now. After would-block it is to
    /// be called again with the same start, as a ring goes on by itself.
    pub fn try_send_file(
        &mut self,
        file: &Source,
        range: Range<u64>,
    ) -> Result<Sent<Ticket>, Error> {
        let (driver, socket, queued) = match self {
            Connection::Sender(sender) => {
                return sender.try_send_file(file, range, SendFlags::NONE);
            }
            Connection::Ring { driver, socket, queued } => (driver, socket, queued),
        };
        let ticket = match queued.take() {
            Some(ticket) => ticket,
            None => {
                let piece = range.start..range.end.min(range.start.saturating_add(PIECE));
                let ticket = socket.queue_file(file, piece, SendFlags::NONE)?;
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
            // The send was not accepted to its end; bytes that were accepted are sent.
            Some(error) if ticket.bytes() == 0 => Err(error),
            _ => {
                let bytes = usize::try_from(ticket.bytes()).unwrap_or(usize::MAX);
                Ok(Sent::Accepted { bytes, ticket })
            }
        }
    }

    /// Sleeps until the socket has space, or there is a completion, or `tick` is over.
    pub fn wait_for_room(&self, tick: Duration) -> anyhow::Result<()> {
        let tick = Timespec::try_from(tick)?;
        let mut watched = match self {
            Connection::Sender(sender) => [PollFd::new(sender, PollFlags::OUT)],
            Connection::Ring { driver, .. } => [PollFd::new(driver, PollFlags::IN)],
        };
        match poll(&mut watched, Some(&tick)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(e) => Err(anyhow::Error::from(e).context("poll failed")),
        }
    }

    /// Reads the notifications that there are; returns how many.
    pub fn reap(&self) -> Result<usize, Error> {
        match self {
            Connection::Sender(sender) => sender.reap(),
            Connection::Ring { driver, .. } => driver.reap(),
        }
    }

    /// The counters of the connection.
    pub fn counters(&self) -> Counters {
        match self {
            Connection::Sender(sender) => sender.counters(),
            Connection::Ring { socket, .. } => socket.counters(),
        }
    }

    /// The sends that are not released yet.
    pub fn in_flight(&self) -> InFlight {
        match self {
            Connection::Sender(sender) => sender.in_flight(),
            Connection::Ring { socket, .. } => socket.in_flight(),
        }
    }

    /// Waits until everything that was sent is released.
    pub fn drain(&self, deadline: Instant) -> Result<(), Error> {
        match self {
            Connection::Sender(sender) => sender.drain(deadline),
            Connection::Ring { socket, .. } => socket.drain(deadline),
        }
    }

    /// Resets the connection.
    pub fn abort(&self) -> Result<(), Error> {
        match self {
            Connection::Sender(sender) => sender.abort(),
            Connection::Ring { socket, .. } => socket.abort(),
        }
    }

    /// Ends the stream.
    pub fn shutdown(&mut self) -> Result<(), Error> {
        match self {
            Connection::Sender(sender) => sender.shutdown(),
            Connection::Ring { socket, .. } => {
                socket.shutdown();
                Ok(())
            }
        }
    }

    /// Ends the stream, waits for what is in flight, and closes the socket.
    pub fn close(self, deadline: Instant) -> Result<(), Error> {
        match self {
            Connection::Sender(sender) => sender.close(deadline),
            Connection::Ring { socket, .. } => socket.close(deadline),
        }
    }

    /// The peer's address, where it has one of the internet.
    pub fn peer(&self) -> Option<std::net::SocketAddr> {
        rustix::net::getpeername(self).ok().flatten().and_then(|peer| peer.try_into().ok())
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Connection::Sender(sender) => sender.as_fd(),
            Connection::Ring { socket, .. } => socket.as_fd(),
        }
    }
}
