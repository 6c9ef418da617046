//! Controllers that make pods: of Deployments, ReplicaSets, DaemonSets, StatefulSets, Jobs and CronJobs.

use crate::frame::Constructor;

/// Every controller of this folder.
#[must_use]
pub fn all() -> Vec<Constructor> {
    Vec::new()
}
