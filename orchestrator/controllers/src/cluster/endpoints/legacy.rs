//! The older API of the same facts: one Endpoints object per Service, in subsets of equal ports.

use super::{
    HEADLESS, MAX_ADDRESSES, OVER_CAPACITY, TRIGGER_TIME,
    desired::{Family, families, hostname, is_headless, publishes_unready, target_port, target_ref},
};
use crate::cluster::podview;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use std::collections::{BTreeMap, BTreeSet};

/// Label of Endpoints: who writes them.
const ENDPOINTS_MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const CONTROLLER: &str = "endpoint-controller";

/// What stands for a port in one address; addresses with the same set of ports share a subset.
type Port = (String, i32, String, Option<String>);

fn ports(service: &Service, pod: &Pod) -> BTreeSet<Port> {
    let all = service.spec.as_ref().and_then(|it| it.ports.as_ref());
    all.into_iter()
        .flatten()
        .filter_map(|it| {
            Some((
                it.name.clone().unwrap_or_default(),
                target_port(it, pod)?,
                it.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                it.app_protocol.clone(),
            ))
        })
        .collect()
}

/// The subsets of a Service: sorted, so that equal facts give equal objects. The flag: addresses were left out.
pub(crate) fn subsets<'a>(service: &Service, pods: impl IntoIterator<Item = &'a Pod>) -> (Vec<EndpointSubset>, bool) {
    let family = families(service).first().copied().unwrap_or(Family::V4);
    let unready = publishes_unready(service);
    let portless = service
        .spec
        .as_ref()
        .is_none_or(|it| it.ports.as_ref().is_none_or(Vec::is_empty));
    let mut all: Vec<(BTreeSet<Port>, bool, EndpointAddress)> = Vec::new();
    for pod in pods {
        if podview::is_terminal(pod) || (podview::is_terminating(pod) && !unready) {
            continue;
        }
        let mut addresses = podview::addresses(pod).into_iter();
        let Some(ip) = addresses.find(|it| Family::of(*it) == family) else {
            continue;
        };
        let ports = ports(service, pod);
        if ports.is_empty() && !(portless && is_headless(service)) {
            continue;
        }
        let address = EndpointAddress {
            ip: ip.to_string(),
            node_name: podview::node_name(pod).map(ToOwned::to_owned),
            target_ref: Some(target_ref(pod)),
            hostname: hostname(service, pod),
        };
        all.push((ports, unready || podview::is_ready(pod), address));
    }
    // Ready ones are the last to be left out.
    all.sort_by(|a, b| (!a.1, &a.2.ip, uid(&a.2)).cmp(&(!b.1, &b.2.ip, uid(&b.2))));
    let over = all.len() > MAX_ADDRESSES;
    all.truncate(MAX_ADDRESSES);
    let mut by_ports: BTreeMap<BTreeSet<Port>, [Vec<EndpointAddress>; 2]> = BTreeMap::new();
    for (ports, ready, address) in all {
        by_ports.entry(ports).or_default()[usize::from(!ready)].push(address);
    }
    let some = |it: Vec<EndpointAddress>| (!it.is_empty()).then_some(it);
    let subsets = by_ports.into_iter().map(|(ports, [ready, not_ready])| EndpointSubset {
        addresses: some(ready),
        not_ready_addresses: some(not_ready),
        ports: (!ports.is_empty()).then(|| {
            let port = |(name, port, protocol, app_protocol): Port| EndpointPort {
                name: (!name.is_empty()).then_some(name),
                port,
                protocol: Some(protocol),
                app_protocol,
            };
            ports.into_iter().map(port).collect()
        }),
    });
    (subsets.collect(), over)
}

fn uid(address: &EndpointAddress) -> Option<&String> {
    address.target_ref.as_ref().and_then(|it| it.uid.as_ref())
}

/// The object to write, or `None` where the existing one says it all.
pub(crate) fn plan<'a>(
    service: &Service,
    pods: impl IntoIterator<Item = &'a Pod>,
    existing: Option<&Endpoints>,
    trigger: Option<Timestamp>,
) -> Option<Endpoints> {
    let (subsets, over) = subsets(service, pods);
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(ENDPOINTS_MANAGED_BY.to_owned(), CONTROLLER.to_owned());
    let mut annotations = existing
        .and_then(|it| it.metadata.annotations.clone())
        .unwrap_or_default();
    if over {
        annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
    } else {
        annotations.remove(OVER_CAPACITY);
    }
    if let Some(existing) = existing {
        let same_annotations = existing.metadata.annotations.clone().unwrap_or_default() == annotations;
        let same_labels = existing.metadata.labels.as_ref() == Some(&labels);
        if same_annotations && same_labels && existing.subsets.clone().unwrap_or_default() == subsets {
            return None;
        }
    }
    match trigger {
        Some(at) => annotations.insert(TRIGGER_TIME.to_owned(), at.to_string()),
        None => annotations.remove(TRIGGER_TIME),
    };
    let metadata = match existing {
        Some(existing) => existing.metadata.clone(),
        None => ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            ..ObjectMeta::default()
        },
    };
    Some(Endpoints {
        metadata: ObjectMeta {
            labels: Some(labels),
            annotations: (!annotations.is_empty()).then_some(annotations),
            ..metadata
        },
        subsets: (!subsets.is_empty()).then_some(subsets),
    })
}

/// Whether the controller of Endpoints made this object.
pub(crate) fn is_ours(endpoints: &Endpoints) -> bool {
    let labels = endpoints.metadata.labels.as_ref();
    labels
        .and_then(|it| it.get(ENDPOINTS_MANAGED_BY))
        .is_some_and(|it| it == CONTROLLER)
}
