//! The taint eviction controller: deletes pods that do not tolerate what their node is tainted with, when their time is up.

use super::{
    evict::{Leave, leave},
    lifecycle::{patch_pod_status, until},
};
use crate::{
    cluster::{endpoints::slices, podview},
    frame::{Cache, Change, Clock, Controller, Fault, Frame, Key, Next, Outcome, Queue, Recorder},
};
use k8s_openapi::{
    api::core::v1::{Node, Pod, Taint},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client,
    api::{DeleteParams, Preconditions},
};
use serde_json::json;
use std::sync::Arc;

const NAME: &str = "taint-eviction-controller";
/// Whose rights it has: upstream's role of this controller came later than its work.
const IDENTITY: &str = "node-controller";

struct Evictions {
    client: Client,
    recorder: Recorder,
    clock: Clock,
    nodes: Arc<Cache<Node>>,
    pods: Arc<Cache<Pod>>,
}

fn no_execute(node: &Node) -> Vec<Taint> {
    let taints = node.spec.as_ref().and_then(|it| it.taints.clone()).unwrap_or_default();
    taints.into_iter().filter(|it| it.effect == "NoExecute").collect()
}

pub(crate) fn controller(frame: &Arc<Frame>) -> Controller {
    let this = Arc::new(Evictions {
        client: frame.client(IDENTITY),
        recorder: frame.recorder(IDENTITY),
        clock: frame.clock(),
        nodes: frame.cache(),
        pods: frame.cache(),
    });
    slices::index_by_node(&this.pods);
    let (nodes, pods) = (Arc::clone(&this.nodes), Arc::clone(&this.pods));
    let (by_node, by_pod) = (Arc::clone(&this), Arc::clone(&this));
    Controller::new(NAME, 8, move |key: Key| {
        let this = Arc::clone(&this);
        async move { this.reconcile(&key).await }
    })
    .on(&nodes, move |change: &Change<Node>, queue: &Queue| {
        let taints = |it: &Option<Arc<Node>>| it.as_deref().map(no_execute).unwrap_or_default();
        if taints(&change.old) == taints(&change.new) {
            return;
        }
        let name = change.latest().metadata.name.clone().unwrap_or_default();
        for pod in by_node.pods.indexed(slices::BY_NODE, &name) {
            queue.add(Key::of(&*pod));
        }
    })
    .on(&pods, move |change: &Change<Pod>, queue: &Queue| {
        let tainted = |pod: &Pod| {
            let node = podview::node_name(pod).and_then(|name| by_pod.nodes.get("", name));
            node.is_some_and(|node| !no_execute(&node).is_empty())
        };
        if let Some(pod) = change.new.as_ref().filter(|pod| tainted(pod)) {
            queue.add(Key::of(&**pod));
        }
    })
}

impl Evictions {
    async fn reconcile(&self, key: &Key) -> Outcome {
        let Some(pod) = self.pods.get(&key.namespace, &key.name) else {
            return Ok(Next::Change);
        };
        let node = podview::node_name(&pod).and_then(|name| self.nodes.get("", name));
        let Some(node) = node.filter(|_| !podview::is_terminating(&pod)) else {
            return Ok(Next::Change);
        };
        let now = self.clock.now();
        match leave(&no_execute(&node), &pod, now) {
            Leave::Never => Ok(Next::Change),
            Leave::At(at) => Ok(Next::After(until(at, now))),
            Leave::Now => {
                self.recorder
                    .normal(&*pod, "TaintManagerEviction", format!("Marking for deletion Pod {key}"));
                let condition = json!({
                    "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
                    "message": "Taint manager: deleting due to NoExecute taint", "lastTransitionTime": Time(now),
                });
                let patch = json!({ "metadata": { "uid": pod.metadata.uid }, "status": { "conditions": [condition] } });
                patch_pod_status(&self.client, &pod, &patch).await?;
                delete_pod(&self.client, &pod, DeleteParams::default()).await?;
                Ok(Next::Change)
            }
        }
    }
}

/// Deletes exactly this pod; one that is gone is no error.
pub(crate) async fn delete_pod(client: &Client, pod: &Pod, options: DeleteParams) -> Result<(), Fault> {
    let key = Key::of(pod);
    let options = options.preconditions(Preconditions {
        uid: pod.metadata.uid.clone(),
        resource_version: None,
    });
    let api: Api<Pod> = Api::namespaced(client.clone(), &key.namespace);
    let deleted = api.delete(&key.name, &options).await;
    match deleted.map_err(|error| Fault::api(format!("delete pod {key}"), error)) {
        Err(fault) if fault.is_not_found() || fault.is_conflict() => Ok(()),
        other => other.map(|_| ()),
    }
}
