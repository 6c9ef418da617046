//! A world of its own for each test: a server in a directory that goes with it, and all controllers on a clock that the
//! test moves.

use fairlead_apiserver::{
    ApiServer, Inside, Settings,
    authn::User,
    open::{Pki, Start},
};
use fairlead_controllers::{ClientFor, Config, SHARED, frame::Clock};
use fairlead_store::testing::EtcdDouble;
use futures::StreamExt as _;
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams, PostParams},
    core::{ApiResource, DynamicObject, NamespaceResourceScope},
    runtime::{WatchStreamExt as _, watcher},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::{collections::BTreeMap, fmt::Debug, path::Path, sync::Arc, time::Duration};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A test that hangs is ended: long after everything should have happened.
const HANGS: Duration = Duration::from_secs(300);

pub(crate) struct World {
    _directory: TempDir,
    server: Arc<ApiServer>,
    config: Config,
    running: Option<(CancellationToken, JoinHandle<()>)>,
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::with(|_, _| {}).await
    }

    /// With changed settings. The closure is also told where keys and certificates of the server are.
    pub(crate) async fn with(change: impl FnOnce(&mut Config, &Path)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings {
            service_cidrs: vec!["10.96.0.0/16".parse().unwrap(), "fd00:96::/112".parse().unwrap()],
            ..Settings::default()
        };
        let start = Start::new(directory.path().to_owned(), 6443);
        let pki = Pki::open(&start, None).unwrap();
        let server = ApiServer::open(Arc::new(EtcdDouble::new()), settings, &start, &pki)
            .await
            .unwrap();
        let mut config = Config::default();
        // Nodes are objects without kubelets here, which is no matter but for the tests of just that.
        config.cluster.node_grace = Duration::MAX;
        config.cluster.node_startup_grace = Duration::MAX;
        change(&mut config, &start.data_dir.join("pki"));
        let mut this = Self {
            _directory: directory,
            server,
            config,
            running: None,
        };
        this.resume();
        this
    }

    /// The clock that decides.
    pub(crate) fn clock(&self) -> Clock {
        self.config.clock.clone()
    }

    fn as_user(&self, name: &str, groups: &[&str]) -> Client {
        let user = User::authenticated(name, groups.iter().copied());
        Client::new(Inside::new(Arc::clone(&self.server), user), "default")
    }

    pub(crate) fn client(&self) -> Client {
        self.as_user("admin", &["system:masters"])
    }

    pub(crate) fn client_of(&self, name: &str, groups: &[&str]) -> Client {
        self.as_user(name, groups)
    }

    /// Starts the controllers again, which know nothing of before.
    pub(crate) fn resume(&mut self) {
        let server = Arc::clone(&self.server);
        let clients: ClientFor = Arc::new(move |name| {
            let user = match name {
                SHARED => User::authenticated("system:kube-controller-manager", Vec::<String>::new()),
                name => User::authenticated(
                    format!("system:serviceaccount:kube-system:{name}"),
                    ["system:serviceaccounts", "system:serviceaccounts:kube-system"],
                ),
            };
            Client::new(Inside::new(Arc::clone(&server), user), "default")
        });
        let stop = CancellationToken::new();
        let (config, token) = (self.config.clone(), stop.clone());
        let task = tokio::spawn(async move { fairlead_controllers::run(config, clients, token).await.unwrap() });
        self.running = Some((stop, task));
    }

    /// Ends the controllers, whatever they were doing.
    pub(crate) async fn pause(&mut self) {
        if let Some((stop, task)) = self.running.take() {
            stop.cancel();
            task.await.unwrap();
        }
    }

    pub(crate) async fn restart(&mut self) {
        self.pause().await;
        self.resume();
    }

    /// Creates an object from JSON; also its status, which a POST drops.
    pub(crate) async fn create(&self, object: Value) -> DynamicObject {
        let object: DynamicObject = serde_json::from_value(object).unwrap();
        let api = self.api_of(&object);
        let name = object.metadata.name.clone().unwrap_or_default();
        let made = api.create(&PostParams::default(), &object).await;
        let made = made.unwrap_or_else(|error| panic!("{name}: {error}"));
        match object.data.get("status") {
            None => made,
            Some(status) => {
                let patch = serde_json::json!({ "status": status });
                let name = made.metadata.name.clone().unwrap();
                api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch))
                    .await
                    .unwrap()
            }
        }
    }

    pub(crate) fn api_of(&self, object: &DynamicObject) -> Api<DynamicObject> {
        let types = object.types.clone().unwrap();
        let (group, version) = types.api_version.rsplit_once('/').unwrap_or(("", &types.api_version));
        let kind = kube::core::GroupVersionKind::gvk(group, version, &types.kind);
        let resource = ApiResource::from_gvk(&kind);
        match object.metadata.namespace.as_deref() {
            Some(namespace) => Api::namespaced_with(self.client(), namespace, &resource),
            None => Api::all_with(self.client(), &resource),
        }
    }

    pub(crate) fn all<K: Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client())
    }

    pub(crate) fn within<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client(), namespace)
    }

    /// A namespace, and the account that pods of it need.
    pub(crate) async fn namespace(&self, name: &str) {
        self.create(serde_json::json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } }))
            .await;
        let accounts = self.within::<k8s_openapi::api::core::v1::ServiceAccount>(name);
        seen(accounts, "the default account", |all| all.contains_key("default")).await;
    }
}

/// Follows a kind until what there is satisfies `done`, and returns it by name (or `namespace/name`).
pub(crate) async fn seen<K>(api: Api<K>, what: &str, done: impl Fn(&BTreeMap<String, K>) -> bool) -> BTreeMap<String, K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut all = BTreeMap::new();
    let follow = async {
        let (mut listed, mut synced) = (BTreeMap::new(), false);
        let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
        let name = |it: &K| it.meta().name.clone().unwrap_or_default();
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => (listed, synced) = (BTreeMap::new(), false),
                Ok(watcher::Event::InitApply(it)) => drop(listed.insert(name(&it), it)),
                Ok(watcher::Event::InitDone) => (all, synced) = (std::mem::take(&mut listed), true),
                Ok(watcher::Event::Apply(it)) => drop(all.insert(name(&it), it)),
                Ok(watcher::Event::Delete(it)) => drop(all.remove(&name(&it))),
                Err(error) => {
                    eprintln!("{what}: {error}");
                    continue;
                }
            }
            if synced && done(&all) {
                return;
            }
        }
    };
    if tokio::time::timeout(HANGS, follow).await.is_err() {
        panic!("never seen: {what}; last: {all:#?}");
    }
    all
}

/// Changes an object by a merge patch.
pub(crate) async fn patch<K>(api: &Api<K>, name: &str, patch: Value) -> K
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    api.patch(name, &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Changes an object's status by a merge patch.
pub(crate) async fn patch_status<K>(api: &Api<K>, name: &str, patch: impl Serialize + Debug) -> K
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .unwrap_or_else(|error| panic!("{name}: {error}"))
}
