//! Subresources: what follows an object's name in the path.

use super::{
    Call, patch, present, update,
    write::{Change, Outcome, Part},
};
use crate::{
    hooks,
    http::{Body, Form},
    object,
    status::{Result, Status, success},
};
use bytes::Bytes;
use fairlead_schema::resource::Scale;
use http::{Response, StatusCode};
use serde_json::{Value, json};
use std::sync::Arc;

/// Answers a request for a subresource.
pub(crate) async fn run(call: &Arc<Call>, body: Bytes) -> Result<Response<Body>> {
    let (verb, name) = (call.info.verb.as_str(), call.info.subresource.as_str());
    let row = call.resource.subresource(name).ok_or_else(hooks::no_subresource)?;
    if !row.verbs.iter().any(|it| &**it == verb) {
        return Err(Status::method_not_allowed(&call.resource, verb));
    }
    match (name, verb) {
        ("scale", _) => {
            let scale = row.scale.clone();
            let scale = scale.ok_or_else(|| Status::internal("the row of scale says not where replicas are"))?;
            self::scale(call, &body, &scale).await
        }
        ("binding", "create") => binding(call, &body).await,
        ("eviction", "create") => eviction(call, &body).await,
        ("token", "create") => hooks::reviews::token(call, &body),
        ("log" | "exec" | "attach" | "portforward" | "proxy", _) => crate::stream::forward(call, body).await,
        (_, "get") => {
            let entry = call.entry()?;
            present::entry(call, StatusCode::OK, &entry)
        }
        ("status", "update") => update::put(call, &body, Part::Status).await,
        ("status", "patch") => patch::part(call, &body, Part::Status).await,
        (_, "update") => update::put(call, &body, Part::Other(name)).await,
        (_, "patch") => patch::part(call, &body, Part::Other(name)).await,
        _ => Err(Status::method_not_allowed(&call.resource, verb)),
    }
}

/// `autoscaling/v1 Scale` of an object.
fn scale_of(object: &Value, paths: &Scale) -> Value {
    let number = |path: &str| object::at(object, path).and_then(Value::as_i64).unwrap_or(0);
    let selector = paths
        .selector
        .as_ref()
        .and_then(|path| object::at(object, path))
        .map(selector_text);
    let mut status = json!({ "replicas": number(&paths.status_replicas) });
    if let Some(selector) = selector.filter(|it| !it.is_empty()) {
        status["selector"] = json!(selector);
    }
    let meta = |name: &str| object["metadata"][name].clone();
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": meta("name"), "namespace": meta("namespace"), "uid": meta("uid"),
            "resourceVersion": meta("resourceVersion"), "creationTimestamp": meta("creationTimestamp"),
        },
        "spec": { "replicas": number(&paths.spec_replicas) },
        "status": status,
    })
}

/// A Scale as `kubectl get --subresource=scale` shows it.
fn scale_table(call: &Call, scale: &Value) -> Value {
    let column = |name: &str, kind: &str, format: &str, description: &str| json!({ "name": name, "type": kind, "format": format, "description": description, "priority": 0 });
    let version = call.accept.meta_version();
    let made: Option<jiff::Timestamp> = object::meta(scale, "creationTimestamp").parse().ok();
    let age = made.map_or("<unknown>".to_owned(), |made| {
        fairlead_schema::table::human_duration(call.now.duration_since(made))
    });
    json!({
        "kind": "Table", "apiVersion": version,
        "metadata": { "resourceVersion": object::meta(scale, "resourceVersion") },
        "columnDefinitions": [
            column("Name", "string", "name", "The name of the object that is scaled."),
            column("Desired", "integer", "", "How many replicas are wanted."),
            column("Available", "integer", "", "How many replicas there are."),
            column("Age", "string", "", "The time since the object was made."),
        ],
        "rows": [{
            "cells": [scale["metadata"]["name"], scale["spec"]["replicas"], scale["status"]["replicas"], age],
            "object": object::partial(scale, version),
        }],
    })
}

/// A selector as `-l` takes it, from text, a map of labels, or a `LabelSelector`.
fn selector_text(selector: &Value) -> String {
    if let Some(text) = selector.as_str() {
        return text.to_owned();
    }
    let labels = selector.get("matchLabels").unwrap_or(selector);
    let labels = labels.as_object().into_iter().flatten();
    let mut terms: Vec<_> = labels
        .filter_map(|(key, value)| Some(format!("{key}={}", value.as_str()?)))
        .collect();
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or_default();
        let values = expression["values"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        let values = values.collect::<Vec<_>>().join(",");
        terms.push(match expression["operator"].as_str() {
            Some("In") => format!("{key} in ({values})"),
            Some("NotIn") => format!("{key} notin ({values})"),
            Some("DoesNotExist") => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    terms.join(",")
}

async fn scale(call: &Arc<Call>, body: &Bytes, paths: &Scale) -> Result<Response<Body>> {
    if call.info.verb == "get" {
        let object = present::object_of(&call.resource, &*call.entry()?)?;
        let scale = scale_of(&object, paths);
        return Ok(match call.accept.form {
            Form::Table => call.json(StatusCode::OK, &scale_table(call, &scale)),
            _ => call.json(StatusCode::OK, &scale),
        });
    }
    let options = call.write_options()?;
    let manager = call.manager(&options);
    let patcher = (call.info.verb == "patch")
        .then(|| patch::of_scale(call, body))
        .transpose()?;
    let given = match patcher {
        Some(_) => Value::Null,
        None => call.server.builtin(&call.headers, body, "autoscaling/v1", "Scale")?,
    };
    let change = |old: Option<&Value>| {
        let old = old.ok_or_else(|| Status::not_found(&call.resource, &call.info.name))?;
        let wanted = match &patcher {
            Some(patch) => {
                let mut patched = patch(&scale_of(old, paths))?;
                call.server.normalise("autoscaling/v1", "Scale", &mut patched)?;
                patched
            }
            None => given.clone(),
        };
        let name = object::meta(&wanted, "name");
        if !name.is_empty() && name != call.info.name {
            return Err(Status::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                call.info.name
            )));
        }
        let replicas = wanted["spec"]["replicas"].as_i64().unwrap_or(0);
        if replicas < 0 {
            let cause = crate::status::Cause {
                reason: "FieldValueInvalid",
                message: format!("Invalid value: {replicas}: must be greater than or equal to 0"),
                field: "spec.replicas".to_owned(),
            };
            return Err(Status::invalid(&call.resource, &call.info.name, vec![cause]));
        }
        let mut new = old.clone();
        object::set_at(&mut new, &paths.spec_replicas, json!(replicas));
        let version = object::meta(&wanted, "resourceVersion");
        if !version.is_empty() {
            object::set_meta(&mut new, "resourceVersion", Some(json!(version)));
        }
        Ok(Change {
            new,
            manager: Some(manager.clone()),
        })
    };
    let (outcome, _) = call.modify(Part::Other("scale"), &options, false, &change).await?;
    let object = match outcome {
        Outcome::Stored(entry) => present::object_of(&call.resource, &entry)?,
        Outcome::Gone(value) | Outcome::Dry(value) => value,
    };
    Ok(call.json(StatusCode::OK, &scale_of(&object, paths)))
}

/// Puts a pod on a node. Source: `core/v1 Binding`.
async fn binding(call: &Arc<Call>, body: &Bytes) -> Result<Response<Body>> {
    let options = call.write_options()?;
    let binding = call.server.builtin(&call.headers, body, "v1", "Binding")?;
    let node = binding["target"]["name"].as_str().unwrap_or_default().to_owned();
    if node.is_empty() {
        return Err(Status::bad_request("target.name: Required value"));
    }
    if !matches!(binding["target"]["kind"].as_str(), None | Some("" | "Node")) {
        return Err(Status::bad_request(
            "target.kind: Unsupported value: supported values: \"Node\"",
        ));
    }
    bind(call, &options, &binding, &node).await?;
    Ok(created(call))
}

async fn bind(
    call: &Call,
    options: &crate::http::options::WriteOptions,
    binding: &Value,
    node: &str,
) -> Result<(Outcome, bool)> {
    let (manager, now) = (call.manager(options), object::time(call.now));
    let uid = object::meta(binding, "uid").to_owned();
    let change = |old: Option<&Value>| {
        let old = old.ok_or_else(|| Status::not_found(&call.resource, &call.info.name))?;
        let bindings = ("", "pods/binding");
        let conflict = |why: String| Status::conflict(bindings, &call.info.name, why);
        if object::is_terminating(old) {
            return Err(conflict(format!(
                "pod {} is being deleted, cannot be assigned to a host",
                call.info.name
            )));
        }
        if !uid.is_empty() && uid != object::meta(old, "uid") {
            return Err(conflict(format!("Precondition failed: UID in precondition: {uid}")));
        }
        match old["spec"]["nodeName"].as_str() {
            None | Some("") => {}
            Some(other) => {
                return Err(conflict(format!(
                    "pod {} is already assigned to node {other:?}",
                    call.info.name
                )));
            }
        }
        if old["spec"]["schedulingGates"]
            .as_array()
            .is_some_and(|gates| !gates.is_empty())
        {
            return Err(conflict(format!(
                "pod {} has non-empty .spec.schedulingGates",
                call.info.name
            )));
        }
        let mut new = old.clone();
        object::set_at(&mut new, "spec.nodeName", json!(node));
        for (key, value) in binding["metadata"]["annotations"].as_object().into_iter().flatten() {
            object::meta_mut(&mut new);
            object::child_mut(&mut new["metadata"], "annotations").insert(key.clone(), value.clone());
        }
        let mut conditions = old["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.retain(|condition| condition["type"] != "PodScheduled");
        conditions.push(
            json!({ "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now }),
        );
        object::set_at(&mut new, "status.conditions", Value::Array(conditions));
        Ok(Change {
            new,
            manager: Some(manager.clone()),
        })
    };
    call.modify(Part::Other("binding"), options, false, &change).await
}

/// Deletes a pod unless a PodDisruptionBudget forbids it. Source: `policy/v1 Eviction`.
async fn eviction(call: &Arc<Call>, body: &Bytes) -> Result<Response<Body>> {
    let eviction = call.server.builtin(&call.headers, body, "policy/v1", "Eviction")?;
    let mut options = crate::http::options::DeleteOptions::read(&call.query, &eviction["deleteOptions"])?;
    let own = object::meta(&eviction, "name");
    if !own.is_empty() && own != call.info.name {
        return Err(Status::bad_request(
            "name in URL does not match name in Eviction object",
        ));
    }
    let pod = present::object_of(&call.resource, &*call.entry()?)?;
    // The very pod that was looked at, and only if it may go: a budget is not spent on others.
    let uid = object::meta(&pod, "uid").to_owned();
    options.uid.get_or_insert(uid);
    super::delete::check(call, &call.info.name, &options, &pod)?;
    call.admit_subresource(&eviction)?;
    let ended = matches!(
        pod["status"]["phase"].as_str(),
        Some("Succeeded" | "Failed" | "Pending")
    );
    if !ended && !object::is_terminating(&pod) && !options.dry_run {
        call.server.spend_disruption(&pod).await?;
    }
    super::delete::remove(call, &call.info.name, &options).await?;
    Ok(created(call))
}

/// The answer to what was posted and is kept nowhere.
fn created(call: &Call) -> Response<Body> {
    let mut status = success(&crate::status::Details::default());
    status["code"] = json!(StatusCode::CREATED.as_u16());
    call.json(StatusCode::CREATED, &status)
}
