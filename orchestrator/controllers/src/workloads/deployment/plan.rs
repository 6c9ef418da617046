//! What a Deployment does about its ReplicaSets: a pure function. One step at a time; each step's effect on the sets
//! wakes the Deployment for the next.

use super::{
    revision,
    rollout::{recreate, rolling},
    scale, status,
    view::{self, HASH},
};
use crate::{
    frame::reference,
    workloads::{hash, pods},
};
use jiff::Timestamp;
use k8s_openapi::{
    api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet, ReplicaSetSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// What is seen of a Deployment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Observed<'a> {
    pub(crate) deployment: &'a Deployment,
    /// All that it controls.
    pub(crate) sets: &'a [Arc<ReplicaSet>],
    /// A pod of a set of an old revision is still there, if only to terminate.
    pub(crate) old_pods: bool,
}

/// What is done about it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    /// A set for a template that has none.
    pub(crate) create: Option<ReplicaSet>,
    /// Sets as they should be, with those that they were.
    pub(crate) update: Vec<(Arc<ReplicaSet>, ReplicaSet)>,
    /// Sets that history has no room for.
    pub(crate) delete: Vec<Arc<ReplicaSet>>,
    /// The annotation [`view::REVISION`] of the Deployment.
    pub(crate) revision: Option<String>,
    /// Its status.
    pub(crate) status: DeploymentStatus,
    /// When to look again although nothing changes.
    pub(crate) next: Option<Duration>,
}

/// The sets as they will be, by age.
#[derive(Clone, Debug)]
pub(crate) struct Sets {
    pub(crate) all: Vec<ReplicaSet>,
    /// Which of them has the Deployment's template.
    pub(crate) new: Option<usize>,
}

impl Sets {
    /// Of a Deployment, by age.
    pub(crate) fn of(deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> Self {
        let mut all: Vec<ReplicaSet> = sets.iter().map(|it| (**it).clone()).collect();
        all.sort_by(|a, b| {
            let name = |set: &ReplicaSet| set.metadata.name.clone();
            let created = pods::created(&a.metadata).cmp(&pods::created(&b.metadata));
            created.then_with(|| name(a).cmp(&name(b)))
        });
        let wanted = view::spec(deployment).map(|it| view::essence(&it.template));
        let new = all.iter().position(|it| {
            let template = it.spec.as_ref().and_then(|it| it.template.as_ref());
            template.map(view::essence) == wanted
        });
        Self { all, new }
    }

    pub(crate) fn new_set(&self) -> Option<&ReplicaSet> {
        self.new.and_then(|it| self.all.get(it))
    }

    /// Positions of those that are not the new one, oldest first.
    pub(crate) fn old(&self) -> Vec<usize> {
        (0..self.all.len()).filter(|it| Some(*it) != self.new).collect()
    }

    /// Wanted pods of all sets together.
    pub(crate) fn total(&self) -> i32 {
        self.all.iter().map(view::size).sum()
    }

    /// Pods that there are or will be: a set that was told to shrink counts until it has.
    pub(crate) fn standing(&self) -> i32 {
        self.all.iter().map(|it| view::size(it).max(view::existing(it))).sum()
    }

    pub(crate) fn resize(&mut self, position: usize, size: i32, deployment: &Deployment) {
        let Some(set) = self.all.get_mut(position) else { return };
        if let Some(spec) = &mut set.spec {
            spec.replicas = Some(size);
        }
        revision::note_size(set, deployment);
    }
}

/// What to do now.
pub(crate) fn plan(observed: Observed<'_>, now: Timestamp) -> Plan {
    let Observed { deployment, sets, .. } = observed;
    let mut work = Sets::of(deployment, sets);
    let mut conditions = status::Conditions::of(deployment, now);
    if deployment.metadata.deletion_timestamp.is_some() {
        return Plan {
            status: status::calculate(deployment, &work, conditions),
            ..Plan::default()
        };
    }
    let paused = view::spec(deployment).and_then(|it| it.paused).unwrap_or_default();
    conditions.note_pause(paused);
    let mut created = None;
    let mut deleted = Vec::new();
    revision::sync(deployment, &mut work, &mut conditions);
    let next;
    let outcome;
    if paused || scale::is_due(deployment, &work) {
        scale::scale(deployment, &mut work);
        if paused {
            deleted = revision::surplus(deployment, &work);
        }
        outcome = status::calculate(deployment, &work, conditions);
        next = None;
    } else {
        if work.new.is_none() && (!is_waiting(observed, &work)) {
            let set = fresh_set(deployment, &work);
            conditions.note_created(&set);
            created = set.metadata.name.clone();
            work.all.push(set);
            work.new = Some(work.all.len() - 1);
        }
        let scaled = if view::is_recreate(deployment) {
            recreate(deployment, &mut work, observed.old_pods)
        } else {
            rolling(deployment, &mut work)
        };
        if !scaled && status::is_complete(deployment, &status::calculate(deployment, &work, conditions.clone())) {
            deleted = revision::surplus(deployment, &work);
        }
        (outcome, next) = status::rollout(deployment, &work, conditions);
    }
    let revision = work
        .new_set()
        .and_then(|it| pods::annotation(&it.metadata, view::REVISION));
    let revision = revision.map(str::to_owned);
    let mut plan = Plan {
        revision,
        status: outcome,
        next,
        ..Plan::default()
    };
    let known: BTreeMap<_, _> = sets.iter().map(|it| (it.metadata.name.clone(), it)).collect();
    for set in work.all {
        match known.get(&set.metadata.name) {
            _ if set.metadata.name == created && created.is_some() => plan.create = Some(set),
            Some(was) if deleted.contains(&set.metadata.name) => plan.delete.push(Arc::clone(was)),
            Some(was) if ***was != set => plan.update.push((Arc::clone(was), set)),
            _ => {}
        }
    }
    plan
}

/// With `Recreate`, nothing new is made while anything old is there.
fn is_waiting(observed: Observed<'_>, work: &Sets) -> bool {
    let active = || work.old().into_iter().any(|it| view::size(&work.all[it]) > 0);
    view::is_recreate(observed.deployment) && (observed.old_pods || active())
}

/// A set for the Deployment's template.
fn fresh_set(deployment: &Deployment, work: &Sets) -> ReplicaSet {
    let spec = deployment.spec.clone().unwrap_or_default();
    let collisions = deployment.status.as_ref().and_then(|it| it.collision_count);
    let name_of_template = hash::of(&view::essence(&spec.template), collisions);
    let mut template = spec.template;
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH.to_owned(), name_of_template.clone());
    let labels = labels.clone();
    let mut selector = spec.selector;
    let exact = selector.match_labels.get_or_insert_default();
    exact.insert(HASH.to_owned(), name_of_template.clone());
    let owner = deployment.metadata.name.as_deref().unwrap_or_default();
    let wanted = view::replicas(deployment);
    let room = if view::is_recreate(deployment) {
        wanted
    } else {
        (wanted + view::max_surge(deployment) - work.standing()).clamp(0, wanted)
    };
    let mut set = ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{owner}-{name_of_template}")),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels),
            owner_references: Some(vec![reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(room),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    };
    let next = revision::highest(&work.all) + 1;
    revision::annotate(&mut set, deployment, next);
    revision::note_size(&mut set, deployment);
    set
}
