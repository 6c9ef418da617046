//! Any text as a rule, on any JSON: neither a panic nor an end of time.
#![no_main]

use fairlead_apiserver::crd::Schema;
use fairlead_schema::CustomSchema as _;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

fuzz_target!(|input: (&str, &str)| {
    let (rule, object) = input;
    let object: Value = serde_json::from_str(object).unwrap_or_else(|_| json!({ "a": [1, "x", { "b": null }] }));
    let rules = json!([{ "rule": rule, "messageExpression": rule }]);
    let schema = json!({
        "type": "object", "x-kubernetes-preserve-unknown-fields": true, "x-kubernetes-validations": rules,
        "properties": { "a": { "type": "array", "items": { "x-kubernetes-preserve-unknown-fields": true } } },
    });
    let schema = Schema::new(&schema, &Value::Null);
    let first = schema.validate(None, &object);
    assert_eq!(schema.validate(None, &object), first);
    schema.validate(Some(&object), &object);
});
