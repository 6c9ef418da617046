//! A stored CustomResourceDefinition as rows of the registry: one for each served version.

use super::{
    Schema,
    structural::{Additional, SchemaType, Structural, array, flag, text},
};
use fairlead_schema::{
    Field, ListKind, Object, Resource, Scalar, Scope, Subresource, Type, TypeId, Types, columns,
    kinds::storage_prefix,
    resource::{Column, Scale, SelectableField, Storage},
    types::PatchStrategy,
};
use serde_json::Value;
use std::sync::Arc;

/// The type of `metadata`.
pub(crate) const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// Verbs of every custom resource, in the order of discovery.
const VERBS: [&str; 8] = [
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];

/// Rows of a definition that is complete and valid; nothing of what is not.
pub fn rows(crd: &Value) -> Vec<Arc<Resource>> {
    let spec = &crd["spec"];
    let storage = array(spec, "versions")
        .find(|it| flag(it, "storage"))
        .and_then(|it| text(it, "name"));
    let Some(storage) = storage else {
        return Vec::new();
    };
    let served = array(spec, "versions").filter(|it| flag(it, "served"));
    served
        .filter_map(|version| row(crd, version, &storage))
        .map(Arc::new)
        .collect()
}

fn row(crd: &Value, version: &Value, storage: &Arc<str>) -> Option<Resource> {
    let spec = &crd["spec"];
    // What conflicts with others is served under the names that were accepted before.
    let names = if crd["status"]["acceptedNames"]["plural"].is_string() {
        &crd["status"]["acceptedNames"]
    } else {
        &spec["names"]
    };
    let (group, plural) = (text(spec, "group")?, text(names, "plural")?);
    let (name, kind) = (text(version, "name")?, text(names, "kind")?);
    let texts = |names: &Value, field: &str| array(names, field).filter_map(Value::as_str).map(Arc::from).collect();
    let schema = Schema::new(&version["schema"]["openAPIV3Schema"], &version["subresources"]);
    let (types, ty) = types_of(schema.structural(), &group, &name, &kind);
    let deprecation = flag(version, "deprecated").then(|| {
        text(version, "deprecationWarning").unwrap_or_else(|| format!("{group}/{name} {kind} is deprecated").into())
    });
    Some(Resource {
        kind,
        singular: text(names, "singular").unwrap_or_else(|| "".into()),
        short_names: texts(names, "shortNames"),
        categories: texts(names, "categories"),
        scope: if spec["scope"] == "Cluster" {
            Scope::Cluster
        } else {
            Scope::Namespaced
        },
        verbs: verbs(!crd["metadata"]["deletionTimestamp"].is_null()),
        subresources: subresources(&version["subresources"], &group, &name, names),
        types,
        ty,
        storage: Some(Storage {
            prefix: storage_prefix(&group, &plural).into(),
            version: Arc::clone(storage),
            relaxed: false,
            ttl_s: None,
        }),
        selectable: selectable_of(spec),
        generation: true,
        immutable: Vec::new(),
        hooks: Vec::new(),
        columns: columns_of(version),
        own_list_kind: text(names, "listKind"),
        custom: text(&crd["metadata"], "name"),
        custom_schema: Some(Arc::new(schema)),
        deprecation,
        group,
        version: name,
        plural,
    })
}

/// While a definition goes, its objects can be changed, so that their finalizers can go, and none can be made.
fn verbs(deleting: bool) -> Vec<Arc<str>> {
    VERBS
        .into_iter()
        .filter(|it| !(deleting && *it == "create"))
        .map(Arc::from)
        .collect()
}

fn subresources(declared: &Value, group: &Arc<str>, version: &Arc<str>, names: &Value) -> Vec<Subresource> {
    let verbs = || ["get", "patch", "update"].map(Arc::from).to_vec();
    let mut subresources = Vec::new();
    if let Some(scale) = declared.get("scale").filter(|it| it.is_object()) {
        let path = |name: &str| text(scale, name).map(|it| it.trim_start_matches('.').into());
        if let (Some(spec_replicas), Some(status_replicas)) = (path("specReplicasPath"), path("statusReplicasPath")) {
            subresources.push(Subresource {
                name: "scale".into(),
                group: "autoscaling".into(),
                version: "v1".into(),
                kind: "Scale".into(),
                verbs: verbs(),
                scale: Some(Scale {
                    spec_replicas,
                    status_replicas,
                    selector: path("labelSelectorPath").filter(|it: &Arc<str>| !it.is_empty()),
                }),
            });
        }
    }
    if declared.get("status").is_some_and(Value::is_object) {
        subresources.push(Subresource {
            name: "status".into(),
            group: Arc::clone(group),
            version: Arc::clone(version),
            kind: text(names, "kind").unwrap_or_else(|| "".into()),
            verbs: verbs(),
            scale: None,
        });
    }
    subresources
}

/// The selectable fields of all versions: these share their objects, and one index serves them all.
fn selectable_of(spec: &Value) -> Vec<SelectableField> {
    let mut fields: Vec<SelectableField> = Vec::new();
    let declared = array(spec, "versions").flat_map(|version| array(version, "selectableFields"));
    for field in declared.filter_map(selectable) {
        if !fields.contains(&field) {
            fields.push(field);
        }
    }
    fields
}

fn selectable(field: &Value) -> Option<SelectableField> {
    let path: Arc<str> = field["jsonPath"].as_str()?.trim_start_matches('.').into();
    Some(SelectableField {
        name: Arc::clone(&path),
        path,
        default: "".into(),
    })
}

fn columns_of(version: &Value) -> Vec<Column> {
    let mut declared = array(version, "additionalPrinterColumns").peekable();
    if declared.peek().is_none() {
        return columns::of_custom_resource();
    }
    let own = declared.filter_map(|column| {
        let filled = |name: &str| text(column, name).unwrap_or_else(|| "".into());
        Some(Column {
            name: text(column, "name")?,
            ty: filled("type"),
            format: filled("format"),
            priority: column["priority"]
                .as_i64()
                .and_then(|it| i32::try_from(it).ok())
                .unwrap_or(0),
            description: filled("description"),
            source: text(column, "jsonPath")?,
        })
    });
    std::iter::once(columns::named()).chain(own).collect()
}

/// The types of a version's objects, in an arena of their own.
fn types_of(schema: &Structural, group: &Arc<str>, version: &Arc<str>, kind: &Arc<str>) -> (Arc<Types>, TypeId) {
    let mut arena = Arena::default();
    let Type::Object(mut root) = arena.structure(schema) else {
        // The root of a custom resource is an object, or anything.
        let ty = arena.types.push(Type::Any);
        return (Arc::new(arena.types), ty);
    };
    root.name = format!(
        "{}.{version}.{kind}",
        group.split('.').rev().collect::<Vec<_>>().join(".")
    )
    .into();
    root.group_version_kinds = vec![fairlead_schema::types::GroupVersionKind {
        group: Arc::clone(group),
        version: Arc::clone(version),
        kind: Arc::clone(kind),
    }];
    let name = Arc::clone(&root.name);
    let ty = arena.types.define(&name, Type::Object(root));
    (Arc::new(arena.types), ty)
}

#[derive(Default)]
struct Arena {
    types: Types,
}

impl Arena {
    fn add(&mut self, schema: &Structural) -> TypeId {
        let ty = self.structure(schema);
        self.types.push(ty)
    }

    fn structure(&mut self, schema: &Structural) -> Type {
        if schema.int_or_string {
            return Type::Scalar(Scalar::IntOrString);
        }
        let int32 = schema.checks.format.as_deref() == Some("int32");
        match schema.ty {
            None => Type::Any,
            Some(SchemaType::String) => Type::Scalar(Scalar::String),
            Some(SchemaType::Integer) if int32 => Type::Scalar(Scalar::Int32),
            Some(SchemaType::Integer) => Type::Scalar(Scalar::Int64),
            Some(SchemaType::Number) => Type::Scalar(Scalar::Double),
            Some(SchemaType::Boolean) => Type::Scalar(Scalar::Boolean),
            Some(SchemaType::Array) => Type::List {
                item: match &schema.items {
                    Some(item) => self.add(item),
                    None => self.types.push(Type::Any),
                },
                kind: self.list_kind(schema),
            },
            Some(SchemaType::Object) => self.object(schema),
        }
    }

    fn list_kind(&self, schema: &Structural) -> ListKind {
        schema.list.clone()
    }

    fn object(&mut self, schema: &Structural) -> Type {
        match &schema.additional {
            Some(Additional::Schema(value)) if schema.properties.is_empty() => {
                let value = self.add(value);
                return Type::Map {
                    value,
                    atomic: schema.map_atomic,
                };
            }
            Some(Additional::Any) if schema.properties.is_empty() => {
                let value = self.types.push(Type::Any);
                return Type::Map {
                    value,
                    atomic: schema.map_atomic,
                };
            }
            _ => {}
        }
        if schema.properties.is_empty() && schema.preserve_unknown && !schema.map_atomic {
            return Type::Any;
        }
        let mut object = Object {
            atomic: schema.map_atomic,
            preserve_unknown: schema.preserve_unknown,
            ..Object::default()
        };
        for (name, property) in &schema.properties {
            let ty = if schema.embedded && **name == *"metadata" {
                self.builtin(&Types::builtin(), OBJECT_META)
            } else {
                self.add(property)
            };
            object.fields.insert(
                Arc::clone(name),
                Field {
                    ty,
                    required: schema.checks.required.contains(name),
                    default: property.default.clone(),
                    patch: PatchStrategy::default(),
                    wire: None,
                },
            );
        }
        Type::Object(object)
    }

    /// A built-in type, copied with all that it refers to.
    fn builtin(&mut self, from: &Types, name: &str) -> TypeId {
        if let Some(known) = self.types.named(name) {
            return known;
        }
        match from.named(name) {
            Some(ty) => self.copy(from, ty),
            None => self.types.push(Type::Any),
        }
    }

    fn copy(&mut self, from: &Types, ty: TypeId) -> TypeId {
        match from.get(ty) {
            Type::Object(object) if !object.name.is_empty() => {
                if let Some(known) = self.types.named(&object.name) {
                    return known;
                }
                // Declared first: types may refer to themselves.
                let id = self.types.declare(&object.name);
                let mut object = object.clone();
                for field in object.fields.values_mut() {
                    field.ty = self.copy(from, field.ty);
                }
                self.types.define(&object.name.clone(), Type::Object(object));
                id
            }
            Type::Map { value, atomic } => {
                let value = self.copy(from, *value);
                let atomic = *atomic;
                self.types.push(Type::Map { value, atomic })
            }
            Type::List { item, kind } => {
                let (item, kind) = (self.copy(from, *item), kind.clone());
                self.types.push(Type::List { item, kind })
            }
            other => self.types.push(other.clone()),
        }
    }
}
