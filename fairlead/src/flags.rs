//! The command line.
#![allow(
    clippy::doc_markdown,
    reason = "doc comments here are help texts, printed as they are"
)]

use crate::dns::DnsArgs;
use crate::orchestrator::flags::{
    AgentArgs, ApiserverArgs, DownArgs, ImageArgs, KubeconfigArgs, ServerArgs, StoreArgs, TokenArgs, UpArgs,
};
use ::proxy::config::{
    BpfLogLevel, Forwarding, MAX_BACKENDS, MAX_FLOWS, MAX_FRAGMENTS, MAX_FRONTENDS, MAX_OTHERS, MAX_SLOTS, MapSizes,
    Overrides, PortRange, TcAttach,
};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Kubernetes networking in eBPF, and a minimal orchestrator around it.
#[derive(Debug, Parser)]
#[command(name = "fairlead", version, propagate_version = true)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a whole cluster in one process: API server, scheduler, controllers, kubelet, network, proxy, DNS.
    ///
    /// Needs root, containerd and runc. Says what it starts and what to try; Ctrl-C stops the process, pods keep running
    /// and are found again by the next start.
    Up(Box<UpArgs>),
    /// End what `fairlead up` or `agent` left running on this machine: pods, containerd, links, rules, programs.
    Down(DownArgs),
    /// Run what exists once in a cluster: API server, scheduler, controllers. Prints how nodes join.
    Server(Box<ServerArgs>),
    /// Run a node of a cluster whose server is elsewhere.
    Agent(Box<AgentArgs>),
    /// Print the token that nodes join with.
    Token(TokenArgs),
    /// Give images to the running cluster, without a registry.
    Image(ImageArgs),
    /// Serve Services on this node, in place of kube-proxy.
    ///
    /// Reads Services, EndpointSlices and this node's Node from an API server (or a folder of manifests) and keeps eBPF
    /// programs and maps in step. Needs root. What it set up keeps working when it stops, so that it can be restarted
    /// without losing a connection; `fairlead cleanup` removes it.
    Proxy(Box<ProxyArgs>),
    /// Show what the agent of this node does: mode, links, map fill, last sync, skipped objects.
    Status(StatusArgs),
    /// Remove every trace from the kernel: programs, links, pinned maps. Safe to repeat.
    Cleanup(CleanupArgs),
    /// Serve the Kubernetes API, with a store of its own.
    ///
    /// Needs no other program and no root: a directory and a port. Writes DIR/admin.kubeconfig, which kubectl takes as it
    /// is. What it acknowledged is on disk.
    Apiserver(Box<ApiserverArgs>),
    /// Answer the cluster's DNS names, in place of CoreDNS.
    ///
    /// Reads a Corefile, watches Services and EndpointSlices, and answers by UDP and TCP: cluster names from memory,
    /// others by the upstreams of `forward`. Try it beside a running cluster:
    ///
    ///   fairlead dns --kubeconfig ~/.kube/config --listen 127.0.0.1:1053 --health-bind-address none \
    ///     --ready-bind-address none --metrics-bind-address none
    ///   dig @127.0.0.1 -p 1053 kubernetes.default.svc.cluster.local
    #[command(verbatim_doc_comment)]
    Dns(Box<DnsArgs>),
    /// Make a kubeconfig with a certificate of the API server's authority.
    Kubeconfig(KubeconfigArgs),
    /// Copy, replace or check the API server's store while the server does not run.
    Store(StoreArgs),
}

/// `fairlead proxy`.
#[derive(Debug, Args)]
pub(crate) struct ProxyArgs {
    /// kube-proxy's configuration file (KubeProxyConfiguration v1alpha1, YAML or JSON), as kubeadm writes it.
    ///
    /// Accepted unchanged: fields without a meaning here are named once in the log with the reason. Flags override it.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// How to reach the API server [default: the credentials of the pod].
    #[arg(long, value_name = "FILE", help_heading = "Source")]
    kubeconfig: Option<PathBuf>,

    /// Read a folder of YAML and JSON manifests instead of an API server, and follow its changes.
    #[arg(long, value_name = "DIR", conflicts_with = "kubeconfig", help_heading = "Source")]
    manifests: Option<PathBuf>,

    /// Name of this node's Node object [default: the host name in lower case].
    #[arg(
        long,
        value_name = "NAME",
        visible_alias = "hostname-override",
        env = "NODE_NAME",
        help_heading = "Source"
    )]
    node_name: Option<String>,

    /// Dataplane: auto or ebpf; others are for later releases.
    #[arg(long, value_name = "MODE", help_heading = "Dataplane")]
    mode: Option<String>,

    /// Links that lead out of this node, names or globs [default: those of the default routes].
    #[arg(long, value_name = "GLOB,...", value_delimiter = ',', help_heading = "Dataplane")]
    devices: Vec<String>,

    /// Links that lead to pods, names or globs; auto = every veth whose other end is in another network namespace
    /// [default: auto].
    #[arg(long, value_name = "GLOB,...", value_delimiter = ',', help_heading = "Dataplane")]
    pod_devices: Vec<String>,

    /// Root of the cgroups whose sockets are translated at connect, or none to translate packets only [default: where
    /// cgroup2 is mounted].
    #[arg(long, value_name = "PATH|none", help_heading = "Dataplane")]
    cgroup_root: Option<String>,

    /// Where maps and links are pinned so that they survive the agent; mounted if missing [default: /sys/fs/bpf].
    #[arg(long, value_name = "PATH", help_heading = "Dataplane")]
    bpffs: Option<PathBuf>,

    /// How translated packets go on: up the kernel's stack, where netfilter rules of other components see them, or
    /// direct to the target link, which is faster [default: stack].
    #[arg(long, value_name = "HOW", help_heading = "Dataplane")]
    forwarding: Option<ForwardingArg>,

    /// How TC programs are attached: links on tcx (6.6), or clsact filters; auto = tcx where the kernel has it.
    #[arg(long, value_name = "HOW", default_value = "auto", help_heading = "Dataplane")]
    tc_attach: TcAttachArg,

    /// Which addresses of this node serve NodePorts: CIDRs, primary, or all; never loopback [default: primary].
    #[arg(
        long,
        value_name = "CIDR|primary|all,...",
        value_delimiter = ',',
        help_heading = "Dataplane"
    )]
    node_port_addresses: Vec<String>,

    /// Let pods' ClusterIP traffic come from this node's address too [default: false].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", help_heading = "Dataplane")]
    masquerade_all: Option<bool>,

    /// Source ports for masqueraded flows, first-last [default: 1024-29999, or what lies below
    /// net.ipv4.ip_local_port_range].
    #[arg(long, value_name = "PORTS", help_heading = "Dataplane")]
    snat_port_range: Option<PortRange>,

    /// What kernel programs log: costs on the packet path unless off.
    #[arg(long, value_name = "LEVEL", default_value = "off", help_heading = "Dataplane")]
    bpf_log_level: BpfLogLevelArg,

    /// Remove everything from the kernel at exit, instead of leaving it in service for the next agent.
    #[arg(long, help_heading = "Dataplane")]
    cleanup_on_exit: bool,

    #[command(flatten)]
    maps: MapArgs,

    /// Address of /metrics, /status, /configz and /proxyMode, or none [default: 127.0.0.1:10249].
    #[arg(long, value_name = "ADDR:PORT|none", help_heading = "Servers")]
    metrics_bind_address: Option<String>,

    /// Address of /healthz and /livez, or none [default: 0.0.0.0:10256].
    #[arg(long, value_name = "ADDR:PORT|none", help_heading = "Servers")]
    healthz_bind_address: Option<String>,

    /// Log lines for people or for machines [default: text].
    #[arg(long, value_name = "FORMAT", help_heading = "Logging")]
    pub(crate) log_format: Option<LogFormat>,

    /// error, warn, info, debug, trace, or by module as in info,proxy::controller=debug [default: info].
    #[arg(long, value_name = "LEVEL", env = "FAIRLEAD_LOG", help_heading = "Logging")]
    pub(crate) log_level: Option<String>,
}

/// Sizes of kernel maps.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Map sizes, in entries")]
struct MapArgs {
    /// Addresses, ports and protocols that are intercepted, per family.
    #[arg(long, value_name = "ENTRIES", default_value_t = MAX_FRONTENDS)]
    max_frontends: u32,
    /// Endpoints times the service ports that they serve, per family.
    #[arg(long, value_name = "ENTRIES", default_value_t = MAX_BACKENDS)]
    max_backends: u32,
    /// Places of backends in the sets that frontends choose from.
    #[arg(long, value_name = "ENTRIES", default_value_t = MAX_SLOTS)]
    max_slots: u32,
    /// Tracked flows, two entries each, per family; the least recently used go first.
    #[arg(long, value_name = "ENTRIES", default_value_t = MAX_FLOWS)]
    max_flows: u32,
    /// Clients that stick to a backend (sessionAffinity), per family.
    #[arg(long, value_name = "ENTRIES", default_value_t = MAX_OTHERS)]
    max_affinities: u32,
    /// Entries of loadBalancerSourceRanges over all services, per family.
    #[arg(long, value_name = "ENTRIES", default_value_t = MAX_OTHERS)]
    max_source_ranges: u32,
    /// Peers of unconnected UDP sockets that were translated at sendmsg, per family.
    #[arg(long, value_name = "ENTRIES", default_value_t = MAX_OTHERS)]
    max_sockets: u32,
    /// Fragmented datagrams in flight, per family.
    #[arg(long, value_name = "ENTRIES", default_value_t = MAX_FRAGMENTS)]
    max_fragments: u32,
}

/// `--forwarding`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum ForwardingArg {
    Stack,
    Direct,
}

/// `--tc-attach`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum TcAttachArg {
    Auto,
    Tcx,
    Clsact,
}

/// `--bpf-log-level`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum BpfLogLevelArg {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// `--log-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// `fairlead status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Format.
    #[arg(long, short, value_name = "FORMAT", default_value = "text")]
    pub(crate) output: Output,
    /// The agent's metrics address (its --metrics-bind-address).
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:10249")]
    pub(crate) address: String,
    /// Wait until this many source batches are in the kernel, at most 30 s: read applied_events, make a change, wait for
    /// one more. Fails when they are not.
    #[arg(long, value_name = "BATCHES")]
    pub(crate) applied_at_least: Option<u64>,
}

/// `--output`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Text,
    /// As served by the agent.
    Json,
}

/// `fairlead cleanup`.
#[derive(Debug, Args)]
pub(crate) struct CleanupArgs {
    /// Where the agent pinned its maps and links.
    #[arg(long, value_name = "PATH", default_value = "/sys/fs/bpf")]
    pub(crate) bpffs: PathBuf,
    /// Root of the cgroups that the agent attached to, or none [default: where cgroup2 is mounted].
    #[arg(long, value_name = "PATH|none")]
    pub(crate) cgroup_root: Option<String>,
}

impl ProxyArgs {
    /// What was said, for [`::proxy::config::Config::resolve`].
    pub(crate) fn overrides(&self) -> Overrides {
        let maps = self.maps;
        Overrides {
            kubeconfig: self.kubeconfig.clone(),
            manifests: self.manifests.clone(),
            node_name: self.node_name.clone().filter(|name| !name.trim().is_empty()),
            mode: self.mode.clone(),
            devices: self.devices.clone(),
            pod_devices: self.pod_devices.clone(),
            cgroup_root: self.cgroup_root.clone(),
            bpffs: self.bpffs.clone(),
            forwarding: self.forwarding.map(|how| match how {
                ForwardingArg::Stack => Forwarding::Stack,
                ForwardingArg::Direct => Forwarding::Direct,
            }),
            tc_attach: match self.tc_attach {
                TcAttachArg::Auto => TcAttach::Auto,
                TcAttachArg::Tcx => TcAttach::Tcx,
                TcAttachArg::Clsact => TcAttach::Clsact,
            },
            node_port_addresses: self.node_port_addresses.clone(),
            masquerade_all: self.masquerade_all,
            snat_port_range: self.snat_port_range,
            maps: MapSizes {
                frontends: maps.max_frontends,
                backends: maps.max_backends,
                slots: maps.max_slots,
                flows: maps.max_flows,
                affinities: maps.max_affinities,
                source_ranges: maps.max_source_ranges,
                sockets: maps.max_sockets,
                fragments: maps.max_fragments,
            },
            metrics_bind_address: self.metrics_bind_address.clone(),
            healthz_bind_address: self.healthz_bind_address.clone(),
            bpf_log_level: match self.bpf_log_level {
                BpfLogLevelArg::Off => BpfLogLevel::Off,
                BpfLogLevelArg::Error => BpfLogLevel::Error,
                BpfLogLevelArg::Warn => BpfLogLevel::Warn,
                BpfLogLevelArg::Info => BpfLogLevel::Info,
                BpfLogLevelArg::Debug => BpfLogLevel::Debug,
                BpfLogLevelArg::Trace => BpfLogLevel::Trace,
            },
            cleanup_on_exit: self.cleanup_on_exit,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn proxy(args: &[&str]) -> Result<Overrides, clap::Error> {
        let cli = Cli::try_parse_from(["fairlead", "proxy"].iter().chain(args))?;
        match cli.command {
            Command::Proxy(args) => Ok(args.overrides()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_become_overrides() {
        let said = proxy(&[
            "--hostname-override=n1",
            "--devices=eth0,bond*",
            "--forwarding=direct",
            "--masquerade-all",
            "--snat-port-range=2000-3000",
            "--max-flows=1024",
            "--manifests=/m",
        ])
        .unwrap();
        assert_eq!(said.node_name.as_deref(), Some("n1"));
        assert_eq!(said.devices, ["eth0", "bond*"]);
        assert_eq!(said.forwarding, Some(Forwarding::Direct));
        assert_eq!((said.masquerade_all, said.maps.flows), (Some(true), 1024));
        assert_eq!(said.maps.slots, MAX_SLOTS);
        assert_eq!(proxy(&["--masquerade-all=false"]).unwrap().masquerade_all, Some(false));
    }

    #[test]
    fn usage_errors_exit_with_2() {
        for args in [
            &["--snat-port-range=9-1"][..],
            &["--nonsense"],
            &["--manifests=/m", "--kubeconfig=/k"],
        ] {
            assert_eq!(proxy(args).unwrap_err().exit_code(), 2, "{args:?}");
        }
    }
}
