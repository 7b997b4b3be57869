//! The policy of a shared cache, by RFC 9111: what may be stored, what may be sent, and what must be
//! asked for anew.
//!
//! It does no input or output and has no clock: times are parameters, in seconds since 1970. What it
//! knows of a stored response fits into the 24 bytes of [`State`](crate::store::State), by which a
//! hit is judged without its headers being read.
//!
//! Written here, since what there is takes directives for others if their case differs, adds up
//! numbers without a limit, or keeps kilobytes a response.

mod control;
mod date;
mod freshness;
mod head;
mod invalidation;
mod known;
mod partial;
mod reuse;
mod status;
mod storing;
mod validation;
mod vary;

#[cfg(test)]
mod tests;

pub use control::{RequestControl, ResponseControl};
pub use date::parse_date;
pub use freshness::{MOST, Times};
pub use head::{Stored, connection_fields, join_cookies, strip_hop_by_hop};
pub use invalidation::{invalidated, is_safe, resolved};
pub use known::{Kind, Known};
pub use partial::{Part, completes, content_range};
pub use reuse::Reuse;
pub use status::CacheStatus;
pub use storing::{Exchange, Refusal};
pub use validation::{Validated, ask_if_changed, head_confirms, merge, without_conditions};
pub use vary::{Vary, favourite_language, normalized};
