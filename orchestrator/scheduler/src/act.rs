//! What we write: bindings, conditions of pods that found no node, deletions of pods that make way.

use crate::{
    pod::{Key, PodInfo},
    scheduler::Nomination,
    watch::PodStatus,
};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Binding, ObjectReference, Pod},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Status},
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use serde_json::{Value, json};

fn pods(client: &Client, key: &Key) -> Api<Pod> {
    Api::namespaced(client.clone(), &key.namespace)
}

/// What events say that a pod is.
pub(crate) fn reference(pod: &PodInfo) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.key.namespace.clone()),
        name: Some(pod.key.name.clone()),
        uid: Some(pod.uid.clone()),
        ..ObjectReference::default()
    }
}

/// Puts a pod on a node.
///
/// # Errors
/// What the API server says against it.
pub(crate) async fn bind(client: &Client, pod: &PodInfo, node: &str) -> kube::Result<()> {
    let binding = Binding {
        metadata: ObjectMeta {
            name: Some(pod.key.name.clone()),
            namespace: Some(pod.key.namespace.clone()),
            // So that it is this pod, and not one of the same name that was made since.
            uid: Some(pod.uid.clone()),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            ..ObjectReference::default()
        },
    };
    let api = pods(client, &pod.key);
    let _: Status = api
        .create_subresource("binding", &pod.key.name, &PostParams::default(), &binding)
        .await?;
    Ok(())
}

/// The patch that makes a pod's status say what we found, if it does not yet.
pub(crate) fn unscheduled(old: &PodStatus, reason: &str, message: &str, nomination: &Nomination) -> Option<Value> {
    let mut status = json!({});
    if old.scheduled.as_deref() != Some("False") || old.reason != reason || old.message != message {
        let mut condition = json!({
            "type": "PodScheduled", "status": "False", "reason": reason, "message": message,
        });
        if old.scheduled.as_deref() != Some("False") {
            condition["lastTransitionTime"] = json!(now());
        }
        status["conditions"] = json!([condition]);
    }
    match nomination {
        Nomination::Keep => {}
        Nomination::Clear => status["nominatedNodeName"] = Value::Null,
        Nomination::Set(node) => status["nominatedNodeName"] = json!(node),
    }
    let empty = status.as_object().is_none_or(serde_json::Map::is_empty);
    (!empty).then(|| json!({ "status": status }))
}

fn now() -> String {
    // Times of the API have whole seconds.
    Timestamp::from_second(Timestamp::now().as_second())
        .unwrap_or_default()
        .to_string()
}

/// Changes a pod's status. One that is gone, or that is another by now, is left alone.
///
/// # Errors
/// What the API server says against it.
pub(crate) async fn patch_status(client: &Client, key: &Key, uid: &str, mut patch: Value) -> kube::Result<()> {
    patch["metadata"] = json!({ "uid": uid });
    let patched = pods(client, key)
        .patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(&patch))
        .await;
    match patched {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409 | 422) => Ok(()),
        other => other.map(drop),
    }
}

/// Makes a pod leave for a more important one. Source: KEP-3329 (the condition `DisruptionTarget`).
///
/// # Errors
/// What the API server says against it.
pub(crate) async fn evict(client: &Client, scheduler: &str, victim: &PodInfo) -> kube::Result<()> {
    let condition = json!({
        "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
        "message": format!("{scheduler}: preempting to accommodate a higher priority pod"),
        "lastTransitionTime": now(),
    });
    let patch = json!({ "status": { "conditions": [condition] } });
    patch_status(client, &victim.key, &victim.uid, patch).await?;
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(victim.uid.clone()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    match pods(client, &victim.key).delete(&victim.key.name, &params).await {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        other => other.map(drop),
    }
}
