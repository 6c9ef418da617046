//! This host: its addresses and links as the kernel knows them, and what a proxy makes of them.
//!
//! Everything here is a pure function of [`HostFacts`]; [`HostWatcher`] reads and follows them.

mod netlink;

pub use netlink::{HostError, HostWatcher};

use crate::{
    config::{Config, LinkFilter, NodePortAddresses},
    model::{Family, Node, NodeView},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

/// kube-proxy's IPVS mode puts every virtual IP on this dummy link; none of them is the node's own.
const IPVS_DUMMY: &str = "kube-ipvs0";

/// What the kernel knows, reduced to what we act on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// By interface index.
    pub links: BTreeMap<u32, LinkFacts>,
    /// In the kernel's order: within a link, the first of a family is its primary one.
    pub addresses: Vec<AddressFacts>,
    /// Default routes of the main table, best first.
    pub default_routes: Vec<DefaultRoute>,
}

/// A link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkFacts {
    /// Name.
    pub name: String,
    /// Kind as `ip -d link` prints it, as in `veth`; empty for hardware.
    pub kind: String,
    /// `IFF_LOOPBACK`.
    pub loopback: bool,
    /// `IFLA_LINK_NETNSID`: our id of the network namespace that the other end is in, if that is not ours.
    pub peer_netnsid: Option<i32>,
}

/// An address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressFacts {
    /// Link that it is on.
    pub ifindex: u32,
    /// The address.
    pub addr: IpAddr,
    /// Scope global (or site), neither tentative nor failed.
    pub usable: bool,
    /// Neither an alias in the subnet of another one nor a deprecated or temporary one.
    pub primary: bool,
}

/// A default route. Sorted by priority: the kernel prefers the lowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DefaultRoute {
    /// `metric`; 0 when unset.
    pub priority: u32,
    /// Family.
    pub family: Family,
    /// Link that it leads to.
    pub ifindex: u32,
}

/// Why programs belong on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Leads out of the node.
    Device,
    /// Leads to a pod.
    Pod,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Device => "device",
            Self::Pod => "pod",
        })
    }
}

/// A link that programs belong on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub ifindex: u32,
    /// Name.
    pub name: String,
    /// Kind, as in [`LinkFacts::kind`].
    pub kind: String,
    /// Why.
    pub role: Role,
    /// See [`LinkFacts::peer_netnsid`].
    pub peer_netnsid: Option<i32>,
}

/// A link came or went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// Programs belong on it.
    Attach(Link),
    /// It is gone, or not ours any more.
    Detach(Link),
}

/// What of the configuration a [`NodeView`] depends on.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    /// [`Config::node_name`].
    pub name: Arc<str>,
    /// [`Config::node_ip`].
    pub node_ip: Option<IpAddr>,
    /// [`Config::node_port_addresses`].
    pub node_ports: NodePortAddresses,
    /// [`Config::masquerade_all`].
    pub masquerade_all: bool,
}

impl From<&Config> for NodeSettings {
    fn from(config: &Config) -> Self {
        Self {
            name: config.node_name.as_str().into(),
            node_ip: config.node_ip,
            node_ports: config.node_port_addresses.clone(),
            masquerade_all: config.masquerade_all,
        }
    }
}

impl HostFacts {
    /// This node's own addresses, in the kernel's order: global, in use, no loopback ones. A routed address on `lo` (an
    /// anycast one, a router's identity) is the node's like any other.
    fn own(&self) -> impl Iterator<Item = &AddressFacts> {
        self.addresses.iter().filter(|address| {
            let link = self.links.get(&address.ifindex);
            address.usable && !address.addr.is_loopback() && link.is_some_and(|link| link.name != IPVS_DUMMY)
        })
    }

    /// The node's primary address of a family: what `bindAddress` names, else what the Node object says, else the first
    /// address of the link of the best default route.
    fn primary(&self, family: Family, settings: &NodeSettings, node: Option<&Node>) -> Option<IpAddr> {
        let of_family = |addr: &IpAddr| Family::of(addr) == family;
        settings
            .node_ip
            .filter(of_family)
            .or_else(|| node.and_then(|node| node.internal_ips.iter().copied().find(of_family)))
            .or_else(|| {
                let routes = self.default_routes.iter().filter(|route| route.family == family);
                let mut on_links = routes.filter_map(|route| {
                    let here = || self.own().filter(|a| a.ifindex == route.ifindex && of_family(&a.addr));
                    here().find(|address| address.primary).or_else(|| here().next())
                });
                on_links.next().map(|address| address.addr)
            })
    }

    /// What a plan needs to know of this node.
    pub fn node_view(&self, settings: &NodeSettings, node: Option<&Node>) -> NodeView {
        let addresses: BTreeSet<IpAddr> = self.own().map(|address| address.addr).collect();
        let mut node_ports: BTreeSet<IpAddr> = addresses
            .iter()
            .filter(|addr| settings.node_ports.cidrs.iter().any(|cidr| cidr.contains(*addr)))
            .copied()
            .collect();
        let primary = [Family::V4, Family::V6].map(|family| self.primary(family, settings, node));
        if settings.node_ports.primary {
            node_ports.extend(primary.into_iter().flatten());
        }
        // `bindAddress` may name a loopback one.
        node_ports.retain(|addr| !addr.is_loopback());
        NodeView {
            name: settings.name.clone(),
            zone: node.and_then(|node| node.zone.clone()),
            node_port_addresses: node_ports.into_iter().collect(),
            addresses: addresses.into_iter().collect(),
            primary: primary.map(|addr| addr.filter(|addr| !addr.is_loopback())),
            masquerade_all: settings.masquerade_all,
        }
    }

    /// The links that programs belong on, by interface index. A link that is both is a device: in a nested node the way
    /// out is a veth too.
    pub fn wanted_links(&self, devices: &LinkFilter, pods: &LinkFilter) -> BTreeMap<u32, Link> {
        let role = |ifindex: u32, link: &LinkFacts| {
            let device = match devices {
                LinkFilter::Auto => self.default_routes.iter().any(|route| route.ifindex == ifindex),
                LinkFilter::Globs(set) => set.is_match(&link.name),
            };
            let pod = match pods {
                LinkFilter::Auto => link.kind == "veth" && link.peer_netnsid.is_some(),
                LinkFilter::Globs(set) => set.is_match(&link.name),
            };
            match (device, pod) {
                _ if link.loopback => None,
                (true, _) => Some(Role::Device),
                (false, true) => Some(Role::Pod),
                (false, false) => None,
            }
        };
        let links = self.links.iter().filter_map(|(&ifindex, link)| {
            let role = role(ifindex, link)?;
            let (name, kind) = (link.name.clone(), link.kind.clone());
            Some((
                ifindex,
                Link {
                    ifindex,
                    name,
                    kind,
                    role,
                    peer_netnsid: link.peer_netnsid,
                },
            ))
        });
        links.collect()
    }
}

/// What has to happen to links. An index that now means another link is detached first.
pub fn diff_links(have: &BTreeMap<u32, Link>, want: &BTreeMap<u32, Link>) -> Vec<LinkEvent> {
    let gone = have.values().filter(|link| want.get(&link.ifindex) != Some(link));
    let new = want.values().filter(|link| have.get(&link.ifindex) != Some(link));
    gone.cloned()
        .map(LinkEvent::Detach)
        .chain(new.cloned().map(LinkEvent::Attach))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use globset::{Glob, GlobSetBuilder};

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn link(name: &str, kind: &str, peer_netnsid: Option<i32>) -> LinkFacts {
        LinkFacts {
            name: name.to_owned(),
            kind: kind.to_owned(),
            loopback: name == "lo",
            peer_netnsid,
        }
    }

    fn facts() -> HostFacts {
        let address = |ifindex, addr: &str| AddressFacts {
            ifindex,
            addr: ip(addr),
            usable: true,
            primary: true,
        };
        HostFacts {
            links: BTreeMap::from([
                (1, link("lo", "", None)),
                (2, link("eth0", "", None)),
                (3, link("eth1", "", None)),
                (4, link("cali1", "veth", Some(0))),
                (5, link("vethA", "veth", None)),
                (6, link("kube-ipvs0", "dummy", None)),
            ]),
            addresses: vec![
                address(1, "127.0.0.1"),
                AddressFacts {
                    primary: false,
                    ..address(2, "192.168.0.99")
                },
                address(2, "192.168.0.10"),
                address(2, "2001:db8::10"),
                AddressFacts {
                    usable: false,
                    ..address(2, "fe80::1")
                },
                address(3, "203.0.113.7"),
                address(6, "10.96.0.1"),
                address(9, "192.168.7.7"),
            ],
            default_routes: vec![
                DefaultRoute {
                    priority: 0,
                    family: Family::V4,
                    ifindex: 2,
                },
                DefaultRoute {
                    priority: 1024,
                    family: Family::V6,
                    ifindex: 2,
                },
            ],
        }
    }

    fn settings(primary: bool, cidrs: &[&str]) -> NodeSettings {
        NodeSettings {
            name: "a".into(),
            node_ip: None,
            node_ports: NodePortAddresses {
                primary,
                cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
            },
            masquerade_all: false,
        }
    }

    #[test]
    fn addresses_are_those_of_the_node() {
        let view = facts().node_view(&settings(false, &[]), None);
        assert_eq!(
            view.addresses,
            ["192.168.0.10", "192.168.0.99", "203.0.113.7", "2001:db8::10"].map(ip)
        );
        assert!(view.node_port_addresses.is_empty());
    }

    #[test]
    fn a_routed_address_on_lo_is_the_nodes() {
        let mut facts = facts();
        for addr in ["198.51.100.1", "::1"] {
            facts.addresses.push(AddressFacts {
                ifindex: 1,
                addr: ip(addr),
                usable: true,
                primary: true,
            });
        }
        let view = facts.node_view(&settings(false, &["198.51.100.0/24", "127.0.0.0/8"]), None);
        assert!(view.addresses.contains(&ip("198.51.100.1")));
        assert!(
            view.addresses.iter().all(|addr| !addr.is_loopback()),
            "{:?}",
            view.addresses
        );
        assert_eq!(view.node_port_addresses, [ip("198.51.100.1")]);
    }

    #[test]
    fn node_ports_by_cidr() {
        let ports = |cidrs: &[&str]| facts().node_view(&settings(false, cidrs), None).node_port_addresses;
        assert_eq!(
            ports(&["203.0.113.0/24", "2001:db8::/64"]),
            ["203.0.113.7", "2001:db8::10"].map(ip)
        );
        assert_eq!(ports(&["0.0.0.0/0", "::/0"]).len(), 4);
        assert!(
            ports(&["10.96.0.0/16"]).is_empty(),
            "virtual IPs of ipvs are not the node's"
        );
    }

    #[test]
    fn primary_addresses_by_precedence() {
        let mut settings = settings(true, &[]);
        let ports =
            |settings: &NodeSettings, node: Option<&Node>| facts().node_view(settings, node).node_port_addresses;
        assert_eq!(
            ports(&settings, None),
            ["192.168.0.10", "2001:db8::10"].map(ip),
            "default route, not an alias"
        );
        let node = Node {
            internal_ips: vec![ip("203.0.113.7"), ip("203.0.113.8")],
            ..Node::default()
        };
        assert_eq!(
            ports(&settings, Some(&node)),
            ["203.0.113.7", "2001:db8::10"].map(ip),
            "the Node's first"
        );
        settings.node_ip = Some(ip("192.168.0.99"));
        assert_eq!(
            ports(&settings, Some(&node)),
            ["192.168.0.99", "2001:db8::10"].map(ip),
            "bindAddress"
        );
        settings.node_ip = Some(ip("127.0.0.1"));
        assert_eq!(ports(&settings, Some(&node)), [ip("2001:db8::10")], "never loopback");
    }

    #[test]
    fn the_primary_address_is_not_the_lowest_one() {
        let mut facts = facts();
        facts.links.insert(7, link("docker0", "bridge", None));
        facts.addresses.insert(
            0,
            AddressFacts {
                ifindex: 7,
                addr: ip("172.17.0.1"),
                usable: true,
                primary: true,
            },
        );
        let mut settings = settings(false, &["0.0.0.0/0"]);
        let view = facts.node_view(&settings, None);
        assert_eq!(view.node_port_addresses[0], ip("172.17.0.1"), "sorted, docker0 first");
        assert_eq!(view.primary, [Some(ip("192.168.0.10")), Some(ip("2001:db8::10"))]);
        settings.node_ip = Some(ip("127.0.0.1"));
        let view = facts.node_view(&settings, None);
        assert_eq!(view.primary, [None, Some(ip("2001:db8::10"))], "never loopback");
    }

    fn globs(patterns: &[&str]) -> LinkFilter {
        let mut set = GlobSetBuilder::new();
        for pattern in patterns {
            set.add(Glob::new(pattern).unwrap());
        }
        LinkFilter::Globs(set.build().unwrap())
    }

    #[test]
    fn links_are_found_or_named() {
        let roles = |devices: &LinkFilter, pods: &LinkFilter| {
            let links = facts().wanted_links(devices, pods);
            links
                .values()
                .map(|link| format!("{} {}", link.name, link.role))
                .collect::<Vec<_>>()
                .join(", ")
        };
        assert_eq!(roles(&LinkFilter::Auto, &LinkFilter::Auto), "eth0 device, cali1 pod");
        assert_eq!(
            roles(&globs(&["eth*"]), &globs(&["veth*"])),
            "eth0 device, eth1 device, vethA pod"
        );
        assert_eq!(roles(&globs(&["cali1", "lo"]), &LinkFilter::Auto), "cali1 device");
    }

    #[test]
    fn a_reused_index_is_detached_first() {
        let (auto, before) = (LinkFilter::Auto, facts());
        let mut after = before.clone();
        after.links.insert(4, link("cali2", "veth", Some(1)));
        after.links.insert(7, link("cali3", "veth", Some(2)));
        after.links.remove(&2);
        let (have, want) = (before.wanted_links(&auto, &auto), after.wanted_links(&auto, &auto));
        let events = diff_links(&have, &want);
        let said: Vec<_> = events
            .iter()
            .map(|event| match event {
                LinkEvent::Attach(link) => format!("+{}", link.name),
                LinkEvent::Detach(link) => format!("-{}", link.name),
            })
            .collect();
        assert_eq!(said, ["-eth0", "-cali1", "+cali2", "+cali3"]);
        assert_eq!(diff_links(&want, &want), []);
    }
}
