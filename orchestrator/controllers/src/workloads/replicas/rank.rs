//! Which pods go first when there are too many: those whose loss costs least.

use crate::workloads::pods;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use std::{cmp::Ordering, collections::HashMap, sync::Arc};

/// `controller.kubernetes.io/pod-deletion-cost`: lower goes first; 0 without it or if it is no number.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Sorts pods so that those to delete come first. `related` are active pods of all sets of the same owner: of two
/// equal pods the one goes first whose node has more of them.
pub(crate) fn rank(pods: &mut [Arc<Pod>], related: &[Arc<Pod>], now: Timestamp) {
    let mut crowd: HashMap<&str, usize> = HashMap::new();
    for pod in related.iter().filter(|it| pods::is_active(it)) {
        *crowd.entry(pods::node(pod).unwrap_or_default()).or_default() += 1;
    }
    let crowd = |pod: &Pod| {
        let node = pods::node(pod).unwrap_or_default();
        crowd.get(node).copied().unwrap_or_default()
    };
    pods.sort_by(|a, b| compare(a, b, crowd(a), crowd(b), now));
}

fn compare(a: &Pod, b: &Pod, crowd_a: usize, crowd_b: usize, now: Timestamp) -> Ordering {
    let phase = |pod: &Pod| match pods::phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let first = pods::node(a)
        .is_some()
        .cmp(&pods::node(b).is_some())
        .then_with(|| phase(a).cmp(&phase(b)))
        .then_with(|| pods::is_ready(a).cmp(&pods::is_ready(b)))
        .then_with(|| cost(a).cmp(&cost(b)))
        .then_with(|| crowd_b.cmp(&crowd_a));
    first
        .then_with(|| {
            if pods::is_ready(a) && pods::is_ready(b) {
                younger(pods::ready_since(a), pods::ready_since(b), now)
            } else {
                Ordering::Equal
            }
        })
        .then_with(|| pods::restarts(b).cmp(&pods::restarts(a)))
        .then_with(|| younger(Some(pods::created(&a.metadata)), Some(pods::created(&b.metadata)), now))
        // Within an age group the choice must not follow the age; a uid is as good as a draw.
        .then_with(|| a.metadata.uid.cmp(&b.metadata.uid))
}

fn cost(pod: &Pod) -> i32 {
    let cost = pods::annotation(&pod.metadata, DELETION_COST);
    cost.and_then(|it| it.parse().ok()).unwrap_or_default()
}

/// The younger first, by groups of ages that double (KEP-2185); what has no time counts as youngest.
fn younger(a: Option<Timestamp>, b: Option<Timestamp>, now: Timestamp) -> Ordering {
    let group = |at: Option<Timestamp>| {
        let age = at.map_or(0, |at| now.duration_since(at).as_secs());
        u64::try_from(age)
            .unwrap_or_default()
            .checked_ilog2()
            .map_or(0, |it| it + 1)
    };
    group(a).cmp(&group(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::{
        api::core::v1::{ContainerStatus, PodCondition, PodSpec, PodStatus},
        apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    };

    const NOW: Timestamp = Timestamp::constant(1_000_000, 0);

    fn pod(name: &str, node: &str, phase: &str, ready_for_s: Option<i64>, change: impl FnOnce(&mut Pod)) -> Arc<Pod> {
        let at = |seconds: i64| Time(Timestamp::from_second(1_000_000 - seconds).unwrap());
        let ready = ready_for_s.map(|seconds| PodCondition {
            type_: "Ready".to_owned(),
            status: "True".to_owned(),
            last_transition_time: Some(at(seconds)),
            ..PodCondition::default()
        });
        let mut pod = Pod {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                uid: Some(name.to_owned()),
                creation_timestamp: Some(at(5000)),
                ..ObjectMeta::default()
            },
            spec: Some(PodSpec {
                node_name: Some(node.to_owned()),
                ..PodSpec::default()
            }),
            status: Some(PodStatus {
                phase: Some(phase.to_owned()),
                conditions: ready.map(|it| vec![it]),
                ..PodStatus::default()
            }),
        };
        change(&mut pod);
        Arc::new(pod)
    }

    #[test]
    fn cheapest_loss_first() {
        let nothing = |_: &mut Pod| {};
        let mut all = vec![
            pod("old", "b", "Running", Some(4000), nothing),
            pod("restarted", "b", "Running", Some(4000), |it| {
                let status = ContainerStatus {
                    restart_count: 3,
                    ..ContainerStatus::default()
                };
                it.status.as_mut().unwrap().container_statuses = Some(vec![status]);
            }),
            pod("young", "b", "Running", Some(10), nothing),
            pod("crowded", "a", "Running", Some(4000), nothing),
            pod("cheap", "b", "Running", Some(4000), |it| {
                let cost = (DELETION_COST.to_owned(), "-5".to_owned());
                it.metadata.annotations = Some([cost].into());
            }),
            pod("unready", "b", "Running", None, nothing),
            pod("unknown", "b", "Unknown", None, nothing),
            pod("pending", "b", "Pending", None, nothing),
            pod("unassigned", "", "Pending", None, nothing),
        ];
        let mut related: Vec<_> = all.clone();
        related.extend((0..20).map(|it| pod(&format!("other{it}"), "a", "Running", Some(1), nothing)));
        rank(&mut all, &related, NOW);
        let names: Vec<_> = all.iter().map(|it| it.metadata.name.clone().unwrap()).collect();
        let expected = [
            "unassigned",
            "pending",
            "unknown",
            "unready",
            "cheap",
            "crowded",
            "young",
            "restarted",
            "old",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn ages_of_a_group_are_equal() {
        let at = |seconds| Some(NOW - SignedDuration::from_secs(seconds));
        use jiff::SignedDuration;
        assert_eq!(younger(at(5000), at(7000), NOW), Ordering::Equal);
        assert_eq!(younger(at(10), at(7000), NOW), Ordering::Less);
        assert_eq!(younger(at(-10), at(0), NOW), Ordering::Equal);
    }
}
