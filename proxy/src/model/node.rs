//! This node: what its Node object says, and what the kernel says.

use std::{net::IpAddr, sync::Arc};

/// What of this node's `v1.Node` a proxy acts on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// `status.addresses` of type InternalIP, in order.
    pub internal_ips: Vec<IpAddr>,
    /// Whether load balancers may send traffic here: no `deletionTimestamp`, no taint
    /// `ToBeDeletedByClusterAutoscaler`.
    pub eligible: bool,
}

/// Everything that [`crate::plan`] needs to know of the node it plans for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeView {
    /// Node name, to be compared with `endpoint.nodeName` and `hints.forNodes`.
    pub name: Arc<str>,
    /// Zone, to be compared with `hints.forZones`; it may change while we run.
    pub zone: Option<Arc<str>>,
    /// This node's own addresses that serve NodePorts (`nodePortAddresses` already applied), sorted; never loopback.
    pub node_port_addresses: Vec<IpAddr>,
    /// All addresses of this node, sorted: source of `NODE_ADDRESS` and of the node's own exemption from
    /// `loadBalancerSourceRanges`.
    pub addresses: Vec<IpAddr>,
    /// Masquerade pods' ClusterIP traffic too (`masqueradeAll`).
    pub masquerade_all: bool,
}
