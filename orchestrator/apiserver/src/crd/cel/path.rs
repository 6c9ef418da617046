//! `fieldPath` of rules, and `jsonPath` of selectable fields: `.spec.list`, `.spec['a.b']`.

use serde_json::Value;

/// The field that a path names below a schema: its path as faults write it, and its schema. `None`: there is none.
pub fn resolve<'s>(path: &str, schema: &'s Value) -> Option<(String, &'s Value)> {
    let mut out = String::new();
    let mut node = schema;
    for (name, bracketed) in steps(path)? {
        let below = node["properties"].get(&name);
        let below = below.or_else(|| {
            node.get("additionalProperties")
                .filter(|it| it.is_object() && bracketed)
        })?;
        if bracketed {
            out.push_str(&format!("[{name}]"));
        } else {
            if !out.is_empty() {
                out.push('.');
            }
            out.push_str(&name);
        }
        node = below;
    }
    (!out.is_empty()).then_some((out, node))
}

/// The steps of a path; whether each is written in brackets.
fn steps(path: &str) -> Option<Vec<(String, bool)>> {
    let mut steps = Vec::new();
    let mut rest = path.trim();
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix("['") {
            let mut name = String::new();
            let mut chars = after.char_indices();
            let end = loop {
                match chars.next()? {
                    (_, '\\') => name.push(chars.next()?.1),
                    (at, '\'') => break at,
                    (_, c) => name.push(c),
                }
            };
            rest = after[end..].strip_prefix("']")?;
            steps.push((name, true));
        } else {
            let after = rest.strip_prefix('.')?;
            let end = after.find(['.', '[']).unwrap_or(after.len());
            let name = &after[..end];
            let sound = !name.is_empty()
                && !name.starts_with(|c: char| c.is_ascii_digit())
                && name
                    .chars()
                    .all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '$' | '/'));
            if !sound {
                return None;
            }
            steps.push((name.to_owned(), false));
            rest = &after[end..];
        }
    }
    (!steps.is_empty()).then_some(steps)
}

/// A path without schema, as faults write it.
pub(crate) fn normal(path: &str) -> Option<String> {
    let mut out = String::new();
    for (name, bracketed) in steps(path)? {
        if bracketed {
            out.push_str(&format!("[{name}]"));
        } else {
            if !out.is_empty() {
                out.push('.');
            }
            out.push_str(&name);
        }
    }
    Some(out)
}
