//! PUT of an object or of its status.

use super::{
    Call, create,
    write::{Change, Part},
};
use crate::{
    http::Body,
    object,
    status::{Result, Status},
};
use bytes::Bytes;
use http::{Response, StatusCode};

/// PUT of the object itself.
pub(crate) async fn update(call: &Call, body: &Bytes) -> Result<Response<Body>> {
    put(call, body, Part::Main).await
}

/// PUT of the object or of a part of it.
pub(crate) async fn put(call: &Call, body: &Bytes, part: Part<'_>) -> Result<Response<Body>> {
    let options = call.write_options()?;
    let payload = call.payload(body)?;
    if payload.value.is_null() {
        return Err(Status::bad_request("an update needs an object in its body"));
    }
    let mut value = call.check_fields(payload, options.field_validation)?;
    call.check_kind(&mut value)?;
    call.check_namespace(&mut value)?;
    if object::meta(&value, "name").is_empty() {
        return Err(Status::bad_request(format!(
            "the name of the object () does not match the name on the URL ({})",
            call.info.name
        )));
    }
    let create = part == Part::Main && call.resource.has_hook("create_on_update");
    let manager = call.manager(&options);
    let change = |_: Option<&serde_json::Value>| {
        Ok(Change {
            new: value.clone(),
            manager: Some(manager.clone()),
        })
    };
    let (outcome, created) = call.modify(part, &options, create, &change).await?;
    let code = if created { StatusCode::CREATED } else { StatusCode::OK };
    create::respond(call, code, outcome)
}
