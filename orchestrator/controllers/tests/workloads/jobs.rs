//! Jobs and CronJobs.

use crate::cluster::Cluster;
use k8s_openapi::api::{
    batch::v1::{CronJob, Job},
    core::v1::{Event, Pod},
};
use kube::ResourceExt as _;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

fn pod(fate: &str) -> Value {
    json!({
        "metadata": {"annotations": {"test/fate": fate}},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "main", "image": "image:1"}],
        },
    })
}

fn job_spec(fate: &str, more: Value) -> Value {
    let mut spec = json!({"template": pod(fate)});
    for (field, value) in more.as_object().unwrap() {
        spec[field] = value.clone();
    }
    spec
}

async fn create(cluster: &Cluster, fate: &str, more: Value) {
    let job = json!({"metadata": {"name": "job"}, "spec": job_spec(fate, more)});
    cluster.create::<Job>(job).await;
}

fn has(job: &Job, condition: &str) -> bool {
    let status = job.status.as_ref().and_then(|it| it.conditions.as_ref());
    status
        .into_iter()
        .flatten()
        .any(|it| it.type_ == condition && it.status == "True")
}

fn reason(job: &Job, condition: &str) -> Option<String> {
    let status = job.status.as_ref()?.conditions.as_ref()?;
    status.iter().find(|it| it.type_ == condition)?.reason.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_completes_and_goes_after_its_time() {
    let cluster = Cluster::start(&["a"]).await;
    create(
        &cluster,
        "succeed",
        json!({"completions": 5, "parallelism": 2, "ttlSecondsAfterFinished": 100}),
    )
    .await;
    let job = cluster
        .until_one::<Job>("job", "complete", |it| has(it, "Complete"))
        .await;
    assert!(has(&job, "SuccessCriteriaMet"));
    let status = job.status.unwrap();
    assert_eq!((status.succeeded, status.failed.unwrap_or_default()), (Some(5), 0));
    assert!(status.completion_time.is_some() && status.start_time.is_some());
    let pods = cluster.list::<Pod>().await;
    assert_eq!(pods.len(), 5);
    assert!(pods.iter().all(|it| it.finalizers().is_empty()));
    cluster
        .until::<Event>("said so", |all| {
            all.values().any(|it| it.reason.as_deref() == Some("Completed"))
        })
        .await;
    cluster.clock.advance(Duration::from_secs(101));
    cluster
        .until::<Job>("deleted", |all| {
            all.values().all(|it| it.metadata.deletion_timestamp.is_some())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_job_backs_off_and_gives_up() {
    let cluster = Cluster::start(&["a"]).await;
    create(&cluster, "fail", json!({"backoffLimit": 2})).await;
    for failures in 1..=2 {
        cluster
            .until_one::<Job>("job", "counted", |it| {
                it.status.as_ref().is_some_and(|it| it.failed == Some(failures))
            })
            .await;
        assert_eq!(cluster.list::<Pod>().await.len(), usize::try_from(failures).unwrap());
        cluster.clock.advance(Duration::from_secs(10 << (failures - 1)));
    }
    let job = cluster.until_one::<Job>("job", "failed", |it| has(it, "Failed")).await;
    assert_eq!(reason(&job, "Failed").as_deref(), Some("BackoffLimitExceeded"));
    assert_eq!(reason(&job, "FailureTarget").as_deref(), Some("BackoffLimitExceeded"));
    assert_eq!(job.status.unwrap().failed, Some(3));
    assert!(cluster.list::<Pod>().await.iter().all(|it| it.finalizers().is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_ends_what_runs_and_suspension_pauses_it() {
    let cluster = Cluster::start(&["a"]).await;
    create(
        &cluster,
        "run",
        json!({"suspend": true, "activeDeadlineSeconds": 600, "parallelism": 2}),
    )
    .await;
    cluster
        .until_one::<Job>("job", "suspended", |it| has(it, "Suspended"))
        .await;
    assert!(cluster.list::<Pod>().await.is_empty());
    cluster.patch::<Job>("job", json!({"spec": {"suspend": false}})).await;
    let ready = |job: &Job, number: i32| job.status.as_ref().and_then(|it| it.ready).unwrap_or_default() == number;
    cluster.until_one::<Job>("job", "running", |it| ready(it, 2)).await;
    cluster.patch::<Job>("job", json!({"spec": {"suspend": true}})).await;
    cluster.until::<Pod>("none", BTreeMap::is_empty).await;
    let job = cluster
        .until_one::<Job>("job", "suspended", |it| has(it, "Suspended") && ready(it, 0))
        .await;
    let status = job.status.unwrap();
    assert_eq!(status.failed.unwrap_or_default(), 0);
    assert!(status.start_time.is_none());
    cluster.patch::<Job>("job", json!({"spec": {"suspend": false}})).await;
    cluster
        .until_one::<Job>("job", "running again", |it| ready(it, 2))
        .await;
    cluster.clock.advance(Duration::from_secs(601));
    let job = cluster.until_one::<Job>("job", "failed", |it| has(it, "Failed")).await;
    assert_eq!(reason(&job, "Failed").as_deref(), Some("DeadlineExceeded"));
    cluster.until::<Pod>("none", BTreeMap::is_empty).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_indexed_job_has_every_index_once() {
    let cluster = Cluster::start(&["a"]).await;
    create(
        &cluster,
        "succeed",
        json!({"completionMode": "Indexed", "completions": 4, "parallelism": 3}),
    )
    .await;
    let job = cluster
        .until_one::<Job>("job", "complete", |it| has(it, "Complete"))
        .await;
    assert_eq!(job.status.unwrap().completed_indexes.as_deref(), Some("0-3"));
    let pods = cluster.list::<Pod>().await;
    let index = |pod: &Pod| pod.annotations()["batch.kubernetes.io/job-completion-index"].clone();
    assert_eq!(pods.iter().map(index).collect::<BTreeSet<_>>().len(), 4);
    assert_eq!(pods.len(), 4);
    let spec = pods[0].spec.as_ref().unwrap();
    assert!(
        spec.containers[0]
            .env
            .as_ref()
            .unwrap()
            .iter()
            .any(|it| it.name == "JOB_COMPLETION_INDEX")
    );
    assert_eq!(
        spec.hostname.as_deref(),
        Some(format!("job-{}", index(&pods[0])).as_str())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_in_the_middle_counts_every_pod_once() {
    let mut cluster = Cluster::start(&["a"]).await;
    create(&cluster, "succeed", json!({"completions": 40, "parallelism": 8})).await;
    for part in [5, 15, 25] {
        cluster.until::<Pod>("some", |pods| pods.len() >= part).await;
        cluster.stop_controllers().await;
        cluster.start_controllers();
    }
    let job = cluster
        .until_one::<Job>("job", "complete", |it| has(it, "Complete"))
        .await;
    let status = job.status.unwrap();
    assert_eq!((status.succeeded, status.failed.unwrap_or_default()), (Some(40), 0));
    assert_eq!(cluster.list::<Pod>().await.len(), 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cron_job_starts_when_the_clock_says() {
    let cluster = Cluster::start(&["a"]).await;
    let spec = json!({
        "schedule": "*/10 * * * *",
        "successfulJobsHistoryLimit": 2,
        "jobTemplate": {"spec": job_spec("succeed", json!({}))},
    });
    let cron = cluster
        .create::<CronJob>(json!({"metadata": {"name": "cron"}, "spec": spec}))
        .await;
    let created = cron.creation_timestamp().unwrap().0.as_second();
    let mut seen = BTreeSet::new();
    for _ in 0..4 {
        cluster.clock.advance(Duration::from_secs(600));
        let now = cluster.clock.now().as_second();
        let name = format!("cron-{}", now / 600 * 10);
        assert!(now / 600 * 600 > created);
        cluster
            .until_one::<Job>(&name, "complete", |it| has(it, "Complete"))
            .await;
        seen.insert(name);
    }
    assert_eq!(seen.len(), 4);
    cluster
        .until::<Job>("a history of two", |all| {
            all.len() == 2 && all.keys().all(|it| seen.contains(it))
        })
        .await;
    let cron = cluster
        .until_one::<CronJob>("cron", "nothing active", |it| {
            it.status
                .as_ref()
                .is_some_and(|it| it.active.is_none() && it.last_successful_time.is_some())
        })
        .await;
    let last = cron.status.unwrap().last_schedule_time.unwrap().0.as_second();
    assert_eq!(format!("cron-{}", last / 60), *seen.last().unwrap());
    // Suspended, it starts nothing.
    cluster
        .patch::<CronJob>("cron", json!({"spec": {"suspend": true}}))
        .await;
    let jobs: BTreeSet<_> = cluster.list::<Job>().await.iter().map(Job::name_any).collect();
    cluster.clock.advance(Duration::from_secs(3600));
    cluster
        .patch::<CronJob>(
            "cron",
            json!({"spec": {"suspend": false, "concurrencyPolicy": "Forbid"}}),
        )
        .await;
    cluster
        .until::<Job>("one more", |all| all.keys().any(|it| !jobs.contains(it)))
        .await;
    let fresh = cluster
        .list::<Job>()
        .await
        .iter()
        .map(Job::name_any)
        .filter(|it| !jobs.contains(it))
        .count();
    assert_eq!(fresh, 1, "only the last of the missed times");
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrency_is_forbidden_or_replaces() {
    let cluster = Cluster::start(&["a"]).await;
    let spec = json!({
        "schedule": "*/10 * * * *",
        "concurrencyPolicy": "Forbid",
        "jobTemplate": {"spec": job_spec("run", json!({}))},
    });
    cluster
        .create::<CronJob>(json!({"metadata": {"name": "cron"}, "spec": spec}))
        .await;
    cluster.clock.advance(Duration::from_secs(600));
    cluster.until::<Job>("one", |all| all.len() == 1).await;
    let first = cluster.list::<Job>().await[0].name_any();
    cluster.clock.advance(Duration::from_secs(600));
    cluster
        .until::<Event>("refused", |all| {
            all.values().any(|it| it.reason.as_deref() == Some("JobAlreadyActive"))
        })
        .await;
    assert_eq!(cluster.list::<Job>().await.len(), 1);
    cluster
        .patch::<CronJob>("cron", json!({"spec": {"concurrencyPolicy": "Replace"}}))
        .await;
    cluster
        .until::<Job>("replaced", |all| {
            let live = all.values().filter(|it| it.metadata.deletion_timestamp.is_none());
            let live: Vec<_> = live.map(Job::name_any).collect();
            live.len() == 1 && live[0] != first
        })
        .await;
}
