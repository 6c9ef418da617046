//! A cluster without kubelets: a real API server in this process, a scheduler with its real rights, nodes on paper.
#![allow(
    clippy::needless_pass_by_value,
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "each test program uses a part, nothing else sees it, and cases are written where they are used"
)]

use fairlead_apiserver::{
    Inside, Settings,
    authn::User,
    open::{Running, Start},
};
use fairlead_scheduler::{Config, Metrics};
use fairlead_store::{RedbStore, redb_store::Options};
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod, ServiceAccount},
    events::v1::Event,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
    runtime::wait::await_condition,
};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes: a test that waits for what never comes fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(90);

pub struct Cluster {
    pub client: Client,
    pub metrics: Metrics,
    running: Running,
    stop: CancellationToken,
    scheduler: Option<JoinHandle<anyhow::Result<()>>>,
    _directory: TempDir,
}

impl Cluster {
    /// An API server over a store of its own, and a scheduler.
    pub async fn start() -> Self {
        let mut cluster = Self::without_scheduler().await;
        cluster.start_scheduler();
        cluster
    }

    pub async fn without_scheduler() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let start = Start::new(directory.path().to_owned(), listener.local_addr().unwrap().port());
        let store = RedbStore::open(&directory.path().join("store"), Options::default()).unwrap();
        let running = Running::start(Arc::new(store), Settings::default(), &start, listener)
            .await
            .unwrap();
        let admin = User::authenticated("admin", ["system:masters"]);
        let client = Client::new(Inside::new(Arc::clone(&running.server), admin), "default");
        let cluster = Self {
            client,
            metrics: Metrics::default(),
            running,
            stop: CancellationToken::new(),
            scheduler: None,
            _directory: directory,
        };
        cluster.account("default").await;
        cluster
    }

    /// Starts a scheduler, as the user that upstream's is.
    pub fn start_scheduler(&mut self) {
        let user = User::authenticated("system:kube-scheduler", Vec::<String>::new());
        let client = Client::new(Inside::new(Arc::clone(&self.running.server), user), "default");
        let config = Config {
            seed: Some(7),
            metrics: self.metrics.clone(),
            ..Config::default()
        };
        self.stop = CancellationToken::new();
        let run = fairlead_scheduler::run(config, client, self.stop.clone());
        self.scheduler = Some(tokio::spawn(run));
    }

    /// Stops the scheduler, which must end well.
    pub async fn stop_scheduler(&mut self) {
        self.stop.cancel();
        let ended = self.scheduler.take().unwrap();
        within(ended).await.unwrap().unwrap();
    }

    /// Pods need it.
    async fn account(&self, namespace: &str) {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let account = json!({ "metadata": { "name": "default" } });
        accounts
            .create(&PostParams::default(), &serde_json::from_value(account).unwrap())
            .await
            .unwrap();
    }

    pub async fn namespace(&self, name: &str, labels: Value) {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let namespace = json!({ "metadata": { "name": name, "labels": labels } });
        namespaces
            .create(&PostParams::default(), &serde_json::from_value(namespace).unwrap())
            .await
            .unwrap();
        self.account(name).await;
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "default")
    }

    pub fn nodes(&self) -> Api<Node> {
        Api::all(self.client.clone())
    }

    /// A node with 4 processors, 8 GiB and room for 110 pods, changed by `with`.
    pub async fn node(&self, name: &str, with: Value) {
        let mut node = json!({
            "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
            "status": { "allocatable": {
                "cpu": "4", "memory": "8Gi", "ephemeral-storage": "10Gi", "pods": "110",
            } },
        });
        merge(&mut node, with);
        let status = json!({ "status": node["status"] });
        // A new node is tainted as not ready by admission, until controllers find that it is.
        let ready = json!({ "spec": { "taints": node["spec"]["taints"] } });
        let node: Node = serde_json::from_value(node).unwrap();
        let params = PatchParams::default();
        self.nodes().create(&PostParams::default(), &node).await.unwrap();
        self.nodes()
            .patch_status(name, &params, &Patch::Merge(&status))
            .await
            .unwrap();
        self.nodes().patch(name, &params, &Patch::Merge(&ready)).await.unwrap();
    }

    /// A pod of one container that asks for nothing, with this spec beside it.
    pub async fn pod(&self, name: &str, spec: Value) -> Pod {
        self.labelled(name, json!({}), spec).await
    }

    pub async fn labelled(&self, name: &str, labels: Value, spec: Value) -> Pod {
        self.pod_in("default", name, labels, spec).await
    }

    pub async fn pod_in(&self, namespace: &str, name: &str, labels: Value, spec: Value) -> Pod {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let pod = serde_json::from_value(pod(name, labels, spec)).unwrap();
        pods.create(&PostParams::default(), &pod).await.unwrap()
    }

    /// The node that a pod is given.
    pub async fn placed(&self, name: &str) -> String {
        self.until(name, |it| it.spec.as_ref().is_some_and(|it| it.node_name.is_some()))
            .await
            .spec
            .unwrap()
            .node_name
            .unwrap()
    }

    /// Creates a pod and returns the node that it is given.
    pub async fn place(&self, name: &str, spec: Value) -> String {
        self.pod(name, spec).await;
        self.placed(name).await
    }

    /// Waits until a pod's condition says that it got no node, for a reason that has these words.
    pub async fn refused(&self, name: &str, words: &str) -> String {
        let message = |it: &Pod| {
            let conditions = it.status.as_ref()?.conditions.as_ref()?;
            let condition = conditions.iter().find(|it| it.type_ == "PodScheduled")?;
            assert!(condition.status == "False", "{name} was given a node");
            assert!(condition.last_transition_time.is_some());
            condition.message.clone().filter(|it| it.contains(words))
        };
        let pod = self.until(name, |it| message(it).is_some()).await;
        message(&pod).unwrap()
    }

    pub async fn until(&self, name: &str, holds: impl Fn(&Pod) -> bool + Send) -> Pod {
        let met = await_condition(self.pods(), name, |it: Option<&Pod>| it.is_some_and(&holds));
        match tokio::time::timeout(PATIENCE, met).await {
            Ok(pod) => pod.unwrap().unwrap(),
            Err(_) => panic!("{name}: {:?}", self.pods().get(name).await.unwrap().status),
        }
    }

    pub async fn delete(&self, name: &str) {
        let now = kube::api::DeleteParams::default().grace_period(0);
        self.pods().delete(name, &now).await.unwrap();
    }

    /// Waits until the scheduler has heard all that was said of nodes so far, of which this one was the last. Nodes and
    /// pods are told of by different watches.
    pub async fn heard_of(&self, node: &str) {
        let name = format!("probe-{node}");
        let spec = json!({ "nodeSelector": { "kubernetes.io/hostname": node } });
        assert_eq!(self.place(&name, spec).await, node);
        self.delete(&name).await;
    }

    /// Waits until there is an event about a pod with this reason and note.
    pub async fn told(&self, name: &str, reason: &str, note: &str) {
        let events: Api<Event> = Api::namespaced(self.client.clone(), "default");
        let watch = kube::runtime::watcher(events, Default::default());
        let mut heard = std::collections::BTreeSet::new();
        let found = async {
            use futures::TryStreamExt as _;
            use kube::runtime::WatchStreamExt as _;
            let mut applied = std::pin::pin!(watch.applied_objects());
            while let Some(event) = applied.try_next().await.unwrap() {
                let about = event.regarding.and_then(|it| it.name);
                if about.as_deref() == Some(name) && event.reason.as_deref() == Some(reason) {
                    if event.note.as_deref() == Some(note) {
                        return;
                    }
                    heard.insert(event.note);
                }
            }
        };
        let found = tokio::time::timeout(PATIENCE, found).await;
        assert!(found.is_ok(), "{name}, {reason}: {heard:?}");
    }
}

/// A pod of one container that asks for nothing, changed by `spec`.
pub fn pod(name: &str, labels: Value, spec: Value) -> Value {
    let mut pod = json!({
        "metadata": { "name": name, "labels": labels },
        "spec": { "containers": [{ "name": "c", "image": "example.com/c:1" }] },
    });
    merge(&mut pod["spec"], spec);
    pod
}

/// A container that asks for this.
pub fn asks(requests: Value) -> Value {
    json!({ "containers": [{ "name": "c", "image": "example.com/c:1", "resources": { "requests": requests } }] })
}

pub fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

pub async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what)
        .await
        .expect("what was waited for did not come")
}
