//! When a container's probes run.

use super::{Action, Attempt, Check, Counter, Kind, Outcome, Verdict};
use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use std::{net::IpAddr, sync::Arc, time::Duration};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

/// All probes of one container.
pub(super) struct Plan {
    pod_uid: String,
    container: String,
    container_id: String,
    started: Instant,
    startup: Option<Probing>,
    liveness: Option<Probing>,
    readiness: Option<Probing>,
}

/// One probe.
struct Probing {
    kind: Kind,
    /// Or why there is none.
    action: Result<Action, String>,
    counter: Counter,
    initial_delay: Duration,
    period: Duration,
    timeout: Duration,
}

/// Seconds of a field; what is out of its range is its default.
fn seconds(given: Option<i32>, default: u32, least: u32) -> Duration {
    let given = given.and_then(|it| u32::try_from(it).ok()).filter(|it| *it >= least);
    Duration::from_secs(given.unwrap_or(default).into())
}

impl Plan {
    /// None: the container has no probes.
    pub(super) fn new(
        pod: &Pod,
        container: &Container,
        container_id: &str,
        pod_ip: Option<IpAddr>,
        age: Duration,
    ) -> Option<Self> {
        let probing = |kind, probe: &Option<Probe>| {
            let probe = probe.as_ref()?;
            Some(Probing {
                kind,
                action: Action::of_probe(probe, container, pod_ip),
                counter: Counter::new(probe),
                initial_delay: seconds(probe.initial_delay_seconds, 0, 0),
                period: seconds(probe.period_seconds, 10, 1),
                timeout: seconds(probe.timeout_seconds, 1, 1),
            })
        };
        let startup = probing(Kind::Startup, &container.startup_probe);
        let (liveness, readiness) = (
            probing(Kind::Liveness, &container.liveness_probe),
            probing(Kind::Readiness, &container.readiness_probe),
        );
        if startup.is_none() && liveness.is_none() && readiness.is_none() {
            return None;
        }
        let now = Instant::now();
        Some(Self {
            pod_uid: pod.metadata.uid.clone().unwrap_or_default(),
            container: container.name.clone(),
            container_id: container_id.to_owned(),
            started: now.checked_sub(age).unwrap_or(now),
            startup: startup.filter(|_| !was_started(pod, container_id)),
            liveness,
            readiness,
        })
    }

    /// Probes until there is nothing left to find out. `spare` ends startup and liveness probes.
    pub(super) async fn run(self, check: Arc<dyn Check>, outcomes: mpsc::Sender<Outcome>, spare: CancellationToken) {
        let context = Context {
            check: &*check,
            outcomes,
            pod_uid: self.pod_uid,
            container: self.container,
            container_id: self.container_id,
            started: self.started,
        };
        if let Some(startup) = self.startup {
            match spare.run_until_cancelled(context.probe(startup)).await {
                Some(Verdict::Success) => {}
                // It will be restarted: the next container has a task of its own.
                Some(Verdict::Failure) => return,
                // A pod that ends before its container has started: it was never ready, and will not be.
                None => return,
            }
        }
        let liveness = async {
            if let Some(liveness) = self.liveness {
                spare.run_until_cancelled(context.probe(liveness)).await;
            }
        };
        let readiness = async {
            if let Some(readiness) = self.readiness {
                context.probe(readiness).await;
            }
        };
        futures::join!(liveness, readiness);
    }
}

/// Whether the pod's status says that this very container has started. Ids there have the runtime's name in front.
fn was_started(pod: &Pod, container_id: &str) -> bool {
    let status = pod.status.as_ref();
    let lists = status.map(|it| [&it.container_statuses, &it.init_container_statuses]);
    let mut all = lists.into_iter().flatten().flatten().flatten();
    all.any(|it| {
        let id = it.container_id.as_deref().unwrap_or_default();
        id.rsplit_once("://").map_or(id, |(_, id)| id) == container_id && it.started == Some(true)
    })
}

/// What all probes of a container share.
struct Context<'a> {
    check: &'a dyn Check,
    outcomes: mpsc::Sender<Outcome>,
    pod_uid: String,
    container: String,
    container_id: String,
    started: Instant,
}

impl Context<'_> {
    /// Tries again and again; returns with the verdict that ends it: success of a startup probe, failure of one that
    /// restarts. Readiness never ends by itself.
    async fn probe(&self, mut probing: Probing) -> Verdict {
        let first = (self.started + probing.initial_delay).max(Instant::now());
        let mut ticks = tokio::time::interval_at(first, probing.period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let attempt = match &probing.action {
                Ok(action) => self.check.check(&self.container_id, action, probing.timeout).await,
                Err(reason) => Attempt::Unknown(reason.clone()),
            };
            let (tried, message) = match attempt {
                Attempt::Success => (Some(Verdict::Success), String::new()),
                Attempt::Failure(reason) => (
                    Some(Verdict::Failure),
                    format!("{} probe failed: {reason}", probing.kind),
                ),
                Attempt::Unknown(reason) => (None, format!("{} probe errored: {reason}", probing.kind)),
            };
            let result = tried.and_then(|it| probing.counter.record(it));
            if result.is_some() || !message.is_empty() {
                self.tell(probing.kind, result, message).await;
            }
            match (probing.kind, result) {
                (Kind::Startup, Some(verdict)) => return verdict,
                (Kind::Liveness, Some(Verdict::Failure)) => return Verdict::Failure,
                _ => {}
            }
        }
    }

    async fn tell(&self, kind: Kind, result: Option<Verdict>, message: String) {
        let outcome = Outcome {
            pod_uid: self.pod_uid.clone(),
            container: self.container.clone(),
            container_id: self.container_id.clone(),
            kind,
            result,
            message,
        };
        // Nobody listens only when the kubelet stops.
        let _ = self.outcomes.send(outcome).await;
    }
}
