//! Tests of the store that need to see inside it.

pub(in crate::store) mod power;
