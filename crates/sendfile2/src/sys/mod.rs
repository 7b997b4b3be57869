//! System calls and kernel structures, one concept a file.
//!
//! This is the only module of the crate that holds `unsafe`. Everything it exports is safe: sizes
//! and addresses are checked here, not by the callers. What rustix already offers safely (epoll,
//! `pread`, socket options, `connect_unspec`) is used from there and not repeated.
#![allow(unsafe_code)]

pub(crate) mod device;
pub(crate) mod errqueue;
pub(crate) mod mapping;
pub(crate) mod patched;
pub(crate) mod socket;
#[cfg(feature = "tokio")]
pub(crate) mod tokio;
pub(crate) mod uring;
