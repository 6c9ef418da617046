//! Whole definitions, and objects of them.

mod cel;
mod definitions;
mod objects;
mod properties;

use super::{Schema, definition};
use serde_json::Value;

/// A definition of `data/`, with its defaults.
fn definition(name: &str) -> Value {
    let text = match name {
        "crontab" => include_str!("data/crontab.yaml"),
        _ => include_str!("data/certificates.yaml"),
    };
    let mut crd: Value = serde_saphyr::from_str(text).unwrap();
    definition::apply_defaults(&mut crd);
    crd
}

/// The schema of a definition's first version.
fn schema(name: &str) -> Schema {
    let crd = definition(name);
    let version = &crd["spec"]["versions"][0];
    Schema::new(&version["schema"]["openAPIV3Schema"], &version["subresources"])
}

/// Faults, one in a line, as clients see them.
fn lines(faults: &[fairlead_schema::Fault]) -> Vec<String> {
    faults
        .iter()
        .map(|it| format!("{}: {}", it.field, it.message))
        .collect()
}
