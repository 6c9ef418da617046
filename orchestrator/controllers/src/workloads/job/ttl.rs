//! `spec.ttlSecondsAfterFinished`: Jobs that go some time after they finished.

use super::plan::{condition, is_finished};
use crate::frame::{Cache, Controller, Frame, Key, Next, Outcome, Writer};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use kube::api::DeleteParams;
use std::{sync::Arc, time::Duration};

const NAME: &str = "ttl-after-finished-controller";
/// Keys that are worked on at a time.
const WORKERS: usize = 5;

/// Of finished Jobs.
pub(crate) fn controller(frame: &Arc<Frame>) -> Controller {
    let jobs = frame.cache::<Job>();
    let writer = Writer::new(frame.client(NAME));
    let written = writer.written().clone();
    let (cache, clock) = (Arc::clone(&jobs), frame.clock());
    Controller::new(NAME, WORKERS, move |key| {
        let (cache, writer, clock) = (Arc::clone(&cache), writer.clone(), clock.clone());
        async move { reconcile(&key, &cache, &writer, clock.now()).await }
    })
    .after(&written)
    .on_own(&jobs)
}

async fn reconcile(key: &Key, jobs: &Arc<Cache<Job>>, writer: &Writer, now: Timestamp) -> Outcome {
    let Some(job) = jobs.get(&key.namespace, &key.name) else {
        return Ok(Next::Change);
    };
    let Some(end) = expires_at(&job) else {
        return Ok(Next::Change);
    };
    if let Ok(left) = Duration::try_from(end.duration_since(now))
        && !left.is_zero()
    {
        return Ok(Next::After(left));
    }
    // The cache may not know yet that somebody gave it more time.
    match writer.read::<Job>(&key.namespace, &key.name).await {
        Ok(fresh) if fresh.metadata.uid == job.metadata.uid && expires_at(&fresh) == Some(end) => {}
        Ok(_) => return Ok(Next::Change),
        Err(fault) if fault.is_not_found() => return Ok(Next::Change),
        Err(fault) => return Err(fault),
    }
    writer.delete(key, jobs, &*job, DeleteParams::foreground()).await?;
    Ok(Next::Change)
}

/// When a finished Job goes, if it ever does by itself.
fn expires_at(job: &Job) -> Option<Timestamp> {
    let ttl_s = job.spec.as_ref()?.ttl_seconds_after_finished?;
    if !is_finished(job) || job.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let status = job.status.as_ref()?;
    let last = condition(status, "Complete").or_else(|| condition(status, "Failed"))?;
    let finished = last.last_transition_time.as_ref()?.0;
    finished.checked_add(SignedDuration::from_secs(ttl_s.into())).ok()
}
