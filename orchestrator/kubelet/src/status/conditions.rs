//! The conditions of a pod that its kubelet owns.

use super::Facts;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{ContainerStatus, PodCondition, PodStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};

/// The types that the kubelet sets; all others are left as they are.
pub const OWNED: [&str; 5] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
];

struct Verdict {
    holds: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Verdict {
    fn yes() -> Self {
        Self {
            holds: true,
            reason: None,
            message: None,
        }
    }

    fn no(reason: &'static str, message: String) -> Self {
        Self {
            holds: false,
            reason: Some(reason),
            message: Some(message).filter(|it| !it.is_empty()),
        }
    }
}

pub(super) fn compute(facts: Facts<'_>, status: &PodStatus, now: Timestamp) -> Vec<PodCondition> {
    let sandbox = Verdict {
        holds: facts.seen.sandbox().is_some(),
        reason: None,
        message: None,
    };
    let ready_containers = containers_ready(status);
    let ready = ready(facts, &ready_containers);
    let verdicts = [
        ("PodReadyToStartContainers", sandbox),
        ("Initialized", initialized(facts, status)),
        ("Ready", ready),
        ("ContainersReady", ready_containers),
        ("PodScheduled", Verdict::yes()),
    ];
    let known = facts.previous.conditions.as_deref().unwrap_or_default();
    let mut list: Vec<_> = verdicts
        .into_iter()
        .map(|(type_, verdict)| {
            let holds = if verdict.holds { "True" } else { "False" };
            let before = known.iter().find(|it| it.type_ == type_);
            let same = before.filter(|it| it.status == holds);
            PodCondition {
                type_: type_.to_owned(),
                status: holds.to_owned(),
                reason: verdict.reason.map(str::to_owned),
                message: verdict.message,
                last_transition_time: same.and_then(|it| it.last_transition_time.clone()).or(Some(Time(now))),
                last_probe_time: None,
                observed_generation: facts.pod.metadata.generation,
            }
        })
        .collect();
    let foreign = known.iter().filter(|it| !OWNED.contains(&it.type_.as_str()));
    list.extend(foreign.cloned());
    list
}

fn initialized(facts: Facts<'_>, status: &PodStatus) -> Verdict {
    match status.phase.as_deref() {
        Some("Succeeded") => {
            return Verdict {
                holds: true,
                reason: Some("PodCompleted"),
                message: None,
            };
        }
        Some("Failed") | None => {}
        Some(_) if facts.decision.initialized => return Verdict::yes(),
        Some(_) => {}
    }
    let all = status.init_container_statuses.as_deref().unwrap_or_default();
    let specs = facts.pod.spec.as_ref().and_then(|it| it.init_containers.as_deref());
    let done = |(index, status): &(usize, &ContainerStatus)| {
        let spec = specs.and_then(|it| it.get(*index));
        if spec.is_some_and(crate::worker::restart::is_sidecar) {
            return status.started == Some(true);
        }
        status.ready
    };
    let open = all.iter().enumerate().filter(|it| !done(it)).map(|(_, it)| &*it.name);
    let open: Vec<_> = open.collect();
    if open.is_empty() {
        return Verdict::yes();
    }
    Verdict::no(
        "ContainersNotInitialized",
        format!("containers with incomplete status: [{}]", open.join(" ")),
    )
}

fn containers_ready(status: &PodStatus) -> Verdict {
    match status.phase.as_deref() {
        Some("Succeeded") => return Verdict::no("PodCompleted", String::new()),
        Some("Failed") => return Verdict::no("PodFailed", String::new()),
        _ => {}
    }
    let sidecars = status.init_container_statuses.iter().flatten();
    // Of the init containers, those that run beside the others count while they are not ready.
    let sidecars = sidecars.filter(|it| it.started == Some(true));
    let apps = status.container_statuses.iter().flatten();
    let unready: Vec<_> = sidecars
        .chain(apps)
        .filter(|it| !it.ready)
        .map(|it| &*it.name)
        .collect();
    if unready.is_empty() {
        return Verdict::yes();
    }
    Verdict::no(
        "ContainersNotReady",
        format!("containers with unready status: [{}]", unready.join(" ")),
    )
}

fn ready(facts: Facts<'_>, containers: &Verdict) -> Verdict {
    if !containers.holds {
        return Verdict {
            holds: false,
            reason: containers.reason,
            message: containers.message.clone(),
        };
    }
    let gates = facts.pod.spec.iter().flat_map(|it| it.readiness_gates.iter().flatten());
    let known = facts.previous.conditions.as_deref().unwrap_or_default();
    let closed = gates.filter_map(|gate| {
        let condition = known.iter().find(|it| it.type_ == gate.condition_type);
        match condition {
            None => Some(format!(
                "corresponding condition of pod readiness gate \"{}\" does not exist.",
                gate.condition_type
            )),
            Some(it) if it.status != "True" => Some(format!(
                "the status of pod readiness gate \"{}\" is not \"True\", but {}",
                gate.condition_type, it.status
            )),
            Some(_) => None,
        }
    });
    let closed: Vec<_> = closed.collect();
    if closed.is_empty() {
        return Verdict::yes();
    }
    Verdict::no("ReadinessGatesNotReady", closed.join(", "))
}
