//! EndpointSlice → [`EndpointSlice`], and the endpoints of one service merged from its slices.

use super::{
    Converted, Family, Interner, ObjectName, Protocol,
    convert::{HEADLESS, PROXY_NAME, Reports, check_name, quote},
    service::{port_number, protocol},
};
use crate::error::Skipped;
use k8s_openapi::api::discovery::v1;
use std::{collections::HashSet, net::IpAddr, num::NonZeroU16, sync::Arc};

/// Label that joins a slice to its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Annotation with the time of the change that the slice reflects, RFC 3339.
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// Most endpoints in a slice. Source: `discovery/v1` validation.
const MAX_ENDPOINTS: usize = 1000;
/// Most ports in a slice. Source: `discovery/v1` validation.
const MAX_PORTS: usize = 100;

/// A `discovery/v1` EndpointSlice of address type IPv4 or IPv6.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EndpointPort {
    /// `name`; empty when unset.
    pub name: Arc<str>,
    /// `protocol`.
    pub protocol: Protocol,
    /// `port`.
    pub port: NonZeroU16,
}

/// One of an EndpointSlice's `endpoints`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// `addresses[0]`.
    pub addr: IpAddr,
    /// `conditions.ready`; unset = true.
    pub ready: bool,
    /// `conditions.serving`; unset = true.
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

impl EndpointSlice {
    /// What of an EndpointSlice a proxy acts on. Slices of type FQDN, without a service, or labelled away from this
    /// proxy are [`Converted::NotOurs`]. A fault in one endpoint or port loses that one only and is reported.
    pub fn from_api(api: &v1::EndpointSlice, strings: &mut Interner) -> (Converted<Self>, Vec<Skipped>) {
        let mut reports = Reports::new("EndpointSlice");
        let converted = match reports.object_name(&api.metadata, strings) {
            Some(name) => convert(api, name, strings, &mut reports),
            None => Converted::Nameless,
        };
        (converted, reports.finish())
    }
}

fn convert(
    api: &v1::EndpointSlice,
    name: ObjectName,
    strings: &mut Interner,
    reports: &mut Reports,
) -> Converted<EndpointSlice> {
    let label = |label: &str| api.metadata.labels.as_ref().and_then(|labels| labels.get(label));
    if label(PROXY_NAME).is_some() {
        let why = "the label service.kubernetes.io/service-proxy-name gives it to another proxy";
        return Converted::NotOurs { name, why };
    }
    if label(HEADLESS).is_some() {
        return Converted::NotOurs {
            name,
            why: "the label service.kubernetes.io/headless keeps proxies away from it",
        };
    }
    let Some(service) = label(SERVICE_NAME).filter(|service| !service.is_empty()) else {
        return Converted::NotOurs {
            name,
            why: "it has no label kubernetes.io/service-name",
        };
    };
    if let Err(reason) = check_name(service) {
        reports.add(
            format_args!("metadata.labels[{SERVICE_NAME}]"),
            format_args!("{} {reason}", quote(service)),
        );
        return Converted::NotOurs {
            name,
            why: "its label kubernetes.io/service-name names no service",
        };
    }
    let family = match api.address_type.as_str() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        "FQDN" => {
            return Converted::NotOurs {
                name,
                why: "its addressType FQDN is not for proxies",
            };
        }
        other => {
            reports.add(
                "addressType",
                format_args!("{} is not IPv4, IPv6 or FQDN", quote(other)),
            );
            return Converted::NotOurs {
                name,
                why: "its addressType is unknown",
            };
        }
    };
    Converted::Ours(EndpointSlice {
        service: ObjectName {
            namespace: Arc::clone(&name.namespace),
            name: strings.intern(service),
        },
        name,
        family,
        ports: ports(api.ports.as_deref().unwrap_or_default(), strings, reports),
        endpoints: endpoints(api.endpoints.as_deref().unwrap_or_default(), family, strings, reports),
        triggered_ms: triggered_ms(api, reports),
    })
}

fn ports(listed: &[v1::EndpointPort], strings: &mut Interner, reports: &mut Reports) -> Vec<EndpointPort> {
    if listed.len() > MAX_PORTS {
        reports.add(
            "ports",
            format_args!("{} ports; only the first {MAX_PORTS} count", listed.len()),
        );
    }
    let mut found = Vec::with_capacity(listed.len().min(MAX_PORTS));
    let mut names = HashSet::new();
    for (i, api) in listed.iter().take(MAX_PORTS).enumerate() {
        let Some(port) = api.port else {
            reports.add(format_args!("ports[{i}].port"), "unset, which names no port to send to");
            continue;
        };
        let Some(port) = port_number(format_args!("ports[{i}].port"), port, reports) else {
            continue;
        };
        let Some(protocol) = protocol(format_args!("ports[{i}].protocol"), api.protocol.as_deref(), reports) else {
            continue;
        };
        let name = api.name.as_deref().unwrap_or_default();
        if !names.insert(name) {
            let reason = format!("{} names an earlier port; this one is ignored", quote(name));
            reports.add(format_args!("ports[{i}].name"), reason);
            continue;
        }
        found.push(EndpointPort {
            name: strings.intern(name),
            protocol,
            port,
        });
    }
    found
}

fn endpoints(listed: &[v1::Endpoint], family: Family, strings: &mut Interner, reports: &mut Reports) -> Vec<Endpoint> {
    if listed.len() > MAX_ENDPOINTS {
        reports.add(
            "endpoints",
            format_args!("{} endpoints; only the first {MAX_ENDPOINTS} count", listed.len()),
        );
    }
    let mut found = Vec::with_capacity(listed.len().min(MAX_ENDPOINTS));
    for (i, api) in listed.iter().take(MAX_ENDPOINTS).enumerate() {
        let field = format_args!("endpoints[{i}].addresses[0]");
        let Some(text) = api.addresses.first() else {
            reports.add(field, "missing, so there is nowhere to send to");
            continue;
        };
        let Some(addr) = reports.address(field, text) else {
            continue;
        };
        if Family::of(&addr) != family {
            reports.add(field, format_args!("{addr} is not of the slice's addressType"));
            continue;
        }
        let conditions = api.conditions.as_ref();
        let hints = api.hints.as_ref();
        let zones = hints.and_then(|hints| hints.for_zones.as_deref()).unwrap_or_default();
        let nodes = hints.and_then(|hints| hints.for_nodes.as_deref()).unwrap_or_default();
        found.push(Endpoint {
            addr,
            ready: conditions.and_then(|conditions| conditions.ready).unwrap_or(true),
            serving: conditions.and_then(|conditions| conditions.serving).unwrap_or(true),
            terminating: conditions
                .and_then(|conditions| conditions.terminating)
                .unwrap_or(false),
            node: api.node_name.as_deref().map(|node| strings.intern(node)),
            zone_hints: zones.iter().map(|zone| strings.intern(&zone.name)).collect(),
            node_hints: nodes.iter().map(|node| strings.intern(&node.name)).collect(),
        });
    }
    found
}

fn triggered_ms(api: &v1::EndpointSlice, reports: &mut Reports) -> Option<i64> {
    let text = api.metadata.annotations.as_ref()?.get(TRIGGER_TIME)?;
    match text.parse::<jiff::Timestamp>() {
        Ok(time) => Some(time.as_millisecond()),
        Err(_) => {
            let reason = format!("{} is not an RFC 3339 time; latency is not measured", quote(text));
            reports.add(format_args!("metadata.annotations[{TRIGGER_TIME}]"), reason);
            None
        }
    }
}

#[cfg(test)]
#[path = "endpoints_tests.rs"]
mod tests;
