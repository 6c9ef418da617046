//! POST of an object.

use super::{
    Call, present,
    write::{Outcome, Part, new_identity},
};
use crate::{
    hooks,
    http::{Body, options::WriteOptions},
    object,
    status::{Result, Status},
};
use bytes::Bytes;
use fairlead_schema::Scope;
use fairlead_store::{Expect, StoreError};
use http::{Response, StatusCode};
use rand::RngExt as _;
use serde_json::{Value, json};

/// Tries to find a free name for `generateName`, upstream's number.
const NAMES: usize = 8;

/// POST to a collection.
pub(crate) async fn create(call: &Call, body: &Bytes) -> Result<Response<Body>> {
    let options = call.write_options()?;
    let payload = call.payload(body)?;
    if payload.value.is_null() {
        return Err(Status::bad_request("a create needs an object in its body"));
    }
    let mut value = call.check_fields(payload, options.field_validation)?;
    call.check_kind(&mut value)?;
    if call.resource.storage.is_none() {
        return hooks::answer(call, &value);
    }
    let manager = call.manager(&options);
    let made = store(call, value, &options, Some(&manager)).await?;
    respond(call, StatusCode::CREATED, made)
}

/// Answers with what a write left behind.
pub(crate) fn respond(call: &Call, code: StatusCode, outcome: Outcome) -> Result<Response<Body>> {
    match outcome {
        Outcome::Stored(entry) => present::entry(call, code, &entry),
        Outcome::Gone(value) => present::one(call, StatusCode::OK, &value),
        Outcome::Dry(value) => present::one(call, code, &value),
    }
}

/// Stores a new object.
pub(crate) async fn store(
    call: &Call,
    mut value: Value,
    options: &WriteOptions,
    manager: Option<&str>,
) -> Result<Outcome> {
    let resource = &call.resource;
    if call.info.namespace.is_empty() && resource.scope == Scope::Namespaced {
        return Err(Status::bad_request("an empty namespace may not be set during creation"));
    }
    call.check_namespace(&mut value)?;
    if !object::meta(&value, "resourceVersion").is_empty() {
        return Err(Status::bad_request(
            "resourceVersion should not be set on objects to be created",
        ));
    }
    let given = object::meta(&value, "name").to_owned();
    let prefix = object::meta(&value, "generateName").to_owned();
    if given.is_empty() && prefix.is_empty() {
        let cause = crate::status::Cause {
            reason: "FieldValueRequired",
            message: "Required value: name or generateName is required".to_owned(),
            field: "metadata.name".to_owned(),
        };
        return Err(Status::invalid(resource, "", vec![cause]));
    }
    new_identity(resource, &mut value, call.now);
    let mut name = given.clone();
    for _ in 0..NAMES {
        if given.is_empty() && !prefix.is_empty() {
            name = generate(&prefix);
            object::set_meta(&mut value, "name", Some(json!(name)));
        }
        let mut new = value.clone();
        hooks::prepare_create(call, &mut new)?;
        call.admit(None, &mut new, Part::Main, options, manager)?;
        let allocation = hooks::allocate(call, &mut new, options)?;
        let key = object::key(resource, &call.info.namespace, object::meta(&new, "name"))?;
        if options.dry_run {
            return match call.server.cache.get(&key) {
                Some(_) if given.is_empty() => continue,
                Some(_) => Err(Status::already_exists(resource, &name)),
                None => Ok(Outcome::Dry(new)),
            };
        }
        match call.commit(key, Expect::Absent, call.put(&new)).await {
            Ok(Some(entry)) => {
                allocation.keep();
                hooks::after_create(call, &new);
                return Ok(Outcome::Stored(entry));
            }
            Ok(None) => return Err(Status::internal("the store forgot what it was given")),
            Err(StoreError::Conflict { .. }) if given.is_empty() => {}
            Err(StoreError::Conflict { .. }) => return Err(Status::already_exists(resource, &name)),
            Err(error) => return Err(call.store_error(error)),
        }
    }
    let mut status = Status::already_exists(resource, &name);
    status.message = format!(
        "{} {name:?} already exists, the server was not able to generate a unique name for the object",
        resource.qualified()
    );
    status.details.retry_after_s = 1;
    Err(status)
}

/// Letters and digits that spell no words, as upstream's names.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// Length of the random end of a generated name.
const SUFFIX: usize = 5;
/// Longest name of most kinds.
const MAX_NAME: usize = 63;

fn generate(prefix: &str) -> String {
    let mut rng = rand::rng();
    let mut name: String = prefix.chars().take(MAX_NAME - SUFFIX).collect();
    name.extend((0..SUFFIX).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])));
    name
}
