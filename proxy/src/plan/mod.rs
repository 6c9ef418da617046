//! The neutral decision: which frontends this node serves, with which backends, under which policy.
//!
//! A [`Plan`] is a pure function of the [`crate::model::ServiceMap`] and the [`crate::model::NodeView`]; every
//! dataplane lowers the same one, and [`trace`] says what it means for a packet.

pub mod claims;
pub mod compile;
pub mod topology;
pub mod trace;

use crate::{
    error::Skipped,
    model::{Family, ObjectName, Protocol},
};
use ipnet::IpNet;
use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    sync::Arc,
};

/// What this node should serve, keyed by service so that a change costs what it changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Services with at least one frontend on this node, a health check, or something to report as skipped.
    pub services: BTreeMap<ObjectName, Arc<ServicePlan>>,
}

/// The plan of one service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServicePlan {
    /// One entry per service port **and family** that has a frontend, sorted by (name, protocol, family).
    pub ports: Vec<PortPlan>,
    /// `healthCheckNodePort` with the number of ready endpoints on this node, for `LoadBalancer` + Local.
    pub health_check: Option<HealthCheck>,
    /// What of this service could not be planned.
    pub skipped: Vec<Skipped>,
}

/// What a `healthCheckNodePort` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port.
    pub port: NonZeroU16,
    /// Ready endpoints on this node; terminating ones do not count.
    pub local_endpoints: usize,
}

/// A service port in one family: its backends, and the frontends that lead to them.
#[derive(Clone, Debug, PartialEq)]
pub struct PortPlan {
    /// Name of the service port, empty if unnamed.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// Family of every address in this entry.
    pub family: Family,
    /// Seconds of `sessionAffinity: ClientIP`, if on.
    pub affinity_s: Option<u32>,
    /// Sorted by address and port, no duplicates. Includes endpoints that are in no set but still serve the flows that
    /// they have (terminating or hinted away); an endpoint that is not listed has lost its flows.
    pub backends: Vec<Backend>,
    /// Sorted by address and port; only those that this service owns (see [`compile::Planner`]).
    pub frontends: Vec<Frontend>,
}

/// A target of a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    /// Pod (or host) address and target port.
    pub addr: SocketAddr,
    /// Selectable where policy is Cluster: usable, and picked by topology hints.
    pub in_cluster: bool,
    /// Selectable where policy is Local: usable and on this node.
    pub in_local: bool,
    /// Runs on this node.
    pub on_node: bool,
}

/// An address, port and protocol that we intercept, and what to do with a new flow to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Frontend {
    /// The virtual (or node) address.
    pub addr: IpAddr,
    /// The service port or node port.
    pub port: NonZeroU16,
    /// Which field of the Service it comes from.
    pub kind: FrontendKind,
    /// For clients on this node: pods, and the node itself.
    pub internal: Decision,
    /// For clients outside this node.
    pub external: Decision,
    /// Who may come, before anything else is decided.
    pub sources: SourceRanges,
    /// The address is one of this node's own.
    pub node_address: bool,
}

/// Which field of a Service a frontend comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrontendKind {
    /// `spec.clusterIPs`.
    ClusterIP,
    /// `spec.ports[].nodePort` on one of the node's addresses.
    NodePort,
    /// `status.loadBalancer.ingress[].ip`.
    LoadBalancer,
    /// `spec.externalIPs`.
    ExternalIP,
}

/// What happens to a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Balanced over the port's backends with `in_cluster`; at least one exists.
    Cluster,
    /// Balanced over the port's backends with `in_local`; at least one exists.
    Local,
    /// No usable endpoint anywhere: TCP RST, or ICMP port unreachable.
    Reject,
    /// Policy Local, none usable here but some elsewhere.
    Drop,
}

/// `loadBalancerSourceRanges` of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SourceRanges {
    /// No restriction.
    #[default]
    Any,
    /// Only these; empty = nobody. Sorted, no duplicates. Includes the frontend's own address when a range covers one
    /// of the node's addresses (the node reaching its own load balancer).
    Only(Vec<IpNet>),
}

impl Plan {
    /// Every frontend with its service and port, by service.
    pub fn frontends(&self) -> impl Iterator<Item = (&ObjectName, &PortPlan, &Frontend)> {
        self.services.iter().flat_map(|(name, service)| {
            let ports = service.ports.iter();
            ports.flat_map(move |port| port.frontends.iter().map(move |frontend| (name, port, frontend)))
        })
    }
}

impl PortPlan {
    /// The backends that a new flow may go to under `decision`; none under Reject and Drop.
    pub fn selectable(&self, decision: Decision) -> impl Iterator<Item = &Backend> {
        self.backends.iter().filter(move |backend| match decision {
            Decision::Cluster => backend.in_cluster,
            Decision::Local => backend.in_local,
            Decision::Reject | Decision::Drop => false,
        })
    }
}

impl Frontend {
    /// The decision for a client of this origin.
    pub fn decision(&self, origin: trace::Origin) -> Decision {
        match origin {
            trace::Origin::Pod | trace::Origin::Host => self.internal,
            trace::Origin::Outside => self.external,
        }
    }
}

impl SourceRanges {
    /// Whether a packet from `source` may pass.
    pub fn allow(&self, source: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::Only(nets) => nets.iter().any(|net| net.contains(&source)),
        }
    }
}

impl fmt::Display for FrontendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClusterIP => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
            Self::ExternalIP => "ExternalIP",
        })
    }
}
