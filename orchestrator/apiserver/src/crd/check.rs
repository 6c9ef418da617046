//! Whether a schema may be the schema of a custom resource: structural, and with nothing that upstream does not support.
//! Source: `pkg/apis/apiextensions/validation` and `pkg/apiserver/schema/validation.go` of apiextensions.

mod shape;

use super::{
    cel, default,
    faults::{self, child, forbidden, index, invalid, key, required},
    pattern, prune,
    structural::{SchemaType, Structural, array, flag},
    validate,
};
use fairlead_schema::Fault;
use serde_json::{Value, json};
use shape::Level;

/// Faults of one schema at most: an author mends a few at a time.
const MAX_FAULTS: usize = 200;

/// All faults of a schema at `path`, sorted. `status`: the version has the status subresource.
pub fn schema(schema: &Value, path: &str, status: bool) -> Vec<Fault> {
    let mut checker = Checker { faults: Vec::new() };
    if !schema.is_object() {
        return vec![required(path, "")];
    }
    checker.root(schema, path, status);
    let mut found = checker.faults;
    if found.is_empty() {
        // What follows works on the schema as read, which stands for it only when it is sound.
        let root = Structural::root(schema);
        defaults(schema, &Structural::read(schema), path, &mut found);
        if found.is_empty() {
            cel::check::rules(schema, &root, path, &mut found);
        }
    }
    found.sort_by(|a, b| (&a.field, &a.message).cmp(&(&b.field, &b.message)));
    found.dedup();
    found
}

/// The faults for which a stored schema is called non-structural: its shape alone.
pub fn structural(schema: &Value, path: &str) -> Vec<Fault> {
    let mut checker = Checker { faults: Vec::new() };
    checker.structural(schema, path, Level::Root);
    let mut found = checker.faults;
    found.sort_by(|a, b| (&a.field, &a.message).cmp(&(&b.field, &b.message)));
    found
}

/// Fields that a schema may have at its root beside a status subresource.
const AT_ROOT: &[&str] = &[
    "description",
    "type",
    "format",
    "title",
    "maximum",
    "exclusiveMaximum",
    "minimum",
    "exclusiveMinimum",
    "maxLength",
    "minLength",
    "pattern",
    "maxItems",
    "minItems",
    "uniqueItems",
    "multipleOf",
    "required",
    "items",
    "properties",
    "externalDocs",
    "example",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-validations",
];

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];

struct Checker {
    faults: Vec<Fault>,
}

impl Checker {
    fn push(&mut self, fault: Fault) {
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(fault);
        }
    }

    fn root(&mut self, schema: &Value, path: &str, status: bool) {
        if status {
            let ty = schema["type"].as_str().unwrap_or_default();
            if !matches!(ty, "" | "object") {
                let why = "only \"object\" is allowed as the type at the root of the schema if the status subresource is \
                           enabled";
                self.push(invalid(&child(path, "type"), &schema["type"], why));
            }
            let fields = schema.as_object().into_iter().flatten();
            for (name, value) in fields {
                if !AT_ROOT.contains(&name.as_str()) && !is_zero(value) && !structural_elsewhere(name) {
                    let why =
                        format!("{name} is not allowed at the root of the schema if the status subresource is enabled");
                    self.push(faults::invalid_unshown(path, &why));
                }
            }
        }
        if flag(schema, "nullable") {
            self.push(forbidden(
                &child(path, "nullable"),
                "nullable cannot be true at the root",
            ));
        }
        self.standard(schema, path, false);
        self.structural(schema, path, Level::Root);
    }

    /// What holds for every schema, nested ones too.
    fn standard(&mut self, schema: &Value, path: &str, in_meta: bool) {
        if self.faults.len() >= MAX_FAULTS {
            return;
        }
        self.keywords(schema, path, in_meta);
        self.collections(schema, path);
        self.rules(schema, path);
        for (name, below) in schema["properties"].as_object().into_iter().flatten() {
            let resource = flag(schema, "x-kubernetes-embedded-resource");
            let meta = in_meta || (resource && matches!(name.as_str(), "metadata" | "apiVersion" | "kind"));
            self.standard(below, &key(&child(path, "properties"), name), meta);
        }
        for name in ["items", "additionalProperties", "not"] {
            if let Some(below) = schema.get(name).filter(|it| it.is_object()) {
                self.standard(below, &child(path, name), in_meta);
            }
        }
        for name in ["allOf", "anyOf", "oneOf"] {
            for (at, below) in array(schema, name).enumerate() {
                self.standard(below, &index(&child(path, name), at), in_meta);
            }
        }
    }

    fn keywords(&mut self, schema: &Value, path: &str, in_meta: bool) {
        match schema["type"].as_str() {
            None | Some("") => {}
            Some("null") => {
                let why = "type cannot be set to null, use nullable as an alternative";
                self.push(forbidden(&child(path, "type"), why));
            }
            Some(ty) if !TYPES.contains(&ty) => {
                self.push(faults::not_supported(&child(path, "type"), &schema["type"], &TYPES));
            }
            Some(_) => {}
        }
        for name in [
            "id",
            "additionalItems",
            "patternProperties",
            "definitions",
            "dependencies",
            "$ref",
            "$schema",
        ] {
            if schema.get(name).is_some_and(|value| !is_zero(value)) {
                self.push(forbidden(&child(path, name), &format!("{name} is not supported")));
            }
        }
        if schema["items"].is_array() {
            self.push(forbidden(
                &child(path, "items"),
                "items must be a schema object and not an array",
            ));
        }
        if flag(schema, "uniqueItems") {
            let why = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
            self.push(forbidden(&child(path, "uniqueItems"), why));
        }
        let additional = schema
            .get("additionalProperties")
            .is_some_and(|it| it.is_object() || *it == json!(true));
        if additional && !is_zero(&schema["properties"]) {
            let why = "additionalProperties and properties are mutual exclusive";
            self.push(forbidden(&child(path, "additionalProperties"), why));
        }
        if schema.get("x-kubernetes-preserve-unknown-fields") == Some(&json!(false)) {
            let path = child(path, "x-kubernetes-preserve-unknown-fields");
            self.push(invalid(&path, &json!(false), "must be true or undefined"));
        }
        if in_meta && flag(schema, "x-kubernetes-embedded-resource") {
            let path = child(path, "x-kubernetes-embedded-resource");
            self.push(forbidden(&path, "must not be used inside of resource meta"));
        }
        if let Some(source) = schema["pattern"].as_str().filter(|it| !it.is_empty())
            && let Err(why) = pattern::compile(source)
        {
            let why = format!("must be a valid regular expression, but isn't: {why}");
            self.push(invalid(&child(path, "pattern"), &json!(source), &why));
        }
    }

    /// `x-kubernetes-list-type`, its keys, and `x-kubernetes-map-type`.
    fn collections(&mut self, schema: &Value, path: &str) {
        let ty = schema["type"].as_str().unwrap_or_default();
        if let Some(kind) = schema["x-kubernetes-map-type"].as_str() {
            self.needs_type(
                schema,
                path,
                "object",
                "must be object if x-kubernetes-map-type is specified",
            );
            if !matches!(kind, "atomic" | "granular") {
                let path = child(path, "x-kubernetes-map-type");
                self.push(faults::not_supported(&path, &json!(kind), &["atomic", "granular"]));
            }
        }
        let keys: Vec<&str> = array(schema, "x-kubernetes-list-map-keys")
            .filter_map(Value::as_str)
            .collect();
        let kind = schema["x-kubernetes-list-type"].as_str();
        if let Some(kind) = kind {
            self.needs_type(
                schema,
                path,
                "array",
                "must be array if x-kubernetes-list-type is specified",
            );
            if !matches!(kind, "atomic" | "set" | "map") {
                let path = child(path, "x-kubernetes-list-type");
                self.push(faults::not_supported(&path, &json!(kind), &["atomic", "set", "map"]));
            }
            if kind == "set" && ty == "array" {
                self.set_items(&schema["items"], &child(path, "items"));
            }
        }
        if !keys.is_empty() && kind != Some("map") {
            let why = "must be map if x-kubernetes-list-map-keys is non-empty";
            let path = child(path, "x-kubernetes-list-type");
            match kind {
                None => self.push(required(&path, why)),
                Some(kind) => self.push(invalid(&path, &json!(kind), why)),
            }
        }
        if kind == Some("map") {
            self.map_items(schema, &keys, path);
        }
    }

    fn needs_type(&mut self, schema: &Value, path: &str, want: &str, why: &str) {
        let path = child(path, "type");
        match schema["type"].as_str().unwrap_or_default() {
            "" => self.push(required(&path, why)),
            ty if ty != want => self.push(invalid(&path, &json!(ty), why)),
            _ => {}
        }
    }

    fn set_items(&mut self, items: &Value, path: &str) {
        if flag(items, "nullable") {
            self.push(forbidden(
                &child(path, "nullable"),
                "cannot be nullable when x-kubernetes-list-type is set",
            ));
        }
        let (name, why) = match items["type"].as_str() {
            Some("array") => (
                "x-kubernetes-list-type",
                "must be atomic as item of a list with x-kubernetes-list-type=set",
            ),
            Some("object") => (
                "x-kubernetes-map-type",
                "must be atomic as item of a list with x-kubernetes-list-type=set",
            ),
            _ => return,
        };
        if items[name] != "atomic" && !(name == "x-kubernetes-list-type" && items[name].is_null()) {
            self.push(invalid(&child(path, name), &items[name], why));
        }
    }

    fn map_items(&mut self, schema: &Value, keys: &[&str], path: &str) {
        if keys.is_empty() {
            let why = "must not be empty if x-kubernetes-list-type is map";
            self.push(required(&child(path, "x-kubernetes-list-map-keys"), why));
        }
        let items_path = child(path, "items");
        let items = &schema["items"];
        if !items.is_object() {
            self.push(required(
                &items_path,
                "must have a schema if x-kubernetes-list-type is map",
            ));
            return;
        }
        if items["type"] != "object" {
            let why = "must be object if parent array's x-kubernetes-list-type is map";
            self.push(invalid(&child(&items_path, "type"), &items["type"], why));
        }
        if flag(items, "nullable") {
            self.push(forbidden(
                &child(&items_path, "nullable"),
                "cannot be nullable when x-kubernetes-list-type is map",
            ));
        }
        let keys_path = child(path, "x-kubernetes-list-map-keys");
        for (at, name) in keys.iter().enumerate() {
            if keys[..at].contains(name) {
                self.push(invalid(&keys_path, &json!(keys), "must not contain duplicate entries"));
            }
            let Some(property) = items["properties"].get(name) else {
                self.push(invalid(
                    &keys_path,
                    &json!(keys),
                    "entries must all be names of item properties",
                ));
                continue;
            };
            let path = key(&child(&items_path, "properties"), name);
            if matches!(property["type"].as_str(), Some("array" | "object")) {
                let why = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                self.push(invalid(&child(&path, "type"), &property["type"], why));
            }
            let needed = array(items, "required").any(|it| it == name);
            if !needed && property.get("default").is_none_or(Value::is_null) {
                let why = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
                self.push(required(&child(&path, "default"), why));
            }
            if flag(property, "nullable") {
                let why = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
                self.push(forbidden(&child(&path, "nullable"), why));
            }
        }
    }

    /// The form of `x-kubernetes-validations`; what they say is checked by [`cel::check`].
    fn rules(&mut self, schema: &Value, path: &str) {
        const REASONS: [&str; 4] = [
            "FieldValueDuplicate",
            "FieldValueForbidden",
            "FieldValueInvalid",
            "FieldValueRequired",
        ];
        for (at, rule) in array(schema, "x-kubernetes-validations").enumerate() {
            let path = index(&child(path, "x-kubernetes-validations"), at);
            let text = |name: &str| rule.get(name).and_then(Value::as_str);
            let source = text("rule").unwrap_or_default().trim();
            if source.is_empty() {
                self.push(required(&child(&path, "rule"), "rule is not specified"));
            }
            let broken = |text: &str| text.contains(['\n', '\r']);
            match text("message") {
                Some(message) if !message.is_empty() && message.trim().is_empty() => {
                    self.push(invalid(
                        &child(&path, "message"),
                        &json!(message),
                        "must be non-empty if specified",
                    ));
                }
                Some(message) if broken(message.trim()) => {
                    self.push(invalid(
                        &child(&path, "message"),
                        &json!(message),
                        "must not contain line breaks",
                    ));
                }
                None | Some("") if broken(source) => {
                    let why = "message must be specified if rule contains line breaks";
                    self.push(required(&child(&path, "message"), why));
                }
                _ => {}
            }
            if text("messageExpression").is_some_and(|it| !it.is_empty() && it.trim().is_empty()) {
                let why = "messageExpression must be non-empty if specified";
                self.push(required(&child(&path, "messageExpression"), why));
            }
            if let Some(reason) = text("reason").filter(|it| !REASONS.contains(it)) {
                self.push(faults::not_supported(&child(&path, "reason"), &json!(reason), &REASONS));
            }
            match text("fieldPath") {
                Some(field) if !field.is_empty() && field.trim().is_empty() => {
                    self.push(invalid(
                        &child(&path, "fieldPath"),
                        &json!(field),
                        "must be non-empty if specified",
                    ));
                }
                Some(field) if broken(field) => {
                    self.push(invalid(
                        &child(&path, "fieldPath"),
                        &json!(field),
                        "must not contain line breaks",
                    ));
                }
                Some(field) if !field.is_empty() && cel::path::resolve(field, schema).is_none() => {
                    self.push(invalid(
                        &child(&path, "fieldPath"),
                        &json!(field),
                        "must be a valid path",
                    ));
                }
                _ => {}
            }
        }
    }
}

/// Unset, as Go sees it.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(value) => value.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

/// Keywords of which another check speaks.
fn structural_elsewhere(name: &str) -> bool {
    matches!(
        name,
        "id" | "additionalItems"
            | "patternProperties"
            | "definitions"
            | "dependencies"
            | "$ref"
            | "$schema"
            | "nullable"
            | "additionalProperties"
    )
}

/// Every default must be a value of its own schema.
fn defaults(schema: &Value, node: &Structural, path: &str, found: &mut Vec<Fault>) {
    if found.len() >= MAX_FAULTS {
        return;
    }
    if let Some(value) = &node.default {
        let path = child(path, "default");
        let mut pruned = value.clone();
        let mut unknown = prune::prune_value(&mut pruned, node);
        unknown.truncate(1);
        if !unknown.is_empty() {
            found.push(invalid(&path, value, "must not have unknown fields"));
        }
        prune::drop_nulls(&mut pruned, node);
        default::apply(&mut pruned, node);
        found.extend(validate::value(node, &path, &pruned));
    }
    for (name, property) in &node.properties {
        // `add_meta` knows fields that the author did not write.
        if let Some(schema) = schema["properties"].get(&**name) {
            defaults(schema, property, &key(&child(path, "properties"), name), found);
        }
    }
    if let Some(items) = &node.items {
        defaults(&schema["items"], items, &child(path, "items"), found);
    }
    if let Some(super::structural::Additional::Schema(additional)) = &node.additional {
        defaults(
            &schema["additionalProperties"],
            additional,
            &child(path, "additionalProperties"),
            found,
        );
    }
}

/// Whether a field selector may name a field of this schema.
pub(crate) fn is_selectable(schema: &Value) -> bool {
    let ty = schema["type"].as_str().and_then(SchemaType::read);
    matches!(ty, Some(SchemaType::String | SchemaType::Boolean | SchemaType::Integer))
}
