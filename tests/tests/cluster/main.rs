//! A whole cluster in one process, driven by the real kubectl, with real containers. Needs root, containerd, the agent
//! (`FAIRLEAD_BIN`, or `fairlead` beside this executable) and the test image (`cargo xtask image test`).

mod configuration;
mod controllers;
mod life;
mod nodes;
mod pods;
mod services;
mod workloads;

use harness::{Cluster, Topology, cluster::IMAGE};
use serde_json::Value;

/// A client pod that waits to be told what to do.
fn client(cluster: &Cluster<'_>) {
    cluster.kubectl(&["run", "client", "--image", IMAGE, "--", "testbox", "sleep", "36000"]);
    cluster.wait_ready("pod/client");
}

/// A deployment of servers, each ready when it answers, and its Service of the same name on port 80.
fn server(cluster: &Cluster<'_>, name: &str, replicas: u32) {
    let container = serde_json::json!({
        "name": "main", "image": IMAGE, "command": ["testbox", "serve", "--drain", "2"],
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": 8080}, "periodSeconds": 1},
    });
    let labels = serde_json::json!({"app": name});
    let deployment = serde_json::json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": {
            "metadata": {"labels": labels}, "spec": {"containers": [container]}}},
    });
    cluster.kubectl_with(&["apply", "-f", "-"], &deployment.to_string());
    cluster.kubectl(&[
        "expose",
        "deployment",
        name,
        "--port=80",
        "--target-port=8080",
        "--name",
        name,
    ]);
    rolled_out(cluster, name);
}

fn rolled_out(cluster: &Cluster<'_>, name: &str) {
    cluster.kubectl(&["rollout", "status", &format!("deployment/{name}"), "--timeout=60s"]);
}

/// What testbox prints in the client pod.
fn in_client(cluster: &Cluster<'_>, words: &[&str]) -> String {
    cluster.kubectl(&[&["exec", "client", "--", "testbox"], words].concat())
}

/// Text of a JSON path; empty if there is none.
fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// One node of its own for a test.
fn one_node() -> Topology {
    Topology::standard(1, 0).expect("namespaces")
}
