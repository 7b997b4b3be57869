//! Sending one part on a connection: by reference, or by a copy.

pub(crate) mod copy;
pub(crate) mod zerocopy;
