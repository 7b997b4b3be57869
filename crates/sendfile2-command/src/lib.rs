//! The parts that the programs of the command `sendfile2` share.
//!
//! This is no library for others: it changes with the command, and promises nothing.
#![forbid(unsafe_code)]

pub mod args;
pub mod child;
pub mod connection;
pub mod method;
pub mod net;
pub mod netns;
pub mod output;
pub mod program;
pub mod scratch;
pub mod units;
