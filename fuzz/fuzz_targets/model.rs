//! Any JSON as each API object, one per line, `-` before it for its end: conversions neither panic nor let through what
//! they promise to keep out, and a plan that followed the changes is the plan of what there is.
#![no_main]

use k8s_openapi::api::{core::v1, discovery};
use libfuzzer_sys::fuzz_target;
use proxy::{
    model::{Change, Converted, EndpointSlice, Event, Interner, Node, NodeView, Service, ServiceMap},
    plan::compile::{Changed, Planner, compile},
};
use std::collections::BTreeSet;

fuzz_target!(|bytes: &[u8]| {
    let mut strings = Interner::default();
    let (mut map, mut planner) = (ServiceMap::default(), Planner::default());
    let mut node = NodeView::default();
    map.apply(Event::Init);
    map.apply(Event::InitDone);
    for line in bytes.split(|byte| *byte == b'\n') {
        let (gone, json) = line.strip_prefix(b"-").map_or((false, line), |json| (true, json));
        let mut changed = BTreeSet::new();
        for event in events(json, gone, &mut strings) {
            if let Event::Node(Change::Apply(api)) = &event {
                node.zone.clone_from(&api.zone);
                node.addresses.clone_from(&api.internal_ips);
                node.addresses.sort();
                node.node_port_addresses.clone_from(&node.addresses);
            }
            changed.extend(map.apply(event));
        }
        planner.update(&map, &node, Changed::Services(&changed));
    }
    assert_eq!(*planner.plan(), compile(&map, &node));
});

/// What a source would say of this object.
fn events(json: &[u8], gone: bool, strings: &mut Interner) -> Vec<Event> {
    let mut events = Vec::new();
    if let Ok(api) = serde_json::from_slice::<v1::Service>(json)
        && let (Converted::Ours(service), _) = Service::from_api(&api, strings)
    {
        let all = [&service.cluster_ips[..], &service.external_ips, &service.load_balancer_ips].concat();
        assert!(
            all.iter()
                .all(|ip| !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast())
        );
        events.push(Event::Service(match gone {
            true => Change::Delete(service.name),
            false => Change::Apply(service),
        }));
    }
    if let Ok(api) = serde_json::from_slice::<discovery::v1::EndpointSlice>(json)
        && let (Converted::Ours(slice), _) = EndpointSlice::from_api(&api, strings)
    {
        assert!(slice.endpoints.len() <= 1000 && slice.ports.len() <= 100);
        assert!(slice.endpoints.iter().all(|endpoint| !endpoint.addr.is_loopback()));
        events.push(Event::Slice(match gone {
            true => Change::Delete(slice.name),
            false => Change::Apply(slice),
        }));
    }
    if let Ok(api) = serde_json::from_slice::<v1::Node>(json)
        && let (Some(node), _) = Node::from_api(&api, strings)
    {
        events.push(Event::Node(match gone {
            true => Change::Delete(node.name),
            false => Change::Apply(node),
        }));
    }
    events
}
