//! `topologySpreadConstraints` that must hold. Source: KEP-895, KEP-3022 (minDomains), KEP-3094 (inclusion policies).

use super::taints;
use crate::{
    node::NodeInfo,
    pod::{PodInfo, Spread},
    verdict::{Plugin, Verdict},
};
use std::collections::HashMap;

/// How many pods there are in each place, by constraint.
pub(super) struct Spreads<'a> {
    constraints: Vec<(&'a Spread, HashMap<&'a str, i64>)>,
}

/// Whether a node is counted for a constraint.
pub fn counts(spread: &Spread, pod: &PodInfo, node: &NodeInfo) -> bool {
    (!spread.honor_affinity || pod.selects(&node.name, &node.facts.labels))
        && (!spread.honor_taints || taints(pod, node).is_none())
}

/// How many pods of a constraint are on a node.
pub fn pods_on(spread: &Spread, pod: &PodInfo, node: &NodeInfo) -> i64 {
    // An empty selector counts no pods, as upstream has it.
    if spread.selector.is_empty() {
        return 0;
    }
    let own = |it: &&std::sync::Arc<PodInfo>| {
        it.key.namespace == pod.key.namespace && !it.terminating && spread.selector.matches(&it.labels)
    };
    i64::try_from(node.pods.values().filter(own).count()).unwrap_or(i64::MAX)
}

impl<'a> Spreads<'a> {
    pub(super) fn new(pod: &'a PodInfo, nodes: &[&'a NodeInfo]) -> Self {
        let required = pod.spread.iter().filter(|it| it.required);
        let mut constraints: Vec<_> = required.map(|it| (it, HashMap::new())).collect();
        if constraints.is_empty() {
            return Self { constraints };
        }
        for node in nodes {
            if !constraints.iter().all(|(it, _)| node.label(&it.topology_key).is_some()) {
                continue;
            }
            for (spread, places) in &mut constraints {
                if counts(spread, pod, node)
                    && let Some(value) = node.label(&spread.topology_key)
                {
                    *places.entry(value).or_default() += pods_on(spread, pod, node);
                }
            }
        }
        Self { constraints }
    }

    pub(super) fn judge(&self, pod: &PodInfo, node: &NodeInfo) -> Option<Verdict> {
        for (spread, places) in &self.constraints {
            let Some(value) = node.label(&spread.topology_key) else {
                return Some(Verdict::for_good(
                    Plugin::PodTopologySpread,
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                ));
            };
            let fewest = if places.len() < spread.min_domains {
                0
            } else {
                places.values().copied().min().unwrap_or(0)
            };
            let own = i64::from(spread.selector.matches(&pod.labels));
            if places.get(value).copied().unwrap_or(0) + own - fewest > spread.max_skew {
                return Some(Verdict::for_now(
                    Plugin::PodTopologySpread,
                    "node(s) didn't match pod topology spread constraints",
                ));
            }
        }
        None
    }
}
