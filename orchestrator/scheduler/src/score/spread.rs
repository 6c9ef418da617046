//! `topologySpreadConstraints` that need not hold, and those of pods that have none: by zone and by host.

use crate::{
    filter::spread::{counts, pods_on},
    node::NodeInfo,
    pod::{PodInfo, Spread},
    world::World,
};
use std::collections::HashMap;

const HOST: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

/// How a pod is spread that does not say how. Source: `defaultingType: System` of `PodTopologySpreadArgs`.
fn system(pod: &PodInfo, world: &World) -> Vec<Spread> {
    let Some(selector) = world.alike(pod) else {
        return Vec::new();
    };
    let spread = |topology_key: &str, max_skew| Spread {
        max_skew,
        topology_key: topology_key.to_owned(),
        required: false,
        selector: selector.clone(),
        min_domains: 1,
        honor_affinity: true,
        honor_taints: false,
    };
    vec![spread(HOST, 3), spread(ZONE, 5)]
}

pub(super) fn scores(pod: &PodInfo, world: &World, fit: &[&NodeInfo], all: &[&NodeInfo]) -> Vec<i64> {
    let soft = pod.spread.iter().filter(|it| !it.required);
    let mut constraints: Vec<_> = soft.cloned().collect();
    let from_system = pod.spread.is_empty();
    if from_system {
        constraints = system(pod, world);
    }
    if constraints.is_empty() || fit.is_empty() {
        return vec![0; fit.len()];
    }
    // Who names labels means nodes that have them all; what the system adds means whatever a node has.
    let has = |node: &NodeInfo| constraints.iter().all(|it| node.label(&it.topology_key).is_some());
    let left_out = |node: &NodeInfo| !from_system && !has(node);
    let taking_part = fit.iter().filter(|it| !left_out(it));
    let mut sums = vec![0.0_f64; fit.len()];
    for spread in &constraints {
        let by_host = spread.topology_key == HOST;
        let mut places = HashMap::<&str, i64>::new();
        for node in taking_part.clone() {
            places.extend(node.label(&spread.topology_key).map(|it| (it, 0)));
        }
        let size = if by_host {
            taking_part.clone().count()
        } else {
            places.len()
        };
        if !by_host {
            for node in all.iter().filter(|it| !left_out(it) && counts(spread, pod, it)) {
                let place = node.label(&spread.topology_key).and_then(|it| places.get_mut(it));
                if let Some(count) = place {
                    *count += pods_on(spread, pod, node);
                }
            }
        }
        // Many places make each pod in one of them weigh more.
        #[allow(clippy::cast_precision_loss, reason = "numbers of nodes")]
        let weight = ((size + 2) as f64).ln();
        for (sum, node) in sums.iter_mut().zip(fit) {
            let Some(value) = node.label(&spread.topology_key) else {
                continue;
            };
            let count = if by_host {
                pods_on(spread, pod, node)
            } else {
                places.get(value).copied().unwrap_or(0)
            };
            #[allow(clippy::cast_precision_loss, reason = "numbers of pods")]
            let score = (count as f64).mul_add(weight, (spread.max_skew - 1) as f64);
            *sum += score;
        }
    }
    // Tenths are enough of a sum of counts, and whole numbers are the same everywhere.
    #[allow(clippy::cast_possible_truncation, reason = "a sum of counts of pods")]
    let sums: Vec<_> = sums.into_iter().map(|it| it.round() as i64).collect();
    let part: Vec<_> = sums
        .iter()
        .zip(fit)
        .map(|(sum, it)| (!left_out(it)).then_some(*sum))
        .collect();
    let most = part.iter().flatten().copied().max().unwrap_or(0);
    let least = part.iter().flatten().copied().min().unwrap_or(0);
    let score = |sum: Option<i64>| match sum {
        None => 0,
        Some(_) if most == 0 => super::BEST,
        Some(sum) => super::BEST * (most + least - sum) / most,
    };
    part.into_iter().map(score).collect()
}
