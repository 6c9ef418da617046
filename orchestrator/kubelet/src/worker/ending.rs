//! How a pod ends: containers within their grace, sidecars after the others and the last one first, then the sandbox,
//! then what is outside the runtime, then (for a pod that is deleted) everything that is left and the object itself.

use super::{
    observed::{Container as Seen, Observed, State},
    plan::{Action, Decision, Ending, EndingKind, Memory, Task},
};
use crate::pod::{ContainerKind, ContainerRef};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeMap;

/// Sidecars that outlive the grace of their pod still get this long.
const SIDECARS_LEAST: SignedDuration = SignedDuration::from_secs(2);

pub(super) fn decide(
    pod: &Pod,
    seen: &Observed,
    memory: &Memory,
    ending: &Ending,
    now: Timestamp,
    decision: &mut Decision,
) {
    // Nothing new may start. A pull can be given up; what makes containers must be waited for, or it leaves some behind.
    for task in memory.busy.keys() {
        if matches!(task, Task::Image(_)) {
            decision.actions.push(Action::Cancel(task.clone()));
        }
    }
    let makes = |it: &Task| matches!(it, Task::MakeSandbox | Task::Start(_) | Task::SetUp);
    let making = memory.busy.keys().any(makes);
    let alive: Vec<_> = seen.containers.iter().filter(|it| is_alive(it)).collect();
    if !alive.is_empty() {
        stop_containers(pod, &alive, memory, ending, now, decision);
        return;
    }
    if making {
        return;
    }
    let ready: Vec<_> = seen.sandboxes.iter().filter(|it| it.ready).collect();
    if !ready.is_empty() {
        for sandbox in ready {
            let id = sandbox.id.clone();
            decision.begin(memory, now, Action::StopSandbox { id });
        }
        return;
    }
    if !memory.torn_down {
        decision.begin(memory, now, Action::TearDown);
        return;
    }
    if ending.kind != EndingKind::Deleted || !memory.status_sent {
        return;
    }
    if !seen.sandboxes.is_empty() || !seen.containers.is_empty() {
        for container in &seen.containers {
            let (id, name) = (container.id.clone(), container.name.clone());
            decision.begin(memory, now, Action::RemoveContainer { id, name });
        }
        if seen.containers.is_empty() {
            for sandbox in &seen.sandboxes {
                let id = sandbox.id.clone();
                decision.begin(memory, now, Action::RemoveSandbox { id });
            }
        }
        return;
    }
    if memory.object_gone {
        decision.begin(memory, now, Action::Done);
    } else {
        decision.begin(memory, now, Action::Delete);
    }
}

fn is_alive(container: &Seen) -> bool {
    matches!(container.state, State::Running { .. } | State::Unknown)
}

fn stop_containers(
    pod: &Pod,
    alive: &[&Seen],
    memory: &Memory,
    ending: &Ending,
    now: Timestamp,
    decision: &mut Decision,
) {
    let all = ContainerRef::all(pod);
    let kinds: BTreeMap<&str, (ContainerKind, usize)> =
        all.iter().map(|it| (it.name.as_str(), (it.kind, it.index))).collect();
    let sidecar = |it: &Seen| match kinds.get(it.name.as_str()) {
        Some((ContainerKind::Sidecar, index)) => Some(*index),
        _ => None,
    };
    let others = alive.iter().any(|it| sidecar(it).is_none());
    let last = alive.iter().filter_map(|it| sidecar(it)).max();
    for container in alive {
        let mut deadline = ending.deadline();
        if let Some(index) = sidecar(container) {
            if others || Some(index) != last {
                continue;
            }
            deadline = deadline.max(now.saturating_add(SIDECARS_LEAST).unwrap_or(Timestamp::MAX));
        }
        let stop = Action::Stop {
            id: container.id.clone(),
            name: container.name.clone(),
            deadline,
            message: format!("Stopping container {}", container.name),
        };
        let task = Task::Stop(container.id.clone());
        match memory.busy.get(&task) {
            // A grace that was made shorter holds for what is being stopped already.
            Some(busy) if busy.deadline.is_some_and(|it| it > deadline) && sidecar(container).is_none() => {
                decision.actions.push(Action::Cancel(task));
                decision.actions.push(stop);
            }
            Some(_) => {}
            None => decision.begin(memory, now, stop),
        }
    }
}
