//! Runs the pods of one node through CRI.

pub mod cgroups;
pub mod cri;
pub mod events;
pub mod hooks;
pub mod images;
pub mod logs;
pub mod node;
pub mod objects;
pub mod pod;
pub mod podspec;
pub mod probes;
pub mod server;
pub mod status;
pub mod table;
pub mod volumes;
pub mod worker;

use crate::{
    cri::Runtime,
    events::Recorder,
    logs::{Limits, Rotator},
    node::Node,
    probes::Prober,
    table::PodTable,
};
use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Taint;
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::sync::CancellationToken;

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

/// How many results of probes may wait for the workers.
const OUTCOMES: usize = 1024;

/// Runs the pods of this node until `stop`; what runs then is left alone, and is adopted by the next start.
///
/// # Errors
/// Directories that cannot be made, an endpoint that is no path of a socket, a port that is taken, bad certificates.
pub async fn run(mut config: Config, client: kube::Client, stop: CancellationToken) -> Result<()> {
    for directory in [&config.root_dir, &config.log_dir] {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("{}: the directory cannot be made", directory.display()))?;
    }
    let door = match &config.tls {
        Some(tls) => {
            let tls = server::tls_config(tls).context("the kubelet's port")?;
            let listener = TcpListener::bind(config.listen)
                .await
                .with_context(|| format!("the kubelet's port {} cannot be used", config.listen))?;
            config.listen = listener.local_addr().context("the kubelet's port has no address")?;
            Some((listener, tls))
        }
        None => None,
    };
    let runtime = Runtime::new(&config.runtime_endpoint)?;
    // What runs as part of this ends with it, also when this is dropped.
    let stop = stop.child_token();
    let _ends = stop.clone().drop_guard();
    let events = Recorder::new(client.clone(), &config.node_name, stop.clone());
    let (outcome_sender, outcomes) = mpsc::channel(OUTCOMES);
    let prober = Prober::new(runtime.clone(), outcome_sender);
    let table = Arc::new(PodTable::default());
    let node = Arc::new(Node::new(config, client, runtime, events, prober, table)?);
    let (changed_sender, changed) = mpsc::unbounded_channel();
    let (manifest_sender, manifests) = mpsc::unbounded_channel();
    tokio::spawn(worker::pleg::run(node.runtime.clone(), changed_sender, stop.clone()));
    tokio::spawn(node::keep_status(Arc::clone(&node), stop.clone()));
    tokio::spawn(node::keep_lease(Arc::clone(&node), stop.clone()));
    tokio::spawn(rotator(&node).run(stop.clone()));
    let (outside, stopped) = (Arc::clone(&node), stop.clone());
    tokio::spawn(async move { outside.outside.run(stopped).await });
    if let Some((listener, tls)) = door {
        let served = server::serve(listener, tls, node::server_state(&node), stop.clone());
        tokio::spawn(async move {
            if let Err(error) = served.await {
                tracing::error!(error = %error, "the kubelet's port is closed: no logs, no exec");
            }
        });
    }
    if let Some(directory) = node.config.static_pod_dir.clone() {
        let name = node.config.node_name.clone();
        tokio::spawn(node::static_pods::follow(
            directory,
            name,
            manifest_sender,
            stop.clone(),
        ));
    }
    let inputs = worker::dispatch::Inputs {
        changed,
        outcomes,
        manifests,
    };
    worker::dispatch::run(node, inputs, stop).await;
    Ok(())
}

/// Rotates the logs of what runs.
fn rotator(node: &Arc<Node>) -> Rotator {
    let table = Arc::clone(&node.table);
    let active: logs::Active = Arc::new(move || {
        let mut all = Vec::new();
        for pod in table.all() {
            for (name, ids) in pod.containers.iter().filter(|(_, it)| it.running) {
                let file = pod.log_directory.join(logs::container_file(name, ids.restart_count));
                all.extend(ids.current.clone().map(|id| (id, file)));
            }
        }
        all
    });
    let runtime = node.runtime.clone();
    let reopen: logs::Reopen = Arc::new(move |id| {
        let runtime = runtime.clone();
        Box::pin(async move { Ok(runtime.reopen_log(&id).await?) })
    });
    Rotator::new(Limits::default(), active, reopen)
}
