//! Service → [`Service`]: what of `v1.Service` a proxy acts on.

use super::{
    Converted, Family, Interner, ObjectName, Protocol,
    address::{Read, parse_cidr},
    convert::{HEADLESS, PROXY_NAME, Reports, quote},
};
use crate::error::Skipped;
use ipnet::{IpNet, Ipv4Net};
use k8s_openapi::api::core::v1;
use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU16,
    sync::Arc,
};

/// `sessionAffinityConfig.clientIP.timeoutSeconds` where it is unset, seconds: three hours, as the API defaults it.
const DEFAULT_AFFINITY_S: u32 = 10_800;
/// Its largest legal value, seconds: a day.
const MAX_AFFINITY_S: u32 = 86_400;

/// `internalTrafficPolicy` or `externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TrafficPolicy {
    /// Any usable endpoint.
    #[default]
    Cluster,
    /// Endpoints of this node only.
    Local,
}

/// A Service with at least one virtual IP or node port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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

impl Service {
    /// What of a Service a proxy acts on. Headless and ExternalName services, those labelled for another proxy, and
    /// those without any address or node port are [`Converted::NotOurs`]. A fault in one field loses that part only
    /// and is reported.
    pub fn from_api(api: &v1::Service, strings: &mut Interner) -> (Converted<Self>, Vec<Skipped>) {
        let mut reports = Reports::new("Service");
        let converted = match reports.object_name(&api.metadata, strings) {
            Some(name) => convert(api, name, strings, &mut reports),
            None => Converted::Nameless,
        };
        (converted, reports.finish())
    }
}

fn convert(api: &v1::Service, name: ObjectName, strings: &mut Interner, reports: &mut Reports) -> Converted<Service> {
    let empty = v1::ServiceSpec::default();
    let spec = api.spec.as_ref().unwrap_or(&empty);
    if let Some(why) = not_ours(api, spec) {
        return Converted::NotOurs { name, why };
    }
    let type_ = spec.type_.as_deref().unwrap_or("ClusterIP");
    if !matches!(type_, "ClusterIP" | "NodePort" | "LoadBalancer") {
        reports.add(
            "spec.type",
            format_args!("{} is unknown, read as ClusterIP", quote(type_)),
        );
    }
    let external_policy = policy(
        "spec.externalTrafficPolicy",
        spec.external_traffic_policy.as_deref(),
        reports,
    );
    let mut service = Service {
        name,
        created_s: api.metadata.creation_timestamp.as_ref().map(|time| time.0.as_second()),
        cluster_ips: cluster_ips(spec, reports),
        external_ips: addresses(
            "spec.externalIPs",
            spec.external_ips.as_deref().unwrap_or_default(),
            reports,
        ),
        load_balancer_ips: load_balancer_ips(api, reports),
        ports: ports(spec, type_, strings, reports),
        internal_policy: policy(
            "spec.internalTrafficPolicy",
            spec.internal_traffic_policy.as_deref(),
            reports,
        ),
        external_policy,
        source_ranges: source_ranges(spec, reports),
        affinity_s: affinity(spec, reports),
        health_check_node_port: None,
    };
    if type_ == "LoadBalancer" && external_policy == TrafficPolicy::Local {
        let port = spec.health_check_node_port.filter(|port| *port != 0);
        service.health_check_node_port = port.and_then(|port| port_number("spec.healthCheckNodePort", port, reports));
    }
    let addressed = !(service.cluster_ips.is_empty()
        && service.external_ips.is_empty()
        && service.load_balancer_ips.is_empty()
        && service.ports.iter().all(|port| port.node_port.is_none()));
    if addressed {
        Converted::Ours(service)
    } else {
        Converted::NotOurs {
            name: service.name,
            why: "it has no address and no node port",
        }
    }
}

fn not_ours(api: &v1::Service, spec: &v1::ServiceSpec) -> Option<&'static str> {
    let labelled = |label| {
        api.metadata
            .labels
            .as_ref()
            .is_some_and(|labels| labels.contains_key(label))
    };
    let first = spec.cluster_ips.as_ref().and_then(|ips| ips.first());
    if labelled(PROXY_NAME) {
        Some("the label service.kubernetes.io/service-proxy-name gives it to another proxy")
    } else if labelled(HEADLESS) {
        Some("the label service.kubernetes.io/headless keeps proxies away from it")
    } else if spec.type_.as_deref() == Some("ExternalName") {
        Some("type ExternalName is the business of DNS")
    } else if spec.cluster_ip.as_deref() == Some("None") || first.is_some_and(|ip| ip == "None") {
        Some("it is headless (clusterIP: None)")
    } else {
        None
    }
}

/// `clusterIPs`, or `clusterIP` where an old object or a hand-written manifest has only that.
fn cluster_ips(spec: &v1::ServiceSpec, reports: &mut Reports) -> Vec<IpAddr> {
    let listed = spec.cluster_ips.as_deref().unwrap_or_default();
    let mut found: Vec<IpAddr> = Vec::new();
    let mut take = |field: &str, text: &str, reports: &mut Reports| {
        if text.is_empty() {
            return;
        }
        if let Some(addr) = reports.address(field, text) {
            if found.iter().any(|known| Family::of(known) == Family::of(&addr)) {
                reports.add(
                    field,
                    format_args!("{addr} is a second address of its family; only the first counts"),
                );
            } else {
                found.push(addr);
            }
        }
    };
    if listed.is_empty() {
        take(
            "spec.clusterIP",
            spec.cluster_ip.as_deref().unwrap_or_default(),
            reports,
        );
    }
    for (i, text) in listed.iter().enumerate() {
        take(&format!("spec.clusterIPs[{i}]"), text, reports);
    }
    found
}

fn addresses(field: &str, texts: &[String], reports: &mut Reports) -> Vec<IpAddr> {
    let mut found = Vec::with_capacity(texts.len());
    let mut seen = HashSet::new();
    for (i, text) in texts.iter().enumerate() {
        if let Some(addr) = reports.address(format_args!("{field}[{i}]"), text)
            && seen.insert(addr)
        {
            found.push(addr);
        }
    }
    found
}

/// Whatever the type: a controller may publish load balancer addresses for other types too (upstream gate
/// `AllowServiceLBStatusOnNonLB`), and the API server clears the status where it must not be.
fn load_balancer_ips(api: &v1::Service, reports: &mut Reports) -> Vec<IpAddr> {
    let status = api.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_deref()).unwrap_or_default();
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    for (i, entry) in ingress.iter().enumerate() {
        match entry.ip_mode.as_deref() {
            None | Some("" | "VIP") => {}
            Some("Proxy") => continue,
            Some(other) => {
                let field = format!("status.loadBalancer.ingress[{i}].ipMode");
                reports.add(
                    field,
                    format_args!("{} is unknown; the address is left alone, as for Proxy", quote(other)),
                );
                continue;
            }
        }
        let text = entry.ip.as_deref().unwrap_or_default();
        if !text.is_empty()
            && let Some(addr) = reports.address(format_args!("status.loadBalancer.ingress[{i}].ip"), text)
            && seen.insert(addr)
        {
            found.push(addr);
        }
    }
    found
}

fn ports(spec: &v1::ServiceSpec, type_: &str, strings: &mut Interner, reports: &mut Reports) -> Vec<ServicePort> {
    let listed = spec.ports.as_deref().unwrap_or_default();
    let mut found: Vec<ServicePort> = Vec::with_capacity(listed.len());
    let mut names = HashSet::new();
    let mut numbers = HashSet::new();
    let mut node_ports = HashSet::new();
    for (i, api) in listed.iter().enumerate() {
        let Some(port) = port_number(format_args!("spec.ports[{i}].port"), api.port, reports) else {
            continue;
        };
        let Some(protocol) = protocol(
            format_args!("spec.ports[{i}].protocol"),
            api.protocol.as_deref(),
            reports,
        ) else {
            continue;
        };
        let name = api.name.as_deref().unwrap_or_default();
        if names.contains(name) {
            let reason = format!("{} names an earlier port; this one is ignored", quote(name));
            reports.add(format_args!("spec.ports[{i}].name"), reason);
            continue;
        }
        if !numbers.insert((port, protocol)) {
            let reason = format!("{port}/{protocol} is an earlier port; this one is ignored");
            reports.add(format_args!("spec.ports[{i}].port"), reason);
            continue;
        }
        names.insert(name);
        let field = format_args!("spec.ports[{i}].nodePort");
        let mut node_port = None;
        if let Some(number) = api.node_port.filter(|number| *number != 0) {
            if !matches!(type_, "NodePort" | "LoadBalancer") {
                reports.add(
                    field,
                    format_args!("{number} is ignored: a service of type {type_} has no node ports"),
                );
            } else if let Some(number) = port_number(field, number, reports) {
                if node_ports.insert((number, protocol)) {
                    node_port = Some(number);
                } else {
                    reports.add(
                        field,
                        format_args!("{number}/{protocol} is the node port of an earlier port"),
                    );
                }
            }
        }
        found.push(ServicePort {
            name: strings.intern(name),
            protocol,
            port,
            node_port,
        });
    }
    found
}

/// A port number, or a report.
pub(super) fn port_number(field: impl std::fmt::Display, number: i32, reports: &mut Reports) -> Option<NonZeroU16> {
    let port = u16::try_from(number).ok().and_then(NonZeroU16::new);
    if port.is_none() {
        reports.add(field, format_args!("{number} is not a port number (1 to 65535)"));
    }
    port
}

/// A protocol, unset = TCP, or a report.
pub(super) fn protocol(field: impl std::fmt::Display, text: Option<&str>, reports: &mut Reports) -> Option<Protocol> {
    let text = text.filter(|text| !text.is_empty()).unwrap_or("TCP");
    let protocol = Protocol::from_api(text);
    if protocol.is_none() {
        reports.add(field, format_args!("{} is not TCP, UDP or SCTP", quote(text)));
    }
    protocol
}

fn policy(field: &str, text: Option<&str>, reports: &mut Reports) -> TrafficPolicy {
    match text {
        None | Some("" | "Cluster") => TrafficPolicy::Cluster,
        Some("Local") => TrafficPolicy::Local,
        Some(other) => {
            reports.add(field, format_args!("{} is unknown, read as Cluster", quote(other)));
            TrafficPolicy::Cluster
        }
    }
}

/// `loadBalancerSourceRanges`. Where every entry is unreadable, the result lets nobody in: an empty list would mean
/// that everybody may come, which is the opposite of what the owner asked for.
fn source_ranges(spec: &v1::ServiceSpec, reports: &mut Reports) -> Vec<IpNet> {
    let listed = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
    let mut found: Vec<IpNet> = Vec::with_capacity(listed.len());
    for (i, text) in listed.iter().enumerate() {
        match parse_cidr(text) {
            Err(reason) => {
                reports.add(
                    format_args!("spec.loadBalancerSourceRanges[{i}]"),
                    format_args!("{} {reason}", quote(text)),
                );
            }
            Ok(Read { value, odd }) => {
                if let Some(odd) = odd {
                    let reason = format!("{} {odd}", quote(text));
                    reports.add(format_args!("spec.loadBalancerSourceRanges[{i}]"), reason);
                }
                found.push(value);
            }
        }
    }
    found.sort_unstable();
    found.dedup();
    if found.is_empty() && !listed.is_empty() {
        reports.add(
            "spec.loadBalancerSourceRanges",
            "no entry is usable, so the load balancer admits nobody",
        );
        // No packet can come from the broadcast address.
        found.push(Ipv4Net::from(Ipv4Addr::BROADCAST).into());
    }
    found
}

fn affinity(spec: &v1::ServiceSpec, reports: &mut Reports) -> Option<u32> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return None,
        Some("ClientIP") => {}
        Some(other) => {
            reports.add(
                "spec.sessionAffinity",
                format_args!("{} is unknown, read as None", quote(other)),
            );
            return None;
        }
    }
    let config = spec
        .session_affinity_config
        .as_ref()
        .and_then(|config| config.client_ip.as_ref());
    let Some(seconds) = config.and_then(|config| config.timeout_seconds) else {
        return Some(DEFAULT_AFFINITY_S);
    };
    match u32::try_from(seconds) {
        Ok(seconds @ 1..=MAX_AFFINITY_S) => Some(seconds),
        _ => {
            let reason = format!("{seconds} is outside 1 to {MAX_AFFINITY_S} seconds, read as {DEFAULT_AFFINITY_S}");
            reports.add("spec.sessionAffinityConfig.clientIP.timeoutSeconds", reason);
            Some(DEFAULT_AFFINITY_S)
        }
    }
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
