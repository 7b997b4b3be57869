//! The seeds of the fuzz target of this crate, on stable Rust.

#[expect(unreachable_pub, reason = "it is public in the fuzz crate")]
#[path = "../../../fuzz/src/cache_policy.rs"]
mod cache_policy;

use std::path::Path;

#[test]
fn the_seeds_of_cache_policy_hold() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/cache_policy");
    let seeds: Vec<_> = std::fs::read_dir(seeds).expect("the seeds").collect();
    assert!(seeds.len() >= 3, "the corpus is missing seeds");
    for seed in seeds {
        let path = seed.expect("an entry").path();
        println!("{}", path.display());
        let seed = std::fs::read(path).expect("a seed");
        cache_policy::run(&seed);
        for end in 0..seed.len() {
            cache_policy::run(&seed[..end]);
        }
        for bit in 0..seed.len() * 8 {
            let mut flipped = seed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            cache_policy::run(&flipped);
        }
    }
}
