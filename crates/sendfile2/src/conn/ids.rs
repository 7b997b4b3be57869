//! Notification ids that others use, or may have used.

use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use rustix::io::Errno;
use rustix::net::{AddressFamily, sockopt};

use super::connection::Conn;
use crate::engine::Engine;
use crate::error::Error;
use crate::refusal::Refusal;
use crate::socket::acknowledged;
use crate::sync::lock;
use crate::sys::socket as sys;

/// Room for this many ids is made sure of before the application uses some.
const APPLICATION_SENDS: u32 = 1 << 20;

impl Conn {
    /// Lets the application make zerocopy sends of its own; `send` returns how many it made.
    pub(crate) fn application_sends<T>(
        &self,
        send: impl FnOnce(BorrowedFd<'_>) -> (T, u32),
    ) -> Result<T, Error> {
        self.endpoint.ours()?;
        let mut state = lock(&self.state);
        if state.account.aborted {
            return Err(Error::Aborted);
        }
        state.ledger.room(APPLICATION_SENDS)?;
        self.uncork(&mut state);
        let sent = catch_unwind(AssertUnwindSafe(|| send(self.endpoint.as_fd())));
        let ids = sent.as_ref().ok().map(|(_, ids)| *ids);
        match ids.filter(|ids| *ids <= APPLICATION_SENDS || state.ledger.room(*ids).is_ok()) {
            Some(ids) => state.ledger.skip(ids),
            // How many there were will never be known, or cannot be counted: none of ours may
            // follow.
            None => {
                state.ledger.skip(APPLICATION_SENDS);
                state.zerocopy = Err(Refusal::IdsUnsure);
            }
        }
        state.others = Some(state.accepted());
        drop(state);
        sent.map_or_else(|panic| resume_unwind(panic), |(result, _)| Ok(result))
    }

    /// Whether a failed datagram of `len` bytes may have used a notification id: every error that
    /// can come after the datagram was built. The others come before, and the kernel gives the id
    /// back.
    pub(super) fn maybe_used_an_id(&self, errno: Errno, len: usize) -> bool {
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
                let v4 = sockopt::socket_domain(&self.endpoint) == Ok(AddressFamily::INET);
                len <= if v4 { 65_507 } else { 65_527 }
            }
            _ => true,
        }
    }

    /// Ends the ledger, in which nothing must be in flight, and returns the id that the next
    /// zerocopy send will get. From here on the socket is not touched, whoever still knows it, and
    /// another connection may be made of it.
    pub(crate) fn retire(&self) -> Result<u32, Error> {
        self.endpoint.ours()?;
        let mut state = lock(&self.state);
        match (state.desynced, state.zerocopy) {
            (Some(desynced), _) => return Err(desynced.into()),
            (None, Err(reason @ Refusal::IdsUnsure)) => {
                drop(state);
                return Err(self.refuse(Engine::Zerocopy, reason));
            }
            _ => {}
        }
        self.uncork(&mut state);
        // What is acknowledged by now stays so.
        let _ = acknowledged::look(&self.endpoint, &state.account, &self.link.acknowledged);
        if self.ack_timestamps {
            // If the application has changed it since, it stays as it is.
            let _ = sys::stamp_acknowledgements(self.endpoint.as_fd(), false);
        }
        state.account.retired = true;
        self.endpoint.give_back();
        Ok(state.ledger.next_id())
    }
}
