//! The built-in types: the generated file `data/1.36/types.json`, embedded and read once.

use crate::types::{
    Field, GroupVersionKind, Inline, ListKind, Object, PatchStrategy, Scalar, Type, TypeId, Types, Wire, WireEncoding,
};
use serde::Deserialize;
use serde_json::Value;
use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, LazyLock},
};

static TEXT: &str = include_str!("../data/1.36/types.json");

/// Some text that changes whenever the built-in types do.
pub(crate) fn fingerprint() -> &'static str {
    TEXT
}

impl Types {
    /// All built-in types of Kubernetes 1.36, the same arena at each call.
    pub fn builtin() -> Arc<Self> {
        static BUILTIN: LazyLock<Arc<Types>> = LazyLock::new(|| {
            let rows = serde_json::from_str(TEXT).expect("the embedded file is generated, and a test reads it");
            Arc::new(Loader::default().load(rows))
        });
        Arc::clone(&BUILTIN)
    }
}

/// One line of the file.
#[derive(Deserialize)]
struct TypeRow<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(default)]
    kinds: Vec<[Cow<'a, str>; 3]>,
    /// For what is no object.
    #[serde(default, rename = "type")]
    ty: Option<Cow<'a, str>>,
    #[serde(default)]
    atomic: bool,
    #[serde(default)]
    inline: Vec<(u32, Cow<'a, str>)>,
    #[serde(default)]
    fields: BTreeMap<Cow<'a, str>, FieldRow<'a>>,
}

#[derive(Deserialize)]
struct FieldRow<'a> {
    #[serde(borrow, rename = "type")]
    ty: Cow<'a, str>,
    #[serde(default)]
    required: bool,
    #[serde(default)]
    default: Option<Value>,
    #[serde(default)]
    list: Option<ListRow<'a>>,
    /// Overrides what the type says.
    #[serde(default)]
    atomic: Option<bool>,
    #[serde(default)]
    patch: Cow<'a, str>,
    #[serde(default)]
    key: Option<Cow<'a, str>>,
    #[serde(default)]
    wire: Option<Vec<WireRow<'a>>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ListRow<'a> {
    Keys(#[serde(borrow)] Vec<Cow<'a, str>>),
    Word(SetWord),
}

/// The one word.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum SetWord {
    Set,
}

/// Number, encoding, and the words `pointer` and `always`.
#[derive(Deserialize)]
#[serde(untagged)]
enum WireRow<'a> {
    Number(u32),
    Word(#[serde(borrow)] Cow<'a, str>),
}

#[derive(Default)]
struct Loader {
    types: Types,
    /// Plain scalars, each pushed once.
    scalars: HashMap<&'static str, TypeId>,
    /// Field names repeat: each is kept once.
    strings: HashSet<Arc<str>>,
}

/// Words of the file for types without a name.
const SCALARS: [(&str, Scalar); 10] = [
    ("string", Scalar::String),
    ("int32", Scalar::Int32),
    ("int64", Scalar::Int64),
    ("double", Scalar::Double),
    ("boolean", Scalar::Boolean),
    ("bytes", Scalar::Bytes),
    ("time", Scalar::Time),
    ("microTime", Scalar::MicroTime),
    ("quantity", Scalar::Quantity),
    ("intOrString", Scalar::IntOrString),
];

impl Loader {
    fn load(mut self, rows: Vec<TypeRow<'_>>) -> Types {
        let mut overridden = Vec::new();
        for row in rows {
            let ty = match &row.ty {
                Some(word) => scalar(word).map_or(Type::Any, |(_, scalar)| Type::Scalar(scalar)),
                None => Type::Object(self.object(&row, &mut overridden)),
            };
            let inline = row.inline.iter().map(|(number, name)| Inline {
                number: *number,
                ty: self.types.declare(name),
            });
            let inline: Vec<Inline> = inline.collect();
            if !inline.is_empty() {
                self.types.set_inline(&row.name, inline);
            }
            self.types.define(&row.name, ty);
        }
        for (object, field, atomic) in overridden {
            self.types.override_atomic(&object, &field, atomic);
        }
        self.types
    }

    fn object(&mut self, row: &TypeRow<'_>, overridden: &mut Vec<(Arc<str>, Arc<str>, bool)>) -> Object {
        let name: Arc<str> = row.name.as_ref().into();
        let mut fields = BTreeMap::new();
        for (field_name, field) in &row.fields {
            let field_name = self.string(field_name);
            let ty = self.ty(&field.ty, field);
            if let Some(atomic) = field.atomic.filter(|_| !field.ty.starts_with("{}")) {
                overridden.push((Arc::clone(&name), Arc::clone(&field_name), atomic));
            }
            let strategies = || field.patch.split(',');
            let field = Field {
                ty,
                required: field.required,
                default: field.default.clone(),
                patch: PatchStrategy {
                    merge: strategies().any(|it| it == "merge"),
                    retain_keys: strategies().any(|it| it == "retainKeys"),
                    merge_key: field.key.as_ref().map(|key| self.string(key)),
                },
                wire: field.wire.as_deref().and_then(wire),
            };
            fields.insert(field_name, field);
        }
        let kinds = row.kinds.iter().map(|[group, version, kind]| GroupVersionKind {
            group: self.string(group),
            version: self.string(version),
            kind: self.string(kind),
        });
        Object {
            group_version_kinds: kinds.collect(),
            name,
            fields,
            atomic: row.atomic,
            preserve_unknown: false,
        }
    }

    /// The type of a field: `[]T`, `{}T`, a scalar's word, or a name.
    fn ty(&mut self, text: &str, field: &FieldRow<'_>) -> TypeId {
        if let Some(item) = text.strip_prefix("[]") {
            let item = self.plain(item);
            let kind = match &field.list {
                None => ListKind::Atomic,
                Some(ListRow::Word(SetWord::Set)) => ListKind::Set,
                Some(ListRow::Keys(keys)) => ListKind::Map {
                    keys: keys.iter().map(|key| self.string(key)).collect(),
                },
            };
            self.types.push(Type::List { item, kind })
        } else if let Some(value) = text.strip_prefix("{}") {
            let value = self.plain(value);
            let atomic = field.atomic == Some(true);
            self.types.push(Type::Map { value, atomic })
        } else {
            self.plain(text)
        }
    }

    /// A type about which its field says nothing more.
    fn plain(&mut self, text: &str) -> TypeId {
        if let Some(item) = text.strip_prefix("[]") {
            let item = self.plain(item);
            let kind = ListKind::Atomic;
            return self.types.push(Type::List { item, kind });
        }
        if let Some(value) = text.strip_prefix("{}") {
            let value = self.plain(value);
            return self.types.push(Type::Map { value, atomic: false });
        }
        match scalar(text) {
            Some((word, scalar)) => *self
                .scalars
                .entry(word)
                .or_insert_with(|| self.types.push(Type::Scalar(scalar))),
            None => self.types.declare(text),
        }
    }

    fn string(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.strings.get(text) {
            return Arc::clone(known);
        }
        let new: Arc<str> = text.into();
        self.strings.insert(Arc::clone(&new));
        new
    }
}

impl Types {
    /// Gives one field a copy of its object type that is, or is not, atomic.
    fn override_atomic(&mut self, object: &str, field: &str, atomic: bool) {
        let Some(id) = self.named(object) else { return };
        let Some(ty) = self.field(id, field).map(|field| field.ty) else {
            return;
        };
        let Type::Object(target) = self.get(ty) else { return };
        let mut copy = target.clone();
        copy.atomic = atomic;
        let copy = self.push(Type::Object(copy));
        if let Type::Object(object) = self.get_mut(id)
            && let Some(field) = object.fields.get_mut(field)
        {
            field.ty = copy;
        }
    }
}

fn scalar(word: &str) -> Option<(&'static str, Scalar)> {
    SCALARS.iter().find(|(known, _)| *known == word).copied()
}

fn wire(row: &[WireRow<'_>]) -> Option<Wire> {
    let [WireRow::Number(number), WireRow::Word(encoding), flags @ ..] = row else {
        return None;
    };
    let encoding = match &**encoding {
        "varint" => WireEncoding::Varint,
        "fixed64" => WireEncoding::Fixed64,
        "string" => WireEncoding::String,
        "bytes" => WireEncoding::Bytes,
        "message" => WireEncoding::Message,
        "items" => WireEncoding::Items,
        _ => return None,
    };
    let has = |flag: &str| flags.iter().any(|it| matches!(it, WireRow::Word(word) if word == flag));
    Some(Wire {
        number: *number,
        encoding,
        pointer: has("pointer"),
        always: has("always"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(path: &str) -> Field {
        let types = Types::builtin();
        let (object, field) = path.rsplit_once('.').unwrap();
        let id = types.named(&format!("io.k8s.{object}")).unwrap();
        types.field(id, field).unwrap().clone()
    }

    #[test]
    fn facts_arrive_as_generated() {
        let types = Types::builtin();
        let ports = field("api.core.v1.ServiceSpec.ports");
        let keys = vec!["port".into(), "protocol".into()];
        assert!(matches!(types.get(ports.ty), Type::List { kind, .. } if *kind == ListKind::Map { keys }));
        assert_eq!(ports.patch.merge_key.as_deref(), Some("port"));
        assert!(ports.patch.merge && !ports.patch.retain_keys);

        let volumes = field("api.core.v1.PodSpec.volumes");
        assert!(volumes.patch.merge && volumes.patch.retain_keys);

        let selector = field("api.core.v1.ServiceSpec.selector");
        assert!(matches!(types.get(selector.ty), Type::Map { atomic: true, .. }));

        let replicas = field("api.apps.v1.DeploymentSpec.replicas");
        let wire = replicas.wire.unwrap();
        assert_eq!(
            (wire.number, wire.encoding, wire.pointer, wire.always),
            (1, WireEncoding::Varint, true, false)
        );
        assert!(field("api.apps.v1.ReplicaSetStatus.replicas").wire.unwrap().always);

        let protocol = field("api.core.v1.ServicePort.protocol");
        assert_eq!(protocol.default, Some("TCP".into()));
        assert!(field("api.apps.v1.DeploymentSpec.selector").required);
    }

    #[test]
    fn a_field_may_overrule_its_type() {
        let types = Types::builtin();
        let atomic = |id| matches!(types.get(id), Type::Object(object) if object.atomic);
        assert!(atomic(types.named("io.k8s.api.core.v1.ObjectReference").unwrap()));
        assert!(!atomic(field("api.core.v1.PersistentVolumeSpec.claimRef").ty));
        assert!(atomic(field("api.core.v1.Event.involvedObject").ty));
    }

    #[test]
    fn every_kind_and_every_reference_is_defined() {
        let types = Types::builtin();
        for (name, id) in types.names() {
            let ty = types.get(id);
            let local = name.rsplit('.').next().unwrap();
            let is_any =
                ["RawExtension", "FieldsV1", "JSON"].contains(&local) || local.starts_with("JSONSchemaPropsOr");
            assert_eq!(matches!(ty, Type::Any), is_any, "{name} is {ty:?}");
        }
        for kind in ["Pod", "Namespace", "Binding", "DeleteOptions"] {
            assert!(types.kind("", "v1", kind).is_some(), "{kind}");
        }
        assert_eq!(
            types.kind_of("apps/v1", "DeleteOptions"),
            types.kind("", "v1", "DeleteOptions")
        );
        assert_eq!(types.kind_of("apps/v1", "Pod"), None);
        assert!(types.kind("apiregistration.k8s.io", "v1", "APIService").is_some());
        assert!(types.kind("metrics.k8s.io", "v1beta1", "PodMetrics").is_some());
    }
}
