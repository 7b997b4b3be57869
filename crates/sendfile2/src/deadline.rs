//! Until when to wait.

use std::time::{Duration, Instant};

/// The time at which a wait gives up.
///
/// Every call that blocks takes `impl Into<Deadline>`: an [`Instant`], a [`Duration`] from now on,
/// or [`NEVER`](Self::NEVER).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// No deadline: the wait goes on for as long as it takes.
    pub const NEVER: Deadline = Deadline(None);

    /// The time itself; `None` if it is never.
    #[must_use]
    pub const fn instant(self) -> Option<Instant> {
        self.0
    }

    /// The time that is left; [`Duration::MAX`] if the deadline is never.
    #[must_use]
    pub fn remaining(self) -> Duration {
        self.0.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()))
    }

    /// Whether no time is left.
    #[must_use]
    pub fn has_passed(self) -> bool {
        self.remaining().is_zero()
    }
}

impl From<Instant> for Deadline {
    fn from(at: Instant) -> Self {
        Deadline(Some(at))
    }
}

impl From<Duration> for Deadline {
    /// From now on. A time that no clock counts to, as with [`Duration::MAX`], is never.
    fn from(time: Duration) -> Self {
        Deadline(Instant::now().checked_add(time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_no_clock_counts_to_is_never() {
        assert_eq!(Deadline::from(Duration::MAX), Deadline::NEVER);
        assert_eq!(Deadline::NEVER.remaining(), Duration::MAX);
        assert!(!Deadline::NEVER.has_passed());
        assert!(Deadline::from(Duration::ZERO).has_passed());
        assert!(!Deadline::from(Duration::from_secs(60)).has_passed());
    }
}
