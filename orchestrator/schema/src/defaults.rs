//! [`apply`]: writes what upstream's defaulting writes into an object, by the rules of `defaults.toml` for built-in
//! kinds and by the schema's `default` for custom resources. Pure and idempotent.
//!
//! The API server strips `status` on create before it calls [`apply`], and calls it on whatever a client may have changed.

mod calls;

use crate::{
    jsonpath::JsonPath,
    kinds::TableError,
    resource::Resource,
    types::{Field, Type, TypeId, Types},
};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, LazyLock},
};

const TABLE: &str = "defaults.toml";
const TEXT: &str = include_str!("../defaults.toml");

/// A function for what data cannot say. Gets the value of the rule's type.
type Call = fn(&mut Map<String, Value>);

/// Writes defaults into an object of a resource. What is not an object, or has fields of other types than it should, is
/// left as it is there.
pub fn apply(resource: &Resource, object: &mut Value) {
    apply_type(&resource.types, resource.ty, object);
}

/// As [`apply`], for a value of any type: what subresources take (`TokenRequest`), or a part of an object.
pub fn apply_type(types: &Arc<Types>, ty: TypeId, value: &mut Value) {
    static RULES: LazyLock<Rules> =
        LazyLock::new(|| Rules::load(&Types::builtin()).expect("the embedded table is correct"));
    if Arc::ptr_eq(types, &Types::builtin()) {
        RULES.walk(types, ty, value);
    } else {
        fill(types, ty, value);
    }
}

/// Defaults of a CRD's schema: parents first, since what a default brings is completed too.
fn fill(types: &Types, ty: TypeId, value: &mut Value) {
    match (types.get(ty), value) {
        (Type::Object(object), Value::Object(fields)) => {
            for (name, field) in &object.fields {
                if let (Some(default), false) = (&field.default, fields.contains_key(&**name)) {
                    fields.insert(name.to_string(), default.clone());
                }
                if let Some(inner) = fields.get_mut(&**name) {
                    fill(types, field.ty, inner);
                }
            }
        }
        (Type::Map { value: ty, .. }, Value::Object(fields)) => {
            fields.values_mut().for_each(|inner| fill(types, *ty, inner));
        }
        (Type::List { item, .. }, Value::Array(items)) => {
            items.iter_mut().for_each(|inner| fill(types, *item, inner));
        }
        _ => {}
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    rule: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    #[serde(rename = "type")]
    ty: String,
    #[serde(default)]
    when: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    has: Vec<String>,
    #[serde(default)]
    lacks: Vec<String>,
    #[serde(default)]
    set: BTreeMap<String, Value>,
    #[serde(default)]
    unset: Vec<String>,
    call: Option<String>,
}

struct Rule {
    when: Vec<(JsonPath, Vec<String>)>,
    has: Vec<JsonPath>,
    lacks: Vec<JsonPath>,
    set: Vec<Setting>,
    unset: Vec<String>,
    call: Option<Call>,
}

struct Setting {
    path: Vec<String>,
    value: Value,
    /// A zero value counts as absent: the Go field is no pointer.
    zero_is_absent: bool,
}

struct Rules {
    by_type: HashMap<TypeId, Vec<Rule>>,
    /// Types with rules on themselves or on something inside: only those are walked.
    reaching: HashSet<TypeId>,
}

impl Rules {
    fn load(types: &Types) -> Result<Self, TableError> {
        let file: File = toml::from_str(TEXT).map_err(|source| TableError::Syntax {
            table: TABLE,
            source: Box::new(source),
        })?;
        let mut by_type: HashMap<TypeId, Vec<Rule>> = HashMap::new();
        for row in file.rule {
            let name = row.ty.clone();
            let wrong = |reason: String| TableError::Row {
                table: TABLE,
                row: name.clone(),
                reason,
            };
            let full = ["io.k8s.api.", "io.k8s."]
                .iter()
                .map(|prefix| format!("{prefix}{}", row.ty));
            let ty = full.clone().find_map(|name| types.named(&name));
            let ty = ty.ok_or_else(|| wrong("there is no such type".into()))?;
            let rule = rule(types, ty, row).map_err(wrong)?;
            by_type.entry(ty).or_default().push(rule);
        }
        let reaching = reaching(types, &by_type);
        Ok(Self { by_type, reaching })
    }

    fn walk(&self, types: &Types, ty: TypeId, value: &mut Value) {
        if !self.reaching.contains(&ty) {
            return;
        }
        match (types.get(ty), value) {
            (Type::Object(object), Value::Object(fields)) => {
                for (name, inner) in fields.iter_mut() {
                    if let Some(field) = object.fields.get(name.as_str()) {
                        self.walk(types, field.ty, inner);
                    }
                }
                for rule in self.by_type.get(&ty).into_iter().flatten() {
                    rule.apply(fields);
                }
            }
            (Type::Map { value: ty, .. }, Value::Object(fields)) => {
                fields.values_mut().for_each(|inner| self.walk(types, *ty, inner));
            }
            (Type::List { item, .. }, Value::Array(items)) => {
                items.iter_mut().for_each(|inner| self.walk(types, *item, inner));
            }
            _ => {}
        }
    }
}

/// Grows until nothing is added: types refer to each other in cycles (`JSONSchemaProps`).
fn reaching(types: &Types, by_type: &HashMap<TypeId, Vec<Rule>>) -> HashSet<TypeId> {
    let mut all: Vec<TypeId> = types.names().map(|(_, id)| id).collect();
    let mut seen: HashSet<TypeId> = all.iter().copied().collect();
    let mut users: HashMap<TypeId, Vec<TypeId>> = HashMap::new();
    while let Some(ty) = all.pop() {
        let inner: Vec<TypeId> = match types.get(ty) {
            Type::Object(object) => object.fields.values().map(|field| field.ty).collect(),
            Type::Map { value, .. } => vec![*value],
            Type::List { item, .. } => vec![*item],
            Type::Any | Type::Scalar(_) => Vec::new(),
        };
        for inner in inner {
            users.entry(inner).or_default().push(ty);
            if seen.insert(inner) {
                all.push(inner);
            }
        }
    }
    let mut reaching: HashSet<TypeId> = by_type.keys().copied().collect();
    let mut fresh: Vec<TypeId> = reaching.iter().copied().collect();
    while let Some(ty) = fresh.pop() {
        for user in users.get(&ty).into_iter().flatten() {
            if reaching.insert(*user) {
                fresh.push(*user);
            }
        }
    }
    reaching
}

fn rule(types: &Types, ty: TypeId, row: Row) -> Result<Rule, String> {
    let path = |text: &String| JsonPath::parse(text).map_err(|error| error.to_string());
    let when = row.when.into_iter().map(|(text, values)| Ok((path(&text)?, values)));
    let call = row
        .call
        .map(|name| calls::named(&name).ok_or_else(|| format!("there is no function {name}")));
    let mut set = Vec::new();
    for (text, value) in row.set {
        let path: Vec<String> = text.split('.').map(str::to_owned).collect();
        let field = field_at(types, ty, &path).ok_or_else(|| format!("there is no field {text}"))?;
        set.push(Setting {
            path,
            value,
            zero_is_absent: field.wire.is_some_and(|wire| !wire.pointer),
        });
    }
    Ok(Rule {
        when: when.collect::<Result<_, String>>()?,
        has: row.has.iter().map(path).collect::<Result<_, _>>()?,
        lacks: row.lacks.iter().map(path).collect::<Result<_, _>>()?,
        set,
        unset: row.unset,
        call: call.transpose()?,
    })
}

fn field_at<'a>(types: &'a Types, ty: TypeId, path: &[String]) -> Option<&'a Field> {
    let (last, parents) = path.split_last()?;
    let parent = types.at(ty, parents.iter().map(String::as_str))?;
    types.field(parent, last)
}

impl Rule {
    fn apply(&self, fields: &mut Map<String, Value>) {
        if !self.when.is_empty() || !self.has.is_empty() || !self.lacks.is_empty() {
            // Conditions need a value to look at; the map is put back at once.
            let object = Value::Object(std::mem::take(fields));
            let there = |path: &JsonPath| path.first(&object).is_some_and(|value| !is_empty(value));
            let one_of = |(path, values): &(JsonPath, Vec<String>)| {
                let value = path.first(&object).and_then(Value::as_str);
                value.is_some_and(|value| values.iter().any(|it| it == value))
            };
            let holds = self.when.iter().all(one_of) && self.has.iter().all(there) && !self.lacks.iter().any(there);
            if let Value::Object(object) = object {
                *fields = object;
            }
            if !holds {
                return;
            }
        }
        for setting in &self.set {
            setting.apply(fields);
        }
        for name in &self.unset {
            fields.remove(name);
        }
        if let Some(call) = self.call {
            call(fields);
        }
    }
}

impl Setting {
    fn apply(&self, mut fields: &mut Map<String, Value>) {
        let Some((last, parents)) = self.path.split_last() else {
            return;
        };
        for parent in parents {
            // Whether an object needs a spec is for validation to say; one made here would lack its own type's defaults.
            if parent == "spec" && !fields.contains_key(parent) {
                return;
            }
            let inner = fields.entry(parent.as_str()).or_insert(Value::Null);
            if inner.is_null() {
                *inner = Value::Object(Map::new());
            }
            match inner {
                Value::Object(inner) => fields = inner,
                _ => return,
            }
        }
        let absent = match fields.get(last.as_str()) {
            None | Some(Value::Null) => true,
            Some(value) => self.zero_is_absent && is_zero(value),
        };
        if absent {
            fields.insert(last.clone(), self.value.clone());
        }
    }
}

fn is_zero(value: &Value) -> bool {
    is_empty(value) || *value == Value::Bool(false) || value.as_i64() == Some(0)
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

#[cfg(test)]
mod tests;
