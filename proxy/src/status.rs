//! What the agent says about itself: served as `/status`, printed by `fairlead status`.

use serde::{Deserialize, Serialize};
use std::{net::IpAddr, sync::Arc};
use tokio::sync::watch;

/// The agent's view of itself. New fields may appear; readers ignore those that they do not know.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    /// Name of this node.
    pub node: String,
    /// Dataplane, as in `ebpf`.
    pub mode: String,
    /// Why this dataplane.
    pub mode_reason: String,
    /// When the agent started, RFC 3339.
    pub started: String,
    /// Whether the source has been read once and its objects are in the kernel.
    pub ready: bool,
    /// Source batches fully in the kernel since the start; never falls. A script reads it, changes something, and waits
    /// with `/status?applied_at_least=<value + 1>`.
    pub applied_events: u64,
    /// Hash (FNV-1a, 16 hex digits) of the last of those batches; equal content gives equal text within one version.
    pub last_batch_digest: String,
    /// What the plan holds.
    pub plan: PlanCounts,
    /// Addresses of the node that serve NodePorts.
    pub node_port_addresses: Vec<IpAddr>,
    /// What the kernel was asked, and what it answered.
    pub probes: Vec<Probe>,
    /// Links with programs on them, or that should have.
    pub interfaces: Vec<Interface>,
    /// How full the maps are.
    pub maps: Vec<MapFill>,
    /// The last sync that succeeded.
    pub last_sync: Option<LastSync>,
    /// Why the last sync failed; `None` when it did not.
    pub error: Option<String>,
    /// When the failed sync is tried again, RFC 3339.
    pub retry_at: Option<String>,
    /// Objects (or parts) that are not served, at most 1 000.
    pub skipped: Vec<SkippedObject>,
}

/// Sizes of the plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PlanCounts {
    /// Services with at least one frontend here.
    pub services: usize,
    /// Addresses, ports and protocols that are intercepted.
    pub frontends: usize,
    /// Backends over all service ports; one that serves two ports counts twice.
    pub backends: usize,
    /// Services with `internalTrafficPolicy: Local` and no endpoint here.
    pub no_local_internal: usize,
    /// Services with `externalTrafficPolicy: Local` and no endpoint here.
    pub no_local_external: usize,
}

/// One question to the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Probe {
    /// The feature, as in `tcx`.
    pub name: String,
    /// Whether the kernel has it.
    pub available: bool,
    /// What was seen, and what is done without it.
    pub detail: String,
}

/// One link.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Interface {
    /// Name.
    pub name: String,
    /// Interface index.
    pub ifindex: u32,
    /// `device` or `pod`.
    pub role: String,
    /// How programs are attached, as in `tcx` or `clsact`; empty when they are not.
    pub mode: String,
    /// Why this mode, or why attaching failed.
    pub detail: String,
}

/// How full a map is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MapFill {
    /// Name, as in `FRONTENDS_V4`.
    pub name: String,
    /// Entries in use.
    pub entries: u64,
    /// Size.
    pub max_entries: u64,
    /// The flag that raises it, without dashes; empty if there is none.
    pub flag: String,
}

/// A sync that succeeded.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LastSync {
    /// When it ended, RFC 3339.
    pub at: String,
    /// Seconds it took.
    pub seconds: f64,
    /// Mutations of the kernel.
    pub ops: usize,
    /// Services compared.
    pub services: usize,
    /// Whether the kernel was read first and everything compared.
    pub full: bool,
}

/// An object, or part of one, that is not served.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct SkippedObject {
    /// Which object.
    pub object: String,
    /// Field path, or empty for the whole object.
    pub field: String,
    /// Why, and the remedy.
    pub reason: String,
}

/// Holds the newest [`Status`]: one writer, any readers, who may wait.
#[derive(Clone, Debug)]
pub struct StatusHolder(Arc<watch::Sender<Status>>);

impl StatusHolder {
    /// Holds `status`.
    pub fn new(status: Status) -> Self {
        Self(Arc::new(watch::Sender::new(status)))
    }

    /// Changes it and wakes those who wait.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        self.0.send_modify(change);
    }

    /// The newest.
    pub fn get(&self) -> Status {
        self.0.borrow().clone()
    }

    /// Returns once [`Status::applied_events`] is at least `batches`. Cancel safe; the caller bounds the wait.
    pub async fn applied_at_least(&self, batches: u64) {
        let mut watch = self.0.subscribe();
        // An error means that the sender is gone, which `self` prevents.
        let _ = watch.wait_for(|status| status.applied_events >= batches).await;
    }
}
