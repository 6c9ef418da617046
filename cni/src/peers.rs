//! What Node objects say about pod networks: pure.

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use std::{collections::BTreeMap, net::IpAddr};

/// A node as far as routes to its pods need it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Source: `status.addresses` of type `InternalIP`.
    pub(crate) addresses: Vec<IpAddr>,
    /// Source: `spec.podCIDRs`, else `spec.podCIDR`.
    pub(crate) cidrs: Vec<IpNet>,
    /// What cannot be read.
    pub(crate) faults: Vec<String>,
}

impl Peer {
    /// Reads a Node. What cannot be read is left out and told.
    pub(crate) fn read(node: &Node) -> Self {
        let mut peer = Self::default();
        let spec = node.spec.as_ref();
        let many = spec.and_then(|spec| spec.pod_cidrs.clone()).unwrap_or_default();
        let one = spec.and_then(|spec| spec.pod_cidr.clone());
        let texts = if many.is_empty() {
            one.into_iter().collect()
        } else {
            many
        };
        for text in texts {
            match text.parse::<IpNet>() {
                Ok(cidr) if cidr.prefix_len() > 0 => peer.cidrs.push(cidr.trunc()),
                Ok(_) => peer
                    .faults
                    .push(format!("spec.podCIDRs: {text} is no network of one node")),
                Err(_) => peer.faults.push(format!("spec.podCIDRs: {text:?} is no network")),
            }
        }
        let status = node.status.as_ref();
        for address in status
            .and_then(|status| status.addresses.as_ref())
            .into_iter()
            .flatten()
        {
            if address.type_ != "InternalIP" {
                continue;
            }
            match address.address.parse() {
                Ok(ip) => peer.addresses.push(ip),
                Err(_) => peer
                    .faults
                    .push(format!("status.addresses: {:?} is no IP address", address.address)),
            }
        }
        peer
    }
}

/// A route that another node asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Towards {
    /// The node.
    pub(crate) node: String,
    /// Its pod network.
    pub(crate) to: IpNet,
    /// Its address in the same family.
    pub(crate) by: IpAddr,
}

/// Routes to all other nodes, and what keeps a node from having one: by name.
pub(crate) fn routes(
    nodes: &BTreeMap<String, Peer>,
    own_name: &str,
    own: &[IpNet],
) -> (Vec<Towards>, BTreeMap<String, Vec<String>>) {
    let mut routes: Vec<Towards> = Vec::new();
    let mut faults: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, peer) in nodes {
        let mut fault = |text: String| faults.entry(name.clone()).or_default().push(text);
        peer.faults.iter().cloned().for_each(&mut fault);
        if name == own_name {
            continue;
        }
        for cidr in &peer.cidrs {
            let overlaps = |other: &IpNet| other.contains(cidr) || cidr.contains(other);
            if own.iter().any(overlaps) {
                fault(format!(
                    "pod network {cidr} overlaps that of node {own_name}, so there is no route to it"
                ));
                continue;
            }
            if let Some(other) = routes.iter().find(|it| overlaps(&it.to)) {
                fault(format!(
                    "pod network {cidr} overlaps that of node {}, which keeps its route",
                    other.node
                ));
                continue;
            }
            let same = |ip: &&IpAddr| ip.is_ipv4() == cidr.network().is_ipv4();
            match peer.addresses.iter().find(same) {
                Some(by) => routes.push(Towards {
                    node: name.clone(),
                    to: *cidr,
                    by: *by,
                }),
                None => fault(format!(
                    "no InternalIP of the family of pod network {cidr}, so there is no route to it"
                )),
            }
        }
    }
    (routes, faults)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn peer(cidrs: &[&str], addresses: &[&str]) -> Peer {
        let addresses: Vec<_> = addresses
            .iter()
            .map(|it| json!({ "type": "InternalIP", "address": it }))
            .collect();
        let node = json!({ "metadata": {}, "spec": { "podCIDRs": cidrs }, "status": { "addresses": addresses } });
        Peer::read(&serde_json::from_value(node).unwrap())
    }

    #[test]
    fn each_network_goes_by_the_address_of_its_family() {
        let nodes = BTreeMap::from([
            (
                "a".to_owned(),
                peer(&["10.1.0.0/24", "fd00:10:1::/64"], &["192.168.0.1"]),
            ),
            (
                "b".to_owned(),
                peer(
                    &["10.1.1.0/24", "fd00:10:1:1::/64"],
                    &["fd00:192:168::2", "192.168.0.2"],
                ),
            ),
        ]);
        let own = ["10.1.0.0/24".parse().unwrap()];
        let (found, faults) = routes(&nodes, "a", &own);
        let found: Vec<_> = found
            .iter()
            .map(|it| format!("{} {} {}", it.node, it.to, it.by))
            .collect();
        assert_eq!(
            found,
            ["b 10.1.1.0/24 192.168.0.2", "b fd00:10:1:1::/64 fd00:192:168::2"]
        );
        assert!(faults.is_empty());
    }

    #[test]
    fn a_bad_node_hurts_only_itself() {
        let nodes = BTreeMap::from([
            ("b".to_owned(), peer(&["10.1.1.0/24"], &["192.168.0.2"])),
            (
                "c".to_owned(),
                peer(&["10.1.1.128/25", "10.1.2.0/24"], &["192.168.0.3"]),
            ),
            (
                "d".to_owned(),
                peer(&["nonsense", "0.0.0.0/0", "10.1.3.0/24"], &["192.168.0.4", "here"]),
            ),
            ("e".to_owned(), peer(&["10.1.0.0/16", "fd00::/64"], &["192.168.0.5"])),
            ("f".to_owned(), peer(&[], &[])),
        ]);
        let (found, faults) = routes(&nodes, "a", &["10.1.0.0/24".parse().unwrap()]);
        let found: Vec<_> = found.iter().map(|it| it.to.to_string()).collect();
        assert_eq!(found, ["10.1.1.0/24", "10.1.2.0/24", "10.1.3.0/24"]);
        let counts: Vec<_> = faults
            .iter()
            .map(|(name, faults)| (name.as_str(), faults.len()))
            .collect();
        assert_eq!(counts, [("c", 1), ("d", 3), ("e", 2)]);
    }
}
