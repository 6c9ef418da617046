//! Objects for tests: every field of a type filled, and JSON of any shape.

use crate::types::{Scalar, Type, TypeId, Types};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// A value of a type with every field there is, down to `depth`; what is random comes from `seed`.
pub(crate) fn full(types: &Types, ty: TypeId, depth: u32, seed: &mut u64) -> Value {
    if depth == 0 {
        return Value::Null;
    }
    *seed = seed
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    let roll = *seed >> 33;
    match types.get(ty) {
        Type::Any => json!({"any": roll}),
        Type::Scalar(scalar) => match scalar {
            Scalar::String => {
                json!(["text", "", "Always", "ClientIP", "ClusterIP", "RollingUpdate"][roll as usize % 6])
            }
            Scalar::Int32 | Scalar::Int64 => json!(roll % 3),
            Scalar::Double => json!(1.5),
            Scalar::Boolean => json!(roll.is_multiple_of(2)),
            Scalar::Bytes => json!("YQ=="),
            Scalar::Time => json!("2024-01-02T03:04:05Z"),
            Scalar::MicroTime => json!("2024-01-02T03:04:05.000006Z"),
            Scalar::Quantity => json!("100m"),
            Scalar::IntOrString => [json!(0), json!(80), json!("25%")][roll as usize % 3].clone(),
        },
        Type::Map { value, .. } => json!({"key": full(types, *value, depth - 1, seed)}),
        Type::List { item, .. } => {
            let count = roll % 3;
            (0..count).map(|_| full(types, *item, depth - 1, seed)).collect()
        }
        Type::Object(object) => {
            let mut fields = Map::new();
            for (name, field) in &object.fields {
                *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                if !(*seed >> 40).is_multiple_of(4) {
                    fields.insert(name.to_string(), full(types, field.ty, depth - 1, seed));
                }
            }
            Value::Object(fields)
        }
    }
}

/// A value of a type in which some fields hold anything at all.
pub(crate) fn mutilate(value: &mut Value, junk: &[Value], seed: &mut u64) {
    *seed = seed
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    if !junk.is_empty() && (*seed >> 33).is_multiple_of(12) {
        *value = junk[(*seed >> 40) as usize % junk.len()].clone();
        return;
    }
    match value {
        Value::Array(items) => items.iter_mut().for_each(|it| mutilate(it, junk, seed)),
        Value::Object(fields) => fields.values_mut().for_each(|it| mutilate(it, junk, seed)),
        _ => {}
    }
}

/// JSON of any shape, with names that mean something.
pub(crate) fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z0-9.:/%-]{0,12}".prop_map(Value::from),
        ".{0,6}".prop_map(Value::from),
    ];
    let name = prop_oneof![
        "metadata|spec|status|data|name|template|containers|type|ports|labels",
        "[a-z]{1,4}"
    ];
    leaf.prop_recursive(4, 24, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((name.clone(), inner), 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}
