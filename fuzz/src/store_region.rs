//! Any bytes as a region of the cache's store, with the hashes that they are to have.
//!
//! Input: the number of bytes at the region's beginning (2 bytes, little-endian), these, and those
//! at its end.

pub use sendfile2_cache::store::fuzzing::region as run;
