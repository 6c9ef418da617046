//! Which pods could make way for a more important one: the fewest, the least important, within their budgets.

use crate::{
    decide::with_nominated,
    filter::Cycle,
    node::NodeInfo,
    pod::PodInfo,
    verdict::{Unfit, histogram},
    world::World,
};
use std::{borrow::Cow, cmp::Reverse, collections::BTreeMap, sync::Arc};

/// A node, and the pods that have to leave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The node's name.
    pub node: String,
    /// The pods, most important first.
    pub victims: Vec<Arc<PodInfo>>,
    /// How many of them are protected by a budget.
    violations: usize,
}

/// Nothing will be done, and the pod keeps its claim to the node that it was promised, or loses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoPlan {
    /// For people.
    pub message: String,
    /// Pods are leaving already.
    pub keeps_promise: bool,
}

/// How many nodes with victims are compared. Source: `minCandidateNodesAbsolute` of `DefaultPreemptionArgs`.
const COMPARE: usize = 100;
const NOT_HELPFUL: &str = "Preemption is not helpful for scheduling";
const NO_VICTIMS: &str = "No preemption victims found for incoming pod";

/// Looks for pods that could make way.
///
/// # Errors
/// Why there are none.
pub fn plan(pod: &PodInfo, world: &World, unfit: &Unfit) -> Result<Plan, NoPlan> {
    let refuse = |message: String, keeps_promise| {
        Err(NoPlan {
            message: format!("preemption: {message}"),
            keeps_promise,
        })
    };
    if !pod.may_preempt {
        return refuse("not eligible due to preemptionPolicy=Never.".to_owned(), false);
    }
    if let Some(node) = world.nominated.get(&pod.key).and_then(|(name, _)| world.node(name)) {
        let still_useful = unfit.of_nodes.get(&node.name).is_none_or(|it| it.pods_in_the_way);
        let leaving = |it: &Arc<PodInfo>| it.terminating && it.priority < pod.priority;
        if still_useful && node.pods.values().any(leaving) {
            return refuse(
                "not eligible due to a terminating pod on the nominated node.".to_owned(),
                true,
            );
        }
    }
    let nodes: Vec<_> = world.nodes().collect();
    let (mut plans, mut others) = (Vec::new(), BTreeMap::<&str, Vec<Cow<'static, str>>>::new());
    for (at, node) in nodes.iter().enumerate() {
        let helpful = unfit.of_nodes.get(&node.name).is_some_and(|it| it.pods_in_the_way);
        if !helpful {
            others.insert(&node.name, vec![Cow::Borrowed(NOT_HELPFUL)]);
        } else if plans.len() < COMPARE {
            match on_node(pod, world, &nodes, at) {
                Ok(plan) => plans.push(plan),
                Err(reasons) => drop(others.insert(&node.name, reasons)),
            }
        }
    }
    plans.into_iter().min_by_key(rank).map_or_else(
        || {
            let reasons = others.values().flatten().map(|it| &**it);
            refuse(
                format!("0/{} nodes are available: {}.", nodes.len(), histogram(reasons)),
                false,
            )
        },
        Ok,
    )
}

/// The less the better. Source: the order of criteria of upstream's `pickOneNodeForPreemption`.
fn rank(plan: &Plan) -> impl Ord + use<> {
    let priorities = || plan.victims.iter().map(|it| it.priority);
    let most = priorities().max().unwrap_or(i32::MIN);
    let sum: i64 = priorities().map(|it| i64::from(it) - i64::from(i32::MIN)).sum();
    let important = plan.victims.iter().filter(|it| it.priority == most);
    let earliest = important.map(|it| it.started_s).min().unwrap_or(0);
    (plan.violations, most, sum, plan.victims.len(), Reverse(earliest))
}

/// Victims on one node.
fn on_node(pod: &PodInfo, world: &World, nodes: &[&NodeInfo], at: usize) -> Result<Plan, Vec<Cow<'static, str>>> {
    let mut node = with_nominated(nodes[at], pod, world).into_owned();
    let mut lower: Vec<_> = nodes[at]
        .pods
        .values()
        .filter(|it| it.priority < pod.priority)
        .cloned()
        .collect();
    if lower.is_empty() {
        return Err(vec![Cow::Borrowed(NO_VICTIMS)]);
    }
    let judge = |node: &NodeInfo| {
        let mut all = nodes.to_vec();
        all[at] = node;
        match Cycle::new(pod, world, &all) {
            Ok(cycle) => cycle.judge(node).map(|it| it.reasons),
            Err((_, why)) => Some(vec![Cow::Owned(why)]),
        }
    };
    for it in &lower {
        node.remove(&it.key);
    }
    if let Some(reasons) = judge(&node) {
        return Err(reasons);
    }
    lower.sort_by_key(|it| (Reverse(it.priority), it.started_s, it.key.clone()));
    let (protected, free) = by_budget(lower, world);
    let mut plan = Plan {
        node: node.name.clone(),
        victims: Vec::new(),
        violations: 0,
    };
    // The protected and the important first: each stays if the pod still finds room beside it.
    let tried = protected
        .into_iter()
        .map(|it| (it, 1))
        .chain(free.into_iter().map(|it| (it, 0)));
    for (other, violation) in tried {
        node.add(&other);
        if judge(&node).is_some() {
            node.remove(&other.key);
            plan.violations += violation;
            plan.victims.push(other);
        }
    }
    plan.victims
        .sort_by_key(|it| (Reverse(it.priority), it.started_s, it.key.clone()));
    Ok(plan)
}

/// Pods whose budget would be overdrawn, if all of them went; and the others.
fn by_budget(pods: Vec<Arc<PodInfo>>, world: &World) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
    let mut left: BTreeMap<_, _> = world.budgets.iter().map(|(key, it)| (key, it.allowed)).collect();
    pods.into_iter().partition(|pod| {
        let mut overdrawn = false;
        for (key, budget) in &world.budgets {
            let own = key.namespace == pod.key.namespace
                && !pod.labels.is_empty()
                && !budget.selector.is_empty()
                && budget.selector.matches(&pod.labels);
            if own
                && !budget.disrupted.contains(&pod.key.name)
                && let Some(left) = left.get_mut(key)
            {
                *left -= 1;
                overdrawn |= *left < 0;
            }
        }
        overdrawn
    })
}
