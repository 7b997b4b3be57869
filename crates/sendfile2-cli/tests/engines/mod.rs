//! The engines that can be tried on this machine.
#![allow(dead_code, unreachable_pub)]

use sendfile2::Engine;
use sendfile2::probe::Availability;

/// All engines, without `uring` where `io_uring` cannot be used: the skip is printed.
pub fn here() -> Vec<Engine> {
    let mut engines = sendfile2::probe::machine().engines;
    engines.retain(|state| {
        let there = matches!(state.availability, Availability::Available(_));
        let skipped = state.engine == Engine::Uring && !there;
        if skipped {
            println!("SKIP: no io_uring: {}", state.availability);
        }
        !skipped
    });
    engines.into_iter().map(|state| state.engine).collect()
}
