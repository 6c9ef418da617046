//! Values of single settings.

use super::ConfigError;
use globset::{Glob, GlobSet, GlobSetBuilder};
use ipnet::IpNet;
use std::{fmt, net::IpAddr, path::PathBuf, str::FromStr};

/// Default of `--max-frontends`: 10 000 services with a ClusterIP and a NodePort on a few addresses, twice.
pub const MAX_FRONTENDS: u32 = 131_072;
/// Default of `--max-backends`: 10 000 services with 10 endpoints, twice (an id rests before it is used again).
pub const MAX_BACKENDS: u32 = 262_144;
/// Default of `--max-slots`: each backend in a Cluster set and a Local set.
pub const MAX_SLOTS: u32 = 524_288;
/// Default of `--max-flows`: kube-proxy's nf_conntrack gives 131 072 and more; each flow takes two entries.
pub const MAX_FLOWS: u32 = 262_144;
/// Default of `--max-affinities`, `--max-source-ranges` and `--max-sockets`.
pub const MAX_OTHERS: u32 = 65_536;
/// Default of `--max-fragments`: fragments live for milliseconds.
pub const MAX_FRAGMENTS: u32 = 8_192;
/// Where Services come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// An API server; `None` = in-cluster credentials, or the user's default kubeconfig.
    Kubernetes {
        /// `--kubeconfig` or `clientConnection.kubeconfig`.
        kubeconfig: Option<PathBuf>,
    },
    /// A folder of YAML and JSON files.
    Manifests(PathBuf),
}

/// Which dataplane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// TC and cgroup programs.
    Ebpf,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ebpf => "ebpf",
        })
    }
}

/// How translated packets go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Forwarding {
    /// Up the kernel's stack, so that netfilter rules of other components still see them.
    #[default]
    Stack,
    /// Straight to the target link: faster, past netfilter.
    Direct,
}

/// How TC programs are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TcAttach {
    /// [`TcAttach::Tcx`] where the kernel has it (6.6), else [`TcAttach::Clsact`].
    #[default]
    Auto,
    /// Links on tcx: pinned, replaced in place.
    Tcx,
    /// Filters on a clsact qdisc: any kernel.
    Clsact,
}

/// What kernel programs log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum BpfLogLevel {
    /// Nothing.
    #[default]
    Off,
    /// Nothing today: no verdict is an error of the programs.
    Error,
    /// Packets that are dropped.
    Warn,
    /// And those that are answered with RST or an ICMP error.
    Info,
    /// And those that are translated.
    Debug,
    /// And every other packet.
    Trace,
}

/// Ports, first and last inclusive, first at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port, not below `first`.
    pub last: u16,
}

impl PortRange {
    pub(super) fn overlaps(self, first: u16, last: u16) -> bool {
        self.first <= last && first <= self.last
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('-').and_then(|(first, last)| {
            Some(Self {
                first: first.trim().parse().ok()?,
                last: last.trim().parse().ok()?,
            })
        });
        parsed
            .filter(|range| range.first > 0 && range.first <= range.last)
            .ok_or_else(|| format!("{text:?} is not a port range; write it as in 1024-29999"))
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Sizes of the maps, entries. One map of each kind and family is made with this size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSizes {
    /// `--max-frontends`, default [`MAX_FRONTENDS`].
    pub frontends: u32,
    /// `--max-backends`, default [`MAX_BACKENDS`].
    pub backends: u32,
    /// `--max-slots`, default [`MAX_SLOTS`].
    pub slots: u32,
    /// `--max-flows`, default [`MAX_FLOWS`].
    pub flows: u32,
    /// `--max-affinities`, default [`MAX_OTHERS`].
    pub affinities: u32,
    /// `--max-source-ranges`, default [`MAX_OTHERS`].
    pub source_ranges: u32,
    /// `--max-sockets`, default [`MAX_OTHERS`].
    pub sockets: u32,
    /// `--max-fragments`, default [`MAX_FRAGMENTS`].
    pub fragments: u32,
}

impl Default for MapSizes {
    fn default() -> Self {
        Self {
            frontends: MAX_FRONTENDS,
            backends: MAX_BACKENDS,
            slots: MAX_SLOTS,
            flows: MAX_FLOWS,
            affinities: MAX_OTHERS,
            source_ranges: MAX_OTHERS,
            sockets: MAX_OTHERS,
            fragments: MAX_FRAGMENTS,
        }
    }
}

/// Which links.
#[derive(Clone, Debug)]
pub enum LinkFilter {
    /// Found from what the kernel says about them.
    Auto,
    /// Those whose name matches one of these globs.
    Globs(GlobSet),
}

impl LinkFilter {
    /// From the values of a flag; empty or only `auto` = [`LinkFilter::Auto`].
    pub(super) fn parse(globs: &[String], flag: &str) -> Result<Self, ConfigError> {
        if globs.iter().all(|glob| glob == "auto") {
            return Ok(Self::Auto);
        }
        if globs.iter().any(|glob| glob == "auto") {
            let remedy = "name all links, or give auto alone";
            return Err(ConfigError::new(flag, "auto beside names of links", remedy));
        }
        let mut set = GlobSetBuilder::new();
        for glob in globs {
            set.add(Glob::new(glob).map_err(|error| {
                ConfigError::new(flag, error.to_string(), "give link names or globs, as in eth* or cali*")
            })?);
        }
        set.build()
            .map(Self::Globs)
            .map_err(|error| ConfigError::new(flag, error.to_string(), "give fewer or simpler globs"))
    }
}

/// `nodePortAddresses`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePortAddresses {
    /// The node's primary address of each family.
    pub primary: bool,
    /// Addresses in any of these; `all` is `0.0.0.0/0` and `::/0`.
    pub cidrs: Vec<IpNet>,
}

impl NodePortAddresses {
    /// From a flag's or the file's list. Loopback is never served and only warned about; empty = primary.
    pub(super) fn parse(list: &[String], object: &str, warnings: &mut Vec<String>) -> Result<Self, ConfigError> {
        let mut parsed = Self {
            primary: list.is_empty(),
            cidrs: Vec::new(),
        };
        let any = || [IpNet::from(IpAddr::from([0; 4])), IpNet::from(IpAddr::from([0; 16]))];
        for entry in list {
            match entry.trim() {
                "primary" => parsed.primary = true,
                "all" => parsed.cidrs.extend(any().map(|net| IpNet::new_assert(net.addr(), 0))),
                "localhost" => warnings.push(format!(
                    "{object}: localhost has no effect: loopback serves no NodePorts"
                )),
                text => {
                    let net: IpNet = text.parse().map_err(|_| {
                        ConfigError::new(
                            object,
                            format!("{text:?} is neither a CIDR nor primary, localhost or all"),
                            "write it as in 192.168.0.0/24",
                        )
                    })?;
                    if net.addr().is_loopback() {
                        warnings.push(format!("{object}: {net} has no effect: loopback serves no NodePorts"));
                    } else {
                        parsed.cidrs.push(net.trunc());
                    }
                }
            }
        }
        Ok(parsed)
    }
}
