//! Types of JSON values, as an arena: built-in kinds share one, each CRD version brings its own.

use serde_json::Value;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// Index of a [`Type`] in its [`Types`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TypeId(pub u32);

/// An arena of types that refer to each other by [`TypeId`], so that recursive types (`JSONSchemaProps`) need no cycles.
#[derive(Clone, Debug, Default)]
pub struct Types {
    types: Vec<Type>,
    names: HashMap<Arc<str>, TypeId>,
    kinds: HashMap<GroupVersionKind, TypeId>,
    /// By the object's name.
    inline: HashMap<Arc<str>, Vec<Inline>>,
}

/// A protobuf message whose fields stand in the JSON object itself (Go's `json:",inline"`), as `VolumeSource` in `Volume`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inline {
    /// Field number of the message in the outer one.
    pub number: u32,
    /// Type of the message.
    pub ty: TypeId,
}

/// What a JSON value may be.
#[derive(Clone, Debug, PartialEq)]
pub enum Type {
    /// Any JSON at all, kept as it is: `RawExtension`, `FieldsV1`, `x-kubernetes-preserve-unknown-fields`. Server-side
    /// apply owns the content of objects inside it field by field, and treats its lists as atomic.
    Any,
    /// Anything that is neither an object with known fields nor a collection.
    Scalar(Scalar),
    /// An object whose keys are data: labels, `ConfigMap.data`.
    Map {
        /// Type of every value.
        value: TypeId,
        /// `x-kubernetes-map-type: atomic`: owned and replaced as a whole.
        atomic: bool,
    },
    /// An array.
    List {
        /// Type of every item.
        item: TypeId,
        /// How server-side apply merges it.
        kind: ListKind,
    },
    /// An object with known fields.
    Object(Object),
}

/// Types without structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scalar {
    /// Text.
    String,
    /// A whole number of 32 bits.
    Int32,
    /// A whole number of 64 bits.
    Int64,
    /// A number with a fraction.
    Double,
    /// `true` or `false`.
    Boolean,
    /// Base64 text (RFC 4648 §4), bytes on the wire: `Secret.data`.
    Bytes,
    /// RFC 3339 text with seconds; `null` where unset.
    Time,
    /// RFC 3339 text with six digits of fraction.
    MicroTime,
    /// Text such as `100m`; a JSON number is taken too (`resource.Quantity`).
    Quantity,
    /// A port number or a name, a count or a percentage (`intstr.IntOrString`).
    IntOrString,
}

/// How server-side apply sees a list. Source: `x-kubernetes-list-type`, `x-kubernetes-list-map-keys`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ListKind {
    /// Owned and replaced as a whole.
    #[default]
    Atomic,
    /// Scalars, each owned for itself, none twice.
    Set,
    /// Objects, each named by the values of these fields.
    Map {
        /// Names of the key fields, in the order of the schema.
        keys: Vec<Arc<str>>,
    },
}

/// An object with known fields.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Object {
    /// Full name, as `io.k8s.api.core.v1.PodSpec`; empty for an anonymous one.
    pub name: Arc<str>,
    /// Fields by their JSON name.
    pub fields: BTreeMap<Arc<str>, Field>,
    /// `x-kubernetes-map-type: atomic`: owned and replaced as a whole.
    pub atomic: bool,
    /// Fields that are not listed are kept (CRDs only).
    pub preserve_unknown: bool,
    /// `x-kubernetes-unions`-like fields are not modelled; `retainKeys` strategy of the object itself is in [`Field`].
    pub group_version_kinds: Vec<GroupVersionKind>,
}

/// One field of an [`Object`].
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    /// Type of its value.
    pub ty: TypeId,
    /// Upstream's schema lists it as required.
    pub required: bool,
    /// Written when absent. Source: the `default` of the schema.
    pub default: Option<Value>,
    /// How a strategic merge patch treats it.
    pub patch: PatchStrategy,
    /// Its place in the protobuf message; `None` for CRDs and for what protobuf lacks.
    pub wire: Option<Wire>,
}

/// Source: `x-kubernetes-patch-strategy`, `x-kubernetes-patch-merge-key`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PatchStrategy {
    /// Strategy `merge`: the list is merged, not replaced.
    pub merge: bool,
    /// Strategy `retainKeys`: `$retainKeys` lists the fields that survive.
    pub retain_keys: bool,
    /// The field by which items are the same item; `None` in a merged list: items are scalars.
    pub merge_key: Option<Arc<str>>,
}

/// Where a field is in its protobuf message (proto2, `generated.proto`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wire {
    /// Field number.
    pub number: u32,
    /// How one value is encoded.
    pub encoding: WireEncoding,
    /// The Go field is a pointer: a zero on the wire was set by somebody and is kept. Of the others a zero means unset.
    pub pointer: bool,
    /// Upstream writes a zero into JSON too (no pointer, no `omitempty`): `ReplicaSetStatus.replicas`.
    pub always: bool,
}

/// Encoding of one value; whether there are many follows from the field's [`Type`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireEncoding {
    /// Varint: int32, int64, bool.
    Varint,
    /// Eight bytes, little endian: double.
    Fixed64,
    /// Length-delimited text.
    String,
    /// Length-delimited bytes.
    Bytes,
    /// Length-delimited message of the field's type (an object, map entry, Time, Quantity, IntOrString, …).
    Message,
    /// Length-delimited message whose only field, number 1, repeats the items of a list: `meta/v1.Verbs`.
    Items,
}

/// Names a kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupVersionKind {
    /// Empty for the core group.
    pub group: Arc<str>,
    /// As `v1`.
    pub version: Arc<str>,
    /// As `Pod`.
    pub kind: Arc<str>,
}

impl Types {
    /// Adds a type.
    pub fn push(&mut self, ty: Type) -> TypeId {
        self.types.push(ty);
        TypeId(self.types.len() as u32 - 1)
    }

    /// Adds a named type, or replaces what [`Types::declare`] reserved for that name.
    pub fn define(&mut self, name: &str, ty: Type) -> TypeId {
        let id = self.declare(name);
        if let Type::Object(object) = &ty {
            for kind in &object.group_version_kinds {
                self.kinds.insert(kind.clone(), id);
            }
        }
        self.types[id.0 as usize] = ty;
        id
    }

    /// Names the messages whose fields stand in an object itself.
    pub fn set_inline(&mut self, name: &str, inline: Vec<Inline>) {
        self.inline.insert(name.into(), inline);
    }

    /// The messages whose fields stand in this object itself.
    pub fn inline(&self, object: &Object) -> &[Inline] {
        self.inline.get(&object.name).map_or(&[], Vec::as_slice)
    }

    /// The type of a kind. Kinds of `meta/v1` (`DeleteOptions`, `Status`, …) are in every group and version: clients
    /// send `DeleteOptions` with the `apiVersion` of what they delete.
    pub fn kind(&self, group: &str, version: &str, kind: &str) -> Option<TypeId> {
        let named = |group: &str, version: &str| {
            let kind = GroupVersionKind {
                group: group.into(),
                version: version.into(),
                kind: kind.into(),
            };
            self.kinds.get(&kind).copied()
        };
        let of_meta = |id: &TypeId| match self.get(*id) {
            Type::Object(object) => object.name.starts_with("io.k8s.apimachinery.pkg.apis.meta.v1."),
            _ => false,
        };
        named(group, version).or_else(|| named("", "v1").filter(of_meta))
    }

    /// The type of a kind, by `apiVersion` as `v1` or `apps/v1`.
    pub fn kind_of(&self, api_version: &str, kind: &str) -> Option<TypeId> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        self.kind(group, version, kind)
    }

    /// The id of a name, reserved when new: types may refer to it before it is defined.
    pub fn declare(&mut self, name: &str) -> TypeId {
        if let Some(id) = self.names.get(name) {
            return *id;
        }
        let id = self.push(Type::Any);
        self.names.insert(name.into(), id);
        id
    }

    /// The type of an id that this arena gave out.
    pub fn get(&self, id: TypeId) -> &Type {
        &self.types[id.0 as usize]
    }

    /// For what the loader corrects once all types are known.
    pub(crate) fn get_mut(&mut self, id: TypeId) -> &mut Type {
        &mut self.types[id.0 as usize]
    }

    /// A type by full name, as `io.k8s.api.core.v1.Pod`.
    pub fn named(&self, name: &str) -> Option<TypeId> {
        self.names.get(name).copied()
    }

    /// All names, with their ids, in no order.
    pub fn names(&self) -> impl Iterator<Item = (&Arc<str>, TypeId)> {
        self.names.iter().map(|(name, id)| (name, *id))
    }

    /// The field of an object type; `None` for other types too.
    pub fn field(&self, id: TypeId, name: &str) -> Option<&Field> {
        match self.get(id) {
            Type::Object(object) => object.fields.get(name),
            _ => None,
        }
    }

    /// The type at a path of field names, map keys and list items (written `[]`), from `id`.
    pub fn at<'a>(&self, id: TypeId, path: impl IntoIterator<Item = &'a str>) -> Option<TypeId> {
        path.into_iter().try_fold(id, |id, step| match self.get(id) {
            Type::Object(object) => object.fields.get(step).map(|field| field.ty),
            Type::Map { value, .. } => Some(*value),
            Type::List { item, .. } if step == "[]" => Some(*item),
            Type::Any => Some(id),
            _ => None,
        })
    }
}
