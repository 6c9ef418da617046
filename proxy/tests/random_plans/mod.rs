//! Random plans: few addresses, many collisions.

use ipnet::IpNet;
use proptest::{collection::vec, option, prelude::*};
use proxy::{
    model::{Family, ObjectName, Protocol},
    plan::{Backend, Decision, Frontend, FrontendKind, Plan, PortPlan, ServicePlan, SourceRanges},
};
use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroU16,
    sync::Arc,
};

pub(crate) const SERVICES: usize = 3;
pub(crate) const PORTS: [(&str, Protocol); 3] =
    [("dns", Protocol::Udp), ("web", Protocol::Tcp), ("sig", Protocol::Sctp)];
pub(crate) const ENDPOINTS: usize = 4;
/// Frontend addresses of each family; whoever owns one in a plan, its address is the same.
pub(crate) const VIPS: usize = 3;
pub(crate) const PORT: NonZeroU16 = NonZeroU16::new(53).unwrap();

/// Owner, port, internal Local, external Local, source ranges, address of the node.
pub(crate) type FrontendSpec = (usize, usize, bool, bool, usize, bool);

/// What a plan is made from; small numbers, so that cases shrink well and plans collide often.
#[derive(Clone)]
pub(crate) struct Spec {
    /// By family and address.
    pub(crate) frontends: Vec<Option<FrontendSpec>>,
    /// By service, port and family, a number per endpoint. Bits: 1 present, 2 in the Cluster set, 4 on the node, 8 in
    /// the Local set if on the node.
    pub(crate) backends: Vec<Vec<u8>>,
    /// By service.
    pub(crate) affinity: Vec<bool>,
}

impl fmt::Debug for Spec {
    /// The plan, one line per port: a failure is to be read.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, service) in &self.plan().services {
            for port in &service.ports {
                write!(f, "\n  {name} {:?} affinity={:?}:", port.name, port.affinity_s)?;
                for fe in &port.frontends {
                    write!(f, " [{} {:?}/{:?} {:?}]", fe.addr, fe.internal, fe.external, fe.sources)?;
                }
                for be in &port.backends {
                    let Backend {
                        addr,
                        in_cluster,
                        in_local,
                        on_node,
                    } = be;
                    write!(
                        f,
                        " {addr}={}{}{}",
                        u8::from(*in_cluster),
                        u8::from(*in_local),
                        u8::from(*on_node)
                    )?;
                }
            }
        }
        Ok(())
    }
}

pub(crate) fn spec() -> impl Strategy<Value = Spec> {
    let frontend = (
        0..SERVICES,
        0..PORTS.len(),
        any::<bool>(),
        any::<bool>(),
        0..4usize,
        any::<bool>(),
    );
    (
        vec(option::weighted(0.8, frontend), VIPS * 2),
        vec(vec(0u8..16, ENDPOINTS), SERVICES * PORTS.len() * 2),
        vec(any::<bool>(), SERVICES),
    )
        .prop_map(|(frontends, backends, affinity)| Spec {
            frontends,
            backends,
            affinity,
        })
}

fn address(family: usize, v4: [u8; 4], v6: u16) -> IpAddr {
    match family {
        0 => Ipv4Addr::from(v4).into(),
        _ => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, v4[1].into(), v6).into(),
    }
}

pub(crate) fn vip(family: usize, number: usize) -> IpAddr {
    address(family, [10, 96, 0, 10 + number as u8], 10 + number as u16)
}

/// Every service may have the same pods: addresses alone do not tell ids apart.
pub(crate) fn endpoint(family: usize, number: usize) -> SocketAddr {
    SocketAddr::new(address(family, [10, 1, 0, 1 + number as u8], 1 + number as u16), 5353)
}

pub(crate) fn client(family: usize, number: usize) -> IpAddr {
    address(family, [10, 2, 0, 1 + number as u8], 1 + number as u16)
}

fn ranges(family: usize, choice: usize) -> SourceRanges {
    let host = |number| IpNet::from(client(family, number));
    match choice {
        0 => SourceRanges::Any,
        1 => SourceRanges::Only(vec![host(0)]),
        2 => SourceRanges::Only(vec![host(0), host(1)]),
        // A range that is wider than it says.
        _ => SourceRanges::Only(vec![
            IpNet::new(client(family, 2), if family == 0 { 30 } else { 126 }).unwrap(),
        ]),
    }
}

impl Spec {
    /// The plan.
    pub(crate) fn plan(&self) -> Plan {
        let mut plan = Plan::default();
        for service in 0..SERVICES {
            let mut ports = Vec::new();
            for (port, (name, protocol)) in PORTS.iter().enumerate() {
                for family in 0..2 {
                    ports.extend(self.port(service, port, name, *protocol, family));
                }
            }
            if !ports.is_empty() {
                let name = ObjectName::new("default", format!("s{service}"));
                plan.services.insert(
                    name,
                    Arc::new(ServicePlan {
                        ports,
                        ..ServicePlan::default()
                    }),
                );
            }
        }
        plan
    }

    fn port(&self, service: usize, port: usize, name: &str, protocol: Protocol, family: usize) -> Option<PortPlan> {
        let endpoints = &self.backends[(service * PORTS.len() + port) * 2 + family];
        let backends: Vec<_> = (0..ENDPOINTS)
            .filter(|at| endpoints[*at] & 1 != 0)
            .map(|at| {
                let bits = endpoints[at];
                Backend {
                    addr: endpoint(family, at),
                    in_cluster: bits & 2 != 0,
                    in_local: bits & 12 == 12,
                    on_node: bits & 4 != 0,
                }
            })
            .collect();
        let decide = |local| match local {
            true if backends.iter().any(|backend| backend.in_local) => Decision::Local,
            true => Decision::Drop,
            false if backends.iter().any(|backend| backend.in_cluster) => Decision::Cluster,
            false => Decision::Reject,
        };
        let frontends: Vec<_> = (0..VIPS)
            .filter_map(|number| {
                let (owner, at, internal, external, sources, node_address) = self.frontends[family * VIPS + number]?;
                (owner == service && at == port).then(|| Frontend {
                    addr: vip(family, number),
                    port: PORT,
                    kind: if number == 0 {
                        FrontendKind::ClusterIP
                    } else {
                        FrontendKind::LoadBalancer
                    },
                    internal: decide(internal),
                    external: decide(external),
                    sources: ranges(family, sources),
                    node_address,
                })
            })
            .collect();
        (!frontends.is_empty()).then(|| PortPlan {
            name: name.into(),
            protocol,
            family: if family == 0 { Family::V4 } else { Family::V6 },
            affinity_s: self.affinity[service].then_some(10_800),
            backends,
            frontends,
        })
    }
}
