//! The pod of a DaemonSet on a node.

use crate::{frame::reference, workloads::pods};
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, PodTemplateSpec, Toleration},
};
use kube::ResourceExt as _;

/// The label with the hash of the revision that a pod was made from.
pub(crate) const HASH: &str = "controller-revision-hash";
/// Annotation of old clients and the label that they look for.
const GENERATION: &str = "deprecated.daemonset.template.generation";
const GENERATION_LABEL: &str = "pod-template-generation";

/// Taints that daemon pods tolerate: a node's troubles are no reason to be away from it.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
/// One more for pods that need no pod network.
const TOLERATED_BY_HOST_NETWORK: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");

/// The template with the tolerations of daemon pods.
pub(crate) fn template(set: &DaemonSet) -> PodTemplateSpec {
    let mut template = set.spec.as_ref().map(|it| it.template.clone()).unwrap_or_default();
    let spec = template.spec.get_or_insert_default();
    let host_network = spec.host_network == Some(true);
    let tolerations = spec.tolerations.get_or_insert_default();
    let more = host_network.then_some(TOLERATED_BY_HOST_NETWORK);
    for (key, effect) in TOLERATED.into_iter().chain(more) {
        tolerations.retain(|it| !(it.key.as_deref() == Some(key) && it.effect.as_deref() == Some(effect)));
        tolerations.push(Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        });
    }
    template
}

/// A pod of this revision for this node; the scheduler binds it there by its affinity.
pub(crate) fn new(set: &DaemonSet, node: &str, hash: &str) -> Pod {
    let namespace = set.namespace().unwrap_or_default();
    let mut pod = pods::from_template(&template(set), &namespace, reference(set));
    pod.metadata.generate_name = Some(pods::name_prefix(&set.name_any()));
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(HASH.to_owned(), hash.to_owned());
    if let Some(generation) = pods::annotation(&set.metadata, GENERATION) {
        labels.insert(GENERATION_LABEL.to_owned(), generation.to_owned());
    }
    let spec = pod.spec.get_or_insert_default();
    let affinity = spec
        .affinity
        .get_or_insert_default()
        .node_affinity
        .get_or_insert_default();
    // The node fits the terms that were there already; only the one node is left to require.
    affinity.required_during_scheduling_ignored_during_execution = Some(NodeSelector {
        node_selector_terms: vec![NodeSelectorTerm {
            match_fields: Some(vec![NodeSelectorRequirement {
                key: "metadata.name".to_owned(),
                operator: "In".to_owned(),
                values: Some(vec![node.to_owned()]),
            }]),
            match_expressions: None,
        }],
    });
    pod
}

/// The node that a daemon pod is on, or is for.
pub(crate) fn target(pod: &Pod) -> Option<&str> {
    pods::node(pod).or_else(|| wanted(pod.spec.as_ref()?))
}

fn wanted(spec: &PodSpec) -> Option<&str> {
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    let fields = required
        .node_selector_terms
        .iter()
        .flat_map(|it| it.match_fields.iter().flatten());
    let mut names = fields.filter(|it| it.key == "metadata.name" && it.operator == "In");
    names.next()?.values.as_ref()?.first().map(String::as_str)
}
