//! A node of its own for each test: the test program starts itself again in namespaces of its own (processes, mounts,
//! network), so that the kernel ends and removes everything with it; the outer half removes directory and cgroups.
#![allow(
    dead_code,
    unused_imports,
    missing_docs,
    unreachable_pub,
    reason = "each test program uses a part; nothing else sees it"
)]

mod network;
#[path = "../../../apiserver/tests/kubectl/programs.rs"]
pub mod programs;
mod runtime;

pub use runtime::{Containerd, TOOLS, tools};

use fairlead_apiserver::{
    Inside, Settings,
    authn::User,
    open::{Running, Start},
};
use fairlead_kubelet::Config;
use fairlead_store::testing::EtcdDouble;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Event, Namespace, Node, Pod, ServiceAccount};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, PostParams},
    runtime::watcher,
};
use serde_json::{Value, json};
use std::{
    env,
    future::Future,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// Says that this is the inner half, and where its directory is.
const INNER: &str = "FAIRLEAD_KUBELET_TEST_DIRECTORY";

/// After this long a test hangs. Nothing is decided by it but that it failed.
const HANGS: Duration = Duration::from_secs(120);

pub const NODE: &str = "n1";

/// Runs a test in namespaces of its own. `name` is the name of the test function that calls this.
pub fn isolated<F: Future<Output = ()>>(name: &str, test: impl FnOnce(PathBuf) -> F) {
    if let Some(directory) = env::var_os(INNER) {
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
        assert!(up.success());
        if env::var_os("RUST_LOG").is_some() {
            let filter = tracing_subscriber::EnvFilter::from_default_env();
            tracing_subscriber::fmt()
                .with_env_filter(filter)
                .with_writer(std::io::stderr)
                .init();
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            tokio::time::timeout(HANGS, test(directory.into()))
                .await
                .expect("the test hangs");
        });
        runtime.shutdown_background();
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED {name}: it needs root for namespaces and containers");
        return;
    }
    // Short, because paths of sockets may have 107 characters at most.
    let directory = tempfile::Builder::new().prefix("flk").tempdir().unwrap();
    let cgroup = cgroup_of(directory.path());
    let _cgroups = Cgroups(cgroup);
    let output = Command::new("unshare")
        .args([
            "--mount",
            "--net",
            "--pid",
            "--ipc",
            "--uts",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ])
        .arg(env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads", "1"])
        .env(INNER, directory.path())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    // Its count is that of this test, which must not be counted twice.
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{name} failed inside of its namespaces:\n{said}"
    );
}

fn cgroup_of(directory: &Path) -> String {
    format!("/{}", directory.file_name().unwrap().to_str().unwrap())
}

/// Removes cgroups, which no namespace takes along.
struct Cgroups(String);

impl Drop for Cgroups {
    fn drop(&mut self) {
        let hierarchies = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        for hierarchy in hierarchies.map(|it| it.path()).chain(["/sys/fs/cgroup".into()]) {
            remove_cgroup(&hierarchy.join(&self.0[1..]));
        }
    }
}

fn remove_cgroup(path: &Path) {
    for child in std::fs::read_dir(path).into_iter().flatten().flatten() {
        if child.file_type().is_ok_and(|it| it.is_dir()) {
            remove_cgroup(&child.path());
        }
    }
    if path.exists()
        && let Err(error) = std::fs::remove_dir(path)
    {
        eprintln!("{}: the cgroup could not be removed: {error}", path.display());
    }
}

/// API server, container runtime and kubelet.
pub struct Cluster {
    pub directory: PathBuf,
    pub running: Running,
    pub containerd: Containerd,
    pub admin: Client,
    kubelet: Option<(CancellationToken, JoinHandle<anyhow::Result<()>>)>,
}

impl Cluster {
    pub async fn start(directory: PathBuf) -> Self {
        let cluster = Self::without_kubelet(directory).await;
        let mut cluster = cluster;
        cluster.start_kubelet();
        cluster.node_ready().await;
        cluster
    }

    pub async fn without_kubelet(directory: PathBuf) -> Self {
        let containerd = Containerd::start(&directory).await;
        let data = directory.join("api");
        std::fs::create_dir_all(&data).unwrap();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let start = Start::new(data, listener.local_addr().unwrap().port());
        let running = Running::start(Arc::new(EtcdDouble::new()), Settings::default(), &start, listener)
            .await
            .unwrap();
        let admin = client(&running, "admin", &["system:masters"]);
        let accounts: Api<ServiceAccount> = Api::namespaced(admin.clone(), "default");
        let namespaces: Api<Namespace> = Api::all(admin.clone());
        for namespace in ["default", "kube-node-lease"] {
            let object = serde_json::from_value(json!({"metadata": {"name": namespace}})).unwrap();
            match namespaces.create(&PostParams::default(), &object).await {
                Ok(_) => {}
                Err(kube::Error::Api(error)) if error.code == 409 => {}
                Err(error) => panic!("{error}"),
            }
        }
        let account =
            serde_json::from_value(json!({"metadata": {"name": "default"}, "automountServiceAccountToken": false}));
        accounts
            .create(&PostParams::default(), &account.unwrap())
            .await
            .unwrap();
        Self {
            directory,
            running,
            containerd,
            admin,
            kubelet: None,
        }
    }

    pub fn config(&self) -> Config {
        Config {
            node_name: NODE.to_owned(),
            node_ips: vec!["192.168.0.1".parse().unwrap()],
            labels: [("disk".to_owned(), "ssd".to_owned())].into(),
            taints: Vec::new(),
            root_dir: self.directory.join("kubelet"),
            log_dir: self.directory.join("logs"),
            cgroup_root: cgroup_of(&self.directory),
            runtime_endpoint: self.containerd.socket(),
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            resolv_conf: "/etc/resolv.conf".into(),
            static_pod_dir: Some(self.manifests()),
            listen: "127.0.0.1:0".parse().unwrap(),
            tls: None,
            max_pods: 110,
            register: true,
        }
    }

    pub fn manifests(&self) -> PathBuf {
        let directory = self.directory.join("manifests");
        std::fs::create_dir_all(&directory).unwrap();
        directory
    }

    pub fn start_kubelet(&mut self) {
        assert!(self.kubelet.is_none());
        let stop = CancellationToken::new();
        let user = format!("system:node:{NODE}");
        let client = client(&self.running, &user, &["system:nodes"]);
        let run = tokio::spawn(fairlead_kubelet::run(self.config(), client, stop.clone()));
        self.kubelet = Some((stop, run));
    }

    pub async fn stop_kubelet(&mut self) {
        let (stop, run) = self.kubelet.take().unwrap();
        stop.cancel();
        run.await.unwrap().unwrap();
    }

    pub async fn node_ready(&self) {
        let nodes: Api<Node> = Api::all(self.admin.clone());
        let config = watcher::Config::default().fields(&format!("metadata.name={NODE}"));
        let mut stream = std::pin::pin!(watcher(nodes, config));
        while let Some(event) = stream.next().await {
            let (watcher::Event::Apply(node) | watcher::Event::InitApply(node)) = event.unwrap() else {
                continue;
            };
            let conditions = node.status.and_then(|it| it.conditions).unwrap_or_default();
            if conditions.iter().any(|it| it.type_ == "Ready" && it.status == "True") {
                return;
            }
        }
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.admin.clone(), "default")
    }

    /// Makes a pod of this node.
    pub async fn create(&self, name: &str, mut spec: Value) -> Pod {
        spec["nodeName"] = json!(NODE);
        if spec.get("terminationGracePeriodSeconds").is_none() {
            spec["terminationGracePeriodSeconds"] = json!(1);
        }
        let pod = json!({"metadata": {"name": name}, "spec": spec});
        let pod = serde_json::from_value(pod).unwrap();
        self.pods().create(&PostParams::default(), &pod).await.unwrap()
    }

    /// Waits until a pod is as wanted.
    pub async fn until(&self, name: &str, what: &str, wanted: impl Fn(&Pod) -> bool) -> Pod {
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let mut stream = std::pin::pin!(watcher(self.pods(), config));
        let mut last = None;
        let wait = async {
            while let Some(event) = stream.next().await {
                if let watcher::Event::Apply(pod) | watcher::Event::InitApply(pod) = event.unwrap() {
                    if wanted(&pod) {
                        return pod;
                    }
                    last = Some(pod);
                }
            }
            unreachable!("a watcher never ends");
        };
        match tokio::time::timeout(HANGS / 2, wait).await {
            Ok(pod) => pod,
            Err(_) => {
                let status = last.map(|it| serde_json::to_string_pretty(&it.status).unwrap());
                let events = self.events(name).await;
                panic!(
                    "{name} never was {what}: {}\nevents {events:#?}",
                    status.unwrap_or_default()
                );
            }
        }
    }

    pub async fn until_running(&self, name: &str) -> Pod {
        self.until(name, "running", |it| phase(it) == "Running").await
    }

    pub async fn until_gone(&self, name: &str) {
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let mut stream = std::pin::pin!(watcher(self.pods(), config));
        let mut there = false;
        let wait = async {
            while let Some(event) = stream.next().await {
                match event.unwrap() {
                    watcher::Event::Init => there = false,
                    watcher::Event::InitApply(_) | watcher::Event::Apply(_) => there = true,
                    watcher::Event::Delete(_) => return,
                    watcher::Event::InitDone if !there => return,
                    watcher::Event::InitDone => {}
                }
            }
        };
        if tokio::time::timeout(HANGS / 2, wait).await.is_err() {
            let pod = self.pods().get(name).await;
            panic!("{name} never went: {pod:#?}\n{:#?}", self.events(name).await);
        }
    }

    pub async fn delete(&self, name: &str) {
        self.pods().delete(name, &DeleteParams::default()).await.unwrap();
        self.until_gone(name).await;
    }

    /// Reasons and messages of the events about a pod, oldest first.
    pub async fn events(&self, name: &str) -> Vec<(String, String)> {
        let events: Api<Event> = Api::namespaced(self.admin.clone(), "default");
        let list = ListParams::default().fields(&format!("involvedObject.name={name}"));
        let mut events = events.list(&list).await.unwrap().items;
        events.sort_by_key(|it| it.first_timestamp.clone().map(|it| it.0));
        events
            .into_iter()
            .map(|it| (it.reason.clone().unwrap_or_default(), it.message.unwrap_or_default()))
            .collect()
    }

    /// Waits for an event about a pod.
    pub async fn until_event(&self, name: &str, reason: &str, part: &str) {
        let events: Api<Event> = Api::namespaced(self.admin.clone(), "default");
        let config = watcher::Config::default().fields(&format!("involvedObject.name={name}"));
        let mut stream = std::pin::pin!(watcher(events, config));
        let wait = async {
            while let Some(event) = stream.next().await {
                if let watcher::Event::Apply(it) | watcher::Event::InitApply(it) = event.unwrap()
                    && it.reason.as_deref() == Some(reason)
                    && it.message.as_deref().is_some_and(|it| it.contains(part))
                {
                    return;
                }
            }
        };
        if tokio::time::timeout(HANGS / 2, wait).await.is_err() {
            panic!("no event {reason} {part} about {name}: {:#?}", self.events(name).await);
        }
    }

    /// Ends the kubelet and everything in the runtime.
    pub async fn end(mut self) {
        if self.kubelet.is_some() {
            let pods = self.pods().list(&ListParams::default()).await.unwrap();
            for pod in pods {
                if !pod.annotations().contains_key("kubernetes.io/config.mirror") {
                    let now = DeleteParams::default().grace_period(1);
                    // One that goes already is no error.
                    let _ = self.pods().delete(&pod.name_any(), &now).await;
                }
            }
            for name in std::fs::read_dir(self.manifests()).unwrap().flatten() {
                std::fs::remove_file(name.path()).unwrap();
            }
            let config = watcher::Config::default();
            let mut stream = std::pin::pin!(watcher(self.pods(), config));
            let mut left = std::collections::HashSet::new();
            while let Some(event) = stream.next().await {
                match event.unwrap() {
                    watcher::Event::InitApply(pod) | watcher::Event::Apply(pod) => {
                        left.insert(pod.uid().unwrap());
                    }
                    watcher::Event::Delete(pod) => {
                        left.remove(&pod.uid().unwrap());
                        if left.is_empty() {
                            break;
                        }
                    }
                    watcher::Event::Init => left.clear(),
                    watcher::Event::InitDone if left.is_empty() => break,
                    watcher::Event::InitDone => {}
                }
            }
            self.stop_kubelet().await;
        }
        self.running.stop().await;
    }
}

pub fn client(running: &Running, name: &str, groups: &[&str]) -> Client {
    let user = User::authenticated(name, groups.iter().copied());
    Client::new(Inside::new(Arc::clone(&running.server), user), "default")
}

pub fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|it| it.phase.as_deref())
        .unwrap_or_default()
}

/// The status of a container, of whatever kind.
pub fn container<'a>(pod: &'a Pod, name: &str) -> Option<&'a k8s_openapi::api::core::v1::ContainerStatus> {
    let status = pod.status.as_ref()?;
    let init = status.init_container_statuses.iter().flatten();
    let app = status.container_statuses.iter().flatten();
    init.chain(app).find(|it| it.name == name)
}

/// Whether a condition holds.
pub fn holds(pod: &Pod, type_: &str) -> bool {
    let conditions = pod.status.iter().flat_map(|it| it.conditions.iter().flatten());
    conditions.clone().any(|it| it.type_ == type_ && it.status == "True")
}

/// `reason` of `state.waiting`.
pub fn waiting<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    container(pod, name)?
        .state
        .as_ref()?
        .waiting
        .as_ref()?
        .reason
        .as_deref()
}

/// A container that runs this script.
pub fn sh(name: &str, script: &str) -> Value {
    json!({"name": name, "image": TOOLS, "imagePullPolicy": "Never", "command": ["/bin/sh", "-c", script]})
}

/// A script that runs until it is told to end, and then does at once.
pub const WAIT: &str = "trap 'exit 0' TERM; while true; do sleep 3600 & wait $!; done";
