//! Controllers that are about the cluster rather than about workloads.

use crate::frame::Constructor;

/// What these controllers are told.
#[derive(Clone, Debug, Default)]
pub struct Config {}

/// Every controller of this folder.
#[must_use]
pub fn all() -> Vec<Constructor> {
    Vec::new()
}
