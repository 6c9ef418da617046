//! From old ReplicaSets to the new one, without leaving the fence of surge and unavailability.

use super::{plan::Sets, view};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

/// One step of a rolling update: first up, else down. Says whether there was one.
pub(super) fn rolling(deployment: &Deployment, work: &mut Sets) -> bool {
    grow(deployment, work) || shrink(deployment, work)
}

fn grow(deployment: &Deployment, work: &mut Sets) -> bool {
    let Some(new) = work.new else { return false };
    let wanted = view::replicas(deployment);
    let size = view::size(&work.all[new]);
    let next = if size > wanted {
        wanted
    } else {
        let room = wanted + view::max_surge(deployment) - work.standing();
        size + room.clamp(0, wanted - size)
    };
    if next != size {
        work.resize(new, next, deployment);
    }
    next != size
}

/// Available pods that stay: a set that was just told to shrink may still count those that are about to go.
fn serving(set: &ReplicaSet) -> i32 {
    view::available(set).min(view::size(set))
}

fn shrink(deployment: &Deployment, work: &mut Sets) -> bool {
    let old = work.old();
    if old.iter().all(|it| view::size(&work.all[*it]) == 0) {
        return false;
    }
    let least = view::replicas(deployment) - view::max_unavailable(deployment);
    let new_unavailable = work
        .new_set()
        .map(|it| view::size(it) - serving(it))
        .unwrap_or_default();
    let room = work.total() - least - new_unavailable;
    if room <= 0 {
        return false;
    }
    // Sets whose pods are not available lose those first: that costs nothing.
    let mut left = room;
    for position in &old {
        let set = &work.all[*position];
        let unhealthy = (view::size(set) - view::available(set)).clamp(0, left);
        if view::size(set) > 0 && unhealthy > 0 {
            left -= unhealthy;
            let next = view::size(set) - unhealthy;
            work.resize(*position, next, deployment);
        }
    }
    let mut scaled = left < room;
    let available: i32 = work.all.iter().map(serving).sum();
    let mut left = available - least;
    for position in old {
        if left <= 0 {
            break;
        }
        let size = view::size(&work.all[position]);
        let step = size.min(left);
        if step > 0 {
            left -= step;
            work.resize(position, size - step, deployment);
            scaled = true;
        }
    }
    scaled
}

/// One step of a recreation: everything old goes; once its last pod has, everything new comes.
pub(super) fn recreate(deployment: &Deployment, work: &mut Sets, old_pods: bool) -> bool {
    let mut scaled = false;
    for position in work.old() {
        if view::size(&work.all[position]) > 0 {
            work.resize(position, 0, deployment);
            scaled = true;
        }
    }
    if scaled || old_pods {
        return scaled;
    }
    let Some(new) = work.new else { return false };
    let wanted = view::replicas(deployment);
    let grows = view::size(&work.all[new]) != wanted;
    if grows {
        work.resize(new, wanted, deployment);
    }
    grows
}
