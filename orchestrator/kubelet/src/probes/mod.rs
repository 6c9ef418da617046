//! Probes: is a container started, alive, ready? Source: `Container.startupProbe`, `.livenessProbe`, `.readinessProbe`.
//!
//! One task per probed container: first the startup probe alone, then the other two side by side. What a try means is
//! counted by [`Counter`]; how a try is made is a [`Check`].

mod action;
pub(crate) mod check;
mod counter;
mod grpc;
pub(crate) mod http;
mod task;

pub use action::{Action, Port};
pub use check::{Check, RuntimeCheck};
pub use counter::Counter;

use crate::cri::Runtime;
use k8s_openapi::api::core::v1::{Container, Pod};
use std::{
    collections::HashMap,
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Which probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Until it succeeds once, no other probe runs.
    Startup,
    /// A container that fails it is restarted.
    Liveness,
    /// A container that fails it gets no traffic.
    Readiness,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        })
    }
}

/// What a probe says after enough tries: `successThreshold` or `failureThreshold` in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Started, alive or ready.
    Success,
    /// Not so.
    Failure,
}

/// What one try showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// It worked.
    Success,
    /// It did not, for this reason.
    Failure(String),
    /// It could not be made, for this reason: it counts as no try.
    Unknown(String),
}

/// What a pod worker must know of a probe: a verdict that has changed, or a try that failed, or both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// `metadata.uid` of the pod.
    pub pod_uid: String,
    /// Name of the container.
    pub container: String,
    /// Its id: an outcome of a container that was replaced meanwhile means nothing.
    pub container_id: String,
    /// Which probe.
    pub kind: Kind,
    /// The new verdict; none: the one before still holds. Before the first one a container with a startup probe is not
    /// started, one with a readiness probe is not ready, and every container is alive.
    pub result: Option<Verdict>,
    /// For an event with reason `Unhealthy`, as `Readiness probe failed: …`; empty after a success.
    pub message: String,
}

/// Runs the probes of this node's containers.
pub struct Prober {
    check: Arc<dyn Check>,
    outcomes: mpsc::Sender<Outcome>,
    tasks: Mutex<HashMap<String, Probed>>,
}

/// One container's task.
struct Probed {
    /// Ends all of its probes.
    stop: CancellationToken,
    /// Ends those that would restart it.
    spare: CancellationToken,
}

impl Drop for Probed {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Prober {
    /// Probes through this runtime and tells the outcomes there.
    #[must_use]
    pub fn new(runtime: Runtime, outcomes: mpsc::Sender<Outcome>) -> Self {
        Self::with(Arc::new(RuntimeCheck::new(runtime)), outcomes)
    }

    /// Probes by other means.
    #[must_use]
    pub fn with(check: Arc<dyn Check>, outcomes: mpsc::Sender<Outcome>) -> Self {
        let tasks = Mutex::default();
        Self { check, outcomes, tasks }
    }

    /// Sees to it that this running container is probed, if it has probes. Idempotent.
    ///
    /// `pod_ip` is where TCP, HTTP and gRPC probes go, `age` the time since the container was started: initial delays count
    /// from there. A container whose status in `pod` says `started` has no need of its startup probe: it was adopted.
    pub fn ensure(&self, pod: &Pod, container: &Container, container_id: &str, pod_ip: Option<IpAddr>, age: Duration) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if tasks.contains_key(container_id) {
            return;
        }
        let Some(plan) = task::Plan::new(pod, container, container_id, pod_ip, age) else {
            return;
        };
        let stop = CancellationToken::new();
        let spare = stop.child_token();
        let run = plan.run(Arc::clone(&self.check), self.outcomes.clone(), spare.clone());
        let stopped = stop.clone();
        tokio::spawn(async move { stopped.run_until_cancelled(run).await });
        tasks.insert(container_id.to_owned(), Probed { stop, spare });
    }

    /// The pod is ending: nothing restarts this container any more, but its readiness still counts.
    pub fn terminating(&self, container_id: &str) {
        let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(probed) = tasks.get(container_id) {
            probed.spare.cancel();
        }
    }

    /// The container has ended, or will now: no more probes, no more outcomes.
    pub fn forget(&self, container_id: &str) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.remove(container_id);
    }
}

#[cfg(test)]
mod tests;
