//! What a DaemonSet does about its pods: a pure function.

use super::{
    node::{self, Fit},
    pod::{self, HASH},
};
use crate::workloads::{
    numbers::{Round, resolve},
    pods,
};
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{DaemonSet, DaemonSetStatus, RollingUpdateDaemonSet},
    core::v1::{Node, Pod},
};
use kube::ResourceExt as _;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// Pods made or deleted in one run.
const BURST: usize = 250;

/// What is seen of a DaemonSet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Observed<'a> {
    pub(crate) set: &'a DaemonSet,
    pub(crate) nodes: &'a [Arc<Node>],
    /// All that it controls.
    pub(crate) pods: &'a [Arc<Pod>],
    /// The hash of the revision of its template.
    pub(crate) hash: &'a str,
    /// Nodes whose failed pod may not be deleted yet: it failed too often lately.
    pub(crate) backing_off: &'a BTreeSet<String>,
}

/// What is done about it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    /// Nodes that get a pod.
    pub(crate) create: Vec<String>,
    /// Pods that go, with their nodes.
    pub(crate) delete: Vec<(String, Arc<Pod>)>,
    pub(crate) status: DaemonSetStatus,
    /// When a pod becomes available by time alone.
    pub(crate) next: Option<Duration>,
}

struct Rules {
    /// Pods that may be there twice on a node. Above 0, none is deleted before its successor is available.
    surge: usize,
    unavailable: usize,
    min_ready_s: i32,
    rolling: bool,
}

fn rules(set: &DaemonSet, desired: i32) -> Rules {
    let spec = set.spec.as_ref();
    let strategy = spec.and_then(|it| it.update_strategy.as_ref());
    let default = RollingUpdateDaemonSet::default();
    let rolling = strategy.and_then(|it| it.rolling_update.as_ref()).unwrap_or(&default);
    let surge = resolve(rolling.max_surge.as_ref(), desired, Round::Up);
    let unavailable = match &rolling.max_unavailable {
        None => 1,
        some => resolve(some.as_ref(), desired, Round::Up),
    };
    // Both 0 would never replace anything (percentages of few nodes).
    let unavailable = if surge == 0 { unavailable.max(1) } else { unavailable };
    let size = |number: i32| usize::try_from(number).unwrap_or_default();
    Rules {
        surge: size(surge),
        unavailable: size(unavailable),
        min_ready_s: spec.and_then(|it| it.min_ready_seconds).unwrap_or_default(),
        rolling: strategy.and_then(|it| it.type_.as_deref()) != Some("OnDelete"),
    }
}

fn is_updated(pod: &Pod, hash: &str) -> bool {
    pods::label(&pod.metadata, HASH) == Some(hash)
}

/// Pods by the node that they are on or for.
fn by_node(pods: &[Arc<Pod>]) -> BTreeMap<&str, Vec<Arc<Pod>>> {
    let mut all: BTreeMap<&str, Vec<Arc<Pod>>> = BTreeMap::new();
    for pod in pods {
        all.entry(pod::target(pod).unwrap_or_default())
            .or_default()
            .push(Arc::clone(pod));
    }
    for pods in all.values_mut() {
        pods.sort_by_key(|it| (pods::created(&it.metadata), it.name_any()));
    }
    all
}

/// What to do now.
pub(crate) fn plan(observed: Observed<'_>, now: Timestamp) -> Plan {
    let Observed {
        set,
        nodes,
        pods: all,
        hash,
        ..
    } = observed;
    let template = pod::template(set);
    let spec = template.spec.unwrap_or_default();
    let fits: BTreeMap<String, Fit> = nodes.iter().map(|it| (it.name_any(), node::fit(&spec, it))).collect();
    let desired = i32::try_from(fits.values().filter(|it| it.run).count()).unwrap_or(i32::MAX);
    let rules = rules(set, desired);
    let on = by_node(all);
    let mut plan = Plan {
        status: status(set, &fits, &on, hash, rules.min_ready_s, now),
        next: pods::next_available(all.iter().map(|it| &**it), rules.min_ready_s, now),
        ..Plan::default()
    };
    if set.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    manage(observed, &fits, &on, &rules, now, &mut plan);
    if plan.create.is_empty() && plan.delete.is_empty() && rules.rolling {
        if rules.surge > 0 {
            surge(&on, &fits, hash, &rules, now, &mut plan);
        } else {
            replace(&on, &fits, hash, &rules, now, &mut plan);
        }
    }
    plan.create.truncate(BURST);
    plan.delete.truncate(BURST);
    plan
}

/// A pod on every node that fits, and none elsewhere.
fn manage(
    observed: Observed<'_>,
    fits: &BTreeMap<String, Fit>,
    on: &BTreeMap<&str, Vec<Arc<Pod>>>,
    rules: &Rules,
    now: Timestamp,
    plan: &mut Plan,
) {
    let none = Vec::new();
    for (node, fit) in fits {
        let here = on.get(node.as_str()).unwrap_or(&none);
        let live = here.iter().filter(|it| !pods::is_terminating(it));
        if !fit.stay {
            plan.delete.extend(live.map(|it| (node.clone(), Arc::clone(it))));
            continue;
        }
        if fit.run && here.is_empty() {
            plan.create.push(node.clone());
            continue;
        }
        let (finished, running): (Vec<_>, Vec<_>) = live.cloned().partition(|it| pods::is_finished(it));
        if !observed.backing_off.contains(node) {
            plan.delete.extend(finished.into_iter().map(|it| (node.clone(), it)));
        }
        let surplus = if rules.surge > 0 {
            beyond_two(&running, observed.hash, rules, now)
        } else {
            running.into_iter().skip(1).collect()
        };
        plan.delete.extend(surplus.into_iter().map(|it| (node.clone(), it)));
    }
    // Unbound pods for nodes that are gone would wait for ever; bound ones are the garbage collector's.
    for (node, here) in on.iter().filter(|(node, _)| !fits.contains_key(**node)) {
        let waiting = here
            .iter()
            .filter(|it| pods::node(it).is_none() && !pods::is_terminating(it));
        plan.delete
            .extend(waiting.map(|it| ((*node).to_owned(), Arc::clone(it))));
    }
}

/// With surge, a node has the oldest old and the oldest new pod while the old one serves and the new one does not yet.
fn beyond_two(running: &[Arc<Pod>], hash: &str, rules: &Rules, now: Timestamp) -> Vec<Arc<Pod>> {
    let mut surplus = Vec::new();
    let (mut new, mut old) = (None, None);
    for pod in running {
        let place = if is_updated(pod, hash) { &mut new } else { &mut old };
        if place.is_none() {
            *place = Some(pod);
        } else {
            surplus.push(Arc::clone(pod));
        }
    }
    if let (Some(new), Some(old)) = (new, old)
        && (!pods::is_ready(old) || pods::is_available(new, rules.min_ready_s, now))
    {
        surplus.push(Arc::clone(old));
    }
    surplus
}

/// The new and the old pod of a node; `None` if it has several of one sort.
#[expect(clippy::type_complexity, reason = "a pair of options, read in two places")]
fn pair<'a>(here: &'a [Arc<Pod>], hash: &str) -> Option<(Option<&'a Arc<Pod>>, Option<&'a Arc<Pod>>)> {
    let live = here.iter().filter(|it| !pods::is_terminating(it));
    let (new, old): (Vec<_>, Vec<_>) = live.partition(|it| is_updated(it, hash));
    (new.len() <= 1 && old.len() <= 1).then(|| (new.first().copied(), old.first().copied()))
}

/// Old pods go, at most so many at a time as may be unavailable; the next run makes new ones.
fn replace(
    on: &BTreeMap<&str, Vec<Arc<Pod>>>,
    fits: &BTreeMap<String, Fit>,
    hash: &str,
    rules: &Rules,
    now: Timestamp,
    plan: &mut Plan,
) {
    let mut unavailable = 0;
    let (mut free, mut candidates) = (Vec::new(), Vec::new());
    for (node, fit) in fits {
        let here = on.get(node.as_str()).map(Vec::as_slice).unwrap_or_default();
        if here.is_empty() && !fit.run {
            continue;
        }
        match pair(here, hash) {
            Some((Some(new), None)) => {
                unavailable += usize::from(!pods::is_available(new, rules.min_ready_s, now));
            }
            Some((None, Some(old))) if !pods::is_available(old, rules.min_ready_s, now) => {
                // It serves nobody: replacing it costs nothing.
                unavailable += 1;
                free.push((node.clone(), Arc::clone(old)));
            }
            Some((None, Some(old))) => candidates.push((node.clone(), Arc::clone(old))),
            _ => unavailable += 1,
        }
    }
    candidates.truncate(rules.unavailable.saturating_sub(unavailable));
    plan.delete.extend(free.into_iter().chain(candidates));
}

/// New pods come beside old ones, at most so many at a time as the surge allows.
fn surge(
    on: &BTreeMap<&str, Vec<Arc<Pod>>>,
    fits: &BTreeMap<String, Fit>,
    hash: &str,
    rules: &Rules,
    now: Timestamp,
    plan: &mut Plan,
) {
    let mut surging = 0;
    let (mut free, mut candidates) = (Vec::new(), Vec::new());
    for (node, fit) in fits {
        let here = on.get(node.as_str()).map(Vec::as_slice).unwrap_or_default();
        match pair(here, hash) {
            None => surging += 1,
            Some((None, Some(old))) if fit.run => {
                if pods::is_available(old, rules.min_ready_s, now) {
                    candidates.push(node.clone());
                } else {
                    free.push(node.clone());
                }
            }
            Some((Some(new), Some(_))) => {
                // An available one's predecessor is deleted by `manage`.
                surging += usize::from(!pods::is_available(new, rules.min_ready_s, now));
            }
            Some(_) => {}
        }
    }
    candidates.truncate(rules.surge.saturating_sub(surging));
    plan.create.extend(free.into_iter().chain(candidates));
}

fn status(
    set: &DaemonSet,
    fits: &BTreeMap<String, Fit>,
    on: &BTreeMap<&str, Vec<Arc<Pod>>>,
    hash: &str,
    min_ready_s: i32,
    now: Timestamp,
) -> DaemonSetStatus {
    let (mut desired, mut current, mut misscheduled, mut ready, mut available, mut updated) = (0, 0, 0, 0, 0, 0);
    for (node, fit) in fits {
        let here = on.get(node.as_str()).map(Vec::as_slice).unwrap_or_default();
        if !fit.run {
            misscheduled += i32::from(!here.is_empty());
            continue;
        }
        desired += 1;
        current += i32::from(!here.is_empty());
        // Of several the one counts that serves.
        let Some(pod) = here.iter().max_by_key(|it| (pods::is_ready(it), is_updated(it, hash))) else {
            continue;
        };
        ready += i32::from(pods::is_ready(pod));
        available += i32::from(pods::is_available(pod, min_ready_s, now));
        updated += i32::from(is_updated(pod, hash));
    }
    let before = set.status.clone().unwrap_or_default();
    DaemonSetStatus {
        desired_number_scheduled: desired,
        current_number_scheduled: current,
        number_misscheduled: misscheduled,
        number_ready: ready,
        number_available: Some(available),
        number_unavailable: Some(desired - available),
        updated_number_scheduled: Some(updated),
        observed_generation: set.metadata.generation,
        ..before
    }
}
