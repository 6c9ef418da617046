//! Showing objects in the form that a client asked for: whole, as a Table, or their metadata alone.

use super::Call;
use crate::{
    convert,
    http::{Form, body, options::IncludeObject},
    object,
    status::{Result, Status},
};
use bytes::Bytes;
use fairlead_schema::{Resource, table::Printer};
use fairlead_store::Entry;
use http::{Response, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};

/// A stored object in the version that the request names.
///
/// # Errors
/// 500 when the stored text is no JSON, which only damage explains.
pub(crate) fn object_of(resource: &Resource, entry: &Entry) -> Result<Value> {
    let mut value: Value = serde_json::from_slice(&entry.json)
        .map_err(|error| Status::internal(format!("{} is stored as what is no JSON: {error}", entry.key)))?;
    convert::from_storage(resource, &mut value);
    Ok(value)
}

/// The text of a stored object in the version that the request names; without a copy where that is the stored version.
pub(crate) fn text_of(resource: &Resource, entry: &Entry) -> Result<Bytes> {
    if convert::is_stored_version(resource) {
        return Ok(entry.json.clone());
    }
    Ok(serde_json::to_vec(&object_of(resource, entry)?)
        .unwrap_or_default()
        .into())
}

/// Answers with one stored object.
pub(crate) fn entry(call: &Call, code: StatusCode, entry: &Entry) -> Result<Response<crate::http::Body>> {
    if call.accept.form == Form::Object && !call.accept.yaml {
        return Ok(body::json_bytes(code, text_of(&call.resource, entry)?));
    }
    let value = object_of(&call.resource, entry)?;
    one(call, code, &value)
}

/// Answers with one object.
pub(crate) fn one(call: &Call, code: StatusCode, value: &Value) -> Result<Response<crate::http::Body>> {
    let shown = match call.accept.form {
        Form::Object => return Ok(call.json(code, value)),
        Form::Metadata => object::partial(value, call.accept.meta_version()),
        Form::Table => {
            let include = crate::http::options::ListOptions::read(&call.query, false)
                .map(|options| options.include_object)
                .unwrap_or_default();
            let mut table = Tabulator::new(call, include).table(std::iter::once(value), true);
            table["metadata"] = json!({ "resourceVersion": object::meta(value, "resourceVersion") });
            table
        }
    };
    Ok(call.json(code, &shown))
}

/// Draws Tables.
pub(crate) struct Tabulator {
    printer: Printer,
    include: IncludeObject,
    api_version: &'static str,
}

impl Tabulator {
    pub(crate) fn new(call: &Call, include: IncludeObject) -> Self {
        Self {
            printer: Printer::new(&call.resource),
            include,
            api_version: call.accept.meta_version(),
        }
    }

    /// A Table of these objects; with its column definitions or without (later events of a watch).
    pub(crate) fn table<'v>(&self, objects: impl Iterator<Item = &'v Value>, definitions: bool) -> Value {
        let (api_version, now) = (self.api_version, Timestamp::now());
        let rows: Vec<Value> = objects
            .map(|value| {
                let mut row = json!({ "cells": self.printer.cells(value, now) });
                match self.include {
                    IncludeObject::None => {}
                    IncludeObject::Metadata => row["object"] = object::partial(value, api_version),
                    IncludeObject::Object => row["object"] = value.clone(),
                }
                row
            })
            .collect();
        let columns = if definitions {
            self.printer.definitions()
        } else {
            Vec::new()
        };
        json!({ "kind": "Table", "apiVersion": api_version, "metadata": {}, "columnDefinitions": columns, "rows": rows })
    }
}
