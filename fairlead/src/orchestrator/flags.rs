//! Flags of the orchestrator's subcommands.
#![allow(
    clippy::doc_markdown,
    reason = "doc comments here are help texts, printed as they are"
)]

use crate::flags::LogFormat;
use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use std::{net::IpAddr, path::PathBuf, time::Duration};

/// `fairlead apiserver`.
#[derive(Debug, Args)]
pub(crate) struct ApiserverArgs {
    /// Where the store, the keys and the certificates live. Made if it is not there; readable for its owner alone.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/fairlead")]
    pub(crate) data_dir: PathBuf,

    /// Address to listen on.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0", help_heading = "Serving")]
    pub(crate) bind_address: IpAddr,

    /// Port to listen on; 0 takes a free one.
    #[arg(long, value_name = "PORT", default_value_t = 6443, help_heading = "Serving")]
    pub(crate) secure_port: u16,

    /// Address by which others reach this server: in the admin's kubeconfig, in the certificate, and as endpoint of the
    /// Service kubernetes [default: the first address of this host that is not loopback].
    #[arg(long, value_name = "ADDRESS", help_heading = "Serving")]
    pub(crate) advertise_address: Option<IpAddr>,

    /// More names and addresses for the certificate.
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', help_heading = "Serving")]
    pub(crate) tls_san: Vec<String>,

    /// Most reading requests at one time, watches not counted; more are told to come back (429).
    #[arg(long, value_name = "REQUESTS", default_value_t = 400, help_heading = "Serving")]
    pub(crate) max_requests_inflight: usize,

    /// Most writing requests at one time.
    #[arg(long, value_name = "REQUESTS", default_value_t = 200, help_heading = "Serving")]
    pub(crate) max_mutating_requests_inflight: usize,

    /// Most time for a request, watches and streams not counted, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, help_heading = "Serving")]
    pub(crate) request_timeout: u64,

    /// Range of ClusterIPs, or one of each family; the first is the default family.
    #[arg(
        long,
        value_name = "CIDR,...",
        value_delimiter = ',',
        default_value = "10.96.0.0/16",
        help_heading = "Cluster"
    )]
    pub(crate) service_cluster_ip_range: Vec<ipnet::IpNet>,

    /// Range of NodePorts.
    #[arg(
        long,
        value_name = "LOW-HIGH",
        default_value = "30000-32767",
        help_heading = "Cluster"
    )]
    pub(crate) service_node_port_range: String,

    /// Domain of the cluster's names.
    #[arg(
        long,
        value_name = "DOMAIN",
        default_value = "cluster.local",
        help_heading = "Cluster"
    )]
    pub(crate) cluster_domain: String,

    /// Issuer of service account tokens [default: kubernetes.default.svc.DOMAIN, with https].
    #[arg(long, value_name = "URL", help_heading = "Cluster")]
    pub(crate) service_account_issuer: Option<String>,

    /// Log lines for people or for machines.
    #[arg(long, value_name = "FORMAT", default_value = "text", help_heading = "Logging")]
    pub(crate) log_format: LogFormat,

    /// error, warn, info, debug, trace, or by module as in info,fairlead_apiserver::authz=debug.
    #[arg(
        long,
        value_name = "LEVEL",
        env = "FAIRLEAD_LOG",
        default_value = "info",
        help_heading = "Logging"
    )]
    pub(crate) log_level: String,
}

/// Flags of the parts that exist once in a cluster.
#[derive(Debug, Args)]
pub(crate) struct ClusterArgs {
    /// The API server's flags.
    #[command(flatten)]
    pub(crate) api: ApiserverArgs,

    /// Range of pod addresses, or one of each family; every node gets a part of it.
    #[arg(
        long,
        value_name = "CIDR,...",
        value_delimiter = ',',
        default_value = "10.244.0.0/16",
        help_heading = "Cluster"
    )]
    pub(crate) cluster_cidr: Vec<ipnet::IpNet>,

    /// Ranges from which Services of type LoadBalancer get their addresses; without one they get the nodes' own.
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',', help_heading = "Cluster")]
    pub(crate) load_balancer_pool: Vec<ipnet::IpNet>,
}

/// Flags of the parts that every node has.
#[derive(Clone, Debug, Args)]
pub(crate) struct NodeArgs {
    /// Where sockets and what ends with a reboot live [default: /run/fairlead for the default --data-dir].
    #[arg(long, value_name = "DIR", help_heading = "Node")]
    pub(crate) run_dir: Option<PathBuf>,

    /// Name of this node's Node object [default: the host name in lower case].
    #[arg(long, value_name = "NAME", env = "NODE_NAME", help_heading = "Node")]
    pub(crate) node_name: Option<String>,

    /// Address by which others reach this node, or one of each family [default: the first of this host].
    #[arg(long, value_name = "ADDRESS,...", value_delimiter = ',', help_heading = "Node")]
    pub(crate) node_ip: Vec<IpAddr>,

    /// Labels that the node is registered with.
    #[arg(long, value_name = "KEY=VALUE,...", value_delimiter = ',', help_heading = "Node")]
    pub(crate) node_labels: Vec<String>,

    /// The CRI socket of a runtime that runs already, instead of a containerd of our own.
    #[arg(long, value_name = "SOCKET", help_heading = "Node")]
    pub(crate) container_runtime_endpoint: Option<PathBuf>,

    /// Archives of images to import at the start, besides those in the folder images of the data directory: OCI layouts in
    /// tar, or what `docker save` writes.
    #[arg(long, value_name = "FILE,...", value_delimiter = ',', help_heading = "Node")]
    pub(crate) image: Vec<PathBuf>,

    /// Cgroup below which pods' cgroups are made, in every hierarchy [default: /fairlead for the default --data-dir].
    #[arg(long, value_name = "CGROUP", help_heading = "Node")]
    pub(crate) pod_cgroup_root: Option<String>,

    /// Manifests of pods that run without the API server.
    #[arg(long, value_name = "DIR", help_heading = "Node")]
    pub(crate) pod_manifests: Option<PathBuf>,

    /// Most pods on this node.
    #[arg(long, value_name = "PODS", default_value_t = 110, help_heading = "Node")]
    pub(crate) max_pods: u32,

    /// Port of the kubelet.
    #[arg(long, value_name = "PORT", default_value_t = 10250, help_heading = "Node")]
    pub(crate) kubelet_port: u16,

    /// Where pods find names outside the cluster.
    #[arg(long, value_name = "FILE", default_value = "/etc/resolv.conf", help_heading = "Node")]
    pub(crate) resolv_conf: PathBuf,

    /// Links that lead out of this node, names or globs [default: those of the default routes and of --node-ip].
    #[arg(long, value_name = "GLOB,...", value_delimiter = ',', help_heading = "Node")]
    pub(crate) devices: Vec<String>,

    /// Where BPF maps and links are pinned; mounted if missing [default: /sys/fs/bpf for the default --data-dir].
    #[arg(long, value_name = "PATH", help_heading = "Node")]
    pub(crate) bpffs: Option<PathBuf>,

    /// Root of the cgroups whose sockets are translated at connect, or none [default: where cgroup2 is mounted].
    #[arg(long, value_name = "PATH|none", help_heading = "Node")]
    pub(crate) socket_cgroup_root: Option<String>,

    /// A Corefile instead of the usual one.
    #[arg(long, value_name = "FILE", help_heading = "Node")]
    pub(crate) corefile: Option<PathBuf>,
}

/// `fairlead up`.
#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,

    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

/// `fairlead server`.
#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

/// `fairlead agent`.
#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    /// Where the API server is reached, as https://ADDRESS:6443.
    #[arg(long, value_name = "URL")]
    pub(crate) server: String,

    /// What `fairlead token` printed; needed until this node has a certificate.
    #[arg(long, value_name = "TOKEN", env = "FAIRLEAD_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,

    /// Where this node's certificates, containers and volumes live.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/fairlead")]
    pub(crate) data_dir: PathBuf,

    /// Range of pod addresses of the whole cluster, or one of each family: what is not masqueraded.
    #[arg(
        long,
        value_name = "CIDR,...",
        value_delimiter = ',',
        default_value = "10.244.0.0/16",
        help_heading = "Cluster"
    )]
    pub(crate) cluster_cidr: Vec<ipnet::IpNet>,

    /// Range of ClusterIPs, or one of each family.
    #[arg(
        long,
        value_name = "CIDR,...",
        value_delimiter = ',',
        default_value = "10.96.0.0/16",
        help_heading = "Cluster"
    )]
    pub(crate) service_cluster_ip_range: Vec<ipnet::IpNet>,

    /// Domain of the cluster's names.
    #[arg(
        long,
        value_name = "DOMAIN",
        default_value = "cluster.local",
        help_heading = "Cluster"
    )]
    pub(crate) cluster_domain: String,

    #[command(flatten)]
    pub(crate) node: NodeArgs,

    /// Log lines for people or for machines.
    #[arg(long, value_name = "FORMAT", default_value = "text", help_heading = "Logging")]
    pub(crate) log_format: LogFormat,

    /// error, warn, info, debug, trace, or by module.
    #[arg(
        long,
        value_name = "LEVEL",
        env = "FAIRLEAD_LOG",
        default_value = "info",
        help_heading = "Logging"
    )]
    pub(crate) log_level: String,
}

/// `fairlead down`.
#[derive(Debug, Args)]
pub(crate) struct DownArgs {
    /// The data directory of the cluster.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/fairlead")]
    pub(crate) data_dir: PathBuf,

    /// Its run directory, if it was given one.
    #[arg(long, value_name = "DIR")]
    pub(crate) run_dir: Option<PathBuf>,

    /// Remove the data directory too: objects, images, volumes.
    #[arg(long)]
    pub(crate) all: bool,
}

/// `fairlead image`.
#[derive(Debug, Args)]
pub(crate) struct ImageArgs {
    /// The data directory of the cluster.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/fairlead", global = true)]
    pub(crate) data_dir: PathBuf,

    /// Its run directory, if it was given one.
    #[arg(long, value_name = "DIR", global = true)]
    pub(crate) run_dir: Option<PathBuf>,

    /// What to do.
    #[command(subcommand)]
    pub(crate) command: ImageCommand,
}

/// What `fairlead image` does.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Import archives into the running cluster's containerd: OCI layouts in tar, or what `docker save` writes.
    Import {
        /// The archives.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
}

/// `fairlead token`.
#[derive(Debug, Args)]
pub(crate) struct TokenArgs {
    /// The data directory of the server.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/fairlead")]
    pub(crate) data_dir: PathBuf,
}

/// `fairlead kubeconfig`.
#[derive(Debug, Args)]
pub(crate) struct KubeconfigArgs {
    /// The data directory of the API server.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/fairlead")]
    pub(crate) data_dir: PathBuf,

    /// Where the server is reached.
    #[arg(long, value_name = "URL", default_value = "https://127.0.0.1:6443")]
    pub(crate) server: String,

    /// Name of the user.
    #[arg(long, value_name = "NAME", default_value = "admin")]
    pub(crate) user: String,

    /// Groups of the user [default: system:masters for admin, none for others].
    #[arg(long, value_name = "GROUP")]
    pub(crate) group: Option<String>,

    /// Write to this file, for its owner alone, instead of to standard output.
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

/// `fairlead store`.
#[derive(Debug, Args)]
pub(crate) struct StoreArgs {
    /// The data directory of the API server, which must not be running.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/fairlead", global = true)]
    pub(crate) data_dir: PathBuf,

    /// What to do.
    #[command(subcommand)]
    pub(crate) command: StoreCommand,
}

/// What `fairlead store` does.
#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Write a consistent copy of the store to a new file.
    Snapshot {
        /// The new file.
        file: PathBuf,
    },
    /// Make a store of a snapshot, where there is none: move the old one away first.
    Restore {
        /// The snapshot.
        file: PathBuf,
    },
    /// Read everything and say whether it is sound.
    Check,
}

impl ApiserverArgs {
    /// Settings of the server.
    ///
    /// # Errors
    /// Names the flag.
    pub(crate) fn settings(&self) -> anyhow::Result<fairlead_apiserver::Settings> {
        let range = self.service_node_port_range.split_once('-');
        let range = range.and_then(|(low, high)| Some((low.trim().parse().ok()?, high.trim().parse().ok()?)));
        let node_ports: (u16, u16) = range.filter(|(low, high)| low <= high && *low > 0).with_context(|| {
            format!(
                "--service-node-port-range {:?}: write LOW-HIGH",
                self.service_node_port_range
            )
        })?;
        let ranges = &self.service_cluster_ip_range;
        let six = |range: &ipnet::IpNet| range.addr().is_ipv6();
        match ranges.as_slice() {
            [_] => {}
            [first, second] if six(first) != six(second) => {}
            _ => bail!("--service-cluster-ip-range: give one range, or one of each family"),
        }
        if let Some(small) = ranges
            .iter()
            .find(|range| range.max_prefix_len() - range.prefix_len() < 3)
        {
            bail!("--service-cluster-ip-range {small} is too small: it must hold eight addresses");
        }
        let issuer = self.service_account_issuer.clone();
        Ok(fairlead_apiserver::Settings {
            issuer: issuer.unwrap_or_else(|| format!("https://kubernetes.default.svc.{}", self.cluster_domain)),
            service_cidrs: ranges.iter().map(ipnet::IpNet::trunc).collect(),
            node_ports,
            max_reads: self.max_requests_inflight,
            max_writes: self.max_mutating_requests_inflight,
            request_timeout: Duration::from_secs(self.request_timeout),
            ..fairlead_apiserver::Settings::default()
        })
    }
}
