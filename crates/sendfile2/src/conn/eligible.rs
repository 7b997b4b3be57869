//! The engines that can serve the next send on a connection.

use std::os::fd::AsFd;

use rustix::io::Errno;

use super::connection::LockedConn;
use crate::mtu;
use crate::native::{self, Kernel};
use crate::refusal::Refusal;
use crate::socket::kind::Kind;
use crate::sys::rlimit::{self, memlock};
use crate::sys::socket as sys;

impl LockedConn<'_> {
    /// Whether it is time to read what was completed.
    #[inline]
    pub(crate) fn reap_is_due(&self) -> bool {
        self.state.ledger.in_flight() >= self.state.reap_from
    }

    /// Whether zerocopy can serve a send of `bytes` on this socket.
    pub(crate) fn zerocopy(&mut self, bytes: u64, more: bool) -> Result<(), Refusal> {
        self.state.zerocopy?;
        self.no_mtu_probes()?;
        let kind = self.conn.endpoint.kind();
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
        if let Err(reason @ Refusal::IdsUnsure) = self.state.zerocopy {
            return Err(reason);
        }
        let kind = self.conn.endpoint.kind();
        (*self.state.native.get_or_insert_with(|| match kind {
            Kind::Tcp => native::kernel().map(drop).map_err(Refusal::Native),
            _ => Err(Refusal::Socket("the engine native serves TCP sockets only")),
        }))?;
        if native::kernel().is_ok_and(Kernel::mends_probing) {
            return Ok(());
        }
        self.no_mtu_probes()
    }

    /// Refuses sends by reference where TCP may make MTU probes, which is asked once a connection.
    fn no_mtu_probes(&mut self) -> Result<(), Refusal> {
        let kind = self.conn.endpoint.kind();
        let socket = self.conn.endpoint.as_fd();
        *self.state.mtu_probing.get_or_insert_with(|| mtu::no_mtu_probes(kind, socket))
    }

    /// Whether a zerocopy send will use just one id, as far as can be seen right before it.
    ///
    /// # Errors
    /// The error that the send would fail with.
    pub(super) fn counted(&mut self) -> Result<Result<(), Refusal>, Errno> {
        let socket = self.conn.endpoint.as_fd();
        // The application has the socket, too, "for options".
        if !sys::zerocopy_enabled(socket)? {
            return Ok(Err(Refusal::SwitchedOff));
        }
        // Sockets are put into sockmaps when they are made. What comes while sends are in flight
        // shows in their ids, which then end the connection; that is rare, and asking costs a
        // system call.
        if self.conn.endpoint.kind() == Kind::Tcp && self.state.ledger.in_flight() == 0 {
            match sys::sent_by_tcp(socket) {
                Ok(true) => {}
                Ok(false) => self.state.zerocopy = Err(Refusal::Sockmap),
                Err(e) => return Err(Errno::from_io_error(&e).unwrap_or(Errno::IO)),
            }
        }
        Ok(self.state.zerocopy)
    }

    /// The evidence that [`Engine::Auto`] goes by: most came back COPIED, and sends since the last
    /// zerocopy.
    pub(crate) fn history(&self) -> (bool, u32) {
        (self.state.recent.mostly_copied(), self.state.since_zerocopy)
    }

    /// Bytes that one zerocopy call may ask for; 0 if the limit allows none.
    pub(crate) fn memlock_call(&mut self) -> usize {
        *self.state.memlock.get_or_insert_with(rlimit::call)
    }
}
