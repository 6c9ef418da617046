//! What the kubelet's own port shows.

use super::Node;
use crate::server::State;
use serde_json::json;
use std::{fmt::Write as _, sync::Arc};

/// For `server::serve`.
pub(crate) fn server_state(node: &Arc<Node>) -> State {
    let config = &node.config;
    let settings = json!({
        "kind": "KubeletConfiguration",
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "address": config.listen.ip().to_string(),
        "port": config.listen.port(),
        "staticPodPath": config.static_pod_dir,
        "clusterDomain": config.cluster_domain,
        "clusterDNS": config.cluster_dns,
        "resolvConf": config.resolv_conf,
        "podLogsDir": config.log_dir,
        "maxPods": config.max_pods,
        "cgroupRoot": config.cgroup_root,
        "registerNode": config.register,
        "containerRuntimeEndpoint": format!("unix://{}", config.runtime_endpoint.display()),
    });
    let shown = Arc::clone(node);
    State {
        node_name: config.node_name.clone(),
        table: Arc::clone(&node.table),
        runtime: node.runtime.clone(),
        client: node.client.clone(),
        config: settings,
        metrics: Arc::new(move || metrics(&shown)),
    }
}

fn metrics(node: &Node) -> String {
    let pods = node.table.all();
    let sandboxes = pods.iter().filter(|it| it.sandbox_id.is_some()).count();
    let mut text = String::new();
    let mut gauge = |name: &str, help: &str, labels: &str, value: usize| {
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "# HELP {name} {help}\n# TYPE {name} gauge\n{name}{labels} {value}\n"
        );
    };
    gauge(
        "kubelet_node_name",
        "The node's name. The count is always 1.",
        &format!("{{node=\"{}\"}}", node.config.node_name),
        1,
    );
    gauge(
        "kubelet_running_pods",
        "Number of pods that have a running pod sandbox",
        "",
        sandboxes,
    );
    let running = pods
        .iter()
        .flat_map(|it| it.containers.values())
        .filter(|it| it.running);
    gauge(
        "kubelet_running_containers",
        "Number of containers currently running",
        "{container_state=\"running\"}",
        running.count(),
    );
    text
}
