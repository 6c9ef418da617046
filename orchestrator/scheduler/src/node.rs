//! A node, reduced to what decides which pods may run there, with the sums of the pods that do.

use crate::{
    pod::{Counts, HostPort, Key, PodInfo},
    resources::Resources,
    selector::Labels,
};
use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// A taint of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taint {
    /// `key`.
    pub key: String,
    /// `value`.
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
}

impl Taint {
    /// Whether it keeps pods away that do not tolerate it.
    pub fn repels(&self) -> bool {
        matches!(self.effect.as_str(), "NoSchedule" | "NoExecute")
    }

    /// Whether a pod tolerates it.
    pub fn tolerated_by(&self, pod: &PodInfo) -> bool {
        pod.tolerates(&self.key, &self.value, &self.effect)
    }
}

/// What the Node object says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// `metadata.labels`.
    pub labels: Labels,
    /// `spec.taints`.
    pub taints: Vec<Taint>,
    /// `spec.unschedulable`.
    pub unschedulable: bool,
    /// `status.allocatable`.
    pub allocatable: Resources,
    /// Bytes of each image that it has, by each of its names.
    pub images: BTreeMap<String, i64>,
    /// What could not be read, and counts for nothing.
    pub faults: Vec<String>,
}

impl NodeFacts {
    /// Reads a node.
    pub fn read(node: &Node) -> Self {
        let (no_spec, no_status) = (NodeSpec::default(), NodeStatus::default());
        let spec = node.spec.as_ref().unwrap_or(&no_spec);
        let status = node.status.as_ref().unwrap_or(&no_status);
        let mut faults = Vec::new();
        let image = |it: &k8s_openapi::api::core::v1::ContainerImage| {
            let size = it.size_bytes.unwrap_or(0).max(0);
            it.names.clone().into_iter().flatten().map(move |name| (name, size))
        };
        Self {
            labels: node.metadata.labels.clone().unwrap_or_default(),
            taints: spec
                .taints
                .iter()
                .flatten()
                .map(|it| Taint {
                    key: it.key.clone(),
                    value: it.value.clone().unwrap_or_default(),
                    effect: it.effect.clone(),
                })
                .collect(),
            unschedulable: spec.unschedulable == Some(true),
            allocatable: Resources::read(status.allocatable.as_ref(), "status.allocatable", &mut faults),
            images: status.images.iter().flatten().flat_map(image).collect(),
            faults,
        }
    }
}

/// A node with the pods on it. Pods may be there before the node is known, or after.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeInfo {
    /// `metadata.name`.
    pub name: String,
    /// What the Node says; default until it is known.
    pub facts: NodeFacts,
    /// Whether there is such a Node.
    pub known: bool,
    /// Pods on it, assumed ones too.
    pub pods: BTreeMap<Key, Arc<PodInfo>>,
    /// What they ask for.
    pub requested: Resources,
    /// Processors and memory that they count for in scores.
    pub usual: (i128, i128),
    /// Ports that they take.
    pub ports: Counts<HostPort>,
    /// Those of them with pod affinity or anti-affinity.
    pub with_terms: BTreeSet<Key>,
}

impl NodeInfo {
    /// A node of which nothing is known but its name.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..Self::default()
        }
    }

    /// Counts a pod in.
    pub fn add(&mut self, pod: &Arc<PodInfo>) {
        self.remove(&pod.key);
        self.requested.add(&pod.resources.requests);
        self.usual.0 += pod.resources.usual.0;
        self.usual.1 += pod.resources.usual.1;
        for port in &pod.ports {
            self.ports.add(port);
        }
        if !pod.terms.is_empty() {
            self.with_terms.insert(pod.key.clone());
        }
        self.pods.insert(pod.key.clone(), Arc::clone(pod));
    }

    /// Counts a pod out.
    pub fn remove(&mut self, key: &Key) -> Option<Arc<PodInfo>> {
        let pod = self.pods.remove(key)?;
        self.requested.subtract(&pod.resources.requests);
        self.usual.0 -= pod.resources.usual.0;
        self.usual.1 -= pod.resources.usual.1;
        for port in &pod.ports {
            self.ports.remove(port);
        }
        self.with_terms.remove(key);
        Some(pod)
    }

    /// The node's value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.facts.labels.get(key).map(String::as_str)
    }
}
