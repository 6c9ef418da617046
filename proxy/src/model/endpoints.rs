//! EndpointSlice → [`EndpointSlice`], and the endpoints of one service merged from its slices.

use super::{Family, ObjectName, Protocol};
use std::{net::IpAddr, num::NonZeroU16, sync::Arc};

/// A `discovery/v1` EndpointSlice of address type IPv4 or IPv6.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointSlice {
    /// Namespace and name of the slice itself.
    pub name: ObjectName,
    /// The service, from the label `kubernetes.io/service-name` and the slice's namespace.
    pub service: ObjectName,
    /// `addressType`.
    pub family: Family,
    /// `ports`.
    pub ports: Vec<EndpointPort>,
    /// `endpoints`; only `addresses[0]` counts.
    pub endpoints: Vec<Endpoint>,
    /// Annotation `endpoints.kubernetes.io/last-change-trigger-time`, milliseconds since the epoch.
    pub triggered_ms: Option<i64>,
}

/// One of an EndpointSlice's `ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    /// `name`; empty when unset.
    pub name: Arc<str>,
    /// `protocol`.
    pub protocol: Protocol,
    /// `port`.
    pub port: NonZeroU16,
}

/// One of an EndpointSlice's `endpoints`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `addresses[0]`.
    pub addr: IpAddr,
    /// `conditions.ready`; unset = true.
    pub ready: bool,
    /// `conditions.serving`; unset = `ready`.
    pub serving: bool,
    /// `conditions.terminating`; unset = false.
    pub terminating: bool,
    /// `nodeName`.
    pub node: Option<Arc<str>>,
    /// `hints.forZones[].name`.
    pub zone_hints: Vec<Arc<str>>,
    /// `hints.forNodes[].name` (KEP-3015).
    pub node_hints: Vec<Arc<str>>,
}
