//! The disruption controller: keeps `status` of PodDisruptionBudgets in step with their pods.

use super::plan;
use crate::frame::{
    Cache, Change, Clock, Controller, Fault, Frame, Key, Next, Outcome, Queue, Recorder, Writer, controller_of,
};
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet, StatefulSet},
        core::v1::{Pod, ReplicationController},
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api,
    core::{DynamicObject, GroupVersionKind},
    discovery::pinned_kind,
};
use std::{collections::BTreeMap, sync::Arc};

const NAME: &str = "disruption-controller";

struct Disruption {
    writer: Writer,
    recorder: Recorder,
    clock: Clock,
    budgets: Arc<Cache<PodDisruptionBudget>>,
    pods: Arc<Cache<Pod>>,
    replica_sets: Arc<Cache<ReplicaSet>>,
    deployments: Arc<Cache<Deployment>>,
    stateful_sets: Arc<Cache<StatefulSet>>,
    replication_controllers: Arc<Cache<ReplicationController>>,
}

pub(crate) fn controller(frame: &Arc<Frame>) -> Controller {
    let this = Arc::new(Disruption {
        writer: Writer::new(frame.client(NAME)),
        recorder: frame.recorder(NAME),
        clock: frame.clock(),
        budgets: frame.cache(),
        pods: frame.cache(),
        replica_sets: frame.cache(),
        deployments: frame.cache(),
        stateful_sets: frame.cache(),
        replication_controllers: frame.cache(),
    });
    let by_pod = Arc::clone(&this);
    let worker = Arc::clone(&this);
    Controller::new(NAME, 2, move |key: Key| {
        let this = Arc::clone(&worker);
        async move { this.reconcile(&key).await }
    })
    .after(this.writer.written())
    .on_own(&this.budgets)
    .on(&this.pods, move |change: &Change<Pod>, queue: &Queue| {
        let facts = |it: &Pod| {
            let health = (podview_facts(it), it.metadata.labels.clone());
            (health, controller_of(it).map(|it| it.uid.clone()))
        };
        if let (Some(old), Some(new)) = (&change.old, &change.new)
            && facts(old) == facts(new)
        {
            return;
        }
        let namespace = change.latest().metadata.namespace.clone().unwrap_or_default();
        for budget in by_pod.budgets.in_namespace(&namespace) {
            let Ok(Some(selector)) = plan::selector(&budget) else {
                continue;
            };
            if change.sides().any(|pod| plan::selects(&selector, pod)) {
                queue.add(Key::of(&*budget));
            }
        }
    })
    // A new scale counts before its pods come.
    .on(&this.replica_sets, by_scale(&this, |it: &ReplicaSet| it.spec.as_ref().and_then(|it| it.replicas)))
    .on(&this.deployments, by_scale(&this, |it: &Deployment| it.spec.as_ref().and_then(|it| it.replicas)))
    .on(&this.stateful_sets, by_scale(&this, |it: &StatefulSet| it.spec.as_ref().and_then(|it| it.replicas)))
    .on(
        &this.replication_controllers,
        by_scale(&this, |it: &ReplicationController| it.spec.as_ref().and_then(|it| it.replicas)),
    )
}

fn podview_facts(pod: &Pod) -> (bool, bool) {
    use crate::cluster::podview;
    (podview::is_ready(pod), podview::is_terminating(pod))
}

fn by_scale<K: crate::frame::Cached>(
    this: &Arc<Disruption>,
    scale: fn(&K) -> Option<i32>,
) -> impl Fn(&Change<K>, &Queue) + Send + Sync + 'static {
    let this = Arc::clone(this);
    move |change, queue| {
        let of = |it: &Option<Arc<K>>| it.as_deref().map(scale);
        if of(&change.old) == of(&change.new) {
            return;
        }
        let namespace = change.latest().meta().namespace.clone().unwrap_or_default();
        for budget in this.budgets.in_namespace(&namespace) {
            if plan::needs_scale(&budget) {
                queue.add(Key::of(&*budget));
            }
        }
    }
}

impl Disruption {
    async fn reconcile(&self, key: &Key) -> Outcome {
        let Some(budget) = self.budgets.get(&key.namespace, &key.name) else {
            return Ok(Next::Change);
        };
        let now = self.clock.now();
        let (mut pods, mut fault) = (Vec::new(), None);
        match plan::selector(&budget) {
            Err(why) => fault = Some(format!("spec.selector: {why}")),
            Ok(None) => {}
            Ok(Some(selector)) => {
                pods = self.pods.in_namespace(&key.namespace);
                pods.retain(|it| plan::selects(&selector, it));
            }
        }
        let pods: Vec<&Pod> = pods.iter().map(|it| &**it).collect();
        let wanted = match fault {
            Some(fault) => Err(fault),
            None => self.wanted(&budget, &pods).await,
        };
        if let Err(why) = &wanted {
            let message = format!("Failed to calculate the number of expected pods: {why}");
            self.recorder
                .warning(&*budget, "CalculateExpectedPodCountFailed", message);
        }
        let (disrupted, over, again) = plan::disrupted(&budget, &pods, now);
        for name in over {
            if let Some(pod) = self.pods.get(&key.namespace, &name) {
                let message = "Pod was expected by PDB to be deleted but it wasn't";
                self.recorder.warning(&*pod, "NotDeleted", message);
            }
        }
        let status = plan::status(&budget, &pods, &wanted, disrupted, now);
        if budget.status.as_ref() != Some(&status) {
            let mut new = (*budget).clone();
            new.status = Some(status);
            match self.writer.replace_status(key, &self.budgets, &new).await {
                Err(fault) if fault.is_not_found() => {}
                Err(fault) => return Err(fault),
                Ok(_) => {}
            }
        }
        let wait = again.map(|at| crate::cluster::nodes::lifecycle::until(at, now));
        Ok(wait.map_or(Next::Change, Next::After))
    }

    async fn wanted(&self, budget: &PodDisruptionBudget, pods: &[&Pod]) -> Result<plan::Wanted, String> {
        let mut scale = 0_i32;
        if plan::needs_scale(budget) {
            let mut controllers = BTreeMap::new();
            let mut unmanaged = 0_usize;
            for pod in pods {
                match controller_of(*pod) {
                    Some(it) => drop(controllers.insert(it.uid.clone(), it)),
                    None => unmanaged += 1,
                }
            }
            if unmanaged > 0 {
                let message =
                    format!("{unmanaged} pods have no controller; they do not count towards the expected pods");
                self.recorder.warning(budget, "UnmanagedPods", message);
            }
            let mut scales = BTreeMap::new();
            let namespace = budget.metadata.namespace.as_deref().unwrap_or_default();
            for reference in controllers.into_values() {
                if let Some((uid, number)) = self.scale(namespace, reference).await.map_err(|it| it.to_string())? {
                    scales.insert(uid, number);
                }
            }
            scale = scales.into_values().fold(0, i32::saturating_add);
        }
        plan::wanted(budget, pods.len(), scale)
    }

    /// Uid and scale of what stands behind a controller: a Deployment behind its ReplicaSets. `None`: it is gone.
    async fn scale(&self, namespace: &str, reference: &OwnerReference) -> Result<Option<(String, i32)>, Fault> {
        let name = reference.name.as_str();
        let is = |uid: &Option<String>| uid.as_deref() == Some(reference.uid.as_str());
        let found = |uid: &Option<String>, replicas: Option<i32>| {
            Ok(uid.clone().filter(|_| is(uid)).map(|uid| (uid, replicas.unwrap_or(1))))
        };
        let group = reference.api_version.rsplit_once('/').map_or("", |(group, _)| group);
        match (group, reference.kind.as_str()) {
            ("apps", "ReplicaSet") => {
                let Some(set) = self.replica_sets.get(namespace, name).filter(|it| is(&it.metadata.uid)) else {
                    return Ok(None);
                };
                if let Some(owner) = controller_of(&*set).filter(|it| it.kind == "Deployment")
                    && let Some(deployment) = self.deployments.get(namespace, &owner.name)
                    && deployment.metadata.uid.as_ref() == Some(&owner.uid)
                {
                    let replicas = deployment.spec.as_ref().and_then(|it| it.replicas);
                    return Ok(Some((owner.uid.clone(), replicas.unwrap_or(1))));
                }
                found(&set.metadata.uid, set.spec.as_ref().and_then(|it| it.replicas))
            }
            ("apps", "StatefulSet") => match self.stateful_sets.get(namespace, name) {
                None => Ok(None),
                Some(set) => found(&set.metadata.uid, set.spec.as_ref().and_then(|it| it.replicas)),
            },
            ("", "ReplicationController") => match self.replication_controllers.get(namespace, name) {
                None => Ok(None),
                Some(set) => found(&set.metadata.uid, set.spec.as_ref().and_then(|it| it.replicas)),
            },
            _ => self.scale_of_any(namespace, reference).await,
        }
    }

    /// By the subresource `scale`, which kinds that we do not know may have.
    async fn scale_of_any(&self, namespace: &str, reference: &OwnerReference) -> Result<Option<(String, i32)>, Fault> {
        let (group, version) = reference
            .api_version
            .rsplit_once('/')
            .unwrap_or(("", &reference.api_version));
        let kind = GroupVersionKind::gvk(group, version, &reference.kind);
        let what = format!("get the scale of {} {namespace}/{}", reference.kind, reference.name);
        let client = self.writer.client().clone();
        let pinned = pinned_kind(&client, &kind).await;
        let (resource, _) = pinned.map_err(|error| Fault::api(what.clone(), error))?;
        let api: Api<DynamicObject> = Api::namespaced_with(client, namespace, &resource);
        match api.get_scale(&reference.name).await {
            Ok(scale) => {
                let replicas = scale.spec.and_then(|it| it.replicas).unwrap_or(0);
                Ok(Some((reference.uid.clone(), replicas)))
            }
            Err(error) => Err(Fault::api(what, error)),
        }
    }
}
