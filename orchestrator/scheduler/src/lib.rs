//! The scheduler: chooses a node for every pod that has none.

use anyhow::Result;
use kube::Client;
use tokio_util::sync::CancellationToken;

/// What a scheduler is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Pods with another `spec.schedulerName` are somebody else's.
    pub name: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "default-scheduler".to_owned(),
        }
    }
}
