//! DELETE of one object and of many: preconditions, grace, finalizers.

use super::{Call, list::Filter, present, write::Outcome};
use crate::{
    admission::{Attributes, Operation as Admitted},
    hooks,
    http::{
        Body, Form,
        options::{DeleteOptions, ListOptions, Propagation},
    },
    object,
    status::{self, Details, Result, Status},
};
use bytes::Bytes;
use fairlead_store::{Entry, Expect, Operation, StoreError};
use http::{Response, StatusCode};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::sync::Arc;

const TRIES: usize = 16;

/// DELETE of the object that the path names.
pub(crate) async fn delete(call: &Call, body: &Bytes) -> Result<Response<Body>> {
    let options = options(call, body)?;
    match remove(call, &call.info.name, &options).await? {
        Removed::Later(outcome) => super::create::respond(call, StatusCode::OK, outcome),
        Removed::Gone(entry) if call.resource.has_hook("delete_returns_object") => {
            present::entry(call, StatusCode::OK, &entry)
        }
        Removed::Gone(entry) => {
            let details = Details {
                name: call.info.name.clone(),
                group: call.resource.group.to_string(),
                kind: call.resource.plural.to_string(),
                uid: entry.indexed.uid.to_string(),
                ..Details::default()
            };
            Ok(call.json(StatusCode::OK, &status::success(&details)))
        }
    }
}

fn options(call: &Call, body: &Bytes) -> Result<DeleteOptions> {
    let options = call
        .server
        .builtin(&call.headers, body, "meta.k8s.io/v1", "DeleteOptions")?;
    DeleteOptions::read(&call.query, &options)
}

/// What a deletion did.
pub(crate) enum Removed {
    /// The object is on its way out: finalizers or a grace period hold it.
    Later(Outcome),
    /// It is no more.
    Gone(Arc<Entry>),
}

/// Deletes one object of the call's resource and namespace.
pub(crate) async fn remove(call: &Call, name: &str, options: &DeleteOptions) -> Result<Removed> {
    let resource = &call.resource;
    let key = object::key(resource, &call.info.namespace, name)?;
    for _ in 0..TRIES {
        let entry = call
            .server
            .cache
            .get(&key)
            .ok_or_else(|| Status::not_found(resource, name))?;
        let old = present::object_of(resource, &entry)?;
        check(call, name, options, &old)?;
        let new = mark(call, options, &old);
        let outcome = match &new {
            Some(new) if *new == old => return Ok(Removed::Later(Outcome::Stored(entry))),
            Some(new) if options.dry_run => return Ok(Removed::Later(Outcome::Dry(new.clone()))),
            None if options.dry_run => return Ok(Removed::Gone(entry)),
            Some(new) => {
                call.commit(key.clone(), Expect::At(entry.revision), call.put(new))
                    .await
            }
            None => {
                call.commit(key.clone(), Expect::At(entry.revision), Operation::Delete)
                    .await
            }
        };
        match outcome {
            Ok(Some(stored)) => return Ok(Removed::Later(Outcome::Stored(stored))),
            Ok(None) => {
                hooks::after_delete(call, &old);
                return Ok(Removed::Gone(entry));
            }
            Err(StoreError::Conflict { found, .. }) => {
                if found.is_none() {
                    return Err(Status::not_found(resource, name));
                }
            }
            Err(error) => return Err(call.store_error(error)),
        }
    }
    Err(Status::modified(resource, name))
}

/// Whether the object may be deleted, as it is and by whom.
pub(crate) fn check(call: &Call, name: &str, options: &DeleteOptions, old: &Value) -> Result<()> {
    check_preconditions(call, name, options, old)?;
    let attributes = Attributes {
        operation: Admitted::Delete,
        resource: &call.resource,
        subresource: "",
        namespace: &call.info.namespace,
        name,
        user: &call.user,
        dry_run: options.dry_run,
    };
    let warnings = call
        .server
        .admission
        .validate(&attributes, Some(old), None, &*call.server)?;
    warnings.into_iter().for_each(|text| call.warn(text));
    Ok(())
}

fn check_preconditions(call: &Call, name: &str, options: &DeleteOptions, old: &Value) -> Result<()> {
    for (what, wanted, field) in [
        ("UID", &options.uid, "uid"),
        ("ResourceVersion", &options.resource_version, "resourceVersion"),
    ] {
        let found = object::meta(old, field);
        if let Some(wanted) = wanted
            && wanted != found
        {
            let why = format!("Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}");
            return Err(Status::conflict(&call.resource, name, why));
        }
    }
    Ok(())
}

/// The object with the marks of its deletion; `None` when nothing holds it.
fn mark(call: &Call, options: &DeleteOptions, old: &Value) -> Option<Value> {
    let resource = &call.resource;
    let mut new = old.clone();
    match options
        .propagation
        .unwrap_or_else(|| hooks::default_propagation(resource, old))
    {
        Propagation::Orphan => object::set_finalizer(&mut new, Some(object::ORPHAN), &[object::FOREGROUND]),
        Propagation::Foreground => object::set_finalizer(&mut new, Some(object::FOREGROUND), &[object::ORPHAN]),
        // What was asked for explicitly overrides an earlier wish; silence does not.
        Propagation::Background if options.propagation.is_some() => {
            object::set_finalizer(&mut new, None, &[object::ORPHAN, object::FOREGROUND]);
        }
        Propagation::Background => {}
    }
    let grace = hooks::grace_period(resource, old, options.grace_period_s);
    let held = !object::finalizers(&new).is_empty() || hooks::holds(resource, &new);
    let terminating = object::is_terminating(old);
    let current = old["metadata"]["deletionGracePeriodSeconds"].as_u64();
    if grace == 0 && !held {
        return None;
    }
    if terminating && current.is_some_and(|current| grace >= current) {
        // Grace only ever gets shorter.
        return Some(new);
    }
    // Who asks for more than the calendar holds gets all of it.
    let grace = i64::try_from(grace).unwrap_or(i64::MAX);
    let at = call
        .now
        .checked_add(SignedDuration::from_secs(grace))
        .unwrap_or(Timestamp::MAX);
    object::set_meta(&mut new, "deletionTimestamp", Some(json!(object::time(at))));
    object::set_meta(&mut new, "deletionGracePeriodSeconds", Some(json!(grace)));
    if let Some(generation) = old["metadata"]["generation"].as_i64() {
        object::set_meta(&mut new, "generation", Some(json!(generation + 1)));
    }
    hooks::mark_deleted(resource, &mut new);
    Some(new)
}

/// DELETE of a collection: each object for itself, as its options say.
pub(crate) async fn delete_collection(call: &Call, body: &Bytes) -> Result<Response<Body>> {
    let delete_options = options(call, body)?;
    let list_options = ListOptions::read(&call.query, false)?;
    let filter = Filter::read(call, &list_options)?;
    let page = super::list::page(call, &list_options, &filter).await?;
    let mut deleted = Vec::with_capacity(page.entries.len());
    for entry in page.entries {
        let one = call.for_namespace(&entry.key.namespace);
        match remove(&one, &entry.key.name, &delete_options).await {
            Ok(Removed::Gone(entry)) => deleted.push(present::object_of(&call.resource, &entry)?),
            Ok(Removed::Later(Outcome::Stored(entry))) => deleted.push(present::object_of(&call.resource, &entry)?),
            Ok(Removed::Later(Outcome::Gone(value) | Outcome::Dry(value))) => deleted.push(value),
            Err(status) if status.reason == "NotFound" => {}
            Err(status) => return Err(status),
        }
    }
    let list = json!({
        "kind": call.resource.list_kind(), "apiVersion": call.resource.api_version(),
        "metadata": { "resourceVersion": page.revision.to_string() }, "items": deleted,
    });
    if call.accept.form == Form::Table {
        let table = present::Tabulator::new(call, list_options.include_object);
        return Ok(call.json(StatusCode::OK, &table.table(deleted.iter(), true)));
    }
    Ok(call.json(StatusCode::OK, &list))
}
