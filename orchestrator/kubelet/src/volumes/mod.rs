//! [`Volumes`]: the volumes of this node's pods, and all else that they have on disk.
//!
//! Deciding what files a volume has (`payload.rs`) is apart from writing them (`disk.rs`, `atomic.rs`); `live.rs` keeps them
//! what they must be while the pod runs.

mod atomic;
mod disk;
mod host_path;
mod kernel;
mod layout;
mod live;
mod mounts;
mod payload;
mod subpath;
#[cfg(test)]
mod tests;

use crate::{
    cri::v1::Mount,
    objects::{ObjectRef, Objects},
    pod::{self, ContainerRef},
    podspec::{Cause, Environment, Facts, Invalid},
};
use k8s_openapi::api::core::v1::Pod;
use layout::Layout;
use live::Entry;
use std::{
    collections::{BTreeMap, HashMap},
    fmt, fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Volumes of a pod that cannot be had yet. `Display` is what the event with the reason `FailedMount` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetUpFailed {
    /// As `namespace/name`.
    pub pod: String,
    /// By volume.
    pub volumes: BTreeMap<String, Cause>,
}

impl fmt::Display for SetUpFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (volume, cause)) in self.volumes.iter().enumerate() {
            let separator = if index > 0 { "; " } else { "" };
            write!(
                f,
                "{separator}MountVolume.SetUp failed for volume \"{volume}\" : {cause}"
            )?;
        }
        Ok(())
    }
}

impl std::error::Error for SetUpFailed {}

/// The volumes of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mounted {
    volumes: BTreeMap<String, disk::Made>,
}

impl Mounted {
    /// Where a volume is on the node.
    pub fn path(&self, volume: &str) -> Option<&Path> {
        self.volumes.get(volume).map(|it| it.path.as_path())
    }
}

/// All volumes of this node. Cheap to clone.
#[derive(Clone)]
pub struct Volumes(Arc<Inner>);

struct Inner {
    layout: Layout,
    facts: Arc<Facts>,
    objects: Arc<dyn Objects>,
    /// The node's own, which pods on its network see.
    hosts_file: PathBuf,
    pods: Mutex<HashMap<String, Arc<Entry>>>,
    /// Something is due earlier than it was.
    wake: Notify,
}

impl fmt::Debug for Volumes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Volumes").field(&self.0.layout).finish()
    }
}

impl Volumes {
    /// Volumes below `root`, which is made if it is not there; upstream's `/var/lib/kubelet`.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn new(root: &Path, facts: Arc<Facts>, objects: Arc<dyn Objects>) -> io::Result<Self> {
        let explained = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", root.display()));
        fs::create_dir_all(root).map_err(explained)?;
        // What the kernel says of mounts knows no links.
        let layout = Layout::new(fs::canonicalize(root).map_err(explained)?);
        Ok(Self(Arc::new(Inner {
            layout,
            facts,
            objects,
            hosts_file: "/etc/hosts".into(),
            pods: Mutex::default(),
            wake: Notify::new(),
        })))
    }

    fn pods(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Entry>>> {
        self.0.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes all volumes of a pod what they must be, and keeps them so (see [`Volumes::run`]) until
    /// [`Volumes::tear_down`]. Also after a restart, for pods that run already: what is there stays. From here on the
    /// objects that the pod names are held.
    ///
    /// # Errors
    /// The volumes that cannot be had yet; the others are there.
    pub async fn set_up(&self, pod: &Pod) -> Result<Mounted, SetUpFailed> {
        let uid = pod::uid(pod).to_owned();
        let pod = Arc::new(pod.clone());
        let entry = self
            .pods()
            .entry(uid.clone())
            .or_insert_with(|| Arc::new(Entry::new(pod.clone())))
            .clone();
        // Before anything is read: what changes from now on is told.
        let refs = ObjectRef::of_pod(&pod);
        entry.refer(refs.clone());
        self.0.objects.hold(&uid, refs);
        self.fill(&entry, pod).await
    }

    /// The pod's labels, annotations or containers have changed: files that show them follow, and new objects are held.
    /// Does nothing if they have not, so that it may be told of every change of a pod.
    pub async fn update(&self, pod: &Pod) {
        let Some(entry) = self.pods().get(pod::uid(pod)).cloned() else {
            return;
        };
        if !entry.differs(pod).await {
            return;
        }
        let refs = ObjectRef::of_pod(pod);
        if entry.refer(refs.clone()) {
            self.0.objects.hold(pod::uid(pod), refs);
        }
        if let Err(error) = self.fill(&entry, Arc::new(pod.clone())).await {
            tracing::warn!(pod = error.pod, %error, "volumes do not follow the pod");
        }
    }

    /// All mounts of a container that is about to start: its `volumeMounts`, `/etc/hosts`, and the file for its last
    /// words. `attempt` is its restart count; `pod_ips` are the sandbox's addresses.
    ///
    /// # Errors
    /// A volume that is not there, a `subPath` that leads out of its volume or has variables that do not exist.
    pub async fn mounts(
        &self,
        pod: &Pod,
        container: &ContainerRef,
        env: &Environment,
        attempt: u32,
        pod_ips: &[IpAddr],
    ) -> Result<Vec<Mount>, Invalid> {
        let entry = self.pods().get(pod::uid(pod)).cloned();
        let mounted = entry.map(|it| it.mounted().clone()).unwrap_or_default();
        let work = mounts::Work {
            pod: pod.clone(),
            container: container.clone(),
            mounted,
            env: env.clone(),
            attempt,
            pod_ips: pod_ips.to_vec(),
            layout: self.0.layout.clone(),
            facts: self.0.facts.clone(),
            hosts_file: self.0.hosts_file.clone(),
        };
        let done = tokio::task::spawn_blocking(move || work.mounts()).await;
        done.unwrap_or_else(|error| {
            Err(Invalid::new(
                pod,
                Some(&container.name),
                "volumeMounts",
                Cause::Io(error.to_string()),
            ))
        })
    }

    /// The file on the node that the container's last words are in; it may not exist.
    ///
    /// # Errors
    /// Names that are no paths.
    pub fn termination_message(&self, uid: &str, container: &str, attempt: u32) -> io::Result<PathBuf> {
        Ok(self.0.layout.messages(uid, container)?.join(attempt.to_string()))
    }

    /// Takes away all that a pod has on disk, once its containers are gone. Objects are held no longer. Idempotent.
    ///
    /// # Errors
    /// What cannot be unmounted or deleted; to be called again.
    pub async fn tear_down(&self, uid: &str) -> io::Result<()> {
        let entry = self.pods().remove(uid);
        if let Some(entry) = &entry {
            // What is being written is finished first, and nothing is written after.
            entry.close().await;
        }
        self.0.objects.release(uid);
        let (layout, uid) = (self.0.layout.clone(), uid.to_owned());
        let done = tokio::task::spawn_blocking(move || disk::remove(&layout, &uid)).await;
        done.unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    /// The uids of all pods that have anything on disk, known or not: what a restarted kubelet does not find among its
    /// pods is torn down.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub async fn leftovers(&self) -> io::Result<Vec<String>> {
        let layout = self.0.layout.clone();
        let done = tokio::task::spawn_blocking(move || disk::uids(&layout)).await;
        done.unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    /// Keeps the volumes of running pods what they must be: when an object changes, when a token is to be renewed. Returns
    /// when `stop` is cancelled. What fails is logged, and the old files stay.
    pub async fn run(&self, stop: CancellationToken) {
        live::run(self, stop).await;
    }
}
