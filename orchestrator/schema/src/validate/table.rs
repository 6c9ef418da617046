//! `validation.toml`: what the fields of each type may hold, checked wherever the type occurs; and JSON types.

use super::{Causes, Path, TYPE_INVALID, is_empty, shown, text};
use crate::{
    kinds::TableError,
    names,
    quantity::Quantity,
    resource::Resource,
    types::{Scalar, Type, TypeId, Types},
};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::LazyLock,
};

const TABLE: &str = "validation.toml";
const TEXT: &str = include_str!("../../validation.toml");

/// What several fields of a value say together.
pub(super) type Call = fn(&Value, &Path<'_>, &mut Causes);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    #[serde(default)]
    required: Vec<String>,
    #[serde(default)]
    fields: BTreeMap<String, String>,
    #[serde(default)]
    unique: BTreeMap<String, String>,
    call: Option<String>,
}

struct Rules {
    required: Vec<String>,
    fields: Vec<(String, Rule)>,
    /// Lists, and the fields that name their items.
    unique: Vec<(String, Vec<String>)>,
    call: Option<Call>,
}

enum Rule {
    OneOf(Vec<String>),
    Min(i64),
    Range(i64, i64),
    /// A form of text, and of each item of a list of texts.
    Form(fn(&str) -> Vec<String>),
    LabelMap,
    Address,
    Cidr,
    NotNegative,
}

static TABLES: LazyLock<HashMap<TypeId, Rules>> =
    LazyLock::new(|| load(&Types::builtin()).expect("the embedded table is correct"));

pub(super) fn check(resource: &Resource, object: &Value, causes: &mut Causes) {
    check_value(&resource.types, resource.ty, object, &Path::Root, causes);
}

fn load(types: &Types) -> Result<HashMap<TypeId, Rules>, TableError> {
    let rows: BTreeMap<String, Row> = toml::from_str(TEXT).map_err(|source| TableError::Syntax {
        table: TABLE,
        source: Box::new(source),
    })?;
    let mut all = HashMap::new();
    for (name, row) in rows {
        let wrong = |reason: String| TableError::Row {
            table: TABLE,
            row: name.clone(),
            reason,
        };
        let full = ["io.k8s.api.", "io.k8s."].map(|prefix| format!("{prefix}{name}"));
        let ty = full
            .iter()
            .find_map(|it| types.named(it))
            .ok_or_else(|| wrong("no such type".into()))?;
        let fields = row.required.iter().chain(row.fields.keys()).chain(row.unique.keys());
        if let Some(field) = fields.into_iter().find(|it| types.field(ty, it).is_none()) {
            return Err(wrong(format!("no field {field}")));
        }
        let call = row
            .call
            .as_ref()
            .map(|it| super::call(it).ok_or_else(|| wrong(format!("no function {it}"))));
        let rule = |(field, text): (String, String)| match rule(&text) {
            Some(rule) => Ok((field, rule)),
            None => Err(wrong(format!("{field}: no rule {text}"))),
        };
        let rules = Rules {
            call: call.transpose()?,
            fields: row.fields.into_iter().map(rule).collect::<Result<_, _>>()?,
            required: row.required,
            unique: row
                .unique
                .into_iter()
                .map(|(list, keys)| (list, keys.split_whitespace().map(str::to_owned).collect()))
                .collect(),
        };
        all.insert(ty, rules);
    }
    Ok(all)
}

fn rule(text: &str) -> Option<Rule> {
    let mut words = text.split_whitespace();
    let rule = match words.next()? {
        "one-of" => return Some(Rule::OneOf(words.map(str::to_owned).collect())),
        "min" => Rule::Min(words.next()?.parse().ok()?),
        "range" => Rule::Range(words.next()?.parse().ok()?, words.next()?.parse().ok()?),
        "port" => Rule::Range(1, 65535),
        "dns-label" => Rule::Form(names::dns1123_label),
        "subdomain" => Rule::Form(names::dns1123_subdomain),
        "label-key" => Rule::Form(names::qualified_name),
        "port-name" => Rule::Form(names::port_name),
        "path-segment" => Rule::Form(|text| names::path_segment(text, false)),
        "labels" => Rule::LabelMap,
        "address" => Rule::Address,
        "cidr" => Rule::Cidr,
        "not-negative" => Rule::NotNegative,
        _ => return None,
    };
    words.next().is_none().then_some(rule)
}

fn check_value(types: &Types, ty: TypeId, value: &Value, path: &Path<'_>, causes: &mut Causes) {
    if value.is_null() {
        return;
    }
    match (types.get(ty), value) {
        (Type::Any, _) => {}
        (Type::Scalar(scalar), _) => check_scalar(*scalar, value, path, causes),
        (Type::Map { value: ty, .. }, Value::Object(fields)) => {
            for (key, inner) in fields {
                check_value(types, *ty, inner, &path.key(key), causes);
            }
        }
        (Type::List { item, .. }, Value::Array(items)) => {
            for (index, inner) in items.iter().enumerate() {
                check_value(types, *item, inner, &path.index(index), causes);
            }
        }
        (Type::Object(object), Value::Object(fields)) => {
            if let Some(rules) = TABLES.get(&ty) {
                rules.check(value, fields, path, causes);
            }
            for (name, inner) in fields {
                if let Some(field) = object.fields.get(name.as_str()) {
                    check_value(types, field.ty, inner, &path.child(name), causes);
                }
            }
        }
        (Type::Map { .. } | Type::Object(_), _) => mistyped(value, "object", path, causes),
        (Type::List { .. }, _) => mistyped(value, "array", path, causes),
    }
}

fn mistyped(value: &Value, want: &str, path: &Path<'_>, causes: &mut Causes) {
    let have = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let message = format!("Invalid value: {have:?}: must be of type {want}: {}", shown(value));
    causes.add(path.to_string(), TYPE_INVALID, message);
}

fn check_scalar(scalar: Scalar, value: &Value, path: &Path<'_>, causes: &mut Causes) {
    let is_32 = |it: &Value| it.as_i64().is_some_and(|it| i32::try_from(it).is_ok());
    let (good, want) = match scalar {
        Scalar::String | Scalar::Bytes | Scalar::Time | Scalar::MicroTime => (value.is_string(), "string"),
        Scalar::Int32 => (is_32(value), "integer"),
        Scalar::Int64 => (value.is_i64(), "integer"),
        Scalar::Double => (value.is_number(), "number"),
        Scalar::Boolean => (value.is_boolean(), "boolean"),
        Scalar::IntOrString => (value.is_string() || is_32(value), "integer or string"),
        Scalar::Quantity => {
            if Quantity::of(value).is_none() {
                let form = "quantities must match the regular expression \
                            '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
                causes.invalid(path, value, form);
            }
            return;
        }
    };
    if !good {
        mistyped(value, want, path, causes);
    }
}

impl Rules {
    fn check(&self, value: &Value, fields: &Map<String, Value>, path: &Path<'_>, causes: &mut Causes) {
        for name in &self.required {
            if fields.get(name).is_none_or(is_empty) {
                causes.required(&path.child(name), "");
            }
        }
        for (name, rule) in &self.fields {
            if let Some(value) = fields.get(name).filter(|it| !is_empty(it)) {
                rule.check(value, &path.child(name), causes);
            }
        }
        for (name, keys) in &self.unique {
            unique(&value[name], keys, &path.child(name), causes);
        }
        if let Some(call) = self.call {
            call(value, path, causes);
        }
    }
}

/// No two items say the same in these fields; without fields, no two items are the same text.
fn unique(list: &Value, keys: &[String], path: &Path<'_>, causes: &mut Causes) {
    let mut seen: HashSet<Vec<String>> = HashSet::new();
    for (index, item) in super::items(list).iter().enumerate() {
        let part = |value: &Value| if value.is_null() { String::new() } else { shown(value) };
        let name: Vec<String> = match keys {
            [] => vec![part(item)],
            _ => keys.iter().map(|key| part(&item[key])).collect(),
        };
        if name.iter().all(|it| it.is_empty() || it == "\"\"") || seen.insert(name) {
            continue;
        }
        let path = path.index(index);
        match keys {
            [] => causes.duplicate(&path, item),
            [key] => causes.duplicate(&path.child(key), &item[key]),
            keys => {
                let named = keys.iter().filter(|key| !item[*key].is_null());
                causes.duplicate(&path, &named.map(|key| (key.clone(), item[key].clone())).collect());
            }
        }
    }
}

impl Rule {
    fn check(&self, value: &Value, path: &Path<'_>, causes: &mut Causes) {
        if let (Value::Array(items), false) = (value, matches!(self, Self::LabelMap)) {
            for (index, item) in items.iter().enumerate() {
                self.check(item, &path.index(index), causes);
            }
            return;
        }
        match self {
            Self::OneOf(choices) => {
                if value.is_string() && !choices.iter().any(|it| it == text(value)) {
                    causes.not_supported(path, value, choices);
                }
            }
            Self::Min(min) => {
                if value.as_i64().is_some_and(|it| it < *min) {
                    causes.invalid(path, value, &format!("must be greater than or equal to {min}"));
                }
            }
            Self::Range(min, max) => {
                if value.as_i64().is_some_and(|it| !(*min..=*max).contains(&it)) {
                    causes.invalid(path, value, &format!("must be between {min} and {max}, inclusive"));
                }
            }
            Self::Form(form) => causes.all_invalid(path, value, form(text(value))),
            Self::LabelMap => super::meta::labels(value, path, causes),
            Self::Address => {
                if text(value).parse::<std::net::IpAddr>().is_err() {
                    causes.invalid(
                        path,
                        value,
                        "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                    );
                }
            }
            Self::Cidr => {
                if !super::network::is_cidr(text(value)) {
                    causes.invalid(
                        path,
                        value,
                        "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
                    );
                }
            }
            // A count or a percentage.
            Self::NotNegative => super::workloads::not_negative(value, path, causes),
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_table_is_read() {
        if let Err(error) = super::load(&crate::Types::builtin()) {
            panic!("{error}");
        }
    }
}
