//! What the fuzz targets do with an input. The test `fuzz_corpus` of the crate sendfile2 does the
//! same with the seeds, and `store::tests::fuzz` of sendfile2-cache with those of `store_region`.

pub mod cache_policy;
pub mod errqueue_decode;
pub mod ledger_ops;
pub mod store_region;
