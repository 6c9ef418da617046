//! Objects of every kind, made up from a seed, from field checks to the cells of a Table. The property also runs in the API server's `tests/hostile`.
#![no_main]

#[path = "../../orchestrator/apiserver/tests/hostile/properties.rs"]
mod properties;

use libfuzzer_sys::fuzz_target;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

fuzz_target!(|seed: u64| {
    let mut random = StdRng::seed_from_u64(seed);
    let all = properties::resources();
    let resource = &all[random.random_range(0..all.len())];
    let object = properties::made_up(resource, &mut random);
    properties::object(resource, object);
});
