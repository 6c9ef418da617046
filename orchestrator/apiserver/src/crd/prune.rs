//! Unknown fields, and nulls that are not allowed, dropped. Source: `pkg/apiserver/schema/pruning` and
//! `defaulting` of apiextensions.

use super::{
    faults,
    structural::{Additional, Structural},
};
use fairlead_schema::{Type, TypeId, Types};
use serde_json::{Map, Value};

/// Unknown fields that are named; the rest is dropped in silence, so that an answer stays of bounded size.
const MAX_NAMED: usize = 100;

/// Drops from a whole resource what its schema does not know, in `metadata` what `ObjectMeta` does not know. The paths
/// of what was unknown, sorted.
pub fn prune(object: &mut Value, schema: &Structural) -> Vec<String> {
    let mut pruner = Pruner { unknown: Vec::new() };
    pruner.node(object, Some(schema), "");
    let mut unknown = pruner.unknown;
    unknown.sort();
    unknown
}

/// Drops nulls of fields that are not nullable and have no default; those with a default get it from
/// [`super::default::apply`].
pub fn drop_nulls(value: &mut Value, schema: &Structural) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, value| {
                let drop = value.is_null()
                    && schema
                        .field(name)
                        .is_some_and(|schema| !schema.nullable && schema.default.is_none());
                !drop
            });
            for (name, value) in fields {
                if let Some(schema) = schema.field(name) {
                    drop_nulls(value, schema);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = &schema.items {
                items.iter_mut().for_each(|item| drop_nulls(item, schema));
            }
        }
        _ => {}
    }
}

struct Pruner {
    unknown: Vec<String>,
}

impl Pruner {
    fn node(&mut self, value: &mut Value, schema: Option<&Structural>, path: &str) {
        match value {
            Value::Object(fields) => self.object(fields, schema, path),
            Value::Array(items) => {
                // Below a list of anything, items keep what they have.
                let item = schema.and_then(|it| it.items.as_deref());
                let any = schema.is_some_and(|it| it.preserve_unknown) && item.is_none();
                if !any {
                    for (at, value) in items.iter_mut().enumerate() {
                        if value.is_object() || value.is_array() {
                            self.node(value, item, &faults::index(path, at));
                        }
                    }
                }
            }
            _ => {}
        }
    }

    fn object(&mut self, fields: &mut Map<String, Value>, schema: Option<&Structural>, path: &str) {
        let mut drop = Vec::new();
        for (name, value) in fields.iter_mut() {
            let embedded = schema.is_some_and(|it| it.embedded);
            if embedded && matches!(name.as_str(), "apiVersion" | "kind") {
                continue;
            }
            if embedded && name == "metadata" {
                self.metadata(value, &faults::child(path, name));
                continue;
            }
            let property = schema.and_then(|it| it.properties.get(name.as_str()));
            let additional = schema.and_then(|it| it.additional.as_ref());
            let preserve = schema.is_some_and(|it| it.preserve_unknown);
            match (property, additional) {
                (Some(property), _) => self.child(value, property, path, name),
                (None, Some(Additional::Schema(schema))) => self.child(value, schema, path, name),
                (None, Some(Additional::Any)) => {}
                (None, None) if preserve => {}
                (None, None) => drop.push(name.clone()),
            }
        }
        for name in drop {
            fields.remove(&name);
            if self.unknown.len() < MAX_NAMED {
                self.unknown.push(faults::child(path, &name));
            }
        }
    }

    fn child(&mut self, value: &mut Value, schema: &Structural, path: &str, name: &str) {
        if value.is_object() || value.is_array() {
            self.node(value, Some(schema), &faults::child(path, name));
        }
    }

    /// Metadata has a type of its own, whatever the schema says.
    fn metadata(&mut self, value: &mut Value, path: &str) {
        let types = Types::builtin();
        if let Some(ty) = types.named(super::rows::OBJECT_META) {
            self.typed(value, &types, ty, path);
        }
    }

    fn typed(&mut self, value: &mut Value, types: &Types, ty: TypeId, path: &str) {
        match (value, types.get(ty)) {
            (Value::Object(fields), Type::Object(object)) => {
                let unknown: Vec<String> = fields
                    .keys()
                    .filter(|name| !object.fields.contains_key(name.as_str()))
                    .cloned()
                    .collect();
                for name in unknown {
                    fields.remove(&name);
                    if self.unknown.len() < MAX_NAMED {
                        self.unknown.push(faults::child(path, &name));
                    }
                }
                for (name, value) in fields {
                    if let Some(field) = object.fields.get(name.as_str()) {
                        self.typed(value, types, field.ty, &faults::child(path, name));
                    }
                }
            }
            (Value::Array(items), Type::List { item, .. }) => {
                for (at, value) in items.iter_mut().enumerate() {
                    self.typed(value, types, *item, &faults::index(path, at));
                }
            }
            _ => {}
        }
    }
}

/// The same for a value that is no resource; whether anything was unknown is what counts.
pub(crate) fn prune_value(value: &mut Value, schema: &Structural) -> Vec<String> {
    let mut pruner = Pruner { unknown: Vec::new() };
    pruner.node(value, Some(schema), "");
    pruner.unknown
}
