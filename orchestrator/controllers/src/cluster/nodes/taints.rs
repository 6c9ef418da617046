//! Which taints a node should have: pure, from its conditions and `spec.unschedulable`.

use super::{NOT_READY, UNREACHABLE, health::condition};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Node, Taint},
    apimachinery::pkg::apis::meta::v1::Time,
};
use std::collections::BTreeSet;

/// (condition, its status, taint). Source: the API's list of well-known taints.
const BY_CONDITION: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
];
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Taints that keep new pods away.
pub(crate) fn no_schedule(node: &Node) -> BTreeSet<&'static str> {
    let mut wanted: BTreeSet<_> = BY_CONDITION
        .iter()
        .filter(|(kind, status, _)| condition(node, kind).is_some_and(|it| it.status == *status))
        .map(|it| it.2)
        .collect();
    if node.spec.as_ref().and_then(|it| it.unschedulable).unwrap_or(false) {
        wanted.insert(UNSCHEDULABLE);
    }
    wanted
}

/// What a node that is not ready is to be emptied by; `None` for one that is well, or has not spoken yet.
pub(crate) fn no_execute(node: &Node) -> Option<&'static str> {
    match condition(node, "Ready").map(|it| it.status.as_str()) {
        Some("False") => Some(NOT_READY),
        Some("Unknown") => Some(UNREACHABLE),
        _ => None,
    }
}

/// The taints of a node with ours brought up to date; `None` if they are. `evict`: the `NoExecute` taint that it may have now.
pub(crate) fn plan(node: &Node, evict: Option<&'static str>, now: Timestamp) -> Option<Vec<Taint>> {
    let old = node.spec.as_ref().and_then(|it| it.taints.clone()).unwrap_or_default();
    let mut keep_away = no_schedule(node);
    // A node that has said nothing yet keeps what admission gave it; if it stays silent, that is a condition soon.
    let has_not_ready = |it: &Taint| it.key == NOT_READY && it.effect == "NoSchedule";
    if condition(node, "Ready").is_none() && old.iter().any(has_not_ready) {
        keep_away.insert(NOT_READY);
    }
    let mut new = old.clone();
    new.retain(|taint| match taint.effect.as_str() {
        "NoSchedule" => !is_managed(&taint.key) || keep_away.contains(taint.key.as_str()),
        "NoExecute" => ![NOT_READY, UNREACHABLE].contains(&taint.key.as_str()) || evict == Some(taint.key.as_str()),
        _ => true,
    });
    let mut add = |key: &str, effect: &str| {
        if !new.iter().any(|it| it.key == key && it.effect == effect) {
            new.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                value: None,
                time_added: Some(Time(now)),
            });
        }
    };
    keep_away.iter().for_each(|key| add(key, "NoSchedule"));
    evict.into_iter().for_each(|key| add(key, "NoExecute"));
    (new != old).then_some(new)
}

fn is_managed(key: &str) -> bool {
    key == UNSCHEDULABLE || BY_CONDITION.iter().any(|it| it.2 == key)
}

/// Whether the node has this taint with the effect `NoExecute`.
pub(crate) fn has_no_execute(node: &Node, key: &str) -> bool {
    let taints = node.spec.as_ref().and_then(|it| it.taints.as_ref());
    taints
        .into_iter()
        .flatten()
        .any(|it| it.key == key && it.effect == "NoExecute")
}
