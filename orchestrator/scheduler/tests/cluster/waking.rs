//! Pods that wait are tried again when what they wait for happens, and make others leave if they are worth more.

use crate::support::{Cluster, asks, within};
use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim},
    scheduling::v1::PriorityClass,
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

async fn change_node(cluster: &Cluster, name: &str, patch: Value) {
    let nodes = cluster.nodes();
    nodes
        .patch(name, &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn room_that_is_made_is_taken() {
    let cluster = Cluster::start().await;
    cluster.node("a", json!({})).await;
    cluster.place("first", asks(json!({ "cpu": "3" }))).await;
    cluster.pod("second", asks(json!({ "cpu": "3" }))).await;
    cluster.refused("second", "1 Insufficient cpu").await;
    cluster.delete("first").await;
    assert_eq!(cluster.placed("second").await, "a");
    // A pod that ends makes room too.
    cluster.pod("third", asks(json!({ "cpu": "3" }))).await;
    cluster.refused("third", "1 Insufficient cpu").await;
    let ended = json!({ "status": { "phase": "Succeeded" } });
    cluster
        .pods()
        .patch_status("second", &PatchParams::default(), &Patch::Merge(&ended))
        .await
        .unwrap();
    assert_eq!(cluster.placed("third").await, "a");
    // So does a node.
    cluster.pod("fourth", asks(json!({ "cpu": "3" }))).await;
    cluster.refused("fourth", "1 Insufficient cpu").await;
    cluster.node("b", json!({})).await;
    assert_eq!(cluster.placed("fourth").await, "b");
    // And a node that grows.
    cluster.pod("fifth", asks(json!({ "cpu": "3" }))).await;
    cluster.refused("fifth", "2 Insufficient cpu").await;
    let grown = json!({ "status": { "allocatable": { "cpu": "8" } } });
    cluster
        .nodes()
        .patch_status("b", &PatchParams::default(), &Patch::Merge(&grown))
        .await
        .unwrap();
    assert_eq!(cluster.placed("fifth").await, "b");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_change_are_looked_at_again() {
    let cluster = Cluster::start().await;
    cluster.node("a", json!({ "spec": { "unschedulable": true } })).await;
    cluster.pod("cordoned", json!({})).await;
    cluster.refused("cordoned", "1 node(s) were unschedulable").await;
    change_node(&cluster, "a", json!({ "spec": { "unschedulable": null } })).await;
    assert_eq!(cluster.placed("cordoned").await, "a");
    cluster
        .pod("selecting", json!({ "nodeSelector": { "disk": "ssd" } }))
        .await;
    cluster.refused("selecting", "affinity/selector").await;
    change_node(&cluster, "a", json!({ "metadata": { "labels": { "disk": "ssd" } } })).await;
    assert_eq!(cluster.placed("selecting").await, "a");
    let taints = json!([{ "key": "k", "effect": "NoSchedule" }]);
    change_node(&cluster, "a", json!({ "spec": { "taints": taints } })).await;
    let mut n = 0;
    loop {
        // Until the scheduler has heard of the taint.
        let name = format!("t{n}");
        cluster.pod(&name, json!({})).await;
        let judged = cluster.until(&name, |it| {
            let conditions = it.status.iter().flat_map(|it| it.conditions.iter().flatten());
            it.spec.as_ref().is_some_and(|it| it.node_name.is_some())
                || conditions.into_iter().any(|it| it.type_ == "PodScheduled")
        });
        if judged.await.spec.unwrap().node_name.is_none() {
            cluster.refused(&name, "untolerated").await;
            change_node(&cluster, "a", json!({ "spec": { "taints": null } })).await;
            assert_eq!(cluster.placed(&name).await, "a");
            break;
        }
        n += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_others_wait_for() {
    let cluster = Cluster::start().await;
    for name in ["a", "b"] {
        cluster.node(name, json!({})).await;
    }
    let term =
        json!([{ "labelSelector": { "matchLabels": { "app": "db" } }, "topologyKey": "kubernetes.io/hostname" }]);
    let near = json!({ "affinity": { "podAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": term } } });
    cluster.pod("near", near).await;
    cluster.refused("near", "pod affinity rules").await;
    cluster.labelled("db", json!({ "app": "db" }), json!({})).await;
    assert_eq!(cluster.placed("near").await, cluster.placed("db").await);
    // Gates.
    cluster
        .pod("gated", json!({ "schedulingGates": [{ "name": "example.com/later" }] }))
        .await;
    cluster.place("ungated", json!({})).await;
    assert_eq!(cluster.pods().get("gated").await.unwrap().spec.unwrap().node_name, None);
    let open = Patch::Merge(json!({ "spec": { "schedulingGates": null } }));
    cluster
        .pods()
        .patch("gated", &PatchParams::default(), &open)
        .await
        .unwrap();
    cluster.placed("gated").await;
    // Ports.
    let port = json!([{ "containerPort": 80, "hostPort": 80 }]);
    let ports = json!({ "containers": [{ "name": "c", "image": "example.com/c:1", "ports": port }] });
    for name in ["p0", "p1"] {
        cluster.place(name, ports.clone()).await;
    }
    let freed = cluster.placed("p0").await;
    cluster.pod("p2", ports).await;
    cluster.refused("p2", "free ports").await;
    cluster.delete("p0").await;
    assert_eq!(cluster.placed("p2").await, freed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_must_be_bound_and_within_reach() {
    let cluster = Cluster::start().await;
    for name in ["a", "b"] {
        cluster.node(name, json!({})).await;
    }
    let mounts = json!({ "volumes": [{ "name": "v", "persistentVolumeClaim": { "claimName": "data" } }] });
    cluster.pod("p", mounts).await;
    cluster.refused("p", "persistentvolumeclaim \"data\" not found.").await;
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(cluster.client.clone(), "default");
    let volumes: Api<PersistentVolume> = Api::all(cluster.client.clone());
    let claim = json!({ "metadata": { "name": "data" }, "spec": { "accessModes": ["ReadWriteOnce"],
        "storageClassName": "", "resources": { "requests": { "storage": "1Gi" } } } });
    claims
        .create(&PostParams::default(), &serde_json::from_value(claim).unwrap())
        .await
        .unwrap();
    cluster
        .refused("p", "pod has unbound immediate PersistentVolumeClaims.")
        .await;
    let on_b =
        json!([{ "matchExpressions": [{ "key": "kubernetes.io/hostname", "operator": "In", "values": ["b"] }] }]);
    let volume = json!({ "metadata": { "name": "pv" }, "spec": { "accessModes": ["ReadWriteOnce"],
        "capacity": { "storage": "1Gi" }, "local": { "path": "/data" },
        "nodeAffinity": { "required": { "nodeSelectorTerms": on_b } } } });
    volumes
        .create(&PostParams::default(), &serde_json::from_value(volume).unwrap())
        .await
        .unwrap();
    let bound = json!({ "spec": { "volumeName": "pv" } });
    claims
        .patch("data", &PatchParams::default(), &Patch::Merge(&bound))
        .await
        .unwrap();
    assert_eq!(cluster.placed("p").await, "b");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_less_important_make_way() {
    let cluster = Cluster::start().await;
    let classes: Api<PriorityClass> = Api::all(cluster.client.clone());
    for (name, value) in [("low", 10), ("middle", 100), ("high", 1000)] {
        let class = json!({ "metadata": { "name": name }, "value": value });
        classes
            .create(&PostParams::default(), &serde_json::from_value(class).unwrap())
            .await
            .unwrap();
    }
    let of = |class: &str, cpu: &str| {
        let mut spec = asks(json!({ "cpu": cpu }));
        spec["priorityClassName"] = json!(class);
        spec
    };
    cluster.node("a", json!({})).await;
    cluster.node("b", json!({})).await;
    let on = |name: &str, mut spec: Value| {
        spec["nodeSelector"] = json!({ "kubernetes.io/hostname": name });
        spec
    };
    cluster.place("low-a", on("a", of("low", "2"))).await;
    cluster.place("middle-a", on("a", of("middle", "2"))).await;
    cluster.place("middle-b", on("b", of("middle", "4"))).await;
    cluster.pod("high", of("high", "2")).await;
    // Without a kubelet a deleted pod stays until somebody lets it go.
    let leaving = cluster
        .until("low-a", |it| it.metadata.deletion_timestamp.is_some())
        .await;
    let conditions = leaving.status.unwrap().conditions.unwrap();
    let target = conditions.iter().find(|it| it.type_ == "DisruptionTarget").unwrap();
    assert_eq!(target.reason.as_deref(), Some("PreemptionByScheduler"));
    let cleared = |it: &k8s_openapi::api::core::v1::Pod| it.status.as_ref()?.nominated_node_name.clone();
    let high = cluster.until("high", |it| cleared(it).is_some()).await;
    assert_eq!(cleared(&high).as_deref(), Some("a"));
    let uid = high.metadata.uid.unwrap();
    let note = format!("Preempted by pod {uid} on node a");
    cluster.told("low-a", "Preempted", &note).await;
    // What is kept free for it is not given to others meanwhile.
    cluster.delete("low-a").await;
    assert_eq!(cluster.placed("high").await, "a");
    for name in ["middle-a", "middle-b"] {
        let pod = cluster.pods().get(name).await.unwrap();
        assert!(pod.metadata.deletion_timestamp.is_none(), "{name}");
    }
    let mut peaceful = of("high", "3");
    peaceful["preemptionPolicy"] = json!("Never");
    if let Ok(pod) = serde_json::from_value(crate::support::pod("peaceful", json!({}), peaceful))
        && cluster.pods().create(&PostParams::default(), &pod).await.is_ok()
    {
        cluster
            .refused("peaceful", "preemption: not eligible due to preemptionPolicy=Never.")
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduler_that_starts_again_knows_what_is_taken() {
    let mut cluster = Cluster::start().await;
    cluster.node("a", json!({})).await;
    cluster.place("first", asks(json!({ "cpu": "3" }))).await;
    within(cluster.stop_scheduler()).await;
    cluster.pod("second", asks(json!({ "cpu": "3" }))).await;
    cluster.pod("third", asks(json!({ "cpu": "1" }))).await;
    cluster.start_scheduler();
    cluster.refused("second", "1 Insufficient cpu").await;
    assert_eq!(cluster.placed("third").await, "a");
}
