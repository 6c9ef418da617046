//! Reading and writing the metadata of objects.

use crate::status::{Result, Status};
use fairlead_schema::{Resource, Scope};
use fairlead_store::Key;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Finalizer of a deletion in the foreground: dependents go first.
pub(crate) const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of a deletion that leaves dependents alone.
pub(crate) const ORPHAN: &str = "orphan";

/// `metadata.NAME` as text; empty where absent.
pub(crate) fn meta<'a>(object: &'a Value, name: &str) -> &'a str {
    object["metadata"][name].as_str().unwrap_or_default()
}

/// `metadata`, made where absent or of the wrong type.
pub(crate) fn meta_mut(object: &mut Value) -> &mut Map<String, Value> {
    child_mut(object, "metadata")
}

/// A field that holds an object, made where absent or of the wrong type.
pub(crate) fn child_mut<'a>(object: &'a mut Value, name: &str) -> &'a mut Map<String, Value> {
    if !object.is_object() {
        *object = json!({});
    }
    let child = &mut object[name];
    if !child.is_object() {
        *child = json!({});
    }
    match child {
        Value::Object(map) => map,
        _ => unreachable!("it was just made one"),
    }
}

/// Sets `metadata.NAME`, or removes it.
pub(crate) fn set_meta(object: &mut Value, name: &str, value: Option<Value>) {
    let meta = meta_mut(object);
    match value {
        Some(value) => meta.insert(name.to_owned(), value),
        None => meta.remove(name),
    };
}

/// `metadata.finalizers`.
pub(crate) fn finalizers(object: &Value) -> Vec<&str> {
    let all = object["metadata"]["finalizers"].as_array().into_iter().flatten();
    all.filter_map(Value::as_str).collect()
}

/// Adds a finalizer and removes others.
pub(crate) fn set_finalizer(object: &mut Value, add: Option<&str>, remove: &[&str]) {
    let mut all: Vec<Value> = finalizers(object)
        .into_iter()
        .filter(|it| !remove.contains(it))
        .map(Value::from)
        .collect();
    if let Some(add) = add
        && !all.iter().any(|it| it == add)
    {
        all.push(add.into());
    }
    set_meta(object, "finalizers", (!all.is_empty()).then_some(Value::Array(all)));
}

/// Whether it is being deleted.
pub(crate) fn is_terminating(object: &Value) -> bool {
    !object["metadata"]["deletionTimestamp"].is_null()
}

/// A time as the API writes it: RFC 3339, whole seconds, `Z`.
pub(crate) fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Where an object of this resource is stored.
///
/// # Errors
/// 405 for what is not stored.
pub(crate) fn key(resource: &Resource, namespace: &str, name: &str) -> Result<Key> {
    let storage = resource.storage.as_ref();
    let storage = storage.ok_or_else(|| Status::method_not_allowed(resource, "storing"))?;
    Ok(Key {
        prefix: Arc::clone(&storage.prefix),
        namespace: match resource.scope {
            Scope::Namespaced => namespace.into(),
            Scope::Cluster => "".into(),
        },
        name: name.into(),
    })
}

/// The value at a path as `spec.replicas`.
pub(crate) fn at<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(object, |value, step| value.get(step))
}

/// Sets the value at a path as `spec.replicas`, making objects on the way.
pub(crate) fn set_at(object: &mut Value, path: &str, value: Value) {
    match path.split_once('.') {
        Some((head, rest)) => {
            child_mut(object, head);
            set_at(&mut object[head], rest, value);
        }
        None => {
            if !object.is_object() {
                *object = json!({});
            }
            object[path] = value;
        }
    }
}

/// Everything but metadata and status: what `metadata.generation` counts changes of.
pub(crate) fn same_spec(a: &Value, b: &Value) -> bool {
    let rest = |object: &Value| -> Vec<(String, Value)> {
        let fields = object.as_object().into_iter().flatten();
        let fields = fields.filter(|(name, _)| !matches!(name.as_str(), "metadata" | "status" | "apiVersion" | "kind"));
        fields.map(|(name, value)| (name.clone(), value.clone())).collect()
    };
    rest(a) == rest(b)
}

/// `metadata` alone, as `meta/v1 PartialObjectMetadata`.
pub(crate) fn partial(object: &Value, api_version: &str) -> Value {
    json!({ "kind": "PartialObjectMetadata", "apiVersion": api_version, "metadata": object["metadata"] })
}
