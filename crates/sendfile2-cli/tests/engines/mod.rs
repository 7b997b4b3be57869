//! The engines that can be tried on this machine.
#![allow(dead_code, unreachable_pub)]

use sendfile2::Engine;
use sendfile2::probe::Availability;

/// All engines that send files without a lease, without `uring` where `io_uring` cannot be used, and `native` where the kernel has
/// nothing to offer to it: the skip is printed.
pub fn here() -> Vec<Engine> {
    let mut engines = sendfile2::probe::machine().engines;
    engines.retain(|state| state.engine != Engine::Sendfile);
    engines.retain(|state| {
        let there = matches!(state.availability, Availability::Available(_));
        let skipped = matches!(state.engine, Engine::Uring | Engine::Native) && !there;
        if skipped {
            println!("SKIP: the engine {}: {}", state.engine, state.availability);
        }
        !skipped
    });
    engines.into_iter().map(|state| state.engine).collect()
}
