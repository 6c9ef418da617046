//! The one task that owns the scheduler's state: it listens, decides, and has others write.

use crate::{
    Config, act,
    events::Teller,
    pod::{Key, PodInfo},
    scheduler::{Decision, Input, Kind, Scheduler},
    watch::{self, Heard, KINDS, PodStatus},
};
use anyhow::Result;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::mpsc, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

/// What watches have said and we have not heard yet. Watches wait when it is full.
const HEARD: usize = 1024;
/// How much is heard between two decisions, so that a flood of changes cannot keep pods waiting.
const HEARD_AT_ONCE: usize = 256;
/// Requests that are under way at one time.
const UNDER_WAY: usize = 128;

/// What came of a request.
enum Done {
    Bound {
        pod: Arc<PodInfo>,
        node: String,
        waited: Duration,
        took: Duration,
        result: kube::Result<()>,
    },
    Told,
    Evicted {
        victim: Arc<PodInfo>,
        note: String,
        result: kube::Result<()>,
    },
}

struct Loop {
    config: Config,
    client: Client,
    scheduler: Scheduler,
    teller: Teller,
    started: Instant,
    statuses: HashMap<Key, PodStatus>,
    missing: BTreeSet<Kind>,
    requests: JoinSet<Done>,
}

/// Gives nodes to pods until `stop` is cancelled.
///
/// # Errors
/// None that the API server causes: what it refuses is tried again.
pub async fn run(config: Config, client: Client, stop: CancellationToken) -> Result<()> {
    let (said, mut heard) = mpsc::channel(HEARD);
    let (teller, telling) = Teller::new(client.clone(), config.name.clone(), config.metrics.clone());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        telling.await;
        None
    });
    for kind in KINDS {
        let watch = watch::run(kind, client.clone(), said.clone());
        tasks.spawn(async move { Some(watch.await) });
    }
    let mut state = Loop {
        scheduler: Scheduler::new(&config.name, config.seed.unwrap_or_else(rand::random)),
        teller,
        started: Instant::now(),
        statuses: HashMap::new(),
        missing: KINDS.into_iter().collect(),
        requests: JoinSet::new(),
        config,
        client,
    };
    let mut patience = HEARD_AT_ONCE;
    loop {
        let decides =
            state.missing.is_empty() && state.requests.len() < UNDER_WAY && !state.scheduler.queue().is_idle();
        let tick = state.scheduler.next_tick().map(|it| state.started + it);
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            Some(done) = state.requests.join_next() => match done {
                Ok(done) => state.done(done),
                Err(error) => tracing::error!(error = %error, "a request of the scheduler ended early"),
            },
            Some(it) = heard.recv(), if patience > 0 || !decides => {
                patience = patience.saturating_sub(1);
                state.hear(it);
            }
            () = tokio::time::sleep_until(tick.unwrap_or(state.started)), if tick.is_some() && !decides => {
                patience = HEARD_AT_ONCE;
                state.scheduler.tick(state.started.elapsed());
            }
            // Others get their turn between two decisions.
            () = tokio::task::yield_now(), if decides => {
                patience = HEARD_AT_ONCE;
                state.decide();
            }
            Some(ended) = tasks.join_next() => anyhow::bail!("a task of the scheduler ended: {ended:?}; start it again"),
        }
        state.config.metrics.pending(state.scheduler.lengths());
    }
}

impl Loop {
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::Status(key, status) => drop(self.statuses.insert(key, status)),
            Heard::Synced(kind) => {
                if self.missing.remove(&kind) && self.missing.is_empty() {
                    tracing::info!(nodes = self.scheduler.world().nodes().count(), "scheduling");
                }
            }
            Heard::Malformed(reference, why) => self.malformed(*reference, why),
            Heard::Input(input) => {
                match &input {
                    Input::Pod(pod, _) if pod.node.is_some() => drop(self.statuses.remove(&pod.key)),
                    Input::Gone(Kind::Pod, key) => drop(self.statuses.remove(key)),
                    Input::Only(Kind::Pod, keys) => self.statuses.retain(|key, _| keys.contains(key)),
                    _ => {}
                }
                let now = self.now();
                self.scheduler.apply(input, now);
            }
        }
    }

    fn malformed(&self, reference: ObjectReference, why: String) {
        self.config.metrics.found_malformed();
        tracing::warn!(
            kind = reference.kind,
            namespace = reference.namespace,
            name = reference.name,
            why,
            "an object could not be read wholly; what was not read counts for nothing"
        );
        self.teller.tell(reference, true, ("Malformed", "Scheduling"), why);
    }

    fn decide(&mut self) {
        let began = Instant::now();
        let now = self.now();
        let Some(decision) = self.scheduler.step(now) else {
            return;
        };
        self.config.metrics.decided(began.elapsed());
        let client = self.client.clone();
        match decision {
            Decision::Bind { pod, node, waited } => drop(self.requests.spawn(async move {
                let began = Instant::now();
                let result = act::bind(&client, &pod, &node).await;
                Done::Bound {
                    pod,
                    node,
                    waited,
                    took: began.elapsed(),
                    result,
                }
            })),
            Decision::Unfit {
                pod,
                message,
                reason,
                nomination,
                victims,
            } => {
                let error = reason == "SchedulerError";
                self.config
                    .metrics
                    .attempt(if error { "error" } else { "unschedulable" });
                if !pod.faults.is_empty() {
                    self.config.metrics.found_malformed();
                }
                self.refuse(&pod, reason, message, &nomination);
                for victim in victims {
                    let (client, name) = (client.clone(), self.config.name.clone());
                    let note = format!(
                        "Preempted by pod {} on node {}",
                        pod.uid,
                        victim.node.as_deref().unwrap_or("")
                    );
                    self.config.metrics.victim();
                    self.requests.spawn(async move {
                        let result = act::evict(&client, &name, &victim).await;
                        Done::Evicted { victim, note, result }
                    });
                }
            }
        }
    }

    /// Tells why a pod got no node: by event, and by condition.
    fn refuse(&mut self, pod: &Arc<PodInfo>, reason: &str, message: String, nomination: &crate::scheduler::Nomination) {
        let what = ("FailedScheduling", "Scheduling");
        self.teller.tell(act::reference(pod), true, what, message.clone());
        let status = self.statuses.entry(pod.key.clone()).or_default();
        let Some(patch) = act::unscheduled(status, reason, &message, nomination) else {
            return;
        };
        tracing::info!(pod = %pod.key, message, "no node");
        // As if the API server had said so: a patch that fails is made up for by the next attempt's.
        *status = PodStatus {
            scheduled: Some("False".to_owned()),
            reason: reason.to_owned(),
            message,
        };
        let (client, pod) = (self.client.clone(), Arc::clone(pod));
        self.requests.spawn(async move {
            if let Err(error) = act::patch_status(&client, &pod.key, &pod.uid, patch).await {
                tracing::warn!(pod = %pod.key, error = %error, "the condition of a pod could not be written");
            }
            Done::Told
        });
    }

    fn done(&mut self, done: Done) {
        let now = self.now();
        match done {
            Done::Told => {}
            Done::Bound {
                pod,
                node,
                waited,
                took,
                result: Ok(()),
            } => {
                self.config.metrics.bound(waited + took, took);
                tracing::debug!(pod = %pod.key, node, "bound");
                let note = format!("Successfully assigned {} to {node}", pod.key);
                self.teller
                    .tell(act::reference(&pod), false, ("Scheduled", "Binding"), note);
            }
            Done::Bound {
                pod,
                node,
                result: Err(error),
                ..
            } => {
                self.scheduler.refused(&pod.key, &pod.uid, now);
                if matches!(&error, kube::Error::Api(status) if status.code == 404) {
                    // Deleted meanwhile; its watch will say so.
                    return;
                }
                self.config.metrics.attempt("error");
                let message = format!("binding rejected: {error}");
                tracing::warn!(pod = %pod.key, node, message, "a binding was refused");
                self.refuse(&pod, "SchedulerError", message, &crate::scheduler::Nomination::Keep);
            }
            Done::Evicted {
                victim,
                note,
                result: Ok(()),
            } => self
                .teller
                .tell(act::reference(&victim), false, ("Preempted", "Preempting"), note),
            Done::Evicted {
                victim,
                result: Err(error),
                ..
            } => {
                tracing::warn!(pod = %victim.key, error = %error, "a pod that should make way could not be deleted");
                self.scheduler.stayed(&victim.key);
            }
        }
    }
}
