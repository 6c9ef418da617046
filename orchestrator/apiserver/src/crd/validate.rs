//! OpenAPI validation of values. Source of the words: `k8s.io/kube-openapi/pkg/validation`.

use super::{
    faults::{self, child, index},
    formats,
    structural::{SchemaType, Structural},
};
use crate::value::{canonical, same};
use fairlead_schema::{Fault, ListKind};
use serde_json::{Map, Value, json};
use std::collections::{HashMap, HashSet};

/// Faults of one object at most; a client mends a few at a time.
const MAX_FAULTS: usize = 1000;

/// Visits of a value by a schema: far more than any object needs, far less than would be felt.
const MAX_VISITS: u32 = 5_000_000;

/// All faults of a value. With `old`, the value before, parts that are as they were have none.
pub fn update(schema: &Structural, path: &str, old: Option<&Value>, new: &Value) -> Vec<Fault> {
    let mut validator = Validator::new();
    validator.node(schema, path, old, new);
    if validator.visits > MAX_VISITS {
        let why = "the object and its schema are too large to be compared; make one of them smaller";
        validator.faults.push(faults::invalid_unshown(path, why));
    }
    validator.faults
}

/// All faults of a value.
pub fn value(schema: &Structural, path: &str, value: &Value) -> Vec<Fault> {
    update(schema, path, None, value)
}

/// Items that are twice in a set or a map. An object that had some before keeps them.
/// Source: `pkg/apiserver/schema/listtype` of apiextensions.
pub fn duplicates(schema: &Structural, path: &str, value: &Value) -> Vec<Fault> {
    let mut found = Vec::new();
    duplicates_below(schema, path, value, &mut found);
    found
}

/// The value of the same place in the old object; none where places cannot be told from each other.
/// Source: `CorrelatedObject` of `k8s.io/apiserver/pkg/cel/common`.
pub(crate) struct Items<'a> {
    by_key: Option<HashMap<String, &'a Value>>,
}

impl<'a> Items<'a> {
    pub(crate) fn new(list: &ListKind, schema: Option<&Structural>, old: Option<&'a Value>) -> Self {
        let by_key = match (list, old.and_then(Value::as_array)) {
            (ListKind::Map { keys }, Some(items)) => {
                let keyed = items
                    .iter()
                    .filter_map(|item| Some((map_key(item, keys, schema)?, item)));
                let mut by_key = HashMap::new();
                // Of duplicates the first counts.
                keyed.for_each(|(key, item)| {
                    by_key.entry(key).or_insert(item);
                });
                Some(by_key)
            }
            _ => None,
        };
        Self { by_key }
    }

    pub(crate) fn of(&self, list: &ListKind, schema: Option<&Structural>, item: &Value) -> Option<&'a Value> {
        match list {
            ListKind::Map { keys } => self.by_key.as_ref()?.get(&map_key(item, keys, schema)?).copied(),
            _ => None,
        }
    }
}

fn map_key(item: &Value, keys: &[std::sync::Arc<str>], schema: Option<&Structural>) -> Option<String> {
    let fields = item.as_object()?;
    let parts = keys.iter().map(|key| {
        let default = || schema?.properties.get(key)?.default.as_ref();
        let value = fields.get(&**key).or_else(default);
        value.map_or_else(String::new, canonical)
    });
    // Canonical text of a string is quoted: the separator cannot be forged.
    Some(parts.collect::<Vec<_>>().join("\u{1f}"))
}

fn duplicates_below(schema: &Structural, path: &str, value: &Value, found: &mut Vec<Fault>) {
    if found.len() >= MAX_FAULTS {
        return;
    }
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                if let Some(schema) = schema.field(name) {
                    duplicates_below(schema, &child(path, name), value, found);
                }
            }
        }
        Value::Array(items) => {
            let item_schema = schema.items.as_deref();
            let mut seen = HashSet::new();
            for (at, item) in items.iter().enumerate() {
                let (key, shown) = match &schema.list {
                    ListKind::Atomic => break,
                    ListKind::Set => (Some(canonical_deep(item)), item.clone()),
                    ListKind::Map { keys } => {
                        let fields: Map<String, Value> = keys
                            .iter()
                            .filter_map(|key| Some((key.to_string(), item.get(&**key)?.clone())))
                            .collect();
                        (map_key(item, keys, item_schema), Value::Object(fields))
                    }
                };
                if key.is_some_and(|key| !seen.insert(key)) {
                    found.push(faults::duplicate(&index(path, at), &shown, ""));
                }
            }
            if let Some(schema) = item_schema {
                for (at, item) in items.iter().enumerate() {
                    duplicates_below(schema, &index(path, at), item, found);
                }
            }
        }
        _ => {}
    }
}

/// A text that is equal for values that mean the same.
fn canonical_deep(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(canonical_deep).collect::<Vec<_>>().join(",")),
        Value::Object(fields) => {
            let mut parts: Vec<_> = fields
                .iter()
                .map(|(name, value)| format!("{name:?}:{}", canonical_deep(value)))
                .collect();
            parts.sort();
            format!("{{{}}}", parts.join(","))
        }
        scalar => canonical(scalar),
    }
}

struct Validator {
    faults: Vec<Fault>,
    visits: u32,
}

impl Validator {
    fn new() -> Self {
        Self {
            faults: Vec::new(),
            visits: 0,
        }
    }

    fn push(&mut self, fault: Fault) {
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(fault);
        }
    }

    /// What cannot be judged by type: `path in body …`.
    fn wrong(&mut self, path: &str, value: &Value, why: &str) {
        self.push(faults::invalid(path, value, &format!("{path} in body {why}")));
    }

    fn node(&mut self, schema: &Structural, path: &str, old: Option<&Value>, new: &Value) {
        self.visits = self.visits.saturating_add(1);
        if self.visits > MAX_VISITS {
            return;
        }
        if self.faults.len() >= MAX_FAULTS || old.is_some_and(|old| same(old, new)) {
            return;
        }
        if new.is_null() {
            self.null(schema, path);
            return;
        }
        self.shape(schema, path, new);
        self.junctors(schema, path, new);
        match new {
            Value::String(text) => self.text(schema, path, text),
            Value::Number(number) => self.number(schema, path, new, number.as_f64().unwrap_or(f64::NAN)),
            Value::Array(items) => self.array(schema, path, old, items),
            _ => {}
        }
        self.allowed(schema, path, new);
        if let Value::Object(fields) = new {
            self.object(schema, path, old, fields);
        }
    }

    fn null(&mut self, schema: &Structural, path: &str) {
        let name = type_names(schema);
        if !name.is_empty() && !schema.nullable {
            self.wrong_type(path, &json!("null"), &name);
        }
        if !schema.nullable {
            self.allowed(schema, path, &Value::Null);
        }
    }

    fn wrong_type(&mut self, path: &str, value: &Value, want: &str) {
        let why = format!("{path} in body must be of type {want}: {}", faults::shown(value));
        self.push(faults::wrong_type(path, value, &why));
    }

    fn shape(&mut self, schema: &Structural, path: &str, value: &Value) {
        let have = match value {
            Value::Null => return,
            Value::Bool(_) => SchemaType::Boolean,
            Value::Number(number) if is_whole(number.as_f64(), number.is_f64()) => SchemaType::Integer,
            Value::Number(_) => SchemaType::Number,
            Value::String(_) => SchemaType::String,
            Value::Array(_) => SchemaType::Array,
            Value::Object(_) => SchemaType::Object,
        };
        let fits = match schema.ty {
            _ if schema.int_or_string => matches!(have, SchemaType::Integer | SchemaType::String),
            None => true,
            Some(SchemaType::Number) => matches!(have, SchemaType::Integer | SchemaType::Number),
            Some(ty) => have == ty,
        };
        if !fits {
            self.wrong_type(path, &json!(have.name()), &type_names(schema));
        }
    }

    fn text(&mut self, schema: &Structural, path: &str, text: &str) {
        let checks = &schema.checks;
        let value = || Value::String(text.to_owned());
        if checks.max_length.is_some() || checks.min_length.is_some() {
            let length = text.chars().count() as u64;
            if let Some(max) = checks.max_length.filter(|max| length > *max) {
                self.push(faults::too_long(path, max));
            }
            if let Some(min) = checks.min_length.filter(|min| length < *min) {
                self.wrong(path, &value(), &format!("should be at least {min} chars long"));
            }
        }
        if let Some(pattern) = &checks.pattern {
            match pattern.matches(text) {
                Ok(true) => {}
                Ok(false) => self.wrong(path, &value(), &format!("should match '{}'", pattern.source())),
                Err(why) => {
                    let why = format!("should match '{}', which is no expression: {why}", pattern.source());
                    self.wrong(path, &value(), &why);
                }
            }
        }
        if let Some(format) = &checks.format
            && formats::matches(format, text) == Some(false)
        {
            self.wrong_type(path, &value(), format);
        }
    }

    fn number(&mut self, schema: &Structural, path: &str, value: &Value, number: f64) {
        let checks = &schema.checks;
        if let Some(divisor) = checks.multiple_of
            && !is_multiple(value, number, divisor)
        {
            self.wrong(path, value, &format!("should be a multiple of {divisor}"));
        }
        if let Some((max, exclusive)) = checks.maximum
            && (number > max || (exclusive && number == max))
        {
            let or = if exclusive { "" } else { " or equal to" };
            self.wrong(path, value, &format!("should be less than{or} {max}"));
        }
        if let Some((min, exclusive)) = checks.minimum
            && (number < min || (exclusive && number == min))
        {
            let or = if exclusive { "" } else { " or equal to" };
            self.wrong(path, value, &format!("should be greater than{or} {min}"));
        }
        let outside = match checks.format.as_deref() {
            Some("int32") => value.as_i64().is_none_or(|it| i32::try_from(it).is_err()) && number.fract() == 0.0,
            Some("int64") => !(-9.3e18..=9.3e18).contains(&number),
            _ => false,
        };
        if outside {
            let format = checks.format.as_deref().unwrap_or_default();
            self.wrong(path, value, &format!("must be a number of the format {format}"));
        }
    }

    fn array(&mut self, schema: &Structural, path: &str, old: Option<&Value>, items: &[Value]) {
        let checks = &schema.checks;
        if let Some(item_schema) = schema.items.as_deref() {
            let before = Items::new(&schema.list, schema.items.as_deref(), old);
            for (at, item) in items.iter().enumerate() {
                let old = before.of(&schema.list, schema.items.as_deref(), item);
                self.node(item_schema, &index(path, at), old, item);
            }
        }
        let length = items.len() as u64;
        if let Some(min) = checks.min_items.filter(|min| length < *min) {
            let value = json!(length);
            self.push(faults::invalid(
                path,
                &value,
                &format!("{path} in body should have at least {min} items"),
            ));
        }
        if let Some(max) = checks.max_items.filter(|max| length > *max) {
            self.push(faults::too_many(path, items.len(), max));
        }
        if checks.unique_items {
            let mut seen = HashSet::new();
            if !items.iter().all(|item| seen.insert(canonical_deep(item))) {
                self.push(faults::invalid_unshown(
                    path,
                    &format!("{path} in body shouldn't contain duplicates"),
                ));
            }
        }
    }

    fn object(&mut self, schema: &Structural, path: &str, old: Option<&Value>, fields: &Map<String, Value>) {
        let checks = &schema.checks;
        let length = fields.len() as u64;
        if let Some(min) = checks.min_properties.filter(|min| length < *min) {
            let value = json!(length);
            let why = format!("{path} in body should have at least {min} properties");
            self.push(faults::invalid(path, &value, &why));
        }
        if let Some(max) = checks.max_properties.filter(|max| length > *max) {
            self.push(faults::too_many(path, fields.len(), max));
        }
        for name in &checks.required {
            if !fields.contains_key(&**name) {
                self.push(faults::required(&child(path, name), ""));
            }
        }
        for (name, value) in fields {
            let Some(schema) = schema.field(name) else { continue };
            // What names the kind is the same by nature, and says nothing about its old state.
            let named = path.is_empty() && matches!(name.as_str(), "apiVersion" | "kind");
            let old = old.filter(|_| !named).and_then(|old| old.get(name));
            self.node(schema, &child(path, name), old, value);
        }
    }

    fn allowed(&mut self, schema: &Structural, path: &str, value: &Value) {
        let allowed = &schema.checks.allowed;
        if allowed.is_empty() || allowed.iter().any(|it| same(it, value)) {
            return;
        }
        let names: Vec<String> = allowed
            .iter()
            .map(|it| it.as_str().map_or_else(|| it.to_string(), str::to_owned))
            .collect();
        self.push(faults::not_supported(path, value, &names));
    }

    fn junctors(&mut self, schema: &Structural, path: &str, value: &Value) {
        let checks = &schema.checks;
        if !checks.any_of.is_empty() {
            let (passed, best) = self.count(&checks.any_of, path, value, true);
            if passed == 0 {
                self.composite(path, "must validate at least one schema (anyOf)", best);
            }
        }
        if !checks.one_of.is_empty() {
            let (passed, best) = self.count(&checks.one_of, path, value, false);
            match passed {
                0 => self.composite(
                    path,
                    "must validate one and only one schema (oneOf). Found none valid",
                    best,
                ),
                1 => {}
                many => {
                    let why = format!("must validate one and only one schema (oneOf). Found {many} valid alternatives");
                    self.composite(path, &why, Vec::new());
                }
            }
        }
        if !checks.all_of.is_empty() {
            let mut faults = Vec::new();
            let mut failed = false;
            for schema in &checks.all_of {
                let found = self.trial(schema, path, value);
                failed |= !found.is_empty();
                faults.extend(found);
            }
            if failed {
                self.composite(path, "must validate all the schemas (allOf)", faults);
            }
        }
        if let Some(not) = &checks.not
            && self.trial(not, path, value).is_empty()
        {
            self.composite(path, "must not validate the schema (not)", Vec::new());
        }
    }

    /// How many schemas a value passes, and what is wrong with it by the one that it comes closest to.
    fn count(&mut self, schemas: &[Structural], path: &str, value: &Value, first: bool) -> (usize, Vec<Fault>) {
        let (mut passed, mut best) = (0, None::<Vec<Fault>>);
        for schema in schemas {
            let faults = self.trial(schema, path, value);
            if faults.is_empty() {
                passed += 1;
                if first {
                    break;
                }
            } else if best.as_ref().is_none_or(|best| faults.len() < best.len()) {
                best = Some(faults);
            }
        }
        (passed, best.unwrap_or_default())
    }

    /// What would be wrong by another schema.
    fn trial(&mut self, schema: &Structural, path: &str, value: &Value) -> Vec<Fault> {
        let kept = std::mem::take(&mut self.faults);
        self.node(schema, path, None, value);
        std::mem::replace(&mut self.faults, kept)
    }

    /// Upstream has no path for these; their text names it.
    fn composite(&mut self, path: &str, why: &str, details: Vec<Fault>) {
        self.push(faults::invalid(
            "",
            &json!(""),
            &format!("{} {why}", faults::quoted(path)),
        ));
        details.into_iter().for_each(|fault| self.push(fault));
    }
}

fn type_names(schema: &Structural) -> String {
    if schema.int_or_string {
        return "integer,string".to_owned();
    }
    schema.ty.map_or_else(String::new, |ty| ty.name().to_owned())
}

/// `1.0` is a whole number too.
fn is_whole(number: Option<f64>, is_float: bool) -> bool {
    !is_float || number.is_some_and(|it| it.is_finite() && it.fract() == 0.0)
}

fn is_multiple(value: &Value, number: f64, divisor: f64) -> bool {
    if let Some(whole) = value.as_i64()
        && divisor.fract() == 0.0
        && divisor.abs() < 9e15
        && divisor != 0.0
    {
        return whole % divisor as i64 == 0;
    }
    let quotient = number / divisor;
    quotient.is_finite() && (quotient - quotient.round()).abs() <= f64::EPSILON * quotient.abs().max(1.0)
}

/// Faults of what names the kind in resources inside of an object.
/// Source: `pkg/apiserver/schema/objectmeta` of apiextensions.
pub fn embedded(schema: &Structural, path: &str, value: &Value) -> Vec<Fault> {
    let mut found = Vec::new();
    embedded_below(schema, path, value, &mut found);
    found
}

fn embedded_below(schema: &Structural, path: &str, value: &Value, found: &mut Vec<Fault>) {
    if found.len() >= MAX_FAULTS {
        return;
    }
    match value {
        Value::Object(fields) => {
            // The core has seen to the resource itself.
            if schema.embedded && !path.is_empty() {
                for name in ["apiVersion", "kind"] {
                    let path = child(path, name);
                    match fields.get(name) {
                        None => found.push(faults::required(&path, "")),
                        Some(Value::String(text)) if text.is_empty() => {
                            found.push(faults::invalid(&path, &json!(""), "must not be empty"));
                        }
                        Some(_) => {}
                    }
                }
                match fields.get("metadata") {
                    None | Some(Value::Object(_)) => {}
                    Some(other) => found.push(faults::invalid(&child(path, "metadata"), other, "must be an object")),
                }
            }
            for (name, value) in fields {
                match schema.field(name) {
                    Some(schema) => embedded_below(schema, &child(path, name), value, found),
                    None => continue,
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = &schema.items {
                for (at, item) in items.iter().enumerate() {
                    embedded_below(schema, &index(path, at), item, found);
                }
            }
        }
        _ => {}
    }
}
