//! A JSON value as server-side apply sees it through its type: what is one thing, what has parts, and what the parts are
//! called. Source: KEP-555, "merge strategy" of `x-kubernetes-list-type`, `x-kubernetes-map-type`.

use super::{element::PathElement, set::FieldSet};
use fairlead_schema::types::{ListKind, Object, Scalar, Type, TypeId, Types};
use serde_json::{Map, Value};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, LazyLock},
};

/// A type, or none: content of [`Type::Any`] is seen by what it is.
#[derive(Clone, Copy)]
pub(super) struct Typed<'a> {
    types: &'a Types,
    ty: Option<TypeId>,
}

/// How a value is seen.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Shape<'a> {
    /// One thing, owned and replaced as a whole: scalars, atomic lists and maps.
    Leaf(Leaf),
    /// Fields that are owned one by one. `None`: keys of a map.
    Fields(Option<&'a Object>),
    /// Items that are owned one by one.
    Items(&'a ListKind),
}

/// Kinds of [`Shape::Leaf`].
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Leaf {
    /// `None`: any scalar.
    Scalar(Option<Scalar>),
    List,
    Map,
}

static EMPTY: LazyLock<Value> = LazyLock::new(|| Value::Object(Map::new()));

impl<'a> Typed<'a> {
    pub(super) fn new(types: &'a Types, ty: TypeId) -> Self {
        Self { types, ty: Some(ty) }
    }

    fn with(self, ty: Option<TypeId>) -> Self {
        Self { types: self.types, ty }
    }

    fn known(self) -> Option<&'a Type> {
        self.ty.map(|ty| self.types.get(ty))
    }

    /// How `value` is seen. Values that do not fit their type are seen as what the type says.
    pub(super) fn shape(self, value: &Value) -> Shape<'a> {
        match self.known() {
            None | Some(Type::Any) => match value {
                Value::Object(_) | Value::Null => Shape::Fields(None),
                Value::Array(_) => Shape::Leaf(Leaf::List),
                _ => Shape::Leaf(Leaf::Scalar(None)),
            },
            Some(Type::Scalar(scalar)) => Shape::Leaf(Leaf::Scalar(Some(*scalar))),
            Some(Type::Map { atomic: true, .. } | Type::Object(Object { atomic: true, .. })) => Shape::Leaf(Leaf::Map),
            Some(Type::Map { .. }) => Shape::Fields(None),
            Some(Type::Object(object)) => Shape::Fields(Some(object)),
            Some(Type::List {
                kind: ListKind::Atomic, ..
            }) => Shape::Leaf(Leaf::List),
            Some(Type::List { kind, .. }) => Shape::Items(kind),
        }
    }

    /// The shape where it does not depend on the value.
    pub(super) fn fixed_shape(self) -> Option<Shape<'a>> {
        match self.known() {
            None | Some(Type::Any) => None,
            Some(_) => Some(self.shape(&Value::Null)),
        }
    }

    /// The type below a step.
    pub(super) fn step(self, element: &PathElement) -> Self {
        match element {
            PathElement::Field(name) => self.field(name),
            _ => self.item(),
        }
    }

    /// The type of a field or of a map's value.
    pub(super) fn field(self, name: &str) -> Self {
        self.with(match self.known() {
            Some(Type::Object(object)) => object.fields.get(name).map(|field| field.ty),
            Some(Type::Map { value, .. }) => Some(*value),
            _ => None,
        })
    }

    /// The type of a list's items.
    pub(super) fn item(self) -> Self {
        self.with(match self.known() {
            Some(Type::List { item, .. }) => Some(*item),
            _ => None,
        })
    }

    /// Whether the schema names the field, as opposed to keys of maps.
    pub(super) fn declares(self, name: &str) -> bool {
        matches!(self.known(), Some(Type::Object(object)) if object.fields.contains_key(name))
    }

    /// What stands in for an absent field whose parent is there, where upstream's Go field always has a value: a plain
    /// struct is `{}`, a list or map that is written even if empty is `null`. Nobody becomes the owner of such a parent by
    /// bringing its first child.
    pub(super) fn filler(self, name: &str) -> Option<&'static Value> {
        let Some(Type::Object(object)) = self.known() else {
            return None;
        };
        let field = object.fields.get(name)?;
        let wire = field.wire.filter(|wire| !wire.pointer)?;
        match self.types.get(field.ty) {
            Type::Object(_) => Some(&*EMPTY),
            Type::List { .. } | Type::Map { .. } if wire.always => Some(&Value::Null),
            _ => None,
        }
    }

    /// What an item of the list is called.
    ///
    /// # Errors
    /// Items that have no name there: a key is missing, a set has an object.
    pub(super) fn name(self, kind: &ListKind, item: &Value) -> Result<PathElement, String> {
        let ListKind::Map { keys } = kind else {
            return match item {
                Value::Object(_) => Err("associative list without keys has an element that's a map type".into()),
                Value::Array(_) => Err("not supported: associative list with lists as elements".into()),
                Value::Null => Err("associative list without keys has an element that's an explicit null".into()),
                scalar => Ok(PathElement::Value(scalar.clone())),
            };
        };
        let fields = match item {
            Value::Object(fields) => fields,
            Value::Null => return Err("associative list with keys may not have a null element".into()),
            _ => return Err("associative list with keys may not have non-map elements".into()),
        };
        let mut named = Vec::with_capacity(keys.len());
        for key in keys {
            let value = fields.get(&**key).or_else(|| self.item().default(key)).ok_or_else(|| {
                format!("associative list with keys has an element that omits key field {key:?} (and doesn't have default value)")
            })?;
            named.push((Arc::clone(key), value.clone()));
        }
        Ok(PathElement::key(named))
    }

    fn default(self, name: &str) -> Option<&'a Value> {
        match self.known() {
            Some(Type::Object(object)) => object.fields.get(name)?.default.as_ref().filter(|it| !it.is_null()),
            _ => None,
        }
    }

    /// Checks that `value` can be seen through the type at all: every item of every associative list has a name. A
    /// `strict` check is for what a client applies: no unknown fields, scalars where scalars belong, no item twice.
    ///
    /// # Errors
    /// All violations, each with its path, worded as upstream does.
    pub(super) fn check(self, value: &Value, strict: bool) -> Result<(), String> {
        let mut errors = Vec::new();
        self.collect_errors(value, strict, "", &mut errors);
        match &errors[..] {
            [] => Ok(()),
            [error] => Err(error.clone()),
            many => Err(format!("errors:\n  {}", many.join("\n  "))),
        }
    }

    fn collect_errors(self, value: &Value, strict: bool, path: &str, errors: &mut Vec<String>) {
        // Enough to act on; a hostile object could have millions.
        if errors.len() >= 100 {
            return;
        }
        let mut report = |text: String| {
            errors.push(if path.is_empty() {
                text
            } else {
                format!("{path}: {text}")
            });
        };
        match (self.shape(value), value) {
            (_, Value::Null) => {}
            (Shape::Leaf(Leaf::Scalar(scalar)), value) => {
                if strict && let Some(expected) = mismatch(scalar, value) {
                    report(format!("expected {expected}, got {value}"));
                }
            }
            (Shape::Leaf(Leaf::Map) | Shape::Fields(_), Value::Object(fields)) => {
                for (name, value) in fields {
                    let path = format!("{path}.{name}");
                    if strict && self.forbids(name) {
                        errors.push(format!("{path}: field not declared in schema"));
                    } else {
                        self.field(name).collect_errors(value, strict, &path, errors);
                    }
                }
            }
            (Shape::Leaf(Leaf::List), Value::Array(items)) => {
                for (at, item) in items.iter().enumerate() {
                    self.item()
                        .collect_errors(item, strict, &format!("{path}[{at}]"), errors);
                }
            }
            (Shape::Items(kind), Value::Array(items)) => {
                let mut seen = BTreeSet::new();
                for (at, item) in items.iter().enumerate() {
                    let name = match self.name(kind, item) {
                        Ok(name) => name,
                        Err(text) => {
                            let text = format!("element {at}: {text}");
                            errors.push(if path.is_empty() {
                                text
                            } else {
                                format!("{path}: {text}")
                            });
                            return;
                        }
                    };
                    self.item()
                        .collect_errors(item, strict, &format!("{path}{name}"), errors);
                    if strict && seen.contains(&name) {
                        errors.push(format!("{path}: duplicate entries for key {name}"));
                    }
                    seen.insert(name);
                }
            }
            (Shape::Leaf(Leaf::Map) | Shape::Fields(_), value) if strict => {
                report(format!("expected map, got {value}"));
            }
            (Shape::Leaf(Leaf::List) | Shape::Items(_), value) if strict => {
                report(format!("expected list, got {value}"));
            }
            _ => {}
        }
    }

    fn forbids(self, name: &str) -> bool {
        let known = |object: &Object| object.preserve_unknown || object.fields.contains_key(name);
        matches!(self.known(), Some(Type::Object(object)) if !known(object))
    }

    /// Every path of a value: its leaves, and the items and keys that hold them. Values were checked before; items without
    /// a name are left out.
    pub(super) fn fields(self, value: &Value) -> FieldSet {
        self.collect_fields(value, false)
    }

    /// [`Typed::fields`] and whatever else would be lost with a parent: lists without items, which are owned by nobody, and
    /// declared fields that only hold others.
    pub(super) fn parts(self, value: &Value) -> FieldSet {
        self.with_parents(&self.collect_fields(value, true))
    }

    fn collect_fields(self, value: &Value, empty_lists: bool) -> FieldSet {
        match (self.shape(value), value) {
            (Shape::Fields(_), Value::Object(fields)) => self.fields_of_map(fields, empty_lists),
            (Shape::Items(kind), Value::Array(items)) => self.fields_of_list(kind, items, empty_lists),
            _ => FieldSet::default(),
        }
    }

    fn fields_of_map(self, fields: &Map<String, Value>, empty_lists: bool) -> FieldSet {
        let mut set = FieldSet::default();
        for (name, value) in fields {
            let inner = self.field(name);
            let leaf = matches!(inner.shape(value), Shape::Leaf(_));
            // A declared field that has parts is owned through them; an empty one would not be owned at all.
            let empty = match value {
                Value::Null => true,
                Value::Object(fields) => fields.is_empty(),
                Value::Array(items) => empty_lists && items.is_empty(),
                _ => false,
            };
            let member = leaf || empty || !self.declares(name);
            set.put(
                PathElement::field(name),
                member,
                inner.collect_fields(value, empty_lists),
            );
        }
        set
    }

    fn fields_of_list(self, kind: &ListKind, items: &[Value], empty_lists: bool) -> FieldSet {
        let names: Vec<_> = items
            .iter()
            .filter_map(|item| Some((self.name(kind, item).ok()?, item)))
            .collect();
        let mut seen = BTreeMap::new();
        for (name, _) in &names {
            *seen.entry(name.clone()).or_insert(0) += 1;
        }
        let mut set = FieldSet::default();
        for (name, item) in names {
            // Twins are owned together.
            let single = seen.get(&name) == Some(&1);
            let below = if single {
                self.item().collect_fields(item, empty_lists)
            } else {
                FieldSet::default()
            };
            set.put(name, true, below);
        }
        set
    }

    /// The set with those declared fields added that are only there as parents of others.
    pub(super) fn with_parents(self, set: &FieldSet) -> FieldSet {
        let mut with = FieldSet::default();
        for (element, member, below) in set.steps() {
            let parent = matches!(element, PathElement::Field(name) if self.declares(name)) && !below.is_empty();
            with.put(
                element.clone(),
                member || parent,
                self.step(element).with_parents(below),
            );
        }
        with
    }

    /// The set as the type sees it now, where it was made when more was granular: what is atomic is owned as a whole.
    pub(super) fn reconcile(self, set: &FieldSet) -> FieldSet {
        let mut reconciled = FieldSet::default();
        for (element, member, below) in set.steps() {
            let inner = self.step(element);
            let whole = matches!(inner.fixed_shape(), Some(Shape::Leaf(Leaf::List | Leaf::Map)));
            if whole && !below.is_empty() {
                reconciled.put(element.clone(), true, FieldSet::default());
            } else {
                reconciled.put(element.clone(), member, inner.reconcile(below));
            }
        }
        reconciled
    }

    /// The value without the parts at these paths; `None` where nothing is left of it. Parts at `held` stay, if empty.
    pub(super) fn remove(self, value: &Value, paths: &FieldSet, held: &FieldSet) -> Option<Value> {
        match (self.shape(value), value) {
            (Shape::Fields(_), Value::Object(fields)) => {
                let mut left = Map::new();
                for (name, value) in fields {
                    let element = PathElement::field(name);
                    if let Some(value) = self.field(name).remove_part(&element, value, paths, held) {
                        left.insert(name.clone(), value);
                    }
                }
                (!left.is_empty() || fields.is_empty()).then_some(Value::Object(left))
            }
            (Shape::Items(kind), Value::Array(items)) => {
                let part = |item: &Value| match self.name(kind, item) {
                    Ok(name) => self.item().remove_part(&name, item, paths, held),
                    Err(_) => Some(item.clone()),
                };
                let left: Vec<_> = items.iter().filter_map(part).collect();
                (!left.is_empty() || items.is_empty()).then_some(Value::Array(left))
            }
            _ => Some(value.clone()),
        }
    }

    fn remove_part(self, element: &PathElement, value: &Value, paths: &FieldSet, held: &FieldSet) -> Option<Value> {
        if paths.has(element) {
            return None;
        }
        let Some(below) = paths.below(element) else {
            return Some(value.clone());
        };
        let nothing = FieldSet::default();
        let left = self.remove(value, below, held.below(element).unwrap_or(&nothing));
        left.or_else(|| match value {
            _ if !held.has(element) => None,
            Value::Array(_) => Some(Value::Array(Vec::new())),
            _ => Some(Value::Object(Map::new())),
        })
    }
}

/// What was expected instead of `value`, if it is no such scalar.
fn mismatch(scalar: Option<Scalar>, value: &Value) -> Option<&'static str> {
    let (fits, expected) = match scalar {
        Some(Scalar::Int32 | Scalar::Int64 | Scalar::Double) => (value.is_number(), "numeric (int or float)"),
        Some(Scalar::Boolean) => (value.is_boolean(), "boolean"),
        Some(Scalar::String | Scalar::Bytes | Scalar::Time | Scalar::MicroTime) => (value.is_string(), "string"),
        Some(Scalar::Quantity | Scalar::IntOrString) | None => (!value.is_array() && !value.is_object(), "any scalar"),
    };
    (!fits).then_some(expected)
}
