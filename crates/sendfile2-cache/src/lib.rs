//! The parts of a caching reverse proxy.
//!
//! Stored responses are in one file, whose regions are overwritten in place while clients are still
//! being sent what was there: each client gets what it was promised, and no writer waits for one.

pub mod policy;
pub mod proxy;
pub mod store;

pub use proxy::Cache;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
