//! CustomResourceDefinitions: kinds that are made while the server runs.
//!
//! All of it is pure: [`definition`] judges and completes a definition, [`rows`] makes rows of the registry of it, [`names`]
//! and [`cleanup`] decide what its status says and what its deletion waits for, [`Definitions`] keeps the registry in step.
//! What the rows carry for the server's core is [`Schema`]: pruning, defaults and validation of the objects themselves.

pub mod cel;
pub mod check;
pub mod cleanup;
pub mod default;
pub mod definition;
mod faults;
mod formats;
pub mod gate;
pub mod names;
pub mod pattern;
pub mod prune;
mod registry;
pub mod rows;
pub mod structural;
pub mod task;
#[cfg(test)]
mod tests;
pub mod validate;

pub use registry::{Definitions, Rebuilt};
pub use task::Watcher;

use fairlead_schema::{CustomSchema, Fault};
use serde_json::Value;
use std::{fmt, sync::Arc};
use structural::Structural;

/// The schema of one version, as the registry's row has it.
pub struct Schema {
    structural: Structural,
    openapi: Arc<Value>,
    /// Without the status subresource, `status` is a field as others.
    has_status: bool,
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Schema")
            .field("has_status", &self.has_status)
            .finish_non_exhaustive()
    }
}

impl Schema {
    /// Reads `schema.openAPIV3Schema` and `subresources` of a version. A version without schema keeps every field.
    pub fn new(openapi: &Value, subresources: &Value) -> Self {
        let anything = serde_json::json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
        let openapi = if openapi.is_object() { openapi.clone() } else { anything };
        Self {
            structural: Structural::root(&openapi),
            openapi: Arc::new(openapi),
            has_status: subresources.get("status").is_some_and(Value::is_object),
        }
    }

    /// As read.
    pub fn structural(&self) -> &Structural {
        &self.structural
    }

    /// Whether the version has the status subresource.
    pub fn has_status(&self) -> bool {
        self.has_status
    }
}

/// Whether rules make sense on what has this fault. Source: `hasBlockingErr` of apiextensions.
fn blocks_rules(fault: &Fault) -> bool {
    matches!(
        fault.reason,
        "FieldValueNotSupported"
            | "FieldValueRequired"
            | "FieldValueTooLong"
            | "FieldValueTooMany"
            | "FieldValueTypeInvalid"
    )
}

impl CustomSchema for Schema {
    fn prune(&self, object: &mut Value) -> Vec<String> {
        let unknown = prune::prune(object, &self.structural);
        prune::drop_nulls(object, &self.structural);
        unknown
    }

    fn default(&self, object: &mut Value) {
        default::apply(object, &self.structural);
    }

    fn validate(&self, old: Option<&Value>, new: &Value) -> Vec<Fault> {
        let schema = &self.structural;
        let mut found = validate::update(schema, "", old, new);
        found.extend(validate::embedded(schema, "", new));
        let had_duplicates = old.is_some_and(|old| !validate::duplicates(schema, "", old).is_empty());
        if !had_duplicates {
            found.extend(validate::duplicates(schema, "", new));
        }
        if found.iter().any(blocks_rules) {
            if schema.has_rules {
                let why = "some validation rules were not checked because the object was invalid; correct the existing \
                           errors to complete validation";
                found.push(faults::invalid("", &Value::Null, why));
            }
        } else {
            found.extend(cel::rules::run(schema, old, new));
        }
        found
    }

    fn openapi(&self) -> &Value {
        &self.openapi
    }
}
