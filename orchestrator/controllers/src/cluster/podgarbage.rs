//! Pods that nobody ends: of nodes that are gone, deleted before they had a node, and those beyond what is kept of ended ones.

use super::{
    endpoints::slices,
    nodes::{
        evictions::delete_pod,
        lifecycle::{patch_pod_status, until},
    },
    podview,
};
use crate::frame::{Cache, Change, Clock, Controller, Fault, Frame, Key, Next, Outcome, Queue, Recorder};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::core::v1::{Node, Pod},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{Api, Client, api::DeleteParams};
use serde_json::json;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

const NAME: &str = "pod-garbage-collector";
/// How long a node may be missing before its pods are. Source: upstream's quarantine.
const QUARANTINE: SignedDuration = SignedDuration::from_secs(40);
/// Ended pods come in crowds; they are counted together.
const SETTLE: Duration = Duration::from_secs(1);
/// The key under which ended pods are counted.
const ENDED: &str = "ended pods";
/// Index of pods that have ended.
const BY_END: &str = "ended";

struct PodGarbage {
    client: Client,
    recorder: Recorder,
    clock: Clock,
    nodes: Arc<Cache<Node>>,
    pods: Arc<Cache<Pod>>,
    /// Since when nodes are missing that pods are on.
    missing: Mutex<HashMap<String, Timestamp>>,
    keep: usize,
}

pub(crate) fn controller(frame: &Arc<Frame>) -> Controller {
    let this = Arc::new(PodGarbage {
        client: frame.client(NAME),
        recorder: frame.recorder(NAME),
        clock: frame.clock(),
        nodes: frame.cache(),
        pods: frame.cache(),
        missing: Mutex::default(),
        keep: frame.config.cluster.terminated_pods,
    });
    slices::index_by_node(&this.pods);
    this.pods
        .add_index(BY_END, |pod| podview::is_terminal(pod).then(|| "yes".to_owned()));
    let (by_node, worker) = (Arc::clone(&this), Arc::clone(&this));
    Controller::new(NAME, 2, move |key: Key| {
        let this = Arc::clone(&worker);
        async move { this.reconcile(&key).await }
    })
    .on(&this.nodes, move |change: &Change<Node>, queue: &Queue| {
        let name = change.latest().metadata.name.clone().unwrap_or_default();
        match (&change.old, &change.new) {
            (_, None) => {
                for pod in by_node.pods.indexed(slices::BY_NODE, &name) {
                    queue.add(Key::of(&*pod));
                }
            }
            (None, Some(_)) => {
                let mut missing = by_node.missing.lock().unwrap_or_else(PoisonError::into_inner);
                missing.remove(&name);
            }
            _ => {}
        }
    })
    .on(&this.pods, |change: &Change<Pod>, queue: &Queue| {
        let Some(pod) = &change.new else { return };
        // Whether its node exists is asked when all caches have synced.
        let bound = change.old.as_deref().and_then(podview::node_name) != podview::node_name(pod);
        if bound || podview::is_terminating(pod) {
            queue.add(Key::of(&**pod));
        }
        if podview::is_terminal(pod) && !change.old.as_deref().is_some_and(podview::is_terminal) {
            queue.add_after(Key::new("", ENDED), SETTLE);
        }
    })
}

/// The oldest of the ended pods that are too many.
pub(crate) fn surplus(mut ended: Vec<Arc<Pod>>, keep: usize) -> Vec<Arc<Pod>> {
    ended.retain(|it| !podview::is_terminating(it));
    let many = ended.len().saturating_sub(keep);
    ended.sort_by(|a, b| {
        let age = |it: &Pod| (it.metadata.creation_timestamp.clone(), it.metadata.name.clone());
        age(a).cmp(&age(b))
    });
    ended.truncate(many);
    ended
}

impl PodGarbage {
    async fn reconcile(&self, key: &Key) -> Outcome {
        if key.namespace.is_empty() {
            for pod in surplus(self.pods.indexed(BY_END, "yes"), self.keep) {
                self.end(&pod, None).await?;
            }
            return Ok(Next::Change);
        }
        let Some(pod) = self.pods.get(&key.namespace, &key.name) else {
            return Ok(Next::Change);
        };
        let Some(node) = podview::node_name(&pod) else {
            if podview::is_terminating(&pod) {
                // No kubelet will ever end it.
                self.end(&pod, None).await?;
            }
            return Ok(Next::Change);
        };
        if self.nodes.get("", node).is_some() {
            return Ok(Next::Change);
        }
        let now = self.clock.now();
        let since = {
            let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
            *missing.entry(node.to_owned()).or_insert(now)
        };
        let due = since.saturating_add(QUARANTINE).unwrap_or(Timestamp::MAX);
        if now < due {
            return Ok(Next::After(until(due, now)));
        }
        let api: Api<Node> = Api::all(self.client.clone());
        let live = api.get_metadata_opt(node).await;
        let live = live.map_err(|error| Fault::api(format!("get node {node}"), error))?;
        if live.is_none() {
            self.end(&pod, Some("PodGC: node no longer exists")).await?;
        }
        Ok(Next::Change)
    }

    /// Removes a pod at once. `disrupted`: by what, if it did not want to end.
    async fn end(&self, pod: &Pod, disrupted: Option<&str>) -> Result<(), Fault> {
        if let Some(message) = disrupted
            && !podview::is_terminal(pod)
        {
            let condition = json!({
                "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC", "message": message,
                "lastTransitionTime": Time(self.clock.now()),
            });
            let patch = json!({
                "metadata": { "uid": pod.metadata.uid }, "status": { "phase": "Failed", "conditions": [condition] },
            });
            patch_pod_status(&self.client, pod, &patch).await?;
            self.recorder.normal(pod, "PodGC", message);
        }
        delete_pod(&self.client, pod, DeleteParams::default().grace_period(0)).await
    }
}
