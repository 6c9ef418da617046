//! What a CronJob does about its Jobs: a pure function.

use super::schedule::Schedule;
use crate::{
    frame::reference,
    workloads::{job, pods},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job},
        core::v1::ObjectReference,
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::ResourceExt as _;
use std::{sync::Arc, time::Duration};

/// Annotation of a Job: the time that it is for.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

/// Something to say about the CronJob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remark {
    pub(crate) warning: bool,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// What is done, in this order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) remarks: Vec<Remark>,
    /// Running Jobs that make room for the next.
    pub(crate) replace: Vec<Arc<Job>>,
    /// Finished Jobs that history has no room for.
    pub(crate) forget: Vec<Arc<Job>>,
    /// The Job that is due, and the time that it is for.
    pub(crate) create: Option<(Box<Job>, Timestamp)>,
    /// Without what `create` adds.
    pub(crate) status: CronJobStatus,
    /// When the next is due.
    pub(crate) next: Option<Duration>,
}

impl Plan {
    fn say(&mut self, warning: bool, reason: &'static str, message: impl Into<String>) {
        self.remarks.push(Remark {
            warning,
            reason,
            message: message.into(),
        });
    }
}

/// The name of the Job for a time: minutes since 1970 make it unique.
pub(crate) fn job_name(owner: &str, at: Timestamp) -> String {
    format!("{owner}-{}", at.as_second() / 60)
}

/// What to do now. `jobs` are all that it controls.
pub(crate) fn plan(owner: &CronJob, jobs: &[Arc<Job>], now: Timestamp) -> Plan {
    let mut plan = Plan {
        status: owner.status.clone().unwrap_or_default(),
        ..Plan::default()
    };
    let spec = &owner.spec;
    sync_active(jobs, &mut plan);
    plan.forget = surplus(spec, jobs);
    if owner.metadata.deletion_timestamp.is_some() || spec.suspend == Some(true) {
        return plan;
    }
    let schedule = match Schedule::parse(&spec.schedule, spec.time_zone.as_deref()) {
        Ok(schedule) => schedule,
        Err(error) => {
            plan.say(true, error.reason(), error.to_string());
            return plan;
        }
    };
    start(owner, spec, &schedule, jobs, now, &mut plan);
    let next = schedule
        .next(now)
        .map(|it| Duration::try_from(it.duration_since(now)).unwrap_or_default());
    plan.next = next;
    plan
}

/// Brings `status.active` in step with the Jobs.
fn sync_active(jobs: &[Arc<Job>], plan: &mut Plan) {
    let mut active = plan.status.active.take().unwrap_or_default();
    let known = |active: &[ObjectReference], job: &Job| active.iter().any(|it| it.uid == job.uid());
    for job in jobs {
        let finished = job::is_finished(job);
        let status = job.status.clone().unwrap_or_default();
        if finished && known(&active, job) {
            active.retain(|it| it.uid != job.uid());
            let how = if job::is_complete(job) { "Complete" } else { "Failed" };
            let message = format!("Saw completed job: {}, condition: {how}", job.name_any());
            plan.say(false, "SawCompletedJob", message);
        } else if !finished && !known(&active, job) {
            // The write of the status was lost: the Job is ours by its owner all the same.
            active.push(refer(job));
        }
        if job::is_complete(job) && status.completion_time > plan.status.last_successful_time {
            plan.status.last_successful_time = status.completion_time;
        }
    }
    let there = |it: &ObjectReference| jobs.iter().any(|job| job.uid() == it.uid);
    for gone in active.iter().filter(|it| !there(it)) {
        let message = format!("Active job went missing: {}", gone.name.as_deref().unwrap_or_default());
        plan.remarks.push(Remark {
            warning: false,
            reason: "MissingJob",
            message,
        });
    }
    active.retain(there);
    plan.status.active = (!active.is_empty()).then_some(active);
}

/// How `status.active` refers to a Job.
pub(crate) fn refer(job: &Job) -> ObjectReference {
    ObjectReference {
        api_version: Some("batch/v1".to_owned()),
        kind: Some("Job".to_owned()),
        namespace: job.namespace(),
        name: Some(job.name_any()),
        uid: job.uid(),
        resource_version: job.resource_version(),
        field_path: None,
    }
}

fn start(owner: &CronJob, spec: &CronJobSpec, schedule: &Schedule, jobs: &[Arc<Job>], now: Timestamp, plan: &mut Plan) {
    let last = plan.status.last_schedule_time.as_ref().map(|it| it.0);
    let created = owner.metadata.creation_timestamp.as_ref().map_or(now, |it| it.0);
    let mut from = last.unwrap_or(created);
    let deadline = spec.starting_deadline_seconds.map(SignedDuration::from_secs);
    if let Some(deadline) = deadline {
        from = from.max(now.saturating_sub(deadline).unwrap_or(Timestamp::MIN));
    }
    let Some((due, too_many)) = schedule.last_due(from, now) else {
        return;
    };
    if too_many {
        let message = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
        plan.say(true, "TooManyMissedTimes", message);
    }
    if deadline.is_some_and(|it| due.saturating_add(it).is_ok_and(|end| end < now)) {
        let message = format!("Missed scheduled time to start a job: {due}");
        return plan.say(true, "MissSchedule", message);
    }
    let name = job_name(&owner.name_any(), due);
    let active = plan.status.active.clone().unwrap_or_default();
    if last == Some(due) || jobs.iter().any(|it| it.name_any() == name) {
        return;
    }
    match spec.concurrency_policy.as_deref() {
        Some("Forbid") if !active.is_empty() => {
            let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
            return plan.say(false, "JobAlreadyActive", message);
        }
        Some("Replace") => {
            let running = |job: &&Arc<Job>| active.iter().any(|it| it.uid == job.uid());
            plan.replace = jobs.iter().filter(running).cloned().collect();
        }
        _ => {}
    }
    plan.create = Some((Box::new(job_for(owner, spec, schedule, name, due)), due));
}

fn job_for(owner: &CronJob, spec: &CronJobSpec, schedule: &Schedule, name: String, due: Timestamp) -> Job {
    let meta = spec.job_template.metadata.clone().unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    let shown = due
        .to_zoned(schedule.zone())
        .strftime("%Y-%m-%dT%H:%M:%S%:z")
        .to_string();
    let shown = shown.strip_suffix("+00:00").map(|it| format!("{it}Z")).unwrap_or(shown);
    annotations.insert(SCHEDULED.to_owned(), shown);
    Job {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: owner.namespace(),
            labels: meta.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![reference(owner)]),
            ..ObjectMeta::default()
        },
        spec: spec.job_template.spec.clone(),
        status: None,
    }
}

/// Finished Jobs beyond the limits of history, oldest first.
fn surplus(spec: &CronJobSpec, jobs: &[Arc<Job>]) -> Vec<Arc<Job>> {
    let finished = jobs
        .iter()
        .filter(|it| job::is_finished(it) && it.metadata.deletion_timestamp.is_none());
    let (good, bad): (Vec<_>, Vec<_>) = finished.cloned().partition(|it| job::is_complete(it));
    let mut surplus = Vec::new();
    let limits = [
        (good, spec.successful_jobs_history_limit, 3),
        (bad, spec.failed_jobs_history_limit, 1),
    ];
    for (mut jobs, limit, default) in limits {
        let limit = usize::try_from(limit.unwrap_or(default)).unwrap_or_default();
        let started = |job: &Job| job.status.as_ref().and_then(|it| it.start_time.clone());
        jobs.sort_by_key(|it| (started(it), pods::created(&it.metadata), it.name_any()));
        jobs.truncate(jobs.len().saturating_sub(limit));
        surplus.extend(jobs);
    }
    surplus
}

/// The status after the Job that was due was created.
pub(crate) fn started(mut status: CronJobStatus, job: &Job, due: Timestamp) -> CronJobStatus {
    let active = status.active.get_or_insert_default();
    if !active.iter().any(|it| it.uid == job.uid()) {
        active.push(refer(job));
    }
    status.last_schedule_time = Some(Time(due));
    status
}
