//! Jobs: pods until enough of them succeeded, each counted once.

mod end;
mod indexes;
mod plan;
mod pod;
mod policy;
mod tally;
mod ttl;

#[cfg(test)]
mod tests;

pub(crate) use plan::{is_complete, is_finished};
pub(crate) use ttl::controller as ttl_controller;

use super::{batch, pods, replicas::same_status};
use crate::frame::{
    Cache, Controller, Fault, Frame, Key, Next, Outcome, Recorder, Severity, Writer, claim, controller_of, owner_key,
};
use k8s_openapi::api::{
    batch::v1::{Job, JobStatus},
    core::v1::Pod,
};
use kube::{
    ResourceExt as _,
    api::DeleteParams,
    core::{Selector, SelectorExt as _},
};
use plan::{Plan, Wanted};
use serde_json::json;
use std::{collections::BTreeSet, sync::Arc};

const NAME: &str = "job-controller";
/// Keys that are worked on at a time.
const WORKERS: usize = 5;
/// The index of pods with our finalizer by the key of their Job.
const TRACKED: &str = "tracked-by-job";
/// `spec.managedBy` of Jobs that are ours; those of others are let alone.
const MANAGED_BY: &str = "kubernetes.io/job-controller";

/// Of Jobs.
pub(crate) fn controller(frame: &Arc<Frame>) -> Controller {
    let jobs = frame.cache::<Job>();
    let all_pods = frame.cache::<Pod>();
    all_pods.add_index(TRACKED, |it| {
        let key = owner_key::<Job, _>(it).filter(|_| pod::is_tracked(it))?;
        Some(key.to_string())
    });
    let this = Arc::new(Jobs {
        writer: Writer::new(frame.client(NAME)),
        recorder: frame.recorder(NAME),
        frame: Arc::clone(frame),
        jobs: Arc::clone(&jobs),
        pods: Arc::clone(&all_pods),
    });
    let written = this.writer.written().clone();
    let owners = Arc::clone(&jobs);
    Controller::new(NAME, WORKERS, move |key| {
        let this = Arc::clone(&this);
        async move { this.reconcile(&key).await }
    })
    .after(&written)
    .on_own(&jobs)
    .on(&all_pods, move |change, queue| {
        pods::wake_owners(change, queue, &owners, |owner, pod| {
            let labels = pod.metadata.labels.clone().unwrap_or_default();
            selector(owner).is_ok_and(|it| !it.selects_all() && it.matches(&labels))
        });
    })
}

fn selector(job: &Job) -> Result<Selector, Fault> {
    let selector = job.spec.as_ref().and_then(|it| it.selector.clone()).unwrap_or_default();
    Selector::try_from(selector).map_err(|error| Fault::Other(format!("spec.selector: {error}")))
}

struct Jobs {
    writer: Writer,
    recorder: Recorder,
    frame: Arc<Frame>,
    jobs: Arc<Cache<Job>>,
    pods: Arc<Cache<Pod>>,
}

impl Jobs {
    async fn reconcile(&self, key: &Key) -> Outcome {
        let job = self.jobs.get(&key.namespace, &key.name);
        let uid = job.as_ref().and_then(|it| it.uid());
        self.release_orphans(key, uid.as_deref()).await?;
        let Some(job) = job else { return Ok(Next::Change) };
        let manager = job.spec.as_ref().and_then(|it| it.managed_by.as_deref());
        if manager.is_some_and(|it| it != MANAGED_BY) {
            return Ok(Next::Change);
        }
        let selector = selector(&job)?;
        let fits = |pod: &Pod| controller_of(pod).is_some() || pods::is_active(pod);
        let owned = claim(&self.writer, key, &*job, &selector, &self.pods, fits).await?;
        let now = self.frame.config.clock.now();
        let plan = plan::plan(&job, &owned, now);
        self.write_status(key, &job, plan.status.clone()).await?;
        for remark in &plan.remarks {
            let severity = if remark.warning {
                Severity::Warning
            } else {
                Severity::Normal
            };
            self.recorder
                .record(&*job, severity, &remark.reason, remark.message.clone());
        }
        self.act(key, &job, &plan).await?;
        Ok(plan.next.map_or(Next::Change, Next::After))
    }

    /// Pods of a Job of this name that is no more have nobody who counts them.
    async fn release_orphans(&self, key: &Key, uid: Option<&str>) -> Result<(), Fault> {
        let tracked = self.pods.indexed(TRACKED, &key.to_string());
        let is_theirs = |pod: &Pod| controller_of(pod).map(|it| it.uid.as_str()) == uid;
        let orphans = tracked.into_iter().filter(|it| !is_theirs(it));
        batch::each(orphans, |pod| self.release(key, pod)).await
    }

    async fn act(&self, key: &Key, job: &Arc<Job>, plan: &Plan) -> Result<(), Fault> {
        batch::each(plan.release.clone(), |pod| self.release(key, pod)).await?;
        let released: BTreeSet<_> = plan.release.iter().filter_map(|it| it.uid()).collect();
        let discard = |pod: Arc<Pod>| async {
            if pod::is_tracked(&pod) && !released.contains(&pod.uid().unwrap_or_default()) {
                self.release(key, Arc::clone(&pod)).await?;
            }
            self.delete(key, job, pod).await
        };
        batch::each(plan.discard.clone(), discard).await?;
        batch::each(plan.kill.clone(), |pod| self.delete(key, job, pod)).await?;
        let (_, failure) = batch::slow_start(plan.create.clone(), |wanted| self.create(key, job, wanted)).await;
        match failure {
            Some(fault) if !fault.is_namespace_terminating() => Err(fault),
            _ => Ok(()),
        }
    }

    async fn create(&self, key: &Key, job: &Arc<Job>, wanted: Wanted) -> Result<(), Fault> {
        let pod = pod::new(job, wanted.index, wanted.failures);
        match self.writer.create(key, &self.pods, &pod).await {
            Ok(created) => {
                let message = format!("Created pod: {}", created.name_any());
                self.recorder.normal(&**job, "SuccessfulCreate", message);
                Ok(())
            }
            Err(fault) => {
                if !fault.is_namespace_terminating() {
                    let message = format!("Error creating: {}", fault.message());
                    self.recorder.warning(&**job, "FailedCreate", message);
                }
                Err(fault)
            }
        }
    }

    /// Takes our finalizer from a pod.
    async fn release(&self, key: &Key, pod: Arc<Pod>) -> Result<(), Fault> {
        let patch = json!({"metadata": {
            "uid": pod.metadata.uid,
            "$deleteFromPrimitiveList/finalizers": [pod::FINALIZER],
        }});
        match self.writer.patch(key, &self.pods, &Key::of(&*pod), &patch).await {
            // It is gone: nothing holds it any more.
            Err(fault) if !fault.is_not_found() => Err(fault),
            _ => Ok(()),
        }
    }

    async fn delete(&self, key: &Key, job: &Arc<Job>, pod: Arc<Pod>) -> Result<(), Fault> {
        let name = pod.name_any();
        match self
            .writer
            .delete(key, &self.pods, &*pod, DeleteParams::default())
            .await
        {
            Ok(()) => {
                self.recorder
                    .normal(&**job, "SuccessfulDelete", format!("Deleted pod: {name}"));
                Ok(())
            }
            Err(fault) => {
                let message = format!("Error deleting: {}", fault.message());
                self.recorder.warning(&**job, "FailedDelete", message);
                Err(fault)
            }
        }
    }

    async fn write_status(&self, key: &Key, job: &Arc<Job>, status: JobStatus) -> Result<(), Fault> {
        if same_status(&job.status.clone().unwrap_or_default(), &status) {
            return Ok(());
        }
        let new = Job {
            status: Some(status),
            ..(**job).clone()
        };
        // Pods lose their finalizers only after this was written.
        self.writer.replace_status(key, &self.jobs, &new).await.map(|_| ())
    }
}
