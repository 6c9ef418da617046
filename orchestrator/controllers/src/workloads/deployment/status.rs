//! A Deployment's status: counts, and whether it is available, progressing, failing.

use super::{plan::Sets, view};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::ResourceExt as _;
use std::time::Duration;

const AVAILABLE: &str = "Available";
const PROGRESSING: &str = "Progressing";
const FAILURE: &str = "ReplicaFailure";

const DONE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";
const RESUMED: &str = "DeploymentResumed";

/// `status.conditions` in the making.
#[derive(Clone, Debug)]
pub(crate) struct Conditions {
    all: Vec<DeploymentCondition>,
    now: Timestamp,
    /// Without `spec.progressDeadlineSeconds` nobody asks about progress.
    deadline_s: Option<i32>,
}

impl Conditions {
    /// What a Deployment has.
    pub(super) fn of(deployment: &Deployment, now: Timestamp) -> Self {
        let status = deployment.status.as_ref();
        let deadline_s = view::spec(deployment).and_then(|it| it.progress_deadline_seconds);
        Self {
            all: status.and_then(|it| it.conditions.clone()).unwrap_or_default(),
            now,
            // The largest number means never (apps/v1 documentation).
            deadline_s: deadline_s.filter(|it| *it != i32::MAX),
        }
    }

    pub(super) fn get(&self, kind: &str) -> Option<&DeploymentCondition> {
        self.all.iter().find(|it| it.type_ == kind)
    }

    fn reason(&self, kind: &str) -> Option<&str> {
        self.get(kind)?.reason.as_deref()
    }

    fn remove(&mut self, kind: &str) {
        self.all.retain(|it| it.type_ != kind);
    }

    /// Sets a condition unless its status and reason are what they were.
    fn set(&mut self, kind: &str, status: &str, reason: &str, message: String) {
        let same = self
            .get(kind)
            .is_some_and(|it| it.status == status && it.reason.as_deref() == Some(reason));
        if !same {
            self.renew(kind, status, reason, message);
        }
    }

    /// Sets a condition with a new time of update; the time of transition only if its status is another.
    fn renew(&mut self, kind: &str, status: &str, reason: &str, message: String) {
        let now = Time(self.now);
        let since = self.get(kind).filter(|it| it.status == status);
        let since = since.and_then(|it| it.last_transition_time.clone());
        self.remove(kind);
        self.all.push(DeploymentCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: Some(since.unwrap_or_else(|| now.clone())),
            last_update_time: Some(now),
        });
    }

    /// Time spent paused is no lack of progress.
    pub(super) fn note_pause(&mut self, paused: bool) {
        if self.deadline_s.is_none() || self.reason(PROGRESSING) == Some(TIMED_OUT) {
            return;
        }
        let known = self.reason(PROGRESSING) == Some(PAUSED);
        if paused && !known {
            self.set(PROGRESSING, "Unknown", PAUSED, "Deployment is paused".to_owned());
        } else if !paused && known {
            self.set(PROGRESSING, "Unknown", RESUMED, "Deployment is resumed".to_owned());
        }
    }

    pub(super) fn note_created(&mut self, set: &ReplicaSet) {
        if self.deadline_s.is_some() {
            let message = format!("Created new replica set {:?}", set.name_any());
            self.set(PROGRESSING, "True", "NewReplicaSetCreated", message);
        }
    }

    pub(super) fn note_found(&mut self, set: &ReplicaSet) {
        if self.deadline_s.is_some() && self.get(PROGRESSING).is_none() {
            let message = format!("Found new replica set {:?}", set.name_any());
            self.set(PROGRESSING, "True", "FoundNewReplicaSet", message);
        }
    }

    /// The new set could not be created.
    pub(super) fn note_create_failed(&mut self, message: &str) {
        if self.deadline_s.is_some() {
            self.set(PROGRESSING, "False", "ReplicaSetCreateError", message.to_owned());
        }
    }

    fn into_all(self) -> Option<Vec<DeploymentCondition>> {
        (!self.all.is_empty()).then_some(self.all)
    }
}

/// The status that the sets make.
pub(super) fn calculate(deployment: &Deployment, work: &Sets, mut conditions: Conditions) -> DeploymentStatus {
    let sum = |count: fn(&ReplicaSet) -> i32| work.all.iter().map(count).sum::<i32>();
    let available = sum(view::available);
    let enough = view::replicas(deployment) - view::max_unavailable(deployment);
    let (status, reason, message) = if available >= enough {
        (
            "True",
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.",
        )
    } else {
        (
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.",
        )
    };
    conditions.set(AVAILABLE, status, reason, message.to_owned());
    let ready = |set: &ReplicaSet| set.status.as_ref().and_then(|it| it.ready_replicas).unwrap_or_default();
    let terminating = |set: &ReplicaSet| {
        let status = set.status.as_ref();
        status.and_then(|it| it.terminating_replicas).unwrap_or_default()
    };
    DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: Some(sum(view::existing)),
        updated_replicas: Some(work.new_set().map(view::existing).unwrap_or_default()),
        ready_replicas: Some(sum(ready)),
        available_replicas: Some(available),
        unavailable_replicas: Some((work.total() - available).max(0)),
        terminating_replicas: Some(sum(terminating)),
        collision_count: deployment.status.as_ref().and_then(|it| it.collision_count),
        conditions: conditions.into_all(),
    }
}

/// All pods are of the new set and available.
pub(super) fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = Some(view::replicas(deployment));
    status.updated_replicas == wanted && status.replicas == wanted && status.available_replicas == wanted
}

/// The status during and after a rollout, and when the deadline for progress ends.
pub(super) fn rollout(
    deployment: &Deployment,
    work: &Sets,
    mut conditions: Conditions,
) -> (DeploymentStatus, Option<Duration>) {
    let status = calculate(deployment, work, conditions.clone());
    let before = deployment.status.clone().unwrap_or_default();
    let now = conditions.now;
    let set = work.new_set().map(ReplicaSet::name_any);
    let subject = set.map_or_else(
        || format!("Deployment {:?}", deployment.name_any()),
        |it| format!("ReplicaSet {it:?}"),
    );
    let finished = status.replicas == status.updated_replicas && conditions.reason(PROGRESSING) == Some(DONE);
    if conditions.deadline_s.is_none() {
        conditions.remove(PROGRESSING);
    } else if !finished {
        if is_complete(deployment, &status) {
            conditions.set(
                PROGRESSING,
                "True",
                DONE,
                format!("{subject} has successfully progressed."),
            );
        } else if is_progress(&before, &status) {
            conditions.renew(
                PROGRESSING,
                "True",
                "ReplicaSetUpdated",
                format!("{subject} is progressing."),
            );
        } else if is_timed_out(&conditions, now) {
            conditions.set(
                PROGRESSING,
                "False",
                TIMED_OUT,
                format!("{subject} has timed out progressing."),
            );
        }
    }
    let failing = |set: &ReplicaSet| {
        let found = set
            .status
            .as_ref()?
            .conditions
            .as_ref()?
            .iter()
            .find(|it| it.type_ == FAILURE)?;
        Some((found.status.clone(), found.reason.clone()?, found.message.clone()?))
    };
    let failure = work
        .new_set()
        .and_then(failing)
        .or_else(|| work.all.iter().find_map(failing));
    match failure {
        Some((status, reason, message)) => conditions.set(FAILURE, &status, &reason, message),
        None => conditions.remove(FAILURE),
    }
    let next = due(&conditions, now).filter(|_| !is_complete(deployment, &status));
    (calculate(deployment, work, conditions), next)
}

fn is_progress(before: &DeploymentStatus, after: &DeploymentStatus) -> bool {
    let number = |it: Option<i32>| it.unwrap_or_default();
    let old = |it: &DeploymentStatus| number(it.replicas) - number(it.updated_replicas);
    number(after.updated_replicas) > number(before.updated_replicas)
        || old(after) < old(before)
        || number(after.ready_replicas) > number(before.ready_replicas)
        || number(after.available_replicas) > number(before.available_replicas)
}

/// When progress must have been made, if anybody waits for it.
fn deadline(conditions: &Conditions) -> Option<Timestamp> {
    let progressing = conditions.get(PROGRESSING)?;
    if matches!(progressing.reason.as_deref(), Some(DONE | PAUSED)) {
        return None;
    }
    let since = progressing.last_update_time.as_ref()?.0;
    since
        .checked_add(SignedDuration::from_secs(conditions.deadline_s?.into()))
        .ok()
}

fn is_timed_out(conditions: &Conditions, now: Timestamp) -> bool {
    conditions.reason(PROGRESSING) == Some(TIMED_OUT) || deadline(conditions).is_some_and(|it| it <= now)
}

fn due(conditions: &Conditions, now: Timestamp) -> Option<Duration> {
    if conditions.reason(PROGRESSING) == Some(TIMED_OUT) {
        return None;
    }
    let left = deadline(conditions)?.duration_since(now);
    Some(Duration::try_from(left).unwrap_or_default())
}

/// The same status with the failure to create the new set in it.
pub(super) fn with_create_failure(
    deployment: &Deployment,
    sets: &Sets,
    message: &str,
    now: Timestamp,
) -> DeploymentStatus {
    let mut conditions = Conditions::of(deployment, now);
    conditions.note_create_failed(message);
    calculate(deployment, sets, conditions)
}
