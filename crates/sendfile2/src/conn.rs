//! A connection: one socket, its one ledger, and the lock under which ids are issued and reaped.
//!
//! A send and the issuing of its id happen under one lock, which reaping takes too: otherwise a
//! notification may be read before its id is recorded. No wait ever holds that lock. Values are
//! dropped, hooks called and waiters woken after it is unlocked.

use std::collections::HashSet;
use std::fmt;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;
use std::time::{Duration, Instant};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendFlags, Shutdown, SocketAddrAny, SocketType, ipproto,
    sockopt,
};

use crate::engine::{Choice, Engine, Limit, Why};
use crate::error::Error;
use crate::holder::{Apart, Held, Holder, InFlight};
use crate::mtu;
use crate::native::{self, Kernel};
use crate::park::{Interest, Parker, Wakers};
use crate::policy::Recent;
use crate::refusal::Refusal;
use crate::sys::errqueue::{self, Entry, Foreign};
use crate::sys::ledger::{Done, Ledger, NotIssued};
use crate::sys::mapping::Region;
use crate::sys::process::Process;
use crate::sys::rlimit::{self, memlock};
use crate::sys::socket as sys;
use crate::ticket::{Acknowledgement, Cell, Link, Parts};

/// What kind of socket it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Tcp,
    Udp,
    UnixStream,
    /// A unix socket with record boundaries.
    UnixRecords,
    /// A stream of a family this library knows nothing of.
    OtherStream,
    /// Anything else; a raw socket, whatever protocol its packets are of.
    OtherRecords,
}

impl Kind {
    pub(crate) fn of(socket: BorrowedFd<'_>) -> Result<Self, Error> {
        let ask = || -> Result<Kind, Errno> {
            let family = sockopt::socket_domain(socket)?;
            let kind = sockopt::socket_type(socket)?;
            let ip = family == AddressFamily::INET || family == AddressFamily::INET6;
            let protocol = if ip { sockopt::socket_protocol(socket)? } else { None };
            Ok(if kind == SocketType::STREAM && protocol == Some(ipproto::TCP) {
                Kind::Tcp
            } else if kind == SocketType::DGRAM && protocol == Some(ipproto::UDP) {
                Kind::Udp
            } else if family == AddressFamily::UNIX && kind == SocketType::STREAM {
                Kind::UnixStream
            } else if family == AddressFamily::UNIX {
                Kind::UnixRecords
            } else if kind == SocketType::STREAM {
                Kind::OtherStream
            } else {
                Kind::OtherRecords
            })
        };
        ask().map_err(Error::socket("getsockopt"))
    }

    /// Whether each send is a record of its own, which must not be split or merged.
    pub(crate) fn records(self) -> bool {
        matches!(self, Kind::Udp | Kind::UnixRecords | Kind::OtherRecords)
    }

    /// In words.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Tcp => "TCP",
            Kind::Udp => "UDP",
            Kind::UnixStream => "unix stream",
            Kind::UnixRecords => "unix, with record boundaries",
            Kind::OtherStream => "a stream of another family",
            Kind::OtherRecords => "another kind, with record boundaries",
        }
    }

    /// Ends the connection of `socket` at once.
    pub(crate) fn abort(self, socket: &OwnedFd) -> Result<(), Error> {
        if self == Kind::Tcp {
            // SO_LINGER 0 and close would send no reset while a duplicate of the descriptor lives.
            rustix::net::connect_unspec(socket).map_err(Error::socket("connect(AF_UNSPEC)"))
        } else {
            shut_down(socket, Shutdown::Both)
        }
    }

    fn zerocopy(self) -> Result<(), Refusal> {
        match self {
            Kind::Tcp | Kind::Udp => Ok(()),
            Kind::UnixStream | Kind::UnixRecords => {
                Err(Refusal::Socket("a unix socket gives no completion notifications"))
            }
            Kind::OtherStream | Kind::OtherRecords => {
                Err(Refusal::Socket("only TCP and UDP sockets give completion notifications here"))
            }
        }
    }
}

pub(crate) fn shut_down(socket: &OwnedFd, how: Shutdown) -> Result<(), Error> {
    match rustix::net::shutdown(socket, how) {
        // A datagram socket that is not connected, or a connection that is gone.
        Err(Errno::NOTCONN) => Ok(()),
        result => result.map_err(Error::socket("shutdown")),
    }
}

/// Lets the death of the process reset a connection, by `SO_LINGER {1, 0}`.
#[derive(Debug, Default)]
pub(crate) struct ResetOnDeath {
    /// The application's `SO_LINGER` while ours is set.
    theirs: Option<Option<Duration>>,
}

impl ResetOnDeath {
    pub(crate) fn arm(&mut self, socket: &OwnedFd, kind: Kind) -> Result<(), Error> {
        if self.theirs.is_some() || kind != Kind::Tcp {
            return Ok(());
        }
        let theirs = sockopt::socket_linger(socket).map_err(Error::socket("SO_LINGER"))?;
        sockopt::set_socket_linger(socket, Some(Duration::ZERO))
            .map_err(Error::socket("SO_LINGER"))?;
        self.theirs = Some(theirs);
        Ok(())
    }

    pub(crate) fn disarm(&mut self, socket: &OwnedFd) {
        if let Some(theirs) = self.theirs.take() {
            // What the application has set meanwhile stays.
            if sockopt::socket_linger(socket) == Ok(Some(Duration::ZERO)) {
                // It succeeded before with the same arguments.
                let _ = sockopt::set_socket_linger(socket, theirs);
            }
        }
    }
}

/// An error-queue message that is not the sender's own.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// No zerocopy completion at all: an ICMP error, a timestamp.
    Foreign(Foreign),
    /// Zerocopy sends that the application made itself were completed.
    Application {
        /// The first id of the range.
        lo: u32,
        /// The last id of the range, inclusive; below `lo` where the range wraps.
        hi: u32,
        /// The kernel flagged the notification COPIED.
        copied: bool,
    },
}

/// Called, outside all locks, with what the error queue holds for others.
pub(crate) type Hook = Arc<dyn Fn(Notice) + Send + Sync>;

pub(crate) struct Conn {
    socket: OwnedFd,
    kind: Kind,
    cookie: u64,
    process: Process,
    peer: Option<SocketAddr>,
    peer_on_this_host: bool,
    hook: Option<Hook>,
    reset_on_death: bool,
    /// Acknowledgements are put on the error queue, for us.
    stamps: bool,
    io: Mutex<Io>,
    wakers: Mutex<Wakers>,
    /// Nobody but the reaper looks after it.
    orphaned: AtomicBool,
    /// For the tickets.
    link: Arc<Link>,
}

/// What the lock guards.
struct Io {
    ledger: Ledger<Sending>,
    zerocopy: Result<(), Refusal>,
    /// Whether TCP does not probe the path, once that was asked.
    unprobed: Option<Result<(), Refusal>>,
    /// Whether `native` can serve this socket, once that was asked.
    native: Option<Result<(), Refusal>>,
    /// Bytes of the zerocopy sends in flight.
    bytes: u64,
    /// Bytes the kernel has accepted in all.
    accepted: u64,
    /// Bytes that were not acknowledged when the application had last sent by itself.
    others: u64,
    aborted: bool,
    /// The socket was given back: its error queue is somebody else's.
    retired: bool,
    /// Something was read that cannot be attributed; nothing is released any more, unless all is.
    disowned: Option<Disowned>,
    /// An id that a failed datagram may have used.
    unsure: Option<u32>,
    recent: Recent,
    since_zerocopy: u32,
    /// Sends in flight whose pages must not outlive this process.
    guarded: usize,
    reset: ResetOnDeath,
    copied: u64,
    released: u64,
    /// Bytes that one zerocopy call may be charged, once that was asked.
    memlock: Option<usize>,
    cork: Cork,
    /// Sends whose acknowledgements nobody has looked for.
    unread: u32,
    /// With this many sends in flight the next send first reads what was completed.
    reap_from: usize,
}

/// So many sends are made before the error queue is read again.
const REAP_EVERY: usize = 16;

impl Io {
    /// Whether it may be sent on.
    fn usable(&self) -> Result<(), Error> {
        match self.disowned {
            _ if self.aborted => Err(Error::Aborted),
            Some(disowned) => Err(disowned.into()),
            None => Ok(()),
        }
    }
}

/// Why ids cannot be attributed.
#[derive(Debug, Clone, Copy)]
enum Disowned {
    NotIssued(NotIssued),
    TooEarly { lo: u32, hi: u32 },
}

impl From<Disowned> for Error {
    fn from(disowned: Disowned) -> Self {
        match disowned {
            Disowned::NotIssued(e) => e.into(),
            Disowned::TooEarly { lo, hi } => Error::TooEarly { lo, hi },
        }
    }
}

/// Whether the kernel holds back a segment that is not full, for sends that say that more follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cork {
    Out,
    /// The last send said so (`MSG_MORE`).
    Series,
    /// So did several, and `TCP_CORK` is set: an acknowledgement lets a segment go that
    /// `MSG_MORE` held back, and on loopback a 64 KiB send is one segment and 53 bytes.
    In,
    /// The application has set `TCP_CORK` itself, or nobody can.
    Theirs,
}

/// What one id of the ledger stands for.
struct Sending {
    held: Option<Held>,
    cell: Arc<Cell>,
    bytes: u64,
    /// Bytes the kernel had accepted in all with it.
    end: u64,
    at: Instant,
    guarded: bool,
}

/// What is sent by one call.
#[derive(Clone, Copy)]
pub(crate) enum Payload<'a> {
    Memory(Region<'a>),
    /// So many bytes of the file, from here on.
    File(BorrowedFd<'a>, u64, usize),
}

impl Payload<'_> {
    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        match self {
            Payload::Memory(region) => region.len(),
            Payload::File(.., len) => *len,
        }
    }

    /// The first `len` bytes of it.
    pub(crate) fn truncate(self, len: usize) -> Self {
        match self {
            Payload::Memory(region) => Payload::Memory(region.truncate(len)),
            Payload::File(file, at, all) => Payload::File(file, at, all.min(len)),
        }
    }
}

/// How a part of a send is to be made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part {
    /// `copy`, `zerocopy` or `native`, and why.
    pub(crate) choice: Choice,
    pub(crate) more: bool,
    /// The pages must not outlive this process on their way.
    pub(crate) guarded: bool,
}

/// What a part of a send came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Accepted(usize),
    WouldBlock,
    Limit(Limit),
    /// EFAULT: a page of the mapping is gone; or the file has ended, or cannot be read.
    Fault,
    /// EOPNOTSUPP for a send by reference.
    Refused(Refusal),
}

/// What a sender has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Bytes the kernel has accepted.
    pub accepted: u64,
    /// Zerocopy sends released.
    pub released: u64,
    /// Of these, sends whose notification said COPIED.
    pub copied: u64,
}

/// After this many sends whose acknowledgements come to the error queue, it is read.
const MOST_UNREAD: u32 = 16;

/// When who waits for an acknowledgement looks by itself.
pub(crate) struct Looks {
    pause: Duration,
    most: Duration,
}

impl Looks {
    /// More and more rarely; `told` where something is expected to wake the waiter.
    pub(crate) fn new(told: bool) -> Self {
        let millis = Duration::from_millis;
        if told {
            Looks { pause: millis(10), most: millis(1000) }
        } else {
            Looks { pause: Duration::from_micros(100), most: millis(10) }
        }
    }

    /// # Errors
    /// [`Error::Deadline`].
    pub(crate) fn next(&mut self, deadline: Instant) -> Result<Instant, Error> {
        let now = Instant::now();
        if now >= deadline {
            return Err(Error::Deadline("the send was not acknowledged"));
        }
        let next = now + self.pause;
        self.pause = (self.pause * 2).min(self.most);
        Ok(next.min(deadline))
    }
}

/// Room for this many ids is made sure of before the application uses some.
const APPLICATION_SENDS: u32 = 1 << 20;

/// The cookies of the sockets that somebody has claimed.
static OWNED: Mutex<Option<HashSet<u64>>> = Mutex::new(None);

/// Makes the caller the only one in this process who sends on `socket`; returns its cookie.
pub(crate) fn claim(socket: &OwnedFd) -> Result<u64, Error> {
    let cookie = sockopt::socket_cookie(socket).map_err(Error::socket("SO_COOKIE"))?;
    let new = lock(&OWNED).get_or_insert_default().insert(cookie);
    if new { Ok(cookie) } else { Err(Error::AlreadyOwned { cookie }) }
}

/// Ends a claim.
pub(crate) fn give_back(cookie: u64) {
    if let Some(owned) = lock(&OWNED).as_mut() {
        owned.remove(&cookie);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while holding these locks; if something did, what is held stays held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Conn {
    pub(crate) fn new(
        socket: OwnedFd,
        next_id: Option<u32>,
        reset_on_death: bool,
        hook: Option<Hook>,
        stamps: bool,
    ) -> Result<Arc<Self>, Error> {
        let kind = Kind::of(socket.as_fd())?;
        let cookie = claim(&socket)?;
        let zerocopy = kind.zerocopy().and_then(|()| {
            let fd = socket.as_fd();
            match sys::zerocopy_enabled(fd) {
                Ok(true) => Ok(true),
                Ok(false) => sys::enable_zerocopy(fd).map(|()| false),
                Err(errno) => Err(errno),
            }
            .map_err(|errno| match errno {
                Errno::NOPROTOOPT => {
                    Refusal::Socket("the kernel has no SO_ZEROCOPY (Linux before 4.14)")
                }
                Errno::OPNOTSUPP => Refusal::NotSupported,
                errno => Refusal::ZerocopyOption(errno.raw_os_error()),
            })
        });
        // Without them it only takes longer to see an acknowledgement.
        let stamps = stamps
            && kind == Kind::Tcp
            && sys::stamp_acknowledgements(socket.as_fd(), true) == Ok(true);
        let conn = Arc::new_cyclic(|conn| Conn {
            peer: peer(&socket),
            peer_on_this_host: peer_on_this_host(&socket),
            socket,
            kind,
            cookie,
            process: Process::current(),
            hook,
            reset_on_death: reset_on_death && kind == Kind::Tcp,
            stamps,
            io: Mutex::new(Io {
                ledger: next_id.map_or_else(Ledger::new, Ledger::starting_at),
                zerocopy: zerocopy.map(|_| ()),
                unprobed: None,
                native: None,
                bytes: 0,
                accepted: 0,
                others: 0,
                aborted: false,
                retired: false,
                disowned: None,
                unsure: None,
                recent: Recent::default(),
                since_zerocopy: 0,
                guarded: 0,
                reset: ResetOnDeath::default(),
                copied: 0,
                released: 0,
                memlock: None,
                cork: Cork::Out,
                unread: 0,
                reap_from: REAP_EVERY,
            }),
            wakers: Mutex::default(),
            orphaned: AtomicBool::new(false),
            link: Arc::new(Link { conn: Weak::clone(conn), acknowledged: AtomicU64::new(0) }),
        });
        // Dropping the connection gives the cookie back.
        if zerocopy == Ok(true) && next_id.is_none() {
            return Err(Error::NextIdUnknown);
        }
        Ok(conn)
    }

    /// What its tickets know it by.
    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// Takes the lock, to see what can be done and to do it.
    ///
    /// # Errors
    /// [`Error::Forked`].
    pub(crate) fn turn(&self) -> Result<Turn<'_>, Error> {
        self.ours()?;
        Ok(self.look())
    }

    /// As [`turn`](Self::turn), only to see what could be done.
    pub(crate) fn look(&self) -> Turn<'_> {
        Turn { conn: self, io: lock(&self.io) }
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    pub(crate) fn peer_on_this_host(&self) -> bool {
        self.peer_on_this_host
    }

    /// Whether this is the process that made the connection, and not a fork of it.
    pub(crate) fn is_ours(&self) -> bool {
        self.process.is_current()
    }

    /// That it is. Asked before the lock, which a thread of the parent's may have had when it
    /// forked, and will then never unlock here.
    fn ours(&self) -> Result<(), Error> {
        if self.is_ours() { Ok(()) } else { Err(Error::Forked) }
    }

    /// Whether a failed datagram of `len` bytes may have used a notification id: every error that
    /// can come after the datagram was built. The others come before, and the kernel gives the id
    /// back.
    fn maybe_used_an_id(&self, errno: Errno, len: usize) -> bool {
        match errno {
            Errno::AGAIN
            | Errno::FAULT
            | Errno::DESTADDRREQ
            | Errno::CONNREFUSED
            | Errno::OPNOTSUPP
            | Errno::PIPE => false,
            // What no datagram can hold is refused at once. What the path or UDP_SEGMENT does not
            // allow may be refused when the datagram is built already (udp_send_skb, ip_fragment),
            // and so may what is invalid.
            Errno::MSGSIZE => {
                let v4 = sockopt::socket_domain(&self.socket) == Ok(AddressFamily::INET);
                len <= if v4 { 65_507 } else { 65_527 }
            }
            _ => true,
        }
    }

    fn cork(&self, io: &mut Io) {
        if io.cork == Cork::Series && self.kind == Kind::Tcp {
            let free = sockopt::tcp_cork(&self.socket) == Ok(false);
            // Where it cannot be set (a seccomp filter), there are more packets, and that is all.
            let set = free && sockopt::set_tcp_cork(&self.socket, true).is_ok();
            io.cork = if set { Cork::In } else { Cork::Theirs };
        }
    }

    /// Something was sent: with more to follow, or the `whole` of what was the last of a series.
    #[inline(always)]
    fn follow(&self, io: &mut Io, more: bool, whole: bool) {
        if more && io.cork == Cork::Out {
            io.cork = Cork::Series;
        } else if !more && whole {
            self.uncork(io);
        }
    }

    /// Lets go what is held back for more to follow.
    fn uncork(&self, io: &mut Io) {
        if std::mem::replace(&mut io.cork, Cork::Out) == Cork::In {
            // It succeeded before.
            let _ = sockopt::set_tcp_cork(&self.socket, false);
        }
    }

    /// Nothing may follow for a while.
    pub(crate) fn flush(&self) {
        if self.is_ours() {
            self.push(&mut lock(&self.io));
        }
    }

    /// As [`uncork`](Self::uncork), also what one send alone holds back (`MSG_MORE`), and no other
    /// send is about to let go.
    fn push(&self, io: &mut Io) {
        // Where it cannot be set it need not be: what is held back goes by itself in 200 ms.
        self.cork(io);
        self.uncork(io);
    }

    /// Lets the application make zerocopy sends of its own; `send` returns how many it made.
    pub(crate) fn application_sends<T>(
        &self,
        send: impl FnOnce(BorrowedFd<'_>) -> (T, u32),
    ) -> Result<T, Error> {
        self.ours()?;
        let mut io = lock(&self.io);
        if io.aborted {
            return Err(Error::Aborted);
        }
        io.ledger.room(APPLICATION_SENDS)?;
        self.uncork(&mut io);
        let sent = catch_unwind(AssertUnwindSafe(|| send(self.socket.as_fd())));
        let ids = sent.as_ref().ok().map(|(_, ids)| *ids);
        match ids.filter(|ids| *ids <= APPLICATION_SENDS || io.ledger.room(*ids).is_ok()) {
            Some(ids) => io.ledger.skip(ids),
            // How many there were will never be known, or cannot be counted: none of ours may
            // follow.
            None => {
                io.ledger.skip(APPLICATION_SENDS);
                io.zerocopy = Err(Refusal::IdsUnsure);
            }
        }
        if self.kind == Kind::Tcp {
            io.others = sys::unacknowledged(&self.socket).unwrap_or(u64::MAX);
        }
        drop(io);
        sent.map_or_else(|panic| resume_unwind(panic), |(result, _)| Ok(result))
    }

    /// Reads completions and lets go of what they release. Returns how many messages were read.
    pub(crate) fn reap(&self) -> Result<usize, Error> {
        self.reap_as(None)
    }

    /// As [`reap`](Self::reap), by who is registered with `key` and need not be woken.
    fn reap_as(&self, key: Option<u64>) -> Result<usize, Error> {
        self.ours()?;
        // A unix socket does not know MSG_ERRQUEUE and would hand out what its peer has sent.
        if self.kind.zerocopy().is_err() {
            return Ok(0);
        }
        let mut count = 0;
        let mut error = None;
        let mut trusted = false;
        loop {
            let mut entries = errqueue::Batch::new();
            let mut done = Vec::new();
            let mut notices = Vec::new();
            let mut io = lock(&self.io);
            if io.retired {
                return Ok(count);
            }
            let more = errqueue::read(self.socket.as_fd(), &mut entries)
                .map_err(Error::socket("recvmmsg(MSG_ERRQUEUE)"))?;
            count += entries.len();
            io.unread = 0;
            let empty = entries.is_empty();
            if empty && !self.all_are_released(&mut io, &mut done) {
                io.reap_from = io.ledger.in_flight() + REAP_EVERY;
                let error = error.or(io.disowned.filter(|_| trusted).map(Error::from));
                return error.map_or(Ok(count), Err);
            }
            trusted |= io.disowned.is_none();
            for entry in entries {
                match entry {
                    Ok(Entry::Completion { lo, hi, copied }) => {
                        self.complete(&mut io, (lo, hi), copied, &mut done);
                    }
                    Ok(Entry::Foreign(f)) if self.stamps && f.is_acknowledgement() => {}
                    Ok(Entry::Foreign(foreign)) => notices.push(Notice::Foreign(foreign)),
                    Err(e) => {
                        error.get_or_insert(Error::from(e));
                    }
                }
            }
            for done in &done {
                match *done {
                    Done::Released { ref held, copied, .. } => {
                        io.bytes -= held.bytes;
                        io.guarded -= usize::from(held.guarded);
                        io.released += 1;
                        io.copied += u64::from(copied);
                        io.recent.note(copied);
                    }
                    Done::Application { lo, hi, .. } if lo == hi && io.unsure == Some(lo) => {}
                    Done::Application { lo, hi, copied } => {
                        notices.push(Notice::Application { lo, hi, copied });
                    }
                }
            }
            if io.guarded == 0 {
                io.reset.disarm(&self.socket);
            }
            io.reap_from = io.ledger.in_flight() + REAP_EVERY;
            let disowned = io.disowned;
            drop(io);
            // A destructor or hook that panics must not keep the others, the tickets or the waiters
            // from what is due to them, for it was read off the queue and does not come again.
            let mut apart = Apart::default();
            for done in done {
                if let Done::Released { held: sending, copied, id } = done {
                    // First the hold, then the ticket: who sees "released" finds the range free.
                    apart.run(|| {
                        drop(sending.held);
                        tracing::trace!(cookie = self.cookie, id, copied, "released");
                    });
                    sending.cell.part_released(copied);
                }
            }
            // Listed only now: who registers later finds the tickets changed already.
            let wakers = lock(&self.wakers).all(key);
            for waker in wakers {
                waker.wake();
            }
            for notice in notices {
                apart.run(|| match &self.hook {
                    Some(hook) => hook(notice),
                    None => tracing::debug!(cookie = self.cookie, ?notice, "nobody asked for it"),
                });
            }
            if let Some(error) = &error {
                apart.run(|| tracing::error!(cookie = self.cookie, "{error}"));
            }
            apart.resume();
            // Where ids are in doubt, to the end of the queue: then it is seen whether all is released.
            if !more && (empty || disowned.is_none()) {
                let error = error.or(disowned.filter(|_| trusted).map(Error::from));
                return error.map_or(Ok(count), Err);
            }
        }
    }

    /// Takes in a completion, unless it cannot be that of our sends.
    fn complete(
        &self,
        io: &mut Io,
        (lo, hi): (u32, u32),
        copied: bool,
        done: &mut Vec<Done<Sending>>,
    ) {
        if let Some(Disowned::NotIssued(_)) = io.disowned {
            return;
        }
        let doubt = match io.ledger.last_of(lo, hi) {
            Err(e) => Some(Disowned::NotIssued(e)),
            Ok(last)
                if io.disowned.is_some() || last.is_some_and(|s| self.is_needed(io, s.end)) =>
            {
                Some(Disowned::TooEarly { lo, hi })
            }
            Ok(_) => io.ledger.complete(lo, hi, copied, done).err().map(Disowned::NotIssued),
        };
        if let Some(doubt) = doubt {
            tracing::error!(cookie = self.cookie, "{}", Error::from(doubt));
            io.disowned = Some(doubt);
        }
    }

    /// Whether TCP may yet have to send what ends with byte `end`: the peer has not acknowledged it,
    /// and the connection lives. TCP keeps what counts it for so long, so no notification is due.
    ///
    /// (Where a route cannot gather, TCP copies in the call, and notifies at once. That is made good
    /// when all is found to be released, [`all_are_released`](Self::all_are_released).)
    fn is_needed(&self, io: &Io, end: u64) -> bool {
        // What others have sent behind it is not among what we have; nor is the end of the stream.
        let needed =
            |acknowledged: u64| acknowledged.saturating_add(io.others).saturating_add(1) < end;
        self.kind == Kind::Tcp
            && !io.aborted
            && needed(self.link.acknowledged.load(Ordering::Relaxed))
            && self.look_for_acknowledgement(io).is_ok_and(needed)
            // Asked last: who asks for the former waits until the end of a connection is complete.
            && sys::tcp_is_over(self.socket.as_fd()) == Ok(false)
    }

    /// Whether the kernel has nothing by reference any more, though sends are in flight by their ids:
    /// those were lost, or cannot be attributed. To be asked when the error queue is empty.
    fn all_are_released(&self, io: &mut Io, done: &mut Vec<Done<Sending>>) -> bool {
        if io.ledger.in_flight() == 0 || sys::option_memory(self.socket.as_fd()) != Ok(0) {
            return false;
        }
        tracing::debug!(cookie = self.cookie, "released, by the kernel's account");
        io.ledger.complete_all(done);
        if let Some(Disowned::TooEarly { hi, .. }) = io.disowned {
            if hi.wrapping_add(1) == io.ledger.next_id() {
                // The ids do add up: it was no mistake to tell so early.
                io.disowned = None;
            }
        }
        true
    }

    /// Sends in flight, without asking the clock for their ages.
    pub(crate) fn sends_in_flight(&self) -> usize {
        lock(&self.io).ledger.in_flight()
    }

    pub(crate) fn in_flight(&self) -> InFlight {
        let io = lock(&self.io);
        let oldest = io.ledger.iter().next().map(|(_, sending)| sending.at.elapsed());
        InFlight { bytes: io.bytes, sends: io.ledger.in_flight(), oldest }
    }

    pub(crate) fn counters(&self) -> Counters {
        let io = lock(&self.io);
        Counters { accepted: io.accepted, released: io.released, copied: io.copied }
    }

    /// What is in flight may never be accounted for, as far as anybody can say now.
    pub(crate) fn is_unknown(&self) -> bool {
        self.orphaned.load(Ordering::Relaxed)
            || !self.is_ours()
            || lock(&self.io).disowned.is_some()
    }

    /// The error that makes waiting for notifications pointless.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.ours()?;
        lock(&self.io).disowned.map_or(Ok(()), |e| Err(e.into()))
    }

    /// Whether the peer has acknowledged the first `end` bytes that this sender got accepted.
    pub(crate) fn acknowledgement(&self, end: u64) -> Result<Acknowledgement, Error> {
        self.ours()?;
        let io = lock(&self.io);
        // Asked first: what was not acknowledged when it was over never will be.
        let over = io.aborted
            || io.retired
            || self.kind != Kind::Tcp
            || sys::tcp_is_over(self.socket.as_fd()).map_err(Error::socket("TCP_INFO"))?;
        let acknowledged = self.look_for_acknowledgement(&io)?;
        Ok(if acknowledged >= end && self.kind == Kind::Tcp {
            Acknowledgement::Acknowledged
        } else if over {
            Acknowledgement::Unknowable
        } else {
            Acknowledgement::Pending
        })
    }

    /// Keeps the error queue short, where acknowledgements come to it: they take their room from
    /// what the socket may receive.
    pub(crate) fn read_acknowledgements(&self) {
        if self.stamps && lock(&self.io).unread >= MOST_UNREAD {
            // An error shows itself to the next who reads.
            let _ = self.reap();
        }
    }

    /// Waits until `end` bytes are acknowledged; `false` if that will never be known.
    ///
    /// Woken by what comes to the error queue: timestamps of acknowledgements, and completions,
    /// which come with them where the peer is elsewhere. None of them must come (timestamps are lost
    /// when the receive buffer is full), so it looks by itself now and then.
    pub(crate) fn wait_acknowledged(&self, end: u64, deadline: Instant) -> Result<bool, Error> {
        Parker::with(|parker| {
            let registered = Registered::new(self, parker.waker());
            let _watch = parker.watch(self.socket.as_fd(), 0, Interest::Errors)?;
            let mut looks = Looks::new(self.stamps);
            loop {
                // What is on the queue wakes but once. An error of the ids is not the waiter's.
                let _ = registered.reap();
                match self.acknowledgement(end)? {
                    Acknowledgement::Acknowledged => return Ok(true),
                    Acknowledgement::Unknowable => return Ok(false),
                    Acknowledgement::Pending => {}
                }
                parker.park(Some(looks.next(deadline)?))?;
            }
        })
    }

    /// SIOCOUTQ counts what is behind a byte, too, so at most that much is not acknowledged.
    /// After an abort the counters mean nothing and are not asked.
    fn look_for_acknowledgement(&self, io: &Io) -> Result<u64, Error> {
        if !io.aborted && !io.retired && self.kind == Kind::Tcp {
            let left = sys::unacknowledged(&self.socket)
                .map_err(|cause| Error::Socket { op: "ioctl(SIOCOUTQ)", cause })?;
            self.link.acknowledged.fetch_max(io.accepted.saturating_sub(left), Ordering::Relaxed);
        }
        Ok(self.link.acknowledged.load(Ordering::Relaxed))
    }

    /// Ends the connection at once. Frees nothing by itself.
    pub(crate) fn abort(&self) -> Result<(), Error> {
        self.ours()?;
        let mut io = lock(&self.io);
        if io.aborted || io.retired {
            return Ok(());
        }
        // What is acknowledged by now stays so.
        let _ = self.look_for_acknowledgement(&io);
        io.aborted = true;
        tracing::debug!(cookie = self.cookie, in_flight = io.ledger.in_flight(), "abort");
        self.kind.abort(&self.socket)
    }

    pub(crate) fn shutdown_writing(&self) -> Result<(), Error> {
        self.ours()?;
        shut_down(&self.socket, Shutdown::Write)
    }

    /// EPOLLERR with an empty error queue: a genuine error of the socket, if there is one.
    fn socket_error(&self) -> Result<(), Error> {
        match sockopt::socket_error(&self.socket) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(errno)) | Err(errno) => Err(Error::socket("the connection")(errno)),
        }
    }

    /// Ends the ledger, in which nothing must be in flight, and returns the id that the next
    /// zerocopy send will get. From here on the socket is not touched, whoever still knows it, and
    /// another connection may be made of it.
    pub(crate) fn retire(&self) -> Result<u32, Error> {
        self.ours()?;
        let mut io = lock(&self.io);
        match (io.disowned, io.zerocopy) {
            (Some(disowned), _) => return Err(disowned.into()),
            (None, Err(reason @ Refusal::IdsUnsure)) => {
                return Err(self.refuse(Engine::Zerocopy, reason));
            }
            _ => {}
        }
        self.uncork(&mut io);
        // What is acknowledged by now stays so.
        let _ = self.look_for_acknowledgement(&io);
        if self.stamps {
            // If the application has changed it since, it stays as it is.
            let _ = sys::stamp_acknowledgements(self.socket.as_fd(), false);
        }
        io.retired = true;
        give_back(self.cookie);
        Ok(io.ledger.next_id())
    }

    /// Refuses `engine` with `reason`, for all to see.
    pub(crate) fn refuse(&self, engine: Engine, reason: Refusal) -> Error {
        tracing::debug!(cookie = self.cookie, %engine, %reason, "refused");
        Error::Refused { engine, reason }
    }
}

/// A connection, locked. No wait, no hook and no destructor of what is held runs meanwhile.
pub(crate) struct Turn<'a> {
    conn: &'a Conn,
    io: MutexGuard<'a, Io>,
}

impl Turn<'_> {
    /// Whether it is time to read what was completed.
    pub(crate) fn reap_is_due(&self) -> bool {
        self.io.ledger.in_flight() >= self.io.reap_from
    }

    /// Whether a zerocopy send will use just one id, as far as can be seen right before it.
    ///
    /// # Errors
    /// What the send would fail with.
    fn counted(&mut self) -> Result<Result<(), Refusal>, Errno> {
        let socket = self.conn.socket.as_fd();
        // The application has the socket, too, "for options".
        if !sys::zerocopy_enabled(socket)? {
            return Ok(Err(Refusal::SwitchedOff));
        }
        // Sockets are put into sockmaps when they are made. What comes while sends are in flight shows
        // in their ids, which then end the connection; that is rare, and asking costs a system call.
        if self.conn.kind == Kind::Tcp && self.io.ledger.in_flight() == 0 {
            match sys::sent_by_tcp(socket) {
                Ok(true) => {}
                Ok(false) => self.io.zerocopy = Err(Refusal::Sockmap),
                Err(e) => return Err(Errno::from_io_error(&e).unwrap_or(Errno::IO)),
            }
        }
        Ok(self.io.zerocopy)
    }

    /// Whether zerocopy can serve a send of `bytes` on this socket.
    pub(crate) fn zerocopy(&mut self, bytes: u64, more: bool) -> Result<(), Refusal> {
        self.io.zerocopy?;
        self.unprobed()?;
        let kind = self.conn.kind;
        if more && kind == Kind::Udp {
            return Err(Refusal::Socket("a datagram in several parts (MSG_MORE) is always copied"));
        }
        let most = self.memlock_call() as u64;
        if most == 0 || (kind.records() && bytes > most) {
            return Err(Refusal::Memlock(memlock().unwrap_or(u64::MAX)));
        }
        Ok(())
    }

    /// Whether `native` can serve a send from a file on this socket.
    pub(crate) fn native(&mut self) -> Result<(), Refusal> {
        if let Err(reason @ Refusal::IdsUnsure) = self.io.zerocopy {
            return Err(reason);
        }
        let kind = self.conn.kind;
        (*self.io.native.get_or_insert_with(|| match kind {
            Kind::Tcp => native::kernel().map(drop).map_err(Refusal::Native),
            _ => Err(Refusal::Socket("the engine native serves TCP sockets only")),
        }))?;
        match native::kernel() {
            // With the series TCP makes no probes of what is sent by reference.
            Ok(Kernel::Series(_)) => Ok(()),
            _ => self.unprobed(),
        }
    }

    /// Whether no MTU probe of TCP's can come between a send by reference and its notification.
    fn unprobed(&mut self) -> Result<(), Refusal> {
        let kind = self.conn.kind;
        let socket = self.conn.socket.as_fd();
        *self.io.unprobed.get_or_insert_with(|| mtu::check(kind, socket))
    }

    /// What [`Engine::Auto`] goes by: most came back COPIED, and sends since the last zerocopy.
    pub(crate) fn history(&self) -> (bool, u32) {
        (self.io.recent.mostly_copied(), self.io.since_zerocopy)
    }

    /// Bytes that one zerocopy call may ask for; 0 if the limit allows none.
    pub(crate) fn memlock_call(&mut self) -> usize {
        *self.io.memlock.get_or_insert_with(rlimit::call)
    }

    /// Asks for the limit anew the next time: it may have been changed.
    pub(crate) fn forget_memlock(&mut self) {
        self.io.memlock = None;
    }

    /// Sends from `slices` once, without blocking; the kernel copies what it takes.
    pub(crate) fn transmit_slices(
        &mut self,
        slices: &[IoSlice<'_>],
        more: bool,
        parts: &mut Parts,
    ) -> Result<Outcome, Error> {
        let (conn, io) = (self.conn, &mut *self.io);
        io.usable()?;
        if more {
            conn.cork(io);
        }
        let more_flag = if more { SendFlags::MORE } else { SendFlags::empty() };
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL | more_flag;
        let sent = retry_on_intr(|| {
            rustix::net::sendmsg(&conn.socket, slices, &mut SendAncillaryBuffer::default(), flags)
        });
        match sent {
            Ok(bytes) => {
                let whole = bytes == slices.iter().map(|slice| slice.len()).sum();
                conn.follow(io, more, whole);
                io.accepted += bytes as u64;
                let choice = Choice { engine: Engine::Copy, why: Why::Slice };
                parts.accepted(bytes as u64, io.accepted, choice);
                io.since_zerocopy = io.since_zerocopy.saturating_add(1);
                parts.copied();
                Ok(Outcome::Accepted(bytes))
            }
            Err(Errno::AGAIN) => Ok(Outcome::WouldBlock),
            Err(errno) => Err(Error::socket("sendmsg")(errno)),
        }
    }

    /// Sends `payload` once, without blocking, and records what the kernel took.
    #[inline(always)]
    pub(crate) fn transmit(
        &mut self,
        payload: Payload<'_>,
        part: Part,
        parts: &mut Parts,
        held: Option<&Held>,
    ) -> Result<Outcome, Error> {
        self.io.usable()?;
        // A datagram of no bytes would use an id (the kernel counts its header), and a stream send
        // of none would not: by plain sends neither does.
        let len = payload.len();
        let by_reference = part.choice.engine != Engine::Copy && len > 0;
        let refusal = match part.choice.engine {
            // Asked before, but not under this lock; and the attempt before may have been refused.
            Engine::Native => self.native(),
            _ if by_reference && self.io.zerocopy.is_ok() => match self.counted() {
                Err(Errno::AGAIN) => return Ok(Outcome::WouldBlock),
                counted => counted.map_err(Error::socket("send"))?,
            },
            _ => self.io.zerocopy,
        };
        let (conn, io) = (self.conn, &mut *self.io);
        let guarded = by_reference && (part.guarded || conn.reset_on_death);
        if by_reference {
            if let Err(reason) = refusal {
                return Ok(Outcome::Refused(reason));
            }
            io.ledger.room(1)?;
            if guarded {
                io.reset.arm(&conn.socket, conn.kind)?;
            }
        }
        if part.more {
            conn.cork(io);
        }
        let socket = conn.socket.as_fd();
        let result = match payload {
            Payload::Memory(region) => sys::send(socket, region, by_reference, part.more),
            Payload::File(file, at, len) => {
                native::send(socket, file, &(at..at + len as u64), part.more)
            }
        };
        if let Ok(bytes) = result {
            if !part.more && len == 0 {
                conn.push(io);
            } else {
                conn.follow(io, part.more, bytes == len);
            }
            io.accepted += bytes as u64;
            io.unread += u32::from(conn.stamps);
            parts.accepted(bytes as u64, io.accepted, part.choice);
            if by_reference {
                io.since_zerocopy = 0;
                io.bytes += bytes as u64;
                io.guarded += usize::from(guarded);
                let at = Instant::now();
                let id = io.ledger.issue(Sending {
                    held: held.cloned(),
                    cell: parts.in_flight(),
                    bytes: bytes as u64,
                    end: io.accepted,
                    at,
                    guarded,
                });
                tracing::trace!(cookie = conn.cookie, id, bytes, "zerocopy send");
            } else {
                io.since_zerocopy = io.since_zerocopy.saturating_add(1);
                parts.copied();
            }
            return Ok(Outcome::Accepted(bytes));
        }
        if guarded && io.guarded == 0 {
            io.reset.disarm(&conn.socket);
        }
        match result {
            Ok(bytes) => Ok(Outcome::Accepted(bytes)),
            Err(Errno::AGAIN) => Ok(Outcome::WouldBlock),
            Err(Errno::FAULT) => Ok(Outcome::Fault),
            Err(errno) => {
                if by_reference && conn.kind == Kind::Udp && conn.maybe_used_an_id(errno, len) {
                    // The kernel gives the id back when building the datagram fails, but not when
                    // a filter or a queue drops it afterwards. So that the next id stays known,
                    // there is no next one.
                    io.unsure = Some(io.ledger.next_id());
                    io.ledger.skip(1);
                    io.zerocopy = Err(Refusal::IdsUnsure);
                    tracing::warn!(cookie = conn.cookie, %errno, "{}", Refusal::IdsUnsure);
                    if errno == Errno::NOBUFS {
                        return Ok(Outcome::Refused(Refusal::IdsUnsure));
                    }
                }
                match errno {
                    Errno::NOBUFS if by_reference => Ok(Outcome::Limit(Limit::Buffers)),
                    Errno::OPNOTSUPP if by_reference => {
                        match payload {
                            Payload::Memory(_) => io.zerocopy = Err(Refusal::NotSupported),
                            Payload::File(..) => io.native = Some(Err(Refusal::NotSupported)),
                        }
                        Ok(Outcome::Refused(Refusal::NotSupported))
                    }
                    errno => Err(Error::socket("send")(errno)),
                }
            }
        }
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        // What is in flight all the same, since its hand-over failed, the ledger keeps held. In a
        // fork the socket stays claimed: the parent goes on counting its ids.
        let retired = self.io.get_mut().unwrap_or_else(PoisonError::into_inner).retired;
        if !retired && self.is_ours() {
            give_back(self.cookie);
        }
    }
}

impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conn")
            .field("cookie", &self.cookie)
            .field("kind", &self.kind)
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}

impl AsFd for Conn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Holder for Conn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn readiness(&self) -> Interest {
        Interest::Errors
    }

    fn reap(&self) -> Result<usize, Error> {
        Conn::reap(self)
    }

    fn flush(&self) {
        Conn::flush(self);
    }

    fn abort(&self) -> Result<(), Error> {
        Conn::abort(self)
    }

    fn in_flight(&self) -> InFlight {
        Conn::in_flight(self)
    }

    fn holds(&self, which: &dyn Fn(&Held) -> bool) -> bool {
        let io = lock(&self.io);
        io.ledger.iter().any(|(_, sending)| sending.held.as_ref().is_some_and(which))
    }

    fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    fn orphan(&self) {
        self.orphaned.store(true, Ordering::Relaxed);
        // If it fails there is no peer to tell.
        let _ = self.shutdown_writing();
    }
}

/// Waits until `check` says something, reaping meanwhile.
///
/// # Errors
/// [`Error::Deadline`] with `what` when the deadline passes; what `check` fails with; where it
/// waits to write, a genuine error of the socket, but only if nothing is in flight, since until
/// then notifications may come.
pub(crate) fn wait<T>(
    conn: &Conn,
    writable: bool,
    deadline: Instant,
    what: &'static str,
    mut check: impl FnMut() -> Result<Option<T>, Error>,
) -> Result<T, Error> {
    if !writable {
        conn.flush();
    }
    let interest = if writable { Interest::Writable } else { Interest::Errors };
    Parker::with(|parker| {
        let registered = Registered::new(conn, parker.waker());
        let _watch = parker.watch(conn.socket.as_fd(), 0, interest)?;
        loop {
            registered.reap()?;
            if let Some(value) = check()? {
                return Ok(value);
            }
            conn.check()?;
            if Instant::now() >= deadline {
                return Err(Error::Deadline(what));
            }
            let events = parker.park(Some(deadline))?;
            // Who waits for a release, and finds nothing in flight, waits for another thread that
            // has read the notification and is about to say so.
            let error = writable && events.iter().any(|e| e.error);
            if error && registered.reap()? == 0 && conn.sends_in_flight() == 0 {
                if let Some(value) = check()? {
                    return Ok(value);
                }
                conn.socket_error()?;
            }
        }
    })
}

/// As [`wait`] where it does not wait to write, for a task, which ends it by dropping it.
#[cfg(feature = "tokio")]
pub(crate) async fn wait_as_task<T>(
    conn: &Conn,
    mut check: impl FnMut() -> Result<Option<T>, Error>,
) -> Result<T, Error> {
    conn.flush();
    // What has arrived already needs no descriptors.
    conn.reap()?;
    if let Some(value) = check()? {
        return Ok(value);
    }
    let task = crate::park::task::Parker::new()?;
    let registered = Registered::new(conn, task.as_thread().waker());
    let _watch = task.as_thread().watch(conn.socket.as_fd(), 0, Interest::Errors)?;
    loop {
        registered.reap()?;
        if let Some(value) = check()? {
            return Ok(value);
        }
        conn.check()?;
        task.park(None).await?;
    }
}

/// A place in a connection's list of those who are woken when it was reaped; dropping it ends that.
pub(crate) struct Registered<C: std::ops::Deref<Target = Conn>> {
    conn: C,
    key: u64,
}

impl<C: std::ops::Deref<Target = Conn>> Registered<C> {
    pub(crate) fn new(conn: C, waker: Waker) -> Self {
        let key = lock(&conn.wakers).insert(waker);
        Registered { conn, key }
    }

    /// As [`Conn::reap`]; whoever is registered here looks at what has changed before it waits.
    pub(crate) fn reap(&self) -> Result<usize, Error> {
        self.conn.reap_as(Some(self.key))
    }
}

impl<C: std::ops::Deref<Target = Conn>> Drop for Registered<C> {
    fn drop(&mut self) {
        lock(&self.conn.wakers).remove(self.key);
    }
}

fn internet(address: SocketAddrAny) -> Option<SocketAddr> {
    SocketAddr::try_from(address).ok()
}

fn peer(socket: impl AsFd) -> Option<SocketAddr> {
    rustix::net::getpeername(socket).ok().flatten().and_then(internet)
}

/// Whether the peer of a connected internet socket is on this host by its address: a loopback
/// address, or this end's own.
///
/// A yes is certain. A no is not: an address of another namespace or container may be here, too.
pub fn peer_on_this_host(socket: impl AsFd) -> bool {
    let own = rustix::net::getsockname(&socket).ok().and_then(internet);
    let own = own.map(|a| a.ip().to_canonical());
    let peer = peer(socket).map(|a| a.ip().to_canonical());
    peer.is_some_and(|peer| peer.is_loopback() || own == Some(peer))
}
