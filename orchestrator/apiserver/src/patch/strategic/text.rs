//! Values as upstream's error messages print them.

use serde_json::{Map, Value};

/// `map[a:1 b:[x y]]`.
pub(super) fn go_text(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) => go_list(items),
        Value::Object(map) => go_map(map),
        scalar => scalar.to_string(),
    }
}

/// `map[a:1 b:2]`, sorted by key.
pub(super) fn go_map(map: &Map<String, Value>) -> String {
    let mut fields: Vec<_> = map
        .iter()
        .map(|(key, value)| format!("{key}:{}", go_text(value)))
        .collect();
    fields.sort_unstable();
    format!("map[{}]", fields.join(" "))
}

/// `[a b]`.
pub(super) fn go_list(items: &[Value]) -> String {
    format!("[{}]", items.iter().map(go_text).collect::<Vec<_>>().join(" "))
}

/// The type that upstream's decoder gives a value.
pub(super) fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "%!s(<nil>)",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}
