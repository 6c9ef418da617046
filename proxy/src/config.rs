//! Flags and the kube-proxy configuration file → [`Config`]: every setting with its unit, its default and why.
//!
//! Pure: facts of the host come in as [`Host`]. Flags override the file, the file overrides the defaults.

mod duration;
mod host;
mod kubeproxy;
mod types;

pub use self::{
    duration::GoDuration,
    host::Host,
    kubeproxy::{
        ClientConnection, Conntrack, DetectLocal, Iptables, Ipvs, KubeProxyConfiguration, Logging, Nftables, Winkernel,
    },
    types::{
        BpfLogLevel, Forwarding, LinkFilter, MAX_BACKENDS, MAX_FLOWS, MAX_FRAGMENTS, MAX_FRONTENDS, MAX_OTHERS,
        MAX_SLOTS, MapSizes, Mode, NodePortAddresses, PortRange, Source, TcAttach,
    },
};

use ipnet::IpNet;
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

/// A setting that cannot be used: which, why, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {cause}; {remedy}")]
pub struct ConfigError {
    /// File and field path, or flag.
    pub object: String,
    /// What is wrong.
    pub cause: String,
    /// What to do.
    pub remedy: String,
}

impl ConfigError {
    fn new(object: impl Into<String>, cause: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            object: object.into(),
            cause: cause.into(),
            remedy: remedy.into(),
        }
    }
}

/// Default of `syncPeriod`; twice this is how late a change may be before `/healthz` fails.
pub const SYNC_PERIOD: Duration = Duration::from_secs(30);
/// NodePorts of a cluster with default settings (`--service-node-port-range` of the API server).
const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;

/// What was said on the command line; `None` and empty = not said.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--kubeconfig`.
    pub kubeconfig: Option<PathBuf>,
    /// `--manifests`.
    pub manifests: Option<PathBuf>,
    /// `--node-name`.
    pub node_name: Option<String>,
    /// `--mode`.
    pub mode: Option<String>,
    /// `--devices`.
    pub devices: Vec<String>,
    /// `--pod-devices`.
    pub pod_devices: Vec<String>,
    /// `--cgroup-root`.
    pub cgroup_root: Option<String>,
    /// `--bpffs`.
    pub bpffs: Option<PathBuf>,
    /// `--forwarding`.
    pub forwarding: Option<Forwarding>,
    /// `--tc-attach`.
    pub tc_attach: TcAttach,
    /// `--node-port-addresses`.
    pub node_port_addresses: Vec<String>,
    /// `--masquerade-all`.
    pub masquerade_all: Option<bool>,
    /// `--snat-port-range`.
    pub snat_port_range: Option<PortRange>,
    /// `--max-frontends` and the like, all with their defaults.
    pub maps: MapSizes,
    /// `--metrics-bind-address`; `none` = no server.
    pub metrics_bind_address: Option<String>,
    /// `--healthz-bind-address`; `none` = no server.
    pub healthz_bind_address: Option<String>,
    /// `--bpf-log-level`.
    pub bpf_log_level: BpfLogLevel,
    /// `--cleanup-on-exit`.
    pub cleanup_on_exit: bool,
}

/// Everything the agent needs to know, resolved.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where Services come from. Default: the API server, through the kubeconfig or else in-cluster credentials.
    pub source: Source,
    /// Name of this node's Node object. Default: the lower-case host name, as kubelet registers it.
    pub node_name: String,
    /// The dataplane. Default: chosen automatically, today always eBPF.
    pub mode: Mode,
    /// Why this mode, for people.
    pub mode_reason: String,
    /// Links that lead out of the node. Default: those of the default routes, since that is where outside clients come
    /// from on an ordinary node.
    pub devices: LinkFilter,
    /// Links that lead to pods. Default: every veth whose peer is in another network namespace, which is what CNI
    /// plugins make.
    pub pod_devices: LinkFilter,
    /// Root of the cgroups whose sockets are translated at connect; `None` = no socket load balancing. Default: the
    /// mount point of cgroup v2, so that every process of the node is covered.
    pub cgroup_root: Option<PathBuf>,
    /// bpffs under which maps and links are pinned; mounted if missing. Default `/sys/fs/bpf`, where everybody looks.
    pub bpffs: PathBuf,
    /// How translated packets go on. Default [`Forwarding::Stack`].
    pub forwarding: Forwarding,
    /// How TC programs are attached. Default: by what the kernel has.
    pub tc_attach: TcAttach,
    /// Which of the node's addresses serve NodePorts. Default: primary, as kube-proxy's nftables mode, which is
    /// upstream's coming default.
    pub node_port_addresses: NodePortAddresses,
    /// The node's primary address, if `bindAddress` names one; else it comes from the Node object or the kernel.
    pub node_ip: Option<IpAddr>,
    /// Masquerade pods' ClusterIP traffic too. Default false: pods see who calls them.
    pub masquerade_all: bool,
    /// Source ports of masqueraded flows. Default 1024-29999: outside both the kernel's ephemeral ports and the
    /// NodePorts, so that no socket of the node can own the same tuple.
    pub snat_ports: PortRange,
    /// Map sizes, entries.
    pub maps: MapSizes,
    /// `/metrics`, `/status`. Default 127.0.0.1:10249, kube-proxy's.
    pub metrics_bind_address: Option<SocketAddr>,
    /// `/healthz`, `/livez`. Default 0.0.0.0:10256, kube-proxy's: cloud load balancers probe it.
    pub healthz_bind_address: Option<SocketAddr>,
    /// Whether a server address that cannot be bound stops the agent. Default false: the data path matters more.
    pub bind_address_hard_fail: bool,
    /// Twice this is how late a change may be before `/healthz` fails. Default 30 s, kube-proxy's.
    pub sync_period: Duration,
    /// What kernel programs log. Default off: it costs on the packet path.
    pub bpf_log_level: BpfLogLevel,
    /// Remove everything from the kernel at exit. Default false: services keep working while the agent is replaced.
    pub cleanup_on_exit: bool,
    /// Value for `/proc/self/oom_score_adj`; `None` = leave it.
    pub oom_score_adj: Option<i32>,
    /// Whether the file asks for JSON log lines; flags override.
    pub log_json: bool,
    /// `logging.verbosity` of the file; flags override.
    pub log_verbosity: u32,
    /// The effective configuration in upstream's words, for `/configz`.
    pub effective: KubeProxyConfiguration,
    /// What was accepted but does nothing, or could go wrong; to be logged once.
    pub warnings: Vec<String>,
}

impl Config {
    /// Merges flags, file and defaults. `file` is the path and the text of `--config`.
    ///
    /// # Errors
    /// The first setting that cannot be used, named as the user knows it (flag, or file and field path).
    pub fn resolve(flags: &Overrides, file: Option<(&str, &str)>, host: &Host) -> Result<Self, ConfigError> {
        let path = file.map_or("", |(path, _)| path);
        let (mut kp, mut warnings) = match file {
            Some((path, text)) => KubeProxyConfiguration::parse(text, path)?,
            None => Default::default(),
        };
        let field = |name: &str| format!("{path}: {name}");

        let (mode, mode_reason) = match &flags.mode {
            Some(mode) => resolve_mode(mode, "--mode")?,
            None => resolve_mode(&kp.mode, &field("mode"))?,
        };
        let bind_ip: IpAddr = match kp.bind_address.as_str() {
            "" => Ipv4Addr::UNSPECIFIED.into(),
            text => text.parse().map_err(|_| {
                ConfigError::new(
                    field("bindAddress"),
                    format!("{text:?} is not an address"),
                    "write it as in 0.0.0.0",
                )
            })?,
        };
        // The unspecified address of the same family: what upstream's defaulting does for its servers.
        let any: IpAddr = if bind_ip.is_ipv6() {
            IpAddr::from([0; 16])
        } else {
            Ipv4Addr::UNSPECIFIED.into()
        };
        let local: IpAddr = if bind_ip.is_ipv6() {
            std::net::Ipv6Addr::LOCALHOST.into()
        } else {
            Ipv4Addr::LOCALHOST.into()
        };
        let server = |flag: &Option<String>, flag_name: &str, text: &str, name: &str, default: SocketAddr| match flag {
            Some(flag) => parse_server(flag, flag_name, default),
            None => parse_server(if text.is_empty() { "default" } else { text }, &field(name), default),
        };
        let metrics_bind_address = server(
            &flags.metrics_bind_address,
            "--metrics-bind-address",
            &kp.metrics_bind_address,
            "metricsBindAddress",
            (local, 10_249).into(),
        )?;
        let healthz_bind_address = server(
            &flags.healthz_bind_address,
            "--healthz-bind-address",
            &kp.healthz_bind_address,
            "healthzBindAddress",
            (any, 10_256).into(),
        )?;
        let node_port_addresses = if flags.node_port_addresses.is_empty() {
            NodePortAddresses::parse(&kp.node_port_addresses, &field("nodePortAddresses"), &mut warnings)?
        } else {
            NodePortAddresses::parse(&flags.node_port_addresses, "--node-port-addresses", &mut warnings)?
        };
        let snat_ports = resolve_snat_ports(flags.snat_port_range, host.local_ports, &mut warnings);
        let pod_devices = if flags.pod_devices.is_empty() {
            pod_devices_of_file(&kp, &field, &mut warnings)?
        } else {
            LinkFilter::parse(&flags.pod_devices, "--pod-devices")?
        };
        let source = match (
            &flags.manifests,
            &flags.kubeconfig,
            kp.client_connection.kubeconfig.as_str(),
        ) {
            (Some(folder), _, _) => Source::Manifests(folder.clone()),
            (None, Some(file), _) => Source::Kubernetes {
                kubeconfig: Some(file.clone()),
            },
            (None, None, "") => Source::Kubernetes { kubeconfig: None },
            (None, None, file) => Source::Kubernetes {
                kubeconfig: Some(file.into()),
            },
        };
        let cgroup_root = match flags.cgroup_root.as_deref() {
            Some("none") => None,
            Some(path) => Some(path.into()),
            None => Some(host.cgroup2.clone().ok_or_else(|| {
                ConfigError::new(
                    "--cgroup-root",
                    "no cgroup v2 is mounted",
                    "mount it (mount -t cgroup2 none /sys/fs/cgroup), name another mount, or pass --cgroup-root none \
                     to do without translating sockets at connect",
                )
            })?),
        };
        let node_name = match (&flags.node_name, kp.hostname_override.trim()) {
            (Some(name), _) => name.trim().to_lowercase(),
            (None, "") => host.hostname.clone(),
            (None, name) => name.to_lowercase(),
        };
        let sync_period = [kp.nftables.sync_period, kp.iptables.sync_period]
            .into_iter()
            .find(|period| !period.0.is_zero())
            .map_or(SYNC_PERIOD, |period| period.0);
        let log_json = match kp.logging.format.as_str() {
            "" | "text" => false,
            "json" => true,
            other => {
                let cause = format!("{other:?} is not a log format");
                return Err(ConfigError::new(field("logging.format"), cause, "use text or json"));
            }
        };
        if let Some(score) = kp.oom_score_adj.filter(|score| !(-1000..=1000).contains(score)) {
            let cause = format!("{score} is out of range");
            return Err(ConfigError::new(field("oomScoreAdj"), cause, "use -1000 to 1000"));
        }
        let masquerade_all = flags
            .masquerade_all
            .unwrap_or(kp.iptables.masquerade_all || kp.nftables.masquerade_all);
        check_map_sizes(&flags.maps)?;

        let shown = |addr: Option<SocketAddr>| addr.map_or(String::new(), |addr| addr.to_string());
        let log_verbosity = kp.logging.verbosity;
        let oom_score_adj = kp.oom_score_adj;
        kp.api_version = "kubeproxy.config.k8s.io/v1alpha1".to_owned();
        kp.kind = "KubeProxyConfiguration".to_owned();
        kp.mode = mode.to_string();
        kp.bind_address = bind_ip.to_string();
        kp.metrics_bind_address = shown(metrics_bind_address);
        kp.healthz_bind_address = shown(healthz_bind_address);
        kp.hostname_override.clone_from(&node_name);
        kp.iptables.masquerade_all = masquerade_all;
        kp.iptables.sync_period = GoDuration(sync_period);
        kp.nftables.masquerade_all = masquerade_all;
        kp.nftables.sync_period = GoDuration(sync_period);
        kp.node_port_addresses = node_port_addresses
            .primary
            .then(|| "primary".to_owned())
            .into_iter()
            .chain(node_port_addresses.cidrs.iter().map(IpNet::to_string))
            .collect();
        kp.client_connection.kubeconfig = match &source {
            Source::Kubernetes { kubeconfig: Some(path) } => path.display().to_string(),
            _ => String::new(),
        };

        Ok(Self {
            source,
            node_name,
            mode,
            mode_reason,
            devices: LinkFilter::parse(&flags.devices, "--devices")?,
            pod_devices,
            cgroup_root,
            bpffs: flags.bpffs.clone().unwrap_or_else(|| "/sys/fs/bpf".into()),
            forwarding: flags.forwarding.unwrap_or_default(),
            tc_attach: flags.tc_attach,
            node_port_addresses,
            node_ip: Some(bind_ip).filter(|ip| !ip.is_unspecified()),
            masquerade_all,
            snat_ports,
            maps: flags.maps,
            metrics_bind_address,
            healthz_bind_address,
            bind_address_hard_fail: kp.bind_address_hard_fail,
            sync_period,
            bpf_log_level: flags.bpf_log_level,
            cleanup_on_exit: flags.cleanup_on_exit,
            oom_score_adj,
            log_json,
            log_verbosity,
            effective: kp,
            warnings,
        })
    }
}

/// The dataplane for a `mode` and the reason, for people.
fn resolve_mode(mode: &str, object: &str) -> Result<(Mode, String), ConfigError> {
    match mode {
        "" | "auto" => Ok((
            Mode::Ebpf,
            "chosen automatically: the only dataplane of this release".to_owned(),
        )),
        "ebpf" => Ok((Mode::Ebpf, format!("asked for by {object}"))),
        "iptables" | "nftables" | "ipvs" => Err(ConfigError::new(
            object,
            format!("{mode} is not available in this release"),
            "remove the field or pass --mode auto to run on eBPF",
        )),
        "kernelspace" => Err(ConfigError::new(
            object,
            "kernelspace is for Windows",
            "remove the field",
        )),
        other => Err(ConfigError::new(
            object,
            format!("{other:?} is not a mode"),
            "use auto or ebpf",
        )),
    }
}

/// An address to serve on: `default`, `none` or empty (no server), an address, or an address and port.
fn parse_server(text: &str, object: &str, default: SocketAddr) -> Result<Option<SocketAddr>, ConfigError> {
    if let "" | "none" = text {
        return Ok(None);
    }
    if text == "default" {
        return Ok(Some(default));
    }
    let parsed = text
        .parse()
        .or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, default.port())));
    parsed.map(Some).map_err(|_| {
        ConfigError::new(
            object,
            format!("{text:?} is not an address and port"),
            format!("write it as in {default}"),
        )
    })
}

/// Ports for masquerading, with a warning where a socket of the node could own the same tuple.
fn resolve_snat_ports(asked: Option<PortRange>, local: (u16, u16), warnings: &mut Vec<String>) -> PortRange {
    let chosen = asked.unwrap_or_else(|| {
        // A widened ephemeral range often begins at 1024 or 10000: stay below it while enough ports remain.
        let last = match local.0 {
            low @ 9_216..=29_999 => low - 1,
            _ => NODE_PORTS.start() - 1,
        };
        PortRange { first: 1024, last }
    });
    if chosen.overlaps(local.0, local.1) {
        warnings.push(format!(
            "--snat-port-range {chosen} overlaps net.ipv4.ip_local_port_range {}-{}: a connection of this node and a \
             masqueraded one can collide; narrow one of them",
            local.0, local.1
        ));
    }
    if chosen.overlaps(*NODE_PORTS.start(), *NODE_PORTS.end()) {
        warnings.push(format!(
            "--snat-port-range {chosen} overlaps the NodePorts 30000-32767; narrow it"
        ));
    }
    chosen
}

/// `detectLocalMode` in our terms.
fn pod_devices_of_file(
    kp: &KubeProxyConfiguration,
    field: &dyn Fn(&str) -> String,
    warnings: &mut Vec<String>,
) -> Result<LinkFilter, ConfigError> {
    match kp.detect_local_mode.as_str() {
        "InterfaceNamePrefix" => {
            let prefix = kp.detect_local.interface_name_prefix.as_str();
            if prefix.is_empty() {
                return Err(ConfigError::new(
                    field("detectLocal.interfaceNamePrefix"),
                    "empty while detectLocalMode is InterfaceNamePrefix",
                    "name the prefix of the pods' links, as in cali",
                ));
            }
            LinkFilter::parse(
                &[format!("{}*", globset::escape(prefix))],
                &field("detectLocal.interfaceNamePrefix"),
            )
        }
        "" => Ok(LinkFilter::Auto),
        mode @ ("ClusterCIDR" | "NodeCIDR" | "BridgeInterface") => {
            warnings.push(format!(
                "{} {mode} has no effect: pods are told by the link their packets enter on (--pod-devices)",
                field("detectLocalMode")
            ));
            Ok(LinkFilter::Auto)
        }
        other => Err(ConfigError::new(
            field("detectLocalMode"),
            format!("{other:?} is not a mode"),
            "use ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix",
        )),
    }
}

/// The kernel refuses empty maps with a message that names nothing.
fn check_map_sizes(maps: &MapSizes) -> Result<(), ConfigError> {
    for (flag, size) in [
        ("--max-frontends", maps.frontends),
        ("--max-backends", maps.backends),
        ("--max-slots", maps.slots),
        ("--max-flows", maps.flows),
        ("--max-affinities", maps.affinities),
        ("--max-source-ranges", maps.source_ranges),
        ("--max-sockets", maps.sockets),
        ("--max-fragments", maps.fragments),
    ] {
        // 2^26 entries are gigabytes of locked memory; more is a typing error.
        if !(16..=1 << 26).contains(&size) {
            let cause = format!("{size} entries");
            return Err(ConfigError::new(flag, cause, "use 16 to 67108864"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
