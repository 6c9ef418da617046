//! The node lifecycle controller: marks silent nodes, taints what is unwell, and lets nodes be emptied at a bounded rate.

use super::{
    LEASES, NOT_READY, UNREACHABLE, health,
    health::Heard,
    taints,
    zones::{Permit, Rates, Zones, zone_of},
};
use crate::{
    SHARED,
    cluster::{endpoints::slices, podview},
    frame::{Cache, Change, Clock, Controller, Fault, Frame, Key, Next, Outcome, Queue, Recorder},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node, Pod},
};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

const NAME: &str = "node-controller";

struct Lifecycle {
    client: Client,
    /// May list everything.
    reader: Client,
    recorder: Recorder,
    clock: Clock,
    nodes: Arc<Cache<Node>>,
    leases: Arc<Cache<Lease>>,
    pods: Arc<Cache<Pod>>,
    grace: Duration,
    startup: Duration,
    state: Mutex<State>,
    queue: OnceLock<Arc<Queue>>,
}

struct State {
    heard: HashMap<String, Heard>,
    zones: Zones,
    /// Nodes whose pods were marked not ready since the node was ready last.
    marked: HashSet<String>,
}

pub(crate) fn controller(frame: &Arc<Frame>) -> Controller {
    let config = &frame.config.cluster;
    let this = Arc::new(Lifecycle {
        client: frame.client(NAME),
        reader: frame.client(SHARED),
        recorder: frame.recorder(NAME),
        clock: frame.clock(),
        nodes: frame.cache(),
        leases: frame.cache(),
        pods: frame.cache(),
        grace: config.node_grace,
        startup: config.node_startup_grace,
        state: Mutex::new(State {
            heard: HashMap::new(),
            zones: Zones::new(Rates {
                usual: config.eviction_rate,
                slow: config.secondary_eviction_rate,
                large: config.large_zone,
            }),
            marked: HashSet::new(),
        }),
        queue: OnceLock::new(),
    });
    slices::index_by_node(&this.pods);
    let (nodes, leases, pods) = (
        Arc::clone(&this.nodes),
        Arc::clone(&this.leases),
        Arc::clone(&this.pods),
    );
    let (by_node, by_lease, feed) = (Arc::clone(&this), Arc::clone(&this), Arc::clone(&this));
    Controller::new(NAME, 4, move |key: Key| {
        let this = Arc::clone(&this);
        async move { this.reconcile(&key).await }
    })
    .fed_by(move |queue| {
        // Set once, here.
        let _ = feed.queue.set(queue);
    })
    .needs(&pods)
    .on(&nodes, move |change: &Change<Node>, queue: &Queue| {
        by_node.listen(change);
        queue.add(Key::of(&**change.latest()));
    })
    .on(&leases, move |change: &Change<Lease>, _: &Queue| {
        let lease = change.latest();
        if let (Some(LEASES), Some(name)) = (lease.metadata.namespace.as_deref(), lease.metadata.name.as_deref())
            && let Some(node) = by_lease.nodes.get("", name)
        {
            // The timer that runs for the node finds out when it fires: nothing else is due now.
            by_lease.hear(&node, change.new.as_deref());
        }
    })
}

impl Lifecycle {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, node: &Node, lease: Option<&Lease>) -> Heard {
        let name = node.metadata.name.clone().unwrap_or_default();
        let now = self.clock.now();
        let mut state = self.state();
        let heard = health::hear(state.heard.get(&name), node, lease, now);
        state.heard.insert(name, heard.clone());
        heard
    }

    /// Takes in a change of a node, and looks at all of them again if it changed how they are to be treated.
    fn listen(&self, change: &Change<Node>) {
        let name = change.latest().metadata.name.clone().unwrap_or_default();
        let others = match &change.new {
            Some(node) => {
                let lease = self.leases.get(LEASES, &name);
                self.hear(node, lease.as_deref());
                self.state().zones.observe(node)
            }
            None => {
                let mut state = self.state();
                state.heard.remove(&name);
                state.marked.remove(&name);
                state.zones.forget(&name)
            }
        };
        if let Some(queue) = self.queue.get().filter(|_| others) {
            for node in self.nodes.all() {
                queue.add(Key::of(&*node));
            }
        }
    }

    async fn reconcile(&self, key: &Key) -> Outcome {
        let Some(node) = self.nodes.get("", &key.name) else {
            return Ok(Next::Change);
        };
        let lease = self.leases.get(LEASES, &key.name);
        let heard = self.hear(&node, lease.as_deref());
        let mut now = self.clock.now();
        let mut deadline = health::deadline(&heard, self.grace, self.startup);
        if deadline <= now {
            // Perhaps we are the ones who did not listen: the word of the server counts, not that of our cache.
            let lease = self.ask(&key.name).await?;
            let heard = self.hear(&node, lease.as_ref());
            now = self.clock.now();
            deadline = health::deadline(&heard, self.grace, self.startup);
        }
        if deadline <= now
            && let Some(conditions) = health::silenced(&node, now)
        {
            let patch = json!({
                "metadata": { "resourceVersion": node.metadata.resource_version },
                "status": { "conditions": conditions },
            });
            let api: Api<Node> = Api::all(self.client.clone());
            let patched = api
                .patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(&patch))
                .await;
            patched.map_err(|error| Fault::api(format!("patch the status of node {key}"), error))?;
            // The change comes back as an event, and everything else follows from that.
            return Ok(Next::Change);
        }
        self.mark_pods(&node).await?;
        let wait = self.taint(&node, now).await?;
        let wake = [(deadline > now).then_some(deadline), wait].into_iter().flatten().min();
        Ok(wake.map_or(Next::Change, |at| Next::After(until(at, now))))
    }

    /// A node's lease as the server has it.
    async fn ask(&self, name: &str) -> Result<Option<Lease>, Fault> {
        let api: Api<Lease> = Api::namespaced(self.reader.clone(), LEASES);
        let only = ListParams::default().fields(&format!("metadata.name={name}"));
        let list = api.list(&only).await;
        let list = list.map_err(|error| Fault::api(format!("list lease {LEASES}/{name}"), error))?;
        Ok(list.items.into_iter().next())
    }

    /// Pods of a node that is not ready get no traffic. While its kubelet is alive that is said once: it knows better.
    async fn mark_pods(&self, node: &Node) -> Result<(), Fault> {
        let name = node.metadata.name.clone().unwrap_or_default();
        let Some(bad) = taints::no_execute(node) else {
            self.state().marked.remove(&name);
            return Ok(());
        };
        let first = !self.state().marked.contains(&name);
        if !first && bad == NOT_READY {
            return Ok(());
        }
        if first {
            let message = format!("Node {name} status is now: NodeNotReady");
            self.recorder.normal(node, "NodeNotReady", message);
        }
        for pod in self.pods.indexed(slices::BY_NODE, &name) {
            if !podview::is_ready(&pod) {
                continue;
            }
            self.recorder.warning(&*pod, "NodeNotReady", "Node is not ready");
            let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.clock.now());
            let condition = json!({ "type": "Ready", "status": "False", "lastTransitionTime": now });
            let patch = json!({ "metadata": { "uid": pod.metadata.uid }, "status": { "conditions": [condition] } });
            patch_pod_status(&self.client, &pod, &patch).await?;
        }
        self.state().marked.insert(name);
        Ok(())
    }

    /// Brings the taints up to date. Returns when a node that must wait for its turn may be emptied.
    async fn taint(&self, node: &Node, now: Timestamp) -> Result<Option<Timestamp>, Fault> {
        let zone = zone_of(node);
        let (mut wait, mut granted) = (None, false);
        let wanted = taints::no_execute(node);
        let evict = {
            let mut state = self.state();
            let has = [NOT_READY, UNREACHABLE]
                .iter()
                .any(|key| taints::has_no_execute(node, key));
            match wanted {
                Some(_) if state.zones.is_cut_off() => None,
                // It is being emptied already, for this or the other reason.
                Some(key) if has => Some(key),
                Some(key) => match state.zones.ask(&zone, now) {
                    Permit::Granted => {
                        granted = true;
                        Some(key)
                    }
                    Permit::NotBefore(at) => {
                        wait = Some(at);
                        None
                    }
                    Permit::Never => None,
                },
                None => None,
            }
        };
        let Some(new) = taints::plan(node, evict, now) else {
            return Ok(wait);
        };
        let name = node.metadata.name.clone().unwrap_or_default();
        let patch = json!({
            "metadata": { "resourceVersion": node.metadata.resource_version }, "spec": { "taints": new },
        });
        let api: Api<Node> = Api::all(self.client.clone());
        let patched = api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await;
        if let Err(error) = patched {
            if granted {
                self.state().zones.give_back(&zone);
            }
            return Err(Fault::api(format!("patch the taints of node {name}"), error));
        }
        Ok(wait)
    }
}

/// Changes a pod's status; a pod that is gone, or is another one by now, is no error.
pub(crate) async fn patch_pod_status(client: &Client, pod: &Pod, patch: &serde_json::Value) -> Result<(), Fault> {
    let key = Key::of(pod);
    let api: Api<Pod> = Api::namespaced(client.clone(), &key.namespace);
    let patched = api
        .patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch))
        .await;
    let patched = patched.map_err(|error| Fault::api(format!("patch the status of pod {key}"), error));
    match patched {
        Err(fault) if matches!(fault.code(), Some(404 | 409 | 422)) => Ok(()),
        other => other.map(|_| ()),
    }
}

/// The time from now until then.
pub(crate) fn until(at: Timestamp, now: Timestamp) -> Duration {
    let left = at.duration_since(now).max(SignedDuration::ZERO);
    Duration::try_from(left).unwrap_or_default()
}
