//! Faults in upstream's words. Source: `k8s.io/apimachinery/pkg/util/validation/field`.

use fairlead_schema::Fault;
use serde_json::Value;

/// What upstream prints for no path at all.
pub(crate) const NO_PATH: &str = "<nil>";

/// A value as upstream prints it in a fault: text quoted, the rest as JSON.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        other => other.to_string(),
    }
}

/// Text in quotes, as Go's `%q`.
pub(crate) fn quoted(text: &str) -> String {
    format!("{text:?}")
}

fn fault(reason: &'static str, field: &str, message: String) -> Fault {
    Fault {
        reason,
        message,
        field: if field.is_empty() { NO_PATH } else { field }.to_owned(),
    }
}

fn with_detail(head: String, detail: &str) -> String {
    if detail.is_empty() {
        head
    } else {
        format!("{head}: {detail}")
    }
}

pub(crate) fn invalid(field: &str, value: &Value, detail: &str) -> Fault {
    let message = with_detail(format!("Invalid value: {}", shown(value)), detail);
    fault("FieldValueInvalid", field, message)
}

/// For values that are too large to be repeated.
pub(crate) fn invalid_unshown(field: &str, detail: &str) -> Fault {
    fault(
        "FieldValueInvalid",
        field,
        with_detail("Invalid value".to_owned(), detail),
    )
}

pub(crate) fn wrong_type(field: &str, value: &Value, detail: &str) -> Fault {
    let message = with_detail(format!("Invalid value: {}", shown(value)), detail);
    fault("FieldValueTypeInvalid", field, message)
}

pub(crate) fn required(field: &str, detail: &str) -> Fault {
    fault(
        "FieldValueRequired",
        field,
        with_detail("Required value".to_owned(), detail),
    )
}

pub(crate) fn forbidden(field: &str, detail: &str) -> Fault {
    fault(
        "FieldValueForbidden",
        field,
        with_detail("Forbidden".to_owned(), detail),
    )
}

pub(crate) fn duplicate(field: &str, value: &Value, detail: &str) -> Fault {
    let message = with_detail(format!("Duplicate value: {}", shown(value)), detail);
    fault("FieldValueDuplicate", field, message)
}

pub(crate) fn duplicate_unshown(field: &str, detail: &str) -> Fault {
    fault(
        "FieldValueDuplicate",
        field,
        with_detail("Duplicate value".to_owned(), detail),
    )
}

pub(crate) fn not_supported<S: AsRef<str>>(field: &str, value: &Value, supported: &[S]) -> Fault {
    let list: Vec<_> = supported.iter().map(|it| quoted(it.as_ref())).collect();
    let message = format!(
        "Unsupported value: {}: supported values: {}",
        shown(value),
        list.join(", ")
    );
    fault("FieldValueNotSupported", field, message)
}

pub(crate) fn too_long(field: &str, max: u64) -> Fault {
    let unit = if max == 1 { "byte" } else { "bytes" };
    fault(
        "FieldValueTooLong",
        field,
        format!("Too long: may not be more than {max} {unit}"),
    )
}

pub(crate) fn too_many(field: &str, actual: usize, max: u64) -> Fault {
    let unit = if max == 1 { "item" } else { "items" };
    fault(
        "FieldValueTooMany",
        field,
        format!("Too many: {actual}: must have at most {max} {unit}"),
    )
}

/// `base.name`, or `name` at the root.
pub(crate) fn child(base: &str, name: &str) -> String {
    if base.is_empty() {
        name.to_owned()
    } else {
        format!("{base}.{name}")
    }
}

/// `base[name]`.
pub(crate) fn key(base: &str, name: &str) -> String {
    format!("{base}[{name}]")
}

/// `base[3]`.
pub(crate) fn index(base: &str, at: usize) -> String {
    format!("{base}[{at}]")
}
