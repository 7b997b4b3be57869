//! The counters of the preload shim, as they lie in the memory of a program that has it.
//!
//! They are always kept, and found from outside by the text that they begin with: who asks of a
//! process needs no help of its, nor a file or a descriptor in it.

use std::sync::atomic::{AtomicU64, Ordering};

/// The bytes that the counters begin with. Another layout has others.
const BEGIN: [u8; 16] = *b"sendfile2 shim 1";

/// The number of counts.
const COUNTS: usize = 8;

/// A thing that the shim counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Count {
    /// Calls from a file to a socket that returned when the file could be overwritten.
    Safe = 0,
    /// The bytes that these have sent.
    SafeBytes = 1,
    /// Calls that give a notification.
    Notified = 2,
    /// The bytes that these have sent.
    NotifiedBytes = 3,
    /// Calls passed on since the mode is `off`.
    Off = 4,
    /// Calls passed on since the output is no socket.
    NoSocket = 5,
    /// Calls passed on since the input has no pages of its own.
    NoPages = 6,
    /// Calls to a socket that failed, a full one among them.
    Failed = 7,
}

/// The mode, and what was counted in it.
#[derive(Debug)]
#[repr(C)]
pub struct Counters {
    begin: [u8; 16],
    mode: AtomicU64,
    counts: [AtomicU64; COUNTS],
}

/// The values of a program's counters when they were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    mode: u64,
    counts: [u64; COUNTS],
}

impl Counters {
    /// Makes counters that are 0, of the mode number 0.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "it is for a static")]
    pub const fn new() -> Self {
        let counts = [const { AtomicU64::new(0) }; COUNTS];
        Counters { begin: BEGIN, mode: AtomicU64::new(0), counts }
    }

    /// Returns the number of the mode.
    #[must_use]
    pub fn mode(&self) -> u64 {
        self.mode.load(Ordering::Relaxed)
    }

    /// Sets the number of the mode.
    pub fn set_mode(&self, mode: u64) {
        self.mode.store(mode, Ordering::Relaxed);
    }

    /// Adds to a count.
    pub fn add(&self, count: Count, more: u64) {
        self.counts[count as usize].fetch_add(more, Ordering::Relaxed);
    }

    /// Begins anew, in a forked child.
    pub fn clear(&self) {
        for count in &self.counts {
            count.store(0, Ordering::Relaxed);
        }
    }

    /// Returns what was counted.
    #[must_use]
    pub fn read(&self) -> Counted {
        let counts = std::array::from_fn(|i| self.counts[i].load(Ordering::Relaxed));
        Counted { mode: self.mode(), counts }
    }
}

impl Counted {
    /// Finds the counters in a copy of the shim's memory.
    #[must_use]
    pub fn find(memory: &[u8]) -> Option<Self> {
        let at = memory.windows(BEGIN.len()).position(|bytes| bytes == BEGIN)?;
        let numbers = memory.get(at + BEGIN.len()..)?.chunks_exact(size_of::<u64>());
        let mut numbers = numbers.filter_map(|bytes| bytes.try_into().ok().map(u64::from_ne_bytes));
        let mode = numbers.next()?;
        let mut counts = [0; COUNTS];
        for count in &mut counts {
            *count = numbers.next()?;
        }
        Some(Counted { mode, counts })
    }

    /// Returns the number of the mode.
    #[must_use]
    pub fn mode(&self) -> u64 {
        self.mode
    }

    /// Returns a count.
    #[must_use]
    pub fn of(&self, count: Count) -> u64 {
        self.counts[count as usize]
    }

    /// Returns whether `sendfile` was called at all.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.counts.iter().any(|count| *count > 0)
    }
}

impl std::fmt::Display for Counted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.is_any() {
            return f.write_str("no calls of sendfile");
        }
        let mut between = "";
        for (count, bytes, what) in [
            (Count::Safe, Some(Count::SafeBytes), "made safe"),
            (Count::Notified, Some(Count::NotifiedBytes), "with a notification"),
            (Count::Off, None, "passed on as SENDFILE2_MODE is off"),
            (Count::NoSocket, None, "passed on as they are not to a socket"),
            (Count::NoPages, None, "passed on as the file has no pages"),
            (Count::Failed, None, "failed or found the socket full"),
        ] {
            let number = self.of(count);
            if number == 0 {
                continue;
            }
            write!(f, "{between}{number} {what}")?;
            if let Some(bytes) = bytes {
                write!(f, " ({} bytes)", self.of(bytes))?;
            }
            between = ", ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_in_memory_as_they_were() {
        static COUNTERS: Counters = Counters::new();
        COUNTERS.set_mode(2);
        COUNTERS.add(Count::Safe, 3);
        COUNTERS.add(Count::SafeBytes, 1 << 40);
        COUNTERS.add(Count::Failed, 1);
        let mut memory = vec![7; 24];
        // SAFETY: they are plain numbers, and nobody changes them now.
        memory.extend_from_slice(unsafe {
            std::slice::from_raw_parts((&raw const COUNTERS).cast(), size_of::<Counters>())
        });
        memory.extend([9; 5]);
        let counted = Counted::find(&memory).expect("they are there");
        assert_eq!(counted, COUNTERS.read());
        assert_eq!((counted.mode(), counted.of(Count::SafeBytes)), (2, 1 << 40));
        let told = "3 made safe (1099511627776 bytes), 1 failed or found the socket full";
        assert_eq!(counted.to_string(), told);
        assert_eq!(Counted::find(&memory[..memory.len() - 6]), None, "cut off");
        assert_eq!(Counted::find(&memory[25..]), None, "no begin");
        COUNTERS.clear();
        assert_eq!(COUNTERS.read().to_string(), "no calls of sendfile");
    }
}
