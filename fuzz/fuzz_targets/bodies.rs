//! Bodies in JSON, YAML and protobuf, from reading to validation; the first byte picks the kind. The property also runs in the API server's `tests/hostile`.
#![no_main]

#[path = "../../orchestrator/apiserver/tests/hostile/properties.rs"]
mod properties;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| properties::body(bytes));
