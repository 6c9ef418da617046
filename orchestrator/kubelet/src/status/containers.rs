//! Status of one container.

use super::Facts;
use crate::{
    pod::{ContainerKind, ContainerRef},
    worker::{
        decide::is_started,
        observed::{Container as Seen, Exit, State},
    },
};
use k8s_openapi::{
    api::core::v1::{
        ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

/// How container ids are told: the runtime's name, then the id.
const RUNTIME: &str = "containerd";

pub(super) fn status(facts: Facts<'_>, it: &ContainerRef) -> ContainerStatus {
    let spec = it.spec(facts.pod);
    let previous = previous(facts, it);
    let mut status = ContainerStatus {
        name: it.name.clone(),
        image: spec.as_ref().and_then(|it| it.image.clone()).unwrap_or_default(),
        resources: spec.as_ref().and_then(|it| it.resources.clone()),
        started: Some(false),
        ..ContainerStatus::default()
    };
    let Some(seen) = facts.seen.newest(&it.name) else {
        unseen(facts, it, previous, &mut status);
        return status;
    };
    status.container_id = Some(id(&seen.id));
    status.image_id.clone_from(&seen.image_ref);
    status.restart_count = i32::try_from(seen.restart_count).unwrap_or(i32::MAX);
    status.last_state = facts.seen.previous(&it.name).and_then(terminated).or_else(|| {
        // The container before was pruned; what was told of it holds, if it was told of this container.
        let same = previous.filter(|it| it.container_id == status.container_id)?;
        same.last_state.clone()
    });
    match &seen.state {
        State::Running { started } => {
            status.state = Some(ContainerState {
                running: Some(ContainerStateRunning {
                    started_at: Some(Time(*started)),
                }),
                ..ContainerState::default()
            });
        }
        State::Exited(_) => {
            let waiting = facts.decision.waiting.get(&it.name);
            // A restart that takes no time to speak of is not told of.
            let told = waiting.filter(|it| it.reason != "ContainerCreating" && it.reason != "PodInitializing");
            if told.is_some() && facts.memory.ending.is_none() {
                status.last_state = terminated(seen);
                status.state = Some(waiting_state(facts, it));
            } else {
                status.state = terminated(seen);
            }
        }
        State::Created | State::Unknown => status.state = Some(waiting_state(facts, it)),
    }
    if let Some(spec) = &spec {
        status.started = Some(is_started(facts.memory, spec, seen));
        status.ready = match it.kind {
            ContainerKind::Init => seen.exit().is_some_and(|it| it.code == 0),
            _ if status.started != Some(true) => false,
            _ if spec.readiness_probe.is_none() => true,
            _ => facts.memory.health.get(&seen.id).and_then(|it| it.ready) == Some(true),
        };
    }
    status
}

/// Nothing is in the runtime under this name: not started yet, or removed since.
fn unseen(facts: Facts<'_>, it: &ContainerRef, previous: Option<&ContainerStatus>, status: &mut ContainerStatus) {
    let told = previous.filter(|it| it.container_id.is_some());
    let Some(told) = told else {
        status.state = Some(waiting_state(facts, it));
        return;
    };
    status.container_id.clone_from(&told.container_id);
    status.image_id.clone_from(&told.image_id);
    status.restart_count = told.restart_count;
    status.last_state.clone_from(&told.last_state);
    let ended = told.state.clone().filter(|it| it.terminated.is_some());
    let ended = ended.unwrap_or_else(|| lost(told));
    if facts.decision.waiting.contains_key(&it.name) && facts.memory.ending.is_none() {
        status.last_state = Some(ended);
        status.state = Some(waiting_state(facts, it));
    } else {
        status.ready = it.kind == ContainerKind::Init && told.ready;
        status.state = Some(ended);
    }
}

/// A container that was told to run, and is gone without a trace.
fn lost(told: &ContainerStatus) -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: 137,
            reason: Some("ContainerStatusUnknown".to_owned()),
            message: Some("The container could not be located when the pod was terminated".to_owned()),
            container_id: told.container_id.clone(),
            ..ContainerStateTerminated::default()
        }),
        ..ContainerState::default()
    }
}

fn previous<'a>(facts: Facts<'a>, it: &ContainerRef) -> Option<&'a ContainerStatus> {
    let list = match it.kind {
        ContainerKind::Init | ContainerKind::Sidecar => &facts.previous.init_container_statuses,
        ContainerKind::App => &facts.previous.container_statuses,
        ContainerKind::Ephemeral => &facts.previous.ephemeral_container_statuses,
    };
    list.iter().flatten().find(|status| status.name == it.name)
}

fn waiting_state(facts: Facts<'_>, it: &ContainerRef) -> ContainerState {
    let waiting = facts.decision.waiting.get(&it.name);
    let spec = facts.pod.spec.as_ref();
    let has_init = spec.is_some_and(|it| it.init_containers.as_ref().is_some_and(|it| !it.is_empty()));
    let usual = if has_init && it.kind == ContainerKind::App {
        "PodInitializing"
    } else {
        "ContainerCreating"
    };
    let reason = waiting.map_or(usual, |it| it.reason.as_str());
    let message = waiting.map(|it| it.message.clone()).filter(|it| !it.is_empty());
    ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.to_owned()),
            message,
        }),
        ..ContainerState::default()
    }
}

fn terminated(seen: &Seen) -> Option<ContainerState> {
    let Exit {
        started,
        finished,
        code,
        reason,
        message,
    } = seen.exit()?;
    let reason = match (reason.as_str(), code) {
        ("", 0) => "Completed",
        ("", _) => "Error",
        (reason, _) => reason,
    };
    Some(ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: *code,
            reason: Some(reason.to_owned()),
            message: Some(message.clone()).filter(|it| !it.is_empty()),
            started_at: started.map(Time),
            finished_at: Some(Time(*finished)),
            container_id: Some(id(&seen.id)),
            signal: None,
        }),
        ..ContainerState::default()
    })
}

fn id(id: &str) -> String {
    format!("{RUNTIME}://{id}")
}
