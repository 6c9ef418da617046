//! [`Objects`]: how decisions read other objects, without knowing the store.

use serde_json::Value;
use std::sync::Arc;

/// Reads objects of any resource, as of now. The server implements it over the store's cache; tests over a map.
///
/// Prefixes are those of the store: `core/secrets`, `rbac.authorization.k8s.io/roles`.
pub trait Objects: Send + Sync {
    /// One object; `namespace` is empty for what belongs to the cluster.
    fn get(&self, prefix: &str, namespace: &str, name: &str) -> Option<Arc<Value>>;

    /// All objects of a resource, of one namespace or of all, in the order of namespace and name.
    fn list(&self, prefix: &str, namespace: Option<&str>) -> Vec<Arc<Value>>;
}

/// The text at a JSON pointer; empty if there is none.
pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The array at a JSON pointer; empty if there is none.
pub(crate) fn items<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value
        .pointer(pointer)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// The texts of an array at a JSON pointer; what is no text is left out.
pub(crate) fn texts<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a str> {
    items(value, pointer).iter().filter_map(Value::as_str)
}

/// The flag at a JSON pointer; false if there is none.
pub(crate) fn flag(value: &Value, pointer: &str) -> bool {
    value.pointer(pointer).and_then(Value::as_bool).unwrap_or_default()
}

/// The members of the object at a JSON pointer that are texts: labels, annotations, quantities.
pub(crate) fn pairs<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
    let members = value.pointer(pointer).and_then(Value::as_object).into_iter().flatten();
    members.filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
}

/// One label of an object.
pub(crate) fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.pointer("/metadata/labels")?.get(key)?.as_str()
}

/// One annotation of an object.
pub(crate) fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.pointer("/metadata/annotations")?.get(key)?.as_str()
}

/// Whether an object is being deleted.
pub(crate) fn terminating(object: &Value) -> bool {
    object
        .pointer("/metadata/deletionTimestamp")
        .is_some_and(|it| !it.is_null())
}

#[cfg(test)]
pub(crate) mod fake {
    //! Objects in a map, for tests.

    use super::{Objects, text};
    use serde_json::Value;
    use std::{collections::BTreeMap, sync::Arc};

    /// Prefix, namespace, name.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct Map(pub(crate) BTreeMap<(String, String, String), Arc<Value>>);

    impl Map {
        /// Adds or replaces an object where its metadata says.
        pub(crate) fn put(&mut self, prefix: &str, object: Value) -> &mut Self {
            let key = (
                prefix.to_owned(),
                text(&object, "/metadata/namespace").to_owned(),
                text(&object, "/metadata/name").to_owned(),
            );
            self.0.insert(key, Arc::new(object));
            self
        }

        /// Removes an object.
        pub(crate) fn remove(&mut self, prefix: &str, namespace: &str, name: &str) {
            self.0
                .remove(&(prefix.to_owned(), namespace.to_owned(), name.to_owned()));
        }
    }

    impl Objects for Map {
        fn get(&self, prefix: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
            let key = (prefix.to_owned(), namespace.to_owned(), name.to_owned());
            self.0.get(&key).cloned()
        }

        fn list(&self, prefix: &str, namespace: Option<&str>) -> Vec<Arc<Value>> {
            let all = self
                .0
                .iter()
                .filter(|((p, ns, _), _)| p == prefix && namespace.is_none_or(|it| it == ns));
            all.map(|(_, object)| Arc::clone(object)).collect()
        }
    }
}
