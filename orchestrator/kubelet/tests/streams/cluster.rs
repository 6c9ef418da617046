//! A cluster of one node whose only pod was started by hand: API server, kubelet's port, containerd.
#![allow(unreachable_pub, reason = "nothing else sees it")]

use crate::{containerd::Containerd, support::TestServer};
use fairlead_apiserver::pki::{Identity, Profile};
use fairlead_kubelet::{
    ServingTls,
    server::{State, serve, tls_config},
    table::{ContainerIds, PodTable, RunningPod},
};
use serde_json::{Value, json};
use std::{net::Ipv4Addr, path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    net::TcpListener,
    process::{Child, Command},
};
use tokio_util::sync::{CancellationToken, DropGuard};

pub struct Cluster {
    // In this order: the server goes before what it serves.
    _stop: DropGuard,
    pub server: TestServer,
    pub kubelet: u16,
    pub table: Arc<PodTable>,
    pub containerd: Containerd,
    pub sandbox_id: String,
    kubeconfig: PathBuf,
}

pub const POD: &str = "p";
pub const NODE: &str = "node";

/// Longest that any command of these tests takes; one that hangs is a failure.
const PATIENCE: Duration = Duration::from_secs(120);

impl Cluster {
    /// The pod has a container `main` that sleeps, in its second run, and one `talk` that answers what it reads.
    pub async fn start() -> Self {
        let containerd = Containerd::start();
        let config = containerd.sandbox(POD);
        std::fs::create_dir_all(containerd.log_directory(POD)).unwrap();
        let sandbox_id = containerd.runtime.run_sandbox(config, "").await.unwrap();
        let before = containerd.container(&sandbox_id, POD, "main", 0, "echo before").await;
        let main = "trap 'exit 0' TERM; while :; do sleep 100 & wait; done";
        let main = containerd.container(&sandbox_id, POD, "main", 1, main).await;
        let talk = r#"while read line; do echo "got $line"; done; echo end"#;
        let talk = containerd.container(&sandbox_id, POD, "talk", 0, talk).await;

        let server = TestServer::start().await;
        let table = Arc::new(PodTable::default());
        let stop = CancellationToken::new();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let kubelet = listener.local_addr().unwrap().port();
        let authority = &server.running.pki.authority;
        let profile = Profile::kubelet_serving(NODE, [], [Ipv4Addr::LOCALHOST.into()]);
        let identity = Identity::issue(authority, &profile, jiff::Timestamp::now().as_second()).unwrap();
        let tls = ServingTls {
            certificates: identity.certificate.clone().into(),
            key: identity.key.clone().into(),
            client_ca: authority.pem().into(),
        };
        let user = server.as_user("system:node:node", &["system:nodes", "system:authenticated"]);
        let state = State {
            node_name: NODE.to_owned(),
            table: Arc::clone(&table),
            runtime: containerd.runtime.clone(),
            client: kube::Client::new(user, "default"),
            config: json!({ "maxPods": 110 }),
            metrics: Arc::new(|| "up 1\n".to_owned()),
        };
        tokio::spawn(serve(listener, tls_config(&tls).unwrap(), state, stop.clone()));
        let kubeconfig = server.kubeconfig();
        let cluster = Self {
            _stop: stop.drop_guard(),
            server,
            kubelet,
            table,
            containerd,
            sandbox_id,
            kubeconfig,
        };
        let pod = cluster.objects().await;
        let ids = |current: &str, previous: Option<&String>, restart_count| ContainerIds {
            current: Some(current.to_owned()),
            previous: previous.cloned(),
            running: true,
            restart_count,
        };
        cluster.table.insert(RunningPod {
            pod: Arc::new(serde_json::from_value(pod).unwrap()),
            sandbox_id: Some(cluster.sandbox_id.clone()),
            containers: [
                ("main".to_owned(), ids(&main, Some(&before), 1)),
                ("talk".to_owned(), ids(&talk, None, 0)),
            ]
            .into(),
            pod_ips: Vec::new(),
            log_directory: cluster.containerd.log_directory(POD),
        });
        cluster
    }

    /// The node and the pod, as the API server has them.
    async fn objects(&self) -> Value {
        let node = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": NODE },
            "status": {
                "addresses": [{ "type": "InternalIP", "address": "127.0.0.1" }],
                "daemonEndpoints": { "kubeletEndpoint": { "Port": self.kubelet } },
            },
        });
        assert_eq!(self.server.post("/api/v1/nodes", &node).await.0, 201);
        let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default" } });
        self.server
            .post("/api/v1/namespaces/default/serviceaccounts", &account)
            .await;
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": POD },
            "spec": {
                "nodeName": NODE, "hostNetwork": true,
                "containers": [
                    { "name": "main", "image": "i" },
                    { "name": "talk", "image": "i", "stdin": true, "stdinOnce": true },
                    { "name": "new", "image": "i" },
                ],
            },
        });
        let (code, mut made) = self.server.post("/api/v1/namespaces/default/pods", &pod).await;
        assert_eq!(code, 201, "{made}");
        let waiting = json!({
            "name": "new", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
            "state": { "waiting": { "reason": "ContainerCreating" } },
        });
        made["status"] = json!({ "phase": "Running", "containerStatuses": [waiting] });
        let (code, made) = self.server.put("/api/v1/namespaces/default/pods/p/status", &made).await;
        assert_eq!(code, 200, "{made}");
        made
    }

    /// A command line of a kubectl.
    pub fn kubectl(&self, kubectl: &std::path::Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(kubectl);
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(arguments);
        command.env("HOME", self.server.directory.path()).kill_on_drop(true);
        command
    }

    /// Runs one to its end: exit code, output, errors.
    pub async fn run(&self, kubectl: &std::path::Path, arguments: &[&str], input: &[u8]) -> (i32, Vec<u8>, String) {
        use std::process::Stdio;
        let mut command = self.kubectl(kubectl, arguments);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let writing = async {
            // The command may end before it has read everything.
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stdin, input).await;
            drop(stdin);
        };
        let ending = tokio::time::timeout(PATIENCE, async { tokio::join!(writing, child.wait_with_output()).1 });
        let output = ending
            .await
            .unwrap_or_else(|_| panic!("kubectl {arguments:?} hangs"))
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code().unwrap_or(-1), output.stdout, errors)
    }

    /// Runs one that must work; its output.
    pub async fn ok(&self, kubectl: &std::path::Path, arguments: &[&str]) -> String {
        let (code, output, errors) = self.run(kubectl, arguments, b"").await;
        assert_eq!(code, 0, "kubectl {arguments:?}: {errors}");
        String::from_utf8(output).unwrap()
    }
}

/// Reads lines until one has this in it.
pub async fn line_with(child: &mut Child, text: &str) -> String {
    use tokio::io::{AsyncBufReadExt as _, BufReader};
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    let found = tokio::time::timeout(PATIENCE, async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains(text) {
                return Some(line);
            }
        }
        None
    });
    found
        .await
        .unwrap_or_default()
        .unwrap_or_else(|| panic!("no line with {text:?}"))
}
