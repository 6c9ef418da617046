//! Volumes and claims. Source: field documentation of `core/v1.PersistentVolumeSpec` and `PersistentVolumeClaimSpec`.

use super::{Causes, Path, entries, is_empty, same, table::Call, text};
use crate::quantity::Quantity;
use serde_json::Value;
use std::cmp::Ordering;

/// Fields of a volume that are no source of storage.
const NO_SOURCE: [&str; 10] = [
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
    "status",
];

pub(super) fn call(name: &str) -> Option<Call> {
    Some(match name {
        "persistent-volume" => volume,
        "claim" => claim,
        _ => return None,
    })
}

fn sources(spec: &Value) -> impl Iterator<Item = (&String, &Value)> {
    entries(spec).filter(|(name, value)| !NO_SOURCE.contains(&name.as_str()) && !value.is_null())
}

fn volume(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    let storage = &spec["capacity"]["storage"];
    let capacity = path.child("capacity");
    if !is_empty(&spec["capacity"]) && storage.is_null() {
        causes.not_supported(&capacity, &spec["capacity"], &["storage"]);
    }
    positive(storage, &capacity.key("storage"), causes);
    let mut all = sources(spec);
    if all.next().is_none() {
        causes.required(path, "must specify a volume type");
    }
    for (source, _) in all {
        causes.forbidden(&path.child(source), "may not specify more than 1 volume type");
    }
    if !spec["local"].is_null() && is_empty(&spec["nodeAffinity"]) {
        causes.required(&path.child("nodeAffinity"), "Local volume requires node affinity");
    }
}

fn positive(quantity: &Value, path: &Path<'_>, causes: &mut Causes) {
    if Quantity::of(quantity).is_some_and(|it| it.sign() != Ordering::Greater) {
        causes.invalid(path, quantity, "must be greater than zero");
    }
}

fn claim(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    let storage = &spec["resources"]["requests"]["storage"];
    let path = path.child("resources");
    if storage.is_null() {
        let path = path.child("requests");
        causes.required(&path.key("storage"), "");
    }
    let path = path.child("requests");
    positive(storage, &path.key("storage"), causes);
}

pub(super) fn volume_update(old: &Value, new: &Value, path: &Path<'_>, causes: &mut Causes) {
    let (was, is) = (&old["spec"], &new["spec"]);
    let path = path.child("spec");
    let source = |spec: &Value| -> Value { sources(spec).map(|(k, v)| (k.clone(), v.clone())).collect() };
    if !same(&source(was), &source(is)) {
        let path = path.child("persistentvolumesource");
        causes.forbidden(&path, "spec.persistentvolumesource is immutable after creation");
    }
    if !same(&was["volumeMode"], &is["volumeMode"]) {
        causes.invalid(&path.child("volumeMode"), &is["volumeMode"], "field is immutable");
    }
    if !is_empty(&was["nodeAffinity"]) && !same(&was["nodeAffinity"], &is["nodeAffinity"]) {
        causes.invalid(&path.child("nodeAffinity"), &is["nodeAffinity"], "field is immutable");
    }
}

/// A claim can be bound and can grow; nothing else of it changes.
pub(super) fn claim_update(old: &Value, new: &Value, path: &Path<'_>, causes: &mut Causes) {
    let (was, is) = (&old["spec"], &new["spec"]);
    let path = path.child("spec");
    let bound = !is_empty(&was["volumeName"]);
    let closed = |spec: &Value| {
        let mut spec = spec.clone();
        if let Some(fields) = spec.as_object_mut() {
            fields.remove("volumeAttributesClassName");
            if !bound {
                fields.remove("volumeName");
            }
            // A claim of the default class learns its class when there is one.
            if is_empty(&was["storageClassName"]) && was["storageClassName"].is_null() {
                fields.remove("storageClassName");
            }
        }
        if let Some(requests) = spec.pointer_mut("/resources/requests").and_then(Value::as_object_mut) {
            requests.remove("storage");
        }
        spec
    };
    if !same(&closed(was), &closed(is)) {
        let detail = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound \
                      claims";
        causes.forbidden(&path, detail);
    }
    let storage = |spec: &Value| Quantity::of(&spec["resources"]["requests"]["storage"]).unwrap_or_default();
    let path = path.child("resources");
    let path = path.child("requests");
    match storage(is).cmp(&storage(was)) {
        Ordering::Less => {
            let capacity = Quantity::of(&old["status"]["capacity"]["storage"]);
            if capacity.is_none_or(|it| storage(is) <= it) {
                causes.forbidden(&path.child("storage"), "field can not be less than status.capacity");
            }
        }
        Ordering::Greater if text(&old["status"]["phase"]) != "Bound" => {
            causes.forbidden(
                &path.child("storage"),
                "only dynamically provisioned pvc can be resized, once it is bound",
            );
        }
        _ => {}
    }
}
