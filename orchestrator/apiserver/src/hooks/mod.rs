//! Code for what the rows cannot say. A row names its hooks; each name is one file here.

mod certificates;
pub(crate) mod components;
pub(crate) mod disruption;
mod jobs;
mod namespaces;
mod pods;
pub(crate) mod reviews;
pub(crate) mod services;
mod volumes;

use crate::{
    handlers::{
        Call,
        write::{Part, restore},
    },
    http::{
        Body,
        options::{Propagation, WriteOptions},
    },
    object,
    status::{Result, Status},
};
use fairlead_schema::Resource;
use http::Response;
use serde_json::Value;

/// What a request holds until its object is stored; given back when it is not.
#[must_use = "what was allocated is given back when this is dropped"]
pub(crate) struct Allocation(Option<services::Held>);

impl Allocation {
    pub(crate) fn keep(self) {
        if let Some(held) = self.0 {
            held.keep();
        }
    }
}

/// Answers what is never stored: reviews.
pub(crate) fn answer(call: &Call, value: &Value) -> Result<Response<Body>> {
    reviews::answer(call, value)
}

/// Before the first defaults of a new object.
pub(crate) fn prepare_create(call: &Call, new: &mut Value) -> Result<()> {
    let resource = &call.resource;
    if resource.subresource("status").is_some() && !resource.has_hook("status_on_create") {
        restore(&Value::Null, new, "status");
    }
    for hook in &resource.hooks {
        match &**hook {
            "pod" => pods::prepare_create(new),
            "namespace" => namespaces::prepare_create(new),
            "job" => jobs::prepare_create(new),
            "csr" => certificates::prepare_create(call, new),
            "persistent-volume" | "persistent-volume-claim" => volumes::prepare_create(new),
            _ => {}
        }
    }
    Ok(())
}

/// Before the defaults of a changed object: what of it may change at all.
pub(crate) fn prepare_update(call: &Call, old: &Value, new: &mut Value, part: Part<'_>) -> Result<()> {
    for hook in &call.resource.hooks {
        match &**hook {
            "pod" => pods::prepare_update(old, new, part),
            "namespace" => namespaces::prepare_update(old, new, part),
            "csr" => certificates::prepare_update(old, new, part),
            "service" if part == Part::Main => services::carry_over(old, new),
            _ => {}
        }
    }
    Ok(())
}

/// Takes what the object needs to own before it is stored: service addresses and ports.
pub(crate) fn allocate(call: &Call, new: &mut Value, options: &WriteOptions) -> Result<Allocation> {
    if !call.resource.has_hook("service") {
        return Ok(Allocation(None));
    }
    let held = call.server.services.allocate(&call.resource, new)?;
    Ok(Allocation((!options.dry_run).then_some(held)))
}

/// A new object is stored.
pub(crate) fn after_create(call: &Call, new: &Value) {
    if call.resource.has_hook("crd") {
        call.server.crds_changed();
    }
    follow(call, new);
}

/// Authorizers see what is stored before the client's answer does.
fn follow(call: &Call, object: &Value) {
    if let Some(storage) = &call.resource.storage {
        let prefix = &storage.prefix;
        call.server
            .follow(prefix, object::meta(object, "namespace"), object::meta(object, "name"));
    }
}

/// A changed object is stored.
pub(crate) fn after_update(call: &Call, old: &Value, new: &Value) {
    if call.resource.has_hook("service") {
        call.server.services.release_difference(old, new);
    }
    follow(call, new);
    if call.resource.has_hook("crd") {
        call.server.crds_changed();
    }
}

/// An object is gone.
pub(crate) fn after_delete(call: &Call, old: &Value) {
    if call.resource.has_hook("service") {
        call.server.services.release(old);
    }
    follow(call, old);
    if call.resource.has_hook("crd") {
        call.server.crds_changed();
    }
}

/// Whether an object that is being deleted, without finalizers, may go with this write.
pub(crate) fn may_go(resource: &Resource, new: &Value) -> bool {
    let grace = new["metadata"]["deletionGracePeriodSeconds"].as_u64().unwrap_or(0);
    grace == 0 && !holds(resource, new)
}

/// Whether something besides its finalizers holds an object.
pub(crate) fn holds(resource: &Resource, object: &Value) -> bool {
    resource.has_hook("namespace") && namespaces::holds(object)
}

/// What happens to dependents when the client does not say.
pub(crate) fn default_propagation(resource: &Resource, _old: &Value) -> Propagation {
    // Source: the API's documentation of garbage collection: these two orphan unless told otherwise.
    if resource.has_hook("orphans_by_default") {
        Propagation::Orphan
    } else {
        Propagation::Background
    }
}

/// Seconds that an object has left after a DELETE.
pub(crate) fn grace_period(resource: &Resource, old: &Value, asked: Option<u64>) -> u64 {
    if resource.has_hook("pod") {
        pods::grace_period(old, asked)
    } else {
        0
    }
}

/// Further marks of a deletion.
pub(crate) fn mark_deleted(resource: &Resource, new: &mut Value) {
    if resource.has_hook("namespace") {
        object::set_at(new, "status.phase", "Terminating".into());
    }
}

/// For subresources that a kind lacks.
pub(crate) fn no_subresource() -> Status {
    Status::no_such_path()
}
