//! `spec.replicas` changed: its ReplicaSets get their shares at once, in the middle of a rollout too.

use super::{
    plan::Sets,
    view::{self, DESIRED, MAX},
};
use crate::workloads::pods;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

/// A set with pods was sized for another number.
pub(super) fn is_due(deployment: &Deployment, work: &Sets) -> bool {
    let wanted = i64::from(view::replicas(deployment));
    let sized_for = |set: &ReplicaSet| view::number(set, DESIRED).is_some_and(|it| it != wanted);
    work.all.iter().any(|it| view::size(it) > 0 && sized_for(it))
}

/// Scales; proportionally if several sets have pods and the strategy is a rolling update.
pub(super) fn scale(deployment: &Deployment, work: &mut Sets) {
    let wanted = view::replicas(deployment);
    if let Some(only) = active_or_latest(work) {
        // Also if it has the size: it must not look as if it were sized for another number for ever.
        work.resize(only, wanted, deployment);
        return;
    }
    if is_saturated(deployment, work) {
        for position in work.old() {
            if view::size(&work.all[position]) > 0 {
                work.resize(position, 0, deployment);
            }
        }
        return;
    }
    let mut active: Vec<usize> = (0..work.all.len())
        .filter(|it| view::size(&work.all[*it]) > 0)
        .collect();
    if view::is_recreate(deployment) {
        // The recreation empties the old ones next.
        for position in active {
            let size = view::size(&work.all[position]);
            work.resize(position, size, deployment);
        }
        return;
    }
    let total: i32 = active.iter().map(|it| view::size(&work.all[*it])).sum();
    let allowed = if wanted > 0 {
        wanted + view::max_surge(deployment)
    } else {
        0
    };
    let change = allowed - total;
    // The largest first: of equal ones the newest grows and the oldest shrinks.
    active.sort_by(|a, b| {
        let (a, b) = (&work.all[*a], &work.all[*b]);
        let age = pods::created(&a.metadata).cmp(&pods::created(&b.metadata));
        let age = if change > 0 { age.reverse() } else { age };
        view::size(b).cmp(&view::size(a)).then(age)
    });
    let mut sizes = Vec::new();
    let mut given = 0;
    for position in &active {
        let set = &work.all[*position];
        let share = share(set, deployment, change, given);
        given += share;
        sizes.push(view::size(set) + share);
    }
    // What rounding left over is the largest one's.
    if let Some(first) = sizes.first_mut() {
        *first = (*first + change - given).max(0);
    }
    for (position, size) in active.into_iter().zip(sizes) {
        work.resize(position, size, deployment);
    }
}

/// The only set with pods; without any, the newest.
fn active_or_latest(work: &Sets) -> Option<usize> {
    let mut active = (0..work.all.len()).filter(|it| view::size(&work.all[*it]) > 0);
    match (active.next(), active.next()) {
        (Some(only), None) => Some(only),
        (None, _) => work.new.or_else(|| work.all.len().checked_sub(1)),
        _ => None,
    }
}

/// The new set has all pods that are wanted, and they are available.
fn is_saturated(deployment: &Deployment, work: &Sets) -> bool {
    let wanted = view::replicas(deployment);
    work.new_set().is_some_and(|it| {
        view::size(it) == wanted && view::number(it, DESIRED) == Some(wanted.into()) && view::available(it) == wanted
    })
}

/// A set's share of `change`, of which `given` is given away.
fn share(set: &ReplicaSet, deployment: &Deployment, change: i32, given: i32) -> i32 {
    let size = view::size(set);
    if size == 0 || change == 0 || change == given {
        return 0;
    }
    let left = change - given;
    let share = fraction(set, deployment);
    if change > 0 { share.min(left) } else { share.max(left) }
}

fn fraction(set: &ReplicaSet, deployment: &Deployment) -> i32 {
    let size = i64::from(view::size(set));
    let wanted = i64::from(view::replicas(deployment));
    if wanted == 0 {
        return i32::try_from(-size).unwrap_or_default();
    }
    let most = wanted + i64::from(view::max_surge(deployment));
    let existing = deployment
        .status
        .as_ref()
        .and_then(|it| it.replicas)
        .unwrap_or_default();
    let before = view::number(set, MAX).unwrap_or_else(|| existing.into());
    if before <= 0 {
        return 0;
    }
    // Rounded to the nearest, halves up.
    let next = (2 * size * most + before) / (2 * before);
    i32::try_from(next - size).unwrap_or_default()
}
