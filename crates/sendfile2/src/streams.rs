//! The number of connections that send what is leased.

use std::sync::atomic::{AtomicUsize, Ordering};

/// The connections that send what is leased of files that detach, from which on `sendfile(2)` costs
/// less than copies to peers of this host, which then leave the processor's cache before they are
/// read.
const MANY_STREAMS: usize = 8;

static STREAMS: AtomicUsize = AtomicUsize::new(0);

/// One such connection, until it is dropped.
#[derive(Debug)]
pub(crate) struct Stream(());

impl Stream {
    pub(crate) fn new() -> Self {
        STREAMS.fetch_add(1, Ordering::Relaxed);
        Stream(())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        STREAMS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether there are so many that `sendfile(2)` costs less than a copy.
pub(crate) fn are_many() -> bool {
    STREAMS.load(Ordering::Relaxed) >= MANY_STREAMS
}
