//! Runs the seeds of the fuzz target, on stable Rust.

use crate::store::fuzzing::region;

#[test]
fn the_seeds_of_store_region_hold() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/store_region");
    let mut seeds = 0;
    for file in std::fs::read_dir(directory).unwrap() {
        let seed = std::fs::read(file.unwrap().path()).unwrap();
        region(&seed);
        for end in (0..seed.len()).step_by(7) {
            region(&seed[..end]);
        }
        for bit in 0..seed.len() * 8 {
            let mut flipped = seed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            region(&flipped);
        }
        seeds += 1;
    }
    assert!(seeds >= 3, "only {seeds} seeds in {directory}");
}
