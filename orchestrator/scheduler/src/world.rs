//! Everything that placing a pod depends on, kept in step with the API server by events, and with our own decisions:
//! a pod that was given a node counts there at once. A scheduling cycle borrows it, so that nothing changes under it.

use crate::{
    node::{NodeFacts, NodeInfo},
    pod::{Counts, Key, PodInfo},
    selector::{Labels, NodeTerm, Selector},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

/// A `PersistentVolumeClaim`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// `spec.volumeName`, once it is bound.
    pub volume: Option<String>,
    /// It is being deleted.
    pub terminating: bool,
    /// Its volume is gone: `status.phase` is `Lost`.
    pub lost: bool,
}

/// A PodDisruptionBudget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Of the pods that it protects, in its namespace.
    pub selector: Selector,
    /// `status.disruptionsAllowed`.
    pub allowed: i64,
    /// Names of `status.disruptedPods`, which count already.
    pub disrupted: BTreeSet<String>,
}

/// What a pod event did to the pods on nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodChange {
    /// A pod is on a node now.
    Placed(Arc<PodInfo>),
    /// A pod on a node is different now: as it was, as it is.
    Changed(Arc<PodInfo>, Arc<PodInfo>),
    /// A pod is on no node any more.
    Gone(Arc<PodInfo>),
}

#[derive(Clone, Debug)]
struct Placed {
    pod: Arc<PodInfo>,
    /// We gave it the node, and the API server has not said so yet.
    assumed: bool,
}

/// The cluster, as far as placing pods goes.
#[derive(Clone, Debug, Default)]
pub struct World {
    nodes: BTreeMap<String, NodeInfo>,
    pods: HashMap<Key, Placed>,
    /// On how many nodes an image is.
    images: Counts<String>,
    /// Labels of namespaces.
    pub namespaces: BTreeMap<String, Labels>,
    /// `PersistentVolumeClaims`.
    pub claims: BTreeMap<Key, Claim>,
    /// Node terms of PersistentVolumes; `None` where any node will do.
    pub volumes: BTreeMap<String, Option<Vec<NodeTerm>>>,
    /// Selectors of Services.
    pub services: BTreeMap<Key, Selector>,
    /// Selectors of what owns pods, by kind.
    pub owners: BTreeMap<(String, Key), Selector>,
    /// PodDisruptionBudgets.
    pub budgets: BTreeMap<Key, Budget>,
    /// Pods that wait for pods to leave a node.
    pub nominated: BTreeMap<Key, (String, Arc<PodInfo>)>,
    nothing: Labels,
}

impl World {
    /// Nodes that there are.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeInfo> {
        self.nodes.values().filter(|it| it.known)
    }

    /// One node, if there is such a Node.
    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.nodes.get(name).filter(|it| it.known)
    }

    /// On how many nodes an image is.
    pub fn nodes_with_image(&self, name: &str) -> usize {
        self.images.get(name)
    }

    /// Labels of a namespace.
    pub fn namespace(&self, name: &str) -> &Labels {
        self.namespaces.get(name).unwrap_or(&self.nothing)
    }

    /// A pod on a node, and whether the API server knows.
    pub fn placed(&self, key: &Key) -> Option<(&Arc<PodInfo>, bool)> {
        self.pods.get(key).map(|it| (&it.pod, it.assumed))
    }

    /// A Node is there, or is different. Returns what it was.
    pub fn set_node(&mut self, name: &str, facts: NodeFacts) -> Option<NodeFacts> {
        let node = self.nodes.entry(name.to_owned()).or_insert_with(|| NodeInfo::new(name));
        for image in facts.images.keys() {
            self.images.add(image);
        }
        let old = std::mem::replace(&mut node.facts, facts);
        for image in old.images.keys() {
            self.images.remove(image);
        }
        std::mem::replace(&mut node.known, true).then_some(old)
    }

    /// A Node is gone. Its pods are counted on until they are gone too.
    pub fn remove_node(&mut self, name: &str) -> bool {
        let Some(node) = self.nodes.get_mut(name) else {
            return false;
        };
        for image in std::mem::take(&mut node.facts).images.keys() {
            self.images.remove(image);
        }
        let known = std::mem::replace(&mut node.known, false);
        self.forget_if_empty(name);
        known
    }

    fn forget_if_empty(&mut self, name: &str) {
        if self.nodes.get(name).is_some_and(|it| !it.known && it.pods.is_empty()) {
            self.nodes.remove(name);
        }
    }

    fn put(&mut self, pod: Arc<PodInfo>, assumed: bool) {
        let name = pod.node.clone().unwrap_or_default();
        let node = self.nodes.entry(name.clone()).or_insert_with(|| NodeInfo::new(&name));
        node.add(&pod);
        self.pods.insert(pod.key.clone(), Placed { pod, assumed });
    }

    fn take(&mut self, key: &Key) -> Option<Arc<PodInfo>> {
        let placed = self.pods.remove(key)?;
        let name = placed.pod.node.clone().unwrap_or_default();
        if let Some(node) = self.nodes.get_mut(&name) {
            node.remove(key);
        }
        self.forget_if_empty(&name);
        Some(placed.pod)
    }

    /// Gives a pod a node before the API server knows.
    pub fn assume(&mut self, pod: &PodInfo, node: &str) {
        let mut pod = pod.clone();
        pod.node = Some(node.to_owned());
        self.take(&pod.key);
        self.nominated.remove(&pod.key);
        self.put(Arc::new(pod), true);
    }

    /// Takes the node away again: the API server would not have it. What the API server has said meanwhile stands.
    pub fn forget(&mut self, key: &Key, uid: &str) -> Option<Arc<PodInfo>> {
        let placed = self.pods.get(key)?;
        if placed.assumed && placed.pod.uid == uid {
            self.take(key)
        } else {
            None
        }
    }

    /// A pod is there, or is different.
    pub fn set_pod(&mut self, pod: &Arc<PodInfo>) -> Vec<PodChange> {
        let mut changes = Vec::new();
        if let Some(placed) = self.pods.get(&pod.key)
            && placed.pod.uid == pod.uid
            && placed.assumed
            && pod.node.is_none()
            && !pod.finished
        {
            // Said before our binding got there.
            return changes;
        }
        let old = self.take(&pod.key);
        if !pod.is_placed() {
            changes.extend(old.map(PodChange::Gone));
            return changes;
        }
        self.nominated.remove(&pod.key);
        self.put(Arc::clone(pod), false);
        match old {
            Some(old) if old.uid == pod.uid && old.node == pod.node => {
                if old != *pod {
                    changes.push(PodChange::Changed(old, Arc::clone(pod)));
                }
            }
            old => {
                changes.extend(old.map(PodChange::Gone));
                changes.push(PodChange::Placed(Arc::clone(pod)));
            }
        }
        changes
    }

    /// A pod is gone.
    pub fn remove_pod(&mut self, key: &Key) -> Option<PodChange> {
        self.nominated.remove(key);
        self.take(key).map(PodChange::Gone)
    }

    /// Pods on nodes.
    pub fn placed_keys(&self) -> impl Iterator<Item = &Key> {
        self.pods.keys()
    }

    /// Whether a pod on a node is leaving: we asked for it, and the API server has not said so yet.
    pub fn set_leaving(&mut self, key: &Key, leaving: bool) {
        let Some(placed) = self.pods.get(key) else {
            return;
        };
        let assumed = placed.assumed;
        let mut pod = PodInfo::clone(&placed.pod);
        pod.terminating = leaving;
        self.take(key);
        self.put(Arc::new(pod), assumed);
    }

    /// Pods like this one: those of its Services and of its owner. `None` where it has neither.
    pub fn alike(&self, pod: &PodInfo) -> Option<Selector> {
        let of_services = self
            .services
            .iter()
            .filter(|(key, selector)| {
                key.namespace == pod.key.namespace && !selector.is_empty() && selector.matches(&pod.labels)
            })
            .map(|(_, selector)| selector);
        let of_owner = pod.owner.as_ref().and_then(|(kind, name)| {
            let key = Key::new(&pod.key.namespace, name);
            self.owners.get(&(kind.clone(), key))
        });
        let mut all = of_services.chain(of_owner);
        let mut merged = all.next()?.clone();
        for it in all {
            merged.merge(it);
        }
        Some(merged)
    }

    /// Whether sums that were kept by events are what they would be if they were made anew. For tests.
    pub fn is_consistent(&self) -> bool {
        let mut fresh = Self::default();
        for (name, node) in &self.nodes {
            if node.known {
                fresh.set_node(name, node.facts.clone());
            }
        }
        for placed in self.pods.values() {
            fresh.put(Arc::clone(&placed.pod), placed.assumed);
        }
        fresh.nodes == self.nodes && fresh.images == self.images
    }
}
