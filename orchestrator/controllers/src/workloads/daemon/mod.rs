//! DaemonSets: one pod on every node that fits.

mod node;
mod plan;
mod pod;

#[cfg(test)]
mod tests;

use super::{
    batch, pods,
    replicas::same_status,
    revisions::{self, HashLabel, Missing},
};
use crate::frame::{
    Cache, Change, Controller, Fault, Frame, Key, Next, Outcome, Queue, Recorder, Writer, claim, controller_of,
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus},
    core::v1::{Node, Pod},
};
use kube::{
    ResourceExt as _,
    api::DeleteParams,
    core::{Selector, SelectorExt as _},
};
use plan::{Observed, Plan};
use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

const NAME: &str = "daemon-set-controller";
/// Keys that are worked on at a time.
const WORKERS: usize = 2;
/// How long a failed pod is left at least after the first failure on a node; doubles with each further one.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// How long a failed pod is left at most.
const LONGEST_BACKOFF: Duration = Duration::from_secs(15 * 60);

/// Of DaemonSets.
pub(crate) fn controller(frame: &Arc<Frame>) -> Controller {
    let sets = frame.cache::<DaemonSet>();
    let all_pods = frame.cache::<Pod>();
    let nodes = frame.cache::<Node>();
    let revisions = frame.cache::<ControllerRevision>();
    let this = Arc::new(DaemonSets {
        writer: Writer::new(frame.client(NAME)),
        recorder: frame.recorder(NAME),
        frame: Arc::clone(frame),
        sets: Arc::clone(&sets),
        pods: Arc::clone(&all_pods),
        nodes: Arc::clone(&nodes),
        revisions: Arc::clone(&revisions),
        failures: Mutex::default(),
    });
    let written = this.writer.written().clone();
    let (owners, everyone) = (Arc::clone(&sets), Arc::clone(&sets));
    Controller::new(NAME, WORKERS, move |key| {
        let this = Arc::clone(&this);
        async move { this.reconcile(&key).await }
    })
    .after(&written)
    .needs(&revisions)
    .on_own(&sets)
    .on(&all_pods, move |change, queue| {
        pods::wake_owners(change, queue, &owners, |owner, pod| {
            let labels = pod.metadata.labels.clone().unwrap_or_default();
            selector(owner).is_ok_and(|it| !it.selects_all() && it.matches(&labels))
        });
    })
    .on(&nodes, move |change, queue| wake_all(change, queue, &everyone))
}

/// A node that comes, goes, or gets other labels or taints may concern every set. Heartbeats concern none.
fn wake_all(change: &Change<Node>, queue: &Queue, sets: &Cache<DaemonSet>) {
    if let (Some(old), Some(new)) = (&change.old, &change.new) {
        let taints = |node: &Node| node.spec.as_ref().and_then(|it| it.taints.clone());
        if old.labels() == new.labels() && taints(old) == taints(new) {
            return;
        }
    }
    for set in sets.all() {
        queue.add(Key::of(&*set));
    }
}

fn selector(set: &DaemonSet) -> Result<Selector, Fault> {
    let selector = set.spec.as_ref().map(|it| it.selector.clone()).unwrap_or_default();
    Selector::try_from(selector).map_err(|error| Fault::Other(format!("spec.selector: {error}")))
}

/// A set's uid and a node.
type Place = (String, String);

struct DaemonSets {
    writer: Writer,
    recorder: Recorder,
    frame: Arc<Frame>,
    sets: Arc<Cache<DaemonSet>>,
    pods: Arc<Cache<Pod>>,
    nodes: Arc<Cache<Node>>,
    revisions: Arc<Cache<ControllerRevision>>,
    /// How often in a row a pod failed there, and when the last failed one may be deleted.
    failures: Mutex<HashMap<Place, (u32, Timestamp)>>,
}

impl DaemonSets {
    async fn reconcile(&self, key: &Key) -> Outcome {
        let Some(set) = self.sets.get(&key.namespace, &key.name) else {
            return Ok(Next::Change);
        };
        let selector = selector(&set)?;
        if selector.selects_all() {
            let message = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.recorder.warning(&*set, "SelectingAll", message);
            return Ok(Next::Change);
        }
        let Some(spec) = &set.spec else { return Ok(Next::Change) };
        let collisions = set.status.as_ref().and_then(|it| it.collision_count);
        let fresh = revisions::fresh(&*set, &spec.template, HashLabel(pod::HASH), collisions);
        let history = revisions::sync(&self.writer, key, &*set, &selector, &self.revisions, fresh).await;
        let history = match history {
            Ok(history) => history,
            Err(Missing::Fault(fault)) => return Err(fault),
            Err(Missing::Collision(fault)) => {
                let mut status = set.status.clone().unwrap_or_default();
                status.collision_count = Some(collisions.unwrap_or_default() + 1);
                self.write_status(key, &set, status).await?;
                return Err(fault);
            }
        };
        let hash = pods::label(&history.update.metadata, pod::HASH)
            .unwrap_or_default()
            .to_owned();
        let fits = |pod: &Pod| controller_of(pod).is_some() || pods::is_active(pod);
        let owned = claim(&self.writer, key, &*set, &selector, &self.pods, fits).await?;
        let now = self.frame.config.clock.now();
        let (backing_off, until) = self.backing_off(&set, &owned, now);
        let observed = Observed {
            set: &set,
            nodes: &self.nodes.all(),
            pods: &owned,
            hash: &hash,
            backing_off: &backing_off,
        };
        let plan = plan::plan(observed, now);
        let acted = self.act(key, &set, &plan, &hash).await;
        self.write_status(key, &set, plan.status).await?;
        acted?;
        let hashes = owned.iter().filter_map(|it| pods::label(&it.metadata, pod::HASH));
        let in_use: BTreeSet<String> = hashes.map(|it| format!("{}-{it}", key.name)).collect();
        let limit = spec.revision_history_limit;
        revisions::truncate(&self.writer, key, &self.revisions, &history, limit, &in_use).await?;
        let next = plan.next.into_iter().chain(until).min();
        Ok(next.map_or(Next::Change, Next::After))
    }

    /// Nodes whose failed pod is left for a while, and how long the first of them. Counts new failures.
    fn backing_off(&self, set: &DaemonSet, owned: &[Arc<Pod>], now: Timestamp) -> (BTreeSet<String>, Option<Duration>) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let uid = set.uid().unwrap_or_default();
        let mut nodes = BTreeSet::new();
        let mut first: Option<Duration> = None;
        for pod in owned
            .iter()
            .filter(|it| pods::phase(it) == "Failed" && !pods::is_terminating(it))
        {
            let Some(node) = pod::target(pod) else { continue };
            // The first failure is mended at once.
            let (_, until) = *failures.entry((uid.clone(), node.to_owned())).or_insert((0, now));
            if until > now {
                nodes.insert(node.to_owned());
                let left = Duration::try_from(until.duration_since(now)).unwrap_or_default();
                first = Some(first.map_or(left, |it| it.min(left)));
            }
        }
        // A node that has had no failure for twice the longest time starts anew.
        let old = SignedDuration::try_from(2 * LONGEST_BACKOFF).unwrap_or(SignedDuration::MAX);
        failures.retain(|_, (_, until)| now.duration_since(*until) < old);
        (nodes, first)
    }

    fn note_failure(&self, set: &DaemonSet, node: &str) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.frame.config.clock.now();
        let place = (set.uid().unwrap_or_default(), node.to_owned());
        let (count, until) = failures.entry(place).or_insert((0, now));
        let delay = FIRST_BACKOFF.saturating_mul(1 << (*count).min(16)).min(LONGEST_BACKOFF);
        *count += 1;
        let delay = SignedDuration::try_from(delay).unwrap_or(SignedDuration::MAX);
        *until = now.saturating_add(delay).unwrap_or(Timestamp::MAX);
    }

    async fn act(&self, key: &Key, set: &Arc<DaemonSet>, plan: &Plan, hash: &str) -> Result<(), Fault> {
        let create = |node: String| self.create(key, set, node, hash);
        let (_, failure) = batch::slow_start(plan.create.clone(), create).await;
        match failure {
            Some(fault) if fault.is_namespace_terminating() => return Ok(()),
            Some(fault) => return Err(fault),
            None => {}
        }
        batch::each(plan.delete.clone(), |(node, pod)| self.delete(key, set, node, pod)).await
    }

    async fn create(&self, key: &Key, set: &Arc<DaemonSet>, node: String, hash: &str) -> Result<(), Fault> {
        let pod = pod::new(set, &node, hash);
        match self.writer.create(key, &self.pods, &pod).await {
            Ok(created) => {
                let message = format!("Created pod: {}", created.name_any());
                self.recorder.normal(&**set, "SuccessfulCreate", message);
                Ok(())
            }
            Err(fault) => {
                if !fault.is_namespace_terminating() {
                    let message = format!("Error creating: {}", fault.message());
                    self.recorder.warning(&**set, "FailedCreate", message);
                }
                Err(fault)
            }
        }
    }

    async fn delete(&self, key: &Key, set: &Arc<DaemonSet>, node: String, pod: Arc<Pod>) -> Result<(), Fault> {
        let name = pod.name_any();
        let found = match pods::phase(&pod) {
            "Failed" => Some(("FailedDaemonPod", "failed")),
            "Succeeded" => Some(("SucceededDaemonPod", "succeeded")),
            _ => None,
        };
        if let Some((reason, how)) = found {
            let message = format!(
                "Found {how} daemon pod {}/{name} on node {node}, will try to kill it",
                key.namespace
            );
            if how == "failed" {
                self.note_failure(set, &node);
                self.recorder.warning(&**set, reason, message);
            } else {
                self.recorder.normal(&**set, reason, message);
            }
        }
        match self
            .writer
            .delete(key, &self.pods, &*pod, DeleteParams::default())
            .await
        {
            Ok(()) => {
                self.recorder
                    .normal(&**set, "SuccessfulDelete", format!("Deleted pod: {name}"));
                Ok(())
            }
            Err(fault) => {
                let message = format!("Error deleting: {}", fault.message());
                self.recorder.warning(&**set, "FailedDelete", message);
                Err(fault)
            }
        }
    }

    async fn write_status(&self, key: &Key, set: &Arc<DaemonSet>, status: DaemonSetStatus) -> Result<(), Fault> {
        if same_status(&set.status.clone().unwrap_or_default(), &status) {
            return Ok(());
        }
        let new = DaemonSet {
            status: Some(status),
            ..(**set).clone()
        };
        match self.writer.replace_status(key, &self.sets, &new).await {
            Err(fault) if !fault.is_not_found() => Err(fault),
            _ => Ok(()),
        }
    }
}
