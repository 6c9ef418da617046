//! Selectors of labels and fields. The property also runs in the API server's `tests/hostile`.
#![no_main]

#[path = "../../orchestrator/apiserver/tests/hostile/properties.rs"]
mod properties;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| properties::selectors(text));
