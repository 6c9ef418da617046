//! What runs on this node, for those who serve it: logs, streams, probes, statistics.

use k8s_openapi::api::core::v1::Pod;
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
};

/// The containers that one name of a pod stood for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerIds {
    /// The newest container, running or not.
    pub current: Option<String>,
    /// The one before it, kept for its log.
    pub previous: Option<String>,
    /// Whether the newest one runs.
    pub running: bool,
    /// How often it was started anew: the number in the name of the newest container's log.
    pub restart_count: u32,
}

/// A pod and what stands for it in the runtime.
#[derive(Clone, Debug)]
pub struct RunningPod {
    /// The object, as last seen; its status is what was last computed here.
    pub pod: Arc<Pod>,
    /// The sandbox in use.
    pub sandbox_id: Option<String>,
    /// By container name; init, app and ephemeral containers alike.
    pub containers: BTreeMap<String, ContainerIds>,
    /// Addresses of the pod, as in its status.
    pub pod_ips: Vec<IpAddr>,
    /// Directory of the logs of this pod.
    pub log_directory: PathBuf,
}

impl RunningPod {
    /// `metadata.uid`; for a static pod that of the manifest, which its mirror names in an annotation.
    pub fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }
}

/// The pods of this node. Readers get snapshots; only pod workers write.
#[derive(Debug, Default)]
pub struct PodTable {
    pods: RwLock<HashMap<String, Arc<RunningPod>>>,
}

impl PodTable {
    /// A pod by uid.
    pub fn by_uid(&self, uid: &str) -> Option<Arc<RunningPod>> {
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        pods.get(uid).cloned()
    }

    /// A pod by name: where an old one still ends while its successor of the same name exists, the newer one.
    pub fn by_name(&self, namespace: &str, name: &str) -> Option<Arc<RunningPod>> {
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        let named = pods.values().filter(|it| {
            let meta = &it.pod.metadata;
            meta.namespace.as_deref() == Some(namespace) && meta.name.as_deref() == Some(name)
        });
        named
            .max_by_key(|it| it.pod.metadata.creation_timestamp.as_ref().map(|time| time.0))
            .cloned()
    }

    /// All pods, in no order.
    pub fn all(&self) -> Vec<Arc<RunningPod>> {
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        pods.values().cloned().collect()
    }

    /// Puts a pod in, or replaces it.
    pub fn insert(&self, pod: RunningPod) {
        let mut pods = self.pods.write().unwrap_or_else(PoisonError::into_inner);
        pods.insert(pod.uid().to_owned(), Arc::new(pod));
    }

    /// Takes a pod out.
    pub fn remove(&self, uid: &str) {
        let mut pods = self.pods.write().unwrap_or_else(PoisonError::into_inner);
        pods.remove(uid);
    }
}
