//! The parts that the programs of the command `sendfile2` share.
//!
//! This is no library for others: it changes with the command, and promises nothing.
#![forbid(unsafe_code)]

pub mod connection;
pub mod net;
pub mod netns;
pub mod output;
pub mod scratch;
pub mod units;
