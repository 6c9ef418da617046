//! What the controllers of the cluster ask of a pod.

use k8s_openapi::api::core::v1::{Container, Pod};
use std::net::IpAddr;

/// `status.conditions[Ready]` is True.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|it| it.conditions.as_ref());
    conditions
        .into_iter()
        .flatten()
        .any(|it| it.type_ == "Ready" && it.status == "True")
}

/// `status.phase`, empty when nobody said.
pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|it| it.phase.as_deref())
        .unwrap_or_default()
}

/// The pod's containers have ended for good: phase Succeeded or Failed.
pub(crate) fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Deleted, and still there.
pub(crate) fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// `spec.nodeName`, if it has been bound.
pub(crate) fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec
        .as_ref()
        .and_then(|it| it.node_name.as_deref())
        .filter(|it| !it.is_empty())
}

/// Addresses in `status.podIPs`, or the one in `status.podIP`; what is no address is left out.
pub(crate) fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else { return Vec::new() };
    let many: Vec<IpAddr> = status
        .pod_ips
        .iter()
        .flatten()
        .filter_map(|it| it.ip.parse().ok())
        .collect();
    if many.is_empty() {
        let one = status.pod_ip.as_deref().and_then(|it| it.parse().ok());
        return one.into_iter().collect();
    }
    many
}

/// Containers whose ports a Service may name: the ordinary ones, then sidecars (init containers that restart always).
pub(crate) fn serving_containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.iter();
    let ordinary = spec.clone().flat_map(|it| &it.containers);
    let sidecars = spec
        .flat_map(|it| it.init_containers.iter().flatten())
        .filter(|it| it.restart_policy.as_deref() == Some("Always"));
    ordinary.chain(sidecars)
}
