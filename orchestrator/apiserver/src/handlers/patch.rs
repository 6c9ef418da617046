//! PATCH: JSON patch, merge patch, strategic merge patch, apply.

use super::{
    Call, create,
    write::{Change, Part, normalise, unknown_fields},
};
use crate::{
    http::{
        Body, Payload, body,
        options::{FieldValidation, WriteOptions},
    },
    managed_fields, object, patch as patches,
    status::{Result, Status},
};
use bytes::Bytes;
use fairlead_schema::{read, strict::FieldProblem};
use http::{Response, StatusCode};
use serde_json::Value;

const JSON_PATCH: &str = "application/json-patch+json";
const MERGE_PATCH: &str = "application/merge-patch+json";
const STRATEGIC_PATCH: &str = "application/strategic-merge-patch+json";
const APPLY_YAML: &str = "application/apply-patch+yaml";

/// What a patch makes of an object.
type Changer<'a> = Box<dyn Fn(Option<&Value>) -> Result<Change> + Send + Sync + 'a>;

/// PATCH of the object itself.
pub(crate) async fn patch(call: &Call, body: &Bytes) -> Result<Response<Body>> {
    part(call, body, Part::Main).await
}

/// PATCH of the object or of a part of it.
pub(crate) async fn part(call: &Call, body: &Bytes, part: Part<'_>) -> Result<Response<Body>> {
    let options = call.write_options()?;
    let custom = call.resource.custom.is_some();
    let media_type = body::media_type(&call.headers).unwrap_or_default();
    if media_type != APPLY_YAML && options.force.is_some() {
        return Err(Status::bad_request(
            "force: Forbidden: may not be specified for non-apply patch",
        ));
    }
    let (options, manager) = (&options, &call.manager(&options));
    let change: Changer<'_> = match media_type.as_str() {
        JSON_PATCH => {
            let patch: Value = serde_json::from_slice(body)
                .map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))?;
            Box::new(move |old| patched(call, options, old, manager, |old| Ok(patches::json_patch(old, &patch)?)))
        }
        MERGE_PATCH => {
            let (patch, duplicates) = read_patch(body)?;
            warn_duplicates(call, options, &duplicates)?;
            Box::new(move |old| {
                patched(call, options, old, manager, |old| {
                    Ok(patches::merge_patch(old, &patch)?)
                })
            })
        }
        STRATEGIC_PATCH if !custom => {
            let (patch, duplicates) = read_patch(body)?;
            warn_duplicates(call, options, &duplicates)?;
            let (types, ty) = (&call.resource.types, call.resource.ty);
            Box::new(move |old| {
                let apply = |old: &Value| Ok(patches::strategic_merge_patch(types, ty, old, &patch)?);
                patched(call, options, old, manager, apply)
            })
        }
        APPLY_YAML => return apply(call, body, part, options).await,
        _ if custom => return Err(Status::unsupported_media_type(&[JSON_PATCH, MERGE_PATCH, APPLY_YAML])),
        _ => {
            return Err(Status::unsupported_media_type(&[
                JSON_PATCH,
                MERGE_PATCH,
                STRATEGIC_PATCH,
                APPLY_YAML,
            ]));
        }
    };
    let (outcome, _) = call.modify(part, options, false, &*change).await?;
    create::respond(call, StatusCode::OK, outcome)
}

fn read_patch(body: &Bytes) -> Result<(Value, Vec<FieldProblem>)> {
    let (patch, duplicates) =
        read::json(body).map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))?;
    if !patch.is_object() {
        return Err(Status::bad_request("error decoding patch: it must be a JSON object"));
    }
    Ok((patch, duplicates))
}

fn warn_duplicates(call: &Call, options: &WriteOptions, duplicates: &[FieldProblem]) -> Result<()> {
    let problems: Vec<_> = duplicates.iter().map(ToString::to_string).collect();
    match options.field_validation {
        FieldValidation::Ignore => {}
        FieldValidation::Warn => problems.into_iter().for_each(|problem| call.warn(problem)),
        FieldValidation::Strict if problems.is_empty() => {}
        FieldValidation::Strict => {
            return Err(Status::bad_request(format!(
                "strict decoding error: {}",
                problems.join(", ")
            )));
        }
    }
    Ok(())
}

/// The object with a patch applied, its fields checked.
fn patched(
    call: &Call,
    options: &WriteOptions,
    old: Option<&Value>,
    manager: &str,
    apply: impl Fn(&Value) -> Result<Value>,
) -> Result<Change> {
    let old = old.ok_or_else(|| Status::not_found(&call.resource, &call.info.name))?;
    let mut new = apply(old)?;
    let mut unknown = unknown_fields(&call.resource, &mut new);
    if options.field_validation == FieldValidation::Ignore {
        unknown.clear();
    }
    if options.field_validation == FieldValidation::Strict && !unknown.is_empty() {
        let fault = format!("strict decoding error: {}", unknown.join(", "));
        let cause = crate::status::Cause {
            reason: "FieldValueInvalid",
            message: format!("Invalid value: {fault}"),
            field: "patch".to_owned(),
        };
        return Err(Status::invalid(&call.resource, &call.info.name, vec![cause]));
    }
    unknown.into_iter().for_each(|problem| call.warn(problem));
    normalise(&call.resource, &mut new)?;
    call.check_kind(&mut new)?;
    call.check_namespace(&mut new)?;
    Ok(Change {
        new,
        manager: Some(manager.to_owned()),
    })
}

/// Server-side apply.
async fn apply(call: &Call, body: &Bytes, part: Part<'_>, options: &WriteOptions) -> Result<Response<Body>> {
    if options.field_manager.is_empty() {
        let message =
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch";
        let mut status = Status::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message);
        status = status.with_cause(
            "FieldValueRequired",
            "Required value: is required for apply patch",
            "fieldManager",
        );
        return Err(status);
    }
    let (value, duplicates) =
        read::yaml(body).map_err(|error| Status::bad_request(format!("error decoding YAML: {error}")))?;
    if !value.is_object() {
        return Err(Status::bad_request("error decoding YAML: it must hold one object"));
    }
    let payload = Payload { value, duplicates };
    let mut config = call.check_fields(payload, options.field_validation)?;
    if config["apiVersion"].as_str().is_none_or(str::is_empty) || config["kind"].as_str().is_none_or(str::is_empty) {
        return Err(Status::bad_request("apply needs apiVersion and kind in the object"));
    }
    call.check_kind(&mut config)?;
    let own = object::meta(&config, "name");
    if own.is_empty() {
        object::set_meta(&mut config, "name", Some(call.info.name.as_str().into()));
    } else if own != call.info.name {
        return Err(Status::bad_request(format!(
            "name in URL does not match name in object: {} != {own}",
            call.info.name
        )));
    }
    call.check_namespace(&mut config)?;
    if config["metadata"]
        .get("managedFields")
        .is_some_and(|it| it.as_array().is_none_or(|it| !it.is_empty()))
    {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let (version, tracked) = (call.resource.api_version(), call.tracked(part));
    let write = call.owner(&options.field_manager, &part, &version, &tracked);
    let force = options.force.unwrap_or(false);
    let change = |old: Option<&Value>| {
        let new = managed_fields::apply(&write, force, old, &config)?;
        Ok(Change { new, manager: None })
    };
    let (outcome, created) = call.modify(part, options, part == Part::Main, &change).await?;
    let code = if created { StatusCode::CREATED } else { StatusCode::OK };
    create::respond(call, code, outcome)
}

/// A patch of something that is shown and not stored.
type Patcher = Box<dyn Fn(&Value) -> Result<Value> + Send + Sync>;

/// A patch of the Scale of an object.
pub(crate) fn of_scale(call: &Call, body: &Bytes) -> Result<Patcher> {
    let media_type = body::media_type(&call.headers).unwrap_or_default();
    let patch: Value = match media_type.as_str() {
        JSON_PATCH => serde_json::from_slice(body)
            .map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))?,
        APPLY_YAML => {
            read::yaml(body)
                .map_err(|error| Status::bad_request(format!("error decoding YAML: {error}")))?
                .0
        }
        _ => read_patch(body)?.0,
    };
    let types = std::sync::Arc::clone(&call.server.types);
    let ty = types
        .kind("autoscaling", "v1", "Scale")
        .ok_or_else(|| Status::internal("the types lack Scale"))?;
    Ok(match media_type.as_str() {
        JSON_PATCH => Box::new(move |old| Ok(patches::json_patch(old, &patch)?)),
        STRATEGIC_PATCH => Box::new(move |old| Ok(patches::strategic_merge_patch(&types, ty, old, &patch)?)),
        // A Scale has one field that can be set: applying it is merging it.
        MERGE_PATCH | APPLY_YAML => Box::new(move |old| Ok(patches::merge_patch(old, &patch)?)),
        _ => {
            return Err(Status::unsupported_media_type(&[
                JSON_PATCH,
                MERGE_PATCH,
                STRATEGIC_PATCH,
                APPLY_YAML,
            ]));
        }
    })
}
