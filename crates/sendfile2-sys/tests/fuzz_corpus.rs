//! Runs the seeds of the fuzz targets, through the targets' own functions.
#![cfg(target_pointer_width = "64")]

#[expect(unreachable_pub, reason = "it is public in the fuzz crate")]
#[path = "../../../fuzz/src/errqueue_decode.rs"]
mod errqueue_decode;
#[expect(unreachable_pub, reason = "it is public in the fuzz crate")]
#[path = "../../../fuzz/src/ledger_ops.rs"]
mod ledger_ops;

/// Runs each seed of a target, each beginning of it, and it with each bit flipped; at least `least` of them must be there.
fn run(target: &str, least: usize, body: fn(&[u8])) {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/").to_owned() + target;
    let mut seeds = 0;
    for file in std::fs::read_dir(&directory).expect(&directory) {
        let file = file.expect(&directory).path();
        println!("{}", file.display());
        let seed = std::fs::read(&file).expect("a seed is readable");
        body(&seed);
        for end in 0..seed.len() {
            body(&seed[..end]);
        }
        for bit in 0..seed.len() * 8 {
            let mut flipped = seed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            body(&flipped);
        }
        seeds += 1;
    }
    assert!(seeds >= least, "only {seeds} seeds in {directory}");
}

#[test]
fn the_seeds_of_errqueue_decode_hold() {
    run("errqueue_decode", 10, errqueue_decode::run);
}

#[test]
fn the_seeds_of_ledger_ops_hold() {
    run("ledger_ops", 8, ledger_ops::run);
}
