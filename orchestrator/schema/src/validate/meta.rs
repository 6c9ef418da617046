//! `metadata`. Source: `apimachinery/pkg/api/validation`.

use super::{Causes, Path, entries, items, number, same, text};
use crate::{
    names,
    resource::{Resource, Scope},
};
use serde_json::Value;

/// Keys and values of all annotations together, in bytes.
const MAX_ANNOTATIONS: usize = 256 * 1024;

pub(super) fn object(resource: &Resource, old: Option<&Value>, new: &Value, causes: &mut Causes) {
    let meta = &new["metadata"];
    let path = Path::Root.child("metadata");
    if old.is_none() {
        name(resource, meta, &path, causes);
        namespace(resource, meta, &path, causes);
        let at = path.child("finalizers");
        for finalizer in items(&meta["finalizers"]) {
            causes.all_invalid(&at, finalizer, names::qualified_name(text(finalizer)));
        }
    }
    labels(&meta["labels"], &path.child("labels"), causes);
    annotations(&meta["annotations"], &path.child("annotations"), causes);
    owners(&meta["ownerReferences"], &path.child("ownerReferences"), causes);
    if number(&meta["generation"]) < 0 {
        let path = path.child("generation");
        causes.invalid(&path, &meta["generation"], "must be greater than or equal to 0");
    }
    if let Some(old) = old {
        update(&old["metadata"], meta, &path, causes);
    }
}

fn name(resource: &Resource, meta: &Value, path: &Path<'_>, causes: &mut Causes) {
    let (name, prefix) = (&meta["name"], &meta["generateName"]);
    if !text(prefix).is_empty() {
        let complaints = names::object_name(resource, text(prefix), true);
        causes.all_invalid(&path.child("generateName"), prefix, complaints);
    }
    let path = path.child("name");
    if text(name).is_empty() {
        causes.required(&path, "name or generateName is required");
    } else {
        causes.all_invalid(&path, name, names::object_name(resource, text(name), false));
    }
}

fn namespace(resource: &Resource, meta: &Value, path: &Path<'_>, causes: &mut Causes) {
    let path = path.child("namespace");
    let namespace = &meta["namespace"];
    match (resource.scope, text(namespace).is_empty()) {
        (Scope::Namespaced, true) => causes.required(&path, ""),
        (Scope::Namespaced, false) => causes.all_invalid(&path, namespace, names::dns1123_label(text(namespace))),
        (Scope::Cluster, true) => {}
        (Scope::Cluster, false) => causes.forbidden(&path, "not allowed on this type"),
    }
}

/// Keys and values of a map of labels.
pub(super) fn labels(labels: &Value, path: &Path<'_>, causes: &mut Causes) {
    for (key, value) in entries(labels) {
        causes.all_invalid(path, &Value::from(key.as_str()), names::qualified_name(key));
        causes.all_invalid(path, value, names::label_value(text(value)));
    }
}

fn annotations(annotations: &Value, path: &Path<'_>, causes: &mut Causes) {
    let mut bytes = 0;
    for (key, value) in entries(annotations) {
        causes.all_invalid(
            path,
            &Value::from(key.as_str()),
            names::qualified_name(&key.to_lowercase()),
        );
        bytes += key.len() + text(value).len();
    }
    if bytes > MAX_ANNOTATIONS {
        causes.too_long(path, MAX_ANNOTATIONS);
    }
}

fn owners(owners: &Value, path: &Path<'_>, causes: &mut Causes) {
    let mut controller: Option<String> = None;
    for owner in items(owners) {
        let (_, version) = crate::kinds::split_api_version(text(&owner["apiVersion"]));
        if version.is_empty() {
            causes.invalid(
                &path.child("apiVersion"),
                &owner["apiVersion"],
                "version must not be empty",
            );
        }
        for field in ["kind", "name", "uid"] {
            if text(&owner[field]).is_empty() {
                causes.invalid(&path.child(field), &owner[field], "must not be empty");
            }
        }
        if text(&owner["apiVersion"]) == "v1" && text(&owner["kind"]) == "Event" {
            causes.invalid(path, owner, "/v1, Kind=Event is disallowed from being an owner");
        }
        if owner["controller"] == true {
            let this = format!("{}/{}", text(&owner["kind"]), text(&owner["name"]));
            match &controller {
                Some(first) => {
                    let detail = format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and \
                         {this}"
                    );
                    causes.invalid(path, owners, &detail);
                }
                None => controller = Some(this),
            }
        }
    }
}

fn update(old: &Value, new: &Value, path: &Path<'_>, causes: &mut Causes) {
    if !old["deletionTimestamp"].is_null() {
        let had = items(&old["finalizers"]);
        let fresh: Vec<&str> = items(&new["finalizers"])
            .iter()
            .filter(|it| !had.contains(it))
            .map(text)
            .collect();
        if !fresh.is_empty() {
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers {fresh:?}"
            );
            causes.forbidden(&path.child("finalizers"), &detail);
        }
    }
    if number(&new["generation"]) < number(&old["generation"]) {
        causes.invalid(&path.child("generation"), &new["generation"], "must not be decremented");
    }
    let fixed = [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ];
    for field in fixed {
        if !same(&old[field], &new[field]) {
            causes.invalid(&path.child(field), &new[field], "field is immutable");
        }
    }
}
