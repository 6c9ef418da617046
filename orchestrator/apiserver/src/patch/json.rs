//! JSON patch (RFC 6902) with the limits of an API server.

use super::{PatchError, check_depth};
use crate::value::{MAX_DEPTH, deeper_than, same};
use json_patch::{PatchErrorKind, PatchOperation, jsonptr::Pointer};
use serde_json::Value;

/// Operations that one patch may have. Source: upstream's limit.
pub const MAX_OPERATIONS: usize = 10_000;

/// Bytes of JSON that the `copy` operations of one patch may add up to. Without a limit a short patch that copies an object
/// into itself again and again doubles it every time. Source: upstream's limit.
pub const MAX_COPIED_BYTES: usize = 3 << 20;

/// Applies a JSON patch: all of it or nothing. A `test` for `null` also holds for an absent field, as upstream has it, and
/// numbers are compared by value. Negative indices, which the RFC does not know, are not taken.
///
/// # Errors
/// [`PatchError::BadRequest`] for what is no patch, [`PatchError::TooLarge`] past the limits, [`PatchError::Unprocessable`]
/// where an operation does not fit the object.
pub fn json_patch(object: &Value, patch: &Value) -> Result<Value, PatchError> {
    if patch
        .as_array()
        .is_some_and(|operations| operations.len() > MAX_OPERATIONS)
    {
        let operations = patch.as_array().map_or(0, Vec::len);
        return Err(PatchError::TooLarge(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {operations}"
        )));
    }
    check_depth(object, patch)?;
    let operations: Vec<PatchOperation> = serde_json::from_value(patch.clone())
        .map_err(|error| PatchError::BadRequest(format!("error decoding patch: {error}")))?;
    let mut patched = object.clone();
    let mut copied = 0;
    for operation in &operations {
        check_limits(&patched, operation, &mut copied)?;
        if let PatchOperation::Test(test) = operation {
            let found = patched.pointer(test.path.as_str());
            if !found.map_or(test.value.is_null(), |found| same(found, &test.value)) {
                return Err(PatchError::Unprocessable(format!(
                    "testing value {} failed: test failed",
                    test.path
                )));
            }
            continue;
        }
        json_patch::patch_unsafe(&mut patched, std::slice::from_ref(operation))
            .map_err(|error| PatchError::Unprocessable(describe(operation, &error.kind)))?;
    }
    Ok(patched)
}

/// Refuses what would make the object too big or too deep, before it does.
fn check_limits(object: &Value, operation: &PatchOperation, copied: &mut usize) -> Result<(), PatchError> {
    let (value, from) = match operation {
        PatchOperation::Add(add) => (Some(&add.value), 0),
        PatchOperation::Replace(replace) => (Some(&replace.value), 0),
        PatchOperation::Copy(copy) => (object.pointer(copy.from.as_str()), 0),
        PatchOperation::Move(step) => (object.pointer(step.from.as_str()), levels(&step.from)),
        PatchOperation::Remove(_) | PatchOperation::Test(_) => (None, 0),
    };
    let Some(value) = value else { return Ok(()) };
    if let PatchOperation::Copy(copy) = operation {
        *copied = copied.saturating_add(value.to_string().len());
        if *copied > MAX_COPIED_BYTES {
            return Err(PatchError::TooLarge(format!(
                "the copy operations of the patch add up to more than {MAX_COPIED_BYTES} bytes, at path {}",
                copy.path
            )));
        }
    }
    let to = levels(operation.path());
    // What moves up or sideways makes nothing deeper.
    if to > from && deeper_than(value, MAX_DEPTH.saturating_sub(to)) {
        return Err(PatchError::Unprocessable(format!(
            "the value at path {} exceeds the max depth of {MAX_DEPTH}",
            operation.path()
        )));
    }
    Ok(())
}

fn levels(path: &Pointer) -> usize {
    path.tokens().count()
}

fn describe(operation: &PatchOperation, kind: &PatchErrorKind) -> String {
    let name = match operation {
        PatchOperation::Add(_) => "add",
        PatchOperation::Remove(_) => "remove",
        PatchOperation::Replace(_) => "replace",
        PatchOperation::Move(_) => "move",
        PatchOperation::Copy(_) => "copy",
        PatchOperation::Test(_) => "test",
    };
    let path = match (operation, kind) {
        (PatchOperation::Move(step), PatchErrorKind::InvalidFromPointer) => &step.from,
        (PatchOperation::Copy(copy), PatchErrorKind::InvalidFromPointer) => &copy.from,
        _ => operation.path(),
    };
    match kind {
        PatchErrorKind::InvalidPointer | PatchErrorKind::InvalidFromPointer => {
            format!("{name} operation does not apply: doc is missing path: \"{path}\": missing value")
        }
        other => format!("{name} operation does not apply at path \"{path}\": {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fails(object: &Value, patch: &Value) -> PatchError {
        json_patch(object, patch).unwrap_err()
    }

    #[test]
    fn operations_apply_in_order() {
        let object = json!({"metadata": {"labels": {"a": "1", "x/y": "2"}}, "list": [1, 2, 3]});
        let patch = json!([
            {"op": "test", "path": "/metadata/labels/a", "value": "1"},
            {"op": "replace", "path": "/metadata/labels/a", "value": "2"},
            {"op": "add", "path": "/metadata/labels/b", "value": null},
            {"op": "remove", "path": "/metadata/labels/x~1y"},
            {"op": "add", "path": "/list/-", "value": 4},
            {"op": "add", "path": "/list/0", "value": 0},
            {"op": "move", "from": "/list/1", "path": "/first"},
            {"op": "copy", "from": "/list", "path": "/copy"},
        ]);
        let wanted = json!({
            "metadata": {"labels": {"a": "2", "b": null}},
            "list": [0, 2, 3, 4], "first": 1, "copy": [0, 2, 3, 4],
        });
        assert_eq!(json_patch(&object, &patch), Ok(wanted));
    }

    #[test]
    fn a_failed_operation_is_422_and_says_where() {
        let object = json!({"a": {"b": 1}, "l": [1]});
        let cases = [
            (
                json!([{"op": "test", "path": "/a/b", "value": 2}]),
                "testing value /a/b failed: test failed",
            ),
            (
                json!([{"op": "remove", "path": "/x"}]),
                "remove operation does not apply: doc is missing path: \"/x\"",
            ),
            (
                json!([{"op": "replace", "path": "/a/c", "value": 1}]),
                "replace operation does not apply",
            ),
            (
                json!([{"op": "add", "path": "/x/y", "value": 1}]),
                "add operation does not apply",
            ),
            (
                json!([{"op": "add", "path": "/l/5", "value": 1}]),
                "add operation does not apply",
            ),
            (
                json!([{"op": "copy", "from": "/x", "path": "/y"}]),
                "doc is missing path: \"/x\"",
            ),
            (
                json!([{"op": "move", "from": "/a", "path": "/a/b"}]),
                "cannot move the value inside itself",
            ),
        ];
        for (patch, text) in cases {
            let error = fails(&object, &patch);
            assert_eq!((error.code(), error.reason()), (422, "Invalid"), "{patch}");
            assert!(error.to_string().contains(text), "{error}");
            assert!(
                error.to_string().starts_with("the server rejected our request"),
                "{error}"
            );
        }
    }

    #[test]
    fn an_absent_field_is_null_to_test_and_numbers_are_numbers() {
        let object = json!({"a": 1});
        assert!(json_patch(&object, &json!([{"op": "test", "path": "/b", "value": null}])).is_ok());
        assert!(json_patch(&object, &json!([{"op": "test", "path": "/a", "value": 1.0}])).is_ok());
        assert_eq!(
            fails(&object, &json!([{"op": "test", "path": "/b", "value": 1}])).code(),
            422
        );
    }

    #[test]
    fn what_is_no_patch_is_400() {
        let bad = [
            json!({}),
            json!([{"op": "nonsense", "path": "/a"}]),
            json!([{"op": "add", "path": "a", "value": 1}]),
            json!([1]),
            json!("x"),
            json!([{"op": "add", "path": "/a"}]),
        ];
        for patch in bad {
            assert_eq!(fails(&json!({}), &patch).code(), 400, "{patch}");
        }
    }

    #[test]
    fn limits_hold() {
        let test = json!({"op": "test", "path": "/a", "value": null});
        let most = Value::Array(vec![test.clone(); MAX_OPERATIONS]);
        assert!(json_patch(&json!({}), &most).is_ok());
        let error = fails(&json!({}), &Value::Array(vec![test; MAX_OPERATIONS + 1]));
        assert_eq!(error.code(), 413);
        assert_eq!(
            error.to_string(),
            "Request entity is too large: The allowed maximum operations in a JSON patch is 10000, got 10001"
        );
        // Each copy doubles the object.
        let doubling: Vec<_> = (0..100)
            .map(|at| json!({"op": "copy", "from": "/a", "path": format!("/a/{at}")}))
            .collect();
        assert!(fails(&json!({"a": {}}), &Value::Array(doubling)).code() >= 413);
        let nesting: Vec<_> = (0..200)
            .map(|_| json!({"op": "copy", "from": "", "path": "/a"}))
            .collect();
        assert_eq!(fails(&json!({}), &Value::Array(nesting)).code(), 422);
    }
}
