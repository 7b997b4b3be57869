//! The number of connections that send what is leased, of late.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// The connections that are busy with what is leased, from which on `sendfile(2)` costs less than
/// copies to peers of this host, which then leave the processor's cache before they are read.
const MANY_STREAMS: usize = 8;

/// The sends of all connections that are looked at together. A server may make some hundred on one
/// connection before it comes to the next.
const WINDOW: u64 = 4096;

static STREAMS: Streams = Streams::new();

/// The connections that have sent within a window. A connection that is open and idle is not
/// counted.
#[derive(Debug)]
struct Streams {
    sends: AtomicU64,
    /// Those in this window so far, and in the one before.
    now: AtomicUsize,
    before: AtomicUsize,
}

/// A connection, as it is counted.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    /// The last window that it has sent in; from 1 on.
    window: AtomicU64,
}

impl Streams {
    const fn new() -> Self {
        let (now, before) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Streams { sends: AtomicU64::new(0), now, before }
    }

    fn count(&self, stream: &Stream) {
        let sends = self.sends.fetch_add(1, Ordering::Relaxed);
        if sends % WINDOW == 0 {
            self.before.store(self.now.swap(0, Ordering::Relaxed), Ordering::Relaxed);
        }
        let window = sends / WINDOW + 1;
        if stream.window.swap(window, Ordering::Relaxed) != window {
            self.now.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn busy(&self) -> usize {
        self.now.load(Ordering::Relaxed).max(self.before.load(Ordering::Relaxed))
    }
}

impl Stream {
    /// Counts a send of the connection.
    pub(crate) fn sends(&self) {
        STREAMS.count(self);
    }
}

/// Whether so many connections are busy that `sendfile(2)` costs less than a copy.
pub(crate) fn are_many() -> bool {
    STREAMS.busy() >= MANY_STREAMS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_that_are_idle_do_not_count() {
        let (streams, all) = (Streams::new(), [(); 32].map(|()| Stream::default()));
        // In turns, and in bursts.
        for burst in [1, 100] {
            for stream in &all {
                (0..burst).for_each(|_| streams.count(stream));
            }
            assert_eq!(streams.busy(), 32);
        }
        for _ in 0..2 * WINDOW {
            streams.count(&all[0]);
        }
        assert_eq!(streams.busy(), 1);
    }
}
