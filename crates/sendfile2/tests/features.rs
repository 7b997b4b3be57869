//! A library that was built without some of its features: it says so, and serves what is left.
#![allow(clippy::unwrap_used)]

mod common;

use common::{assert_same, deadline, file, pattern, read, sender, source};
use sendfile2::probe::Availability;
use sendfile2::{Engine, Error, NativeUnavailable, Refusal, SendFlags};

fn availability(engine: Engine) -> String {
    let engines = sendfile2::probe::machine().engines;
    let state = engines.into_iter().find(|state| state.engine == engine).unwrap();
    match state.availability {
        Availability::Refused(why) => why,
        other => other.to_string(),
    }
}

#[test]
fn an_engine_that_was_not_built_is_a_name_and_says_why() {
    let without = "this build of the library has no";
    for (engine, built) in
        [(Engine::Native, cfg!(feature = "native")), (Engine::Uring, cfg!(feature = "uring"))]
    {
        assert_eq!(engine.name().parse::<Engine>().unwrap(), engine);
        let told = availability(engine);
        assert_eq!(told.starts_with(without), !built, "{engine}: {told}");
    }
    let (tx, _peer) = common::tcp();
    let mut sender = sender(tx, Engine::Native);
    let answer = sender.try_send_file(&source(&file(1, 1000)), 0..1000, SendFlags::NONE);
    let not_built = Refusal::Native(NativeUnavailable::NotBuilt);
    let refused = matches!(&answer, Err(Error::Refused { reason, .. }) if *reason == not_built);
    assert_eq!(refused, !cfg!(feature = "native"), "{answer:?}");
}

#[test]
fn the_others_serve() {
    let file = file(1, 100_000);
    for engine in [Engine::Copy, Engine::Zerocopy, Engine::Auto] {
        let (tx, mut peer) = common::tcp();
        let mut sender = sender(tx, engine);
        let sent =
            sender.send_file(&source(&file), 0..100_000, SendFlags::NONE, deadline()).unwrap();
        assert_same(&read(&mut peer, 100_000), &pattern(1, 0..100_000));
        sent.ticket.wait_released(deadline()).unwrap();
    }
}
