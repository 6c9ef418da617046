//! How fast pods get nodes: `cargo run --release -p fairlead-scheduler --example burst -- [PODS] [NODES]`.
//!
//! First decisions alone, then a whole burst: a real API server in this process, PODS created at one time.

#[path = "../tests/support/mod.rs"]
mod support;

use fairlead_scheduler::{
    decide::{Chooser, decide},
    node::NodeFacts,
    pod::PodInfo,
    world::World,
};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::runtime::watcher;
use serde_json::json;
use std::{
    collections::BTreeMap,
    sync::Mutex,
    time::{Duration, Instant},
};

#[tokio::main]
async fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|it| it.parse().ok());
    let (pods, nodes) = (numbers.next().unwrap_or(1000), numbers.next().unwrap_or(3));
    for (nodes, decisions) in [(10, 500), (100, 500), (1000, 200), (5000, 100)] {
        alone(nodes, decisions);
    }
    burst(pods, nodes).await;
}

/// Decisions of one pod after the other, each spread by host, without any IO.
fn alone(nodes: usize, count: u32) {
    let mut world = World::default();
    for n in 0..nodes {
        let node: Node = serde_json::from_value(json!({
            "metadata": { "name": format!("n{n}"), "labels": { "kubernetes.io/hostname": format!("n{n}") } },
            "status": { "allocatable": { "cpu": "64", "memory": "256Gi", "pods": "110" } },
        }))
        .unwrap();
        world.set_node(&format!("n{n}"), NodeFacts::read(&node));
    }
    let mut chooser = Chooser::new(1);
    let began = Instant::now();
    for n in 0..count {
        let spread = json!([{ "maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": { "matchLabels": { "app": "p" } } }]);
        let mut spec = support::asks(json!({ "cpu": "100m", "memory": "64Mi" }));
        spec["topologySpreadConstraints"] = spread;
        let object = support::pod(&format!("p{n}"), json!({ "app": "p" }), spec);
        let pod = PodInfo::read(&serde_json::from_value(object).unwrap());
        let node = decide(&pod, &world, &mut chooser).unwrap();
        world.assume(&pod, &node);
    }
    let each = began.elapsed() / count;
    println!("{nodes} nodes: {} µs per decision", each.as_micros());
}

async fn burst(pods: usize, nodes: usize) {
    let cluster = support::Cluster::start().await;
    for n in 0..nodes {
        let room = json!({ "status": { "allocatable": { "cpu": "640", "memory": "2560Gi", "pods": "100000" } } });
        cluster.node(&format!("n{n}"), room).await;
    }
    // One that tells that the scheduler has heard of a node.
    cluster.place("first", json!({})).await;
    let made = Mutex::new(BTreeMap::new());
    let began = Instant::now();
    let create = futures::stream::iter(0..pods).for_each_concurrent(64, |n| {
        let (cluster, made) = (&cluster, &made);
        async move {
            let spec = support::asks(json!({ "cpu": "100m", "memory": "64Mi" }));
            let object: Pod = serde_json::from_value(support::pod(&format!("p{n}"), json!({}), spec)).unwrap();
            cluster.pods().create(&Default::default(), &object).await.unwrap();
            made.lock().unwrap().insert(format!("p{n}"), Instant::now());
        }
    });
    let bound = async {
        let mut bound = BTreeMap::new();
        let mut events = watcher(cluster.pods(), Default::default()).boxed();
        while bound.len() < pods {
            if let watcher::Event::Apply(it) | watcher::Event::InitApply(it) = events.try_next().await.unwrap().unwrap()
                && it.spec.is_some_and(|it| it.node_name.is_some())
                && let Some(name) = it.metadata.name.filter(|it| it != "first")
            {
                bound.entry(name).or_insert_with(Instant::now);
            }
        }
        bound
    };
    let ((), bound) = tokio::join!(create, bound);
    let took = began.elapsed();
    let made = made.lock().unwrap();
    let mut waits: Vec<Duration> = bound
        .iter()
        .map(|(name, at)| at.saturating_duration_since(made[name]))
        .collect();
    waits.sort();
    println!(
        "{pods} pods on {nodes} nodes bound in {took:?}: {:.0}/s; created to bound p50 {:?}, p99 {:?}",
        pods as f64 / took.as_secs_f64(),
        waits[pods / 2],
        waits[pods * 99 / 100],
    );
}
