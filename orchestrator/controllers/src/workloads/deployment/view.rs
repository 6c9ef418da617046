//! A Deployment's numbers and its ReplicaSets', read in one place.

use crate::workloads::numbers::{Round, resolve};
use crate::workloads::pods;
use k8s_openapi::api::{
    apps::v1::{Deployment, DeploymentSpec, ReplicaSet},
    core::v1::PodTemplateSpec,
};

/// The label that tells a Deployment's ReplicaSets and their pods apart.
pub(crate) const HASH: &str = "pod-template-hash";
/// Annotation: which revision of the Deployment a ReplicaSet is, and which one a Deployment is at.
pub(crate) const REVISION: &str = "deployment.kubernetes.io/revision";
/// Annotation: revisions that a ReplicaSet was before.
pub(crate) const HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// Annotation: the Deployment's `spec.replicas` when the set was scaled last.
pub(crate) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// Annotation: that and the surge.
pub(crate) const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations of a Deployment that its ReplicaSets do not get.
pub(crate) const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];

/// `spec.replicas`, defaulted to 1.
pub(crate) fn replicas(deployment: &Deployment) -> i32 {
    spec(deployment).and_then(|it| it.replicas).unwrap_or(1)
}

pub(crate) fn spec(deployment: &Deployment) -> Option<&DeploymentSpec> {
    deployment.spec.as_ref()
}

/// Old pods go before new ones come.
pub(crate) fn is_recreate(deployment: &Deployment) -> bool {
    let strategy = spec(deployment).and_then(|it| it.strategy.as_ref());
    strategy.and_then(|it| it.type_.as_deref()) == Some("Recreate")
}

/// How many more pods than wanted there may be, and how many fewer available ones. Never both 0.
fn fence(deployment: &Deployment) -> (i32, i32) {
    let total = replicas(deployment);
    let strategy = spec(deployment).and_then(|it| it.strategy.as_ref());
    let rolling = strategy.and_then(|it| it.rolling_update.as_ref());
    let surge = resolve(rolling.and_then(|it| it.max_surge.as_ref()), total, Round::Up);
    let unavailable = resolve(rolling.and_then(|it| it.max_unavailable.as_ref()), total, Round::Down);
    // Percentages can both come out as 0, with which nothing could ever be replaced.
    if surge == 0 && unavailable == 0 {
        (0, 1)
    } else {
        (surge, unavailable)
    }
}

/// Pods beyond the wanted number during a rolling update.
pub(crate) fn max_surge(deployment: &Deployment) -> i32 {
    if is_recreate(deployment) {
        0
    } else {
        fence(deployment).0
    }
}

/// Pods that may be unavailable during a rolling update.
pub(crate) fn max_unavailable(deployment: &Deployment) -> i32 {
    let total = replicas(deployment);
    if is_recreate(deployment) || total == 0 {
        return 0;
    }
    fence(deployment).1.min(total)
}

/// A set's `spec.replicas`.
pub(crate) fn size(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|it| it.replicas).unwrap_or(1)
}

/// A set's `status.availableReplicas`.
pub(crate) fn available(set: &ReplicaSet) -> i32 {
    set.status
        .as_ref()
        .and_then(|it| it.available_replicas)
        .unwrap_or_default()
}

/// A set's `status.replicas`.
pub(crate) fn existing(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map(|it| it.replicas).unwrap_or_default()
}

/// A set's revision; 0 without one.
pub(crate) fn revision(set: &ReplicaSet) -> i64 {
    number(set, REVISION).unwrap_or_default()
}

/// An annotation of a set that is a number.
pub(crate) fn number(set: &ReplicaSet, annotation: &str) -> Option<i64> {
    pods::annotation(&set.metadata, annotation)?.parse().ok()
}

/// The template without the label that sets add: what two of the same revision have in common.
pub(crate) fn essence(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    let meta = template.metadata.get_or_insert_default();
    if let Some(labels) = &mut meta.labels {
        labels.remove(HASH);
    }
    meta.labels = meta.labels.take().filter(|it| !it.is_empty());
    meta.annotations = meta.annotations.take().filter(|it| !it.is_empty());
    meta.creation_timestamp = None;
    template
}
