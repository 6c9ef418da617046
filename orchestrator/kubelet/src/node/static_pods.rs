//! Pods from manifests in a directory of this node, and the mirrors that show them at the API server.

use crate::pod;
use anyhow::{Context as _, Result, bail};
use fairlead_schema::{Registry, defaults};
use k8s_openapi::{
    api::core::v1::{Node as NodeObject, Pod, Toleration},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams, Preconditions},
};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

/// Marks a mirror, with the uid of its static pod.
pub const MIRROR: &str = "kubernetes.io/config.mirror";

/// The hash of a static pod: its uid.
const HASH: &str = "kubernetes.io/config.hash";

/// Where a pod comes from.
const SOURCE: &str = "kubernetes.io/config.source";

/// How often the directory is read without news: upstream's `fileCheckFrequency`.
const READ: Duration = Duration::from_secs(20);

/// Whether a pod of the API server shows a static pod.
pub fn is_mirror(pod: &Pod) -> bool {
    mirrored(pod).is_some()
}

/// The uid of the static pod that this one shows.
pub fn mirrored(pod: &Pod) -> Option<&str> {
    pod.metadata.annotations.as_ref()?.get(MIRROR).map(String::as_str)
}

/// Follows a directory and tells all of its pods, at once and after each change, until `stop`.
pub async fn follow(
    directory: PathBuf,
    node_name: String,
    told: mpsc::UnboundedSender<Vec<Arc<Pod>>>,
    stop: CancellationToken,
) {
    let watched = watch(&directory);
    if let Err(error) = &watched {
        tracing::warn!(directory = %directory.display(), error = %error, "changes of manifests are seen every {} s only", READ.as_secs());
    }
    let mut watched = watched.ok();
    let mut last: Option<Vec<String>> = None;
    loop {
        let (read_from, name) = (directory.clone(), node_name.clone());
        let pods = tokio::task::spawn_blocking(move || read(&read_from, &name)).await;
        if let Ok(pods) = pods {
            let uids: Vec<_> = pods.iter().map(|it| pod::uid(it).to_owned()).collect();
            if last.as_ref() != Some(&uids) {
                last = Some(uids);
                if told.send(pods).is_err() {
                    return;
                }
            }
        }
        let changed = async {
            match &mut watched {
                Some(fd) => match fd.readable_mut().await {
                    Ok(mut guard) => {
                        // What changed does not matter: all is read again.
                        while guard.get_inner().0.read_events().is_ok() {}
                        guard.clear_ready();
                    }
                    Err(_) => std::future::pending().await,
                },
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = changed => {}
            () = tokio::time::sleep(READ) => {}
        }
    }
}

/// What [`AsyncFd`] needs to know of an [`Inotify`].
struct Watched(Inotify);

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Watched {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

fn watch(directory: &Path) -> Result<AsyncFd<Watched>> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let flags = AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_DELETE;
    inotify.add_watch(directory, flags)?;
    // SAFETY: `Watched` gives the descriptor that it owns, the same one each time, until it is dropped.
    let registered = unsafe { AsyncFd::register_with_interest(Watched(inotify), Interest::READABLE) };
    registered.map_err(|_| anyhow::anyhow!("changes of the directory cannot be waited for"))
}

/// All pods of a directory; a file that holds none is told in the log and hurts only itself.
fn read(directory: &Path, node_name: &str) -> Vec<Arc<Pod>> {
    let mut pods = BTreeMap::new();
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => {
            if error.kind() != std::io::ErrorKind::NotFound {
                tracing::warn!(directory = %directory.display(), error = %error, "manifests cannot be read");
            }
            return Vec::new();
        }
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if hidden || !path.is_file() {
            continue;
        }
        let parsed = std::fs::read_to_string(&path)
            .context("it cannot be read")
            .and_then(|text| parse(&text, node_name));
        match parsed {
            Ok(pod) => {
                pods.insert(pod::full_name(&pod), Arc::new(pod));
            }
            Err(error) => {
                tracing::warn!(file = %path.display(), error = format!("{error:#}"), "a manifest is left out");
            }
        }
    }
    pods.into_values().collect()
}

/// A pod from a manifest in YAML or JSON: defaults filled in, named after the node, with a uid made from its content.
///
/// # Errors
/// What is no pod, or a pod that needs objects of the API server.
pub fn parse(text: &str, node_name: &str) -> Result<Pod> {
    let mut value: Value = serde_saphyr::from_str(text).context("it is no YAML")?;
    let kind = (value["apiVersion"].as_str(), value["kind"].as_str());
    if kind != (Some("v1"), Some("Pod")) {
        bail!("it must hold one object of kind Pod and apiVersion v1");
    }
    let registry = Registry::builtin();
    let resource = registry
        .resources()
        .find(|it| *it.kind == *"Pod" && it.group.is_empty());
    if let Some(resource) = resource {
        defaults::apply(resource, &mut value);
    }
    let mut pod: Pod = serde_json::from_value(value).context("it is no valid Pod")?;
    let Some(name) = pod.metadata.name.clone().filter(|it| !it.is_empty()) else {
        bail!("metadata.name is missing");
    };
    let Some(spec) = &mut pod.spec else {
        bail!("spec is missing")
    };
    if spec.containers.is_empty() {
        bail!("spec.containers is empty");
    }
    let needs_objects = spec.volumes.iter().flatten().any(|it| {
        it.secret.is_some() || it.config_map.is_some() || it.projected.is_some() || it.persistent_volume_claim.is_some()
    });
    if needs_objects || spec.service_account_name.is_some() {
        bail!("a static pod cannot refer to Secrets, ConfigMaps, ServiceAccounts or claims");
    }
    spec.node_name = Some(node_name.to_owned());
    // No taint keeps a pod from the node whose manifest it is.
    spec.tolerations.get_or_insert_default().push(Toleration {
        operator: Some("Exists".to_owned()),
        effect: Some("NoExecute".to_owned()),
        ..Toleration::default()
    });
    pod.metadata.name = Some(format!("{name}-{}", node_name.to_lowercase()));
    pod.metadata.namespace.get_or_insert_with(|| "default".to_owned());
    pod.status = None;
    let mut hash = Sha256::new();
    hash.update(serde_json::to_vec(&pod).context("it cannot be written")?);
    let mut uid = String::new();
    for byte in hash.finalize().iter().take(16) {
        // Writing to a string cannot fail.
        let _ = write!(uid, "{byte:02x}");
    }
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(HASH.to_owned(), uid.clone());
    annotations.insert(SOURCE.to_owned(), "file".to_owned());
    pod.metadata.uid = Some(uid);
    Ok(pod)
}

/// Makes the mirror of a static pod, in the place of `existing`, which shows another.
///
/// # Errors
/// The API server's.
pub async fn make_mirror(client: &Client, pod: &Pod, existing: Option<&Pod>, node_name: &str) -> kube::Result<()> {
    let api: Api<Pod> = Api::namespaced(client.clone(), pod::namespace(pod));
    if let Some(existing) = existing {
        delete_mirror(client, existing).await?;
    }
    let nodes: Api<NodeObject> = Api::all(client.clone());
    let owner = nodes.get_opt(node_name).await?.and_then(|it| it.metadata.uid);
    let mut mirror = pod.clone();
    mirror.metadata.uid = None;
    mirror.metadata.resource_version = None;
    let uid = pod::uid(pod).to_owned();
    mirror
        .metadata
        .annotations
        .get_or_insert_default()
        .insert(MIRROR.to_owned(), uid);
    mirror.metadata.owner_references = owner.map(|uid| {
        vec![OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: node_name.to_owned(),
            uid,
            controller: Some(true),
            ..OwnerReference::default()
        }]
    });
    match api.create(&PostParams::default(), &mirror).await {
        Err(kube::Error::Api(error)) if error.code == 409 => {
            // Made before, and not seen yet; or the name is taken, which somebody should hear of.
            tracing::info!(
                pod = pod::full_name(pod),
                "there is a pod of the name of a static pod already"
            );
            Ok(())
        }
        other => other.map(drop),
    }
}

/// Deletes a mirror at once.
///
/// # Errors
/// The API server's; a mirror that is gone is none.
pub async fn delete_mirror(client: &Client, mirror: &Pod) -> kube::Result<()> {
    let api: Api<Pod> = Api::namespaced(client.clone(), pod::namespace(mirror));
    let parameters = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions {
            uid: mirror.metadata.uid.clone(),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    match api.delete(pod::name(mirror), &parameters).await {
        Err(kube::Error::Api(error)) if error.code == 404 || error.code == 409 => Ok(()),
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_become_pods_of_this_node() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: a, image: b}]}\n";
        let pod = parse(text, "Node1").unwrap();
        assert_eq!(pod::full_name(&pod), "default/web-node1");
        assert_eq!(pod.spec.as_ref().unwrap().restart_policy.as_deref(), Some("Always"));
        assert_eq!(
            pod::uid(&pod),
            pod::uid(&parse(text, "Node1").unwrap()),
            "the same each time"
        );
        let other = text.replace("image: b", "image: c");
        assert_ne!(pod::uid(&pod), pod::uid(&parse(&other, "Node1").unwrap()));
        assert!(!is_mirror(&pod));
    }

    #[test]
    fn what_is_no_pod_is_refused() {
        for text in [
            "",
            "a: [",
            "apiVersion: v1\nkind: List\n",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: []}\n",
            "apiVersion: v1\nkind: Pod\nmetadata: {}\nspec: {containers: [{name: a}]}\n",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: 5}\n",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: a}], volumes: [{name: v, secret: {secretName: s}}]}\n",
        ] {
            assert!(parse(text, "n").is_err(), "{text}");
        }
    }
}
