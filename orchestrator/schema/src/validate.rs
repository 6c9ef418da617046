//! [`object`]: whether an object may be stored, as upstream's validation decides it, with its reasons and words.
//!
//! Three layers: metadata (`meta`); `validation.toml`, which says per type what its fields may hold, wherever the type
//! occurs; and functions for what concerns several fields, or the object as it was. Pure, bounded, and total: fields of the
//! wrong JSON type are reported, never a panic.
//!
//! Call it on defaulted objects of the stored version, `metadata` filled.

mod access;
mod data;
mod extension;
mod meta;
mod network;
mod pod_update;
mod pods;
mod resources;
mod storage;
pub(crate) mod table;
mod workloads;

use crate::resource::Resource;
use serde_json::Value;
use std::fmt;

/// One complaint: an entry of `Status.details.causes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// As `spec.containers[0].name`.
    pub field: String,
    /// As `FieldValueInvalid`. Source: `meta/v1.CauseType`.
    pub reason: &'static str,
    /// What is wrong, without the field's name.
    pub message: String,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// No object is told more complaints than these.
const MAX_CAUSES: usize = 256;

/// Whether `new` may be stored: created, or written over `old`. Not for subresources: see [`subresource`].
pub fn object(resource: &Resource, old: Option<&Value>, new: &Value) -> Vec<Cause> {
    let mut causes = Causes::default();
    let root = Path::Root;
    meta::object(resource, old, new, &mut causes);
    if resource.custom.is_none() {
        content(resource, new, &mut causes);
        named_after_content(resource, new, &mut causes);
        if let Some(old) = old {
            immutable(resource, old, new, &mut causes);
            if let Some(update) = update(resource) {
                update(old, new, &root, &mut causes);
            }
        }
    }
    causes.all
}

/// As [`object`], for a write through a subresource (`status`, `scale`, `ephemeralcontainers`, `resize`, `binding`, …),
/// of which `new` is the whole object as it would be stored: the limits of the subresource hold instead of those of updates.
pub fn subresource(resource: &Resource, subresource: &str, old: &Value, new: &Value) -> Vec<Cause> {
    let mut causes = Causes::default();
    meta::object(resource, Some(old), new, &mut causes);
    if resource.custom.is_none() {
        content(resource, new, &mut causes);
        if is(resource, "", "pods") {
            pod_update::subresource(subresource, old, new, &mut causes);
        }
    }
    causes.all
}

/// Everything but metadata.
fn content(resource: &Resource, new: &Value, causes: &mut Causes) {
    if is(resource, "apps", "statefulsets") {
        // The controller adds the volumes of the claims before it makes pods.
        table::check(resource, &workloads::with_claimed_volumes(new), causes);
    } else {
        table::check(resource, new, causes);
    }
}

fn is(resource: &Resource, group: &str, plural: &str) -> bool {
    &*resource.group == group && &*resource.plural == plural
}

type Update = fn(&Value, &Value, &Path<'_>, &mut Causes);

/// The function that `validation.toml` calls by this name.
fn call(name: &str) -> Option<table::Call> {
    let all = [
        access::call(name),
        data::call(name),
        extension::call(name),
        network::call(name),
        pods::call(name),
        resources::call(name),
        storage::call(name),
        workloads::call(name),
    ];
    all.into_iter().flatten().next()
}

/// What the fields that may change, and how, depend on.
fn update(resource: &Resource) -> Option<Update> {
    Some(match (&*resource.group, &*resource.plural) {
        ("", "pods") => pod_update::pod,
        ("", "services") => network::service_update,
        ("", "configmaps" | "secrets") => data::update,
        ("", "persistentvolumeclaims") => storage::claim_update,
        ("", "persistentvolumes") => storage::volume_update,
        ("", "nodes") => resources::node_update,
        ("", "resourcequotas") => resources::quota_update,
        ("apps", "statefulsets") => workloads::stateful_set_update,
        ("batch", "jobs") => workloads::job_update,
        ("apiextensions.k8s.io", "customresourcedefinitions") => extension::crd_update,
        _ => return None,
    })
}

/// Paths of the resource's row that must not change.
fn immutable(resource: &Resource, old: &Value, new: &Value, causes: &mut Causes) {
    for path in &resource.immutable {
        let at = |value: &Value| path.split('.').fold(value, |at, step| &at[step]).clone();
        let (was, is) = (at(old), at(new));
        if !same(&was, &is) {
            let field = path.to_string();
            match (&*resource.group, &*resource.plural) {
                ("rbac.authorization.k8s.io", _) => causes.add(field, INVALID, told(&is, "cannot change roleRef")),
                ("storage.k8s.io", "storageclasses" | "volumeattributesclasses") if *field != *"volumeBindingMode" => {
                    let message = format!("Forbidden: updates to {field} are forbidden.");
                    causes.add(field, FORBIDDEN, message);
                }
                ("scheduling.k8s.io", _) => {
                    causes.add(field, FORBIDDEN, "Forbidden: may not be changed in an update.".into());
                }
                _ => causes.add(field, INVALID, told(&is, "field is immutable")),
            }
        }
    }
}

/// Kinds whose objects are named after what is in them.
fn named_after_content(resource: &Resource, new: &Value, causes: &mut Causes) {
    let want = match (&*resource.group, &*resource.plural) {
        ("apiextensions.k8s.io", "customresourcedefinitions") => {
            let spec = &new["spec"];
            let (plural, group) = (text(&spec["names"]["plural"]), text(&spec["group"]));
            (
                format!("{plural}.{group}"),
                "must be spec.names.plural+\".\"+spec.group",
            )
        }
        ("apiregistration.k8s.io", "apiservices") => {
            let spec = &new["spec"];
            let (version, group) = (text(&spec["version"]), text(&spec["group"]));
            (format!("{version}.{group}"), "must be `spec.version+\".\"+spec.group`")
        }
        _ => return,
    };
    let name = &new["metadata"]["name"];
    if text(name) != want.0 {
        causes.invalid(&Path::Root.child("metadata").child("name"), name, want.1);
    }
}

/// Absent, null and empty are the same: what Go cannot tell apart after decoding.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let covers = |one: &serde_json::Map<String, Value>, other: &serde_json::Map<String, Value>| {
                one.iter()
                    .all(|(name, value)| same(value, other.get(name).unwrap_or(&Value::Null)))
            };
            covers(a, b) && b.iter().all(|(name, value)| a.contains_key(name) || is_empty(value))
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (a, b) => a == b || (is_empty(a) && is_empty(b)),
    }
}

/// Where a value is. On the stack: nothing is built until there is a complaint.
#[derive(Clone, Copy)]
enum Path<'a> {
    Root,
    Field(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
    Key(&'a Path<'a>, &'a str),
}

impl<'a> Path<'a> {
    fn child(&'a self, name: &'a str) -> Path<'a> {
        Self::Field(self, name)
    }

    fn index(&'a self, index: usize) -> Path<'a> {
        Self::Index(self, index)
    }

    fn key(&'a self, key: &'a str) -> Path<'a> {
        Self::Key(self, key)
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Field(Path::Root, name) => f.write_str(name),
            Self::Field(parent, name) => write!(f, "{parent}.{name}"),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
            Self::Key(parent, key) => write!(f, "{parent}[{key}]"),
        }
    }
}

const REQUIRED: &str = "FieldValueRequired";
const INVALID: &str = "FieldValueInvalid";
const NOT_SUPPORTED: &str = "FieldValueNotSupported";
const DUPLICATE: &str = "FieldValueDuplicate";
const FORBIDDEN: &str = "FieldValueForbidden";
const TOO_LONG: &str = "FieldValueTooLong";
const TOO_MANY: &str = "FieldValueTooMany";
const TYPE_INVALID: &str = "FieldValueTypeInvalid";
const NOT_FOUND: &str = "FieldValueNotFound";

/// Collects complaints.
#[derive(Default)]
struct Causes {
    all: Vec<Cause>,
}

impl Causes {
    fn add(&mut self, field: String, reason: &'static str, message: String) {
        if self.all.len() < MAX_CAUSES {
            self.all.push(Cause { field, reason, message });
        }
    }

    fn required(&mut self, path: &Path<'_>, detail: &str) {
        self.add(path.to_string(), REQUIRED, with("Required value".into(), detail));
    }

    fn invalid(&mut self, path: &Path<'_>, value: &Value, detail: &str) {
        self.add(path.to_string(), INVALID, told(value, detail));
    }

    fn all_invalid(&mut self, path: &Path<'_>, value: &Value, details: Vec<String>) {
        for detail in details {
            self.invalid(path, value, &detail);
        }
    }

    fn forbidden(&mut self, path: &Path<'_>, detail: &str) {
        self.add(path.to_string(), FORBIDDEN, with("Forbidden".into(), detail));
    }

    fn duplicate(&mut self, path: &Path<'_>, value: &Value) {
        self.add(
            path.to_string(),
            DUPLICATE,
            format!("Duplicate value: {}", shown(value)),
        );
    }

    fn not_found(&mut self, path: &Path<'_>, value: &Value) {
        self.add(path.to_string(), NOT_FOUND, format!("Not found: {}", shown(value)));
    }

    fn not_supported<T: AsRef<str>>(&mut self, path: &Path<'_>, value: &Value, supported: &[T]) {
        let supported: Vec<String> = supported.iter().map(|it| format!("{:?}", it.as_ref())).collect();
        let detail = format!("supported values: {}", supported.join(", "));
        self.add(
            path.to_string(),
            NOT_SUPPORTED,
            with(format!("Unsupported value: {}", shown(value)), &detail),
        );
    }

    fn too_long(&mut self, path: &Path<'_>, bytes: usize) {
        self.add(
            path.to_string(),
            TOO_LONG,
            format!("Too long: may not be more than {bytes} bytes"),
        );
    }

    fn too_many(&mut self, path: &Path<'_>, count: usize, at_most: usize) {
        let message = format!("Too many: {count}: must have at most {at_most} items");
        self.add(path.to_string(), TOO_MANY, message);
    }
}

fn with(what: String, detail: &str) -> String {
    if detail.is_empty() {
        what
    } else {
        format!("{what}: {detail}")
    }
}

fn told(value: &Value, detail: &str) -> String {
    with(format!("Invalid value: {}", shown(value)), detail)
}

/// A value as messages show it; what is very long is cut.
fn shown(value: &Value) -> String {
    const MOST: usize = 1024;
    let mut all = match value {
        Value::String(text) if text.len() <= MOST => format!("{text:?}"),
        Value::String(text) => format!("{:?}", text.chars().take(MOST).collect::<String>()),
        other => other.to_string(),
    };
    if all.len() > MOST {
        let end = (0..=MOST).rev().find(|it| all.is_char_boundary(*it)).unwrap_or(0);
        all.truncate(end);
        all.push('…');
    }
    all
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

/// Null, or text, list or object without content.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

#[cfg(test)]
mod tests;
