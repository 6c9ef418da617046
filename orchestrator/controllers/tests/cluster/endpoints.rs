//! Slices and Endpoints after any history of pods say exactly what the pods say.

use crate::world::{World, patch_status, seen};
use k8s_openapi::api::{
    core::v1::{Endpoints, Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{Api, api::DeleteParams};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

const SPACE: &str = "default";

async fn node(world: &World) {
    world
        .create(json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": "n1", "labels": { "topology.kubernetes.io/zone": "z1" } },
            "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
        }))
        .await;
}

async fn service(world: &World) {
    world
        .create(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": SPACE },
            "spec": {
                "selector": { "app": "web" }, "ipFamilyPolicy": "PreferDualStack", "trafficDistribution": "PreferClose",
                "ports": [{ "name": "http", "port": 80, "targetPort": "http" }],
            },
        }))
        .await;
}

fn ips(number: u32) -> [String; 2] {
    [
        format!("10.1.{}.{}", number / 250, number % 250 + 1),
        format!("fd00:1::{:x}", number + 1),
    ]
}

fn status(number: u32, ready: bool) -> serde_json::Value {
    let [four, six] = ips(number);
    json!({
        "phase": "Running", "podIP": four, "podIPs": [{ "ip": four }, { "ip": six }],
        "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "False" } }],
    })
}

async fn pod(world: &World, number: u32, port: u16, ready: bool) {
    world
        .create(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": format!("p{number}"), "namespace": SPACE, "labels": { "app": "web" } },
            "spec": {
                "nodeName": "n1", "terminationGracePeriodSeconds": 0,
                "containers": [{ "name": "c", "image": "i", "ports": [{ "name": "http", "containerPort": port }] }],
            },
            "status": status(number, ready),
        }))
        .await;
}

/// Address, port, ready.
type Facts = BTreeSet<(String, i32, bool)>;

fn of_slices(all: &BTreeMap<String, EndpointSlice>, service: &str) -> Facts {
    let label = |it: &EndpointSlice| {
        it.metadata
            .labels
            .as_ref()
            .and_then(|it| it.get("kubernetes.io/service-name"))
            .cloned()
    };
    let mut facts = Facts::new();
    for slice in all.values().filter(|it| label(it).as_deref() == Some(service)) {
        for endpoint in slice.endpoints.iter().flatten() {
            for port in slice.ports.iter().flatten() {
                let ready = endpoint.conditions.as_ref().and_then(|it| it.ready).unwrap();
                let fact = (endpoint.addresses[0].clone(), port.port.unwrap(), ready);
                assert!(facts.insert(fact.clone()), "{fact:?} twice");
            }
        }
    }
    facts
}

fn of_endpoints(endpoints: Option<&Endpoints>) -> Facts {
    let mut facts = Facts::new();
    for subset in endpoints.into_iter().flat_map(|it| it.subsets.iter().flatten()) {
        for port in subset.ports.iter().flatten() {
            for (addresses, ready) in [(&subset.addresses, true), (&subset.not_ready_addresses, false)] {
                for address in addresses.iter().flatten() {
                    facts.insert((address.ip.clone(), port.port, ready));
                }
            }
        }
    }
    facts
}

async fn agree(world: &World, model: &BTreeMap<u32, (u16, bool)>) {
    let facts = |family: usize| {
        model
            .iter()
            .map(move |(number, (port, ready))| (ips(*number)[family].clone(), i32::from(*port), *ready))
    };
    let both: Facts = facts(0).chain(facts(1)).collect();
    seen(world.within::<EndpointSlice>(SPACE), "slices as the model", |all| {
        // Between two writes an endpoint may be in two slices, never in none: only the end is judged here.
        let count: usize = all
            .values()
            .filter(|it| it.metadata.name.as_deref() != Some("kubernetes"))
            .map(|it| it.endpoints.as_ref().map_or(0, Vec::len))
            .sum();
        count == both.len() && of_slices(all, "web") == both
    })
    .await;
    let four: Facts = facts(0).collect();
    seen(world.within::<Endpoints>(SPACE), "Endpoints as the model", |all| {
        of_endpoints(all.get("web")) == four
    })
    .await;
}

/// Pseudo-random, the same each time.
fn next(seed: &mut u64) -> u32 {
    *seed = seed
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    u32::try_from(*seed >> 40).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn churn_equals_the_model() {
    let mut world = World::with(|config, _| config.cluster.endpoints_per_slice = 4).await;
    node(&world).await;
    service(&world).await;
    world.namespace("unused").await;
    let pods: Api<Pod> = world.within(SPACE);
    seen(
        world.within::<k8s_openapi::api::core::v1::ServiceAccount>(SPACE),
        "the account",
        |all| all.contains_key("default"),
    )
    .await;
    let (mut model, mut seed) = (BTreeMap::new(), 7);
    for round in 0..6 {
        for _ in 0..25 {
            let number = next(&mut seed) % 30;
            let (port, ready) = (
                if next(&mut seed).is_multiple_of(4) { 81 } else { 80 },
                next(&mut seed).is_multiple_of(2),
            );
            match model.get(&number).copied() {
                None => {
                    pod(&world, number, port, ready).await;
                    model.insert(number, (port, ready));
                }
                Some(_) if next(&mut seed).is_multiple_of(3) => {
                    pods.delete(&format!("p{number}"), &DeleteParams::default().grace_period(0))
                        .await
                        .unwrap();
                    model.remove(&number);
                }
                Some((port, _)) => {
                    patch_status(&pods, &format!("p{number}"), json!({ "status": status(number, ready) })).await;
                    model.insert(number, (port, ready));
                }
            }
        }
        if round % 2 == 1 {
            world.restart().await;
        }
        agree(&world, &model).await;
    }
    let slices = seen(world.within::<EndpointSlice>(SPACE), "slices", |_| true).await;
    for slice in slices.values().filter(|it| it.metadata.generate_name.is_some()) {
        assert!(slice.endpoints.as_ref().unwrap().len() <= 4);
        let owner = &slice.metadata.owner_references.as_ref().unwrap()[0];
        assert_eq!((owner.kind.as_str(), owner.controller), ("Service", Some(true)));
        for endpoint in slice.endpoints.iter().flatten() {
            assert_eq!(
                (endpoint.zone.as_deref(), endpoint.node_name.as_deref()),
                (Some("z1"), Some("n1"))
            );
            assert_eq!(
                endpoint.hints.as_ref().unwrap().for_zones.as_ref().unwrap()[0].name,
                "z1"
            );
        }
    }
    world
        .within::<Service>(SPACE)
        .delete("web", &DeleteParams::default())
        .await
        .unwrap();
    seen(world.within::<EndpointSlice>(SPACE), "no slices", |all| {
        all.keys().all(|it| !it.starts_with("web"))
    })
    .await;
    seen(world.within::<Endpoints>(SPACE), "no Endpoints", |all| {
        !all.contains_key("web")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_endpoints_fill_slices() {
    let mut world = World::start().await;
    node(&world).await;
    world.namespace("unused").await;
    seen(
        world.within::<k8s_openapi::api::core::v1::ServiceAccount>(SPACE),
        "the account",
        |all| all.contains_key("default"),
    )
    .await;
    let mut model = BTreeMap::new();
    for number in 0..300 {
        pod(&world, number, 80, true).await;
        model.insert(number, (80, true));
    }
    service(&world).await;
    agree(&world, &model).await;
    let full = |all: &BTreeMap<String, EndpointSlice>, family: &str| -> Vec<usize> {
        let mine = all
            .values()
            .filter(|it| it.address_type == family && it.metadata.generate_name.is_some());
        mine.map(|it| it.endpoints.as_ref().map_or(0, Vec::len)).collect()
    };
    let slices = seen(world.within::<EndpointSlice>(SPACE), "slices", |_| true).await;
    for family in ["IPv4", "IPv6"] {
        assert_eq!(full(&slices, family), [100, 100, 100]);
    }
    let versions = |all: &BTreeMap<String, EndpointSlice>| -> BTreeMap<String, Option<String>> {
        all.iter()
            .map(|(name, it)| (name.clone(), it.metadata.resource_version.clone()))
            .collect()
    };
    // One pod less: one slice of each family is written.
    world
        .within::<Pod>(SPACE)
        .delete("p17", &DeleteParams::default().grace_period(0))
        .await
        .unwrap();
    model.remove(&17);
    agree(&world, &model).await;
    let after = seen(world.within::<EndpointSlice>(SPACE), "slices", |_| true).await;
    let (old, new) = (versions(&slices), versions(&after));
    assert_eq!(
        old.iter()
            .filter(|(name, version)| new.get(*name) != Some(version))
            .count(),
        2
    );
    world.restart().await;
    pod(&world, 300, 80, false).await;
    model.insert(300, (80, false));
    agree(&world, &model).await;
    let last = seen(world.within::<EndpointSlice>(SPACE), "slices", |_| true).await;
    assert_eq!(last.len(), after.len(), "it went where there was room");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hand_made_endpoints_have_slices() {
    let world = World::start().await;
    let endpoints = |addresses: &[&str]| {
        let addresses: Vec<_> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
        json!({
            "apiVersion": "v1", "kind": "Endpoints", "metadata": { "name": "db", "namespace": SPACE },
            "subsets": [{ "addresses": addresses, "ports": [{ "port": 5432 }] }],
        })
    };
    world
        .create(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": "db", "namespace": SPACE },
            "spec": { "ports": [{ "port": 5432 }] },
        }))
        .await;
    world.create(endpoints(&["203.0.113.5", "2001:db8::5"])).await;
    let wanted: Facts = [
        ("203.0.113.5".to_owned(), 5432, true),
        ("2001:db8::5".to_owned(), 5432, true),
    ]
    .into();
    let slices = seen(world.within::<EndpointSlice>(SPACE), "mirrors", |all| {
        of_slices(all, "db") == wanted
    })
    .await;
    let mirror = slices
        .values()
        .find(|it| it.metadata.generate_name.as_deref() == Some("db-"))
        .unwrap();
    assert_eq!(
        mirror.metadata.labels.as_ref().unwrap()["endpointslice.kubernetes.io/managed-by"],
        "endpointslicemirroring-controller.k8s.io"
    );
    let api: Api<Endpoints> = world.within(SPACE);
    let label = json!({ "metadata": { "labels": { "endpointslice.kubernetes.io/skip-mirror": "true" } } });
    crate::world::patch(&api, "db", label).await;
    seen(world.within::<EndpointSlice>(SPACE), "no mirrors", |all| {
        of_slices(all, "db").is_empty()
    })
    .await;
}
