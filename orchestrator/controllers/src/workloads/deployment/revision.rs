//! Which revision each ReplicaSet is, what it remembers of its Deployment, and how many are kept.

use super::{
    plan::Sets,
    status::Conditions,
    view::{self, DESIRED, HISTORY, MAX, NOT_COPIED, REVISION},
};
use crate::workloads::pods;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

/// The longest list of former revisions of a set, in characters.
const HISTORY_LENGTH: usize = 2000;

/// The highest revision among sets; 0 if there is none.
pub(super) fn highest<'a>(sets: impl IntoIterator<Item = &'a ReplicaSet>) -> i64 {
    sets.into_iter().map(view::revision).max().unwrap_or_default()
}

/// Makes the set of the current template the newest revision.
pub(super) fn sync(deployment: &Deployment, work: &mut Sets, conditions: &mut Conditions) {
    let Some(new) = work.new else { return };
    let old = work.old();
    let next = highest(old.iter().map(|it| &work.all[*it])) + 1;
    let min_ready_s = view::spec(deployment).and_then(|it| it.min_ready_seconds);
    let set = &mut work.all[new];
    annotate(set, deployment, next);
    if let Some(spec) = &mut set.spec
        && spec.min_ready_seconds.unwrap_or_default() != min_ready_s.unwrap_or_default()
    {
        spec.min_ready_seconds = min_ready_s;
    }
    conditions.note_found(set);
}

/// Copies the Deployment's annotations, and raises the set's revision to `revision`; a former one goes to its history.
pub(super) fn annotate(set: &mut ReplicaSet, deployment: &Deployment, revision: i64) {
    let was = view::revision(set);
    let former = pods::annotation(&set.metadata, REVISION).map(str::to_owned);
    let theirs = deployment.metadata.annotations.clone().unwrap_or_default();
    let copied: Vec<_> = theirs
        .into_iter()
        .filter(|(name, _)| !NOT_COPIED.contains(&name.as_str()))
        .collect();
    if was >= revision && copied.is_empty() {
        return;
    }
    let annotations = set.metadata.annotations.get_or_insert_default();
    annotations.extend(copied);
    if was >= revision {
        return;
    }
    annotations.insert(REVISION.to_owned(), revision.to_string());
    if let Some(former) = former {
        let history = annotations.entry(HISTORY.to_owned()).or_default();
        if !history.is_empty() {
            history.push(',');
        }
        history.push_str(&former);
        while history.len() > HISTORY_LENGTH {
            let rest = history.split_once(',').map(|(_, rest)| rest.to_owned());
            *history = rest.unwrap_or_default();
        }
    }
}

/// Notes for what size of the Deployment the set was sized: how later runs see that the Deployment was scaled.
pub(super) fn note_size(set: &mut ReplicaSet, deployment: &Deployment) {
    let wanted = view::replicas(deployment);
    let annotations = set.metadata.annotations.get_or_insert_default();
    annotations.insert(DESIRED.to_owned(), wanted.to_string());
    annotations.insert(MAX.to_owned(), (wanted + view::max_surge(deployment)).to_string());
}

/// Names of old, empty sets beyond `spec.revisionHistoryLimit`, lowest revisions first.
pub(super) fn surplus(deployment: &Deployment, work: &Sets) -> Vec<Option<String>> {
    let limit = view::spec(deployment).and_then(|it| it.revision_history_limit);
    let Some(limit) = limit.and_then(|it| usize::try_from(it).ok()) else {
        return Vec::new();
    };
    let old = work.old().into_iter().map(|it| &work.all[it]);
    let mut old: Vec<_> = old.filter(|it| it.metadata.deletion_timestamp.is_none()).collect();
    let surplus = old.len().saturating_sub(limit);
    old.sort_by_key(|it| (view::revision(it), pods::created(&it.metadata)));
    let settled = |set: &ReplicaSet| {
        let observed = set.status.as_ref().and_then(|it| it.observed_generation);
        view::size(set) == 0 && view::existing(set) == 0 && observed >= set.metadata.generation
    };
    let first = old.into_iter().take(surplus);
    first
        .filter(|it| settled(it))
        .map(|it| it.metadata.name.clone())
        .collect()
}
