//! Settings of the node agent.

use ipnet::IpNet;
use std::path::PathBuf;

/// Settings of the node agent. Two agents on one host need different run directories; all that they make is marked by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Name of this node's Node object.
    pub node_name: String,
    /// Directory of the socket and the journal. On a disk or in memory: a reboot frees all addresses anyway.
    pub run_dir: PathBuf,
    /// Where the runtime looks for plugins; usually `/opt/cni/bin`.
    pub cni_bin_dir: PathBuf,
    /// Where the runtime looks for networks; usually `/etc/cni/net.d`.
    pub cni_conf_dir: PathBuf,
    /// What counts as inside: traffic of pods to these networks keeps its source address. Empty: the pod networks of all
    /// nodes.
    pub cluster_cidrs: Vec<IpNet>,
    /// This node's pod networks, one per family; empty: `Node.spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// Whether traffic of pods to the outside gets the node's address: always for IPv4, for IPv6 where the pod network
    /// is unique local (RFC 4193).
    pub masquerade: bool,
    /// MTU of pod links in bytes; `None`: as the uplink's.
    pub mtu: Option<u32>,
}

impl Config {
    /// The usual settings of a node with the usual directories.
    #[must_use]
    pub fn new(node_name: impl Into<String>) -> Self {
        Self {
            node_name: node_name.into(),
            run_dir: fairlead_cni_plugin::spec::RUN_DIR.into(),
            cni_bin_dir: "/opt/cni/bin".into(),
            cni_conf_dir: "/etc/cni/net.d".into(),
            cluster_cidrs: Vec::new(),
            pod_cidrs: Vec::new(),
            masquerade: true,
            mtu: None,
        }
    }

    /// Marks what this agent makes in the kernel: group of links, metric of routes, name of the table. Never 0, and
    /// positive as a signed number.
    pub(crate) fn mark(&self) -> u32 {
        let hash = crc32fast::hash(self.run_dir.as_os_str().as_encoded_bytes());
        (hash >> 1).max(1)
    }
}
