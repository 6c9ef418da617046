//! Many pods at one time.

use crate::support::{Cluster, asks, pod, within};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::{api::ListParams, runtime::watcher};
use serde_json::json;
use std::collections::BTreeMap;

/// Waits until this many pods have nodes, and counts them by node.
async fn all_bound(cluster: &Cluster, count: usize) -> BTreeMap<String, usize> {
    let mut bound = BTreeMap::<String, String>::new();
    let events = watcher(cluster.pods(), Default::default());
    let mut events = std::pin::pin!(events);
    while bound.len() < count {
        let (watcher::Event::Apply(it) | watcher::Event::InitApply(it)) = events.try_next().await.unwrap().unwrap()
        else {
            continue;
        };
        let probe = it.metadata.name.as_deref().is_some_and(|it| it.starts_with("probe"));
        if !probe && let Some(node) = it.spec.and_then(|it| it.node_name) {
            let old = bound.insert(it.metadata.name.clone().unwrap(), node.clone());
            assert!(old.is_none_or(|old| old == node), "bound twice");
        }
    }
    let mut by_node = BTreeMap::new();
    for node in bound.into_values() {
        *by_node.entry(node).or_default() += 1;
    }
    by_node
}

async fn create(cluster: &Cluster, count: usize) {
    let made = futures::stream::iter(0..count).for_each_concurrent(64, |n| async move {
        let object = pod(
            &format!("p{n:04}"),
            json!({ "app": "p" }),
            asks(json!({ "cpu": "100m", "memory": "64Mi" })),
        );
        let object: Pod = serde_json::from_value(object).unwrap();
        cluster.pods().create(&Default::default(), &object).await.unwrap();
    });
    made.await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_pods_share_three_nodes() {
    let cluster = Cluster::start().await;
    for name in ["a", "b", "c"] {
        cluster.node(name, json!({})).await;
    }
    cluster.heard_of("c").await;
    create(&cluster, 60).await;
    let by_node = within(all_bound(&cluster, 60)).await;
    assert!(
        by_node.len() == 3 && by_node.values().all(|it| (19..=21).contains(it)),
        "{by_node:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_pods_are_bound_once_and_within_limits() {
    let cluster = Cluster::start().await;
    let large = json!({ "status": { "allocatable": { "cpu": "40", "memory": "80Gi", "pods": "350" } } });
    for name in ["a", "b", "c"] {
        cluster.node(name, large.clone()).await;
    }
    create(&cluster, 1000).await;
    let by_node = within(all_bound(&cluster, 1000)).await;
    assert!(by_node.values().all(|it| *it <= 350), "{by_node:?}");
    let left = cluster
        .pods()
        .list(&ListParams::default().fields("spec.nodeName="))
        .await
        .unwrap();
    assert!(left.items.is_empty());
}
