//! This node: what its Node object says, and what the kernel says.

use super::{Interner, convert::Reports};
use crate::error::Skipped;
use k8s_openapi::api::core::v1;
use std::{net::IpAddr, sync::Arc};

/// Label with the node's zone.
const ZONE: &str = "topology.kubernetes.io/zone";
/// Taint that the cluster autoscaler puts on a node it is about to remove.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// What of this node's `v1.Node` a proxy acts on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
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

impl Node {
    /// What of a Node a proxy acts on; `None` only where it has no usable name, which a report explains.
    pub fn from_api(api: &v1::Node, strings: &mut Interner) -> (Option<Self>, Vec<Skipped>) {
        let mut reports = Reports::new("Node");
        let node = reports.plain_name(&api.metadata).map(|name| {
            let zone = api.metadata.labels.as_ref().and_then(|labels| labels.get(ZONE));
            let taints = api
                .spec
                .as_ref()
                .and_then(|spec| spec.taints.as_deref())
                .unwrap_or_default();
            Self {
                name: strings.intern(&name),
                zone: zone.filter(|zone| !zone.is_empty()).map(|zone| strings.intern(zone)),
                internal_ips: internal_ips(api, &mut reports),
                eligible: api.metadata.deletion_timestamp.is_none()
                    && taints.iter().all(|taint| taint.key != TO_BE_DELETED),
            }
        });
        (node, reports.finish())
    }
}

fn internal_ips(api: &v1::Node, reports: &mut Reports) -> Vec<IpAddr> {
    let addresses = api
        .status
        .as_ref()
        .and_then(|status| status.addresses.as_deref())
        .unwrap_or_default();
    let mut found = Vec::new();
    for (i, address) in addresses
        .iter()
        .enumerate()
        .filter(|(_, address)| address.type_ == "InternalIP")
    {
        if let Some(addr) = reports.address(format_args!("status.addresses[{i}].address"), &address.address)
            && !found.contains(&addr)
        {
            found.push(addr);
        }
    }
    found
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
    /// The primary IPv4 and IPv6 address, the one that traffic is masqueraded to: what `bindAddress` names, else the
    /// first of the Node's `status.addresses` of type InternalIP, else the first address of the device that the best
    /// default route leads to. Never loopback; `None` where the node has no such address of that family.
    pub primary: [Option<IpAddr>; 2],
    /// Masquerade pods' ClusterIP traffic too (`masqueradeAll`).
    pub masquerade_all: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(value: serde_json::Value) -> (Option<Node>, Vec<Skipped>) {
        Node::from_api(&serde_json::from_value(value).unwrap(), &mut Interner::default())
    }

    #[test]
    fn zone_addresses_and_eligibility() {
        let addresses = json!([
            {"type": "Hostname", "address": "node-a"},
            {"type": "InternalIP", "address": "192.168.0.11"},
            {"type": "InternalIP", "address": "fd00:192:168::11"},
            {"type": "InternalIP", "address": "nonsense"},
            {"type": "ExternalIP", "address": "203.0.113.11"},
        ]);
        let (got, skipped) = node(json!({
            "metadata": {"name": "node-a", "labels": {"topology.kubernetes.io/zone": "z1"}},
            "status": {"addresses": addresses},
        }));
        let got = got.unwrap();
        assert_eq!(
            (&*got.name, got.zone.as_deref(), got.eligible),
            ("node-a", Some("z1"), true)
        );
        assert_eq!(
            got.internal_ips,
            [
                "192.168.0.11".parse::<IpAddr>().unwrap(),
                "fd00:192:168::11".parse().unwrap()
            ]
        );
        assert_eq!(skipped.len(), 1);
        assert_eq!(skipped[0].field, "status.addresses[3].address");
    }

    #[test]
    fn a_node_about_to_go_is_not_eligible() {
        let taint = json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]);
        let (tainted, _) = node(json!({"metadata": {"name": "a"}, "spec": {"taints": taint}}));
        assert!(!tainted.unwrap().eligible);
        let (deleted, _) = node(json!({"metadata": {"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z"}}));
        assert!(!deleted.unwrap().eligible);
    }

    #[test]
    fn a_node_without_a_name_is_reported() {
        let (none, skipped) = node(json!({"metadata": {}}));
        assert_eq!(none, None);
        assert_eq!(skipped[0].field, "metadata.name");
    }
}
