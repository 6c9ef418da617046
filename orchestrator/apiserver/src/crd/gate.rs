//! Where the core's writes meet definitions: three calls, which do nothing for other resources.

use super::{cleanup, definition, rows::OBJECT_META};
use crate::status::Cause;
use fairlead_schema::{
    Fault, Resource, Types,
    strict::{self, FieldProblem},
};
use serde_json::{Value, json};

/// Says so of rows that are about definitions themselves.
const HOOK: &str = "crd";

/// Drops what the schema of a custom resource does not know. The complaints for `fieldValidation`; `None` for resources
/// whose fields are known by type.
pub fn read(resource: &Resource, value: &mut Value) -> Option<Vec<String>> {
    let unknown = resource.custom_schema.as_ref()?.prune(value);
    Some(unknown.iter().map(|path| format!("unknown field {path:?}")).collect())
}

/// Checks and tidies the metadata of a custom resource, the one part of it whose type is not its definition's to say.
///
/// # Errors
/// What has the wrong type.
pub fn normalise(value: &mut Value) -> Result<(), Vec<FieldProblem>> {
    let types = Types::builtin();
    match (types.named(OBJECT_META), value.get_mut("metadata")) {
        (Some(ty), Some(metadata)) => strict::normalise(&types, ty, metadata),
        _ => Ok(()),
    }
}

/// Completes a custom resource, or a definition.
pub fn complete(resource: &Resource, value: &mut Value) {
    if let Some(schema) = &resource.custom_schema {
        schema.default(value);
    }
    if resource.has_hook(HOOK) {
        definition::apply_defaults(value);
        definition::note_storage_version(value);
        // Objects can exist as soon as the definition is seen.
        let going = !value["metadata"]["deletionTimestamp"].is_null();
        let known = value["metadata"]["resourceVersion"].is_string();
        if !going && !known && value["metadata"].is_object() {
            hold(value);
        }
    }
}

fn hold(crd: &mut Value) {
    match crd["metadata"]["finalizers"].as_array_mut() {
        Some(finalizers) if finalizers.iter().any(|it| it == cleanup::FINALIZER) => {}
        Some(finalizers) => finalizers.push(json!(cleanup::FINALIZER)),
        None => crd["metadata"]["finalizers"] = json!([cleanup::FINALIZER]),
    }
}

/// What is wrong with a custom resource by its schema and rules, or with a definition.
pub fn judge(resource: &Resource, subresource: &str, old: Option<&Value>, new: &Value) -> Vec<Cause> {
    let mut found = Vec::new();
    if let Some(schema) = &resource.custom_schema {
        found.extend(schema.validate(old, new));
    }
    // What the server writes into a status is the server's.
    if resource.has_hook(HOOK) && subresource.is_empty() && new["metadata"]["deletionTimestamp"].is_null() {
        found.extend(definition::validate(old, new));
    }
    found.into_iter().map(cause).collect()
}

fn cause(fault: Fault) -> Cause {
    Cause {
        reason: fault.reason,
        message: fault.message,
        field: fault.field,
    }
}
