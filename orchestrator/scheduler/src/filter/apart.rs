//! Required affinity and anti-affinity between pods, in both directions.

use crate::{
    node::NodeInfo,
    pod::{AffinityTerm, PodInfo},
    verdict::{Plugin, Verdict},
    world::World,
};
use std::collections::{HashMap, HashSet};

/// A label of nodes and its value: a place.
type Place<'a> = (&'a str, &'a str);

/// Places that attract or repel a pod.
pub(super) struct Places<'a> {
    /// Where pods are that want to be apart from it.
    repelled: HashSet<Place<'a>>,
    /// Where pods are that it wants to be with.
    with: HashSet<Place<'a>>,
    /// Where pods are that it wants to be apart from, by the number of the term.
    apart: HashMap<usize, HashSet<Place<'a>>>,
    /// Whether it is such a pod itself, so that it may be the first.
    own: bool,
}

/// The place of a term that a node is in.
fn place<'a>(term: &'a AffinityTerm, node: &'a NodeInfo) -> Option<Place<'a>> {
    node.label(&term.topology_key)
        .map(|value| (term.topology_key.as_str(), value))
}

/// Whether a pod is meant by all of these terms.
pub fn all_match(terms: &[AffinityTerm], pod: &PodInfo, world: &World) -> bool {
    let namespace = world.namespace(&pod.key.namespace);
    terms.iter().all(|it| it.matches(pod, namespace))
}

impl<'a> Places<'a> {
    pub(super) fn new(pod: &'a PodInfo, world: &'a World, nodes: &[&'a NodeInfo]) -> Self {
        let namespace = world.namespace(&pod.key.namespace);
        let terms = &pod.terms;
        let mut places = Self {
            repelled: HashSet::new(),
            with: HashSet::new(),
            apart: HashMap::new(),
            own: !terms.with.is_empty() && all_match(&terms.with, pod, world),
        };
        for node in nodes {
            let with_terms = node.with_terms.iter().filter_map(|it| node.pods.get(it));
            for term in with_terms.flat_map(|it| &it.terms.apart) {
                if term.matches(pod, namespace) {
                    places.repelled.extend(place(term, node));
                }
            }
            if terms.with.is_empty() && terms.apart.is_empty() {
                continue;
            }
            for other in node.pods.values() {
                if !terms.with.is_empty() && all_match(&terms.with, other, world) {
                    places.with.extend(terms.with.iter().filter_map(|it| place(it, node)));
                }
                let namespace = world.namespace(&other.key.namespace);
                for (at, term) in terms.apart.iter().enumerate() {
                    if term.matches(other, namespace) {
                        places.apart.entry(at).or_default().extend(place(term, node));
                    }
                }
            }
        }
        places
    }

    pub(super) fn judge(&self, pod: &PodInfo, node: &NodeInfo) -> Option<Verdict> {
        let plugin = Plugin::InterPodAffinity;
        let mut here = pod.terms.with.iter().map(|it| place(it, node));
        let labelled = here.clone().all(|it| it.is_some());
        let joined = here.all(|it| it.is_some_and(|it| self.with.contains(&it)));
        // The first of pods that want to be together may go anywhere.
        let first = self.with.is_empty() && self.own;
        if !pod.terms.with.is_empty() && !(labelled && (joined || first)) {
            return Some(Verdict::for_good(plugin, "node(s) didn't match pod affinity rules"));
        }
        let near = |(at, term): (usize, &AffinityTerm)| {
            let places = self.apart.get(&at);
            place(term, node).is_some_and(|it| places.is_some_and(|all| all.contains(&it)))
        };
        if pod.terms.apart.iter().enumerate().any(near) {
            return Some(Verdict::for_now(plugin, "node(s) didn't match pod anti-affinity rules"));
        }
        if !self.repelled.is_empty() {
            let mut labels = node.facts.labels.iter();
            if labels.any(|(key, value)| self.repelled.contains(&(key.as_str(), value.as_str()))) {
                let reason = "node(s) didn't satisfy existing pods anti-affinity rules";
                return Some(Verdict::for_now(plugin, reason));
            }
        }
        None
    }
}
