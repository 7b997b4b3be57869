//! Tests of the store that need to see inside it.

mod disk;
mod fuzz;
mod memory;
pub(in crate::store) mod power;
mod small;
mod suspect;
