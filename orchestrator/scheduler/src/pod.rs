//! A pod, reduced to what decides where it may run, and read once.

use crate::{
    resources::{self, PodResources},
    selector::{Labels, NodeTerm, Selector},
};
use k8s_openapi::api::core::{
    self,
    v1::{Affinity, Container, ContainerPort, Pod, PodAffinityTerm, PodSpec, TopologySpreadConstraint},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// Namespace and name of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl Key {
    /// A key of these parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}/{}", self.namespace, self.name)
    }
}

/// A port of the node that a pod takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The port's number.
    pub port: u16,
    /// An address of the node; empty means all of them.
    pub address: String,
}

impl HostPort {
    /// Whether two pods cannot have these on one node.
    pub fn conflicts(&self, other: &Self) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.address.is_empty() || other.address.is_empty() || self.address == other.address)
    }
}

/// One of a pod's tolerations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Toleration {
    /// `key`; empty means any.
    pub key: String,
    /// `value`; `None` means any: the operator `Exists`.
    pub value: Option<String>,
    /// `effect`; empty means any.
    pub effect: String,
}

impl Toleration {
    /// `None` for one with an operator that we do not know: it tolerates nothing.
    fn read(it: &core::v1::Toleration) -> Option<Self> {
        Some(Self {
            key: it.key.clone().unwrap_or_default(),
            effect: it.effect.clone().unwrap_or_default(),
            value: match it.operator.as_deref() {
                None | Some("" | "Equal") => Some(it.value.clone().unwrap_or_default()),
                Some("Exists") => None,
                Some(_) => return None,
            },
        })
    }

    fn covers(&self, key: &str, value: &str, effect: &str) -> bool {
        (self.effect.is_empty() || self.effect == effect)
            && (self.key.is_empty() || self.key == key)
            && self.value.as_deref().is_none_or(|it| it == value)
    }
}

/// One term of pod affinity or anti-affinity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AffinityTerm {
    /// Of the pods that are meant.
    pub selector: Selector,
    /// Namespaces of the pods that are meant, by name.
    pub namespaces: BTreeSet<String>,
    /// And by their labels.
    pub namespace_selector: Selector,
    /// Nodes with one value of this label are one place.
    pub topology_key: String,
}

impl AffinityTerm {
    fn read(term: &PodAffinityTerm, key: &Key, labels: &Labels) -> Result<Self, String> {
        let mut selector = Selector::read(term.label_selector.as_ref())?;
        for (keys, equal) in [(&term.match_label_keys, true), (&term.mismatch_label_keys, false)] {
            for key in keys.iter().flatten() {
                if let Some(value) = labels.get(key) {
                    selector.and(key, value, equal);
                }
            }
        }
        let mut namespaces: BTreeSet<_> = term.namespaces.iter().flatten().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.insert(key.namespace.clone());
        }
        if term.topology_key.is_empty() {
            return Err("topologyKey: must not be empty".to_owned());
        }
        Ok(Self {
            selector,
            namespaces,
            namespace_selector: Selector::read(term.namespace_selector.as_ref())?,
            topology_key: term.topology_key.clone(),
        })
    }

    /// Whether it means a pod. `namespace` are the labels of the pod's namespace.
    pub fn matches(&self, pod: &PodInfo, namespace: &Labels) -> bool {
        (self.namespaces.contains(&pod.key.namespace) || self.namespace_selector.matches(namespace))
            && self.selector.matches(&pod.labels)
    }
}

/// Pod affinity and anti-affinity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodTerms {
    /// `podAffinity.requiredDuringSchedulingIgnoredDuringExecution`.
    pub with: Vec<AffinityTerm>,
    /// `podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution`.
    pub apart: Vec<AffinityTerm>,
    /// The preferred ones of both, anti-affinity with negative weight.
    pub preferred: Vec<(i64, AffinityTerm)>,
}

impl PodTerms {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.with.is_empty() && self.apart.is_empty() && self.preferred.is_empty()
    }
}

/// One constraint on how pods are spread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spread {
    /// `maxSkew`.
    pub max_skew: i64,
    /// `topologyKey`.
    pub topology_key: String,
    /// `DoNotSchedule`, as against `ScheduleAnyway`.
    pub required: bool,
    /// Of the pods that are counted, in the pod's namespace.
    pub selector: Selector,
    /// `minDomains`.
    pub min_domains: usize,
    /// `nodeAffinityPolicy`: whether nodes that the pod does not select are left out.
    pub honor_affinity: bool,
    /// `nodeTaintsPolicy`: whether nodes with taints that the pod does not tolerate are left out.
    pub honor_taints: bool,
}

impl Spread {
    fn read(it: &TopologySpreadConstraint, labels: &Labels) -> Result<Self, String> {
        let mut selector = Selector::read(it.label_selector.as_ref())?;
        for key in it.match_label_keys.iter().flatten() {
            if let Some(value) = labels.get(key) {
                selector.and(key, value, true);
            }
        }
        let required = match it.when_unsatisfiable.as_str() {
            "DoNotSchedule" => true,
            "ScheduleAnyway" => false,
            other => {
                return Err(format!(
                    "whenUnsatisfiable: {other:?} is neither DoNotSchedule nor ScheduleAnyway"
                ));
            }
        };
        if it.max_skew < 1 || it.topology_key.is_empty() {
            return Err("needs a maxSkew above 0 and a topologyKey".to_owned());
        }
        Ok(Self {
            max_skew: i64::from(it.max_skew),
            topology_key: it.topology_key.clone(),
            required,
            selector,
            min_domains: it.min_domains.and_then(|it| usize::try_from(it).ok()).unwrap_or(1),
            honor_affinity: it.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: it.node_taints_policy.as_deref() == Some("Honor"),
        })
    }
}

/// What decides where a pod may run, and what others must know of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodInfo {
    /// Namespace and name.
    pub key: Key,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.labels`.
    pub labels: Labels,
    /// `spec.schedulerName`.
    pub scheduler: String,
    /// `spec.nodeName`: where it is already.
    pub node: Option<String>,
    /// `spec.priority`.
    pub priority: i32,
    /// `spec.preemptionPolicy` is not `Never`.
    pub may_preempt: bool,
    /// Seconds since the epoch at which it started, or was made.
    pub started_s: i64,
    /// Has a `metadata.deletionTimestamp`.
    pub terminating: bool,
    /// Ended: its phase is `Succeeded` or `Failed`.
    pub finished: bool,
    /// What it asks for.
    pub resources: PodResources,
    /// Ports of the node that it takes.
    pub ports: Vec<HostPort>,
    /// `spec.nodeSelector`.
    pub node_selector: Labels,
    /// The required terms of node affinity. `None` requires nothing.
    pub node_terms: Option<Vec<NodeTerm>>,
    /// The preferred ones, with their weights.
    pub preferred_nodes: Vec<(i64, NodeTerm)>,
    /// `spec.tolerations`.
    pub tolerations: Vec<Toleration>,
    /// Pod affinity and anti-affinity.
    pub terms: PodTerms,
    /// `spec.topologySpreadConstraints`.
    pub spread: Vec<Spread>,
    /// Names of `spec.schedulingGates`.
    pub gates: Vec<String>,
    /// Images of its containers.
    pub images: Vec<String>,
    /// Names of the persistent volume claims that it mounts.
    pub claims: BTreeSet<String>,
    /// Kind and name of its controller.
    pub owner: Option<(String, String)>,
    /// What could not be read. Nobody schedules a pod of which something is unknown.
    pub faults: Vec<String>,
}

impl PodInfo {
    /// Reads a pod. What cannot be read is left out and named in `faults`: a bound pod takes its place nevertheless.
    pub fn read(pod: &Pod) -> Self {
        let nothing = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&nothing);
        let meta = &pod.metadata;
        let mut faults = Vec::new();
        let labels = meta.labels.clone().unwrap_or_default();
        let key = Key::new(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        );
        let status = pod.status.as_ref();
        let started = status.and_then(|it| it.start_time.as_ref());
        let mut info = Self {
            uid: meta.uid.clone().unwrap_or_default(),
            scheduler: spec
                .scheduler_name
                .clone()
                .unwrap_or_else(|| "default-scheduler".to_owned()),
            node: spec.node_name.clone().filter(|it| !it.is_empty()),
            priority: spec.priority.unwrap_or(0),
            may_preempt: spec.preemption_policy.as_deref() != Some("Never"),
            started_s: started
                .or(meta.creation_timestamp.as_ref())
                .map_or(0, |it| it.0.as_second()),
            terminating: meta.deletion_timestamp.is_some(),
            finished: matches!(status.and_then(|it| it.phase.as_deref()), Some("Succeeded" | "Failed")),
            resources: resources::of_pod(pod, spec, &mut faults),
            ports: ports(spec, &mut faults),
            node_selector: spec.node_selector.clone().unwrap_or_default(),
            tolerations: spec.tolerations.iter().flatten().filter_map(Toleration::read).collect(),
            gates: spec
                .scheduling_gates
                .iter()
                .flatten()
                .map(|it| it.name.clone())
                .collect(),
            images: containers(spec).filter_map(|it| it.image.clone()).collect(),
            claims: claims(spec, &key),
            owner: meta
                .owner_references
                .iter()
                .flatten()
                .find(|it| it.controller == Some(true))
                .map(|it| (it.kind.clone(), it.name.clone())),
            key,
            labels,
            ..Self::default()
        };
        for (at, it) in spec.topology_spread_constraints.iter().flatten().enumerate() {
            match Spread::read(it, &info.labels) {
                Ok(spread) => info.spread.push(spread),
                Err(why) => faults.push(format!("spec.topologySpreadConstraints[{at}]: {why}")),
            }
        }
        if let Some(affinity) = &spec.affinity {
            info.read_affinity(affinity, &mut faults);
        }
        info.faults = faults;
        info
    }

    fn read_affinity(&mut self, affinity: &Affinity, faults: &mut Vec<String>) {
        if let Some(nodes) = &affinity.node_affinity {
            if let Some(required) = &nodes.required_during_scheduling_ignored_during_execution {
                let read = required.node_selector_terms.iter().map(NodeTerm::read);
                match read.collect() {
                    Ok(terms) => self.node_terms = Some(terms),
                    Err(why) => faults.push(format!("spec.affinity.nodeAffinity.required: {why}")),
                }
            }
            for it in nodes
                .preferred_during_scheduling_ignored_during_execution
                .iter()
                .flatten()
            {
                match NodeTerm::read(&it.preference) {
                    Ok(term) => self.preferred_nodes.push((i64::from(it.weight), term)),
                    Err(why) => faults.push(format!("spec.affinity.nodeAffinity.preferred: {why}")),
                }
            }
        }
        let (with, apart) = (&affinity.pod_affinity, &affinity.pod_anti_affinity);
        let mut read = |term: &PodAffinityTerm, path: &str| {
            let read = AffinityTerm::read(term, &self.key, &self.labels);
            read.map_err(|why| faults.push(format!("spec.affinity.{path}: {why}")))
                .ok()
        };
        if let Some(it) = with {
            for term in it.required_during_scheduling_ignored_during_execution.iter().flatten() {
                self.terms.with.extend(read(term, "podAffinity.required"));
            }
            for it in it.preferred_during_scheduling_ignored_during_execution.iter().flatten() {
                let term = read(&it.pod_affinity_term, "podAffinity.preferred");
                self.terms
                    .preferred
                    .extend(term.map(|term| (i64::from(it.weight), term)));
            }
        }
        if let Some(it) = apart {
            for term in it.required_during_scheduling_ignored_during_execution.iter().flatten() {
                self.terms.apart.extend(read(term, "podAntiAffinity.required"));
            }
            for it in it.preferred_during_scheduling_ignored_during_execution.iter().flatten() {
                let term = read(&it.pod_affinity_term, "podAntiAffinity.preferred");
                self.terms
                    .preferred
                    .extend(term.map(|term| (-i64::from(it.weight), term)));
            }
        }
    }

    /// Whether it takes a place on a node.
    pub fn is_placed(&self) -> bool {
        self.node.is_some() && !self.finished
    }

    /// Whether it selects a node: `nodeSelector` and required node affinity.
    pub fn selects(&self, name: &str, labels: &Labels) -> bool {
        let has = |(key, value): (&String, &String)| labels.get(key) == Some(value);
        self.node_selector.iter().all(has)
            && self
                .node_terms
                .as_ref()
                .is_none_or(|terms| crate::selector::any(terms, name, labels))
    }

    /// The only nodes that it can select, where all its terms name nodes: a `DaemonSet` does so.
    pub fn named_nodes(&self) -> Option<BTreeSet<String>> {
        let terms = self.node_terms.as_ref()?;
        let named: Option<Vec<_>> = terms.iter().map(NodeTerm::named).collect();
        named.map(|it| it.into_iter().flatten().collect())
    }

    /// Whether it tolerates a taint.
    pub fn tolerates(&self, key: &str, value: &str, effect: &str) -> bool {
        self.tolerations.iter().any(|it| it.covers(key, value, effect))
    }
}

fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
}

fn ports(spec: &PodSpec, faults: &mut Vec<String>) -> Vec<HostPort> {
    let sidecar = |it: &&Container| it.restart_policy.as_deref() == Some("Always");
    let sidecars = spec.init_containers.iter().flatten().filter(sidecar);
    let host_network = spec.host_network == Some(true);
    let number = |it: &ContainerPort| match it.host_port {
        None | Some(0) if host_network => Some(it.container_port),
        None | Some(0) => None,
        port => port,
    };
    let mut all = Vec::new();
    for it in sidecars
        .chain(&spec.containers)
        .flat_map(|it| it.ports.iter().flatten())
    {
        let Some(port) = number(it) else { continue };
        let Ok(port) = u16::try_from(port) else {
            faults.push(format!("spec.containers.ports.hostPort: {port} is no port"));
            continue;
        };
        let address = it.host_ip.clone().unwrap_or_default();
        all.push(HostPort {
            protocol: it.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            port,
            address: if matches!(address.as_str(), "0.0.0.0" | "::") {
                String::new()
            } else {
                address
            },
        });
    }
    all
}

fn claims(spec: &PodSpec, key: &Key) -> BTreeSet<String> {
    let claim = |it: &core::v1::Volume| match (&it.persistent_volume_claim, &it.ephemeral) {
        (Some(claim), _) => Some(claim.claim_name.clone()),
        // The claim of an ephemeral volume is named after both. Source: `EphemeralVolumeSource`.
        (None, Some(_)) => Some(format!("{}-{}", key.name, it.name)),
        (None, None) => None,
    };
    spec.volumes.iter().flatten().filter_map(claim).collect()
}

/// A count of how often something is there; what is not there is not kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts<K: Ord>(BTreeMap<K, usize>);

impl<K: Ord + Clone> Counts<K> {
    /// One more.
    pub fn add(&mut self, key: &K) {
        *self.0.entry(key.clone()).or_default() += 1;
    }

    /// One less.
    pub fn remove(&mut self, key: &K) {
        if let Some(count) = self.0.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(key);
            }
        }
    }

    /// How many.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> usize
    where
        K: std::borrow::Borrow<Q>,
    {
        self.0.get(key).copied().unwrap_or(0)
    }

    /// All that are there.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.0.keys()
    }
}
