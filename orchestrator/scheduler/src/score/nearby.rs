//! Preferred affinity and anti-affinity between pods, in both directions.

use crate::{node::NodeInfo, pod::PodInfo, world::World};
use std::collections::HashMap;

/// What a required term of a pod that is there is worth to those that it attracts. Source: `hardPodAffinityWeight`.
const REQUIRED: i64 = 1;

pub(super) fn scores(pod: &PodInfo, world: &World, fit: &[&NodeInfo], all: &[&NodeInfo]) -> Vec<i64> {
    let mut places = HashMap::<(&str, &str), i64>::new();
    let mine = &pod.terms.preferred;
    let namespace = world.namespace(&pod.key.namespace);
    for node in all {
        let mut draw = |term: &crate::pod::AffinityTerm, weight: i64| {
            // The key is looked up in the node's labels, so that it lives as long as the node.
            if let Some((key, value)) = node.facts.labels.get_key_value(&term.topology_key) {
                *places.entry((key, value)).or_default() += weight;
            }
        };
        if !mine.is_empty() {
            for other in node.pods.values() {
                let namespace = world.namespace(&other.key.namespace);
                for (weight, term) in mine.iter().filter(|(_, it)| it.matches(other, namespace)) {
                    draw(term, *weight);
                }
            }
        }
        for other in node.with_terms.iter().filter_map(|it| node.pods.get(it)) {
            for (weight, term) in other
                .terms
                .preferred
                .iter()
                .filter(|(_, it)| it.matches(pod, namespace))
            {
                draw(term, *weight);
            }
            for term in other.terms.with.iter().filter(|it| it.matches(pod, namespace)) {
                draw(term, REQUIRED);
            }
        }
    }
    if places.is_empty() {
        return vec![0; fit.len()];
    }
    let here = |node: &&NodeInfo| -> i64 {
        let labels = node.facts.labels.iter();
        let worth = labels.filter_map(|(key, value)| places.get(&(key.as_str(), value.as_str())));
        worth.sum()
    };
    let sums: Vec<_> = fit.iter().map(here).collect();
    let (least, most) = (
        sums.iter().copied().min().unwrap_or(0),
        sums.iter().copied().max().unwrap_or(0),
    );
    if most == least {
        return vec![0; fit.len()];
    }
    sums.into_iter()
        .map(|it| super::BEST * (it - least) / (most - least))
        .collect()
}
