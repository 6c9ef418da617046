//! Keeps the registry in step.

use crate::core::ApiServer;
use std::sync::Arc;

/// Told about changes.
#[derive(Default)]
pub struct Watcher;

impl Watcher {
    /// Changed.
    pub fn changed(&self) {}
}

/// Load.
pub async fn load(_: &Arc<ApiServer>) {}

/// Run.
pub async fn run(_: Arc<ApiServer>) {}
