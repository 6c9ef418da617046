//! What a ReplicaSet does about its pods: a pure function.

use super::rank::rank;
use crate::workloads::pods;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// Pods made or deleted in one run; the rest comes with the next.
const BURST: usize = 500;

/// What is wanted of a set of equal pods.
#[derive(Clone, Debug)]
pub(crate) struct Desired {
    /// `spec.replicas`.
    pub(crate) replicas: usize,
    /// `spec.minReadySeconds`.
    pub(crate) min_ready_s: i32,
    /// The labels of the template.
    pub(crate) labels: BTreeMap<String, String>,
    /// It was deleted: nothing is made or deleted any more.
    pub(crate) deleting: bool,
}

/// What is done.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    /// So many pods are made.
    Create(usize),
    /// This one goes.
    Delete(Arc<Pod>),
}

/// Counts of `status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) replicas: i32,
    pub(crate) fully_labeled: i32,
    pub(crate) ready: i32,
    pub(crate) available: i32,
    pub(crate) terminating: i32,
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// What to do. `owned` are all pods of the set, `related` those of all sets of the same owner.
pub(crate) fn plan(desired: &Desired, owned: &[Arc<Pod>], related: &[Arc<Pod>], now: Timestamp) -> Vec<Action> {
    if desired.deleting {
        return Vec::new();
    }
    let mut active: Vec<_> = owned.iter().filter(|it| pods::is_active(it)).cloned().collect();
    if active.len() < desired.replicas {
        return vec![Action::Create((desired.replicas - active.len()).min(BURST))];
    }
    let surplus = (active.len() - desired.replicas).min(BURST);
    if surplus > 0 && active.len() > surplus {
        rank(&mut active, related, now);
    }
    active.truncate(surplus);
    active.into_iter().map(Action::Delete).collect()
}

/// The counts that the pods make.
pub(crate) fn tally(desired: &Desired, owned: &[Arc<Pod>], now: Timestamp) -> Tally {
    let terminating = owned
        .iter()
        .filter(|it| pods::is_terminating(it) && !pods::is_finished(it));
    let mut tally = Tally {
        terminating: count(terminating.count()),
        ..Tally::default()
    };
    for pod in owned.iter().filter(|it| pods::is_active(it)) {
        let labels = pod.metadata.labels.as_ref();
        let labeled = desired
            .labels
            .iter()
            .all(|(name, value)| labels.and_then(|it| it.get(name)) == Some(value));
        tally.replicas += 1;
        tally.fully_labeled += i32::from(labeled);
        tally.ready += i32::from(pods::is_ready(pod));
        tally.available += i32::from(pods::is_available(pod, desired.min_ready_s, now));
    }
    tally
}

/// When the counts change by time alone.
pub(crate) fn next(desired: &Desired, owned: &[Arc<Pod>], now: Timestamp) -> Option<Duration> {
    let active = owned.iter().filter(|it| pods::is_active(it)).map(|it| &**it);
    pods::next_available(active, desired.min_ready_s, now)
}
