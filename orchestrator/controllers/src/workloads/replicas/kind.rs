//! The two kinds that keep a number of equal pods, under one view.

use super::plan::{Desired, Tally};
use crate::frame::{Fault, Namespaced};
use k8s_openapi::{
    api::{
        apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus},
        core::v1::{
            PodTemplateSpec, ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
        },
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::core::Selector;
use serde::Serialize;

/// Why pods could not be made or deleted: the condition `ReplicaFailure`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// `FailedCreate` or `FailedDelete`.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// ReplicaSet or `ReplicationController`.
pub(crate) trait Kind: Namespaced + Serialize {
    /// The controller's name.
    const CONTROLLER: &'static str;

    /// What is wanted.
    fn desired(&self) -> Desired;

    /// The selector.
    fn selector(&self) -> Result<Selector, Fault>;

    /// The template of its pods.
    fn template(&self) -> Option<&PodTemplateSpec>;

    /// The same with another status; `None` if that is what it has. A failure's time is `now` if it is new.
    fn with_status(&self, tally: Tally, failure: Option<&Failure>, now: Time) -> Option<Self>;
}

fn replicas(spec: Option<i32>) -> usize {
    // Defaulted to 1 by the API server.
    usize::try_from(spec.unwrap_or(1)).unwrap_or_default()
}

const FAILURE: &str = "ReplicaFailure";

macro_rules! conditions {
    ($kind:ident, $old:expr, $failure:expr, $now:expr) => {{
        let mut conditions: Vec<$kind> = $old.clone().unwrap_or_default();
        match $failure {
            None => conditions.retain(|it| it.type_ != FAILURE),
            // An older one stays as it is, with the time since when.
            Some(Failure { reason, .. })
                if conditions
                    .iter()
                    .any(|it| it.type_ == FAILURE && it.reason.as_deref() == Some(*reason)) => {}
            Some(Failure { reason, message }) => {
                conditions.retain(|it| it.type_ != FAILURE);
                conditions.push($kind {
                    type_: FAILURE.to_owned(),
                    status: "True".to_owned(),
                    reason: Some((*reason).to_owned()),
                    message: Some(message.clone()),
                    last_transition_time: Some($now),
                });
            }
        }
        (!conditions.is_empty()).then_some(conditions)
    }};
}

impl Kind for ReplicaSet {
    const CONTROLLER: &'static str = "replicaset-controller";

    fn desired(&self) -> Desired {
        let spec = self.spec.as_ref();
        let meta = self.template().and_then(|it| it.metadata.as_ref());
        Desired {
            replicas: replicas(spec.and_then(|it| it.replicas)),
            min_ready_s: spec.and_then(|it| it.min_ready_seconds).unwrap_or_default(),
            labels: meta.and_then(|it| it.labels.clone()).unwrap_or_default(),
            deleting: self.metadata.deletion_timestamp.is_some(),
        }
    }

    fn selector(&self) -> Result<Selector, Fault> {
        let selector = self.spec.as_ref().map(|it| it.selector.clone()).unwrap_or_default();
        Selector::try_from(selector).map_err(|error| Fault::Other(format!("spec.selector: {error}")))
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn with_status(&self, tally: Tally, failure: Option<&Failure>, now: Time) -> Option<Self> {
        let old = self.status.clone().unwrap_or_default();
        let status = ReplicaSetStatus {
            replicas: tally.replicas,
            fully_labeled_replicas: Some(tally.fully_labeled),
            ready_replicas: Some(tally.ready),
            available_replicas: Some(tally.available),
            terminating_replicas: Some(tally.terminating),
            observed_generation: self.metadata.generation,
            conditions: conditions!(ReplicaSetCondition, old.conditions, failure, now),
        };
        let same = super::same_status(&old, &status);
        (!same).then(|| Self {
            status: Some(status),
            ..self.clone()
        })
    }
}

impl Kind for ReplicationController {
    const CONTROLLER: &'static str = "replication-controller";

    fn desired(&self) -> Desired {
        let spec = self.spec.as_ref();
        let meta = self.template().and_then(|it| it.metadata.as_ref());
        Desired {
            replicas: replicas(spec.and_then(|it| it.replicas)),
            min_ready_s: spec.and_then(|it| it.min_ready_seconds).unwrap_or_default(),
            labels: meta.and_then(|it| it.labels.clone()).unwrap_or_default(),
            deleting: self.metadata.deletion_timestamp.is_some(),
        }
    }

    fn selector(&self) -> Result<Selector, Fault> {
        let selector = self
            .spec
            .as_ref()
            .and_then(|it| it.selector.clone())
            .unwrap_or_default();
        Ok(selector.into_iter().collect())
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn with_status(&self, tally: Tally, failure: Option<&Failure>, now: Time) -> Option<Self> {
        let old = self.status.clone().unwrap_or_default();
        let status = ReplicationControllerStatus {
            replicas: tally.replicas,
            fully_labeled_replicas: Some(tally.fully_labeled),
            ready_replicas: Some(tally.ready),
            available_replicas: Some(tally.available),
            observed_generation: self.metadata.generation,
            conditions: conditions!(ReplicationControllerCondition, old.conditions, failure, now),
        };
        let same = super::same_status(&old, &status);
        (!same).then(|| Self {
            status: Some(status),
            ..self.clone()
        })
    }
}
