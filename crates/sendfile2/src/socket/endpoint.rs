//! This end of a connection: the socket, whose it is, and where the bytes go.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rustix::io::Errno;
use rustix::net::{Shutdown, SocketAddrAny, sockopt};

use super::kind::Kind;
use crate::error::Error;
use crate::sync::lock;
use crate::sys::process::Process;

/// A socket that this process sends on, and nobody else in it.
#[derive(Debug)]
pub(crate) struct Endpoint {
    socket: Arc<OwnedFd>,
    kind: Kind,
    cookie: u64,
    process: Process,
    peer: Option<SocketAddr>,
    peer_on_this_host: bool,
    /// Nobody but the reaper looks after it.
    orphaned: AtomicBool,
    /// Its claim has ended before it.
    released: AtomicBool,
}

/// The cookies of the sockets that somebody has claimed.
static CLAIMED: Mutex<Option<HashSet<u64>>> = Mutex::new(None);

impl Endpoint {
    /// Claims `socket`.
    ///
    /// # Errors
    /// [`Error::Socket`] if it is no socket; [`Error::AlreadyOwned`].
    pub(crate) fn new(socket: OwnedFd) -> Result<Self, Error> {
        let kind = Kind::of(socket.as_fd())?;
        let cookie = sockopt::socket_cookie(&socket).map_err(Error::socket("SO_COOKIE"))?;
        if !lock(&CLAIMED).get_or_insert_default().insert(cookie) {
            return Err(Error::AlreadyOwned { cookie });
        }
        Ok(Endpoint {
            peer: peer(&socket),
            peer_on_this_host: peer_on_this_host(&socket),
            socket: Arc::new(socket),
            kind,
            cookie,
            process: Process::current(),
            orphaned: AtomicBool::new(false),
            released: AtomicBool::new(false),
        })
    }

    pub(crate) fn socket(&self) -> &Arc<OwnedFd> {
        &self.socket
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    pub(crate) fn cookie(&self) -> u64 {
        self.cookie
    }

    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    pub(crate) fn peer_on_this_host(&self) -> bool {
        self.peer_on_this_host
    }

    /// Whether this is the process that made it, and not a fork of that.
    #[inline]
    pub(crate) fn is_ours(&self) -> bool {
        self.process.is_current()
    }

    /// Fails where it is not. Asked before a lock is taken, which a thread of the parent's may have
    /// had when it forked, and will then never unlock here.
    #[inline]
    pub(crate) fn ours(&self) -> Result<(), Error> {
        if self.is_ours() { Ok(()) } else { Err(Error::Forked) }
    }

    /// Says that nobody but the reaper looks after it.
    pub(crate) fn orphan(&self) {
        self.orphaned.store(true, Ordering::Relaxed);
    }

    /// Whether nobody in this process looks after it but the reaper.
    pub(crate) fn is_orphaned(&self) -> bool {
        self.orphaned.load(Ordering::Relaxed) || !self.is_ours()
    }

    /// Ends the claim: another endpoint may be made of the socket.
    pub(crate) fn give_back(&self) {
        if !self.released.swap(true, Ordering::Relaxed) {
            if let Some(claimed) = lock(&CLAIMED).as_mut() {
                claimed.remove(&self.cookie);
            }
        }
    }

    /// Ends the connection at once.
    pub(crate) fn abort(&self) -> Result<(), Error> {
        if self.kind == Kind::Tcp {
            // SO_LINGER 0 and close would send no reset while a duplicate of the descriptor lives.
            rustix::net::connect_unspec(&self.socket).map_err(Error::socket("connect(AF_UNSPEC)"))
        } else {
            self.shut_down(Shutdown::Both)
        }
    }

    /// Ends the stream towards the peer.
    pub(crate) fn shut_down_writing(&self) -> Result<(), Error> {
        self.shut_down(Shutdown::Write)
    }

    fn shut_down(&self, how: Shutdown) -> Result<(), Error> {
        match rustix::net::shutdown(&self.socket, how) {
            // A datagram socket that is not connected, or a connection that is gone.
            Err(Errno::NOTCONN) => Ok(()),
            result => result.map_err(Error::socket("shutdown")),
        }
    }

    /// Reads the error that the socket has, if it has one.
    pub(crate) fn error(&self) -> Result<(), Error> {
        match sockopt::socket_error(&self.socket) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(errno)) | Err(errno) => Err(Error::socket("the connection")(errno)),
        }
    }
}

impl AsFd for Endpoint {
    #[inline]
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        // In a fork the socket stays claimed: the parent goes on counting its ids.
        if self.is_ours() {
            self.give_back();
        }
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
