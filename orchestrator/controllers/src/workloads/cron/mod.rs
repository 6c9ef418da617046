//! CronJobs: a Job whenever the schedule says.

mod plan;
mod schedule;

#[cfg(test)]
mod tests;

use super::replicas::same_status;
use crate::frame::{
    Cache, Controller, Fault, Frame, Key, Next, Outcome, Recorder, Severity, Writer, controller_of, owner_key,
};
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use kube::{ResourceExt as _, api::DeleteParams};
use std::sync::Arc;

const NAME: &str = "cronjob-controller";
/// Keys that are worked on at a time.
const WORKERS: usize = 5;

/// Of CronJobs.
pub(crate) fn controller(frame: &Arc<Frame>) -> Controller {
    let crons = frame.cache::<CronJob>();
    let jobs = frame.cache::<Job>();
    let this = Arc::new(CronJobs {
        writer: Writer::new(frame.client(NAME)),
        recorder: frame.recorder(NAME),
        frame: Arc::clone(frame),
        crons: Arc::clone(&crons),
        jobs: Arc::clone(&jobs),
    });
    let written = this.writer.written().clone();
    Controller::new(NAME, WORKERS, move |key| {
        let this = Arc::clone(&this);
        async move { this.reconcile(&key).await }
    })
    .after(&written)
    .on_own(&crons)
    .on(&jobs, |change, queue| {
        for key in change.sides().filter_map(|it| owner_key::<CronJob, _>(&**it)) {
            queue.add(key);
        }
    })
}

struct CronJobs {
    writer: Writer,
    recorder: Recorder,
    frame: Arc<Frame>,
    crons: Arc<Cache<CronJob>>,
    jobs: Arc<Cache<Job>>,
}

impl CronJobs {
    async fn reconcile(&self, key: &Key) -> Outcome {
        let Some(cron) = self.crons.get(&key.namespace, &key.name) else {
            return Ok(Next::Change);
        };
        let jobs = self.jobs.controlled_by(&cron.uid().unwrap_or_default());
        let plan = plan::plan(&cron, &jobs, self.frame.config.clock.now());
        for remark in &plan.remarks {
            let severity = if remark.warning {
                Severity::Warning
            } else {
                Severity::Normal
            };
            self.recorder
                .record(&*cron, severity, remark.reason, remark.message.clone());
        }
        for job in plan.replace.iter().chain(&plan.forget) {
            self.writer
                .delete(key, &self.jobs, &**job, DeleteParams::background())
                .await?;
            let message = format!("Deleted job {}", job.name_any());
            self.recorder.normal(&*cron, "SuccessfulDelete", message);
        }
        let mut status = plan.status;
        let mut failure = None;
        if let Some((job, due)) = plan.create {
            match self.create(key, &cron, &job).await {
                Ok(job) => status = plan::started(status, &job, due),
                Err(fault) => failure = Some(fault),
            }
        }
        self.write_status(key, &cron, status).await?;
        match failure {
            Some(fault) if !fault.is_namespace_terminating() => Err(fault),
            _ => Ok(plan.next.map_or(Next::Change, Next::After)),
        }
    }

    async fn create(&self, key: &Key, cron: &Arc<CronJob>, job: &Job) -> Result<Job, Fault> {
        let name = job.name_any();
        match self.writer.create(key, &self.jobs, job).await {
            Ok(created) => {
                self.recorder
                    .normal(&**cron, "SuccessfulCreate", format!("Created job {name}"));
                Ok(created)
            }
            Err(fault) if fault.is_already_exists() => {
                let there = self.writer.read::<Job>(&key.namespace, &name).await?;
                let ours = controller_of(&there).map(|it| &it.uid) == cron.metadata.uid.as_ref();
                if ours { Ok(there) } else { Err(fault) }
            }
            Err(fault) => {
                if !fault.is_namespace_terminating() {
                    let message = format!("Error creating job: {}", fault.message());
                    self.recorder.warning(&**cron, "FailedCreate", message);
                }
                Err(fault)
            }
        }
    }

    async fn write_status(&self, key: &Key, cron: &Arc<CronJob>, status: CronJobStatus) -> Result<(), Fault> {
        if same_status(&cron.status.clone().unwrap_or_default(), &status) {
            return Ok(());
        }
        let new = CronJob {
            status: Some(status),
            ..(**cron).clone()
        };
        match self.writer.replace_status(key, &self.crons, &new).await {
            Err(fault) if !fault.is_not_found() => Err(fault),
            _ => Ok(()),
        }
    }
}
