//! What the fuzz targets do with an input. The test `fuzz_corpus` of the crate sendfile2 does the
//! same with the seeds.

pub mod errqueue_decode;
pub mod ledger_ops;
