//! Types as schemas: those that were asked for, and what they refer to.

use crate::{
    docs::Docs,
    types::{Field, ListKind, Object, PatchStrategy, Scalar, Type, TypeId, Types},
};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Version of OpenAPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    V2,
    V3,
}

/// Schemas being collected.
pub(super) struct Schemas<'t> {
    pub(super) types: &'t Types,
    docs: &'t Docs,
    pub(super) dialect: Dialect,
    names: HashMap<TypeId, &'t str>,
    wanted: BTreeSet<String>,
}

impl<'t> Schemas<'t> {
    pub(super) fn new(types: &'t Types, docs: &'t Docs, dialect: Dialect) -> Self {
        Self {
            types,
            docs,
            dialect,
            names: types.names().map(|(name, id)| (id, &**name)).collect(),
            wanted: BTreeSet::new(),
        }
    }

    /// Takes a type into the document; its name, if it has one.
    pub(super) fn want(&mut self, id: TypeId) -> Option<String> {
        let name = (*self.names.get(&id)?).to_owned();
        self.wanted.insert(name.clone());
        Some(name)
    }

    /// A reference to a schema of this document.
    pub(super) fn reference(&mut self, name: &str) -> Value {
        if self.types.named(name).is_some() {
            self.wanted.insert(name.to_owned());
        }
        match self.dialect {
            Dialect::V2 => json!({"$ref": format!("#/definitions/{name}")}),
            Dialect::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
        }
    }

    /// A reference to a kind of `meta/v1`.
    pub(super) fn meta(&mut self, kind: &str) -> Value {
        self.reference(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}"))
    }

    /// Every wanted type and what it refers to.
    pub(super) fn finish(mut self) -> Map<String, Value> {
        let mut done: BTreeMap<String, Value> = BTreeMap::new();
        while let Some(name) = self.wanted.pop_first() {
            if let (false, Some(id)) = (done.contains_key(&name), self.types.named(&name)) {
                let schema = self.definition(&name, id);
                done.insert(name, schema);
            }
        }
        done.into_iter().collect()
    }

    fn definition(&mut self, name: &str, id: TypeId) -> Value {
        let mut schema = match self.types.get(id) {
            Type::Object(object) => self.object(object),
            Type::Scalar(scalar) => self.scalar(*scalar),
            Type::Any if name.ends_with(".FieldsV1") || name.ends_with(".RawExtension") => object_of("object"),
            _ => Map::new(),
        };
        if let Some(text) = self.docs.of_type(name) {
            schema.insert("description".into(), text.into());
        }
        schema.into()
    }

    fn object(&mut self, object: &Object) -> Map<String, Value> {
        let mut schema = object_of("object");
        let mut properties = Map::new();
        for (name, field) in &object.fields {
            properties.insert(name.to_string(), self.field(&object.name, name, field));
        }
        let required = object.fields.iter().filter(|(_, field)| field.required);
        let required: Vec<&str> = required.map(|(name, _)| &**name).collect();
        if !required.is_empty() {
            schema.insert("required".into(), json!(required));
        }
        if !properties.is_empty() {
            schema.insert("properties".into(), properties.into());
        }
        if object.preserve_unknown {
            schema.insert("x-kubernetes-preserve-unknown-fields".into(), true.into());
        }
        if object.atomic {
            schema.insert("x-kubernetes-map-type".into(), "atomic".into());
        }
        if !object.group_version_kinds.is_empty() {
            let kinds = object.group_version_kinds.iter();
            let kinds = kinds.map(|it| json!({"group": *it.group, "version": *it.version, "kind": *it.kind}));
            schema.insert("x-kubernetes-group-version-kind".into(), kinds.collect());
        }
        schema
    }

    fn field(&mut self, owner: &str, name: &str, field: &Field) -> Value {
        let (schema, mut extra) = self.ty(field.ty);
        if let Some(text) = self.docs.of_field(owner, name) {
            extra.insert("description".into(), text.into());
        }
        if let Some(default) = &field.default {
            extra.insert("default".into(), default.clone());
        }
        if let Some(strategy) = strategy(&field.patch) {
            extra.insert("x-kubernetes-patch-strategy".into(), strategy.into());
        }
        if let Some(key) = &field.patch.merge_key {
            extra.insert("x-kubernetes-patch-merge-key".into(), (**key).into());
        }
        self.join(schema, extra)
    }

    /// In version 3 nothing may stand beside a `$ref`.
    pub(super) fn join(&self, mut schema: Map<String, Value>, extra: Map<String, Value>) -> Value {
        if extra.is_empty() {
            return schema.into();
        }
        if self.dialect == Dialect::V3 && schema.contains_key("$ref") {
            let reference = std::mem::take(&mut schema);
            schema.insert("allOf".into(), json!([reference]));
        }
        schema.extend(extra);
        schema.into()
    }

    /// The schema of a value, and what must stand beside it.
    fn ty(&mut self, id: TypeId) -> (Map<String, Value>, Map<String, Value>) {
        let mut extra = Map::new();
        if let Some(name) = self.names.get(&id) {
            return (map(self.reference(name)), extra);
        }
        let schema = match self.types.get(id) {
            Type::Any => Map::new(),
            Type::Scalar(scalar) => self.scalar(*scalar),
            // A named type of which this field overrules the granularity.
            Type::Object(object) if !object.name.is_empty() => {
                let word = if object.atomic { "atomic" } else { "granular" };
                extra.insert("x-kubernetes-map-type".into(), word.into());
                map(self.reference(&object.name))
            }
            Type::Object(object) => self.object(object),
            Type::Map { value, atomic } => {
                let (value, beside) = self.ty(*value);
                let mut schema = object_of("object");
                schema.insert("additionalProperties".into(), self.join(value, beside));
                if *atomic {
                    schema.insert("x-kubernetes-map-type".into(), "atomic".into());
                }
                schema
            }
            Type::List { item, kind } => {
                let (item, beside) = self.ty(*item);
                let mut schema = object_of("array");
                schema.insert("items".into(), self.join(item, beside));
                let word = match kind {
                    ListKind::Atomic => "atomic",
                    ListKind::Set => "set",
                    ListKind::Map { keys } => {
                        let keys: Vec<&str> = keys.iter().map(AsRef::as_ref).collect();
                        schema.insert("x-kubernetes-list-map-keys".into(), json!(keys));
                        "map"
                    }
                };
                schema.insert("x-kubernetes-list-type".into(), word.into());
                schema
            }
        };
        (schema, extra)
    }

    fn scalar(&self, scalar: Scalar) -> Map<String, Value> {
        let v3 = self.dialect == Dialect::V3;
        map(match scalar {
            Scalar::String => json!({"type": "string"}),
            Scalar::Int32 => json!({"type": "integer", "format": "int32"}),
            Scalar::Int64 => json!({"type": "integer", "format": "int64"}),
            Scalar::Double => json!({"type": "number", "format": "double"}),
            Scalar::Boolean => json!({"type": "boolean"}),
            Scalar::Bytes => json!({"type": "string", "format": "byte"}),
            Scalar::Time | Scalar::MicroTime => json!({"type": "string", "format": "date-time"}),
            Scalar::Quantity if v3 => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
            Scalar::Quantity => json!({"type": "string"}),
            Scalar::IntOrString if v3 => {
                json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
            }
            Scalar::IntOrString => json!({"type": "string", "format": "int-or-string"}),
        })
    }
}

fn object_of(ty: &str) -> Map<String, Value> {
    map(json!({ "type": ty }))
}

fn map(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn strategy(patch: &PatchStrategy) -> Option<&'static str> {
    match (patch.merge, patch.retain_keys) {
        (true, true) => Some("merge,retainKeys"),
        (true, false) => Some("merge"),
        (false, true) => Some("retainKeys"),
        (false, false) => None,
    }
}
