//! StatefulSets: pods with names, an order, and storage of their own.

mod plan;
mod pod;

#[cfg(test)]
mod tests;

use super::{
    batch, pods,
    replicas::same_status,
    revisions::{self, HashLabel, Missing},
};
use crate::frame::{Cache, Controller, Fault, Frame, Key, Next, Outcome, Recorder, Writer, claim};
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus},
    core::v1::{PersistentVolumeClaim, Pod},
};
use kube::{
    ResourceExt as _,
    api::DeleteParams,
    core::{Selector, SelectorExt as _},
};
use plan::{Action, Observed, Plan, Revision};
use std::{collections::BTreeSet, sync::Arc};

const NAME: &str = "statefulset-controller";
/// Keys that are worked on at a time.
const WORKERS: usize = 5;
/// The label with a revision's hash.
const HASH: HashLabel = HashLabel("controller.kubernetes.io/hash");

/// Of StatefulSets.
pub(crate) fn controller(frame: &Arc<Frame>) -> Controller {
    let sets = frame.cache::<StatefulSet>();
    let all_pods = frame.cache::<Pod>();
    let claims = frame.cache::<PersistentVolumeClaim>();
    let revisions = frame.cache::<ControllerRevision>();
    let this = Arc::new(StatefulSets {
        writer: Writer::new(frame.client(NAME)),
        recorder: frame.recorder(NAME),
        frame: Arc::clone(frame),
        sets: Arc::clone(&sets),
        pods: Arc::clone(&all_pods),
        claims: Arc::clone(&claims),
        revisions: Arc::clone(&revisions),
    });
    let written = this.writer.written().clone();
    let owners = Arc::clone(&sets);
    Controller::new(NAME, WORKERS, move |key| {
        let this = Arc::clone(&this);
        async move { this.reconcile(&key).await }
    })
    .after(&written)
    .needs(&revisions)
    .needs(&claims)
    .on_own(&sets)
    .on(&all_pods, move |change, queue| {
        pods::wake_owners(change, queue, &owners, |owner, pod| {
            let labels = pod.metadata.labels.clone().unwrap_or_default();
            is_member(owner, pod) && selector(owner).is_ok_and(|it| it.matches(&labels))
        });
    })
}

fn is_member(set: &StatefulSet, pod: &Pod) -> bool {
    pod::ordinal(&set.name_any(), &pod.name_any()).is_some()
}

fn selector(set: &StatefulSet) -> Result<Selector, Fault> {
    let selector = set.spec.as_ref().map(|it| it.selector.clone()).unwrap_or_default();
    Selector::try_from(selector).map_err(|error| Fault::Other(format!("spec.selector: {error}")))
}

struct StatefulSets {
    writer: Writer,
    recorder: Recorder,
    frame: Arc<Frame>,
    sets: Arc<Cache<StatefulSet>>,
    pods: Arc<Cache<Pod>>,
    claims: Arc<Cache<PersistentVolumeClaim>>,
    revisions: Arc<Cache<ControllerRevision>>,
}

impl StatefulSets {
    async fn reconcile(&self, key: &Key) -> Outcome {
        let Some(set) = self.sets.get(&key.namespace, &key.name) else {
            return Ok(Next::Change);
        };
        let selector = selector(&set)?;
        let Some(spec) = &set.spec else { return Ok(Next::Change) };
        let status = set.status.clone().unwrap_or_default();
        let fresh = revisions::fresh(&*set, &spec.template, HASH, status.collision_count);
        let history = match revisions::sync(&self.writer, key, &*set, &selector, &self.revisions, fresh).await {
            Ok(history) => history,
            Err(Missing::Fault(fault)) => return Err(fault),
            Err(Missing::Collision(fault)) => {
                let mut status = status;
                status.collision_count = Some(status.collision_count.unwrap_or_default() + 1);
                self.write_status(key, &set, status).await?;
                return Err(fault);
            }
        };
        let owned = claim(&self.writer, key, &*set, &selector, &self.pods, |it| {
            is_member(&set, it)
        })
        .await?;
        let update = history.update.name_any();
        let current = status.current_revision.clone().filter(|it| !it.is_empty());
        let known = history.known.iter().find(|it| Some(it.name_any()) == current);
        let former = known.and_then(|it| Some((it.name_any(), revisions::template_of(it)?)));
        // A revision that is gone cannot be gone back to.
        let (current, template) = former.unwrap_or_else(|| (update.clone(), spec.template.clone()));
        let now = self.frame.config.clock.now();
        let observed = Observed {
            set: &set,
            pods: &owned,
            current: Revision {
                name: &current,
                template: &template,
            },
            update: Revision {
                name: &update,
                template: &spec.template,
            },
        };
        let plan = plan::plan(observed, now);
        let acted = self.act(key, &set, &owned, &plan).await;
        self.write_status(key, &set, plan.status).await?;
        acted?;
        let labels = owned.iter().filter_map(|it| pods::label(&it.metadata, pod::REVISION));
        let mut in_use: BTreeSet<String> = labels.map(str::to_owned).collect();
        in_use.insert(current);
        let limit = spec.revision_history_limit;
        revisions::truncate(&self.writer, key, &self.revisions, &history, limit, &in_use).await?;
        Ok(plan.next.map_or(Next::Change, Next::After))
    }

    async fn act(&self, key: &Key, set: &Arc<StatefulSet>, owned: &[Arc<Pod>], plan: &Plan) -> Result<(), Fault> {
        // Before pods go: their claims must know with whom.
        for pod in owned {
            let condemned = plan.condemned.iter().any(|it| it.metadata.uid == pod.metadata.uid);
            self.keep_claims(key, set, pod, condemned).await?;
        }
        let mut creations = Vec::new();
        let mut others = Vec::new();
        for action in plan.actions.clone() {
            match action {
                Action::Create(pod) => creations.push(pod),
                other => others.push(other),
            }
        }
        let (_, failure) = batch::slow_start(creations, |pod| self.create(key, set, pod)).await;
        match failure {
            Some(fault) if fault.is_namespace_terminating() => return Ok(()),
            Some(fault) => return Err(fault),
            None => {}
        }
        batch::each(others, |action| self.one(key, set, action)).await
    }

    async fn one(&self, key: &Key, set: &Arc<StatefulSet>, action: Action) -> Result<(), Fault> {
        match action {
            Action::Create(pod) => self.create(key, set, pod).await,
            Action::Identify(pod) => self.writer.replace(key, &self.pods, &*pod).await.map(|_| ()),
            Action::Recreate(pod) => {
                let how = pods::phase(&pod).to_lowercase();
                let message = format!("StatefulSet {key} is recreating {how} Pod {}", pod.name_any());
                self.recorder.warning(&**set, "RecreatingTerminatedPod", message);
                self.delete(key, set, &pod).await
            }
            Action::Delete(pod) => self.delete(key, set, &pod).await,
        }
    }

    async fn create(&self, key: &Key, set: &Arc<StatefulSet>, pod: Box<Pod>) -> Result<(), Fault> {
        let name = pod.name_any();
        for claim in pod::claims(set, &pod) {
            let mut claim = claim;
            let owners = pod::claim_owners(set, &pod, false, &claim);
            claim.metadata.owner_references = (!owners.is_empty()).then_some(owners);
            self.create_claim(key, set, &name, &claim).await?;
        }
        let made = self.writer.create(key, &self.pods, &*pod).await;
        match &made {
            Ok(_) => {}
            // Seldom: the cache is behind somebody else's write. The next run sees it.
            Err(fault) if fault.is_already_exists() => {}
            Err(fault) if fault.is_namespace_terminating() => {}
            Err(fault) => {
                let message = format!(
                    "create Pod {name} in StatefulSet {} failed error: {}",
                    key.name,
                    fault.message()
                );
                self.recorder.warning(&**set, "FailedCreate", message);
            }
        }
        made?;
        let message = format!("create Pod {name} in StatefulSet {} successful", key.name);
        self.recorder.normal(&**set, "SuccessfulCreate", message);
        Ok(())
    }

    async fn create_claim(
        &self,
        key: &Key,
        set: &Arc<StatefulSet>,
        pod: &str,
        claim: &PersistentVolumeClaim,
    ) -> Result<(), Fault> {
        let name = claim.name_any();
        if self.claims.get(&key.namespace, &name).is_some() {
            return Ok(());
        }
        let about = format!("create Claim {name} Pod {pod} in StatefulSet {}", key.name);
        match self.writer.create(key, &self.claims, claim).await {
            Ok(_) => {
                self.recorder
                    .normal(&**set, "SuccessfulCreate", format!("{about} success"));
                Ok(())
            }
            Err(fault) if fault.is_already_exists() => Ok(()),
            Err(fault) => {
                if !fault.is_namespace_terminating() {
                    let message = format!("{about} failed error: {}", fault.message());
                    self.recorder.warning(&**set, "FailedCreate", message);
                }
                Err(fault)
            }
        }
    }

    /// Brings the owners of a pod's claims in step with the retention policy.
    async fn keep_claims(&self, key: &Key, set: &StatefulSet, pod: &Pod, condemned: bool) -> Result<(), Fault> {
        for claim in pod::claims(set, pod) {
            let Some(there) = self.claims.get(&key.namespace, &claim.name_any()) else {
                continue;
            };
            let owners = pod::claim_owners(set, pod, condemned, &there);
            if owners == there.metadata.owner_references.clone().unwrap_or_default() {
                continue;
            }
            let mut new = (*there).clone();
            new.metadata.owner_references = Some(owners);
            self.writer.replace(key, &self.claims, &new).await?;
        }
        Ok(())
    }

    async fn delete(&self, key: &Key, set: &Arc<StatefulSet>, pod: &Pod) -> Result<(), Fault> {
        let about = format!("delete Pod {} in StatefulSet {}", pod.name_any(), key.name);
        match self.writer.delete(key, &self.pods, pod, DeleteParams::default()).await {
            Ok(()) => {
                self.recorder
                    .normal(&**set, "SuccessfulDelete", format!("{about} successful"));
                Ok(())
            }
            Err(fault) => {
                let message = format!("{about} failed error: {}", fault.message());
                self.recorder.warning(&**set, "FailedDelete", message);
                Err(fault)
            }
        }
    }

    async fn write_status(&self, key: &Key, set: &Arc<StatefulSet>, status: StatefulSetStatus) -> Result<(), Fault> {
        if same_status(&set.status.clone().unwrap_or_default(), &status) {
            return Ok(());
        }
        let new = StatefulSet {
            status: Some(status),
            ..(**set).clone()
        };
        match self.writer.replace_status(key, &self.sets, &new).await {
            Err(fault) if !fault.is_not_found() => Err(fault),
            _ => Ok(()),
        }
    }
}
