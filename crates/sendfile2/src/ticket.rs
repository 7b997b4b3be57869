//! Tickets: what became of a send.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
#[cfg(feature = "tokio")]
use std::time::Duration;
use std::time::Instant;

use crate::conn::{self, Conn};
use crate::engine::{Choice, Engine, Why};
use crate::error::Error;

/// Whether the kernel has let go of what a send referred to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Status {
    /// The kernel may still read it.
    InFlight,
    /// The kernel no longer references it: it may be overwritten. That says nothing of delivery.
    Released {
        /// The kernel made a private copy of at least a part.
        copied: bool,
    },
    /// The kernel may still read it, and the connection has lost its sender (the reaper drains
    /// it) or its ids do not add up. It is never to be treated as free. This ends, as `Released`,
    /// when the notifications arrive, or the kernel has nothing of the socket by reference any more.
    Unknown,
}

/// Whether the peer's TCP has the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Acknowledgement {
    /// Not yet.
    Pending,
    /// The peer's TCP has acknowledged all of them. Its application may not have read them.
    Acknowledged,
    /// It will never be known: the connection was aborted, reset or closed, or it is no TCP
    /// connection.
    Unknowable,
}

/// Nothing wakes a task when an acknowledgement comes in, so it looks again and again, after
/// pauses that double from the first to the last.
#[cfg(feature = "tokio")]
const FIRST_LOOK: Duration = Duration::from_micros(100);
#[cfg(feature = "tokio")]
const LAST_LOOK: Duration = Duration::from_millis(10);

/// What the tickets of a connection know of it; it outlives the connection.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) conn: Weak<Conn>,
    /// Bytes that the peer is known to have acknowledged, of those the connection had accepted.
    pub(crate) acknowledged: AtomicU64,
}

/// What a ticket and the ledger's entries for it share.
#[derive(Debug, Default)]
pub(crate) struct Cell {
    /// Zerocopy sends that are not released.
    outstanding: AtomicU32,
    copied: AtomicBool,
}

impl Cell {
    /// A zerocopy part was released, and what it held let go of.
    pub(crate) fn part_released(&self, copied: bool) {
        if copied {
            self.copied.store(true, Ordering::Relaxed);
        }
        self.outstanding.fetch_sub(1, Ordering::Release);
    }

    fn released(&self) -> bool {
        self.outstanding.load(Ordering::Acquire) == 0
    }
}

/// What the parts of a send have come to so far. What is only copied needs no memory of its own.
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    /// Bytes accepted.
    bytes: u64,
    /// Bytes the connection had accepted after the last part.
    end: u64,
    /// Made for the first zerocopy part.
    cell: Option<Arc<Cell>>,
    copied: bool,
    /// What the last part took.
    choice: Choice,
}

impl Parts {
    pub(crate) fn new(choice: Choice) -> Self {
        Parts { bytes: 0, end: 0, cell: None, copied: false, choice }
    }

    /// Bytes accepted.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A part of `bytes` was accepted; `end` bytes are now accepted in all. It was copied or is
    /// in flight, which is to be said next.
    pub(crate) fn accepted(&mut self, bytes: u64, end: u64, choice: Choice) {
        self.bytes += bytes;
        self.end = end;
        self.choice = choice;
    }

    pub(crate) fn copied(&mut self) {
        self.copied = true;
    }

    /// The release of the part is to be said to the result.
    pub(crate) fn in_flight(&mut self) -> Arc<Cell> {
        let cell = self.cell.get_or_insert_default();
        cell.outstanding.fetch_add(1, Ordering::Relaxed);
        Arc::clone(cell)
    }

    /// Whether all of them are released, and then whether any was copied.
    fn released(&self) -> Option<bool> {
        match &self.cell {
            None => Some(self.copied),
            Some(cell) if cell.released() => {
                Some(self.copied || cell.copied.load(Ordering::Relaxed))
            }
            Some(_) => None,
        }
    }
}

/// Looks on at a send: whether it is released, and whether it is acknowledged.
///
/// A ticket only looks on. Dropping it ends nothing and frees nothing, keeping it holds nothing
/// back.
#[derive(Clone)]
pub struct Ticket {
    parts: Parts,
    /// Of the connection; none of a parcel that nothing was sent of.
    link: Option<Arc<Link>>,
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
    pub(crate) fn new(parts: Parts, link: &Arc<Link>) -> Self {
        Ticket::of(parts, Some(Arc::clone(link)))
    }

    pub(crate) fn of(parts: Parts, link: Option<Arc<Link>>) -> Self {
        Ticket { parts, link }
    }

    /// Bytes of the send that the kernel accepted.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.parts.bytes()
    }

    /// Which engine served it (its last part, where it had several), and why.
    #[must_use]
    pub fn choice(&self) -> Choice {
        self.parts.choice
    }

    /// Whether the kernel has let go of it, as far as the notifications read so far say. (Reading
    /// them is [`Sender::reap`](crate::Sender::reap), and every wait does it.)
    #[must_use]
    pub fn status(&self) -> Status {
        if let Some(copied) = self.parts.released() {
            return Status::Released { copied };
        }
        match self.conn() {
            Some(conn) if !conn.is_unknown() => Status::InFlight,
            _ => Status::Unknown,
        }
    }

    /// Whether the peer's TCP has it; asks the kernel, without waiting.
    ///
    /// # Errors
    /// [`Error::Socket`] if SIOCOUTQ fails.
    pub fn acknowledgement(&self) -> Result<Acknowledgement, Error> {
        if let Some(conn) = self.conn() {
            return conn.acknowledgement(self.parts.end);
        }
        let known = |link: &Arc<Link>| link.acknowledged.load(Ordering::Relaxed) >= self.parts.end;
        Ok(if self.link.as_ref().is_some_and(known) {
            Acknowledgement::Acknowledged
        } else {
            Acknowledgement::Unknowable
        })
    }

    fn conn(&self) -> Option<Arc<Conn>> {
        self.link.as_ref()?.conn.upgrade()
    }

    /// Waits until the kernel has let go of it, reading notifications meanwhile; returns whether
    /// it made a private copy.
    ///
    /// # Errors
    /// [`Error::Deadline`] if that has not happened by `deadline`; [`Error::NotIssued`] and
    /// [`Error::TooEarly`] if the ids of the connection do not add up; [`Error::Wait`] if waiting is not possible.
    pub fn wait_released(&self, deadline: Instant) -> Result<bool, Error> {
        let check = || match self.status() {
            Status::Released { copied } => Ok(Some(copied)),
            _ => Ok(None),
        };
        if let Some(copied) = check()? {
            return Ok(copied);
        }
        let Some(conn) = self.conn() else {
            // It went away between the two: it only does when nothing is in flight.
            return check()?.ok_or(Error::Deadline("the send was not released"));
        };
        conn::wait(&conn, false, deadline, "the send was not released", check)
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
    pub async fn released(&self) -> Result<bool, Error> {
        match (self.parts.released(), self.conn()) {
            (Some(copied), _) => Ok(copied),
            (None, Some(conn)) => conn::wait_as_task(&conn, || Ok(self.parts.released())).await,
            // It went away between the two: it only does when nothing is in flight.
            (None, None) => {
                self.parts.released().ok_or(Error::Deadline("the send was not released"))
            }
        }
    }

    /// As [`wait_acknowledged`](Self::wait_acknowledged), for a task of tokio; dropping the future
    /// ends nothing but the waiting.
    ///
    /// # Errors
    /// [`Error::Socket`] if SIOCOUTQ fails.
    ///
    /// # Panics
    /// Outside of a tokio runtime with its timer enabled.
    #[cfg(feature = "tokio")]
    pub async fn acknowledged(&self) -> Result<bool, Error> {
        let mut pause = FIRST_LOOK;
        if let Some(conn) = self.conn() {
            conn.flush();
        }
        loop {
            match self.acknowledgement()? {
                Acknowledgement::Acknowledged => return Ok(true),
                Acknowledgement::Unknowable => return Ok(false),
                Acknowledgement::Pending => {}
            }
            ::tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_LOOK);
        }
    }

    /// Waits until the peer's TCP has acknowledged it; `false` if that can never be known.
    ///
    /// With [`Options::acknowledgements`](crate::Options::acknowledgements) the kernel wakes it;
    /// without, only zerocopy completions do, which come with acknowledgements where the peer is
    /// elsewhere, and it looks by itself every 0.1 to 10 ms.
    ///
    /// # Errors
    /// [`Error::Deadline`]; [`Error::Wait`]; [`Error::Socket`] if SIOCOUTQ fails.
    pub fn wait_acknowledged(&self, deadline: Instant) -> Result<bool, Error> {
        match self.acknowledgement()? {
            Acknowledgement::Acknowledged => return Ok(true),
            Acknowledgement::Unknowable => return Ok(false),
            Acknowledgement::Pending => {}
        }
        match self.conn() {
            Some(conn) => {
                conn.flush();
                conn.wait_acknowledged(self.parts.end, deadline)
            }
            // It went away between the two, and what it knew stays.
            None => Ok(self.acknowledgement()? == Acknowledgement::Acknowledged),
        }
    }
}

/// A buffer to be sent by reference. It is handed over part by part
/// ([`Sender::try_send_buffer`](crate::Sender::try_send_buffer)), and comes back when everything
/// that was sent of it is released.
///
/// Dropping it early is harmless: what is in flight keeps the buffer.
pub struct Parcel<B> {
    pub(crate) slot: Arc<Slot<B>>,
    pub(crate) parts: Parts,
    /// The sender that has it, from its first send on.
    pub(crate) link: Option<Arc<Link>>,
}

/// Where a buffer waits for its release: held by the ledger, and by the parcel it came in.
pub(crate) type Slot<B> = Mutex<Option<B>>;

impl<B> fmt::Debug for Parcel<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parcel")
            .field("sent", &self.sent())
            .field("choice", &self.parts.choice)
            .field("status", &self.ticket().status())
            .finish_non_exhaustive()
    }
}

impl<B: AsRef<[u8]> + Send + 'static> Parcel<B> {
    /// Wraps `buffer`. Its [`AsRef`] must give the same bytes each time.
    pub fn new(buffer: B) -> Self {
        let choice = Choice { engine: Engine::Auto, why: Why::Asked };
        let slot = Arc::new(Mutex::new(Some(buffer)));
        Parcel { slot, parts: Parts::new(choice), link: None }
    }
}

impl<B: AsRef<[u8]>> Parcel<B> {
    /// Bytes of it that are still to be sent.
    #[must_use]
    pub fn remaining(&self) -> usize {
        let slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        slot.as_ref().map_or(0, |b| b.as_ref().len().saturating_sub(self.sent()))
    }
}

impl<B> Parcel<B> {
    /// Bytes of it that the kernel accepted so far, from the front.
    #[must_use]
    pub fn sent(&self) -> usize {
        // The buffer has a usize of bytes.
        usize::try_from(self.parts.bytes()).unwrap_or(usize::MAX)
    }

    /// A ticket for all that was sent of it so far.
    #[must_use]
    pub fn ticket(&self) -> Ticket {
        Ticket::of(self.parts.clone(), self.link.clone())
    }

    /// Takes the buffer back.
    ///
    /// # Errors
    /// The parcel, while the kernel may still read from the buffer.
    pub fn into_buffer(self) -> Result<B, Self> {
        let buffer = self
            .parts
            .released()
            .and_then(|_| self.slot.lock().unwrap_or_else(PoisonError::into_inner).take());
        buffer.ok_or(self)
    }
}
