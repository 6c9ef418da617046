//! Which pods of a Job ended how: counted once each, whatever is deleted or restarted between.
//!
//! A pod keeps the finalizer until its uid is written down in `status.uncountedTerminatedPods`; only when it has lost
//! the finalizer does its uid become a number. Source: KEP-2307.

use super::{
    indexes::Indexes,
    pod,
    policy::{self, Verdict},
};
use crate::workloads::pods;
use k8s_openapi::api::{
    batch::v1::{Job, JobSpec, JobStatus, UncountedTerminatedPods},
    core::v1::Pod,
};
use kube::ResourceExt as _;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Pods by what they are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    /// Neither ended nor terminating.
    pub(crate) active: Vec<Arc<Pod>>,
    /// Deleted and still running.
    pub(crate) terminating: usize,
    /// All that succeeded, counted or not.
    pub(crate) succeeded: i32,
    /// All that failed, counted or not.
    pub(crate) failed: i32,
    /// Indexes that succeeded.
    pub(crate) done: Indexes,
    /// Indexes that failed for good.
    pub(crate) lost: Indexes,
    /// Failures so far of indexes that did not fail for good.
    pub(crate) index_failures: BTreeMap<u32, i32>,
    /// The counters and lists of the status to write.
    pub(crate) counters: Counters,
    /// Ended pods that lose their finalizer once that is written.
    pub(crate) release: Vec<Arc<Pod>>,
    /// Why the pod failure policy fails the Job.
    pub(crate) verdict: Option<String>,
}

/// What of the status counts ended pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) succeeded: i32,
    pub(crate) failed: i32,
    pub(crate) uncounted_succeeded: BTreeSet<String>,
    pub(crate) uncounted_failed: BTreeSet<String>,
}

impl Counters {
    fn of(status: &JobStatus) -> Self {
        let set = |list: Option<&Vec<String>>| list.into_iter().flatten().cloned().collect();
        let uncounted = status.uncounted_terminated_pods.as_ref();
        Self {
            succeeded: status.succeeded.unwrap_or_default(),
            failed: status.failed.unwrap_or_default(),
            uncounted_succeeded: set(uncounted.and_then(|it| it.succeeded.as_ref())),
            uncounted_failed: set(uncounted.and_then(|it| it.failed.as_ref())),
        }
    }

    /// Nothing waits to become a number.
    pub(crate) fn is_settled(&self) -> bool {
        self.uncounted_succeeded.is_empty() && self.uncounted_failed.is_empty()
    }

    /// As the status has it.
    pub(crate) fn uncounted(&self) -> UncountedTerminatedPods {
        let list = |set: &BTreeSet<String>| (!set.is_empty()).then(|| set.iter().cloned().collect());
        UncountedTerminatedPods {
            succeeded: list(&self.uncounted_succeeded),
            failed: list(&self.uncounted_failed),
        }
    }
}

pub(crate) fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

/// `spec.completions` of a Job with indexes.
pub(crate) fn completions(spec: &JobSpec) -> u32 {
    spec.completions
        .and_then(|it| u32::try_from(it).ok())
        .unwrap_or_default()
}

/// Terminating pods are replaced only when they have failed.
pub(crate) fn only_failed(spec: &JobSpec) -> bool {
    spec.pod_replacement_policy.as_deref() == Some("Failed") || spec.pod_failure_policy.is_some()
}

/// Counts a Job's pods. `ending`: the Job has failed, so that whatever is left of it counts as failed.
pub(crate) fn tally(job: &Job, spec: &JobSpec, owned: &[Arc<Pod>], ending: bool) -> Tally {
    let status = job.status.clone().unwrap_or_default();
    let mut counters = Counters::of(&status);
    let indexed = is_indexed(spec);
    let size = completions(spec);
    let only_failed = only_failed(spec);
    let list = |text: &Option<String>| Indexes::parse(text.as_deref().unwrap_or_default(), size);
    let mut all = Tally {
        done: list(&status.completed_indexes),
        lost: list(&status.failed_indexes),
        ..Tally::default()
    };
    let tracked: BTreeSet<String> = owned
        .iter()
        .filter(|it| pod::is_tracked(it))
        .filter_map(|it| it.uid())
        .collect();
    // What was written down and has lost its finalizer is a number from now on.
    let before = counters.clone();
    counters.uncounted_succeeded.retain(|it| tracked.contains(it));
    counters.uncounted_failed.retain(|it| tracked.contains(it));
    let lost = |was: &BTreeSet<String>, is: &BTreeSet<String>| i32::try_from(was.len() - is.len()).unwrap_or(i32::MAX);
    counters.succeeded += lost(&before.uncounted_succeeded, &counters.uncounted_succeeded);
    counters.failed += lost(&before.uncounted_failed, &counters.uncounted_failed);
    for pod in owned {
        if pods::is_active(pod) {
            all.active.push(Arc::clone(pod));
        } else if !pods::is_finished(pod) {
            all.terminating += 1;
        }
        let index = pod::index(pod).filter(|it| *it < size);
        if let Some(index) = index.filter(|_| indexed) {
            let failed = pod::is_failed(pod, only_failed);
            let ignored = failed && policy::judge(job, pod) == Verdict::Ignore;
            let failures = pod::index_failures(pod) + i32::from(failed && !ignored);
            let known = all.index_failures.entry(index).or_default();
            *known = (*known).max(failures);
        }
        if pod::is_tracked(pod) {
            count(job, spec, pod, index, ending, &mut counters, &mut all);
        }
    }
    let uncounted = |set: &BTreeSet<String>| i32::try_from(set.len()).unwrap_or(i32::MAX);
    if indexed {
        // Indexes say it all; no pod of theirs needs to be remembered.
        counters.succeeded = i32::try_from(all.done.len()).unwrap_or(i32::MAX);
        counters.uncounted_succeeded.clear();
    }
    all.succeeded = counters.succeeded + uncounted(&counters.uncounted_succeeded);
    all.failed = counters.failed + uncounted(&counters.uncounted_failed);
    all.counters = counters;
    all
}

/// Counts one pod that still has its finalizer.
fn count(
    job: &Job,
    spec: &JobSpec,
    pod: &Arc<Pod>,
    index: Option<u32>,
    ending: bool,
    counters: &mut Counters,
    all: &mut Tally,
) {
    let uid = pod.uid().unwrap_or_default();
    let indexed = is_indexed(spec);
    let failed = pod::is_failed(pod, only_failed(spec));
    if pods::phase(pod) == "Succeeded" && !counters.uncounted_failed.contains(&uid) {
        match index {
            Some(index) if indexed => all.done.insert(index),
            _ if indexed => {}
            _ => _ = counters.uncounted_succeeded.insert(uid),
        }
        all.release.push(Arc::clone(pod));
    } else if failed || (ending && pods::is_terminating(pod)) {
        all.release.push(Arc::clone(pod));
        if indexed && index.is_none() {
            return;
        }
        match policy::judge(job, pod) {
            Verdict::Ignore => return,
            Verdict::FailJob(why) => all.verdict = all.verdict.take().or(Some(why)),
            Verdict::FailIndex => {
                if let Some(index) = index {
                    all.lost.insert(index);
                }
            }
            Verdict::Count => {}
        }
        if let (Some(index), Some(limit)) = (index, spec.backoff_limit_per_index)
            && pod::index_failures(pod) >= limit
        {
            all.lost.insert(index);
        }
        counters.uncounted_failed.insert(uid);
    }
}
