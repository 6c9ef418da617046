//! Pods as their controllers see them: alive, ready, available; and new ones from a template.

use crate::frame::{Cache, Cached, Change, Key, Queue, owner_key};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::core::v1::{Pod, PodCondition, PodTemplateSpec},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time},
};
use std::{sync::Arc, time::Duration};

/// `status.phase`, `Pending` if nobody set it yet.
pub(crate) fn phase(pod: &Pod) -> &str {
    let phase = pod.status.as_ref().and_then(|it| it.phase.as_deref());
    phase.unwrap_or("Pending")
}

/// It ended by itself, well or badly.
pub(crate) fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// It was deleted and is still there.
pub(crate) fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Neither finished nor terminating.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && !is_terminating(pod)
}

/// The condition of a type.
pub(crate) fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_deref()?;
    conditions.iter().find(|it| it.type_ == kind)
}

/// Its `Ready` condition is true.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|it| it.status == "True")
}

/// Since when it is ready.
pub(crate) fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let ready = condition(pod, "Ready").filter(|it| it.status == "True")?;
    ready.last_transition_time.as_ref().map(|it| it.0)
}

/// When a ready pod is, or will be, available: ready for `min_ready_s` seconds. `None` if it is not ready.
pub(crate) fn available_at(pod: &Pod, min_ready_s: i32) -> Option<Timestamp> {
    if !is_ready(pod) {
        return None;
    }
    if min_ready_s <= 0 {
        return Some(Timestamp::MIN);
    }
    // Without a time nobody can say how long it has been ready; upstream waits then too.
    let since = ready_since(pod)?;
    since.checked_add(SignedDuration::from_secs(min_ready_s.into())).ok()
}

/// It has been ready for `min_ready_s` seconds.
pub(crate) fn is_available(pod: &Pod, min_ready_s: i32, now: Timestamp) -> bool {
    available_at(pod, min_ready_s).is_some_and(|at| at <= now)
}

/// How long until the first of these pods becomes available by time alone.
pub(crate) fn next_available<'a>(
    pods: impl IntoIterator<Item = &'a Pod>,
    min_ready_s: i32,
    now: Timestamp,
) -> Option<Duration> {
    let times = pods.into_iter().filter_map(|it| available_at(it, min_ready_s));
    let first = times.filter(|at| *at > now).min()?;
    Duration::try_from(first.duration_since(now)).ok()
}

/// The node that it runs on, or will.
pub(crate) fn node(pod: &Pod) -> Option<&str> {
    let node = pod.spec.as_ref()?.node_name.as_deref()?;
    (!node.is_empty()).then_some(node)
}

/// How often its containers were restarted, the ordinary ones and the sidecars.
pub(crate) fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|it| it.container_statuses.as_deref());
    statuses
        .unwrap_or_default()
        .iter()
        .map(|it| it.restart_count)
        .max()
        .unwrap_or_default()
}

/// A label's value.
pub(crate) fn label<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.labels.as_ref()?.get(name).map(String::as_str)
}

/// An annotation's value.
pub(crate) fn annotation<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(name).map(String::as_str)
}

/// When it was created; the far future for what was not yet.
pub(crate) fn created(meta: &ObjectMeta) -> Timestamp {
    meta.creation_timestamp.as_ref().map_or(Timestamp::MAX, |Time(at)| *at)
}

/// A pod from a template, for this controller, still without a name.
pub(crate) fn from_template(template: &PodTemplateSpec, namespace: &str, owner: OwnerReference) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            namespace: Some(namespace.to_owned()),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// The prefix of generated names of an owner's pods.
pub(crate) fn name_prefix(owner: &str) -> String {
    format!("{owner}-")
}

/// What a pod's change means for owners of kind `O`: the one that controls it, before and now; and if nobody does, all
/// that might adopt it, which `orphans` finds.
pub(crate) fn wake_owners<O: Cached>(
    change: &Change<Pod>,
    queue: &Queue,
    owners: &Arc<Cache<O>>,
    might_adopt: impl Fn(&O, &Pod) -> bool,
) {
    for pod in change.sides() {
        if let Some(key) = owner_key::<O, _>(&**pod) {
            queue.add(key);
        }
    }
    let Some(pod) = &change.new else { return };
    if crate::frame::controller_of(&**pod).is_some() || is_terminating(pod) {
        return;
    }
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    for owner in owners.in_namespace(namespace) {
        if might_adopt(&owner, pod) {
            queue.add(Key::of(&*owner));
        }
    }
}
