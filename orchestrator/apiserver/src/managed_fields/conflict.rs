//! What server-side apply says when fields have other owners.

use super::{
    element::{PathElement, path_text},
    entries::Manager,
    set::FieldSet,
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fmt};

/// A field that the applier wants to change and that somebody else owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Its owner.
    pub manager: Manager,
    /// The field.
    pub path: Vec<PathElement>,
}

impl Conflict {
    /// `field` of the cause, as `.spec.replicas`.
    pub fn field(&self) -> String {
        path_text(&self.path)
    }

    /// `message` of the cause, as `conflict with "kubectl" using apps/v1`.
    pub fn message(&self) -> String {
        format!("conflict with {}", self.manager)
    }
}

/// All conflicts of one request, by manager, then by path. Displays as the message of the `Status` (409, `Conflict`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflicts(pub Vec<Conflict>);

impl Conflicts {
    pub(super) fn of(sets: &BTreeMap<Manager, FieldSet>) -> Self {
        let conflicts = sets.iter().flat_map(|(manager, set)| {
            set.paths().into_iter().map(|path| Conflict {
                manager: manager.clone(),
                path,
            })
        });
        Self(conflicts.collect())
    }

    /// `details.causes` of the `Status`.
    pub fn causes(&self) -> Vec<Value> {
        let cause = |conflict: &Conflict| json!({"reason": "FieldManagerConflict", "message": conflict.message(), "field": conflict.field()});
        self.0.iter().map(cause).collect()
    }
}

impl fmt::Display for Conflicts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [conflict] = &self.0[..] {
            return write!(
                f,
                "Apply failed with 1 conflict: {}: {}",
                conflict.message(),
                conflict.field()
            );
        }
        let mut by_manager: BTreeMap<&Manager, Vec<String>> = BTreeMap::new();
        for conflict in &self.0 {
            by_manager.entry(&conflict.manager).or_default().push(conflict.field());
        }
        let lines = by_manager.iter().flat_map(|(manager, fields)| {
            let fields = fields.iter().map(|field| format!("- {field}"));
            std::iter::once(format!("conflicts with {manager}:")).chain(fields)
        });
        write!(
            f,
            "Apply failed with {} conflicts: {}",
            self.0.len(),
            lines.collect::<Vec<_>>().join("\n")
        )
    }
}
