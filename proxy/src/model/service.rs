//! Service → [`Service`]: what of `v1.Service` a proxy acts on.

use super::{ObjectName, Protocol};
use ipnet::IpNet;
use std::{net::IpAddr, num::NonZeroU16, sync::Arc};

/// `internalTrafficPolicy` or `externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// Any usable endpoint.
    #[default]
    Cluster,
    /// Endpoints of this node only.
    Local,
}

/// A Service with at least one virtual IP or node port.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Namespace and name.
    pub name: ObjectName,
    /// `metadata.creationTimestamp`, seconds since the epoch; the older of two claimants of one frontend wins.
    /// `None` (manifests) counts as oldest.
    pub created_s: Option<i64>,
    /// `spec.clusterIPs`, at most one per family.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip` where `ipMode` is unset or `VIP` (KEP-1860).
    pub load_balancer_ips: Vec<IpAddr>,
    /// `spec.ports`.
    pub ports: Vec<ServicePort>,
    /// `spec.internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
    /// `spec.externalTrafficPolicy`.
    pub external_policy: TrafficPolicy,
    /// `spec.loadBalancerSourceRanges`, trimmed; empty = no restriction. A family without ranges while the other has
    /// some is denied (see `plan::compile`).
    pub source_ranges: Vec<IpNet>,
    /// `spec.sessionAffinity: ClientIP` with its timeout, seconds.
    pub affinity_s: Option<u32>,
    /// `spec.healthCheckNodePort`, only for type LoadBalancer with `externalTrafficPolicy: Local`.
    pub health_check_node_port: Option<NonZeroU16>,
}

/// One of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// `name`; empty when the service has a single unnamed port. Endpoints are joined by this name, never by
    /// `targetPort`.
    pub name: Arc<str>,
    /// `protocol`.
    pub protocol: Protocol,
    /// `port`.
    pub port: NonZeroU16,
    /// `nodePort`, where allocated.
    pub node_port: Option<NonZeroU16>,
}
