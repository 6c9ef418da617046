//! What a Job does about its pods and its status: a pure function.

use super::{
    end::{self, End},
    pod,
    tally::{self, Tally},
};
use crate::workloads::{pods, replicas};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        batch::v1::{Job, JobCondition, JobSpec, JobStatus},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// Pods made in one run.
const BURST: usize = 500;
/// How long a new pod waits after the first failure; doubles with each further one in a row.
const FIRST_BACKOFF_S: i64 = 10;
/// How long a new pod waits at most.
const LONGEST_BACKOFF_S: i64 = 600;

/// A pod to make: its index and how often that failed before, if the Job has indexes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) index: Option<u32>,
    pub(crate) failures: Option<i32>,
}

/// Something to say about the Job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remark {
    pub(crate) warning: bool,
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// What is done, in this order: the status is written, pods are released, discarded, ended, made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) status: JobStatus,
    /// These are counted: they lose their finalizer.
    pub(crate) release: Vec<Arc<Pod>>,
    /// These go and are not counted.
    pub(crate) discard: Vec<Arc<Pod>>,
    /// These go and count as failed.
    pub(crate) kill: Vec<Arc<Pod>>,
    pub(crate) create: Vec<Wanted>,
    pub(crate) remarks: Vec<Remark>,
    /// When to look again although nothing changes.
    pub(crate) next: Option<Duration>,
}

/// `status.conditions`.
pub(crate) fn condition<'a>(status: &'a JobStatus, kind: &str) -> Option<&'a JobCondition> {
    let mut conditions = status.conditions.iter().flatten();
    conditions.find(|it| it.type_ == kind && it.status == "True")
}

/// It is complete or has failed.
pub(crate) fn is_finished(job: &Job) -> bool {
    let status = job.status.as_ref();
    status.is_some_and(|it| condition(it, "Complete").or_else(|| condition(it, "Failed")).is_some())
}

/// It is complete.
pub(crate) fn is_complete(job: &Job) -> bool {
    job.status
        .as_ref()
        .is_some_and(|it| condition(it, "Complete").is_some())
}

pub(super) fn set_condition(
    status: &mut JobStatus,
    kind: &str,
    value: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let conditions = status.conditions.get_or_insert_default();
    let there = conditions.iter().find(|it| it.type_ == kind);
    if there.is_some_and(|it| it.status == value && it.reason.as_deref() == Some(reason)) {
        return;
    }
    conditions.retain(|it| it.type_ != kind);
    conditions.push(JobCondition {
        type_: kind.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    });
}

/// What to do now.
pub(crate) fn plan(job: &Job, owned: &[Arc<Pod>], now: Timestamp) -> Plan {
    let Some(spec) = &job.spec else {
        return Plan::default();
    };
    let mut plan = Plan {
        status: job.status.clone().unwrap_or_default(),
        ..Plan::default()
    };
    if is_finished(job) {
        // Nothing of a Job that is over may stay behind a finalizer.
        plan.release = owned.iter().filter(|it| pod::is_tracked(it)).cloned().collect();
        return plan;
    }
    let suspended = spec.suspend == Some(true);
    if plan.status.start_time.is_none() && !suspended {
        plan.status.start_time = Some(Time(now));
    }
    let failing = condition(&plan.status, "FailureTarget").is_some();
    let tally = tally::tally(job, spec, owned, failing);
    let end = end::end(&plan.status, spec, &tally, now);
    write_counts(&mut plan.status, spec, &tally);
    plan.release.clone_from(&tally.release);
    match &end {
        Some(end) => end_with(end, &tally, owned, now, &mut plan),
        None => go_on(job, spec, &tally, owned, suspended, now, &mut plan),
    }
    plan
}

fn write_counts(status: &mut JobStatus, spec: &JobSpec, tally: &Tally) {
    let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    let ready = tally.active.iter().filter(|it| pods::is_ready(it)).count();
    status.active = Some(count(tally.active.len()));
    status.ready = Some(count(ready));
    status.terminating = Some(count(tally.terminating));
    status.succeeded = Some(tally.counters.succeeded);
    status.failed = Some(tally.counters.failed);
    status.uncounted_terminated_pods = Some(tally.counters.uncounted());
    if tally::is_indexed(spec) {
        status.completed_indexes = (!tally.done.is_empty()).then(|| tally.done.to_string());
        if spec.backoff_limit_per_index.is_some() {
            status.failed_indexes = Some(tally.lost.to_string());
        }
    }
}

/// The Job will not make pods any more: those that are left go, and when all are counted it is over.
fn end_with(end: &End, tally: &Tally, owned: &[Arc<Pod>], now: Timestamp, plan: &mut Plan) {
    let (target, last) = match end {
        End::Success { .. } => ("SuccessCriteriaMet", "Complete"),
        End::Failure { .. } => ("FailureTarget", "Failed"),
    };
    let (reason, message) = end.words();
    set_condition(&mut plan.status, target, "True", reason, message, now);
    match end {
        End::Success { .. } => plan.discard.clone_from(&tally.active),
        End::Failure { .. } => plan.kill.clone_from(&tally.active),
    }
    let waits = owned.iter().any(|it| pod::is_tracked(it)) || !tally.counters.is_settled();
    if waits || !tally.active.is_empty() || tally.terminating > 0 {
        return;
    }
    set_condition(&mut plan.status, last, "True", reason, message, now);
    let warning = last == "Failed";
    if !warning {
        plan.status.completion_time = Some(Time(now));
    }
    plan.remarks.push(Remark {
        warning,
        reason: if warning {
            reason.to_owned()
        } else {
            "Completed".to_owned()
        },
        message: if warning {
            message.to_owned()
        } else {
            "Job completed".to_owned()
        },
    });
}

fn go_on(
    job: &Job,
    spec: &JobSpec,
    tally: &Tally,
    owned: &[Arc<Pod>],
    suspended: bool,
    now: Timestamp,
    plan: &mut Plan,
) {
    let was_suspended = condition(&plan.status, "Suspended").is_some();
    if suspended {
        plan.discard.clone_from(&tally.active);
        if !was_suspended {
            set_condition(
                &mut plan.status,
                "Suspended",
                "True",
                "JobSuspended",
                "Job suspended",
                now,
            );
            plan.status.start_time = None;
            plan.remarks.push(remark("Suspended", "Job suspended"));
        }
        return;
    }
    if was_suspended {
        set_condition(&mut plan.status, "Suspended", "False", "JobResumed", "Job resumed", now);
        // The deadline starts anew.
        plan.status.start_time = Some(Time(now));
        plan.remarks.push(remark("Resumed", "Job resumed"));
    }
    let started = plan.status.start_time.as_ref().map(|it| it.0);
    if let (Some(seconds), Some(started)) = (spec.active_deadline_seconds, started) {
        let end = started
            .saturating_add(SignedDuration::from_secs(seconds))
            .unwrap_or(Timestamp::MAX);
        plan.next = Some(Duration::try_from(end.duration_since(now)).unwrap_or_default());
    }
    if job.metadata.deletion_timestamp.is_some() {
        return;
    }
    let keep = trim(spec, tally, owned, now, plan);
    grow(spec, tally, owned, &keep, now, plan);
}

fn remark(reason: &str, message: &str) -> Remark {
    Remark {
        warning: false,
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}

/// How many pods should be active.
fn wanted(spec: &JobSpec, tally: &Tally) -> usize {
    let size = |number: i32| usize::try_from(number).unwrap_or_default();
    let parallelism = size(spec.parallelism.unwrap_or(1));
    match spec.completions {
        // Without a number the first success means that no more are made.
        None if tally.succeeded > 0 => tally.active.len(),
        None => parallelism,
        Some(completions) => {
            let lost = if tally::is_indexed(spec) { tally.lost.len() } else { 0 };
            parallelism.min(size(completions - tally.succeeded).saturating_sub(lost))
        }
    }
}

/// Discards what is too much; gives the pods that stay.
fn trim(spec: &JobSpec, tally: &Tally, owned: &[Arc<Pod>], now: Timestamp, plan: &mut Plan) -> Vec<Arc<Pod>> {
    let mut keep = tally.active.clone();
    if tally::is_indexed(spec) {
        // One pod per index that is still wanted, the oldest.
        keep.sort_by_key(|it| pods::created(&it.metadata));
        let size = tally::completions(spec);
        let mut taken = BTreeSet::new();
        let fits = |index: u32| index < size && !tally.done.contains(index) && !tally.lost.contains(index);
        let (fitting, others): (Vec<_>, Vec<_>) = keep
            .into_iter()
            .partition(|it| pod::index(it).is_some_and(|it| fits(it) && taken.insert(it)));
        keep = fitting;
        plan.discard.extend(others);
    }
    let surplus = keep.len().saturating_sub(wanted(spec, tally));
    if surplus > 0 {
        replicas::rank(&mut keep, owned, now);
        plan.discard.extend(keep.drain(..surplus));
    }
    keep
}

/// Makes what is missing, after a delay if the last ones failed.
fn grow(spec: &JobSpec, tally: &Tally, owned: &[Arc<Pod>], keep: &[Arc<Pod>], now: Timestamp, plan: &mut Plan) {
    let mut missing = wanted(spec, tally).saturating_sub(keep.len());
    if tally::only_failed(spec) {
        missing = missing.saturating_sub(tally.terminating);
    }
    missing = missing.min(BURST);
    if missing == 0 {
        return;
    }
    if !tally::is_indexed(spec) {
        let ended = owned
            .iter()
            .filter(|it| pods::is_finished(it) || pods::is_terminating(it));
        match delay(ended.map(|it| &**it), now) {
            Some(delay) => wait(plan, delay),
            None => {
                let any = Wanted {
                    index: None,
                    failures: None,
                };
                plan.create = vec![any; missing];
            }
        }
        return;
    }
    let busy: BTreeSet<u32> = keep.iter().filter_map(|it| pod::index(it)).collect();
    // With `Failed` a terminating pod keeps its index until it has ended.
    let ending = owned
        .iter()
        .filter(|it| tally::only_failed(spec) && pods::is_terminating(it) && !pods::is_finished(it));
    let ending: BTreeSet<u32> = ending.filter_map(|it| pod::index(it)).collect();
    let taken =
        |it: u32| tally.done.contains(it) || tally.lost.contains(it) || busy.contains(&it) || ending.contains(&it);
    let free = (0..tally::completions(spec)).filter(|it| !taken(*it));
    let mut of_index: BTreeMap<u32, Vec<&Pod>> = BTreeMap::new();
    let ended = owned
        .iter()
        .filter(|it| pods::is_finished(it) || pods::is_terminating(it));
    for pod in ended.clone() {
        if let Some(index) = pod::index(pod) {
            of_index.entry(index).or_default().push(pod);
        }
    }
    let per_index = spec.backoff_limit_per_index.is_some();
    let all_wait = if per_index {
        None
    } else {
        delay(ended.map(|it| &**it), now)
    };
    for index in free.take(missing) {
        let own = of_index.get(&index).into_iter().flatten().copied();
        let delay = if per_index { delay(own, now) } else { all_wait };
        match delay {
            Some(delay) => wait(plan, delay),
            None => plan.create.push(Wanted {
                index: Some(index),
                failures: per_index.then(|| tally.index_failures.get(&index).copied().unwrap_or_default()),
            }),
        }
    }
}

fn wait(plan: &mut Plan, delay: Duration) {
    plan.next = Some(plan.next.map_or(delay, |it| it.min(delay)));
}

/// How long a new pod has still to wait, by the failures after the last success.
fn delay<'a>(ended: impl Iterator<Item = &'a Pod> + Clone, now: Timestamp) -> Option<Duration> {
    let success = ended
        .clone()
        .filter(|it| pods::phase(it) == "Succeeded")
        .map(pod::ended_at)
        .max();
    let failures = ended.filter(|it| pods::phase(it) == "Failed").map(pod::ended_at);
    let failures: Vec<_> = failures
        .filter(|it| success.is_none_or(|success| *it > success))
        .collect();
    let last = failures.iter().max()?;
    let doublings = u32::try_from(failures.len() - 1).unwrap_or(u32::MAX).min(10);
    let seconds = (FIRST_BACKOFF_S << doublings).min(LONGEST_BACKOFF_S);
    let end = last
        .saturating_add(SignedDuration::from_secs(seconds))
        .unwrap_or(Timestamp::MAX);
    Duration::try_from(end.duration_since(now))
        .ok()
        .filter(|it| !it.is_zero())
}
