//! Two sources for the same facts: what Go declares must be what the published schemas say.

use super::resolve::Types;
use anyhow::{Result, bail};
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// Compares names, requirements, list types and patch strategies of every published field.
///
/// # Errors
/// They differ; each difference is listed.
pub(super) fn run(types: &Types, published: &Map<String, Value>) -> Result<()> {
    let mut differences = Vec::new();
    for (name, schema) in published {
        let Some(ty) = types.get(name) else {
            differences.push(format!("{name}: not resolved"));
            continue;
        };
        let Some(properties) = schema["properties"].as_object() else {
            continue;
        };
        let ours: BTreeSet<&String> = ty.fields.keys().collect();
        let theirs: BTreeSet<&String> = properties.keys().collect();
        for field in ours.symmetric_difference(&theirs) {
            let whose = if ours.contains(field) { "Go" } else { "the schema" };
            differences.push(format!("{name}.{field}: only in {whose}"));
        }
        for (field_name, field) in &ty.fields {
            let Some(property) = properties.get(field_name) else {
                continue;
            };
            let keys = property["x-kubernetes-list-map-keys"].as_array();
            let keys: Vec<&str> = keys.into_iter().flatten().filter_map(Value::as_str).collect();
            let required = schema["required"].as_array();
            let required = required.is_some_and(|names| names.iter().any(|it| it == field_name));
            let mut check = |what: &str, ours: String, theirs: String| {
                if ours != theirs {
                    differences.push(format!(
                        "{name}.{field_name}: {what} is {ours} in Go, {theirs} in the schema"
                    ));
                }
            };
            let text = |key: &str| property[key].as_str().unwrap_or_default().to_owned();
            let own = |text: &Option<String>| text.clone().unwrap_or_default();
            check("required", field.required.to_string(), required.to_string());
            check("list type", own(&field.list_type), text("x-kubernetes-list-type"));
            check("list keys", field.list_keys.join(","), keys.join(","));
            check(
                "patch strategy",
                own(&field.patch_strategy),
                text("x-kubernetes-patch-strategy"),
            );
            check("patch key", own(&field.patch_key), text("x-kubernetes-patch-merge-key"));
        }
    }
    if !differences.is_empty() {
        bail!("upstream's sources differ:\n{}", differences.join("\n"));
    }
    Ok(())
}
