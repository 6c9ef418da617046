//! `ComponentStatus` objects: made up at each read. The one component behind this server is its store.

use crate::{
    handlers::{Call, present},
    http::{Body, Form, options::ListOptions},
    object,
    status::{Result, Status},
};
use http::{Response, StatusCode};
use serde_json::{Value, json};

/// What upstream calls the first member of its store.
const STORE: &str = "etcd-0";

fn store(call: &Call) -> Value {
    let closed = call.server.cache.is_closed();
    let condition = match closed {
        false => json!({ "type": "Healthy", "status": "True", "message": "ok" }),
        true => json!({ "type": "Healthy", "status": "False", "error": "the store is closed" }),
    };
    json!({
        "kind": "ComponentStatus", "apiVersion": "v1", "metadata": { "name": STORE, "creationTimestamp": null },
        "conditions": [condition],
    })
}

/// Answers get and list.
pub(crate) fn answer(call: &Call) -> Result<Response<Body>> {
    let item = store(call);
    if call.info.verb == "get" {
        return match call.info.name.as_str() {
            STORE => present::one(call, StatusCode::OK, &item),
            other => Err(Status::not_found(&call.resource, other)),
        };
    }
    let options = ListOptions::read(&call.query, false)?;
    let version = call.accept.meta_version();
    let mut list = match call.accept.form {
        Form::Table => present::Tabulator::new(call, options.include_object).table(std::iter::once(&item), true),
        Form::Metadata => json!({
            "kind": "PartialObjectMetadataList", "apiVersion": version, "items": [object::partial(&item, version)],
        }),
        Form::Object => json!({ "kind": call.resource.list_kind(), "apiVersion": "v1", "items": [item] }),
    };
    list["metadata"] = json!({});
    Ok(call.json(StatusCode::OK, &list))
}
