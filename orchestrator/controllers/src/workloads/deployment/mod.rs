//! Deployments: the ReplicaSet of the newest template grows while those of older ones shrink.

mod plan;
mod revision;
mod rollout;
mod scale;
mod status;
mod view;

#[cfg(test)]
mod tests;

use super::{pods, replicas::same_status};
use crate::frame::{
    Cache, Controller, Fault, Frame, Key, Next, Outcome, Queue, Recorder, Writer, claim, controller_of, owner_key,
};
use k8s_openapi::api::{
    apps::v1::{Deployment, DeploymentStatus, ReplicaSet},
    core::v1::Pod,
};
use kube::{
    ResourceExt as _,
    api::DeleteParams,
    core::{Selector, SelectorExt as _},
};
use plan::{Observed, Plan, Sets};
use std::sync::Arc;

const NAME: &str = "deployment-controller";
/// Keys that are worked on at a time.
const WORKERS: usize = 5;

/// Of Deployments.
pub(crate) fn controller(frame: &Arc<Frame>) -> Controller {
    let deployments = frame.cache::<Deployment>();
    let sets = frame.cache::<ReplicaSet>();
    let all_pods = frame.cache::<Pod>();
    let this = Arc::new(Deployments {
        writer: Writer::new(frame.client(NAME)),
        recorder: frame.recorder(NAME),
        frame: Arc::clone(frame),
        deployments: Arc::clone(&deployments),
        sets: Arc::clone(&sets),
        pods: Arc::clone(&all_pods),
    });
    let written = this.writer.written().clone();
    let (by_set, by_pod) = (Arc::clone(&this), Arc::clone(&this));
    Controller::new(NAME, WORKERS, move |key| {
        let this = Arc::clone(&this);
        async move { this.reconcile(&key).await }
    })
    .after(&written)
    .on_own(&deployments)
    .on(&sets, move |change, queue| {
        for set in change.sides() {
            by_set.wake(set, queue);
        }
    })
    .on(&all_pods, move |change, queue| {
        // Only a recreation waits for pods themselves: for the last old one to be gone.
        if let (Some(pod), None) = (&change.old, &change.new)
            && let Some(key) = owner_key::<ReplicaSet, _>(&**pod)
            && let Some(set) = by_pod.sets.get(&key.namespace, &key.name)
            && let Some(key) = owner_key::<Deployment, _>(&*set)
            && let Some(deployment) = by_pod.deployments.get(&key.namespace, &key.name)
            && view::is_recreate(&deployment)
        {
            queue.add(key);
        }
    })
}

struct Deployments {
    writer: Writer,
    recorder: Recorder,
    frame: Arc<Frame>,
    deployments: Arc<Cache<Deployment>>,
    sets: Arc<Cache<ReplicaSet>>,
    pods: Arc<Cache<Pod>>,
}

fn selector(deployment: &Deployment) -> Result<Selector, Fault> {
    let selector = deployment
        .spec
        .as_ref()
        .map(|it| it.selector.clone())
        .unwrap_or_default();
    Selector::try_from(selector).map_err(|error| Fault::Other(format!("spec.selector: {error}")))
}

impl Deployments {
    fn wake(&self, set: &ReplicaSet, queue: &Queue) {
        if let Some(key) = owner_key::<Deployment, _>(set) {
            queue.add(key);
        }
        if controller_of(set).is_some() {
            return;
        }
        for deployment in self.deployments.in_namespace(&set.namespace().unwrap_or_default()) {
            if selector(&deployment).is_ok_and(|it| !it.selects_all() && it.matches(set.labels())) {
                queue.add(Key::of(&*deployment));
            }
        }
    }

    async fn reconcile(&self, key: &Key) -> Outcome {
        let Some(deployment) = self.deployments.get(&key.namespace, &key.name) else {
            return Ok(Next::Change);
        };
        let selector = selector(&deployment)?;
        if selector.selects_all() {
            let message = "This deployment is selecting all pods. A non-empty selector is required.";
            self.recorder.warning(&*deployment, "SelectingAll", message);
            return Ok(Next::Change);
        }
        let sets = claim(&self.writer, key, &*deployment, &selector, &self.sets, |_| true).await?;
        let now = self.frame.config.clock.now();
        let observed = Observed {
            deployment: &deployment,
            sets: &sets,
            old_pods: view::is_recreate(&deployment) && self.has_old_pods(&deployment, &sets),
        };
        let plan = plan::plan(observed, now);
        if let Some(set) = &plan.create
            && let Err(fault) = self.create(key, &deployment, set).await
        {
            if !fault.is_conflict() && !fault.is_namespace_terminating() {
                let work = Sets::of(&deployment, &sets);
                let status = status::with_create_failure(&deployment, &work, &fault.message(), now);
                self.write_status(key, &deployment, status).await?;
            }
            return Err(fault);
        }
        self.update(key, &deployment, &plan).await?;
        let current = self.write_revision(key, &deployment, plan.revision).await?;
        self.write_status(key, &current, plan.status).await?;
        Ok(plan.next.map_or(Next::Change, Next::After))
    }

    fn has_old_pods(&self, deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> bool {
        let work = Sets::of(deployment, sets);
        work.old().into_iter().any(|it| {
            let uid = work.all[it].uid().unwrap_or_default();
            self.pods.controlled_by(&uid).iter().any(|it| !pods::is_finished(it))
        })
    }

    async fn create(&self, key: &Key, deployment: &Arc<Deployment>, set: &ReplicaSet) -> Result<(), Fault> {
        match self.writer.create(key, &self.sets, set).await {
            Ok(created) => {
                let size = view::size(&created);
                if size > 0 {
                    let message = format!("Scaled up replica set {} from 0 to {size}", created.name_any());
                    self.recorder.normal(&**deployment, "ScalingReplicaSet", message);
                }
                Ok(())
            }
            Err(fault) if fault.is_already_exists() => self.collide(key, deployment, set, fault).await,
            Err(fault) => {
                if !fault.is_namespace_terminating() {
                    let message = format!(
                        "Failed to create new replica set {:?}: {}",
                        set.name_any(),
                        fault.message()
                    );
                    self.recorder.warning(&**deployment, "ReplicaSetCreateError", message);
                }
                Err(fault)
            }
        }
    }

    /// A set of this name exists: ours (the cache was behind), or another's, and then the next name is tried.
    async fn collide(
        &self,
        key: &Key,
        deployment: &Arc<Deployment>,
        set: &ReplicaSet,
        fault: Fault,
    ) -> Result<(), Fault> {
        let there = self.writer.read::<ReplicaSet>(&key.namespace, &set.name_any()).await?;
        let template = |set: &ReplicaSet| set.spec.as_ref()?.template.as_ref().map(view::essence);
        let ours = controller_of(&there).map(|it| &it.uid) == deployment.metadata.uid.as_ref();
        if ours && template(&there) == template(set) {
            self.writer.written().note(key, &self.sets, &there);
            return Ok(());
        }
        let mut status = deployment.status.clone().unwrap_or_default();
        status.collision_count = Some(status.collision_count.unwrap_or_default() + 1);
        self.write_status(key, deployment, status).await?;
        Err(fault)
    }

    async fn update(&self, key: &Key, deployment: &Arc<Deployment>, plan: &Plan) -> Result<(), Fault> {
        for (was, set) in &plan.update {
            self.writer.replace(key, &self.sets, set).await?;
            let (from, to) = (view::size(was), view::size(set));
            if from != to {
                let direction = if from < to { "up" } else { "down" };
                let name = set.name_any();
                let message = format!("Scaled {direction} replica set {name} from {from} to {to}");
                self.recorder.normal(&**deployment, "ScalingReplicaSet", message);
            }
        }
        for set in &plan.delete {
            self.writer
                .delete(key, &self.sets, &**set, DeleteParams::default())
                .await?;
        }
        Ok(())
    }

    /// Notes the revision on the Deployment; gives it as it is then.
    async fn write_revision(
        &self,
        key: &Key,
        deployment: &Arc<Deployment>,
        revision: Option<String>,
    ) -> Result<Arc<Deployment>, Fault> {
        let has = pods::annotation(&deployment.metadata, view::REVISION);
        if revision.is_none() || has == revision.as_deref() {
            return Ok(Arc::clone(deployment));
        }
        let mut new = (**deployment).clone();
        let annotations = new.metadata.annotations.get_or_insert_default();
        annotations.extend(revision.map(|it| (view::REVISION.to_owned(), it)));
        self.writer.replace(key, &self.deployments, &new).await.map(Arc::new)
    }

    async fn write_status(
        &self,
        key: &Key,
        deployment: &Arc<Deployment>,
        status: DeploymentStatus,
    ) -> Result<(), Fault> {
        if same_status(&deployment.status.clone().unwrap_or_default(), &status) {
            return Ok(());
        }
        let new = Deployment {
            status: Some(status),
            ..(**deployment).clone()
        };
        match self.writer.replace_status(key, &self.deployments, &new).await {
            Err(fault) if !fault.is_not_found() => Err(fault),
            _ => Ok(()),
        }
    }
}
