//! Controllers that make pods: of Deployments, ReplicaSets, DaemonSets, StatefulSets, Jobs and CronJobs.
//!
//! Each folder has the same parts: what is decided is pure (`plan.rs` and its like), what is done is in `mod.rs`.

mod batch;
mod daemon;
mod deployment;
mod hash;
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
        daemon::controller,
        deployment::controller,
        replicas::replica_sets,
        replicas::replication_controllers,
        stateful::controller,
    ]
}
