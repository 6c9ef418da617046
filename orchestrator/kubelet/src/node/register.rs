//! Registers the node and keeps its status: at once when something changed, else every five minutes.

use super::{
    Node, capacity,
    status::{self, Facts},
};
use crate::events::Kind;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Node as NodeObject, NodeSpec, NodeStatus},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often the node is looked at: upstream's `nodeStatusUpdateFrequency`.
const LOOK: Duration = Duration::from_secs(10);

/// How soon it is looked at again until it is ready the first time.
const LOOK_FIRST: Duration = Duration::from_millis(250);

/// How often a status without news is sent: upstream's `nodeStatusReportFrequency`.
const REPORT: Duration = Duration::from_secs(300);

/// Registers the node, then keeps its status until `stop`.
pub async fn keep_status(node: Arc<Node>, stop: CancellationToken) {
    let system = tokio::task::spawn_blocking(status::system_info)
        .await
        .unwrap_or_default();
    let name = node.config.node_name.clone();
    node.events.node(&name, Kind::Normal, "Starting", "Starting kubelet.");
    let mut told: Option<(NodeStatus, Instant)> = None;
    let mut wait = LOOK_FIRST;
    loop {
        let facts = Facts {
            capacity: capacity::read(node.config.max_pods, &node.config.root_dir),
            runtime: node.runtime.status().await.map_err(|it| it.to_string()),
            version: node.runtime.version().await.ok(),
            images: node.runtime.images().await.unwrap_or_default(),
            system: system.clone(),
        };
        let before = told.as_ref().map(|(status, _)| status.clone());
        match report(&node, &facts, told.as_ref()).await {
            Ok(Some(status)) => {
                tell_changes(&node, before.as_ref(), &status);
                told = Some((status, Instant::now()));
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(node = name, error = %error, "the node's status could not be told; it will be tried again");
            }
        }
        let ready = told.as_ref().is_some_and(|(status, _)| is_ready(status));
        wait = if ready {
            LOOK
        } else {
            (wait * 2).min(Duration::from_secs(1)).max(LOOK_FIRST)
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = node.changed.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

fn is_ready(status: &NodeStatus) -> bool {
    let mut conditions = status.conditions.iter().flatten();
    conditions.any(|it| it.type_ == "Ready" && it.status == "True")
}

/// Events of conditions that changed, in upstream's words.
fn tell_changes(node: &Node, before: Option<&NodeStatus>, now: &NodeStatus) {
    let name = &node.config.node_name;
    let status_of = |it: Option<&NodeStatus>, type_: &str| {
        let mut all = it.into_iter().flat_map(|it| it.conditions.iter().flatten());
        all.find(|it| it.type_ == type_).map(|it| it.status.clone())
    };
    for (type_, on, off) in [
        ("MemoryPressure", "NodeHasInsufficientMemory", "NodeHasSufficientMemory"),
        ("DiskPressure", "NodeHasDiskPressure", "NodeHasNoDiskPressure"),
        ("PIDPressure", "NodeHasInsufficientPID", "NodeHasSufficientPID"),
        ("Ready", "NodeReady", "NodeNotReady"),
    ] {
        let (old, new) = (status_of(before, type_), status_of(Some(now), type_));
        if old == new {
            continue;
        }
        let reason = if new.as_deref() == Some("True") { on } else { off };
        let message = format!("Node {name} status is now: {reason}");
        node.events.node(name, Kind::Normal, reason, &message);
    }
}

/// Sends the status if it has news; what was sent.
async fn report(node: &Node, facts: &Facts, told: Option<&(NodeStatus, Instant)>) -> kube::Result<Option<NodeStatus>> {
    let api: Api<NodeObject> = Api::all(node.client.clone());
    let name = &node.config.node_name;
    let now = Timestamp::now();
    if let Some((before, when)) = told {
        let status = status::compute(&node.config, facts, before, now);
        if without_heartbeats(&status) == without_heartbeats(before) && when.elapsed() < REPORT {
            return Ok(None);
        }
    }
    let object = match api.get_opt(name).await? {
        Some(object) => object,
        None if node.config.register => {
            let object = api.create(&PostParams::default(), &new_object(node)).await?;
            tracing::info!(node = name, "registered");
            object
        }
        None => {
            tracing::warn!(
                node = name,
                "there is no Node of this name, and it is not to be registered"
            );
            return Ok(None);
        }
    };
    if told.is_none() {
        let labels = json!({"metadata": {"labels": labels(node)}});
        let known = object.metadata.labels.clone().unwrap_or_default();
        if !node.labels().iter().all(|(key, value)| known.get(key) == Some(value)) {
            api.patch(name, &PatchParams::default(), &Patch::Merge(labels)).await?;
        }
    }
    let previous = object.status.unwrap_or_default();
    let status = status::compute(&node.config, facts, &previous, now);
    let mut body = serde_json::to_value(&status).unwrap_or_default();
    if let Some(addresses) = body.get_mut("addresses").and_then(Value::as_array_mut) {
        // The list merges by type, of which there may be two.
        addresses.insert(0, json!({"$patch": "replace"}));
    }
    let body = json!({ "status": body });
    api.patch_status(name, &PatchParams::default(), &Patch::Strategic(body))
        .await?;
    Ok(Some(status))
}

fn without_heartbeats(status: &NodeStatus) -> NodeStatus {
    let mut status = status.clone();
    for condition in status.conditions.iter_mut().flatten() {
        condition.last_heartbeat_time = None;
    }
    status
}

fn labels(node: &Node) -> Value {
    serde_json::to_value(node.labels()).unwrap_or_default()
}

fn new_object(node: &Node) -> NodeObject {
    NodeObject {
        metadata: ObjectMeta {
            name: Some(node.config.node_name.clone()),
            labels: Some(node.labels()),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            taints: Some(node.config.taints.clone()).filter(|it| !it.is_empty()),
            ..NodeSpec::default()
        }),
        status: None,
    }
}
