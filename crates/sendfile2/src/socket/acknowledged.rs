//! The bytes that the peer's TCP has acknowledged.

use std::fmt;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::account::Account;
use super::endpoint::Endpoint;
use super::kind::Kind;
use crate::deadline::Deadline;
use crate::error::Error;
use crate::sys::socket as sys;

/// Whether the peer's TCP has the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Acknowledgement {
    /// Not yet.
    Pending,
    /// The peer's TCP has acknowledged all of them. Its application may not have read them.
    Acknowledged,
    /// No answer, now or later: the connection was aborted, reset or closed, or it is no TCP
    /// connection.
    Unknowable,
}

impl fmt::Display for Acknowledgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Acknowledgement::Pending => "pending",
            Acknowledgement::Acknowledged => "acknowledged",
            Acknowledgement::Unknowable => "unknowable",
        })
    }
}

/// Asks how many bytes, of those that were accepted, the peer has acknowledged, and keeps the
/// answer in `known`: what was acknowledged once stays so.
///
/// SIOCOUTQ counts what is behind a byte, too, so at most that much is not acknowledged. After an
/// abort the counters mean nothing and are not asked.
pub(crate) fn look(
    endpoint: &Endpoint,
    account: &Account,
    known: &AtomicU64,
) -> Result<u64, Error> {
    if !account.is_over() && endpoint.kind() == Kind::Tcp {
        let left = sys::unacknowledged(endpoint)
            .map_err(|cause| Error::Socket { op: "ioctl(SIOCOUTQ)", cause })?;
        known.fetch_max(account.counters.accepted.saturating_sub(left), Ordering::Relaxed);
    }
    Ok(known.load(Ordering::Relaxed))
}

/// Asks whether the peer has acknowledged the first `end` bytes that were accepted.
pub(crate) fn ask(
    endpoint: &Endpoint,
    account: &Account,
    known: &AtomicU64,
    end: u64,
) -> Result<Acknowledgement, Error> {
    let tcp = endpoint.kind() == Kind::Tcp;
    // Asked first: what was not acknowledged when it was over never will be.
    let over = account.is_over()
        || !tcp
        || sys::tcp_state(endpoint.as_fd()).map_err(Error::socket("TCP_INFO"))?
            == sys::TcpState::Closed;
    let acknowledged = look(endpoint, account, known)?;
    Ok(if acknowledged >= end && tcp {
        Acknowledgement::Acknowledged
    } else if over {
        Acknowledgement::Unknowable
    } else {
        Acknowledgement::Pending
    })
}

/// Times at which a wait for an acknowledgement looks by itself.
pub(crate) struct PollBackoff {
    pause: Duration,
    most: Duration,
}

impl PollBackoff {
    /// More and more rarely; `told` where something is expected to wake the waiter.
    pub(crate) fn new(told: bool) -> Self {
        let millis = Duration::from_millis;
        if told {
            PollBackoff { pause: millis(10), most: millis(1000) }
        } else {
            PollBackoff { pause: Duration::from_micros(100), most: millis(10) }
        }
    }

    /// Returns the next time.
    ///
    /// # Errors
    /// [`Error::Deadline`].
    pub(crate) fn next(&mut self, deadline: Deadline) -> Result<Deadline, Error> {
        if deadline.has_passed() {
            return Err(Error::Deadline("the send was not acknowledged"));
        }
        let next = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(self.most);
        Ok(deadline.instant().map_or(next, |at| at.min(next)).into())
    }
}
