//! The parts that every node has: container runtime, node network, kubelet, service proxy, DNS.

use super::{
    cluster::{DNS_PORT, dns_addresses},
    containerd::{self, CniPaths},
    layout::{Elsewhere, Layout},
    parts::{self, Parts},
    progress::Progress,
};
use crate::{
    orchestrator::{
        apiserver::{addresses, host_name},
        flags::NodeArgs,
    },
    proxy,
};
use ::proxy::{
    config::{Config as ProxyConfig, Host, Overrides},
    status::{Status, StatusHolder},
};
use anyhow::{Context as _, Result, bail};
use fairlead_dns as dns;
use fairlead_kubelet::ServingTls;
use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::{api::core::v1::Node as NodeObject, apimachinery::pkg::apis::meta::v1::Time};
use kube::{Api, Client, runtime::wait};
use nix::ifaddrs::getifaddrs;
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// Time until a node must be ready.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a node must know of its cluster.
#[derive(Clone, Debug)]
pub(crate) struct ClusterFacts {
    /// Ranges of pod addresses.
    pub(crate) pods: Vec<IpNet>,
    /// Ranges of ClusterIPs.
    pub(crate) services: Vec<IpNet>,
    /// Domain of the cluster's names.
    pub(crate) domain: String,
}

/// A node, resolved: every default has become a value.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) layout: Layout,
    pub(crate) name: String,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) facts: ClusterFacts,
    args: NodeArgs,
}

impl Settings {
    /// Fills in what was not said.
    ///
    /// # Errors
    /// This host has no usable address, or a flag makes no sense.
    pub(crate) fn resolve(args: &NodeArgs, layout: Layout, facts: ClusterFacts) -> Result<Self> {
        let name = args.node_name.clone().filter(|it| !it.trim().is_empty());
        let name = name
            .or_else(host_name)
            .context("--node-name: this host has no name; give one")?;
        let addresses = if args.node_ip.is_empty() {
            one_of_each_family(&addresses(None), &facts.pods)
        } else {
            args.node_ip.clone()
        };
        if addresses.is_empty() {
            bail!(
                "--node-ip: this host has no address but loopback; give the host one, for others reach the node by it"
            );
        }
        Ok(Self {
            layout,
            name: name.to_lowercase(),
            addresses,
            facts,
            args: args.clone(),
        })
    }

    /// What this node puts outside of its directories.
    fn elsewhere(&self) -> Elsewhere {
        let defaults = Elsewhere::defaults(&self.layout);
        Elsewhere {
            pod_cgroup: self.args.pod_cgroup_root.clone().unwrap_or(defaults.pod_cgroup),
            bpffs: self.args.bpffs.clone().unwrap_or(defaults.bpffs),
        }
    }

    /// Every address of the families that this node has.
    fn any_address(&self) -> IpAddr {
        if self.addresses.iter().any(IpAddr::is_ipv6) {
            IpAddr::from([0u16; 8])
        } else {
            IpAddr::from([0u8; 4])
        }
    }

    fn cni(&self) -> fairlead_cni::Config {
        fairlead_cni::Config {
            cluster_cidrs: self.facts.pods.clone(),
            ..network(&self.layout, &self.name)
        }
    }

    fn proxy(&self) -> Result<ProxyConfig> {
        let devices = if self.args.devices.is_empty() {
            links_of(&self.addresses)
        } else {
            self.args.devices.clone()
        };
        let overrides = Overrides {
            node_name: Some(self.name.clone()),
            devices,
            cgroup_root: self.args.socket_cgroup_root.clone(),
            bpffs: Some(self.elsewhere().bpffs),
            ..Overrides::default()
        };
        Ok(ProxyConfig::resolve(&overrides, None, &Host::read()?)?)
    }

    fn kubelet(&self, runtime: PathBuf, tls: ServingTls) -> Result<fairlead_kubelet::Config> {
        let mut labels = BTreeMap::new();
        for label in &self.args.node_labels {
            let (key, value) = label
                .split_once('=')
                .with_context(|| format!("--node-labels {label:?}: write KEY=VALUE"))?;
            labels.insert(key.to_owned(), value.to_owned());
        }
        Ok(fairlead_kubelet::Config {
            node_name: self.name.clone(),
            node_ips: self.addresses.clone(),
            labels,
            taints: Vec::new(),
            root_dir: self.layout.data.join("kubelet"),
            log_dir: self.layout.log().join("pods"),
            cgroup_root: self.elsewhere().pod_cgroup,
            runtime_endpoint: runtime,
            cluster_dns: dns_addresses(&self.facts.services),
            cluster_domain: self.facts.domain.clone(),
            resolv_conf: self.args.resolv_conf.clone(),
            static_pod_dir: self.args.pod_manifests.clone(),
            listen: SocketAddr::new(self.any_address(), self.args.kubelet_port),
            tls: Some(tls),
            max_pods: self.args.max_pods,
            register: true,
        })
    }

    fn dns(&self, bound: oneshot::Sender<dns::Bound>) -> dns::Config {
        let (corefile, pages) = match &self.args.corefile {
            Some(file) => (dns::Source::Path(file.clone()), dns::Http::Corefile),
            None => {
                let text = dns::corefile::default_corefile(&self.facts.domain);
                let text = text.replace("/etc/resolv.conf", &self.args.resolv_conf.display().to_string());
                // Pages on ports of the node that nobody asked for; whether DNS is there the node's condition says.
                (dns::Source::Text(text), dns::Http::Off)
            }
        };
        dns::Config {
            corefile,
            cluster_domain: self.facts.domain.clone(),
            listen: self.addresses.iter().map(|it| SocketAddr::new(*it, DNS_PORT)).collect(),
            health: pages,
            ready: pages,
            metrics: pages,
            bound: Some(bound),
            ..dns::Config::default()
        }
    }
}

/// The node network of a cluster on this machine, as far as it is the same for every node.
pub(crate) fn network(layout: &Layout, node: &str) -> fairlead_cni::Config {
    let paths = CniPaths::of(layout);
    fairlead_cni::Config {
        run_dir: layout.run.join("cni"),
        cni_bin_dir: paths.bin,
        cni_conf_dir: paths.conf,
        ..fairlead_cni::Config::new(node)
    }
}

/// The first address of each family, of those families that pods have.
fn one_of_each_family(all: &[IpAddr], pods: &[IpNet]) -> Vec<IpAddr> {
    let mut chosen: Vec<IpAddr> = Vec::new();
    for range in pods {
        let six = range.addr().is_ipv6();
        chosen.extend(all.iter().find(|it| it.is_ipv6() == six));
    }
    if chosen.is_empty() {
        chosen.extend(all.first());
    }
    chosen
}

/// Names of the links that hold these addresses.
fn links_of(addresses: &[IpAddr]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for interface in getifaddrs().into_iter().flatten() {
        let address = interface.address.as_ref();
        let four = address
            .and_then(|it| it.as_sockaddr_in())
            .map(|it| IpAddr::from(it.ip()));
        let six = address
            .and_then(|it| it.as_sockaddr_in6())
            .map(|it| IpAddr::from(it.ip()));
        let Some(address) = four.or(six) else { continue };
        if addresses.contains(&address) && !names.contains(&interface.interface_name) {
            names.push(interface.interface_name);
        }
    }
    names
}

/// What a node shows and who it is.
pub(crate) struct Identity {
    /// As `system:node:NAME`, in the group `system:nodes`.
    pub(crate) client: Client,
    /// For the kubelet's port.
    pub(crate) tls: ServingTls,
}

/// The running parts.
pub(crate) struct Node {
    stop: CancellationToken,
    tasks: Parts,
}

/// The container runtime of a node, and the images that came with it.
pub(crate) struct Containers {
    socket: PathBuf,
    /// Names of images from archives.
    pub(crate) images: Vec<String>,
}

/// The container runtime of a node: ours, or the one that was named.
///
/// # Errors
/// It does not come up, or refuses an image.
pub(crate) async fn runtime(settings: &Settings, progress: Progress) -> Result<Containers> {
    let since = Instant::now();
    let (socket, detail) = match &settings.args.container_runtime_endpoint {
        Some(socket) => (socket.clone(), socket.display().to_string()),
        None => {
            let runtime = containerd::start(&settings.layout, fairlead_images::PAUSE_IMAGE).await?;
            (runtime.socket, runtime.described)
        }
    };
    progress.done("container runtime", since, detail);
    let since = Instant::now();
    let (images, imported) = containerd::import(&settings.layout, &socket, &settings.args.image).await?;
    if imported > 0 {
        progress.done("images", since, format_args!("{imported} archives imported"));
    }
    Ok(Containers { socket, images })
}

impl Node {
    /// Starts them, and waits until the node is ready.
    ///
    /// # Errors
    /// What keeps a part from starting, or the node from being ready.
    pub(crate) async fn start(
        settings: &Settings,
        identity: Identity,
        containers: &Containers,
        progress: Progress,
    ) -> Result<Self> {
        settings.elsewhere().write(&settings.layout)?;
        let stop = CancellationToken::new();
        let mut tasks = Vec::new();
        let client = &identity.client;
        let network = fairlead_cni::run(settings.cni(), client.clone(), stop.child_token());
        tasks.push(("node network", tokio::spawn(network)));
        let kubelet = settings.kubelet(containers.socket.clone(), identity.tls)?;
        let kubelet = fairlead_kubelet::run(kubelet, client.clone(), stop.child_token());
        tasks.push(("kubelet", tokio::spawn(kubelet)));
        let ends = stop.child_token();
        let status = StatusHolder::new(Status::default());
        let told = async move { ends.cancelled().await };
        let serve = proxy::run(settings.proxy()?, Some(client.clone()), status.clone(), told);
        tasks.push(("service proxy", tokio::spawn(serve)));
        let (bound, names_served) = oneshot::channel();
        let names = dns::run(settings.dns(bound), client.clone(), stop.child_token());
        tasks.push(("cluster DNS", tokio::spawn(names)));
        let mut node = Self { stop, tasks };
        let since = Instant::now();
        let begun = Timestamp::now();
        let all = async {
            // In any order they come.
            let proxy = async {
                status.applied_at_least(1).await;
                progress.done("service proxy", since, "eBPF");
            };
            let names = async {
                if let Ok(bound) = names_served.await {
                    let addresses: Vec<_> = bound.dns.iter().map(ToString::to_string).collect();
                    progress.done("cluster DNS", since, addresses.join(", "));
                }
            };
            let node = async {
                ready(client.clone(), &settings.name, begun).await?;
                progress.done("kubelet, network", since, format_args!("{} is Ready", settings.name));
                anyhow::Ok(())
            };
            let (node, (), ()) = tokio::join!(node, proxy, names);
            node
        };
        let ready = tokio::select! {
            ready = all => ready,
            ended = node.ended() => Err(ended),
        };
        if let Err(error) = ready {
            node.stop().await;
            return Err(error);
        }
        Ok(node)
    }

    /// Waits until a part ends by itself, which none should.
    pub(crate) async fn ended(&mut self) -> anyhow::Error {
        parts::ended(&mut self.tasks).await
    }

    /// Ends them. Pods, links and programs stay.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        parts::finish(self.tasks).await;
    }
}

/// Waits until a node that has spoken since `begun` says that it is ready: what an earlier run said does not count.
async fn ready(client: Client, name: &str, begun: Timestamp) -> Result<()> {
    let nodes: Api<NodeObject> = Api::all(client);
    let is_ready = |node: Option<&NodeObject>| {
        let conditions = node.and_then(|it| it.status.as_ref()?.conditions.as_ref());
        let mut conditions = conditions.into_iter().flatten();
        // Times of conditions are in whole seconds.
        let fresh = |at: Option<&Time>| at.is_some_and(|it| it.0.as_second() >= begun.as_second());
        conditions.any(|it| it.type_ == "Ready" && it.status == "True" && fresh(it.last_heartbeat_time.as_ref()))
    };
    let waited = tokio::time::timeout(PATIENCE, wait::await_condition(nodes.clone(), name, is_ready)).await;
    match waited {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error).with_context(|| format!("node {name} cannot be watched")),
        Err(_) => {
            let node = nodes.get_opt(name).await.ok().flatten();
            let conditions = node.and_then(|it| it.status?.conditions).unwrap_or_default();
            let ready = conditions.iter().find(|it| it.type_ == "Ready");
            let why = ready.and_then(|it| it.message.clone());
            bail!(
                "node {name} is not Ready after {} s: {}",
                PATIENCE.as_secs(),
                why.unwrap_or_else(|| "it was never registered".to_owned())
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_an_address_of_each_family_that_pods_have() {
        let all: Vec<IpAddr> = ["10.0.0.1", "10.0.0.2", "fd00::1"]
            .iter()
            .map(|it| it.parse().unwrap())
            .collect();
        let pods = |text: &[&str]| text.iter().map(|it| it.parse().unwrap()).collect::<Vec<IpNet>>();
        assert_eq!(one_of_each_family(&all, &pods(&["10.244.0.0/16"])), all[..1]);
        assert_eq!(
            one_of_each_family(&all, &pods(&["10.244.0.0/16", "fd01::/48"])),
            [all[0], all[2]]
        );
        assert_eq!(one_of_each_family(&all[..1], &pods(&["fd01::/48"])), all[..1]);
    }

    #[test]
    fn links_are_found_by_their_addresses() {
        assert_eq!(links_of(&["127.0.0.1".parse().unwrap()]), ["lo"]);
        assert!(links_of(&["192.0.2.77".parse().unwrap()]).is_empty());
    }
}
