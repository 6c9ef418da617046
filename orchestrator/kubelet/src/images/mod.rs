//! Images of containers: pull policies, credentials, and what is told when an image cannot be had.

mod credentials;
mod reference;

pub use credentials::find as find_credentials;
pub use reference::{Reference, with_default_tag};

use crate::{
    cri::{Runtime, RuntimeError, v1},
    events::{Kind, Recorder},
    pod::{self, ContainerRef},
    worker::{backoff::Backoff, plan},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use kube::{Api, Client};
use std::{sync::Arc, time::Instant};
use tokio::sync::Semaphore;

/// How many images are fetched at a time: more would only share the link, and the disk.
const PARALLEL: usize = 4;

/// When something that is not the registry's fault is tried again.
const RETRY: SignedDuration = SignedDuration::from_secs(10);

/// Brings images to the node.
#[derive(Clone)]
pub struct Images {
    runtime: Runtime,
    client: Client,
    events: Recorder,
    pulls: Arc<Semaphore>,
}

impl Images {
    /// Over this runtime; Secrets are read, and events written, at this API server.
    pub fn new(runtime: Runtime, client: Client, events: Recorder) -> Self {
        Self {
            runtime,
            client,
            events,
            pulls: Arc::new(Semaphore::new(PARALLEL)),
        }
    }

    /// Makes sure that the image of a container is here, as its pull policy says. Never fails: what went wrong is in
    /// the answer. `before`: the answer of the attempt before this one, if it failed.
    pub async fn ensure(&self, pod: &Pod, it: &ContainerRef, spec: &Container, before: Option<Backoff>) -> plan::Image {
        let image = spec.image.clone().unwrap_or_default();
        let tell = |kind, reason: &str, message: &str| {
            self.events.pod(pod, Some(it.field_path()), kind, reason, message);
        };
        let Some(name) = with_default_tag(&image) else {
            let message = format!(
                "Failed to apply default image tag \"{image}\": couldn't parse image name \"{image}\": invalid reference format"
            );
            tell(Kind::Warning, "InspectFailed", &message);
            return failed("InvalidImageName", message, before, RETRY);
        };
        let here = match self.runtime.image(&name).await {
            Ok(here) => here,
            Err(error) => {
                let message = format!("Failed to inspect image \"{image}\": {}", error.message);
                tell(Kind::Warning, "InspectFailed", &message);
                return failed("ImageInspectError", message, before, RETRY);
            }
        };
        let policy = spec.image_pull_policy.as_deref().unwrap_or("IfNotPresent");
        match (here, policy) {
            (Some(here), "IfNotPresent" | "Never") => {
                let message =
                    format!("Container image \"{image}\" already present on machine and can be accessed by the pod");
                tell(Kind::Normal, "Pulled", &message);
                return plan::Image::Ready(here.id);
            }
            (None, "Never") => {
                let message = format!("Container image \"{image}\" is not present with pull policy of Never");
                tell(Kind::Warning, "ErrImageNeverPull", &message);
                tell(Kind::Warning, "Failed", "Error: ErrImageNeverPull");
                return failed("ErrImageNeverPull", message, before, RETRY);
            }
            _ => {}
        }
        self.pull(pod, it, &image, &name, before).await
    }

    async fn pull(
        &self,
        pod: &Pod,
        it: &ContainerRef,
        image: &str,
        name: &str,
        before: Option<Backoff>,
    ) -> plan::Image {
        let tell = |kind, reason: &str, message: &str| {
            self.events.pod(pod, Some(it.field_path()), kind, reason, message);
        };
        tell(Kind::Normal, "Pulling", &format!("Pulling image \"{image}\""));
        let waited = Instant::now();
        // The semaphore is never closed.
        let _permit = self.pulls.acquire().await;
        let begun = Instant::now();
        match self.pull_with_secrets(pod, name).await {
            Ok(reference) => {
                let size = match self.runtime.image(name).await {
                    Ok(Some(it)) => it.size,
                    _ => 0,
                };
                let message = format!(
                    "Successfully pulled image \"{image}\" in {} ({} including waiting). Image size: {size} bytes.",
                    short(begun.elapsed()),
                    short(waited.elapsed())
                );
                tell(Kind::Normal, "Pulled", &message);
                plan::Image::Ready(reference)
            }
            Err(error) => {
                let message = format!("failed to pull image \"{image}\": {}", error.message);
                tell(
                    Kind::Warning,
                    "Failed",
                    &format!("Failed to pull image \"{image}\": {}", error.message),
                );
                tell(Kind::Warning, "Failed", "Error: ErrImagePull");
                let now = Timestamp::now();
                let backoff = Backoff::next(before.as_ref(), now, now);
                failed("ErrImagePull", message, Some(backoff), backoff.wait)
            }
        }
    }

    async fn pull_with_secrets(&self, pod: &Pod, name: &str) -> Result<String, RuntimeError> {
        let mut tries: Vec<Option<v1::AuthConfig>> = Vec::new();
        if let Some(reference) = Reference::parse(name) {
            let secrets = self.secrets(pod).await;
            let (found, faults) = find_credentials(&secrets, &reference);
            for fault in faults {
                self.events.pod(
                    pod,
                    None,
                    Kind::Warning,
                    "FailedToRetrieveImagePullSecret",
                    &format!("Unable to use some image pull secrets: {fault}"),
                );
            }
            tries.extend(found.into_iter().map(Some));
        }
        if tries.is_empty() {
            tries.push(None);
        }
        let mut result = None;
        for auth in tries {
            match self.runtime.pull_image(name, auth, None).await {
                Ok(reference) => return Ok(reference),
                Err(error) => result = Some(error),
            }
        }
        // There is always one try, so there is always an error here.
        Err(result.unwrap_or_else(|| RuntimeError {
            rpc: "PullImage",
            object: name.to_owned(),
            code: tonic::Code::Internal,
            message: "nothing was tried".to_owned(),
        }))
    }

    /// The Secrets of `spec.imagePullSecrets`; the missing ones are told, and left out.
    async fn secrets(&self, pod: &Pod) -> Vec<Secret> {
        let names = pod.spec.iter().flat_map(|it| it.image_pull_secrets.iter().flatten());
        let api: Api<Secret> = Api::namespaced(self.client.clone(), pod::namespace(pod));
        let mut secrets = Vec::new();
        let mut missing = Vec::new();
        for it in names {
            match api.get_opt(&it.name).await {
                Ok(Some(secret)) => secrets.push(secret),
                Ok(None) => missing.push(it.name.clone()),
                Err(error) => {
                    tracing::warn!(pod = pod::full_name(pod), secret = it.name, error = %error, "an image pull secret could not be read");
                    missing.push(it.name.clone());
                }
            }
        }
        if !missing.is_empty() {
            let message = format!(
                "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                missing.join(", ")
            );
            self.events
                .pod(pod, None, Kind::Warning, "FailedToRetrieveImagePullSecret", &message);
        }
        secrets
    }
}

fn failed(reason: &str, message: String, backoff: Option<Backoff>, wait: SignedDuration) -> plan::Image {
    let now = Timestamp::now();
    plan::Image::Failed {
        reason: reason.to_owned(),
        message,
        since: now,
        retry: now.saturating_add(wait).unwrap_or(Timestamp::MAX),
        backoff,
    }
}

/// As `1.234s`, `56ms`.
fn short(duration: std::time::Duration) -> String {
    if duration.as_secs() == 0 {
        format!("{}ms", duration.as_millis())
    } else {
        format!("{:.3}s", duration.as_secs_f64())
    }
}
