//! [`Structural`]: `openAPIV3Schema` read once into what pruning, defaulting and validating need.
//!
//! Reading is total: what makes no sense is as if absent. [`super::check`] tells the author of a schema about it.

use super::{cel::rules::Rule, pattern::Pattern};
use fairlead_schema::ListKind;
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc};

/// `type` of a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchemaType {
    /// A JSON object.
    Object,
    /// A JSON array.
    Array,
    /// Text.
    String,
    /// A number without fraction.
    Integer,
    /// Any number.
    Number,
    /// `true` or `false`.
    Boolean,
}

impl SchemaType {
    pub(crate) fn read(name: &str) -> Option<Self> {
        Some(match name {
            "object" => Self::Object,
            "array" => Self::Array,
            "string" => Self::String,
            "integer" => Self::Integer,
            "number" => Self::Number,
            "boolean" => Self::Boolean,
            _ => return None,
        })
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Object => "object",
            Self::Array => "array",
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
        }
    }
}

/// `additionalProperties`.
#[derive(Debug)]
pub enum Additional {
    /// Any value, as it is.
    Any,
    /// Values of this schema.
    Schema(Box<Structural>),
}

/// One node of a structural schema. Source: `apiextensions.k8s.io/v1 JSONSchemaProps`.
#[derive(Debug, Default)]
pub struct Structural {
    /// `type`; `None` for int-or-string and for anything at all.
    pub ty: Option<SchemaType>,
    /// `null` is a value.
    pub nullable: bool,
    /// Written when absent.
    pub default: Option<Value>,
    /// Known fields.
    pub properties: BTreeMap<Arc<str>, Structural>,
    /// Values of unknown fields; `None`: there are none.
    pub additional: Option<Additional>,
    /// Schema of the items.
    pub items: Option<Box<Structural>>,
    /// `x-kubernetes-preserve-unknown-fields`.
    pub preserve_unknown: bool,
    /// `x-kubernetes-embedded-resource`, or the root of a resource.
    pub embedded: bool,
    /// `x-kubernetes-int-or-string`.
    pub int_or_string: bool,
    /// `x-kubernetes-list-type` and its keys.
    pub list: ListKind,
    /// `x-kubernetes-map-type: atomic`.
    pub map_atomic: bool,
    /// What values must be besides.
    pub checks: Checks,
    /// `x-kubernetes-validations`.
    pub rules: Vec<Rule>,
    /// Whether there are rules here or below.
    pub has_rules: bool,
    /// Whether there are defaults below.
    pub has_defaults: bool,
}

/// Value validations: what does not change the shape.
#[derive(Debug, Default)]
pub struct Checks {
    /// Named format, as `date-time`.
    pub format: Option<Arc<str>>,
    /// Largest number, and whether it is itself too large.
    pub maximum: Option<(f64, bool)>,
    /// Smallest number, and whether it is itself too small.
    pub minimum: Option<(f64, bool)>,
    /// Divides the number.
    pub multiple_of: Option<f64>,
    /// Characters at most.
    pub max_length: Option<u64>,
    /// Characters at least.
    pub min_length: Option<u64>,
    /// Matches somewhere in the text.
    pub pattern: Option<Pattern>,
    /// Items at most.
    pub max_items: Option<u64>,
    /// Items at least.
    pub min_items: Option<u64>,
    /// No item twice.
    pub unique_items: bool,
    /// Fields at most.
    pub max_properties: Option<u64>,
    /// Fields at least.
    pub min_properties: Option<u64>,
    /// Fields that must be there.
    pub required: Vec<Arc<str>>,
    /// The only values.
    pub allowed: Vec<Value>,
    /// All of these.
    pub all_of: Vec<Structural>,
    /// Any of these.
    pub any_of: Vec<Structural>,
    /// Exactly one of these.
    pub one_of: Vec<Structural>,
    /// Not this.
    pub not: Option<Box<Structural>>,
}

impl Structural {
    /// The schema of a whole resource: `apiVersion`, `kind` and `metadata` are known without being listed.
    pub fn root(schema: &Value) -> Self {
        let mut root = Self::read(schema);
        root.embedded = true;
        root.add_meta();
        root
    }

    /// Reads a schema; not a resource's root.
    pub fn read(schema: &Value) -> Self {
        let mut node = Self {
            ty: schema["type"].as_str().and_then(SchemaType::read),
            nullable: flag(schema, "nullable"),
            default: schema.get("default").filter(|it| !it.is_null()).cloned(),
            properties: properties(schema),
            additional: match schema.get("additionalProperties") {
                Some(Value::Bool(true)) => Some(Additional::Any),
                Some(one @ Value::Object(_)) => Some(Additional::Schema(Box::new(Self::read(one)))),
                _ => None,
            },
            items: schema
                .get("items")
                .filter(|it| it.is_object())
                .map(|it| Box::new(Self::read(it))),
            preserve_unknown: flag(schema, "x-kubernetes-preserve-unknown-fields"),
            embedded: flag(schema, "x-kubernetes-embedded-resource"),
            int_or_string: flag(schema, "x-kubernetes-int-or-string"),
            list: list_kind(schema),
            map_atomic: schema["x-kubernetes-map-type"] == "atomic",
            checks: Checks::read(schema),
            rules: array(schema, "x-kubernetes-validations").map(Rule::read).collect(),
            has_rules: false,
            has_defaults: false,
        };
        if node.embedded {
            node.add_meta();
        }
        let mut below = false;
        let mut defaults = false;
        for child in node.children() {
            below |= child.has_rules;
            defaults |= child.has_defaults || child.default.is_some();
        }
        node.has_rules = below || !node.rules.is_empty();
        node.has_defaults = defaults;
        node
    }

    /// Schemas of the values in a value of this one.
    pub fn children(&self) -> impl Iterator<Item = &Self> {
        let additional = match &self.additional {
            Some(Additional::Schema(schema)) => Some(&**schema),
            _ => None,
        };
        self.properties.values().chain(additional).chain(self.items.as_deref())
    }

    /// The schema of a field or of a map's value.
    pub fn field(&self, name: &str) -> Option<&Self> {
        if let Some(schema) = self.properties.get(name) {
            return Some(schema);
        }
        match &self.additional {
            Some(Additional::Schema(schema)) => Some(schema),
            _ => None,
        }
    }

    /// `apiVersion`, `kind` and `metadata` of what is a resource; of the metadata, rules may read the name.
    fn add_meta(&mut self) {
        let text = || Self {
            ty: Some(SchemaType::String),
            ..Self::default()
        };
        for name in ["apiVersion", "kind"] {
            self.properties.entry(name.into()).or_insert_with(text);
        }
        let metadata = self.properties.entry("metadata".into()).or_default();
        metadata.ty = Some(SchemaType::Object);
        metadata.preserve_unknown = true;
        for name in ["name", "generateName"] {
            metadata.properties.entry(name.into()).or_insert_with(text);
        }
    }
}

impl Checks {
    fn read(schema: &Value) -> Self {
        let bound = |name: &str, exclusive: &str| Some((schema.get(name)?.as_f64()?, flag(schema, exclusive)));
        let many = |name: &str| array(schema, name).map(Structural::read).collect();
        Self {
            format: text(schema, "format"),
            maximum: bound("maximum", "exclusiveMaximum"),
            minimum: bound("minimum", "exclusiveMinimum"),
            multiple_of: schema["multipleOf"].as_f64(),
            max_length: schema["maxLength"].as_u64(),
            min_length: schema["minLength"].as_u64(),
            pattern: text(schema, "pattern").filter(|it| !it.is_empty()).map(Pattern::new),
            max_items: schema["maxItems"].as_u64(),
            min_items: schema["minItems"].as_u64(),
            unique_items: flag(schema, "uniqueItems"),
            max_properties: schema["maxProperties"].as_u64(),
            min_properties: schema["minProperties"].as_u64(),
            required: array(schema, "required")
                .filter_map(Value::as_str)
                .map(Arc::from)
                .collect(),
            allowed: array(schema, "enum").cloned().collect(),
            all_of: many("allOf"),
            any_of: many("anyOf"),
            one_of: many("oneOf"),
            not: schema
                .get("not")
                .filter(|it| it.is_object())
                .map(|it| Box::new(Structural::read(it))),
        }
    }
}

fn properties(schema: &Value) -> BTreeMap<Arc<str>, Structural> {
    let all = schema["properties"].as_object().into_iter().flatten();
    all.map(|(name, schema)| (name.as_str().into(), Structural::read(schema)))
        .collect()
}

fn list_kind(schema: &Value) -> ListKind {
    match schema["x-kubernetes-list-type"].as_str() {
        Some("set") => ListKind::Set,
        Some("map") => {
            let keys = array(schema, "x-kubernetes-list-map-keys").filter_map(Value::as_str);
            let keys: Vec<Arc<str>> = keys.map(Arc::from).collect();
            if keys.is_empty() {
                ListKind::Atomic
            } else {
                ListKind::Map { keys }
            }
        }
        _ => ListKind::Atomic,
    }
}

pub(crate) fn flag(schema: &Value, name: &str) -> bool {
    schema.get(name).and_then(Value::as_bool).unwrap_or(false)
}

pub(crate) fn text(schema: &Value, name: &str) -> Option<Arc<str>> {
    schema.get(name).and_then(Value::as_str).map(Arc::from)
}

pub(crate) fn array<'a>(schema: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    schema.get(name).and_then(Value::as_array).into_iter().flatten()
}
