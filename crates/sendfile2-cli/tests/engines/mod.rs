//! The engines that can be tried on this machine.
#![allow(dead_code, unreachable_pub)]

use sendfile2::detach::{Detacher, NotDetached};
use sendfile2::probe::Availability;
use sendfile2::{Engine, Source};

/// All engines, without `uring` where `io_uring` cannot be used, `native` where the kernel has
/// nothing to offer to it, and `sendfile` where the files of tests cannot be detached: the skip is
/// printed.
pub fn here() -> Vec<Engine> {
    let mut engines = sendfile2::probe::machine().engines;
    engines.retain(|state| {
        let there = matches!(state.availability, Availability::Available(_));
        let skipped = matches!(state.engine, Engine::Uring | Engine::Native) && !there;
        if skipped {
            println!("SKIP: the engine {}: {}", state.engine, state.availability);
        }
        !skipped
    });
    let mut engines: Vec<_> = engines.into_iter().map(|state| state.engine).collect();
    if let Err(why) = detaches() {
        println!("SKIP: the engine sendfile: {why}");
        engines.retain(|engine| *engine != Engine::Sendfile);
    }
    engines
}

/// Those that send files without a lease.
pub fn without_lease() -> Vec<Engine> {
    let mut engines = here();
    engines.retain(|engine| *engine != Engine::Sendfile);
    engines
}

fn detaches() -> Result<(), NotDetached> {
    let mut file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).expect("a file");
    std::io::Write::write_all(&mut file, &[0; 4096]).expect("written");
    let source = Source::new(file).expect("a file");
    Detacher::new(&source)?.detach(&(0..4096)).map(drop)
}
