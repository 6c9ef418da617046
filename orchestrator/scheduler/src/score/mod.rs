//! Which of the nodes that a pod may run on suits it best: 0 to 100 from each, weighted and added up.

mod nearby;
mod spread;

use crate::{node::NodeInfo, pod::PodInfo, world::World};

/// The best that one scorer can say.
const BEST: i64 = 100;

/// Weights. Source: the defaults of upstream's plugins.
mod weight {
    pub(super) const TAINTS: i64 = 3;
    pub(super) const NODE_AFFINITY: i64 = 2;
    pub(super) const NEARBY: i64 = 2;
    pub(super) const SPREAD: i64 = 2;
    pub(super) const LEAST_ALLOCATED: i64 = 1;
    pub(super) const BALANCED: i64 = 1;
    pub(super) const IMAGES: i64 = 1;
}

/// Scores of nodes that were found fit, in their order.
pub fn scores(pod: &PodInfo, world: &World, fit: &[&NodeInfo], all: &[&NodeInfo]) -> Vec<i64> {
    let mut sums = vec![0; fit.len()];
    let mut add = |weight: i64, scores: Vec<i64>| {
        for (sum, score) in sums.iter_mut().zip(scores) {
            *sum += weight * score.clamp(0, BEST);
        }
    };
    let each = |score: fn(&PodInfo, &NodeInfo) -> i64| fit.iter().map(|it| score(pod, it)).collect::<Vec<_>>();
    add(weight::TAINTS, reversed(each(intolerable)));
    if !pod.preferred_nodes.is_empty() {
        add(weight::NODE_AFFINITY, of_best(each(preferred)));
    }
    add(weight::LEAST_ALLOCATED, each(least_allocated));
    add(weight::BALANCED, each(balanced));
    add(
        weight::IMAGES,
        fit.iter().map(|it| images(pod, world, it, all.len())).collect(),
    );
    add(weight::SPREAD, spread::scores(pod, world, fit, all));
    add(weight::NEARBY, nearby::scores(pod, world, fit, all));
    sums
}

/// The largest becomes the best, the others in proportion.
fn of_best(scores: Vec<i64>) -> Vec<i64> {
    let most = scores.iter().copied().max().unwrap_or(0);
    if most <= 0 {
        return scores;
    }
    scores.into_iter().map(|it| it * BEST / most).collect()
}

/// Nothing is best, the largest is worst.
fn reversed(scores: Vec<i64>) -> Vec<i64> {
    of_best(scores).into_iter().map(|it| BEST - it).collect()
}

/// Taints that would rather not have the pod.
fn intolerable(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let soft = node.facts.taints.iter().filter(|it| it.effect == "PreferNoSchedule");
    i64::try_from(soft.filter(|it| !it.tolerated_by(pod)).count()).unwrap_or(i64::MAX)
}

fn preferred(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let matching = pod.preferred_nodes.iter();
    matching
        .filter(|(_, term)| term.matches(&node.name, &node.facts.labels))
        .map(|(weight, _)| weight)
        .sum()
}

/// Free share of processors and memory once the pod is there.
fn least_allocated(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let have = &node.facts.allocatable;
    let wanted = [
        (have.cpu, node.usual.0 + pod.resources.usual.0),
        (have.memory, node.usual.1 + pod.resources.usual.1),
    ];
    let (mut sum, mut count) = (0, 0);
    for (have, wanted) in wanted {
        if have > 0 {
            sum += (have - wanted).max(0) * i128::from(BEST) / have;
            count += 1;
        }
    }
    i64::try_from(sum.checked_div(count).unwrap_or(0)).unwrap_or(0)
}

/// How alike the shares of processors and memory are that will be taken.
fn balanced(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let have = &node.facts.allocatable;
    let share = |have: i128, taken: i128, more: i128| {
        // In ten thousandths: a score has a hundred steps.
        (have > 0).then(|| ((taken + more) * 10_000 / have).min(10_000))
    };
    let requests = &pod.resources.requests;
    let cpu = share(have.cpu, node.requested.cpu, requests.cpu);
    let memory = share(have.memory, node.requested.memory, requests.memory);
    let apart = match (cpu, memory) {
        (Some(cpu), Some(memory)) => (cpu - memory).abs() / 2,
        _ => 0,
    };
    BEST - i64::try_from(apart / 100).unwrap_or(BEST)
}

/// Images that are there already, by size. An image that few nodes have counts for less, or it would draw all pods there.
fn images(pod: &PodInfo, world: &World, node: &NodeInfo, nodes: usize) -> i64 {
    const MEGABYTE: i64 = 1024 * 1024;
    const LEAST: i64 = 23 * MEGABYTE;
    const MOST_PER_CONTAINER: i64 = 1000 * MEGABYTE;
    if node.facts.images.is_empty() || pod.images.is_empty() || nodes == 0 {
        return 0;
    }
    let of = |image: &String| {
        let name = with_tag(image);
        let size = node.facts.images.get(&name).copied().unwrap_or(0);
        i128::from(size) * world.nodes_with_image(&name) as i128 / nodes as i128
    };
    let sum: i128 = pod.images.iter().map(of).sum();
    let most = MOST_PER_CONTAINER.saturating_mul(i64::try_from(pod.images.len()).unwrap_or(i64::MAX));
    let sum = i64::try_from(sum).unwrap_or(i64::MAX).clamp(LEAST, most);
    (sum - LEAST).saturating_mul(BEST) / (most - LEAST)
}

/// Nodes name images with their tags.
fn with_tag(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains(':') || last.contains('@') {
        image.to_owned()
    } else {
        format!("{image}:latest")
    }
}
