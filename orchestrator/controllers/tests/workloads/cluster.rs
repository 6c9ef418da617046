//! An API server with the controllers, in memory, gone with the test.

use crate::kubelet;
use fairlead_apiserver::{
    Inside, Settings,
    authn::User,
    open::{Running, Start},
};
use fairlead_controllers::{ClientFor, Config, SHARED, frame::Clock};
use fairlead_store::testing::EtcdDouble;
use futures::TryStreamExt as _;
use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{Namespace, Node, Pod, ServiceAccount},
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt as _, watcher},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fmt::Debug, sync::Arc, time::Duration};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// Where the tests' objects are.
pub(crate) const NAMESPACE: &str = "test";

/// Far beyond what anything takes: only a fault waits so long.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Cluster {
    pub(crate) clock: Clock,
    running: Arc<Running>,
    stop: CancellationToken,
    controllers: Option<JoinHandle<()>>,
    _kubelet: kubelet::Kubelet,
    _directory: TempDir,
}

/// A kind of [`NAMESPACE`].
pub(crate) trait Kind:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + DeserializeOwned
    + Serialize
    + Send
    + Sync
    + 'static
{
}
impl<K> Kind for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Serialize
        + Send
        + Sync
        + 'static
{
}

impl Cluster {
    /// With these nodes, and the controllers running.
    pub(crate) async fn start(nodes: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let start = Start::new(directory.path().to_owned(), listener.local_addr().unwrap().port());
        let backend = Arc::new(EtcdDouble::new());
        let running = Running::start(backend, Settings::default(), &start, listener)
            .await
            .unwrap();
        let running = Arc::new(running);
        let client = client(&running, "admin", &["system:masters"]);
        let mut this = Self {
            clock: Clock::default(),
            _kubelet: kubelet::Kubelet::start(client.clone()),
            running,
            stop: CancellationToken::new(),
            controllers: None,
            _directory: directory,
        };
        for node in nodes {
            this.add_node(node, &json!({})).await;
        }
        let namespace = json!({"metadata": {"name": NAMESPACE}});
        let namespaces = Api::<Namespace>::all(client);
        let namespace = serde_json::from_value(namespace).unwrap();
        namespaces.create(&PostParams::default(), &namespace).await.unwrap();
        this.create::<ServiceAccount>(json!({"metadata": {"name": "default"}}))
            .await;
        this.start_controllers();
        this
    }

    pub(crate) fn client(&self) -> Client {
        client(&self.running, "admin", &["system:masters"])
    }

    pub(crate) fn start_controllers(&mut self) {
        self.stop = CancellationToken::new();
        let running = Arc::clone(&self.running);
        let clients: ClientFor = Arc::new(move |name: &str| {
            if name == SHARED {
                return client(&running, "system:kube-controller-manager", &[]);
            }
            let user = User::service_account("kube-system", name, "");
            Client::new(Inside::new(Arc::clone(&running.server), user), "default")
        });
        let config = Config {
            clock: self.clock.clone(),
            ..Config::default()
        };
        let stop = self.stop.clone();
        let run = async move {
            let all = fairlead_controllers::workloads::all();
            fairlead_controllers::run_these(config, clients, all, stop)
                .await
                .unwrap();
        };
        self.controllers = Some(tokio::spawn(run));
    }

    /// Returns when the controllers do nothing any more.
    pub(crate) async fn stop_controllers(&mut self) {
        self.stop.cancel();
        if let Some(controllers) = self.controllers.take() {
            controllers.await.unwrap();
        }
    }

    pub(crate) async fn add_node(&self, name: &str, more: &Value) {
        let mut node = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}});
        for (field, value) in more.as_object().unwrap() {
            node[field] = value.clone();
        }
        let nodes = Api::<Node>::all(self.client());
        let node = serde_json::from_value(node).unwrap();
        nodes.create(&PostParams::default(), &node).await.unwrap();
        // A new node is not ready; what makes nodes ready is not here.
        let taints = more.pointer("/spec/taints").cloned().unwrap_or_default();
        let ready = Patch::Merge(json!({"spec": {"taints": taints}}));
        nodes.patch(name, &PatchParams::default(), &ready).await.unwrap();
    }

    pub(crate) fn api<K: Kind>(&self) -> Api<K> {
        Api::namespaced(self.client(), NAMESPACE)
    }

    pub(crate) async fn create<K: Kind>(&self, object: Value) -> K {
        let object: K = serde_json::from_value(object).unwrap();
        self.api::<K>().create(&PostParams::default(), &object).await.unwrap()
    }

    pub(crate) async fn get<K: Kind>(&self, name: &str) -> K {
        self.api::<K>().get(name).await.unwrap()
    }

    pub(crate) async fn list<K: Kind>(&self) -> Vec<K> {
        self.api::<K>().list(&Default::default()).await.unwrap().items
    }

    pub(crate) async fn patch<K: Kind>(&self, name: &str, patch: Value) -> K {
        let patch = Patch::Strategic(patch);
        self.api::<K>()
            .patch(name, &PatchParams::default(), &patch)
            .await
            .unwrap()
    }

    pub(crate) async fn delete<K: Kind>(&self, name: &str) {
        self.api::<K>().delete(name, &DeleteParams::default()).await.unwrap();
    }

    /// Returns when the objects of a kind are so; by name.
    pub(crate) async fn until<K: Kind>(&self, what: &str, so: impl Fn(&BTreeMap<String, K>) -> bool) {
        self.follow(what, |all| so(all).then_some(())).await;
    }

    /// Calls `look` with the objects of a kind, by name, after every change, until it has an answer.
    pub(crate) async fn follow<K: Kind, T>(
        &self,
        what: &str,
        mut look: impl FnMut(&BTreeMap<String, K>) -> Option<T>,
    ) -> T {
        let mut all = BTreeMap::new();
        let search = async {
            let events = watcher(self.api::<K>(), watcher::Config::default()).default_backoff();
            let mut events = std::pin::pin!(events);
            let mut listed = false;
            loop {
                match events.try_next().await.unwrap().expect("a watcher never ends") {
                    watcher::Event::Init => {
                        all.clear();
                        listed = false;
                    }
                    watcher::Event::InitApply(it) | watcher::Event::Apply(it) => {
                        all.insert(it.name_any(), it);
                    }
                    watcher::Event::Delete(it) => {
                        all.remove(&it.name_any());
                    }
                    watcher::Event::InitDone => listed = true,
                }
                if listed && let Some(found) = look(&all) {
                    return found;
                }
            }
        };
        let found = tokio::time::timeout(PATIENCE, search).await;
        found.unwrap_or_else(|_| panic!("never came: {what}; there is {:#}", serde_json::to_value(&all).unwrap()))
    }

    /// One object is so.
    pub(crate) async fn until_one<K: Kind>(&self, name: &str, what: &str, so: impl Fn(&K) -> bool) -> K {
        self.follow::<K, K>(what, |all| all.get(name).filter(|it| so(it)).cloned())
            .await
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn client(running: &Running, name: &str, groups: &[&str]) -> Client {
    let user = User::authenticated(name, groups.iter().copied());
    Client::new(Inside::new(Arc::clone(&running.server), user), "default")
}

/// Its `Ready` condition is true and nobody deleted it.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|it| it.conditions.as_ref());
    let ready = conditions
        .into_iter()
        .flatten()
        .any(|it| it.type_ == "Ready" && it.status == "True");
    ready && pod.metadata.deletion_timestamp.is_none()
}

/// A template of one container with this image and these labels.
pub(crate) fn template(labels: &Value, image: &str) -> Value {
    json!({
        "metadata": {"labels": labels},
        "spec": {"containers": [{"name": "main", "image": image}], "terminationGracePeriodSeconds": 0},
    })
}
