//! Schedules over time.

use super::plan::{Plan, job_name, plan, started};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use kube::ResourceExt as _;
use serde_json::{Value, json};
use std::sync::Arc;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn cron(more: Value) -> CronJob {
    let mut spec = json!({
        "schedule": "0 * * * *",
        "jobTemplate": {"metadata": {"labels": {"a": "b"}}, "spec": {"template": {"spec": {"containers": []}}}},
    });
    for (field, value) in more.as_object().unwrap() {
        spec[field] = value.clone();
    }
    let meta = json!({"name": "c", "namespace": "n", "uid": "c", "creationTimestamp": "2026-01-01T00:30:00Z"});
    serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap()
}

fn job(name: &str, condition: Option<&str>, start: &str) -> Arc<Job> {
    let conditions = condition.map(|it| json!([{"type": it, "status": "True"}]));
    let status = json!({"conditions": conditions, "startTime": start, "completionTime": start});
    let meta = json!({"name": name, "namespace": "n", "uid": name});
    let job: Job = serde_json::from_value(json!({"metadata": meta, "status": status})).unwrap();
    Arc::new(job)
}

fn reasons(plan: &Plan) -> Vec<&str> {
    plan.remarks.iter().map(|it| it.reason).collect()
}

#[test]
fn it_starts_once_per_time() {
    let mut owner = cron(json!({}));
    let early = plan(&owner, &[], at("2026-01-01T00:59:00Z"));
    assert!(early.create.is_none());
    assert_eq!(early.next.unwrap().as_secs(), 60);
    let now = at("2026-01-01T01:00:05Z");
    let due = plan(&owner, &[], now);
    let (made, time) = due.create.unwrap();
    assert_eq!(time, at("2026-01-01T01:00:00Z"));
    assert_eq!(made.name_any(), format!("c-{}", time.as_second() / 60));
    assert_eq!(made.name_any(), job_name("c", now));
    assert_eq!(
        made.annotations()["batch.kubernetes.io/cronjob-scheduled-timestamp"],
        "2026-01-01T01:00:00Z"
    );
    assert_eq!(made.labels()["a"], "b");
    // The status was lost: the Job is known by its name.
    let running = job(&made.name_any(), None, "2026-01-01T01:00:05Z");
    let again = plan(&owner, &[Arc::clone(&running)], now);
    assert!(again.create.is_none());
    assert_eq!(again.status.active.as_ref().map(Vec::len), Some(1));
    // The Job was deleted: it is not made again for the same time.
    owner.status = Some(started(due.status, &running, time));
    let after = plan(&owner, &[], now);
    assert!(after.create.is_none());
    assert_eq!(reasons(&after), ["MissingJob"]);
    assert!(after.status.active.is_none());
}

#[test]
fn times_are_shown_in_their_zone() {
    let owner = cron(json!({"timeZone": "Asia/Kolkata"}));
    let (made, _) = plan(&owner, &[], at("2026-01-01T01:30:00Z")).create.unwrap();
    let shown = &made.annotations()["batch.kubernetes.io/cronjob-scheduled-timestamp"];
    assert_eq!(shown, "2026-01-01T07:00:00+05:30");
}

#[test]
fn concurrency_deadlines_and_suspension() {
    let now = at("2026-01-01T01:00:05Z");
    let busy = [job("c-1", None, "2026-01-01T00:00:00Z")];
    let of = |more: Value, jobs: &[Arc<Job>], now: Timestamp| plan(&cron(more), jobs, now);
    let forbidden = of(json!({"concurrencyPolicy": "Forbid"}), &busy, now);
    assert_eq!(
        (forbidden.create.is_some(), reasons(&forbidden)),
        (false, vec!["JobAlreadyActive"])
    );
    let replacing = of(json!({"concurrencyPolicy": "Replace"}), &busy, now);
    assert_eq!((replacing.create.is_some(), replacing.replace.len()), (true, 1));
    assert!(of(json!({"concurrencyPolicy": "Allow"}), &busy, now).create.is_some());
    assert!(of(json!({"suspend": true}), &[], now).create.is_none());
    let late = now + SignedDuration::from_mins(10);
    assert!(of(json!({"startingDeadlineSeconds": 30}), &[], late).create.is_none());
    assert!(of(json!({"startingDeadlineSeconds": 3000}), &[], late).create.is_some());
    let much_later = of(json!({}), &[], now + SignedDuration::from_hours(500));
    assert_eq!(
        (much_later.create.is_some(), reasons(&much_later)),
        (true, vec!["TooManyMissedTimes"])
    );
    let bad = of(json!({"schedule": "nonsense"}), &[], now);
    assert_eq!(
        (bad.create.is_some(), reasons(&bad)),
        (false, vec!["UnparseableSchedule"])
    );
    let nowhere = of(json!({"timeZone": "Mars/Olympus"}), &[], now);
    assert_eq!(reasons(&nowhere), ["UnknownTimeZone"]);
}

#[test]
fn history_has_limits() {
    let jobs: Vec<_> = (0..6)
        .map(|it| {
            let end = if it % 2 == 0 { "Complete" } else { "Failed" };
            job(&format!("c-{it}"), Some(end), &format!("2026-01-01T00:0{it}:00Z"))
        })
        .collect();
    let forgotten = |more: Value| -> Vec<String> {
        let plan = plan(&cron(more), &jobs, at("2026-01-01T00:40:00Z"));
        assert_eq!(plan.status.last_successful_time.unwrap().0, at("2026-01-01T00:04:00Z"));
        plan.forget.iter().map(|it| it.name_any()).collect()
    };
    assert_eq!(forgotten(json!({})), ["c-1", "c-3"]);
    let limits = json!({"successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 0});
    assert_eq!(forgotten(limits), ["c-0", "c-2", "c-1", "c-3", "c-5"]);
}
