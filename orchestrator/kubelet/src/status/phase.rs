//! The phase of a pod, from the statuses of its containers.

use crate::worker::restart::{Policy, is_sidecar, restarts};
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod, PodStatus};

/// Whether a pod with this status never runs again.
pub(crate) fn is_terminal(status: &PodStatus) -> bool {
    matches!(status.phase.as_deref(), Some("Failed" | "Succeeded"))
}

/// `ended`: the pod is being ended and nothing of it runs.
pub(super) fn phase<'a>(pod: &Pod, status: &PodStatus, previous: &'a PodStatus, ended: bool) -> &'a str {
    if is_terminal(previous) {
        return previous.phase.as_deref().unwrap_or_default();
    }
    let spec = pod.spec.clone().unwrap_or_default();
    let init_specs = spec.init_containers.unwrap_or_default();
    let init_statuses = status.init_container_statuses.as_deref().unwrap_or_default();
    let app_statuses = status.container_statuses.as_deref().unwrap_or_default();
    let app_begun = app_statuses.iter().any(|it| exit(it).is_some() || is_running(it));
    let mut pending_init = false;
    let mut failed_init = false;
    for (spec, status) in init_specs.iter().zip(init_statuses) {
        if is_sidecar(spec) {
            pending_init |= !app_begun && status.started != Some(true);
            continue;
        }
        match exit(status) {
            Some(exit) if exit.exit_code == 0 => {}
            Some(exit) if !restarts(pod, spec, exit.exit_code) => failed_init = true,
            _ => pending_init |= !app_begun,
        }
    }
    if failed_init {
        return "Failed";
    }
    let running = app_statuses.iter().filter(|it| is_running(it)).count();
    let exits: Vec<_> = app_statuses.iter().filter_map(exit).collect();
    let all_well = exits.iter().all(|it| it.exit_code == 0);
    if ended {
        let complete = exits.len() == app_statuses.len() && all_well && !pending_init;
        return if complete { "Succeeded" } else { "Failed" };
    }
    if pending_init || running + exits.len() < app_statuses.len() {
        return "Pending";
    }
    if running > 0 {
        return "Running";
    }
    let again = spec
        .containers
        .iter()
        .zip(&exits)
        .any(|(spec, exit)| restarts(pod, spec, exit.exit_code));
    match (again, exits.is_empty(), all_well) {
        (_, true, _) => "Pending",
        (true, ..) => "Running",
        (false, _, true) => "Succeeded",
        (false, ..) if Policy::of_pod(pod) == Policy::Always && exits.is_empty() => "Running",
        (false, ..) => "Failed",
    }
}

fn is_running(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|it| it.running.is_some())
}

/// How it ended; also where the next start is waited for.
fn exit(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    let now = status.state.as_ref()?;
    if now.running.is_some() {
        return None;
    }
    now.terminated
        .as_ref()
        .or_else(|| status.last_state.as_ref()?.terminated.as_ref())
}
