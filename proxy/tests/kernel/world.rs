//! One service in either family, and who talks to it.

use crate::{
    packet::Packet,
    rig::{Rig, Way},
};
use proxy::{
    model::{EndpointSlice, Family, Protocol},
    plan::trace::{Origin, Target},
    testing::{self, Ep, ServiceBuilder},
};
use std::net::{IpAddr, SocketAddr};

pub(crate) const TARGET_PORT: u16 = 8080;
pub(crate) const ORIGINS: [Origin; 3] = [Origin::Pod, Origin::Host, Origin::Outside];

/// Family and protocol of a service.
#[derive(Clone, Copy, Debug)]
pub(crate) struct World {
    pub(crate) family: Family,
    pub(crate) protocol: Protocol,
}

impl World {
    /// Both families, TCP and UDP.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let families = Family::ALL.into_iter();
        families.flat_map(|family| [Protocol::Tcp, Protocol::Udp].map(|protocol| Self { family, protocol }))
    }

    /// Both families, one protocol.
    pub(crate) fn of(protocol: Protocol) -> impl Iterator<Item = Self> {
        Family::ALL.into_iter().map(move |family| Self { family, protocol })
    }

    pub(crate) fn addr(&self, v4: &str, v6: &str) -> IpAddr {
        match self.family {
            Family::V4 => v4.parse().unwrap(),
            Family::V6 => v6.parse().unwrap(),
        }
    }

    /// The service's ClusterIP.
    pub(crate) fn vip(&self) -> SocketAddr {
        SocketAddr::new(self.addr("10.96.0.10", "fd00:10:96::10"), 80)
    }

    /// The service's external IP.
    pub(crate) fn external(&self) -> SocketAddr {
        SocketAddr::new(self.addr("198.51.100.20", "2001:db8:100::20"), 80)
    }

    /// The service's node port.
    pub(crate) fn node_port(&self) -> SocketAddr {
        SocketAddr::new(self.addr("192.168.0.1", "fd00:192:168::1"), 30_080)
    }

    /// Pod `n` on this node.
    pub(crate) fn here(&self, n: u8) -> IpAddr {
        self.addr(&format!("10.1.0.{n}"), &format!("fd00:10:1::{n}"))
    }

    /// Pod `n` on another node.
    pub(crate) fn there(&self, n: u8) -> IpAddr {
        self.addr(&format!("10.1.1.{n}"), &format!("fd00:10:1:1::{n}"))
    }

    /// A client by where it is.
    pub(crate) fn client(&self, origin: Origin, port: u16) -> SocketAddr {
        let addr = match origin {
            Origin::Pod => self.here(100),
            Origin::Host => self.node_port().ip(),
            Origin::Outside => self.addr("203.0.113.9", "2001:db8:113::9"),
        };
        SocketAddr::new(addr, port)
    }

    /// The first packet of a flow.
    pub(crate) fn first(&self, source: SocketAddr, destination: SocketAddr) -> Packet {
        Packet::first(self.protocol.number(), source, destination)
    }

    pub(crate) fn service(&self) -> ServiceBuilder {
        testing::service("web")
            .cluster_ip(&self.vip().ip().to_string())
            .external_ip(&self.external().ip().to_string())
            .port("", 80, self.protocol, Some(30_080))
    }

    /// An endpoint, on this node if a route or an address says so.
    pub(crate) fn endpoint(&self, rig: &Rig, addr: IpAddr) -> Ep {
        let text = addr.to_string();
        match rig.way(addr) {
            Way::Net => Ep::there(&text),
            Way::Pod | Way::Node => Ep::here(&text),
        }
    }

    pub(crate) fn slice(&self, endpoints: &[Ep]) -> EndpointSlice {
        let slice = testing::slice_with("web-1", "web", &[("", TARGET_PORT, self.protocol)], endpoints);
        EndpointSlice {
            family: self.family,
            ..slice
        }
    }

    /// Serves [`World::service`] by these endpoints.
    pub(crate) fn serve(&self, rig: &mut Rig, endpoints: &[IpAddr]) {
        self.serve_as(rig, self.service(), endpoints);
    }

    /// As [`World::serve`], with another service.
    pub(crate) fn serve_as(&self, rig: &mut Rig, service: ServiceBuilder, endpoints: &[IpAddr]) {
        let endpoints: Vec<_> = endpoints.iter().map(|addr| self.endpoint(rig, *addr)).collect();
        rig.serve(&[service.build()], &[self.slice(&endpoints)]);
    }

    /// What a packet of this origin may be sent to.
    pub(crate) fn targets(&self, rig: &Rig, origin: Origin, client: SocketAddr, endpoints: &[IpAddr]) -> Vec<Target> {
        let target = |addr: &IpAddr| Target {
            addr: SocketAddr::new(*addr, TARGET_PORT),
            masquerade: match origin {
                Origin::Pod => client.ip() == *addr,
                Origin::Host => false,
                Origin::Outside => rig.way(*addr) == Way::Net,
            },
        };
        endpoints.iter().map(target).collect()
    }
}
