//! Where the agent meets the source and the dataplane: the only file that names their types.

use ::proxy::{
    config::Config,
    controller::{Kernel, Planning},
    error::ApplyError,
    metrics::{CounterSource, Metrics},
    model::Event,
    status::Probe,
};
use std::{path::Path, sync::Arc};
use tokio::sync::mpsc;

/// A dataplane, ready for its first sync.
pub(crate) struct Parts {
    /// Service map and planner.
    pub(crate) planner: Box<dyn Planning>,
    /// Reconciler and programs.
    pub(crate) kernel: Box<dyn Kernel>,
    /// Counters, readable from any thread.
    pub(crate) counters: Arc<dyn CounterSource>,
    /// What the kernel was asked.
    pub(crate) probes: Vec<Probe>,
}

const MISSING: &str = "a build with the eBPF programs; this binary was built without them";

/// Probes the kernel, loads programs, adopts what an earlier agent left.
///
/// # Errors
/// The kernel lacks something, or refuses.
pub(crate) fn open_dataplane(_config: &Config) -> Result<Parts, ApplyError> {
    Err(ApplyError::Unsupported {
        dataplane: "ebpf",
        feature: MISSING.to_owned(),
    })
}

/// Starts reading the source. It stops when the receiver is dropped.
///
/// # Errors
/// The source cannot be read at all: a bad kubeconfig, a folder that does not exist.
pub(crate) async fn open_source(
    config: &Config,
    _metrics: &Arc<Metrics>,
) -> anyhow::Result<mpsc::Receiver<Vec<Event>>> {
    anyhow::bail!(
        "{:?} cannot be read: this binary was built without sources",
        config.source
    )
}

/// Removes every trace of an agent from the kernel. Idempotent; goes on after an error and reports all of them. Returns
/// what was removed, one line each.
///
/// # Errors
/// Something could not be removed.
pub(crate) fn cleanup(_bpffs: &Path, _cgroup_root: Option<&Path>) -> anyhow::Result<Vec<String>> {
    Err(ApplyError::Unsupported {
        dataplane: "ebpf",
        feature: MISSING.to_owned(),
    }
    .into())
}
