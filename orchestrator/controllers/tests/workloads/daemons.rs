//! DaemonSets.

use crate::cluster::{Cluster, is_ready, template};
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, DaemonSet},
    core::v1::{Node, Pod},
};
use kube::{Api, ResourceExt as _, api::DeleteParams};
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn daemon_set(strategy: Value) -> Value {
    let labels = json!({"app": "agent"});
    let spec = json!({
        "selector": {"matchLabels": labels},
        "template": template(&labels, "image:1"),
        "updateStrategy": strategy,
    });
    json!({"metadata": {"name": "agent"}, "spec": spec})
}

fn nodes(pods: &BTreeMap<String, Pod>) -> Vec<String> {
    let ready = pods.values().filter(|it| is_ready(it));
    let mut nodes: Vec<_> = ready.filter_map(|it| it.spec.as_ref()?.node_name.clone()).collect();
    nodes.sort();
    nodes
}

fn image(image: &str) -> Value {
    json!({"spec": {"template": {"spec": {"containers": [{"name": "main", "image": image}]}}}})
}

fn all_have(pods: &BTreeMap<String, Pod>, image: &str) -> bool {
    pods.values()
        .all(|it| it.spec.as_ref().unwrap().containers[0].image.as_deref() == Some(image))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_that_fits_has_one_as_nodes_come_and_go() {
    let cluster = Cluster::start(&["a", "b"]).await;
    let taint = |effect: &str| json!({"spec": {"taints": [{"key": "k", "effect": effect}]}});
    cluster.add_node("tainted", &taint("NoSchedule")).await;
    cluster.create::<DaemonSet>(daemon_set(json!({}))).await;
    cluster
        .until::<Pod>("two", |pods| pods.len() == 2 && nodes(pods) == ["a", "b"])
        .await;
    cluster.add_node("c", &json!({})).await;
    cluster
        .until::<Pod>("a third", |pods| pods.len() == 3 && nodes(pods) == ["a", "b", "c"])
        .await;
    let set = cluster
        .until_one::<DaemonSet>("agent", "counted", |it| {
            it.status
                .as_ref()
                .is_some_and(|it| it.number_available == Some(3) && it.desired_number_scheduled == 3)
        })
        .await;
    assert_eq!(set.status.unwrap().updated_number_scheduled, Some(3));
    // A taint that drives away, and one that keeps what is there.
    let patch = |name: &'static str, patch: Value| {
        let nodes = Api::<Node>::all(cluster.client());
        async move {
            nodes
                .patch(name, &Default::default(), &kube::api::Patch::Strategic(patch))
                .await
                .unwrap()
        }
    };
    patch("a", taint("NoExecute")).await;
    patch("b", taint("NoSchedule")).await;
    patch("tainted", json!({"spec": {"taints": null}})).await;
    cluster
        .until::<Pod>("moved", |pods| pods.len() == 3 && nodes(pods) == ["b", "c", "tainted"])
        .await;
    Api::<Node>::all(cluster.client())
        .delete("c", &DeleteParams::default())
        .await
        .unwrap();
    cluster
        .until_one::<DaemonSet>("agent", "one less", |it| {
            it.status
                .as_ref()
                .is_some_and(|it| it.desired_number_scheduled == 1 && it.number_misscheduled == 1)
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_goes_node_by_node_and_keeps_its_history() {
    let cluster = Cluster::start(&["a", "b", "c"]).await;
    cluster
        .create::<DaemonSet>(daemon_set(
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}}),
        ))
        .await;
    cluster
        .until::<Pod>("three", |pods| nodes(pods) == ["a", "b", "c"])
        .await;
    let watched = cluster.follow::<Pod, _>("updated", |pods| {
        assert!(nodes(pods).len() >= 2, "more than one away: {:?}", nodes(pods));
        (nodes(pods).len() == 3 && pods.len() == 3 && all_have(pods, "image:2")).then_some(())
    });
    tokio::join!(cluster.patch::<DaemonSet>("agent", image("image:2")), watched);
    let revisions = cluster.list::<ControllerRevision>().await;
    let mut numbers: Vec<_> = revisions.iter().map(|it| it.revision).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2]);
    // Undo: the old revision becomes the newest.
    cluster.patch::<DaemonSet>("agent", image("image:1")).await;
    cluster
        .until::<Pod>("undone", |pods| nodes(pods).len() == 3 && all_have(pods, "image:1"))
        .await;
    cluster
        .until::<ControllerRevision>("raised", |all| {
            let mut numbers: Vec<_> = all.values().map(|it| it.revision).collect();
            numbers.sort_unstable();
            numbers == [2, 3]
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn surge_makes_the_new_before_the_old_goes_and_on_delete_waits() {
    let cluster = Cluster::start(&["a", "b"]).await;
    let surge = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
    cluster.create::<DaemonSet>(daemon_set(surge)).await;
    cluster.until::<Pod>("two", |pods| nodes(pods) == ["a", "b"]).await;
    let watched = cluster.follow::<Pod, _>("updated", |pods| {
        let mut served = nodes(pods);
        served.dedup();
        assert_eq!(served, ["a", "b"], "a node without a ready pod");
        (pods.len() == 2 && all_have(pods, "image:2")).then_some(())
    });
    tokio::join!(cluster.patch::<DaemonSet>("agent", image("image:2")), watched);
    let on_delete =
        json!({"spec": {"updateStrategy": {"$retainKeys": ["type"], "type": "OnDelete", "rollingUpdate": null}}});
    cluster.patch::<DaemonSet>("agent", on_delete).await;
    cluster.patch::<DaemonSet>("agent", image("image:3")).await;
    cluster
        .until_one::<DaemonSet>("agent", "observed", |it| {
            let status = it.status.clone().unwrap_or_default();
            status.observed_generation == it.metadata.generation
                && status.updated_number_scheduled.unwrap_or_default() == 0
        })
        .await;
    let pod = cluster.list::<Pod>().await.remove(0);
    cluster.delete::<Pod>(&pod.name_any()).await;
    cluster
        .until::<Pod>("one of three", |pods| {
            let new = pods.values().filter(|it| {
                is_ready(it) && it.spec.as_ref().unwrap().containers[0].image.as_deref() == Some("image:3")
            });
            pods.len() == 2 && new.count() == 1
        })
        .await;
}
