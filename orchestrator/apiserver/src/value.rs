//! JSON values compared by meaning: `1` and `1.0` are the same number, as they are to every client.

use serde_json::{Number, Value};
use std::cmp::Ordering;

/// Levels of objects and lists that an object may have. `serde_json` reads no more than 128, so that a deeper object could
/// be stored and never be read again; it also bounds the recursion of everything here.
pub const MAX_DEPTH: usize = 120;

/// Whether a value has more than `limit` levels of objects and lists. Looks no deeper than that itself.
pub fn deeper_than(value: &Value, limit: usize) -> bool {
    let below = |item: &Value| limit == 0 || deeper_than(item, limit - 1);
    match value {
        Value::Array(items) => limit == 0 || items.iter().any(below),
        Value::Object(map) => limit == 0 || map.values().any(below),
        _ => false,
    }
}

/// Whether two values mean the same.
pub fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => compare_numbers(a, b).is_eq(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        _ => a == b,
    }
}

/// A total order: numbers, text, booleans, lists, objects, null. Source: structured-merge-diff, so that the fields of an
/// entry of `managedFields` come in the usual order.
pub fn compare(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => compare_numbers(a, b),
        (Value::String(a), Value::String(b)) => a.cmp(b),
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::Array(a), Value::Array(b)) => {
            let items = a.iter().zip(b).map(|(a, b)| compare(a, b));
            first_difference(items).then_with(|| a.len().cmp(&b.len()))
        }
        (Value::Object(a), Value::Object(b)) => {
            let fields = a
                .iter()
                .zip(b)
                .map(|(a, b)| a.0.cmp(b.0).then_with(|| compare(a.1, b.1)));
            first_difference(fields).then_with(|| a.len().cmp(&b.len()))
        }
        _ => rank(a).cmp(&rank(b)),
    }
}

/// A text that is equal for values that are [`same`], for use as a key. Meant for scalars.
pub fn canonical(value: &Value) -> String {
    match value {
        Value::Number(number) => match number.as_f64() {
            // Exact: such a float has no fraction and fits.
            Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() < 1e18 => (float as i64).to_string(),
            _ => number.to_string(),
        },
        other => other.to_string(),
    }
}

fn first_difference(mut orders: impl Iterator<Item = Ordering>) -> Ordering {
    orders.find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
}

fn rank(value: &Value) -> u8 {
    match value {
        Value::Number(_) => 0,
        Value::String(_) => 1,
        Value::Bool(_) => 2,
        Value::Array(_) => 3,
        Value::Object(_) => 4,
        Value::Null => 5,
    }
}

/// Exact, also between whole numbers and floats: a rounded comparison would not be transitive.
fn compare_numbers(a: &Number, b: &Number) -> Ordering {
    match (a.as_i128(), b.as_i128()) {
        (Some(a), Some(b)) => a.cmp(&b),
        (Some(a), None) => compare_whole(a, b.as_f64().unwrap_or(f64::NAN)),
        (None, Some(b)) => compare_whole(b, a.as_f64().unwrap_or(f64::NAN)).reverse(),
        // `+ 0.0` makes both zeros one.
        (None, None) => {
            let (a, b) = (a.as_f64().unwrap_or(f64::NAN), b.as_f64().unwrap_or(f64::NAN));
            (a + 0.0).total_cmp(&(b + 0.0))
        }
    }
}

fn compare_whole(whole: i128, float: f64) -> Ordering {
    // The cast saturates, which orders everything beyond the range of whole numbers rightly.
    whole
        .cmp(&(float.trunc() as i128))
        .then_with(|| 0.0f64.total_cmp(&(float.fract() + 0.0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_are_compared_by_value() {
        assert!(same(&json!({"a": [1, 2.0]}), &json!({"a": [1.0, 2]})));
        assert!(!same(&json!({"a": 1}), &json!({"a": 1, "b": null})));
        assert!(same(&json!(-0.0), &json!(0)));
        assert_eq!(canonical(&json!(1.0)), canonical(&json!(1)));
        assert_ne!(canonical(&json!("1")), canonical(&json!(1)));
        // 2^53 + 1 is not a float.
        assert_eq!(
            compare(&json!(9_007_199_254_740_993i64), &json!(9_007_199_254_740_992.0)),
            Ordering::Greater
        );
        assert_eq!(compare(&json!(u64::MAX), &json!(1e300)), Ordering::Less);
        assert_eq!(compare(&json!(1), &json!(1.5)), Ordering::Less);
        assert_eq!(compare(&json!(-1), &json!(-1.5)), Ordering::Greater);
    }

    #[test]
    fn kinds_are_ordered() {
        let values = [
            json!(2),
            json!("a"),
            json!(false),
            json!([1]),
            json!({"a": 1}),
            json!(null),
        ];
        for (at, value) in values.iter().enumerate() {
            for (other_at, other) in values.iter().enumerate() {
                assert_eq!(compare(value, other), at.cmp(&other_at), "{value} {other}");
            }
        }
        assert_eq!(compare(&json!([1]), &json!([1, 0])), Ordering::Less);
        assert_eq!(compare(&json!({"a": 1}), &json!({"a": 2})), Ordering::Less);
    }

    #[test]
    fn depth_is_counted_in_containers() {
        assert!(!deeper_than(&json!(1), 0));
        assert!(deeper_than(&json!([]), 0));
        assert!(!deeper_than(&json!([1]), 1));
        assert!(deeper_than(&json!({"a": {"b": []}}), 2));
        assert!(!deeper_than(&json!({"a": {"b": []}}), 3));
    }
}
