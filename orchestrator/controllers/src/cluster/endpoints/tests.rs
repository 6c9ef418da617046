//! Decisions about endpoints: tables, and packing against a naive model.

use super::{
    MAX_PER_SLICE,
    desired::{Family, NodeFacts, desired, families, labels},
    legacy, mirror,
    pack::{Meta, Plan, pack},
    trigger::Seen,
};
use k8s_openapi::{
    api::{
        core::v1::{Endpoints, Pod, Service},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use proptest::prelude::*;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

#[allow(clippy::needless_pass_by_value, reason = "cases are written where they are used")]
fn service(spec: serde_json::Value) -> Service {
    let mut spec = spec;
    spec["selector"] = json!({ "app": "web" });
    serde_json::from_value(json!({
        "metadata": { "name": "web", "namespace": "shop", "uid": "u-web", "labels": { "team": "a" } }, "spec": spec,
    }))
    .unwrap()
}

fn plain() -> Service {
    service(json!({
        "clusterIP": "10.96.0.5", "ipFamilies": ["IPv4"],
        "ports": [{ "name": "http", "port": 80, "targetPort": "web" }],
    }))
}

fn pod(number: u32, ready: bool, port: u16) -> Pod {
    let ip = format!("10.1.{}.{}", number / 250, number % 250 + 1);
    serde_json::from_value(json!({
        "metadata": { "name": format!("p{number}"), "namespace": "shop", "uid": format!("u{number}"), "labels": { "app": "web" } },
        "spec": {
            "nodeName": "n1",
            "containers": [{ "name": "c", "ports": [{ "name": "web", "containerPort": port }] }],
        },
        "status": {
            "phase": "Running", "podIP": ip,
            "podIPs": [{ "ip": ip }, { "ip": format!("fd00::{number:x}") }],
            "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "False" } }],
        },
    }))
    .unwrap()
}

#[allow(clippy::unnecessary_wraps, reason = "the shape that the planner asks for")]
fn zoned(_: &str) -> Option<NodeFacts> {
    Some(NodeFacts {
        zone: Some("z1".to_owned()),
    })
}

fn meta(service: &Service, max: usize) -> Meta {
    Meta {
        namespace: "shop".to_owned(),
        base_name: "web".to_owned(),
        owner: OwnerReference {
            uid: "u-web".to_owned(),
            ..OwnerReference::default()
        },
        labels: labels(service),
        annotations: BTreeMap::new(),
        max,
    }
}

/// The state of one pod, and what its endpoint says.
#[test]
fn conditions_of_endpoints() {
    // (ready, terminating, phase, publishNotReady) -> (ready, serving, terminating), or no endpoint.
    let table = [
        ((true, false, "Running", false), Some((true, true, false))),
        ((false, false, "Running", false), Some((false, false, false))),
        ((false, false, "Pending", true), Some((true, false, false))),
        ((true, true, "Running", false), Some((false, true, true))),
        ((false, true, "Running", false), Some((false, false, true))),
        ((true, true, "Running", true), Some((true, true, true))),
        ((true, false, "Succeeded", true), None),
        ((false, false, "Failed", false), None),
    ];
    for ((ready, terminating, phase, publish), wanted) in table {
        let mut service = plain();
        service.spec.as_mut().unwrap().publish_not_ready_addresses = Some(publish);
        let mut pod = pod(1, ready, 80);
        pod.status.as_mut().unwrap().phase = Some(phase.to_owned());
        if terminating {
            pod.metadata.deletion_timestamp = Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap());
        }
        let (by_ports, waiting) = desired(&service, Family::V4, [&pod], zoned);
        assert!(waiting.is_empty());
        let found = by_ports.values().flat_map(|it| &it.1).next().map(|it| {
            let it = it.conditions.as_ref().unwrap();
            (it.ready.unwrap(), it.serving.unwrap(), it.terminating.unwrap())
        });
        assert_eq!(
            found, wanted,
            "ready {ready}, terminating {terminating}, {phase}, publish {publish}"
        );
    }
}

#[test]
fn facts_of_an_endpoint() {
    let mut service = plain();
    let spec = service.spec.as_mut().unwrap();
    spec.traffic_distribution = Some("PreferSameNode".to_owned());
    let mut pod = pod(1, true, 8080);
    let spec = pod.spec.as_mut().unwrap();
    (spec.hostname, spec.subdomain) = (Some("h".to_owned()), Some("web".to_owned()));
    let (by_ports, _) = desired(&service, Family::V6, [&pod], zoned);
    let (ports, endpoints) = by_ports.values().next().unwrap();
    assert_eq!(
        json!({ "ports": ports, "endpoints": endpoints }),
        json!({
            "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
            "endpoints": [{
                "addresses": ["fd00::1"], "conditions": { "ready": true, "serving": true, "terminating": false },
                "hints": { "forNodes": [{ "name": "n1" }], "forZones": [{ "name": "z1" }] },
                "hostname": "h", "nodeName": "n1", "zone": "z1",
                "targetRef": { "kind": "Pod", "namespace": "shop", "name": "p1", "uid": "u1" },
            }],
        })
    );
}

#[test]
fn hints_follow_the_distribution() {
    let table = [
        (None, None),
        (Some("PreferClose"), Some(json!({ "forZones": [{ "name": "z1" }] }))),
        (Some("PreferSameZone"), Some(json!({ "forZones": [{ "name": "z1" }] }))),
        (Some("Elsewhere"), None),
    ];
    for (distribution, wanted) in table {
        let mut service = plain();
        service.spec.as_mut().unwrap().traffic_distribution = distribution.map(ToOwned::to_owned);
        let (by_ports, _) = desired(&service, Family::V4, [&pod(1, true, 80)], zoned);
        let hints = by_ports.values().next().unwrap().1[0].hints.clone();
        assert_eq!(hints.map(|it| json!(it)), wanted, "{distribution:?}");
    }
}

#[test]
fn a_pod_of_a_missing_node_waits() {
    let (by_ports, waiting) = desired(&plain(), Family::V4, [&pod(1, true, 80)], |_| None);
    assert!(by_ports.is_empty());
    assert_eq!((&*waiting[0].pod, &*waiting[0].node), ("p1", "n1"));
    let mut service = plain();
    service.spec.as_mut().unwrap().publish_not_ready_addresses = Some(true);
    let (by_ports, waiting) = desired(&service, Family::V4, [&pod(1, true, 80)], |_| None);
    assert_eq!((by_ports.len(), waiting.len()), (1, 0));
}

#[test]
fn pods_with_other_ports_have_slices_of_their_own() {
    let (pods, service) = ([pod(1, true, 80), pod(2, true, 81), pod(3, true, 80)], plain());
    let (by_ports, _) = desired(&service, Family::V4, &pods, zoned);
    let plan = pack(&meta(&service, MAX_PER_SLICE), Family::V4, by_ports, &[], true);
    let mut found: Vec<_> = plan
        .create
        .iter()
        .map(|it| {
            (
                it.ports.as_ref().unwrap()[0].port.unwrap(),
                it.endpoints.as_ref().unwrap().len(),
            )
        })
        .collect();
    found.sort_unstable();
    assert_eq!(found, [(80, 2), (81, 1)]);
}

#[test]
fn families_of_a_service() {
    let of = |spec| families(&service(spec));
    assert_eq!(of(json!({ "ipFamilies": ["IPv6", "IPv4"] })), [Family::V6, Family::V4]);
    assert_eq!(of(json!({ "clusterIP": "fd00::1" })), [Family::V6]);
    assert_eq!(of(json!({ "clusterIP": "None" })), [Family::V4, Family::V6]);
}

/// What a server would have after the writes.
fn apply(slices: Vec<EndpointSlice>, plan: Plan, counter: &mut u32) -> Vec<EndpointSlice> {
    let mut by_name: BTreeMap<String, EndpointSlice> = slices
        .into_iter()
        .map(|it| (it.metadata.name.clone().unwrap(), it))
        .collect();
    for slice in plan.delete {
        by_name.remove(&slice.metadata.name.unwrap()).unwrap();
    }
    for slice in plan.update {
        let old = by_name
            .insert(slice.metadata.name.clone().unwrap(), slice.clone())
            .unwrap();
        assert_ne!(old, slice, "an update that changes nothing");
    }
    for mut slice in plan.create {
        *counter += 1;
        slice.metadata.name = Some(format!("web-{counter}"));
        by_name.insert(slice.metadata.name.clone().unwrap(), slice);
    }
    by_name.into_values().collect()
}

proptest! {
    /// After any sequence of pod sets, slices hold exactly the endpoints of the newest one, none is over its limit, and a
    /// second look changes nothing.
    #[test]
    fn packing_equals_the_naive_model(
        rounds in prop::collection::vec(prop::collection::btree_map(0u32..60, (any::<bool>(), 80u16..82), 0..60), 1..8),
    ) {
        let service = plain();
        let meta = meta(&service, 7);
        let (mut slices, mut counter) = (Vec::new(), 0);
        for round in rounds {
            let pods: Vec<Pod> = round.iter().map(|(number, (ready, port))| pod(*number, *ready, *port)).collect();
            let (wanted, _) = desired(&service, Family::V4, &pods, zoned);
            let plan = pack(&meta, Family::V4, wanted.clone(), &slices, true);
            slices = apply(slices, plan, &mut counter);
            let mut found = BTreeSet::new();
            for slice in &slices {
                let endpoints = slice.endpoints.as_ref().unwrap();
                prop_assert!(endpoints.len() <= 7);
                for endpoint in endpoints {
                    let port = slice.ports.as_ref().unwrap()[0].port.unwrap();
                    let ready = endpoint.conditions.as_ref().unwrap().ready.unwrap();
                    prop_assert!(found.insert((endpoint.target_ref.clone().unwrap().name.unwrap(), ready, port)));
                }
            }
            let naive: BTreeSet<_> =
                round.iter().map(|(number, (ready, port))| (format!("p{number}"), *ready, i32::from(*port))).collect();
            prop_assert_eq!(found, naive);
            prop_assert!(!slices.is_empty());
            let again = pack(&meta, Family::V4, wanted, &slices, true);
            prop_assert!(again.is_empty(), "{:?}", again);
        }
    }
}

#[test]
fn one_more_endpoint_changes_one_slice() {
    let service = plain();
    let meta = meta(&service, 10);
    let mut counter = 0;
    let plan = |pods: &[Pod], slices: &[EndpointSlice]| {
        let (wanted, _) = desired(&service, Family::V4, pods, zoned);
        pack(&meta, Family::V4, wanted, slices, true)
    };
    let mut pods: Vec<Pod> = (0..35).map(|it| pod(it, true, 80)).collect();
    let slices = apply(Vec::new(), plan(&pods, &[]), &mut counter);
    assert_eq!(slices.len(), 4);
    pods.push(pod(35, true, 80));
    let more = plan(&pods, &slices);
    assert_eq!((more.create.len(), more.update.len(), more.delete.len()), (0, 1, 0));
    pods[3] = pod(3, false, 80);
    pods.pop();
    let less = plan(&pods, &slices);
    assert_eq!((less.create.len(), less.update.len(), less.delete.len()), (0, 1, 0));
    let none = plan(&[], &slices);
    // One of them becomes the placeholder.
    assert_eq!((none.create.len(), none.update.len(), none.delete.len()), (0, 1, 3));
}

#[test]
fn slices_are_dressed_again() {
    let mut service = plain();
    let mut counter = 0;
    let pods = [pod(1, true, 80)];
    let wanted = || desired(&service, Family::V4, &pods, zoned).0;
    let slices = apply(
        Vec::new(),
        pack(&meta(&service, 9), Family::V4, wanted(), &[], true),
        &mut counter,
    );
    let wanted = wanted();
    service.metadata.labels = Some(BTreeMap::from([("team".to_owned(), "b".to_owned())]));
    let plan = pack(&meta(&service, 9), Family::V4, wanted, &slices, true);
    assert_eq!(plan.update[0].metadata.labels.as_ref().unwrap()["team"], "b");
}

#[test]
fn the_older_api_says_the_same() {
    let pods = [pod(2, false, 80), pod(1, true, 80), pod(3, true, 81)];
    let written = legacy::plan(&plain(), &pods, None, None).unwrap();
    let short: Vec<_> = written
        .subsets
        .as_deref()
        .unwrap()
        .iter()
        .map(|it| {
            let names = |all: &Option<Vec<k8s_openapi::api::core::v1::EndpointAddress>>| -> Vec<String> {
                all.iter().flatten().map(|it| it.ip.clone()).collect()
            };
            (
                it.ports.as_ref().unwrap()[0].port,
                names(&it.addresses),
                names(&it.not_ready_addresses),
            )
        })
        .collect();
    let ip = |last: u32| vec![format!("10.1.0.{last}")];
    assert_eq!(short, [(80, ip(2), ip(3)), (81, ip(4), vec![])]);
    assert!(legacy::plan(&plain(), &pods, Some(&written), None).is_none());
}

#[test]
fn too_many_addresses_are_cut_and_marked() {
    let mut pods: Vec<Pod> = (0..1010).map(|it| pod(it, it >= 20, 80)).collect();
    let written = legacy::plan(&plain(), &pods, None, None).unwrap();
    let subset = &written.subsets.as_ref().unwrap()[0];
    let count = |it: &Option<Vec<_>>| it.as_ref().map_or(0, Vec::len);
    assert_eq!(
        (count(&subset.addresses), count(&subset.not_ready_addresses)),
        (990, 10)
    );
    assert_eq!(
        written.metadata.annotations.as_ref().unwrap()[super::OVER_CAPACITY],
        "truncated"
    );
    pods.truncate(5);
    let written = legacy::plan(&plain(), &pods, Some(&written), None).unwrap();
    assert_eq!(written.metadata.annotations, None);
}

#[test]
fn hand_made_endpoints_are_mirrored() {
    let service: Service = serde_json::from_value(json!({
        "metadata": { "name": "db", "namespace": "shop" }, "spec": { "clusterIP": "10.96.0.9", "ports": [{ "port": 5432 }] },
    }))
    .unwrap();
    let mut endpoints: Endpoints = serde_json::from_value(json!({
        "metadata": { "name": "db", "labels": { "a": "b" } },
        "subsets": [{
            "addresses": [{ "ip": "203.0.113.5" }, { "ip": "fd00::5" }, { "ip": "nonsense" }],
            "notReadyAddresses": [{ "ip": "203.0.113.6", "hostname": "six" }],
            "ports": [{ "port": 5432 }],
        }],
    }))
    .unwrap();
    assert!(mirror::is_mirrored(&service, &endpoints));
    assert!(!mirror::is_mirrored(&plain(), &endpoints));
    let (families, left_out) = mirror::desired(&endpoints);
    assert_eq!(left_out, [mirror::LeftOut::NoAddress("nonsense".to_owned())]);
    let four: Vec<_> = families[&Family::V4].values().flat_map(|it| &it.1).collect();
    let ready: Vec<_> = four
        .iter()
        .map(|it| it.conditions.as_ref().unwrap().ready.unwrap())
        .collect();
    assert_eq!((ready, families[&Family::V6].len()), (vec![true, false], 1));
    let labels = mirror::labels(&service, &endpoints);
    assert_eq!(
        (
            &*labels["a"],
            &*labels[super::SERVICE_NAME],
            &*labels[super::MANAGED_BY]
        ),
        ("b", "db", super::FROM_ENDPOINTS)
    );
    endpoints.metadata.labels = Some(BTreeMap::from([(
        "endpointslice.kubernetes.io/skip-mirror".to_owned(),
        "true".to_owned(),
    )]));
    assert!(!mirror::is_mirrored(&service, &endpoints));
}

#[test]
fn the_earliest_change_is_the_trigger() {
    let (mut seen, service) = (Seen::default(), plain());
    let at = |pod: &mut Pod, text: &str| {
        let condition = &mut pod.status.as_mut().unwrap().conditions.as_mut().unwrap()[0];
        condition.last_transition_time = Some(serde_json::from_value(json!(text)).unwrap());
    };
    let mut pods = [pod(1, true, 80), pod(2, true, 80)];
    at(&mut pods[0], "2026-01-01T00:00:05Z");
    at(&mut pods[1], "2026-01-01T00:00:03Z");
    let text = |it: Option<jiff::Timestamp>| it.map(|it| it.to_string());
    assert_eq!(
        text(seen.look(&service, &pods)).as_deref(),
        Some("2026-01-01T00:00:03Z")
    );
    assert_eq!(seen.look(&service, &pods), None);
    at(&mut pods[1], "2026-01-01T00:00:09Z");
    assert_eq!(
        text(seen.look(&service, &pods)).as_deref(),
        Some("2026-01-01T00:00:09Z")
    );
    assert_eq!(seen.look(&service, &pods[..1]), None);
}
