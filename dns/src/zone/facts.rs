//! API objects → what names need of them, and what is wrong with them.

use crate::name::{MAX_LABEL, wire_of};
use k8s_openapi::{
    api::{
        core::v1::{Namespace, Pod, Service},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Namespace and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// `metadata.namespace`.
    pub namespace: Box<str>,
    /// `metadata.name`.
    pub name: Box<str>,
}

impl Key {
    /// Of an object.
    pub fn of(metadata: &ObjectMeta) -> Self {
        Self::new(
            metadata.namespace.as_deref().unwrap_or_default(),
            metadata.name.as_deref().unwrap_or_default(),
        )
    }

    /// From text.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// `TCP`, also where the field is empty.
    Tcp,
    /// `UDP`.
    Udp,
    /// `SCTP`.
    Sctp,
}

impl Protocol {
    fn parse(text: Option<&str>) -> Option<Self> {
        match text {
            None | Some("" | "TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some("SCTP") => Some(Self::Sctp),
            Some(_) => None,
        }
    }

    /// Label of names of SRV records, the underscore included.
    pub fn label(self) -> &'static [u8] {
        match self {
            Self::Tcp => b"_tcp",
            Self::Udp => b"_udp",
            Self::Sctp => b"_sctp",
        }
    }
}

/// A port of a Service or of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortFacts {
    /// Lower-cased; empty for the only port.
    pub name: Box<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number.
    pub number: u16,
}

/// How a Service is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// By addresses of its own.
    ClusterIp(Box<[IpAddr]>),
    /// By those of its endpoints.
    Headless,
    /// By another name: wire form.
    External(Box<[u8]>),
    /// Not at all: no address yet, or an external name that is none.
    Nothing,
}

/// What names need of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceFacts {
    /// How it is reached.
    pub reach: Reach,
    /// Its ports.
    pub ports: Box<[PortFacts]>,
    /// Endpoints count without being ready. Source: `Service.spec.publishNotReadyAddresses`.
    pub publish_not_ready: bool,
}

/// An address of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointFacts {
    /// Where.
    pub address: IpAddr,
    /// Lower-cased `hostname`; else the pod's name where that is wanted; else none.
    pub name: Option<Box<str>>,
    /// `conditions.ready`; unknown counts as ready.
    pub ready: bool,
}

/// What names need of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceFacts {
    /// Name of the Service that it belongs to. Source: label `kubernetes.io/service-name`.
    pub service: Box<str>,
    /// Its addresses.
    pub endpoints: Box<[EndpointFacts]>,
    /// Its ports.
    pub ports: Box<[PortFacts]>,
}

/// A part of an object that could not be used: field and reason.
pub type Complaint = String;

/// Of a Service.
pub fn service(service: &Service) -> (ServiceFacts, Vec<Complaint>) {
    let mut complaints = Vec::new();
    let spec = service.spec.clone().unwrap_or_default();
    let ports = spec.ports.iter().flatten().filter_map(|port| {
        let facts = port_facts(port.name.as_deref(), port.protocol.as_deref(), port.port);
        facts.map_err(|why| complaints.push(format!("spec.ports: {why}"))).ok()
    });
    let ports = ports.collect();
    let reach = if spec.type_.as_deref() == Some("ExternalName") {
        external(spec.external_name.as_deref().unwrap_or_default(), &mut complaints)
    } else {
        let mut addresses = spec.cluster_ips.unwrap_or_default();
        if addresses.is_empty() {
            addresses.extend(spec.cluster_ip);
        }
        if addresses.iter().any(|address| address == "None") {
            Reach::Headless
        } else {
            let mut parsed: Vec<IpAddr> = Vec::new();
            for text in addresses.iter().filter(|text| !text.is_empty()) {
                match text.parse() {
                    Ok(address) => parsed.push(address),
                    Err(_) => complaints.push(format!("spec.clusterIPs: {text:?} is no address")),
                }
            }
            parsed.sort_unstable();
            parsed.dedup();
            if parsed.is_empty() {
                Reach::Nothing
            } else {
                Reach::ClusterIp(parsed.into())
            }
        }
    };
    let facts = ServiceFacts {
        reach,
        ports,
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or_default(),
    };
    (facts, complaints)
}

fn external(name: &str, complaints: &mut Vec<Complaint>) -> Reach {
    // An alias to an address is no alias; CoreDNS answers such names as if they were not there.
    if name.parse::<IpAddr>().is_ok() {
        complaints.push(format!(
            "spec.externalName: {name} is an address, which no CNAME record can hold"
        ));
        return Reach::Nothing;
    }
    match wire_of(name) {
        Ok(wire) if wire.len() > 1 => Reach::External(wire.into()),
        Ok(_) => Reach::Nothing,
        Err(why) => {
            complaints.push(format!("spec.externalName: {why}"));
            Reach::Nothing
        }
    }
}

fn port_facts(name: Option<&str>, protocol: Option<&str>, number: i32) -> Result<PortFacts, String> {
    let name = name.unwrap_or_default().to_ascii_lowercase();
    if name.len() >= MAX_LABEL {
        return Err(format!("the name {name:?} is too long for a DNS name"));
    }
    Ok(PortFacts {
        protocol: Protocol::parse(protocol).ok_or_else(|| format!("unknown protocol {protocol:?}"))?,
        number: u16::try_from(number).map_err(|_| format!("{number} is no port"))?,
        name: name.into(),
    })
}

/// Of an EndpointSlice; `None` if it belongs to no Service, or holds no addresses. `pod_names`: endpoints without a host
/// name are named as their pods.
pub fn slice(slice: &EndpointSlice, pod_names: bool) -> (Option<SliceFacts>, Vec<Complaint>) {
    let mut complaints = Vec::new();
    let labels = slice.metadata.labels.as_ref();
    let owner = labels.and_then(|labels| labels.get("kubernetes.io/service-name"));
    let Some(owner) = owner.filter(|owner| !owner.is_empty()) else {
        return (None, complaints);
    };
    let parse: fn(&str) -> Option<IpAddr> = match slice.address_type.as_str() {
        "IPv4" => |text| text.parse::<Ipv4Addr>().ok().map(IpAddr::from),
        "IPv6" => |text| text.parse::<Ipv6Addr>().ok().map(IpAddr::from),
        _ => return (None, complaints),
    };
    let ports = slice.ports.iter().flatten().filter_map(|port| {
        let facts = port_facts(port.name.as_deref(), port.protocol.as_deref(), port.port?);
        facts.map_err(|why| complaints.push(format!("ports: {why}"))).ok()
    });
    let ports = ports.collect();
    let mut endpoints = Vec::new();
    for endpoint in slice.endpoints.iter().flatten() {
        let pod = endpoint
            .target_ref
            .as_ref()
            .filter(|it| pod_names && it.kind.as_deref() == Some("Pod"));
        let name = endpoint.hostname.as_ref().filter(|name| !name.is_empty());
        let name = name.or_else(|| pod.and_then(|pod| pod.name.as_ref()));
        let name = name.map(|name| name.to_ascii_lowercase());
        if let Some(name) = name
            .as_ref()
            .filter(|name| name.len() > MAX_LABEL || name.contains('.'))
        {
            complaints.push(format!("endpoints: the name {name:?} is no label of a DNS name"));
            continue;
        }
        for text in &endpoint.addresses {
            let Some(address) = parse(text) else {
                complaints.push(format!("endpoints: {text:?} is no {} address", slice.address_type));
                continue;
            };
            endpoints.push(EndpointFacts {
                address,
                name: name.as_deref().map(Box::from),
                ready: endpoint.conditions.as_ref().and_then(|it| it.ready).unwrap_or(true),
            });
        }
    }
    let facts = SliceFacts {
        service: owner.as_str().into(),
        endpoints: endpoints.into(),
        ports,
    };
    (Some(facts), complaints)
}

/// Addresses of a Pod that names may stand for: none once it has ended.
pub fn pod(pod: &Pod) -> Box<[IpAddr]> {
    let Some(status) = &pod.status else {
        return Box::default();
    };
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return Box::default();
    }
    let all = status
        .pod_ips
        .iter()
        .flatten()
        .map(|it| it.ip.as_str())
        .chain(status.pod_ip.as_deref());
    let mut addresses: Vec<IpAddr> = all.filter_map(|text| text.parse().ok()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.into()
}

/// The name of a Namespace.
pub fn namespace(namespace: &Namespace) -> Box<str> {
    namespace.metadata.name.as_deref().unwrap_or_default().into()
}
