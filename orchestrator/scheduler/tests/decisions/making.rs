//! Pods and nodes out of JSON.

use fairlead_scheduler::{node::NodeFacts, pod::PodInfo, world::World};
use serde_json::{Value, json};
use std::sync::Arc;

/// A pod `default/NAME` of one container with this metadata and spec.
#[allow(clippy::needless_pass_by_value, reason = "cases are written where they are used")]
pub(crate) fn pod(name: &str, labels: Value, spec: Value) -> PodInfo {
    let mut object = json!({
        "metadata": { "name": name, "namespace": "default", "uid": format!("uid-{name}"), "labels": labels },
        "spec": { "containers": [{ "name": "c" }] },
    });
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    PodInfo::read(&serde_json::from_value(object).unwrap())
}

/// A container that asks for this.
#[allow(clippy::needless_pass_by_value, reason = "cases are written where they are used")]
pub(crate) fn asks(requests: Value) -> Value {
    json!([{ "name": "c", "resources": { "requests": requests } }])
}

pub(crate) fn facts(node: Value) -> NodeFacts {
    NodeFacts::read(&serde_json::from_value(node).unwrap())
}

/// A node with 4 processors and 8 GiB, and these labels.
#[allow(clippy::needless_pass_by_value, reason = "cases are written where they are used")]
pub(crate) fn node(labels: Value) -> NodeFacts {
    facts(json!({ "metadata": { "labels": labels },
        "status": { "allocatable": { "cpu": "4", "memory": "8Gi", "pods": "10" } } }))
}

/// Puts a pod on a node.
pub(crate) fn put(world: &mut World, mut pod: PodInfo, node: &str) {
    pod.node = Some(node.to_owned());
    world.set_pod(&Arc::new(pod));
}
