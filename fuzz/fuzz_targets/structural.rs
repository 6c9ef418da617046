//! Any JSON as a schema, on any JSON: pruning, defaults and validation keep their laws.
#![no_main]

use fairlead_apiserver::crd::{Schema, check, definition};
use fairlead_schema::CustomSchema as _;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

fuzz_target!(|input: (&str, &str)| {
    let (Ok(schema), Ok(mut object)) = (serde_json::from_str::<Value>(input.0), serde_json::from_str::<Value>(input.1))
    else {
        return;
    };
    check::schema(&schema, "schema", true);
    let mut crd = json!({ "spec": { "versions": [{ "name": "v1", "storage": true, "schema": { "openAPIV3Schema": schema } }] } });
    definition::apply_defaults(&mut crd);
    definition::validate(None, &crd);
    let read = Schema::new(&schema, &Value::Null);
    read.prune(&mut object);
    assert!(read.prune(&mut object.clone()).is_empty());
    read.default(&mut object);
    let mut twice = object.clone();
    read.default(&mut twice);
    assert_eq!(twice, object);
    read.validate(Some(&twice), &object);
});
