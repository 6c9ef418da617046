//! Nodes that fall silent and come back, by a clock that the test moves.

use crate::world::{World, patch, patch_status, seen};
use fairlead_controllers::Config;
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{Node, Pod},
    },
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::Api;
use serde_json::{Value, json};
use std::{collections::BTreeMap, path::Path, time::Duration};

async fn node(world: &World, name: &str) {
    world
        .create(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": name },
            "status": { "conditions": [{ "type": "Ready", "status": "True", "reason": "KubeletReady" }] },
        }))
        .await;
    world
        .create(json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": { "name": name, "namespace": "kube-node-lease" },
            "spec": { "holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": MicroTime(world.clock().now()) },
        }))
        .await;
}

async fn renew(world: &World, name: &str) {
    let leases: Api<Lease> = world.within("kube-node-lease");
    let now = MicroTime(world.clock().now());
    patch(&leases, name, json!({ "spec": { "renewTime": now } })).await;
}

fn ready(node: &Node) -> &str {
    let all = node.status.as_ref().and_then(|it| it.conditions.as_ref()).unwrap();
    &all.iter().find(|it| it.type_ == "Ready").unwrap().status
}

fn taints(node: &Node) -> Vec<String> {
    let all = node.spec.as_ref().and_then(|it| it.taints.as_ref());
    let mut all: Vec<_> = all
        .into_iter()
        .flatten()
        .map(|it| format!("{}:{}", it.key, it.effect))
        .collect();
    all.sort();
    all
}

const UNREACHABLE: [&str; 2] = [
    "node.kubernetes.io/unreachable:NoExecute",
    "node.kubernetes.io/unreachable:NoSchedule",
];

async fn pod(world: &World, name: &str, tolerations: Value) {
    world
        .create(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "default" },
            "spec": {
                "nodeName": "n1", "tolerations": tolerations, "terminationGracePeriodSeconds": 0,
                "containers": [{ "name": "c", "image": "i" }],
            },
            "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }] },
        }))
        .await;
}

/// Times are this many times the usual ones: the clock also runs by itself, and seconds that a busy machine needs for the
/// test must not matter.
const SCALE: u64 = 100;

/// With the usual patience, scaled.
fn watched(config: &mut Config, _: &Path) {
    let usual = fairlead_controllers::cluster::Config::default();
    assert_eq!(usual.node_grace, Duration::from_secs(40));
    let scale = u32::try_from(SCALE).unwrap();
    config.cluster.node_grace = usual.node_grace * scale;
    config.cluster.node_startup_grace = usual.node_startup_grace * scale;
}

async fn step(world: &World, seconds: u64) {
    world.clock().advance(Duration::from_secs(seconds * SCALE));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forty_seconds_and_three_hundred() {
    let mut world = World::with(watched).await;
    world.namespace("unused").await;
    let accounts = world.within::<k8s_openapi::api::core::v1::ServiceAccount>("default");
    seen(accounts, "the account", |all| all.contains_key("default")).await;
    world.pause().await;
    for name in ["n1", "n2", "n3"] {
        node(&world, name).await;
    }
    // So they have read all leases before they look at the first node.
    world.resume();
    let nodes: Api<Node> = world.all();
    // Admission taints a node that it has not heard of; we know that it is ready.
    seen(nodes.clone(), "no taints", |all| {
        all.len() == 3 && all.values().all(|it| taints(it).is_empty())
    })
    .await;
    let tolerated = |key: &str| json!({ "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 * SCALE });
    let usual = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"].map(tolerated);
    pod(&world, "usual", json!(usual)).await;
    let forever = json!([{ "key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute" }]);
    pod(&world, "patient", forever).await;
    let pods: Api<Pod> = world.within("default");
    step(&world, 39).await;
    for name in ["n2", "n3"] {
        renew(&world, name).await;
    }
    let all = seen(nodes.clone(), "all are ready", |_| true).await;
    assert!(all.values().all(|it| ready(it) == "True"), "39 s of silence are none");
    step(&world, 2).await;
    let all = seen(nodes.clone(), "n1 is unreachable", |all| {
        taints(&all["n1"]) == UNREACHABLE
    })
    .await;
    assert_eq!(
        (ready(&all["n1"]), ready(&all["n2"]), ready(&all["n3"])),
        ("Unknown", "True", "True")
    );
    let not_ready = |it: &Pod| {
        let all = it.status.as_ref().and_then(|it| it.conditions.as_ref());
        all.into_iter()
            .flatten()
            .any(|it| it.type_ == "Ready" && it.status == "False")
    };
    seen(pods.clone(), "its pods are not ready", |all| {
        all.len() == 2 && all.values().all(not_ready)
    })
    .await;
    // 300 s after the taint, also for controllers that were restarted meanwhile.
    world.restart().await;
    for _ in 0..9 {
        step(&world, 30).await;
        for name in ["n2", "n3"] {
            renew(&world, name).await;
        }
    }
    let all = seen(pods.clone(), "pods", |_| true).await;
    assert_eq!(all.len(), 2, "270 s");
    step(&world, 31).await;
    let all = seen(pods.clone(), "the usual pod is gone", |all| !all.contains_key("usual")).await;
    assert!(all.contains_key("patient"));
    // It comes back.
    renew(&world, "n1").await;
    patch_status(
        &nodes,
        "n1",
        json!({ "status": { "conditions": [{ "type": "Ready", "status": "True" }] } }),
    )
    .await;
    seen(nodes, "n1 is well again", |all| taints(&all["n1"]).is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taint_by_hand_and_a_node_that_is_cut_off() {
    let world = World::with(watched).await;
    let accounts = world.within::<k8s_openapi::api::core::v1::ServiceAccount>("default");
    seen(accounts, "the account", |all| all.contains_key("default")).await;
    node(&world, "n1").await;
    let nodes: Api<Node> = world.all();
    seen(nodes.clone(), "no taints", |all| {
        all.get("n1").is_some_and(|it| taints(it).is_empty())
    })
    .await;
    pod(
        &world,
        "soon",
        json!([{ "key": "maintenance", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 20 * SCALE }]),
    )
    .await;
    pod(&world, "now", json!([])).await;
    pod(&world, "stays", json!([{ "operator": "Exists" }])).await;
    let pods: Api<Pod> = world.within("default");
    let taint = json!({ "spec": { "taints": [{ "key": "maintenance", "effect": "NoExecute", "timeAdded": world.clock().now() }] } });
    patch(&nodes, "n1", taint).await;
    let all = seen(pods.clone(), "one left at once", |all| !all.contains_key("now")).await;
    assert_eq!(all.len(), 2);
    step(&world, 25).await;
    seen(pods.clone(), "one left later", |all| !all.contains_key("soon")).await;
    patch(&nodes, "n1", json!({ "spec": { "taints": null } })).await;
    // The only node there is: more likely we are cut off than it is, so nobody has to leave.
    step(&world, 41).await;
    let all = seen(nodes, "not heard of", |all| {
        taints(&all["n1"]) == ["node.kubernetes.io/unreachable:NoSchedule"]
    })
    .await;
    assert_eq!(ready(&all["n1"]), "Unknown");
    step(&world, 1000).await;
    let all = seen(pods, "pods", |_| true).await;
    assert!(all.contains_key("stays"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_has_subnets_of_its_own() {
    let mut world = World::with(|config, _| {
        config.cluster.cluster_cidrs = vec!["10.244.0.0/20".parse().unwrap(), "fd00:10::/56".parse().unwrap()];
    })
    .await;
    let nodes: Api<Node> = world.all();
    let subnets = |all: &BTreeMap<String, Node>| -> Vec<Vec<String>> {
        let of = |it: &Node| it.spec.as_ref().and_then(|it| it.pod_cidrs.clone()).unwrap_or_default();
        all.values().map(of).collect()
    };
    // One that somebody else gave before.
    world
        .create(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": "before" },
            "spec": { "podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:10:0:1::/64"] },
        }))
        .await;
    seen(nodes.clone(), "the first node", |all| all.len() == 1).await;
    world.restart().await;
    for number in 0..15 {
        world
            .create(json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": format!("n{number}") } }))
            .await;
        if number == 7 {
            world.restart().await;
        }
    }
    let all = seen(nodes.clone(), "all have subnets", |all| {
        all.len() == 16 && subnets(all).iter().all(|it| it.len() == 2)
    })
    .await;
    let mut flat = subnets(&all).concat();
    flat.sort();
    flat.dedup();
    assert_eq!(flat.len(), 32, "each has its own");
    // The range is full: the next one gets what the first leaves.
    world
        .create(json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "late" } }))
        .await;
    let events = world.within::<k8s_openapi::api::core::v1::Event>("default");
    seen(events, "it is said", |all| {
        all.values().any(|it| it.reason.as_deref() == Some("CIDRNotAvailable"))
    })
    .await;
    nodes
        .delete("before", &kube::api::DeleteParams::default())
        .await
        .unwrap();
    let all = seen(nodes, "the late one too", |all| {
        subnets(all).iter().all(|it| it.len() == 2)
    })
    .await;
    assert_eq!(
        all["late"].spec.as_ref().unwrap().pod_cidr.as_deref(),
        Some("10.244.1.0/24")
    );
}
