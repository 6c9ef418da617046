//! Which changes in the cluster can make whom change their mind, so that waiting pods are tried when it is worth it.
//! Source: KEP-4247.

use crate::{
    filter,
    node::{NodeFacts, NodeInfo},
    pod::{AffinityTerm, Key, PodInfo},
    selector::{Labels, Selector},
    verdict::{Plugin, Plugins},
    world::World,
};
use std::sync::Arc;

/// A change, after it was made.
#[derive(Clone, Debug)]
pub enum Change {
    /// A node is there, by name.
    NodeAdded(String),
    /// A node is different: its name, what it was.
    NodeChanged(String, Box<NodeFacts>),
    /// A node is gone.
    NodeGone,
    /// A pod is on a node.
    PodPlaced(Arc<PodInfo>),
    /// A pod on a node is different: as it was, as it is.
    PodChanged(Arc<PodInfo>, Arc<PodInfo>),
    /// A pod is on no node any more.
    PodGone(Arc<PodInfo>),
    /// Labels of a namespace are different: as they were.
    Namespace(String, Labels),
    /// A claim is different.
    Claim(Key),
    /// A volume is different.
    Volume,
}

/// Whether a change may help a pod to which these objected.
pub fn may_help(change: &Change, pod: &PodInfo, objectors: Plugins, world: &World) -> bool {
    let helps = |plugin| objectors.contains(plugin) && of(plugin, change, pod, world);
    [
        Plugin::NodeUnschedulable,
        Plugin::TaintToleration,
        Plugin::NodeAffinity,
        Plugin::NodePorts,
        Plugin::NodeResourcesFit,
        Plugin::VolumeBinding,
        Plugin::PodTopologySpread,
        Plugin::InterPodAffinity,
    ]
    .into_iter()
    .any(helps)
}

fn of(plugin: Plugin, change: &Change, pod: &PodInfo, world: &World) -> bool {
    match plugin {
        Plugin::NodeUnschedulable => passes_now(change, world, |it| filter::unschedulable(pod, it).is_none()),
        Plugin::TaintToleration => passes_now(change, world, |it| filter::taints(pod, it).is_none()),
        Plugin::NodeAffinity => passes_now(change, world, |it| filter::affinity(pod, it).is_none()),
        Plugin::NodePorts => match change {
            Change::PodGone(gone) => pod
                .ports
                .iter()
                .any(|it| gone.ports.iter().any(|port| port.conflicts(it))),
            Change::NodeAdded(_) => true,
            _ => false,
        },
        Plugin::NodeResourcesFit => fit(change, pod, world),
        Plugin::VolumeBinding => match change {
            Change::Claim(key) => key.namespace == pod.key.namespace && pod.claims.contains(&key.name),
            Change::Volume | Change::NodeAdded(_) => true,
            Change::NodeChanged(..) => labels_differ(change, world),
            _ => false,
        },
        Plugin::PodTopologySpread => spread(change, pod, world),
        Plugin::InterPodAffinity => together(change, pod, world),
        // Only the pod itself can change that.
        Plugin::PodSpec => false,
    }
}

/// Whether a node passes that was not there, or did not pass before.
fn passes_now(change: &Change, world: &World, passes: impl Fn(&NodeInfo) -> bool) -> bool {
    match change {
        Change::NodeAdded(name) => world.node(name).is_some_and(passes),
        Change::NodeChanged(name, old) => {
            let mut before = NodeInfo::new(name);
            before.facts = NodeFacts::clone(old);
            world.node(name).is_some_and(&passes) && !passes(&before)
        }
        _ => false,
    }
}

fn labels_differ(change: &Change, world: &World) -> bool {
    match change {
        Change::NodeChanged(name, old) => world.node(name).is_some_and(|it| it.facts.labels != old.labels),
        _ => false,
    }
}

fn fit(change: &Change, pod: &PodInfo, world: &World) -> bool {
    let requests = &pod.resources.requests;
    let could = |facts: &NodeFacts| {
        requests
            .asked()
            .all(|(name, amount)| amount <= facts.allocatable.get(name))
    };
    match change {
        Change::PodGone(_) => true,
        Change::PodChanged(old, new) => {
            let (old, new) = (&old.resources.requests, &new.resources.requests);
            requests.asked().any(|(name, _)| new.get(name) < old.get(name))
        }
        Change::NodeAdded(name) => world.node(name).is_some_and(|it| could(&it.facts)),
        Change::NodeChanged(name, old) => world.node(name).is_some_and(|it| {
            let (had, has) = (&old.allocatable, &it.facts.allocatable);
            let more = requests.asked().any(|(name, _)| has.get(name) > had.get(name));
            (more || has.pods > had.pods) && could(&it.facts)
        }),
        _ => false,
    }
}

fn spread(change: &Change, pod: &PodInfo, world: &World) -> bool {
    let required = || pod.spread.iter().filter(|it| it.required);
    let counted = |other: &PodInfo| {
        other.key.namespace == pod.key.namespace && required().any(|it| it.selector.matches(&other.labels))
    };
    match change {
        Change::PodPlaced(other) | Change::PodGone(other) => counted(other),
        Change::PodChanged(old, new) => {
            (old.labels != new.labels || old.terminating != new.terminating) && (counted(old) || counted(new))
        }
        Change::NodeAdded(_) | Change::NodeGone => true,
        Change::NodeChanged(name, old) => {
            let taints = world.node(name).is_some_and(|it| it.facts.taints != old.taints);
            labels_differ(change, world) || (taints && required().any(|it| it.honor_taints))
        }
        _ => false,
    }
}

fn together(change: &Change, pod: &PodInfo, world: &World) -> bool {
    let any = |terms: &[AffinityTerm], other: &PodInfo| {
        let namespace = world.namespace(&other.key.namespace);
        terms.iter().any(|it| it.matches(other, namespace))
    };
    let attracts = |other: &PodInfo| any(&pod.terms.with, other);
    let repels = |other: &PodInfo| any(&pod.terms.apart, other) || any(&other.terms.apart, pod);
    match change {
        Change::PodPlaced(other) => attracts(other),
        // Where no pod like it is left, it may be the first.
        Change::PodGone(other) => repels(other) || attracts(other),
        Change::PodChanged(old, new) => old.labels != new.labels && (attracts(new) || attracts(old) || repels(old)),
        Change::NodeAdded(_) => true,
        Change::NodeGone | Change::NodeChanged(..) => {
            labels_differ(change, world) || matches!(change, Change::NodeGone)
        }
        Change::Namespace(name, old) => {
            let by_labels = |it: &AffinityTerm| it.namespace_selector != Selector::NOTHING;
            // Other pods' terms may be meant too, and nobody keeps a list of those.
            world.namespace(name) != old || pod.terms.with.iter().chain(&pod.terms.apart).any(by_labels)
        }
        _ => false,
    }
}
