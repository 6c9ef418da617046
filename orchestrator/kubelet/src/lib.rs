//! Runs the pods of one node through CRI.

pub mod cri;
pub mod hooks;
pub mod logs;
pub mod probes;
pub mod server;
pub mod table;

use k8s_openapi::api::core::v1::Taint;
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

/// What a kubelet must know of its node.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the Node object, and the value of `spec.nodeName` of the pods to run.
    pub node_name: String,
    /// Addresses that the Node shows as InternalIP, the preferred family first; at most one of each.
    pub node_ips: Vec<IpAddr>,
    /// Labels that the Node is registered with, besides `kubernetes.io/hostname`, `/os` and `/arch`.
    pub labels: BTreeMap<String, String>,
    /// Taints that the Node is registered with.
    pub taints: Vec<Taint>,
    /// Directory of volumes and of all that pods need besides containers; upstream's `/var/lib/kubelet`.
    pub root_dir: PathBuf,
    /// Directory of the logs of all pods; upstream's `/var/log/pods`.
    pub log_dir: PathBuf,
    /// Cgroup below which `kubepods` is made, in each hierarchy, as `/` or `/fairlead`.
    pub cgroup_root: String,
    /// Unix socket of the container runtime.
    pub runtime_endpoint: PathBuf,
    /// Name servers of pods with `dnsPolicy: ClusterFirst`.
    pub cluster_dns: Vec<IpAddr>,
    /// As `cluster.local`.
    pub cluster_domain: String,
    /// Resolver settings that pods with `dnsPolicy: Default` get.
    pub resolv_conf: PathBuf,
    /// Directory of manifests of pods that run without an API server.
    pub static_pod_dir: Option<PathBuf>,
    /// Where the kubelet's own HTTPS port is; the port is shown in `Node.status.daemonEndpoints`.
    pub listen: SocketAddr,
    /// Certificates of that port; without them it stays closed.
    pub tls: Option<ServingTls>,
    /// Most pods on this node.
    pub max_pods: u32,
    /// Whether the Node object is made where there is none.
    pub register: bool,
}

/// Certificates of the kubelet's own port.
#[derive(Clone)]
pub struct ServingTls {
    /// PEM: the certificate shown to clients, then those between it and the authority.
    pub certificates: Vec<u8>,
    /// PEM: its key.
    pub key: Vec<u8>,
    /// PEM: authorities whose client certificates are believed; empty: none.
    pub client_ca: Vec<u8>,
}

impl std::fmt::Debug for ServingTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServingTls")
    }
}
