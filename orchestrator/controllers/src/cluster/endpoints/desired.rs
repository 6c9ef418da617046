//! Which endpoints a Service should have: pure, from the Service, its pods and their nodes.

use super::{FROM_PODS, HEADLESS, MANAGED_BY, SERVICE_NAME};
use crate::cluster::podview;
use k8s_openapi::{
    api::{
        core::v1::{Node, ObjectReference, Pod, Service, ServicePort},
        discovery::v1::{Endpoint, EndpointConditions, EndpointHints, EndpointPort, ForNode, ForZone},
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

/// Endpoints by the ports that they serve: pods of one Service differ where a named target port has another number.
pub(crate) type ByPorts = BTreeMap<PortsKey, (Vec<EndpointPort>, Vec<Endpoint>)>;

/// Identity of a list of ports, whatever its order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PortsKey(Vec<(String, Option<i32>, String, String)>);

impl PortsKey {
    pub(crate) fn of(ports: &[EndpointPort]) -> Self {
        let mut all: Vec<_> = ports
            .iter()
            .map(|it| {
                (
                    it.name.clone().unwrap_or_default(),
                    it.port,
                    it.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                    it.app_protocol.clone().unwrap_or_default(),
                )
            })
            .collect();
        all.sort();
        Self(all)
    }
}

/// An address family, as slices name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Family {
    /// `IPv4`
    V4,
    /// `IPv6`
    V6,
}

impl Family {
    /// `EndpointSlice.addressType`, `Service.spec.ipFamilies`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    pub(crate) fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn parse(name: &str) -> Option<Self> {
        [Self::V4, Self::V6].into_iter().find(|it| it.name() == name)
    }
}

/// Families that a Service wants endpoints of.
pub(crate) fn families(service: &Service) -> Vec<Family> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let named: Vec<Family> = spec
        .ip_families
        .iter()
        .flatten()
        .filter_map(|it| Family::parse(it))
        .collect();
    if !named.is_empty() {
        return named;
    }
    // Servers from before dual-stack name no families: the address tells.
    match spec.cluster_ip.as_deref().and_then(|it| it.parse::<IpAddr>().ok()) {
        Some(address) => vec![Family::of(address)],
        None => vec![Family::V4, Family::V6],
    }
}

/// Whether the Service's endpoints are ours to make: it selects pods, and is not an alias of a DNS name.
pub(crate) fn is_selecting(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| {
        spec.type_.as_deref() != Some("ExternalName") && spec.selector.as_ref().is_some_and(|it| !it.is_empty())
    })
}

/// Whether a pod is behind a Service, by `spec.selector`.
pub(crate) fn selects(service: &Service, pod: &Pod) -> bool {
    is_selecting(service)
        && service
            .spec
            .as_ref()
            .and_then(|it| it.selector.as_ref())
            .is_some_and(|selector| {
                let labels = pod.metadata.labels.as_ref();
                selector
                    .iter()
                    .all(|(key, value)| labels.and_then(|it| it.get(key)) == Some(value))
            })
}

/// Whether the Service has no address of its own.
pub(crate) fn is_headless(service: &Service) -> bool {
    service
        .spec
        .as_ref()
        .and_then(|it| it.cluster_ip.as_deref())
        .is_none_or(|it| it.is_empty() || it == "None")
}

/// `spec.publishNotReadyAddresses`
pub(crate) fn publishes_unready(service: &Service) -> bool {
    service
        .spec
        .as_ref()
        .and_then(|it| it.publish_not_ready_addresses)
        .unwrap_or(false)
}

/// The number behind a Service port in this pod; `None` where the pod has no port of that name.
pub(crate) fn target_port(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let mut ports = podview::serving_containers(pod).flat_map(|it| it.ports.iter().flatten());
            ports
                .find(|it| {
                    it.name.as_deref() == Some(name.as_str()) && it.protocol.as_deref().unwrap_or("TCP") == protocol
                })
                .map(|it| it.container_port)
                .or_else(|| name.parse().ok())
        }
    }
}

fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let all = service.spec.as_ref().and_then(|it| it.ports.as_ref());
    all.into_iter()
        .flatten()
        .filter_map(|it| {
            Some(EndpointPort {
                name: Some(it.name.clone().unwrap_or_default()),
                port: Some(target_port(it, pod)?),
                protocol: Some(it.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                app_protocol: it.app_protocol.clone(),
            })
        })
        .collect()
}

/// Reference to a pod, as endpoints hold it.
pub(crate) fn target_ref(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// `spec.hostname`, where the pod asked to be known by it under this Service.
pub(crate) fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let own = spec.hostname.clone().filter(|it| !it.is_empty())?;
    let here = spec.subdomain.is_some()
        && spec.subdomain == service.metadata.name
        && pod.metadata.namespace == service.metadata.namespace;
    here.then_some(own)
}

/// What a client close to an endpoint is told. Source: `Service.spec.trafficDistribution` (KEP-4444, KEP-3015).
fn hints(distribution: Option<&str>, node: Option<&str>, zone: Option<&str>) -> Option<EndpointHints> {
    let nodes = match distribution? {
        "PreferClose" | "PreferSameZone" => None,
        "PreferSameNode" => node.map(|name| vec![ForNode { name: name.to_owned() }]),
        _ => return None,
    };
    let zones = zone.map(|name| vec![ForZone { name: name.to_owned() }]);
    (zones.is_some() || nodes.is_some()).then_some(EndpointHints {
        for_nodes: nodes,
        for_zones: zones,
    })
}

/// What could not be done for one pod, and shall be tried again when its node appears.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("pod {pod} is on node {node}, which does not exist; it is left out of the slices")]
pub(crate) struct NoNode {
    /// Name of the pod.
    pub(crate) pod: String,
    /// `spec.nodeName`
    pub(crate) node: String,
}

/// The endpoints of one family, and the pods that have to wait for their node.
pub(crate) fn desired<'a>(
    service: &Service,
    family: Family,
    pods: impl IntoIterator<Item = &'a Pod>,
    node: impl Fn(&str) -> Option<NodeFacts>,
) -> (ByPorts, Vec<NoNode>) {
    let (mut by_ports, mut waiting) = (ByPorts::new(), Vec::new());
    let distribution = service.spec.as_ref().and_then(|it| it.traffic_distribution.as_deref());
    let unready = publishes_unready(service);
    for pod in pods {
        if podview::is_terminal(pod) {
            continue;
        }
        let addresses: Vec<String> = podview::addresses(pod)
            .into_iter()
            .filter(|it| Family::of(*it) == family)
            .map(|it| it.to_string())
            .collect();
        if addresses.is_empty() {
            continue;
        }
        let node_name = podview::node_name(pod);
        let facts = node_name.map(&node);
        if let (Some(None), Some(name), false) = (&facts, node_name, unready) {
            waiting.push(NoNode {
                pod: pod.metadata.name.clone().unwrap_or_default(),
                node: name.to_owned(),
            });
            continue;
        }
        let zone = facts.flatten().and_then(|it| it.zone);
        let (serving, terminating) = (podview::is_ready(pod), podview::is_terminating(pod));
        let endpoint = Endpoint {
            addresses,
            conditions: Some(EndpointConditions {
                ready: Some(unready || (serving && !terminating)),
                serving: Some(serving),
                terminating: Some(terminating),
            }),
            hints: hints(distribution, node_name, zone.as_deref()),
            hostname: hostname(service, pod),
            node_name: node_name.map(ToOwned::to_owned),
            target_ref: Some(target_ref(pod)),
            zone,
            deprecated_topology: None,
        };
        let ports = ports(service, pod);
        let entry = by_ports
            .entry(PortsKey::of(&ports))
            .or_insert_with(|| (ports, Vec::new()));
        entry.1.push(endpoint);
    }
    (by_ports, waiting)
}

/// What endpoints say about a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeFacts {
    /// Label `topology.kubernetes.io/zone`.
    pub(crate) zone: Option<String>,
}

impl NodeFacts {
    pub(crate) fn of(node: &Node) -> Self {
        let labels = node.metadata.labels.as_ref();
        let zone = labels.and_then(|it| it.get("topology.kubernetes.io/zone"));
        Self {
            zone: zone.filter(|it| !it.is_empty()).cloned(),
        }
    }
}

/// Labels of a Service's slices: the Service's own, and ours, which it cannot override.
pub(crate) fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    for own in [SERVICE_NAME, MANAGED_BY, HEADLESS] {
        labels.remove(own);
    }
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    let name = service.metadata.name.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), name);
    labels.insert(MANAGED_BY.to_owned(), FROM_PODS.to_owned());
    labels
}

/// Identity of an endpoint among those of a Service: its addresses and the pod.
pub(crate) type EndpointKey = (Vec<String>, Option<String>, Option<String>);

pub(crate) fn endpoint_key(endpoint: &Endpoint) -> EndpointKey {
    let mut addresses = endpoint.addresses.clone();
    addresses.sort();
    let target = endpoint.target_ref.as_ref();
    (
        addresses,
        target.and_then(|it| it.name.clone()),
        target.and_then(|it| it.uid.clone()),
    )
}

/// By identity; of two with the same the last one counts.
pub(crate) fn index(endpoints: Vec<Endpoint>) -> HashMap<EndpointKey, Endpoint> {
    endpoints.into_iter().map(|it| (endpoint_key(&it), it)).collect()
}
