//! The connection itself, and what others see of it.

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Instant;

use rustix::io::Errno;

use crate::engine::Engine;
use crate::error::Error;
use crate::holder::{CompletionSource, Held, InFlight, Link, Waitable};
use crate::park::{Interest, Wakers};
use crate::policy::Recent;
use crate::progress::Pending;
use crate::refusal::Refusal;
use crate::socket::account::{Account, Counters};
use crate::socket::acknowledged::{self, Acknowledgement};
use crate::socket::endpoint::Endpoint;
use crate::socket::kind::Kind;
use crate::sync::lock;
use crate::sys::errqueue::Foreign;
use crate::sys::ledger::{Ledger, NotIssued};
use crate::sys::socket as sys;
use crate::trace;

/// An error-queue message that is not the sender's own.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorQueueMessage {
    /// A message that is no notification: an ICMP error, a timestamp.
    Foreign(Foreign),
    /// The notification of zerocopy sends that the application made itself.
    Application {
        /// The first id of the range.
        lo: u32,
        /// The last id of the range, inclusive; below `lo` where the range wraps.
        hi: u32,
        /// The kernel flagged the notification COPIED.
        copied: bool,
    },
}

/// A function that is given, outside all locks, what the error queue holds for others.
pub(crate) type Hook = Arc<dyn Fn(ErrorQueueMessage) + Send + Sync>;

/// The options of a connection.
#[derive(Default)]
pub(crate) struct Config {
    pub(crate) next_id: Option<u32>,
    pub(crate) reset_on_exit: bool,
    pub(crate) hook: Option<Hook>,
    pub(crate) ack_timestamps: bool,
}

/// A socket with the ledger of its zerocopy sends.
pub(crate) struct Conn {
    pub(super) endpoint: Endpoint,
    pub(super) hook: Option<Hook>,
    pub(super) reset_on_exit: bool,
    /// Acknowledgements are put on the error queue, for us.
    pub(super) ack_timestamps: bool,
    pub(super) state: Mutex<ConnState>,
    pub(super) wakers: Mutex<Wakers>,
    /// For the tickets.
    pub(super) link: Arc<Link>,
}

/// The state that the lock guards.
pub(super) struct ConnState {
    pub(super) ledger: Ledger<InFlightSend>,
    pub(super) account: Account,
    pub(super) zerocopy: Result<(), Refusal>,
    /// Whether TCP does not probe the path, once that was asked.
    pub(super) mtu_probing: Option<Result<(), Refusal>>,
    /// Whether `native` can serve this socket, once that was asked.
    pub(super) native: Option<Result<(), Refusal>>,
    /// Bytes that had been accepted here when the application had last sent by itself.
    pub(super) others: Option<u64>,
    /// At first the socket had no option memory: what is charged to it later is what counts sends
    /// by reference.
    pub(super) sole_user: bool,
    /// Notifications (lowest id, highest id, copied) that prove nothing by themselves. They are
    /// counted when all is found to be released.
    pub(super) unattributed: Vec<(u32, u32, bool)>,
    /// Something was read that cannot be attributed; nothing is released any more, unless all is.
    pub(super) desynced: Option<Desynced>,
    /// An id that a failed datagram may have used.
    pub(super) ambiguous_id: Option<u32>,
    pub(super) recent: Recent,
    pub(super) since_zerocopy: u32,
    /// Bytes that one zerocopy call may be charged, once that was asked.
    pub(super) memlock: Option<usize>,
    pub(super) cork: Cork,
    /// Sends whose acknowledgements nobody has looked for.
    pub(super) unread: u32,
    /// With this many sends in flight the next send first reads what was completed.
    pub(super) reap_from: usize,
}

/// So many sends are made before the error queue is read again.
pub(super) const REAP_EVERY: usize = 16;

impl ConnState {
    /// Fails where nothing may be sent any more.
    pub(super) fn usable(&self) -> Result<(), Error> {
        match self.desynced {
            _ if self.account.aborted => Err(Error::Aborted),
            Some(desynced) => Err(desynced.into()),
            None => Ok(()),
        }
    }

    /// Bytes that the kernel has accepted here.
    pub(super) fn accepted(&self) -> u64 {
        self.account.counters.accepted
    }

    /// Whether notifications may be those of others, so that what is in flight ends only with all of
    /// it.
    pub(super) fn doubts(&self, endpoint: &Endpoint) -> bool {
        self.desynced.is_some()
            || (self.sole_user
                && self.ledger.in_flight() > 0
                && (self.account.aborted
                    || sys::tcp_state(endpoint.as_fd()) == Ok(sys::TcpState::Closed)))
    }
}

/// The reason why ids cannot be attributed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Desynced {
    NotIssued(NotIssued),
    TooEarly { lo: u32, hi: u32 },
}

impl From<Desynced> for Error {
    fn from(desynced: Desynced) -> Self {
        match desynced {
            Desynced::NotIssued(e) => e.into(),
            Desynced::TooEarly { lo, hi } => Error::TooEarly { lo, hi },
        }
    }
}

/// The state of a series of sends that say that more follows: whether the kernel holds back a
/// segment that is not full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cork {
    Out,
    /// The last send said so (`MSG_MORE`).
    Series,
    /// So did several, and `TCP_CORK` is set: an acknowledgement lets a segment go that
    /// `MSG_MORE` held back, and on loopback a 64 KiB send is one segment and 53 bytes.
    In,
    /// The application has set `TCP_CORK` itself, or nobody can.
    Theirs,
}

/// The send that an id of the ledger stands for.
pub(super) struct InFlightSend {
    pub(super) held: Option<Held>,
    pub(super) pending: Arc<Pending>,
    pub(super) bytes: u64,
    /// Bytes the kernel had accepted in all with it.
    pub(super) end: u64,
    pub(super) at: Instant,
    pub(super) guarded: bool,
}

impl Conn {
    pub(crate) fn new(socket: OwnedFd, config: Config) -> Result<Arc<Self>, Error> {
        // Dropping it ends its claim.
        let endpoint = Endpoint::new(socket)?;
        let kind = endpoint.kind();
        let zerocopy = enable_zerocopy(&endpoint);
        if zerocopy == Ok(true) && config.next_id.is_none() {
            return Err(Error::NextIdUnknown);
        }
        // Without them it only takes longer to see an acknowledgement.
        let ack_timestamps = config.ack_timestamps
            && kind == Kind::Tcp
            && sys::stamp_acknowledgements(endpoint.as_fd(), true) == Ok(true);
        let sole_user = zerocopy.is_ok() && sys::option_memory(endpoint.as_fd()) == Ok(0);
        Ok(Arc::new_cyclic(|conn: &Weak<Conn>| Conn {
            endpoint,
            hook: config.hook,
            reset_on_exit: config.reset_on_exit && kind == Kind::Tcp,
            ack_timestamps,
            state: Mutex::new(ConnState {
                ledger: config.next_id.map_or_else(Ledger::new, Ledger::starting_at),
                account: Account::default(),
                zerocopy: zerocopy.map(|_| ()),
                mtu_probing: None,
                native: None,
                others: None,
                sole_user,
                desynced: None,
                unattributed: Vec::new(),
                ambiguous_id: None,
                recent: Recent::default(),
                since_zerocopy: 0,
                memlock: None,
                cork: Cork::Out,
                unread: 0,
                reap_from: REAP_EVERY,
            }),
            wakers: Mutex::default(),
            link: Link::new(conn.clone()),
        }))
    }

    /// The connection as its tickets know it.
    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// The socket, and where the bytes go.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Locks the connection, to see what can be done and to do it.
    ///
    /// # Errors
    /// [`Error::Forked`].
    #[inline]
    pub(crate) fn locked(&self) -> Result<LockedConn<'_>, Error> {
        self.endpoint.ours()?;
        Ok(self.look())
    }

    /// As [`locked`](Self::locked), only to see what could be done.
    #[inline]
    pub(crate) fn look(&self) -> LockedConn<'_> {
        LockedConn { conn: self, state: lock(&self.state) }
    }

    /// Sends in flight, without asking the clock for their ages.
    pub(crate) fn sends_in_flight(&self) -> usize {
        lock(&self.state).ledger.in_flight()
    }

    /// The counters; a fork's copy knows none.
    pub(crate) fn counters(&self) -> Counters {
        if !self.endpoint.is_ours() {
            return Counters::default();
        }
        lock(&self.state).account.counters
    }

    /// Ends the stream towards the peer.
    pub(crate) fn shut_down_writing(&self) -> Result<(), Error> {
        self.endpoint.ours()?;
        self.endpoint.shut_down_writing()
    }

    /// Refuses `engine` with `reason`, for all to see. Not to be called while it is locked.
    pub(crate) fn refuse(&self, engine: Engine, reason: Refusal) -> Error {
        trace::debug!(cookie = self.endpoint.cookie(), %engine, %reason, "refused");
        Error::Refused { engine, reason }
    }
}

/// Sets `SO_ZEROCOPY`; returns whether it was set before.
fn enable_zerocopy(endpoint: &Endpoint) -> Result<bool, Refusal> {
    endpoint.kind().notifies()?;
    let socket = endpoint.as_fd();
    match sys::zerocopy_enabled(socket) {
        Ok(true) => Ok(true),
        Ok(false) => sys::enable_zerocopy(socket).map(|()| false),
        Err(errno) => Err(errno),
    }
    .map_err(|errno| match errno {
        Errno::NOPROTOOPT => Refusal::Socket("the kernel has no SO_ZEROCOPY (Linux before 4.14)"),
        Errno::OPNOTSUPP => Refusal::NotSupported,
        errno => Refusal::ZerocopyOption(errno.raw_os_error()),
    })
}

/// A connection, locked. No wait, no hook and no destructor of what is held runs meanwhile, and
/// nobody is told anything (who listens to traces may ask about the connection).
pub(crate) struct LockedConn<'a> {
    pub(super) conn: &'a Conn,
    pub(super) state: MutexGuard<'a, ConnState>,
}

impl LockedConn<'_> {
    /// Unlocks, and refuses `engine` with `reason`, for all to see.
    pub(crate) fn refuse(self, engine: Engine, reason: Refusal) -> Error {
        let conn = self.conn;
        drop(self);
        conn.refuse(engine, reason)
    }
}

impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Conn");
        debug.field("cookie", &self.endpoint.cookie()).field("kind", &self.endpoint.kind());
        if self.endpoint.is_ours() {
            debug.field("in_flight", &self.in_flight());
        }
        debug.finish_non_exhaustive()
    }
}

impl AsFd for Conn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.endpoint.as_fd()
    }
}

impl CompletionSource for Conn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.endpoint.as_fd()
    }

    fn readiness(&self) -> Interest {
        Interest::Errors
    }

    fn reap(&self) -> Result<usize, Error> {
        Conn::reap_as(self, None)
    }

    fn flush(&self) {
        Conn::flush(self);
    }

    fn abort(&self) -> Result<(), Error> {
        self.endpoint.ours()?;
        let mut state = lock(&self.state);
        if state.account.is_over() {
            return Ok(());
        }
        // What is acknowledged by now stays so.
        let _ = acknowledged::look(&self.endpoint, &state.account, &self.link.acknowledged);
        state.account.aborted = true;
        let in_flight = state.ledger.in_flight();
        let aborted = self.endpoint.abort();
        drop(state);
        trace::debug!(cookie = self.endpoint.cookie(), in_flight, "abort");
        aborted
    }

    fn in_flight(&self) -> InFlight {
        if !self.endpoint.is_ours() {
            return InFlight::default();
        }
        let state = lock(&self.state);
        let oldest = state.ledger.iter().next().map(|(_, send)| send.at.elapsed());
        InFlight { bytes: state.account.bytes, sends: state.ledger.in_flight(), oldest }
    }

    fn holds(&self, which: &dyn Fn(&Held) -> bool) -> bool {
        let state = lock(&self.state);
        state.ledger.iter().any(|(_, send)| send.held.as_ref().is_some_and(which))
    }

    fn peer(&self) -> Option<SocketAddr> {
        self.endpoint.peer()
    }

    fn orphan(&self) {
        self.endpoint.orphan();
        // If it fails there is no peer to tell.
        let _ = self.shut_down_writing();
    }
}

impl Waitable for Conn {
    fn ours(&self) -> Result<(), Error> {
        self.endpoint.ours()
    }

    fn is_unknown(&self) -> bool {
        self.endpoint.is_orphaned() || lock(&self.state).desynced.is_some()
    }

    fn check(&self) -> Result<(), Error> {
        self.endpoint.ours()?;
        lock(&self.state).desynced.map_or(Ok(()), |e| Err(e.into()))
    }

    fn socket_error(&self) -> Result<(), Error> {
        self.endpoint.error()
    }

    fn wakers(&self) -> &Mutex<Wakers> {
        &self.wakers
    }

    fn reap_as(&self, key: Option<u64>) -> Result<usize, Error> {
        Conn::reap_as(self, key)
    }

    fn acknowledgement(&self, end: u64) -> Result<Acknowledgement, Error> {
        self.endpoint.ours()?;
        let state = lock(&self.state);
        acknowledged::ask(&self.endpoint, &state.account, &self.link.acknowledged, end)
    }

    fn acknowledgements_wake(&self) -> bool {
        self.ack_timestamps
    }
}
