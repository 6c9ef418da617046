//! Columns of `kubectl get`: the rows of `columns.toml`, and those of what has none there.

use crate::{kinds::TableError, resource::Column};
use std::collections::BTreeMap;

const COLUMNS: &str = include_str!("../columns.toml");

/// Columns by `apiVersion` and plural.
pub(crate) type ByResource = BTreeMap<(String, String), Vec<Column>>;

/// Columns of the built-in resources.
pub(crate) fn builtin() -> Result<ByResource, TableError> {
    let tables: BTreeMap<String, BTreeMap<String, Vec<Vec<String>>>> =
        toml::from_str(COLUMNS).map_err(|source| TableError::Syntax {
            table: "columns.toml",
            source: Box::new(source),
        })?;
    let mut all = ByResource::new();
    for (api_version, resources) in tables {
        for (plural, rows) in resources {
            let columns: Option<Vec<Column>> = rows.iter().map(|row| column(row)).collect();
            let columns = columns.ok_or_else(|| TableError::Row {
                table: "columns.toml",
                row: format!("{api_version} {plural}"),
                reason: "a column is [name, type, source] and perhaps \"wide\"".into(),
            })?;
            all.insert((api_version.clone(), plural), columns);
        }
    }
    Ok(all)
}

fn column(row: &[String]) -> Option<Column> {
    let (name, ty, source, priority) = match row {
        [name, ty, source] => (name, ty, source, 0),
        [name, ty, source, wide] if wide == "wide" => (name, ty, source, 1),
        _ => return None,
    };
    let named = ty == "name";
    Some(Column {
        name: name.as_str().into(),
        ty: if named { "string" } else { ty }.into(),
        format: if named { "name" } else { "" }.into(),
        priority,
        description: "".into(),
        source: source.as_str().into(),
    })
}

/// What every kind can show: its name, and when it was created, as a date.
pub fn of_any_kind() -> Vec<Column> {
    vec![
        named(),
        Column {
            name: "Created At".into(),
            ty: "date".into(),
            format: "".into(),
            priority: 0,
            description: "".into(),
            source: "fn:created".into(),
        },
    ]
}

/// Columns of a custom resource whose CRD names none: its name and its age.
pub fn of_custom_resource() -> Vec<Column> {
    vec![named(), age()]
}

/// The first column: the name. CRDs do not list it; it goes before theirs.
pub fn named() -> Column {
    Column {
        name: "Name".into(),
        ty: "string".into(),
        format: "name".into(),
        priority: 0,
        description: "".into(),
        source: ".metadata.name".into(),
    }
}

fn age() -> Column {
    Column {
        name: "Age".into(),
        ty: "date".into(),
        format: "".into(),
        priority: 0,
        description: "".into(),
        source: ".metadata.creationTimestamp".into(),
    }
}
