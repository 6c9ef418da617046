//! The pods of a Job: how they ended, and new ones.

use crate::{frame::reference, workloads::pods};
use jiff::Timestamp;
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Container, ContainerStatus, EnvVar, EnvVarSource, ObjectFieldSelector, Pod},
};
use kube::ResourceExt as _;

/// A pod with this finalizer was not counted yet.
pub(crate) const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
/// Label and annotation with the completion index.
pub(crate) const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// Annotation: how often pods of this index failed before.
pub(crate) const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// The variable with the completion index.
const VARIABLE: &str = "JOB_COMPLETION_INDEX";

/// Waits to be counted.
pub(crate) fn is_tracked(pod: &Pod) -> bool {
    pod.finalizers().iter().any(|it| it == FINALIZER)
}

/// The completion index.
pub(crate) fn index(pod: &Pod) -> Option<u32> {
    pods::annotation(&pod.metadata, INDEX)?.parse().ok()
}

/// Failures of the index before this pod.
pub(crate) fn index_failures(pod: &Pod) -> i32 {
    let count = pods::annotation(&pod.metadata, INDEX_FAILURES);
    count.and_then(|it| it.parse().ok()).unwrap_or_default()
}

/// A pod that terminates counts as failed at once, unless the Job replaces failed pods only.
pub(crate) fn is_failed(pod: &Pod, only_failed: bool) -> bool {
    match pods::phase(pod) {
        "Failed" => true,
        "Succeeded" => false,
        _ => !only_failed && pods::is_terminating(pod),
    }
}

/// The statuses of all its containers.
pub(crate) fn containers(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.as_ref();
    let usual = status.and_then(|it| it.container_statuses.as_deref());
    let first = status.and_then(|it| it.init_container_statuses.as_deref());
    usual.unwrap_or_default().iter().chain(first.unwrap_or_default())
}

/// When it ended: its last container, or when it became unready or was deleted.
pub(crate) fn ended_at(pod: &Pod) -> Timestamp {
    let ends = containers(pod).filter_map(|it| it.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref());
    let ready = || {
        pods::condition(pod, "Ready")?
            .last_transition_time
            .as_ref()
            .map(|it| it.0)
    };
    let deleted = || pod.metadata.deletion_timestamp.as_ref().map(|it| it.0);
    let last = ends.map(|it| it.0).max().or_else(ready).or_else(deleted);
    last.unwrap_or_else(|| pods::created(&pod.metadata))
}

/// How often the containers of a pod were restarted, all together.
pub(crate) fn restarts(pod: &Pod) -> i32 {
    containers(pod).map(|it| it.restart_count).sum()
}

/// A pod of a Job, for an index if the Job has indexes; `failures` of that index came before.
pub(crate) fn new(job: &Job, index: Option<u32>, failures: Option<i32>) -> Pod {
    let template = job.spec.as_ref().map(|it| it.template.clone()).unwrap_or_default();
    let namespace = job.namespace().unwrap_or_default();
    let mut pod = pods::from_template(&template, &namespace, reference(job));
    let name = job.name_any();
    pod.metadata
        .finalizers
        .get_or_insert_default()
        .push(FINALIZER.to_owned());
    let Some(index) = index else {
        pod.metadata.generate_name = Some(pods::name_prefix(&name));
        return pod;
    };
    let base = format!("{name}-{index}");
    pod.metadata.generate_name = Some(pods::name_prefix(&base));
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(INDEX.to_owned(), index.to_string());
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(INDEX.to_owned(), index.to_string());
    if let Some(failures) = failures {
        annotations.insert(INDEX_FAILURES.to_owned(), failures.to_string());
    }
    if let Some(spec) = &mut pod.spec {
        if spec.hostname.as_deref().unwrap_or_default().is_empty() {
            spec.hostname = Some(base);
        }
        let first = spec.init_containers.iter_mut().flatten();
        for container in first.chain(&mut spec.containers) {
            tell_index(container);
        }
    }
    pod
}

fn tell_index(container: &mut Container) {
    let variables = container.env.get_or_insert_default();
    if variables.iter().any(|it| it.name == VARIABLE) {
        return;
    }
    variables.push(EnvVar {
        name: VARIABLE.to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: None,
                field_path: format!("metadata.annotations['{INDEX}']"),
            }),
            ..EnvVarSource::default()
        }),
    });
}
