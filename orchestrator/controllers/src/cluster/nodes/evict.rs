//! When a pod must leave a node with `NoExecute` taints: pure, from taints and tolerations.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, Taint, Toleration};

/// When a pod must go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Leave {
    /// At once.
    Now,
    /// At this time.
    At(Timestamp),
    /// It may stay.
    Never,
}

/// Whether a toleration covers a taint. Source: `Toleration` in the API.
pub(crate) fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let empty = |it: &Option<String>| it.as_ref().is_none_or(String::is_empty);
    if !empty(&toleration.effect) && toleration.effect.as_deref() != Some(taint.effect.as_str()) {
        return false;
    }
    if !empty(&toleration.key) && toleration.key.as_deref() != Some(taint.key.as_str()) {
        return false;
    }
    match toleration.operator.as_deref() {
        Some("Exists") => true,
        None | Some("" | "Equal") => {
            !empty(&toleration.key)
                && toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default()
        }
        Some(_) => false,
    }
}

/// When a pod must leave, by the taints of its node. Time counts from the taint's `timeAdded` (so that a restart of ours
/// gives nobody more), but not from before the pod came; `now` stands in where the taint has no time.
pub(crate) fn leave(taints: &[Taint], pod: &Pod, now: Timestamp) -> Leave {
    let tolerations = pod.spec.as_ref().and_then(|it| it.tolerations.as_deref());
    let tolerations = tolerations.unwrap_or_default();
    let status = pod.status.as_ref();
    let came = status
        .and_then(|it| it.start_time.as_ref())
        .or(pod.metadata.creation_timestamp.as_ref())
        .map(|it| it.0);
    let mut leave = Leave::Never;
    for taint in taints.iter().filter(|it| it.effect == "NoExecute") {
        let mut covering = tolerations.iter().filter(|it| tolerates(it, taint)).peekable();
        if covering.peek().is_none() {
            return Leave::Now;
        }
        // Of several that cover it the shortest counts.
        let Some(seconds) = covering.filter_map(|it| it.toleration_seconds).min() else {
            continue;
        };
        if seconds <= 0 {
            return Leave::Now;
        }
        let added = taint.time_added.as_ref().map_or(now, |it| it.0);
        let from = came.map_or(added, |it| it.max(added));
        let at = from
            .saturating_add(SignedDuration::from_secs(seconds))
            .unwrap_or(Timestamp::MAX);
        leave = leave.min(if at <= now { Leave::Now } else { Leave::At(at) });
    }
    leave
}
