//! Slices that say what hand-made Endpoints say, for clients that read slices only.

use super::{
    FROM_ENDPOINTS, HEADLESS, MANAGED_BY, MAX_ADDRESSES, SERVICE_NAME, TRIGGER_TIME,
    desired::{ByPorts, Family, PortsKey, is_headless},
};
use k8s_openapi::api::{
    core::v1::{EndpointAddress, Endpoints, Service},
    discovery::v1::{Endpoint, EndpointConditions, EndpointPort},
};
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

/// Label of Endpoints that nobody shall mirror.
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Annotation of Endpoints that were abused for leader election.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";

/// Whether these Endpoints are to be mirrored: made by hand, for a Service without selector.
pub(crate) fn is_mirrored(service: &Service, endpoints: &Endpoints) -> bool {
    let selecting = service.spec.as_ref().is_none_or(|it| {
        it.selector.as_ref().is_some_and(|it| !it.is_empty()) || it.type_.as_deref() == Some("ExternalName")
    });
    let labels = endpoints.metadata.labels.as_ref();
    let skipped = labels.and_then(|it| it.get(SKIP)).is_some_and(|it| it == "true");
    let annotations = endpoints.metadata.annotations.as_ref();
    !selecting && !skipped && !annotations.is_some_and(|it| it.contains_key(LEADER))
}

/// An address that is none, or more addresses than are mirrored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LeftOut {
    #[error("{0:?} in subsets is no IP address; it is not mirrored. Correct it in the Endpoints")]
    NoAddress(String),
    #[error("a subset has {0} addresses, of which {MAX_ADDRESSES} are mirrored; write EndpointSlices instead")]
    TooMany(usize),
}

/// What the slices should say, by family.
pub(crate) fn desired(endpoints: &Endpoints) -> (HashMap<Family, ByPorts>, Vec<LeftOut>) {
    let (mut families, mut left_out) = (HashMap::<Family, ByPorts>::new(), Vec::new());
    for subset in endpoints.subsets.iter().flatten() {
        let ports: Vec<EndpointPort> = subset
            .ports
            .iter()
            .flatten()
            .map(|it| EndpointPort {
                name: Some(it.name.clone().unwrap_or_default()),
                port: Some(it.port),
                protocol: Some(it.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                app_protocol: it.app_protocol.clone(),
            })
            .collect();
        let ready = subset.addresses.iter().flatten().map(|it| (it, true));
        let not_ready = subset.not_ready_addresses.iter().flatten().map(|it| (it, false));
        let total = ready.clone().count() + not_ready.clone().count();
        if total > MAX_ADDRESSES {
            left_out.push(LeftOut::TooMany(total));
        }
        for (address, ready) in ready.chain(not_ready).take(MAX_ADDRESSES) {
            let Ok(ip) = address.ip.parse::<IpAddr>() else {
                left_out.push(LeftOut::NoAddress(address.ip.clone()));
                continue;
            };
            let by_ports = families.entry(Family::of(ip)).or_default();
            let group = by_ports
                .entry(PortsKey::of(&ports))
                .or_insert_with(|| (ports.clone(), Vec::new()));
            group.1.push(endpoint(address, ready));
        }
    }
    (families, left_out)
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            ..EndpointConditions::default()
        }),
        hostname: address.hostname.clone().filter(|it| !it.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

/// Labels of the slices: those of the Endpoints, and ours.
pub(crate) fn labels(service: &Service, endpoints: &Endpoints) -> BTreeMap<String, String> {
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(
        SERVICE_NAME.to_owned(),
        service.metadata.name.clone().unwrap_or_default(),
    );
    labels.insert(MANAGED_BY.to_owned(), FROM_ENDPOINTS.to_owned());
    labels
}

/// Annotations of the slices: those of the Endpoints, but for what belongs to that object alone.
pub(crate) fn annotations(endpoints: &Endpoints) -> BTreeMap<String, String> {
    let mut annotations = endpoints.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| key != TRIGGER_TIME && key != "kubectl.kubernetes.io/last-applied-configuration");
    annotations
}
