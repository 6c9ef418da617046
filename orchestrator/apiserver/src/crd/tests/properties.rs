//! Whatever a schema and an object are: no panic, no end of time, and the laws between the steps.

use crate::crd::{Schema, cel::Program, check, pattern};
use fairlead_schema::CustomSchema as _;
use proptest::prelude::*;
use serde_json::{Value, json};

/// Fields come from a few names, so that schemas and objects meet.
fn name() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "c", "spec", "metadata", "kind", "apiVersion", "x-y"]).prop_map(str::to_owned)
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3i64..5).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|it| json!(it)),
        prop::sample::select(vec!["", "a", "1h", "2024-01-01T00:00:00Z", "10.0.0.1"]).prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(name(), inner, 0..4).prop_map(|it| json!(it)),
        ]
    })
}

fn rule() -> impl Strategy<Value = Value> {
    let sources = [
        "self.a == 1",
        "has(self.a)",
        "self.size() > 0",
        "self.all(x, x != 'a')",
        "self == oldSelf",
        "self.b.exists(x, x == self.c)",
        "self.spec.?a.orValue(1) == 1",
        "string(self) == ''",
        "self.map(x, x).size() < 3",
        "(",
        "self.metadata.name != ''",
    ];
    prop::sample::select(sources.to_vec())
        .prop_map(|source| json!({ "rule": source, "messageExpression": "'no ' + self.a" }))
}

/// A node of a schema: mostly sound, now and then nonsense.
fn schema() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        (
            prop::sample::select(vec!["string", "integer", "number", "boolean"]),
            value()
        )
            .prop_map(|(ty, default)| json!({ "type": ty, "default": default })),
        prop::sample::select(vec![
            json!({ "type": "string", "pattern": "^a", "maxLength": 3 }),
            json!({ "type": "string", "format": "duration", "minLength": 1 }),
            json!({ "type": "string", "format": "date-time", "nullable": true }),
            json!({ "type": "string", "enum": ["a", "b"] , "default": "a" }),
            json!({ "type": "integer", "minimum": 0, "maximum": 3, "multipleOf": 2 }),
            json!({ "x-kubernetes-int-or-string": true }),
            json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true }),
            json!({ "type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true }),
            json!({}),
            json!({ "type": 5, "properties": [], "items": "x", "enum": 3, "required": "a" }),
        ]),
        value(),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            (prop::collection::btree_map(name(), inner.clone(), 0..4), prop::collection::vec(name(), 0..2), prop::collection::vec(rule(), 0..2))
                .prop_map(|(properties, required, rules)| json!({
                    "type": "object", "properties": properties, "required": required, "x-kubernetes-validations": rules,
                })),
            inner.clone().prop_map(|it| json!({ "type": "object", "additionalProperties": it, "maxProperties": 2 })),
            (inner.clone(), prop::sample::select(vec!["atomic", "set", "map"])).prop_map(|(items, kind)| json!({
                "type": "array", "items": items, "x-kubernetes-list-type": kind, "x-kubernetes-list-map-keys": ["a"], "maxItems": 3,
            })),
            prop::collection::vec(inner.clone(), 0..3).prop_map(|all| json!({ "type": "object", "anyOf": all })),
            (inner.clone(), inner).prop_map(|(a, b)| json!({ "oneOf": [a.clone(), b.clone()], "not": a, "allOf": [b] })),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn anything_is_judged_by_anything(schema in schema(), old in value(), new in value()) {
        check::schema(&schema, "s", true);
        check::structural(&schema, "s");
        let read = Schema::new(&schema, &Value::Null);
        let mut object = new.clone();
        read.prune(&mut object);
        prop_assert!(read.prune(&mut object.clone()).is_empty(), "pruning twice finds nothing: {schema} {object}");
        read.default(&mut object);
        let mut twice = object.clone();
        read.default(&mut twice);
        prop_assert_eq!(&twice, &object, "defaults are complete at once: {}", schema);
        read.validate(Some(&old), &object);
        let faults = read.validate(None, &object);
        prop_assert_eq!(read.validate(None, &object), faults, "the same judgement each time");
        // What stays as it is may stay.
        let unchanged: Vec<_> = read
            .validate(Some(&object), &object)
            .into_iter()
            .filter(|it| it.message.contains(" in body "))
            .collect();
        let named = ["apiVersion", "kind"];
        prop_assert!(unchanged.iter().all(|it| named.contains(&it.field.split(['.', '[']).next().unwrap_or_default())), "{schema} {object} {unchanged:?}");
    }

    #[test]
    fn what_is_pruned_again_is_judged_the_same(schema in schema(), new in value()) {
        let read = Schema::new(&schema, &Value::Null);
        let mut once = new;
        read.prune(&mut once);
        let mut twice = once.clone();
        read.prune(&mut twice);
        prop_assert_eq!(read.validate(None, &once), read.validate(None, &twice));
    }

    #[test]
    fn sources_never_panic(source in "\\PC{0,60}", tail in prop::sample::select(vec!["", ".all(x, x)", "[0]", "?.a", " + 1", " in [1]"])) {
        let _ = Program::compile(&format!("{source}{tail}"));
        let _ = pattern::compile(&source);
    }
}
