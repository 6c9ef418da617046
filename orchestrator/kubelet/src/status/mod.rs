//! What is told of a pod: computed from what the runtime has, and sent to the API server.

mod conditions;
mod containers;
mod phase;
mod send;

pub use conditions::OWNED;
pub(crate) use phase::is_terminal;
pub(crate) use send::is_another;
pub use send::{Progress, Sender, Target, patch_body};

use crate::{
    pod::{self, ContainerKind, ContainerRef, Qos},
    worker::{
        observed::Observed,
        plan::{Decision, EndingKind, Memory},
    },
};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{ContainerStatus, HostIP, Pod, PodIP, PodStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};
use std::net::IpAddr;

/// All that a status is computed from.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The object.
    pub pod: &'a Pod,
    /// What the runtime has.
    pub seen: &'a Observed,
    /// What the worker remembers.
    pub memory: &'a Memory,
    /// What it decided last.
    pub decision: &'a Decision,
    /// What was told last.
    pub previous: &'a PodStatus,
    /// Addresses of the node, the preferred family first.
    pub node_ips: &'a [IpAddr],
}

/// Computes the status. Pure: transition times are `now` where a condition changes, else those of `previous`.
pub fn compute(facts: Facts<'_>, now: Timestamp) -> PodStatus {
    let Facts {
        pod,
        seen,
        memory,
        previous,
        node_ips,
        ..
    } = facts;
    let all = ContainerRef::all(pod);
    let statuses = |kinds: &[ContainerKind]| -> Option<Vec<ContainerStatus>> {
        let chosen = all.iter().filter(|it| kinds.contains(&it.kind));
        let list: Vec<_> = chosen.map(|it| containers::status(facts, it)).collect();
        (!list.is_empty()).then_some(list)
    };
    let mut status = PodStatus {
        container_statuses: statuses(&[ContainerKind::App]),
        init_container_statuses: statuses(&[ContainerKind::Init, ContainerKind::Sidecar]),
        ephemeral_container_statuses: statuses(&[ContainerKind::Ephemeral]),
        start_time: previous.start_time.clone().or(Some(Time(now))),
        qos_class: Some(Qos::of(pod).to_string()),
        observed_generation: pod.metadata.generation,
        reason: previous.reason.clone().filter(|_| is_terminal(previous)),
        message: previous.message.clone().filter(|_| is_terminal(previous)),
        nominated_node_name: previous.nominated_node_name.clone(),
        resize: previous.resize.clone(),
        ..PodStatus::default()
    };
    let ended = memory.ending.is_some() && !alive(seen) && !making(memory);
    status.phase = Some(phase::phase(pod, &status, previous, ended).to_owned());
    if let Some(EndingKind::Failed { reason, message }) = memory.ending.as_ref().map(|it| &it.kind) {
        status.reason = Some(reason.clone());
        status.message = Some(message.clone());
        if ended {
            status.phase = Some("Failed".to_owned());
        }
    }
    if let Some(first) = node_ips.first() {
        status.host_ip = Some(first.to_string());
        let all = node_ips.iter().map(|it| HostIP { ip: it.to_string() });
        status.host_ips = Some(all.collect());
    }
    let ips = addresses(pod, seen, node_ips);
    if ips.is_empty() {
        // A pod that has ended keeps the addresses that it had, for those who read about it later.
        status.pod_ip.clone_from(&previous.pod_ip);
        status.pod_ips.clone_from(&previous.pod_ips);
    } else {
        status.pod_ip = ips.first().map(IpAddr::to_string);
        status.pod_ips = Some(ips.iter().map(|it| PodIP { ip: it.to_string() }).collect());
    }
    status.conditions = Some(conditions::compute(facts, &status, now));
    status
}

/// Addresses of the pod, the node's preferred family first.
pub fn addresses(pod: &Pod, seen: &Observed, node_ips: &[IpAddr]) -> Vec<IpAddr> {
    let Some(sandbox) = seen.sandbox() else {
        return Vec::new();
    };
    if pod::host_network(pod) {
        return node_ips.to_vec();
    }
    let mut ips = sandbox.ips.clone();
    let six_first = node_ips.first().is_some_and(IpAddr::is_ipv6);
    ips.sort_by_key(|it| it.is_ipv6() != six_first);
    ips
}

fn alive(seen: &Observed) -> bool {
    use crate::worker::observed::State;
    let mut all = seen.containers.iter();
    all.any(|it| matches!(it.state, State::Running { .. } | State::Unknown))
}

fn making(memory: &Memory) -> bool {
    use crate::worker::plan::Task;
    memory.busy.keys().any(|it| matches!(it, Task::Start(_)))
}

#[cfg(test)]
mod tests;
