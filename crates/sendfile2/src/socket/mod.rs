//! A socket that is sent on, whoever sends: its kind and its ends, the account of what was sent,
//! and what the peer has acknowledged.

pub(crate) mod account;
pub(crate) mod acknowledged;
pub(crate) mod endpoint;
pub(crate) mod kind;
