//! Controllers that make pods: of Deployments, ReplicaSets, DaemonSets, StatefulSets, Jobs and CronJobs.
//!
//! Each folder has the same parts: what is decided is pure (`plan.rs` and its like), what is done is in `mod.rs`.

mod batch;
mod cron;
mod daemon;
mod deployment;
mod hash;
mod job;
mod numbers;
mod pods;
mod replicas;
mod revisions;
mod stateful;

use crate::frame::Constructor;

/// Every controller of this folder.
#[must_use]
pub fn all() -> Vec<Constructor> {
    vec![
        cron::controller,
        daemon::controller,
        deployment::controller,
        job::controller,
        job::ttl_controller,
        replicas::replica_sets,
        replicas::replication_controllers,
        stateful::controller,
    ]
}
