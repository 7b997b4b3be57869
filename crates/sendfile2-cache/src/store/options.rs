//! The options of a store, and the figures that it tells of itself.

use std::path::PathBuf;

/// The options of a store.
#[derive(Debug, Clone)]
pub struct Options {
    /// The file, or block device; `None` is a temporary file that goes with the process.
    pub path: Option<PathBuf>,
    /// The bytes that it may have. A store that exists keeps its own.
    pub size: u64,
    /// The bytes of a region: 2 to 16 MiB, a multiple of 2 MiB. A store that exists keeps its own.
    pub region: u64,
    /// The request at which a response is stored.
    pub admission: Admission,
}

impl Default for Options {
    fn default() -> Self {
        Options { path: None, size: 1 << 30, region: 8 << 20, admission: Admission::Always }
    }
}

/// The request at which a response is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Admission {
    /// The first.
    #[default]
    Always,
    /// The second one, as far as a small filter remembers the first: what is asked for once only
    /// does not displace what is asked for often.
    SecondRequest,
}

/// The outcome of opening a store.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Opened {
    /// Whether it was made anew.
    pub made: bool,
    /// Responses that are there again.
    pub recovered: u64,
    /// Regions that were being filled, and were scanned.
    pub scanned: u64,
    /// The parts that were dropped, and why.
    pub dropped: Vec<Dropped>,
}

/// A part of the store that is not used any more, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// The region; `None` is the list of bans, and with it all that is older than it.
    pub region: Option<u32>,
    /// The reason.
    pub why: String,
}

/// The counters of a store, since it was opened; those in bytes and objects are of now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Responses that are stored now.
    pub objects: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Bytes that the store can have.
    pub capacity: u64,
    /// Lookups that found something.
    pub hits: u64,
    /// Lookups that found nothing.
    pub misses: u64,
    /// Responses stored.
    pub stored: u64,
    /// Responses whose regions were overwritten.
    pub evicted: u64,
    /// Responses moved out of a region before it was overwritten.
    pub reinserted: u64,
    /// Regions that were taken to be filled anew.
    pub recycled: u64,
    /// Recycled regions that were erased; the others were detached or waited for.
    pub erased: u64,
    /// Leases of bodies that were ended, since no other region could be taken: their clients, who had
    /// not read them, were cut off.
    pub revoked: u64,
    /// Bytes of overwritten regions that are kept in memory for clients who are being sent them.
    pub kept_aside: u64,
    /// Regions that are not used any more, since reading or writing them failed.
    pub failed: u64,
    /// Bans in force.
    pub bans: u64,
    /// Responses dropped since their bytes were not what was stored.
    pub damaged: u64,
}

/// The state of one region, for a picture of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct RegionState {
    /// The number of times that the store had taken a region when it took this one; 0 is never.
    pub generation: u64,
    /// Bytes that were written to it.
    pub used: u64,
    /// Bytes of bodies in it that are still stored.
    pub live: u64,
    /// Responses in it that are still stored.
    pub objects: u32,
    /// Its usefulness: the sum of min(hits, 3) × length.
    pub useful: u64,
    /// Whether it is being filled.
    pub open: bool,
    /// Whether reading or writing it failed: it is not used any more.
    pub failed: bool,
}
