//! What the store's cache takes out of each object: labels, owners, and the fields that selectors may name.

use fairlead_schema::{Registry, resource::SelectableField};
use fairlead_store::{Indexed, Indexer, Key};
use serde::Deserialize;
use serde_json::Value;
use std::{collections::BTreeMap, collections::HashMap, sync::Arc};

/// Selectable fields by storage prefix.
type Fields = HashMap<Arc<str>, Vec<SelectableField>>;

/// Reads objects for the index. Custom resources have no indexed fields: what a position means would change with their
/// definition.
#[derive(Debug)]
pub(crate) struct FieldIndexer {
    fields: Fields,
}

/// The metadata that is indexed; everything else is skipped without being built.
#[derive(Deserialize, Default)]
struct Object {
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    uid: Option<Box<str>>,
    labels: Option<BTreeMap<Box<str>, Box<str>>>,
    owner_references: Option<Vec<Owner>>,
}

#[derive(Deserialize)]
struct Owner {
    uid: Box<str>,
}

impl FieldIndexer {
    /// An indexer for the built-in resources.
    pub(crate) fn new(builtin: &Registry) -> Self {
        let mut fields = Fields::new();
        for resource in builtin.resources() {
            // Kinds that share storage list the same fields in the same order.
            let Some(storage) = &resource.storage else { continue };
            fields
                .entry(Arc::clone(&storage.prefix))
                .or_insert_with(|| resource.selectable.clone());
        }
        Self { fields }
    }
}

impl Indexer for FieldIndexer {
    fn index(&self, key: &Key, json: &[u8]) -> Indexed {
        let Object { metadata } = serde_json::from_slice(json).unwrap_or_default();
        let wanted = self.fields.get(&key.prefix).map(Vec::as_slice).unwrap_or_default();
        let values = if wanted.is_empty() {
            Box::default()
        } else {
            let object: Value = serde_json::from_slice(json).unwrap_or_default();
            wanted.iter().map(|field| value(&object, field)).collect()
        };
        Indexed {
            uid: metadata.uid.unwrap_or_default(),
            labels: metadata.labels.unwrap_or_default().into_iter().collect(),
            fields: values,
            owners: metadata
                .owner_references
                .unwrap_or_default()
                .into_iter()
                .map(|owner| owner.uid)
                .collect(),
        }
    }
}

/// The text of a field; of alternatives (`a|b`) the first that is not empty.
pub(crate) fn value(object: &Value, field: &SelectableField) -> Box<str> {
    let found = field.path.split('|').find_map(|path| {
        let text = match crate::object::at(object, path)? {
            Value::String(text) => text.clone(),
            Value::Null => return None,
            other => other.to_string(),
        };
        (!text.is_empty()).then_some(text)
    });
    found.map_or_else(|| Box::from(&*field.default), String::into_boxed_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pods() {
        let indexer = FieldIndexer::new(&Registry::builtin());
        let key = Key {
            prefix: "core/pods".into(),
            namespace: "a".into(),
            name: "p".into(),
        };
        let pod = json!({
            "metadata": { "uid": "u", "labels": { "b": "2", "a": "1" }, "ownerReferences": [{ "uid": "o", "kind": "X" }] },
            "spec": { "nodeName": "n" }, "status": { "phase": "Running" },
        });
        let indexed = indexer.index(&key, pod.to_string().as_bytes());
        assert_eq!((&*indexed.uid, indexed.owners.len()), ("u", 1));
        assert_eq!(&*indexed.labels[0].0, "a");
        let registry = Registry::builtin();
        let row = registry.resource("", "v1", "pods").unwrap();
        let at = row
            .selectable
            .iter()
            .position(|it| &*it.name == "spec.nodeName")
            .unwrap();
        assert_eq!(&*indexed.fields[at], "n");
        let nothing = indexer.index(&key, b"garbage");
        assert_eq!(
            (&*nothing.uid, nothing.labels.len(), nothing.fields.len()),
            ("", 0, row.selectable.len())
        );
    }
}
