//! ReplicaSets and their older form, `ReplicationController`: a number of equal pods, always.

mod kind;
mod plan;
mod rank;

#[cfg(test)]
mod tests;

pub(crate) use kind::Kind;
pub(crate) use rank::rank;

use super::{batch, pods};
use crate::frame::{
    Cache, Controller, Fault, Frame, Key, Next, Outcome, Recorder, Writer, claim, controller_of, reference,
};
use k8s_openapi::{
    api::{
        apps::v1::ReplicaSet,
        core::v1::{Pod, ReplicationController},
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kind::Failure;
use kube::core::SelectorExt as _;
use plan::Action;
use serde::Serialize;
use std::sync::Arc;

/// Keys that are worked on at a time.
const WORKERS: usize = 5;

/// Of ReplicaSets.
pub(crate) fn replica_sets(frame: &Arc<Frame>) -> Controller {
    controller::<ReplicaSet>(frame)
}

/// Of `ReplicationController`s.
pub(crate) fn replication_controllers(frame: &Arc<Frame>) -> Controller {
    controller::<ReplicationController>(frame)
}

fn controller<K: Kind>(frame: &Arc<Frame>) -> Controller {
    let sets = frame.cache::<K>();
    let all_pods = frame.cache::<Pod>();
    let replicas = Arc::new(Replicas {
        writer: Writer::new(frame.client(K::CONTROLLER)),
        recorder: frame.recorder(K::CONTROLLER),
        frame: Arc::clone(frame),
        sets: Arc::clone(&sets),
        pods: Arc::clone(&all_pods),
    });
    let written = replicas.writer.written().clone();
    let owners = Arc::clone(&sets);
    Controller::new(K::CONTROLLER, WORKERS, move |key| {
        let replicas = Arc::clone(&replicas);
        async move { replicas.reconcile(&key).await }
    })
    .after(&written)
    .on_own(&sets)
    .on(&all_pods, move |change, queue| {
        pods::wake_owners(change, queue, &owners, |owner, pod| {
            let labels = pod.metadata.labels.clone().unwrap_or_default();
            owner
                .selector()
                .is_ok_and(|it| !it.selects_all() && it.matches(&labels))
        });
    })
}

/// Equal as the API shows them: a number that is 0 is as good as none.
pub(crate) fn same_status<S: Serialize>(a: &S, b: &S) -> bool {
    let shown = |status: &S| {
        let mut value = serde_json::to_value(status).unwrap_or_default();
        if let Some(fields) = value.as_object_mut() {
            fields.retain(|_, it| !(it.is_null() || *it == 0 || it.as_array().is_some_and(Vec::is_empty)));
        }
        value
    };
    shown(a) == shown(b)
}

struct Replicas<K> {
    writer: Writer,
    recorder: Recorder,
    frame: Arc<Frame>,
    sets: Arc<Cache<K>>,
    pods: Arc<Cache<Pod>>,
}

impl<K: Kind> Replicas<K> {
    async fn reconcile(&self, key: &Key) -> Outcome {
        let Some(set) = self.sets.get(&key.namespace, &key.name) else {
            return Ok(Next::Change);
        };
        let desired = set.desired();
        let selector = set.selector()?;
        let fits = |pod: &Pod| controller_of(pod).is_some() || pods::is_active(pod);
        let owned = claim(&self.writer, key, &*set, &selector, &self.pods, fits).await?;
        let now = self.frame.config.clock.now();
        let related = self.related(&set, &owned);
        let actions = plan::plan(&desired, &owned, &related, now);
        let outcome = self.act(key, &set, actions).await;
        let failure = outcome.as_ref().err().map(|(failure, _)| failure);
        let tally = plan::tally(&desired, &owned, now);
        if let Some(new) = set.with_status(tally, failure, Time(now)) {
            let wrote = self.writer.replace_status(key, &self.sets, &new).await;
            if let Err(fault) = wrote
                && !fault.is_not_found()
            {
                return Err(fault);
            }
        }
        if let Err((_, fault)) = outcome {
            return Err(fault);
        }
        Ok(plan::next(&desired, &owned, now).map_or(Next::Change, Next::After))
    }

    /// Pods of all sets with the same owner, such as those of one Deployment.
    fn related(&self, set: &K, owned: &[Arc<Pod>]) -> Vec<Arc<Pod>> {
        let Some(owner) = controller_of(set) else {
            return owned.to_vec();
        };
        let sets = self.sets.controlled_by(&owner.uid);
        let uids = sets.iter().filter_map(|it| it.meta().uid.as_deref());
        uids.flat_map(|uid| self.pods.controlled_by(uid)).collect()
    }

    async fn act(&self, key: &Key, set: &Arc<K>, actions: Vec<Action>) -> Result<(), (Failure, Fault)> {
        let mut deletions = Vec::new();
        let mut creations = 0;
        for action in actions {
            match action {
                Action::Create(number) => creations += number,
                Action::Delete(pod) => deletions.push(pod),
            }
        }
        if creations > 0 {
            let (_, failure) = batch::slow_start(vec![(); creations], |()| self.create(key, set)).await;
            match failure {
                // There is nobody left to make pods for.
                Some(fault) if fault.is_namespace_terminating() => return Ok(()),
                Some(fault) => return Err(failed("FailedCreate", fault)),
                None => {}
            }
        }
        let deleted = batch::each(deletions, |pod| self.delete(key, set, pod)).await;
        deleted.map_err(|fault| failed("FailedDelete", fault))
    }

    async fn create(&self, key: &Key, set: &Arc<K>) -> Result<(), Fault> {
        let Some(template) = set.template() else {
            return Err(Fault::Other("spec.template is missing; set it".to_owned()));
        };
        let mut pod = pods::from_template(template, &key.namespace, reference(&**set));
        pod.metadata.generate_name = Some(pods::name_prefix(&key.name));
        match self.writer.create(key, &self.pods, &pod).await {
            Ok(created) => {
                let name = created.metadata.name.unwrap_or_default();
                self.recorder
                    .normal(&**set, "SuccessfulCreate", format!("Created pod: {name}"));
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

    async fn delete(&self, key: &Key, set: &Arc<K>, pod: Arc<Pod>) -> Result<(), Fault> {
        let name = pod.metadata.name.clone().unwrap_or_default();
        match self.writer.delete(key, &self.pods, &*pod, Default::default()).await {
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
}

fn failed(reason: &'static str, fault: Fault) -> (Failure, Fault) {
    let message = fault.message();
    (Failure { reason, message }, fault)
}
