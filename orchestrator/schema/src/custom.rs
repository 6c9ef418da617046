//! What a CustomResourceDefinition says about its objects, as far as the server's core needs to know it.
//!
//! The core calls these three in order: [`CustomSchema::prune`] on what a client or the store gave,
//! [`CustomSchema::default`], and before storing [`CustomSchema::validate`].

use serde_json::Value;
use std::fmt;

/// The schema of one version of a custom resource. Implementations are pure and bounded in time.
pub trait CustomSchema: fmt::Debug + Send + Sync {
    /// Drops what the schema does not know, and nulls that it does not allow. The paths of the unknown fields, sorted,
    /// as `spec.foo` and `spec.list[0].bar`: for `fieldValidation`.
    fn prune(&self, object: &mut Value) -> Vec<String>;

    /// Writes the defaults of absent fields.
    fn default(&self, object: &mut Value);

    /// All faults of an object that was pruned and has its defaults. With `old`, the stored object that `new` would
    /// replace: faults of parts that do not change are no faults, and transition rules are checked.
    fn validate(&self, old: Option<&Value>, new: &Value) -> Vec<Fault>;

    /// `openAPIV3Schema` as its author wrote it, with its descriptions: for OpenAPI documents.
    fn openapi(&self) -> &Value;
}

/// One fault of an object, as a cause of an `Invalid` status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// As `FieldValueInvalid`.
    pub reason: &'static str,
    /// As `Invalid value: 3: must be even`.
    pub message: String,
    /// As `spec.replicas`.
    pub field: String,
}
