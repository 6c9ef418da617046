//! What tests of this crate and of others share: builders of model objects, [the packet table](table()), and seeded
//! random worlds.
//!
//! One node, `n1` in zone `z1`, is looked at. Addresses: pods 10.1/16 (here 10.1.0/24), services 10.96/16, nodes
//! 192.168.0/24, outside 203.0.113/24, load balancers and external IPs 198.51.100/24, and their likes in IPv6.

mod random;
mod scenes;
mod table;

pub use self::{
    random::{Rng, random_events, random_node, random_packet, random_world},
    table::{Case, table},
};

use crate::model::{
    Endpoint, EndpointPort, EndpointSlice, Family, NodeView, ObjectName, Protocol, Service, ServicePort, TrafficPolicy,
};
use std::{fs, io::Write as _, net::IpAddr, num::NonZeroU16, sync::Arc};

/// Target port of every endpoint that does not say otherwise.
pub const TARGET_PORT: u16 = 8080;

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|_| panic!("{text:?} is no address"))
}

fn port(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).expect("port 0")
}

/// Node `n1`: `192.168.0.1` and `fd00:192:168::1` serve node ports, `192.168.1.1` is its own too but does not.
pub fn node() -> NodeView {
    let mut addresses = vec![addr("192.168.0.1"), addr("192.168.1.1"), addr("fd00:192:168::1")];
    addresses.sort();
    NodeView {
        name: "n1".into(),
        zone: Some("z1".into()),
        node_port_addresses: vec![addr("192.168.0.1"), addr("fd00:192:168::1")],
        addresses,
        primary: [Some(addr("192.168.0.1")), Some(addr("fd00:192:168::1"))],
        masquerade_all: false,
    }
}

/// Whether a test that needs root and a kernel has to leave it at that, which `FAIRLEAD_NO_KERNEL=1` asks for. Says so on
/// stderr and, for `cargo xtask test` to count, as a line `test: reason` of the file that `FAIRLEAD_SKIPS` names.
pub fn skip_without_kernel(test: &str) -> bool {
    const REASON: &str = "FAIRLEAD_NO_KERNEL=1";
    if std::env::var_os("FAIRLEAD_NO_KERNEL").is_none_or(|value| value != "1") {
        return false;
    }
    eprintln!("SKIPPED {test}: {REASON}");
    if let Some(path) = std::env::var_os("FAIRLEAD_SKIPS") {
        let file = fs::OpenOptions::new().append(true).create(true).open(&path);
        // One write per line: test programs append to the same file.
        let written = file.and_then(|mut file| file.write_all(format!("{test}: {REASON}\n").as_bytes()));
        written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    true
}

/// A service in namespace `default`; see [`ServiceBuilder`].
pub fn service(name: &str) -> ServiceBuilder {
    ServiceBuilder(Service {
        name: ObjectName::new("default", name),
        created_s: None,
        cluster_ips: Vec::new(),
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        ports: Vec::new(),
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        source_ranges: Vec::new(),
        affinity_s: None,
        health_check_node_port: None,
    })
}

/// Builds a [`Service`]; with no port given, it has one: unnamed, 80/TCP.
#[derive(Clone, Debug)]
#[must_use]
pub struct ServiceBuilder(Service);

impl ServiceBuilder {
    /// Adds to `spec.clusterIPs`.
    pub fn cluster_ip(mut self, text: &str) -> Self {
        self.0.cluster_ips.push(addr(text));
        self
    }
    /// Adds to `spec.externalIPs`.
    pub fn external_ip(mut self, text: &str) -> Self {
        self.0.external_ips.push(addr(text));
        self
    }
    /// Adds to `status.loadBalancer.ingress[].ip`.
    pub fn load_balancer_ip(mut self, text: &str) -> Self {
        self.0.load_balancer_ips.push(addr(text));
        self
    }
    /// Adds a port.
    pub fn port(mut self, name: &str, number: u16, protocol: Protocol, node_port: Option<u16>) -> Self {
        self.0.ports.push(ServicePort {
            name: name.into(),
            protocol,
            port: port(number),
            node_port: node_port.map(port),
        });
        self
    }
    /// `spec.internalTrafficPolicy`.
    pub fn internal(mut self, policy: TrafficPolicy) -> Self {
        self.0.internal_policy = policy;
        self
    }
    /// `spec.externalTrafficPolicy`.
    pub fn external(mut self, policy: TrafficPolicy) -> Self {
        self.0.external_policy = policy;
        self
    }
    /// Adds to `spec.loadBalancerSourceRanges`.
    pub fn source_range(mut self, text: &str) -> Self {
        self.0
            .source_ranges
            .push(text.parse().unwrap_or_else(|_| panic!("{text:?} is no range")));
        self
    }
    /// `spec.sessionAffinity: ClientIP`, with its timeout in seconds.
    pub fn affinity(mut self, timeout_s: u32) -> Self {
        self.0.affinity_s = Some(timeout_s);
        self
    }
    /// `metadata.creationTimestamp`, seconds since the epoch.
    pub fn created(mut self, at_s: i64) -> Self {
        self.0.created_s = Some(at_s);
        self
    }
    /// `spec.healthCheckNodePort`.
    pub fn health_check(mut self, number: u16) -> Self {
        self.0.health_check_node_port = Some(port(number));
        self
    }
    /// The service.
    pub fn build(self) -> Service {
        if self.0.ports.is_empty() {
            return self.port("", 80, Protocol::Tcp, None).build();
        }
        self.0
    }
}

/// An endpoint in the making; the fields are those of [`Endpoint`].
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "see Endpoint")]
pub struct Ep {
    pub addr: IpAddr,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub node: Option<Arc<str>>,
    pub zones: &'static [&'static str],
    pub nodes: &'static [&'static str],
}

impl Ep {
    /// A ready endpoint on node `n1`.
    pub fn here(text: &str) -> Self {
        Self {
            addr: addr(text),
            ready: true,
            serving: true,
            terminating: false,
            node: Some("n1".into()),
            zones: &[],
            nodes: &[],
        }
    }
    /// A ready endpoint on node `n2`.
    pub fn there(text: &str) -> Self {
        Self {
            node: Some("n2".into()),
            ..Self::here(text)
        }
    }
    /// Not ready any more, but still serving while it terminates.
    pub fn terminating(self) -> Self {
        Self {
            ready: false,
            serving: true,
            terminating: true,
            ..self
        }
    }
    /// Neither ready nor serving.
    pub fn dead(self) -> Self {
        Self {
            ready: false,
            serving: false,
            ..self
        }
    }
    fn build(&self) -> Endpoint {
        let names = |hints: &[&str]| hints.iter().map(|name| Arc::from(*name)).collect();
        Endpoint {
            addr: self.addr,
            ready: self.ready,
            serving: self.serving,
            terminating: self.terminating,
            node: self.node.clone(),
            zone_hints: names(self.zones),
            node_hints: names(self.nodes),
        }
    }
}

/// A slice in namespace `default`, of the family of its first endpoint (else IPv4), with one port: unnamed,
/// [`TARGET_PORT`]/TCP.
pub fn slice(name: &str, service: &str, endpoints: &[Ep]) -> EndpointSlice {
    slice_with(name, service, &[("", TARGET_PORT, Protocol::Tcp)], endpoints)
}

/// As [`slice`], with other ports: name, number and protocol.
pub fn slice_with(name: &str, service: &str, ports: &[(&str, u16, Protocol)], endpoints: &[Ep]) -> EndpointSlice {
    EndpointSlice {
        name: ObjectName::new("default", name),
        service: ObjectName::new("default", service),
        family: endpoints.first().map_or(Family::V4, |first| Family::of(&first.addr)),
        ports: ports
            .iter()
            .map(|(name, number, protocol)| EndpointPort {
                name: (*name).into(),
                protocol: *protocol,
                port: port(*number),
            })
            .collect(),
        endpoints: endpoints.iter().map(Ep::build).collect(),
        triggered_ms: None,
    }
}
