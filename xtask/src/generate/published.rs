//! Upstream's own OpenAPI documents, as far as a package carries them: their facts without their prose, to compare ours
//! with.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::{fmt::Write as _, fs, path::PathBuf};

/// The folder of documents below one of the Go roots.
const FOLDER: &str = "k8s.io/client-go/openapi/openapitest/testdata";

/// One line per document: `{"document", "paths", "schemas"}`, in the order of names.
///
/// # Errors
/// A document is not readable.
pub(super) fn collect(roots: &[PathBuf]) -> Result<String> {
    let dir = roots.iter().map(|root| root.join(FOLDER)).find(|dir| dir.is_dir());
    let dir = dir.with_context(|| format!("no package has {FOLDER}"))?;
    let mut files: Vec<PathBuf> = fs::read_dir(&dir)
        .with_context(|| dir.display().to_string())?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.sort();
    let mut lines = String::new();
    for file in files {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(name) = name.strip_suffix("_openapi.json") else {
            continue;
        };
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let mut document: Value = serde_json::from_str(&text).with_context(|| file.display().to_string())?;
        let mut schemas = document["components"]["schemas"].take();
        without_prose(&mut schemas);
        let paths = document["paths"].as_object().context("a document without paths")?;
        let paths: Vec<&String> = paths.keys().collect();
        let line = json!({"document": name.replace("__", "/"), "paths": paths, "schemas": schemas});
        let _ = writeln!(lines, "{line}");
    }
    Ok(lines)
}

/// A property may be called `description`, but then it is a schema and no text.
fn without_prose(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|key, value| key != "description" || !value.is_string());
            map.values_mut().for_each(without_prose);
        }
        Value::Array(list) => list.iter_mut().for_each(without_prose),
        _ => {}
    }
}
