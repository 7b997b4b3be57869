//! # sendfile2: send files without a copy, and know when they may be overwritten
//!
//! `sendfile(2)` returns before the bytes have left.
#![cfg(target_os = "linux")]
#![doc(test(attr(deny(warnings))))]

mod conn;
mod engine;
mod error;
pub mod guard;
mod holder;
pub mod ledger;
mod park;
pub mod reaper;
mod sender;
mod source;
mod sys;
mod ticket;

pub use conn::{Counters, Notice};
pub use engine::{Choice, Engine, Limit, Refusal, UnknownEngine, Why};
pub use error::Error;
pub use holder::InFlight;
pub use sender::{Options, Sender, Sent, Stopped, Transfer};
pub use source::{Identity, Source, Unmappable};
pub use sys::socket::unacknowledged;
pub use ticket::{Acknowledgement, Parcel, Status, Ticket};

/// Error-queue messages: their decoder, and what it gives.
pub mod errqueue {
    pub use crate::sys::errqueue::{
        CODE_ZEROCOPY_COPIED, DecodeError, Entry, ExtendedError, Foreign, ORIGIN_ZEROCOPY,
        PAYLOAD_MAX, decode,
    };
}
