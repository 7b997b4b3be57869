//! Errors of the disk that the kernel tells of whichever region is synced next.

use crate::store::layout::Sizes;
use crate::store::state::{Phase, State};

#[test]
fn a_region_is_given_up_when_the_disk_fails_for_it_time_and_again() {
    let mut state = State::new(Sizes::of(4 << 30, 8 << 20).unwrap());
    let before = state.generation;
    for n in 1..=2 {
        state.suspect(5);
        assert_eq!(state.region(5).phase, Phase::Sealed, "{n}");
        assert_eq!(state.region(5).generation, before + n, "all others come first");
    }
    assert_eq!(state.counters.failed, 0);
    state.suspect(5);
    assert_eq!((state.region(5).phase, state.counters.failed), (Phase::Failed, 1));
}
