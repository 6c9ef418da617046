//! Namespaces: they go when their content has gone, which `spec.finalizers` stands for.

use crate::{
    handlers::write::{Part, restore},
    object,
};
use serde_json::{Value, json};

pub(super) fn prepare_create(new: &mut Value) {
    let finalizers = &mut object::child_mut(new, "spec")
        .entry("finalizers")
        .or_insert_with(|| json!([]));
    if let Some(all) = finalizers.as_array_mut()
        && !all.iter().any(|it| it == "kubernetes")
    {
        all.push(json!("kubernetes"));
    }
    new["status"] = json!({ "phase": "Active" });
}

pub(super) fn prepare_update(old: &Value, new: &mut Value, part: Part<'_>) {
    // `spec.finalizers` change through the subresource `finalize` alone, and nothing else does there.
    match part {
        Part::Main => restore(old, new, "spec"),
        Part::Other("finalize") => {
            for name in ["metadata", "status"] {
                restore(old, new, name);
            }
        }
        _ => {}
    }
}

pub(super) fn holds(namespace: &Value) -> bool {
    namespace["spec"]["finalizers"]
        .as_array()
        .is_some_and(|all| !all.is_empty())
}
