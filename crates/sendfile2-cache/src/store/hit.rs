//! A stored response that was found.

use std::ops::Range;

use bytes::Bytes;
use sendfile2::guard::Lease;

use super::key::State;

/// A stored response, which stays as it is while this is there.
#[derive(Debug, Clone)]
pub struct Hit {
    pub(super) state: State,
    pub(super) head: Bytes,
    pub(super) lease: Lease,
    pub(super) body: Range<u64>,
}

impl Hit {
    /// The policy's state.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// The head, as it was stored.
    #[must_use]
    pub fn head(&self) -> Bytes {
        self.head.clone()
    }

    /// The length of the body, in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.body.end - self.body.start
    }

    /// Whether the body is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.body.is_empty()
    }

    /// A lease that covers the body, and where in the store's file that is.
    #[must_use]
    pub fn lease(&self) -> (Lease, Range<u64>) {
        (self.lease.clone(), self.body.clone())
    }
}
