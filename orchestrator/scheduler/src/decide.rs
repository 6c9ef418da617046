//! One pod, all nodes, one answer: the node that suits it best, or why there is none.

use crate::{
    filter::Cycle,
    node::NodeInfo,
    pod::PodInfo,
    score,
    verdict::{Unfit, Verdict},
    world::World,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

/// Fewer fit nodes than this are all compared. Source: `minFeasibleNodesToFind`.
const COMPARE_AT_LEAST: usize = 100;

/// What is remembered between decisions, so that nodes are used evenly.
#[derive(Debug)]
pub struct Chooser {
    rng: StdRng,
    /// Where the search goes on in large clusters.
    next: usize,
}

impl Chooser {
    /// Equal seeds make equal choices among equals.
    pub fn new(seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            next: 0,
        }
    }

    fn any<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        match all {
            [] => None,
            [one] => Some(one),
            all => all.get(self.rng.random_range(0..all.len())),
        }
    }
}

/// How many fit nodes are compared: all in small clusters, down to a twentieth in large ones.
/// Source: `percentageOfNodesToScore` at its default of 0.
fn wanted(nodes: usize) -> usize {
    if nodes <= COMPARE_AT_LEAST {
        return nodes;
    }
    let percent = 50_usize.saturating_sub(nodes / 125).max(5);
    (nodes * percent / 100).max(COMPARE_AT_LEAST)
}

/// The node as it will be once those pods are there that it was cleared for and that are no less important.
pub(crate) fn with_nominated<'a>(node: &'a NodeInfo, pod: &PodInfo, world: &World) -> Cow<'a, NodeInfo> {
    let mut node = Cow::Borrowed(node);
    for (name, other) in world.nominated.values() {
        if *name == node.name && other.key != pod.key && other.priority >= pod.priority {
            let mut there = PodInfo::clone(other);
            there.node = Some(name.clone());
            node.to_mut().add(&Arc::new(there));
        }
    }
    node
}

/// Finds the best node for a pod.
///
/// # Errors
/// Why there is none.
pub fn decide(pod: &PodInfo, world: &World, chooser: &mut Chooser) -> Result<String, Unfit> {
    let nodes: Vec<_> = world.nodes().collect();
    let whole = |of_pod| Unfit {
        nodes: nodes.len(),
        of_pod: Some(of_pod),
        ..Unfit::default()
    };
    if nodes.is_empty() {
        return Err(Unfit::default());
    }
    let cycle = Cycle::new(pod, world, &nodes).map_err(whole)?;
    // Twice, where room is kept for others: they may come, and they may not.
    let cleared: Vec<_> = nodes.iter().map(|it| with_nominated(it, pod, world)).collect();
    let cleared: Vec<_> = cleared.iter().map(|it| &**it).collect();
    let later = if world.nominated.is_empty() {
        None
    } else {
        Some(Cycle::new(pod, world, &cleared).map_err(whole)?)
    };
    let judge = |at: usize| -> Option<Verdict> {
        let later = later.as_ref().and_then(|it| it.judge(cleared[at]));
        later.or_else(|| cycle.judge(nodes[at]))
    };
    if let Some((name, _)) = world.nominated.get(&pod.key)
        && let Some(at) = nodes.iter().position(|it| it.name == *name)
        && judge(at).is_none()
    {
        return Ok(name.clone());
    }
    let (mut fit, mut of_nodes) = (Vec::new(), BTreeMap::new());
    let wanted = wanted(nodes.len());
    for step in 0..nodes.len() {
        let at = (chooser.next + step) % nodes.len();
        match judge(at) {
            None => fit.push(nodes[at]),
            Some(verdict) => drop(of_nodes.insert(nodes[at].name.clone(), verdict)),
        }
        if fit.len() >= wanted {
            break;
        }
    }
    chooser.next = (chooser.next + fit.len() + of_nodes.len()) % nodes.len();
    if fit.len() == 1 {
        return Ok(fit[0].name.clone());
    }
    let scores = score::scores(pod, world, &fit, &nodes);
    let most = scores.iter().copied().max();
    let best: Vec<_> = fit
        .iter()
        .zip(&scores)
        .filter(|(_, score)| Some(**score) == most)
        .collect();
    match chooser.any(&best) {
        Some((node, _)) => Ok(node.name.clone()),
        None => Err(Unfit {
            nodes: nodes.len(),
            of_nodes,
            ..Unfit::default()
        }),
    }
}
