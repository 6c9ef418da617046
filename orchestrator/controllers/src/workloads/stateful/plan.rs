//! What a StatefulSet does about its pods: a pure function. With ordered management at most one action at a time.

use super::pod;
use crate::workloads::{
    numbers::{Round, resolve},
    pods,
};
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetStatus},
    core::v1::{Pod, PodTemplateSpec},
};
use kube::ResourceExt as _;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// A revision's name and template.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Revision<'a> {
    pub(crate) name: &'a str,
    pub(crate) template: &'a PodTemplateSpec,
}

/// What is seen of a StatefulSet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Observed<'a> {
    pub(crate) set: &'a StatefulSet,
    /// All that it controls.
    pub(crate) pods: &'a [Arc<Pod>],
    /// That which pods are of until an update has come to them.
    pub(crate) current: Revision<'a>,
    /// That of the set's template.
    pub(crate) update: Revision<'a>,
}

/// What is done.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    Create(Box<Pod>),
    Delete(Arc<Pod>),
    /// A pod that ended goes, so that it can be made again.
    Recreate(Arc<Pod>),
    /// A pod gets its labels back.
    Identify(Box<Pod>),
}

/// What is done about it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) actions: Vec<Action>,
    /// Pods beyond the wanted number.
    pub(crate) condemned: Vec<Arc<Pod>>,
    pub(crate) status: StatefulSetStatus,
    /// When a pod becomes available by time alone.
    pub(crate) next: Option<Duration>,
}

enum Slot {
    Have(Arc<Pod>),
    Make(Box<Pod>),
}

struct Rules {
    ordered: bool,
    rolling: bool,
    partition: i32,
    unavailable: usize,
    min_ready_s: i32,
    start: i32,
    replicas: i32,
    has_partition: bool,
}

fn rules(spec: &StatefulSetSpec) -> Rules {
    let strategy = spec.update_strategy.as_ref();
    let rolling = strategy.and_then(|it| it.rolling_update.as_ref());
    let replicas = spec.replicas.unwrap_or(1).max(0);
    let unavailable = rolling.and_then(|it| it.max_unavailable.as_ref());
    let unavailable = unavailable.map_or(1, |it| resolve(Some(it), replicas, Round::Up).max(1));
    let partition = rolling.and_then(|it| it.partition);
    Rules {
        ordered: spec.pod_management_policy.as_deref() != Some("Parallel"),
        rolling: strategy.and_then(|it| it.type_.as_deref()) != Some("OnDelete"),
        partition: partition.unwrap_or_default(),
        has_partition: partition.is_some(),
        unavailable: usize::try_from(unavailable).unwrap_or(1),
        min_ready_s: spec.min_ready_seconds.unwrap_or_default(),
        start: spec.ordinals.as_ref().and_then(|it| it.start).unwrap_or_default(),
        replicas,
    }
}

fn revision(pod: &Pod) -> &str {
    pods::label(&pod.metadata, pod::REVISION).unwrap_or_default()
}

fn is_serving(pod: &Pod) -> bool {
    pods::phase(pod) == "Running" && pods::is_ready(pod)
}

fn is_healthy(pod: &Pod) -> bool {
    is_serving(pod) && !pods::is_terminating(pod)
}

/// What to do now.
pub(crate) fn plan(observed: Observed<'_>, now: Timestamp) -> Plan {
    let Some(spec) = &observed.set.spec else {
        return Plan::default();
    };
    let rules = rules(spec);
    let mut plan = Plan {
        status: status(observed, &rules, now),
        next: pods::next_available(observed.pods.iter().map(|it| &**it), rules.min_ready_s, now),
        ..Plan::default()
    };
    if observed.set.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let (slots, condemned) = sort(observed, &rules, &plan.status);
    plan.condemned.clone_from(&condemned);
    let go_on =
        fill(observed.set, &rules, &slots, now, &mut plan) && shrink(&rules, &slots, &condemned, now, &mut plan);
    if go_on && rules.rolling {
        update(observed.update.name, &rules, &slots, now, &mut plan);
    }
    plan
}

/// Places with their pods or with those to make, and pods beyond them, the highest first.
fn sort(observed: Observed<'_>, rules: &Rules, status: &StatefulSetStatus) -> (Vec<Slot>, Vec<Arc<Pod>>) {
    let name = observed.set.name_any();
    let numbered = observed
        .pods
        .iter()
        .filter_map(|it| Some((pod::ordinal(&name, &it.name_any())?, it)));
    let mut by_ordinal: BTreeMap<i32, Arc<Pod>> = numbered.map(|(ordinal, it)| (ordinal, Arc::clone(it))).collect();
    let places = rules.start..rules.start.saturating_add(rules.replicas);
    let slots = places.map(|ordinal| match by_ordinal.remove(&ordinal) {
        Some(pod) => Slot::Have(pod),
        None => {
            // A pod that an update has not come to is made as it was.
            let kept = if rules.has_partition {
                rules.partition
            } else {
                status.current_replicas.unwrap_or_default()
            };
            let old = rules.rolling && ordinal < rules.start.saturating_add(kept);
            let of = if old { observed.current } else { observed.update };
            Slot::Make(Box::new(pod::new(observed.set, of.template, of.name, ordinal)))
        }
    });
    let slots = slots.collect();
    (slots, by_ordinal.into_values().rev().collect())
}

/// Makes what is missing, lowest first. Says whether all that must be waited for is there.
fn fill(set: &StatefulSet, rules: &Rules, slots: &[Slot], now: Timestamp, plan: &mut Plan) -> bool {
    for slot in slots {
        match slot {
            Slot::Make(pod) => {
                plan.actions.push(Action::Create(pod.clone()));
                if rules.ordered {
                    return false;
                }
            }
            Slot::Have(pod) if pods::is_finished(pod) => {
                if !pods::is_terminating(pod) {
                    plan.actions.push(Action::Recreate(Arc::clone(pod)));
                }
                if rules.ordered {
                    return false;
                }
            }
            Slot::Have(pod) => {
                if !pod::is_identified(set, pod) && !pods::is_terminating(pod) {
                    let mut named = (**pod).clone();
                    let labels = named.metadata.labels.clone();
                    pod::identify(set, &mut named);
                    // Volumes cannot change.
                    named.spec.clone_from(&pod.spec);
                    if labels != named.metadata.labels {
                        plan.actions.push(Action::Identify(Box::new(named)));
                    }
                }
                let settled = is_healthy(pod) && pods::is_available(pod, rules.min_ready_s, now);
                if rules.ordered && !settled {
                    return false;
                }
            }
        }
    }
    true
}

/// Deletes what is too much, highest first. Says whether an update may go on.
fn shrink(rules: &Rules, slots: &[Slot], condemned: &[Arc<Pod>], now: Timestamp, plan: &mut Plan) -> bool {
    let places = slots.iter().filter_map(|it| match it {
        Slot::Have(pod) => Some(pod),
        Slot::Make(_) => None,
    });
    let mut first_unhealthy = places
        .clone()
        .chain(condemned.iter().rev())
        .filter(|it| !is_healthy(it));
    let first_unhealthy = first_unhealthy.next().and_then(|it| it.metadata.uid.clone());
    for pod in condemned {
        if pods::is_terminating(pod) {
            if rules.ordered {
                return false;
            }
            continue;
        }
        let settled = is_serving(pod) && pods::is_available(pod, rules.min_ready_s, now);
        // One that is not well is not waited for if it is itself what everything waits for.
        if rules.ordered && !settled && pod.metadata.uid != first_unhealthy {
            return false;
        }
        plan.actions.push(Action::Delete(Arc::clone(pod)));
        if rules.ordered {
            return false;
        }
    }
    true
}

/// Deletes pods of other revisions, highest first, down to the partition.
fn update(revision_name: &str, rules: &Rules, slots: &[Slot], now: Timestamp, plan: &mut Plan) {
    let healthy = |slot: &Slot| match slot {
        Slot::Have(pod) => is_healthy(pod) && pods::is_available(pod, rules.min_ready_s, now),
        Slot::Make(_) => false,
    };
    let unavailable = slots.iter().filter(|it| !healthy(it)).count();
    let mut room = rules.unavailable.saturating_sub(unavailable);
    let from = usize::try_from(rules.partition).unwrap_or_default();
    for slot in slots.iter().skip(from).rev() {
        if let Slot::Have(pod) = slot
            && revision(pod) != revision_name
            && !pods::is_terminating(pod)
        {
            // One that is unavailable already costs nothing.
            let free = !healthy(slot);
            if !free && room == 0 {
                return;
            }
            room -= usize::from(!free);
            plan.actions.push(Action::Delete(Arc::clone(pod)));
            let current = plan.status.current_replicas.get_or_insert(0);
            *current = (*current - 1).max(0);
            if rules.unavailable == 1 {
                return;
            }
        } else if !healthy(slot) && rules.unavailable == 1 {
            return;
        }
    }
}

fn status(observed: Observed<'_>, rules: &Rules, now: Timestamp) -> StatefulSetStatus {
    let before = observed.set.status.clone().unwrap_or_default();
    let (mut ready, mut available, mut current, mut updated) = (0, 0, 0, 0);
    for pod in observed.pods {
        if is_serving(pod) {
            ready += 1;
            available += i32::from(pods::is_available(pod, rules.min_ready_s, now));
        }
        if !pods::is_terminating(pod) {
            current += i32::from(revision(pod) == observed.current.name);
            updated += i32::from(revision(pod) == observed.update.name);
        }
    }
    let replicas = i32::try_from(observed.pods.len()).unwrap_or(i32::MAX);
    let done = rules.rolling && updated == replicas && ready == replicas && replicas == rules.replicas;
    let (current, current_name) = if done {
        (updated, observed.update.name)
    } else {
        (current, observed.current.name)
    };
    StatefulSetStatus {
        replicas,
        ready_replicas: Some(ready),
        available_replicas: Some(available),
        current_replicas: Some(current),
        updated_replicas: Some(updated),
        current_revision: Some(current_name.to_owned()),
        update_revision: Some(observed.update.name.to_owned()),
        observed_generation: observed.set.metadata.generation,
        collision_count: before.collision_count,
        conditions: before.conditions,
    }
}
