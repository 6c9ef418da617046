//! What a decision comes to: calls of the runtime, hooks, volumes, and the events that tell of them.

use super::{backoff::Backoff, plan, run::Message};
use crate::{
    cri::RuntimeError,
    events::Kind as EventKind,
    hooks, images,
    node::Node,
    pod::{self, ContainerKind, ContainerRef},
    podspec::{self, ImageUser, Inputs, Invalid, names},
    status::is_another,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DeleteParams, Preconditions},
};
use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};
use tokio::sync::mpsc;

/// Containers get at least this long after a preStop hook that took all of the grace.
const LEAST_AFTER_HOOK: Duration = Duration::from_secs(2);

/// How a task ended.
#[derive(Debug)]
pub(super) enum Done {
    /// It worked, or not.
    Plain(Result<(), Fault>),
    /// The answer about an image.
    Image(plan::Image),
    /// The object is gone.
    Gone,
}

/// Why a task failed.
#[derive(Clone, Debug, Default)]
pub(super) struct Fault {
    /// For `state.waiting.reason`; empty where no container waits for this.
    pub reason: String,
    /// For people.
    pub message: String,
}

impl Fault {
    fn new(reason: &str, message: impl Into<String>) -> Self {
        Self {
            reason: reason.to_owned(),
            message: message.into(),
        }
    }
}

impl From<RuntimeError> for Fault {
    fn from(error: RuntimeError) -> Self {
        Self::new("", error.to_string())
    }
}

impl From<Invalid> for Fault {
    fn from(invalid: Invalid) -> Self {
        Self::new("CreateContainerConfigError", invalid.message())
    }
}

pub(super) async fn set_up(node: Arc<Node>, pod: Arc<Pod>) -> Done {
    Done::Plain(node.outside.set_up(&pod).await.map_err(|error| {
        let message = error.to_string();
        node.events.pod(&pod, None, EventKind::Warning, "FailedMount", &message);
        Fault::new("", message)
    }))
}

pub(super) async fn make_sandbox(node: Arc<Node>, pod: Arc<Pod>, attempt: u32) -> Done {
    let made = async {
        node.outside.before_sandbox(&pod).await?;
        let config = podspec::sandbox(&pod, &node.facts(), attempt).map_err(|it| it.message())?;
        let handler = "";
        node.runtime
            .run_sandbox(config, handler)
            .await
            .map_err(|error| error.message)
    };
    match made.await {
        Ok(_) => Done::Plain(Ok(())),
        Err(message) => {
            let text = format!("Failed to create pod sandbox: {message}");
            node.events
                .pod(&pod, None, EventKind::Warning, "FailedCreatePodSandBox", &text);
            Done::Plain(Err(Fault::new("", text)))
        }
    }
}

pub(super) async fn stop_sandbox(node: Arc<Node>, id: String) -> Done {
    Done::Plain(node.runtime.stop_sandbox(&id).await.map_err(Fault::from))
}

pub(super) async fn remove_sandbox(node: Arc<Node>, id: String) -> Done {
    Done::Plain(node.runtime.remove_sandbox(&id).await.map_err(Fault::from))
}

/// `log`: the number of the log to remove with the container.
pub(super) async fn remove_container(
    node: Arc<Node>,
    pod: Arc<Pod>,
    id: String,
    name: String,
    log: Option<u32>,
) -> Done {
    if let Err(error) = node.runtime.remove_container(&id).await {
        return Done::Plain(Err(error.into()));
    }
    if let Some(number) = log {
        let directory = names::pod_log_directory(&node.config.log_dir, &pod);
        let file = directory.join(names::container_log(&name, number));
        // It is no harm if it stays: the whole directory goes with the pod.
        let _ = tokio::fs::remove_file(file).await;
    }
    Done::Plain(Ok(()))
}

pub(super) async fn ensure_image(node: Arc<Node>, pod: Arc<Pod>, name: String, before: Option<Backoff>) -> Done {
    let found = ContainerRef::named(&pod, &name);
    let Some((it, spec)) = found.and_then(|it| {
        let spec = it.spec(&pod)?.into_owned();
        Some((it, spec))
    }) else {
        return Done::Plain(Err(Fault::new("", "the pod has no such container any more")));
    };
    let images: &images::Images = &node.images;
    Done::Image(images.ensure(&pod, &it, &spec, before).await)
}

/// What starting a container needs to know.
#[derive(Debug)]
pub(super) struct Start {
    pub name: String,
    pub sandbox_id: String,
    pub sandbox_attempt: u32,
    pub restart_count: u32,
    pub image_ref: String,
    pub pod_ips: Vec<IpAddr>,
    pub target_ids: BTreeMap<String, String>,
}

pub(super) async fn start(
    node: Arc<Node>,
    pod: Arc<Pod>,
    start: Start,
    worker: mpsc::UnboundedSender<Message>,
) -> Done {
    let Some(it) = ContainerRef::named(&pod, &start.name) else {
        return Done::Plain(Err(Fault::new("", "the pod has no such container any more")));
    };
    let path = it.field_path();
    let tell = |kind, reason: &str, message: &str| {
        node.events.pod(&pod, Some(path.clone()), kind, reason, message);
    };
    let id = match create(&node, &pod, &it, &start).await {
        Ok(id) => id,
        Err(fault) => {
            tell(EventKind::Warning, "Failed", &format!("Error: {}", fault.message));
            return Done::Plain(Err(fault));
        }
    };
    tell(EventKind::Normal, "Created", "Container created");
    if let Err(error) = node.runtime.start_container(&id).await {
        tell(EventKind::Warning, "Failed", &format!("Error: {}", error.message));
        return Done::Plain(Err(error.into()));
    }
    tell(EventKind::Normal, "Started", "Container started");
    let spec = it.spec(&pod);
    let hook = spec
        .as_ref()
        .filter(|it| it.lifecycle.as_ref().is_some_and(|it| it.post_start.is_some()));
    if let Some(spec) = hook {
        // It runs already, and that is told while the hook does its work.
        let _ = worker.send(Message::Look);
        let ran = hooks::post_start(&node.runtime, &pod, spec, &id, start.pod_ips.first().copied()).await;
        if let Err(error) = ran {
            tell(EventKind::Warning, error.reason(), &error.to_string());
            let _ = worker.send(Message::HookFailed(id));
        }
    }
    Done::Plain(Ok(()))
}

async fn create(node: &Node, pod: &Pod, it: &ContainerRef, start: &Start) -> Result<String, Fault> {
    let facts = node.facts();
    let objects = async { Ok(node.outside.env_objects(pod, it).await?) };
    let image = async {
        let image = node.runtime.image(&start.image_ref).await;
        image.map_err(|error| Fault::new("CreateContainerError", error.message))
    };
    let (objects, image) = tokio::try_join!(objects, image)?;
    let env = podspec::environment(pod, it, &facts, &objects, &start.pod_ips)?;
    if !env.skipped.is_empty() {
        for message in &env.skipped {
            node.events.pod(
                pod,
                Some(it.field_path()),
                EventKind::Warning,
                "InvalidEnvironmentVariableNames",
                message,
            );
        }
    }
    let mounts = node
        .outside
        .mounts(pod, it, &env, start.restart_count, &start.pod_ips)
        .await?;
    let target = pod.spec.iter().flat_map(|it| it.ephemeral_containers.iter().flatten());
    let target = target
        .filter(|ephemeral| it.kind == ContainerKind::Ephemeral && ephemeral.name == it.name)
        .find_map(|it| it.target_container_name.clone());
    let inputs = Inputs {
        image: start.image_ref.clone(),
        image_user: image.and_then(image_user),
        env,
        mounts,
        attempt: start.restart_count,
        target_id: target.and_then(|it| start.target_ids.get(&it).cloned()),
    };
    let config = podspec::container(pod, it, &inputs, &facts)?;
    let sandbox = podspec::sandbox(pod, &facts, start.sandbox_attempt)?;
    let created = node.runtime.create_container(&start.sandbox_id, config, sandbox).await;
    created.map_err(|error| Fault::new("CreateContainerError", error.message))
}

fn image_user(image: crate::cri::v1::Image) -> Option<ImageUser> {
    match (image.uid, image.username) {
        (Some(uid), _) => Some(ImageUser::Uid(uid.value)),
        (None, name) if !name.is_empty() => Some(ImageUser::Name(name)),
        (None, _) => None,
    }
}

/// What ending a container needs to know.
#[derive(Debug)]
pub(super) struct Stop {
    pub id: String,
    pub name: String,
    pub deadline: Timestamp,
    pub message: String,
    /// Not again: its hook ran, and its event was written.
    pub first: bool,
    pub pod_ip: Option<IpAddr>,
}

pub(super) async fn stop(node: Arc<Node>, pod: Arc<Pod>, stop: Stop) -> Done {
    let left = || Duration::try_from(stop.deadline.duration_since(Timestamp::now())).unwrap_or_default();
    let mut least = Duration::ZERO;
    let found = ContainerRef::named(&pod, &stop.name);
    if stop.first {
        let path = found.as_ref().map(ContainerRef::field_path);
        node.events
            .pod(&pod, path.clone(), EventKind::Normal, "Killing", &stop.message);
        let spec = found.as_ref().and_then(|it| it.spec(&pod));
        let hook = spec
            .as_ref()
            .filter(|it| it.lifecycle.as_ref().is_some_and(|it| it.pre_stop.is_some()));
        if let Some(spec) = hook.filter(|_| !left().is_zero()) {
            let ran = hooks::pre_stop(&node.runtime, &pod, spec, &stop.id, stop.pod_ip, left()).await;
            if let Err(error) = ran {
                node.events
                    .pod(&pod, path, EventKind::Warning, error.reason(), &error.to_string());
            }
            least = LEAST_AFTER_HOOK;
        }
    }
    // Whole seconds count; what is left of one is a second.
    let grace = left().max(least);
    let grace = Duration::from_secs(grace.as_secs() + u64::from(grace.subsec_nanos() > 0));
    Done::Plain(node.runtime.stop_container(&stop.id, grace).await.map_err(Fault::from))
}

pub(super) async fn tear_down(node: Arc<Node>, pod: Arc<Pod>) -> Done {
    Done::Plain(node.outside.tear_down(&pod).await.map_err(|message| {
        node.events
            .pod(&pod, None, EventKind::Warning, "FailedKillPod", &message);
        Fault::new("", message)
    }))
}

pub(super) async fn delete(node: Arc<Node>, pod: Arc<Pod>) -> Done {
    let api: Api<Pod> = Api::namespaced(node.client.clone(), pod::namespace(&pod));
    let parameters = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions {
            uid: Some(pod::uid(&pod).to_owned()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    match api.delete(pod::name(&pod), &parameters).await {
        Ok(answer) => {
            let left = answer.left().and_then(|it| it.metadata.finalizers);
            if left.is_some_and(|it| !it.is_empty()) {
                Done::Plain(Ok(()))
            } else {
                Done::Gone
            }
        }
        Err(kube::Error::Api(error)) if error.code == 404 => Done::Gone,
        Err(kube::Error::Api(error)) if is_another(&error, &api, pod::name(&pod), pod::uid(&pod)).await => Done::Gone,
        Err(error) => Done::Plain(Err(Fault::new("", error.to_string()))),
    }
}
