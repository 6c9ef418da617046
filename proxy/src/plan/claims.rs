//! Who owns a frontend that several service ports claim.

use super::FrontendKind;
use crate::model::{Family, NodeView, ObjectName, Protocol, Service, ServicePort};
use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    sync::Arc,
};

/// What a packet is looked up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendKey {
    /// The virtual (or node) address.
    pub addr: IpAddr,
    /// The service port or node port.
    pub port: NonZeroU16,
    /// The transport protocol.
    pub protocol: Protocol,
}

impl fmt::Display for FrontendKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", SocketAddr::new(self.addr, self.port.get()), self.protocol)
    }
}

/// A service port that claims a frontend. The least of all claimants owns it: the oldest service (without a creation
/// time: older than any other), then by name, then by port name.
#[derive(Clone, Debug)]
pub struct Claimant {
    service: Arc<Service>,
    /// Index into its ports.
    port: u32,
    kind: FrontendKind,
}

impl Claimant {
    /// The service.
    pub fn service(&self) -> &ObjectName {
        &self.service.name
    }

    /// Name of the service port.
    pub fn port(&self) -> &str {
        self.service.ports.get(self.port as usize).map_or("", |port| &port.name)
    }

    fn rank(&self) -> (Option<i64>, &ObjectName, &str) {
        (self.service.created_s, self.service(), self.port())
    }

    /// The field of the Service that claims, as a path.
    pub fn field(&self) -> String {
        field(self.kind, self.port())
    }
}

/// The field of a Service that a frontend comes from, as a path.
pub fn field(kind: FrontendKind, port: &str) -> String {
    match kind {
        FrontendKind::ClusterIP => "spec.clusterIPs".into(),
        FrontendKind::LoadBalancer => "status.loadBalancer.ingress".into(),
        FrontendKind::ExternalIP => "spec.externalIPs".into(),
        FrontendKind::NodePort => format!("{}.nodePort", port_path(port)),
    }
}

/// Path of a service port. By name and not by index: ports that could not be used have been left out on the way here.
pub fn port_path(port: &str) -> String {
    if port.is_empty() {
        "spec.ports[0]".into()
    } else {
        format!("spec.ports[{port:?}]")
    }
}

/// All claims of all services.
#[derive(Debug, Default)]
pub struct Claims {
    held: HashMap<FrontendKey, Claimants>,
}

/// Claimants of one frontend: nearly always one, so that one costs no allocation.
#[derive(Debug)]
struct Claimants {
    owner: Claimant,
    /// Sorted.
    others: Vec<Claimant>,
}

impl Claims {
    /// Who owns a frontend.
    pub fn owner(&self, key: &FrontendKey) -> Option<&Claimant> {
        self.held.get(key).map(|claimants| &claimants.owner)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.held.clear();
    }

    /// Enters every claim of a service; services for which another owner of some frontend results go to `affected`.
    pub fn add(&mut self, service: &Arc<Service>, node: &NodeView, affected: &mut BTreeSet<ObjectName>) {
        for_each_claim(service, node, |key, claimant| {
            let Some(held) = self.held.get_mut(&key) else {
                self.held.insert(
                    key,
                    Claimants {
                        owner: claimant,
                        others: Vec::new(),
                    },
                );
                return;
            };
            let loser = if claimant.rank() < held.owner.rank() {
                held.touch(affected);
                std::mem::replace(&mut held.owner, claimant)
            } else {
                claimant
            };
            let at = held.others.partition_point(|other| other.rank() < loser.rank());
            held.others.insert(at, loser);
        });
    }

    /// Withdraws every claim of a service, as [`Claims::add`] entered them for the same `service` and `node`; services
    /// for which another owner of some frontend results go to `affected`.
    pub fn remove(&mut self, service: &Arc<Service>, node: &NodeView, affected: &mut BTreeSet<ObjectName>) {
        for_each_claim(service, node, |key, claimant| {
            let Some(held) = self.held.get_mut(&key) else { return };
            if held.owner.rank() != claimant.rank() {
                held.others.retain(|other| other.rank() != claimant.rank());
            } else if held.others.is_empty() {
                self.held.remove(&key);
            } else {
                held.owner = held.others.remove(0);
                held.touch(affected);
            }
        });
    }
}

impl Claimants {
    fn touch(&self, affected: &mut BTreeSet<ObjectName>) {
        let all = std::iter::once(&self.owner).chain(&self.others);
        affected.extend(all.map(|claimant| claimant.service().clone()));
    }
}

fn for_each_claim(service: &Arc<Service>, node: &NodeView, mut claim: impl FnMut(FrontendKey, Claimant)) {
    for (at, (port, _)) in (0..).zip(ports(service)).filter(|(_, (_, repeated))| !repeated) {
        for family in Family::ALL {
            for (addr, number, kind) in candidates(service, port, family, node) {
                let key = FrontendKey {
                    addr,
                    port: number,
                    protocol: port.protocol,
                };
                claim(
                    key,
                    Claimant {
                        service: service.clone(),
                        port: at,
                        kind,
                    },
                );
            }
        }
    }
}

/// The ports of a service, each with whether it repeats the name and protocol of an earlier one: then it cannot be told
/// from that one by its endpoints, and is left out.
pub fn ports(service: &Service) -> impl Iterator<Item = (&ServicePort, bool)> {
    let ports = &service.ports;
    ports.iter().enumerate().map(|(at, port)| {
        let same = |earlier: &ServicePort| earlier.name == port.name && earlier.protocol == port.protocol;
        (port, ports[..at].iter().any(same))
    })
}

/// The ports of a service that do not repeat an earlier one.
pub fn usable_ports(service: &Service) -> impl Iterator<Item = &ServicePort> {
    ports(service).filter_map(|(port, repeated)| (!repeated).then_some(port))
}

/// Whether a service is served in a family: in those of its cluster IPs; without any (possible in manifests), in both.
pub fn serves(service: &Service, family: Family) -> bool {
    service.cluster_ips.is_empty() || service.cluster_ips.iter().any(|addr| Family::of(addr) == family)
}

/// The frontends that a service port claims in one family, sorted by address and port. An address that the service
/// lists under two fields counts once: as `ClusterIP`, else `LoadBalancer` (so that source ranges hold), else `NodePort`,
/// else `ExternalIP`.
pub fn candidates(
    service: &Service,
    port: &ServicePort,
    family: Family,
    node: &NodeView,
) -> Vec<(IpAddr, NonZeroU16, FrontendKind)> {
    if !serves(service, family) {
        return Vec::new();
    }
    let mut found: Vec<(IpAddr, NonZeroU16, FrontendKind)> = Vec::with_capacity(1);
    let mut list = |addrs: &[IpAddr], number, kind| {
        // Never loopback, whatever the node view says: its packets cannot be sent elsewhere.
        let fit = addrs
            .iter()
            .filter(|addr| Family::of(addr) == family && !addr.is_loopback());
        found.extend(fit.map(|addr| (*addr, number, kind)));
    };
    list(&service.cluster_ips, port.port, FrontendKind::ClusterIP);
    list(&service.load_balancer_ips, port.port, FrontendKind::LoadBalancer);
    if let Some(node_port) = port.node_port {
        list(&node.node_port_addresses, node_port, FrontendKind::NodePort);
    }
    list(&service.external_ips, port.port, FrontendKind::ExternalIP);
    // Stable, so that of equal keys the first listed stays.
    found.sort_by_key(|(addr, number, _)| (*addr, *number));
    found.dedup_by_key(|(addr, number, _)| (*addr, *number));
    found
}
