//! Cgroups of pods.

use crate::pod::{self, Qos};
use k8s_openapi::api::core::v1::Pod;

/// The cgroup of a pod in each hierarchy, as `/fairlead/kubepods/burstable/pod<uid>`: what CRI calls `cgroup_parent`.
pub fn parent(root: &str, pod: &Pod) -> String {
    path(root, Qos::of(pod), pod::uid(pod))
}

fn path(root: &str, qos: Qos, uid: &str) -> String {
    let root = root.trim_end_matches('/');
    match qos {
        Qos::Guaranteed => format!("{root}/kubepods/pod{uid}"),
        Qos::Burstable => format!("{root}/kubepods/burstable/pod{uid}"),
        Qos::BestEffort => format!("{root}/kubepods/besteffort/pod{uid}"),
    }
}
