//! The shape of a schema: what makes it structural.
//! Source: `pkg/apiserver/schema/validation.go` of apiextensions.

use super::{Checker, MAX_FAULTS, is_zero};
use crate::crd::{
    faults::{child, forbidden, index, invalid, key, required},
    structural::{array, flag},
};
use serde_json::{Value, json};

/// Where a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    Root,
    Item,
    Field,
}

impl Checker {
    /// The shape: types everywhere, nothing in nested validations that would add to it.
    pub(super) fn structural(&mut self, schema: &Value, path: &str, level: Level) {
        if self.faults.len() >= MAX_FAULTS {
            return;
        }
        let ty = schema["type"].as_str().unwrap_or_default();
        let embedded = flag(schema, "x-kubernetes-embedded-resource");
        let int_or_string = flag(schema, "x-kubernetes-int-or-string");
        let preserve = flag(schema, "x-kubernetes-preserve-unknown-fields");
        self.below(schema, path, level, ty);
        if int_or_string && preserve {
            let path = child(path, "x-kubernetes-preserve-unknown-fields");
            self.push(invalid(
                &path,
                &json!(true),
                "must be false if x-kubernetes-int-or-string is true",
            ));
        }
        if int_or_string && embedded {
            let path = child(path, "x-kubernetes-embedded-resource");
            self.push(invalid(
                &path,
                &json!(true),
                "must be false if x-kubernetes-int-or-string is true",
            ));
        }
        let either = json!([{ "type": "integer" }, { "type": "string" }]);
        let skip_any = schema.get("anyOf") == Some(&either);
        let skip_first = schema["allOf"]
            .get(0)
            .is_some_and(|it| it.get("anyOf") == Some(&either));
        self.junctors(schema, path, skip_any, skip_first);

        let type_path = child(path, "type");
        if embedded && ty != "object" {
            let why = "must be object if x-kubernetes-embedded-resource is true";
            match ty {
                "" => self.push(required(&type_path, why)),
                _ => self.push(invalid(&type_path, &json!(ty), why)),
            }
        } else if ty.is_empty() && !int_or_string && !preserve {
            self.push(required(
                &type_path,
                match level {
                    Level::Root => "must not be empty at the root",
                    Level::Item => "must not be empty for specified array items",
                    Level::Field => "must not be empty for specified object fields",
                },
            ));
        }
        if embedded && schema.get("additionalProperties").is_some() {
            let why = "must not be used if x-kubernetes-embedded-resource is set";
            self.push(forbidden(&child(path, "additionalProperties"), why));
        }
        if level == Level::Root && !ty.is_empty() && ty != "object" {
            self.push(invalid(&type_path, &json!(ty), "must be object at the root"));
        }
        if level == Level::Root || embedded {
            self.meta(schema, path, level);
        }
        if embedded && !preserve && is_zero(&schema["properties"]) {
            let why = "must not be empty if x-kubernetes-embedded-resource is true without \
                       x-kubernetes-preserve-unknown-fields";
            self.push(required(&child(path, "properties"), why));
        }
    }

    fn below(&mut self, schema: &Value, path: &str, level: Level, ty: &str) {
        let items = schema.get("items").filter(|it| !it.is_null());
        if ty == "array" && items.is_none() {
            self.push(required(&child(path, "items"), "must be specified"));
        }
        if let Some(items) = items.filter(|it| it.is_object()) {
            self.structural(items, &child(path, "items"), Level::Item);
        }
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            self.structural(property, &key(&child(path, "properties"), name), Level::Field);
        }
        if let Some(additional) = schema.get("additionalProperties").filter(|it| !it.is_null()) {
            let path = child(path, "additionalProperties");
            if level == Level::Root {
                self.push(forbidden(&path, "must not be used at the root"));
            }
            if additional.is_object() {
                self.structural(additional, &path, Level::Field);
            }
        }
    }

    /// `apiVersion`, `kind` and `metadata` of a resource.
    fn meta(&mut self, schema: &Value, path: &str, level: Level) {
        let properties = &schema["properties"];
        let path = child(path, "properties");
        for name in ["kind", "apiVersion"] {
            if let Some(property) = properties.get(name).filter(|it| it["type"] != "string") {
                let ty = property["type"].as_str().unwrap_or_default();
                self.push(invalid(&child(&key(&path, name), "type"), &json!(ty), "must be string"));
            }
        }
        let Some(metadata) = properties.get("metadata") else {
            return;
        };
        let path = key(&path, "metadata");
        if metadata["type"] != "object" {
            let ty = metadata["type"].as_str().unwrap_or_default();
            self.push(invalid(&child(&path, "type"), &json!(ty), "must be object"));
        }
        let more = |name: &str, value: &Value| match name {
            "type" | "default" | "description" | "title" => false,
            "properties" => value
                .as_object()
                .is_some_and(|all| all.keys().any(|it| it != "name" && it != "generateName")),
            _ => !is_zero(value),
        };
        let fields = metadata.as_object().into_iter().flatten();
        if level == Level::Root && fields.into_iter().any(|(name, value)| more(name, value)) {
            let why =
                "must not specify anything other than name and generateName, but metadata is implicitly specified";
            self.push(forbidden(&path, why));
        }
    }

    fn junctors(&mut self, schema: &Value, path: &str, skip_any: bool, skip_first: bool) {
        if !skip_any {
            for (at, nested) in array(schema, "anyOf").enumerate() {
                self.nested(nested, schema, &index(&child(path, "anyOf"), at), false);
            }
        }
        for (at, nested) in array(schema, "allOf").enumerate() {
            self.nested(nested, schema, &index(&child(path, "allOf"), at), skip_first && at == 0);
        }
        for (at, nested) in array(schema, "oneOf").enumerate() {
            self.nested(nested, schema, &index(&child(path, "oneOf"), at), false);
        }
        if let Some(not) = schema.get("not").filter(|it| it.is_object()) {
            self.nested(not, schema, &child(path, "not"), false);
        }
    }

    /// A schema inside a junctor: it may check, not shape. `shape` is the schema outside of the junctors.
    fn nested(&mut self, nested: &Value, shape: &Value, path: &str, skip_any: bool) {
        if self.faults.len() >= MAX_FAULTS {
            return;
        }
        self.junctors(nested, path, skip_any, false);
        if let Some(items) = nested.get("items").filter(|it| it.is_object()) {
            let path = child(path, "items");
            match shape.get("items").filter(|it| it.is_object()) {
                Some(shape) => self.nested(items, shape, &path, false),
                None => {
                    self.push(required(&mended(&path), &format!("because it is defined in {path}")));
                }
            }
        }
        for (name, property) in nested["properties"].as_object().into_iter().flatten() {
            let path = key(&child(path, "properties"), name);
            if name == "metadata" {
                self.push(forbidden(&path, "must not be specified in a nested context"));
            }
            match shape["properties"].get(name) {
                Some(shape) => self.nested(property, shape, &path, false),
                None if flag(shape, "x-kubernetes-preserve-unknown-fields") && shape["type"] != "object" => {}
                None => self.push(required(&mended(&path), &format!("because it is defined in {path}"))),
            }
        }
        for (name, why) in [
            ("type", "must be empty to be structural"),
            ("additionalProperties", "must be undefined to be structural"),
            ("default", "must be undefined to be structural"),
            ("title", "must be empty to be structural"),
            ("description", "must be empty to be structural"),
            ("nullable", "must be false to be structural"),
            ("x-kubernetes-preserve-unknown-fields", "must be false to be structural"),
            ("x-kubernetes-embedded-resource", "must be false to be structural"),
            ("x-kubernetes-int-or-string", "must be false to be structural"),
            ("x-kubernetes-list-map-keys", "must be empty to be structural"),
            ("x-kubernetes-list-type", "must be undefined to be structural"),
            ("x-kubernetes-map-type", "must be undefined to be structural"),
            ("x-kubernetes-validations", "must be empty to be structural"),
        ] {
            let there = nested.get(name).is_some_and(|value| match name {
                "additionalProperties" | "default" => !value.is_null(),
                _ => !is_zero(value),
            });
            if there {
                self.push(forbidden(&child(path, name), why));
            }
        }
    }
}

/// Where a field of a nested schema ought to be: the same path without the junctors.
fn mended(path: &str) -> String {
    let steps = path.split('.').filter(|step| {
        let name = step.split('[').next().unwrap_or_default();
        !(matches!(name, "allOf" | "anyOf" | "oneOf") && step.contains('[')) && *step != "not"
    });
    steps.collect::<Vec<_>>().join(".")
}
