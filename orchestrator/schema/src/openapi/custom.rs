//! Schemas of custom resources, as their definitions give them, with what every object has.

use super::schemas::{Dialect, Schemas};
use crate::resource::Resource;
use serde_json::{Map, Value, json};

/// Words of a structural schema that version 2 has no place for.
const V3_ONLY: [&str; 5] = ["oneOf", "anyOf", "allOf", "not", "nullable"];

/// Adds the schemas of a resource and of its list; the name of the first.
pub(super) fn define(
    schemas: &mut Schemas<'_>,
    definitions: &mut Map<String, Value>,
    resource: &Resource,
    schema: Option<Value>,
) -> String {
    let reversed: Vec<&str> = resource.group.rsplit('.').collect();
    let name = format!("{}.{}.{}", reversed.join("."), resource.version, resource.kind);
    let kind = |kind: &str| json!([{"group": *resource.group, "version": *resource.version, "kind": kind}]);
    let described = |text: &str| json!({"type": "string", "description": text});
    let api_version = described("Group and version of the schema that this object follows.");
    let kind_text = described("Name of the object's schema.");

    let keeps_all = || json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let mut object = match schema {
        Some(Value::Object(schema)) => Value::Object(schema),
        _ => keeps_all(),
    };
    if schemas.dialect == Dialect::V2 {
        without_v3(&mut object);
    }
    let metadata = beside(schemas, "ObjectMeta", "Name, labels and what else every object has.");
    let Value::Object(members) = &mut object else {
        return name;
    };
    members.insert("type".to_owned(), "object".into());
    members.insert("x-kubernetes-group-version-kind".to_owned(), kind(&resource.kind));
    let properties = members.entry("properties").or_insert_with(|| json!({}));
    if let Value::Object(properties) = properties {
        properties.insert("apiVersion".to_owned(), api_version.clone());
        properties.insert("kind".to_owned(), kind_text.clone());
        properties.insert("metadata".to_owned(), metadata);
    }
    definitions.insert(name.clone(), object);

    let list_kind = format!("{}List", resource.kind);
    let metadata = beside(schemas, "ListMeta", "Version of the list, and where it goes on.");
    let items =
        json!({"type": "array", "description": format!("The {}.", resource.plural), "items": schemas.reference(&name)});
    let list = json!({
        "type": "object",
        "required": ["items"],
        "properties": {"apiVersion": api_version, "kind": kind_text, "metadata": metadata, "items": items},
        "x-kubernetes-group-version-kind": kind(&list_kind),
    });
    definitions.insert(format!("{name}List"), list);
    name
}

/// A reference with a text beside it.
fn beside(schemas: &mut Schemas<'_>, kind: &str, text: &str) -> Value {
    let reference = schemas.meta(kind);
    let text = Map::from_iter([("description".to_owned(), text.into())]);
    match reference {
        Value::Object(reference) => schemas.join(reference, text),
        other => other,
    }
}

/// Removes what version 2 cannot say. Names of properties are data and stay, whatever they are.
fn without_v3(schema: &mut Value) {
    let Value::Object(members) = schema else { return };
    if members.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true)) {
        members.remove("type");
    }
    if members.get("nullable") == Some(&Value::Bool(true)) {
        members.remove("type");
        members.remove("items");
        members.remove("properties");
    }
    for word in V3_ONLY {
        members.remove(word);
    }
    for word in ["items", "additionalProperties"] {
        if let Some(inner) = members.get_mut(word) {
            without_v3(inner);
        }
    }
    if let Some(Value::Object(properties)) = members.get_mut("properties") {
        properties.values_mut().for_each(without_v3);
    }
}
