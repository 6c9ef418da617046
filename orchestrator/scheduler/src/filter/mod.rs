//! Which nodes a pod may run on.

pub mod apart;
pub mod spread;
mod volumes;

use crate::{
    node::NodeInfo,
    pod::PodInfo,
    verdict::{Plugin, Verdict},
    world::World,
};
use std::{borrow::Cow, collections::BTreeSet};

/// Taint that stands for `spec.unschedulable`: who tolerates it may go there.
const UNSCHEDULABLE: (&str, &str) = ("node.kubernetes.io/unschedulable", "NoSchedule");

/// One pod against all nodes: what they have in common is found out once.
pub struct Cycle<'a> {
    pod: &'a PodInfo,
    named: Option<BTreeSet<String>>,
    volumes: volumes::Reach<'a>,
    spread: spread::Spreads<'a>,
    apart: apart::Places<'a>,
}

impl<'a> Cycle<'a> {
    /// Looks at a pod and at all nodes.
    ///
    /// # Errors
    /// A reason of the pod alone, for which no node will do.
    pub fn new(pod: &'a PodInfo, world: &'a World, nodes: &[&'a NodeInfo]) -> Result<Self, (Plugin, String)> {
        if !pod.faults.is_empty() {
            return Err((Plugin::PodSpec, pod.faults.join("; ")));
        }
        let volumes = volumes::Reach::new(pod, world).map_err(|why| (Plugin::VolumeBinding, why))?;
        Ok(Self {
            pod,
            named: pod.named_nodes(),
            volumes,
            spread: spread::Spreads::new(pod, nodes),
            apart: apart::Places::new(pod, world, nodes),
        })
    }

    /// Why a node will not do; the first who objects speaks.
    pub fn judge(&self, node: &NodeInfo) -> Option<Verdict> {
        if self.named.as_ref().is_some_and(|it| !it.contains(&node.name)) {
            let reason = "node(s) didn't satisfy plugin(s) [NodeAffinity]";
            return Some(Verdict::for_good(Plugin::NodeAffinity, reason));
        }
        unschedulable(self.pod, node)
            .or_else(|| taints(self.pod, node))
            .or_else(|| affinity(self.pod, node))
            .or_else(|| ports(self.pod, node))
            .or_else(|| fit(self.pod, node))
            .or_else(|| self.volumes.judge(node))
            .or_else(|| self.spread.judge(self.pod, node))
            .or_else(|| self.apart.judge(self.pod, node))
    }
}

/// `spec.unschedulable`.
pub fn unschedulable(pod: &PodInfo, node: &NodeInfo) -> Option<Verdict> {
    let (key, effect) = UNSCHEDULABLE;
    (node.facts.unschedulable && !pod.tolerates(key, "", effect))
        .then(|| Verdict::for_good(Plugin::NodeUnschedulable, "node(s) were unschedulable"))
}

/// Taints that keep pods away.
pub fn taints(pod: &PodInfo, node: &NodeInfo) -> Option<Verdict> {
    let mut repelling = node.facts.taints.iter().filter(|it| it.repels());
    repelling
        .any(|it| !it.tolerated_by(pod))
        .then(|| Verdict::for_good(Plugin::TaintToleration, "node(s) had untolerated taint(s)"))
}

/// `nodeSelector` and required node affinity.
pub fn affinity(pod: &PodInfo, node: &NodeInfo) -> Option<Verdict> {
    (!pod.selects(&node.name, &node.facts.labels)).then(|| {
        Verdict::for_good(
            Plugin::NodeAffinity,
            "node(s) didn't match Pod's node affinity/selector",
        )
    })
}

/// Ports of the node.
pub fn ports(pod: &PodInfo, node: &NodeInfo) -> Option<Verdict> {
    let taken = |port| node.ports.keys().any(|it| it.conflicts(port));
    pod.ports.iter().any(taken).then(|| {
        Verdict::for_now(
            Plugin::NodePorts,
            "node(s) didn't have free ports for the requested pod ports",
        )
    })
}

/// Whether there is enough of everything.
pub fn fit(pod: &PodInfo, node: &NodeInfo) -> Option<Verdict> {
    let allocatable = &node.facts.allocatable;
    let mut reasons = Vec::new();
    let mut ever = true;
    if node.pods.len() as i128 + 1 > allocatable.pods {
        reasons.push(Cow::Borrowed("Too many pods"));
        ever &= allocatable.pods > 0;
    }
    for (name, amount) in pod.resources.requests.asked() {
        let all = allocatable.get(name);
        if amount > all - node.requested.get(name) {
            reasons.push(Cow::Owned(format!("Insufficient {name}")));
            ever &= amount <= all;
        }
    }
    (!reasons.is_empty()).then_some(Verdict {
        plugin: Plugin::NodeResourcesFit,
        reasons,
        pods_in_the_way: ever,
    })
}
