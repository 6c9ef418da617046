//! Who has which address: pure. With ranges an address belongs to one Service; with the nodes' addresses Services share all
//! of them, and a port of them belongs to one Service.

use crate::{cluster::config::AddressPool, frame::Key};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{LoadBalancerIngress, Node, Service};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// Our `spec.loadBalancerClass`.
pub(crate) const CLASS: &str = "fairlead.dev/pool";
/// Label of nodes whose addresses are not for this. Source: the API's well-known labels.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// Why a Service gets no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("the pool has no free {0} address; enlarge --load-balancer-pool, or delete a Service of type LoadBalancer")]
    Exhausted(&'static str),
    #[error("spec.loadBalancerIP {0} is not in the pool; choose one of it, or none")]
    Foreign(IpAddr),
    #[error("{address} is taken by Service {owner}; choose another address")]
    Taken { address: IpAddr, owner: Key },
    #[error("port {port} of the nodes is taken by Service {owner}; choose another port")]
    Port { port: String, owner: Key },
    #[error("no node has an address for it yet")]
    NoNode,
}

/// Whether the Service is ours to give addresses to.
pub(crate) fn is_ours(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| {
        spec.type_.as_deref() == Some("LoadBalancer")
            && spec.load_balancer_class.as_deref().is_none_or(|it| it == CLASS)
    })
}

/// Whether the Service wants addresses of IPv4, of IPv6.
fn families(service: &Service) -> Vec<bool> {
    let named = service
        .spec
        .as_ref()
        .and_then(|it| it.ip_families.clone())
        .unwrap_or_default();
    if named.is_empty() {
        return vec![false];
    }
    named.iter().map(|it| it == "IPv6").collect()
}

/// `status.loadBalancer.ingress` as addresses.
pub(crate) fn given(service: &Service) -> Vec<IpAddr> {
    let balancer = service.status.as_ref().and_then(|it| it.load_balancer.as_ref());
    let ingress = balancer.and_then(|it| it.ingress.as_ref());
    ingress
        .into_iter()
        .flatten()
        .filter_map(|it| it.ip.as_deref()?.parse().ok())
        .collect()
}

/// Addresses as `status.loadBalancer.ingress` shows them.
pub(crate) fn ingress(addresses: &[IpAddr]) -> Vec<LoadBalancerIngress> {
    addresses
        .iter()
        .map(|it| LoadBalancerIngress {
            ip: Some(it.to_string()),
            ip_mode: Some("VIP".to_owned()),
            ..LoadBalancerIngress::default()
        })
        .collect()
}

/// Addresses of nodes that are ready and not excluded, as outside clients may reach them.
pub(crate) fn node_addresses<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> BTreeSet<IpAddr> {
    let mut all = BTreeSet::new();
    for node in nodes {
        let excluded = node
            .metadata
            .labels
            .as_ref()
            .is_some_and(|it| it.contains_key(EXCLUDED));
        let conditions = node.status.as_ref().and_then(|it| it.conditions.as_ref());
        let ready = conditions
            .into_iter()
            .flatten()
            .any(|it| it.type_ == "Ready" && it.status == "True");
        if excluded || !ready || node.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let addresses = node
            .status
            .as_ref()
            .and_then(|it| it.addresses.as_deref())
            .unwrap_or_default();
        for kind in ["ExternalIP", "InternalIP"] {
            let of_kind: Vec<IpAddr> = addresses
                .iter()
                .filter(|it| it.type_ == kind)
                .filter_map(|it| it.address.parse().ok())
                .collect();
            if !of_kind.is_empty() {
                all.extend(of_kind);
                break;
            }
        }
    }
    all
}

/// What is given out.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    kind: AddressPool,
    /// Of ranges: who has an address.
    addresses: BTreeMap<IpAddr, Key>,
    /// Of nodes: who has a port, as `80/TCP`.
    ports: BTreeMap<String, Key>,
}

/// Ports of a Service, as `80/TCP`.
fn ports(service: &Service) -> Vec<String> {
    let all = service.spec.as_ref().and_then(|it| it.ports.as_ref());
    all.into_iter()
        .flatten()
        .map(|it| format!("{}/{}", it.port, it.protocol.as_deref().unwrap_or("TCP")))
        .collect()
}

impl Pool {
    /// Nothing is given out yet.
    pub(crate) fn new(kind: AddressPool) -> Self {
        Self {
            kind,
            ..Self::default()
        }
    }

    fn contains(&self, address: IpAddr) -> bool {
        let AddressPool::Ranges(ranges) = &self.kind else {
            return false;
        };
        ranges
            .iter()
            .any(|it| it.contains(&address) && address >= first(it) && address <= last(it))
    }

    /// Notes what a Service shows in its status, unless somebody has it already.
    pub(crate) fn adopt(&mut self, key: &Key, service: &Service) {
        for address in given(service) {
            if self.contains(address) {
                self.addresses.entry(address).or_insert_with(|| key.clone());
            }
        }
        if self.kind == AddressPool::Nodes && !given(service).is_empty() {
            for port in ports(service) {
                self.ports.entry(port).or_insert_with(|| key.clone());
            }
        }
    }

    /// Everything of the Service is free again. Whether there was anything.
    pub(crate) fn release(&mut self, key: &Key) -> bool {
        let before = self.addresses.len() + self.ports.len();
        self.addresses.retain(|_, owner| owner != key);
        self.ports.retain(|_, owner| owner != key);
        before != self.addresses.len() + self.ports.len()
    }

    /// The addresses that the Service has from now on: those that it has, as far as they are still right.
    ///
    /// # Errors
    /// Nothing is taken then, and what it had is free.
    pub(crate) fn assign(
        &mut self,
        key: &Key,
        service: &Service,
        nodes: &BTreeSet<IpAddr>,
    ) -> Result<Vec<IpAddr>, Refused> {
        let assigned = match self.kind.clone() {
            AddressPool::None => Ok(Vec::new()),
            AddressPool::Nodes => self.assign_nodes(key, service, nodes),
            AddressPool::Ranges(ranges) => self.assign_ranges(key, service, &ranges),
        };
        if assigned.is_err() {
            self.release(key);
        }
        assigned
    }

    fn assign_nodes(&mut self, key: &Key, service: &Service, nodes: &BTreeSet<IpAddr>) -> Result<Vec<IpAddr>, Refused> {
        let ports = ports(service);
        let taken = |port: &&String| self.ports.get(*port).filter(|it| *it != key);
        if let Some(port) = ports.iter().find(|it| taken(it).is_some())
            && let Some(owner) = taken(&port)
        {
            return Err(Refused::Port {
                port: port.clone(),
                owner: owner.clone(),
            });
        }
        self.ports.retain(|_, owner| owner != key);
        let families = families(service);
        let addresses: Vec<IpAddr> = families
            .iter()
            .flat_map(|six| nodes.iter().copied().filter(|it| it.is_ipv6() == *six))
            .collect();
        if addresses.is_empty() {
            return Err(Refused::NoNode);
        }
        self.ports.extend(ports.into_iter().map(|port| (port, key.clone())));
        Ok(addresses)
    }

    fn assign_ranges(&mut self, key: &Key, service: &Service, ranges: &[IpNet]) -> Result<Vec<IpAddr>, Refused> {
        let spec = service.spec.as_ref();
        let wish: Option<IpAddr> = spec
            .and_then(|it| it.load_balancer_ip.as_deref())
            .and_then(|it| it.parse().ok());
        let mut assigned = Vec::new();
        for six in families(service) {
            let wish = wish.filter(|it| it.is_ipv6() == six);
            if let Some(address) = wish {
                if !self.contains(address) {
                    return Err(Refused::Foreign(address));
                }
                if let Some(owner) = self.addresses.get(&address).filter(|it| *it != key) {
                    let owner = owner.clone();
                    return Err(Refused::Taken { address, owner });
                }
                assigned.push(address);
                continue;
            }
            let held = self
                .addresses
                .iter()
                .find(|(address, owner)| *owner == key && address.is_ipv6() == six);
            let held = held.map(|it| *it.0).filter(|it| self.contains(*it));
            let free = || {
                let ranges = ranges.iter().filter(|it| matches!(it, IpNet::V6(_)) == six);
                ranges.filter_map(|it| self.free(it)).next()
            };
            let name = if six { "IPv6" } else { "IPv4" };
            assigned.push(held.or_else(free).ok_or(Refused::Exhausted(name))?);
        }
        self.addresses.retain(|_, owner| owner != key);
        self.addresses.extend(assigned.iter().map(|it| (*it, key.clone())));
        Ok(assigned)
    }

    /// The lowest address of a range that nobody has.
    fn free(&self, range: &IpNet) -> Option<IpAddr> {
        let (first, last) = (first(range), last(range));
        let mut candidate = first;
        for used in self.addresses.range(first..=last).map(|it| *it.0) {
            if used != candidate {
                break;
            }
            candidate = after(candidate)?;
        }
        (candidate <= last).then_some(candidate)
    }
}

fn after(address: IpAddr) -> Option<IpAddr> {
    Some(match address {
        IpAddr::V4(it) => IpAddr::V4(it.to_bits().checked_add(1)?.into()),
        IpAddr::V6(it) => IpAddr::V6(it.to_bits().checked_add(1)?.into()),
    })
}

/// The lowest address that may be given: not the name of the network (RFC 3021 allows both of a /31), and not the anycast
/// address of its routers (RFC 4291 §2.6.1).
fn first(range: &IpNet) -> IpAddr {
    let network = range.network();
    if range.max_prefix_len() - range.prefix_len() <= 1 {
        return network;
    }
    after(network).unwrap_or(network)
}

fn last(range: &IpNet) -> IpAddr {
    match range {
        IpNet::V4(it) if it.prefix_len() < 31 => IpAddr::V4((it.broadcast().to_bits() - 1).into()),
        _ => range.broadcast(),
    }
}
