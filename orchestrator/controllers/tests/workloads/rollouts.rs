//! Deployments and ReplicaSets.

use crate::cluster::{Cluster, is_ready, template};
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::{Event, Pod, ReplicationController},
};
use kube::ResourceExt as _;
use serde_json::{Value, json};
use std::collections::BTreeSet;

fn deployment(name: &str, replicas: i32, more: Value) -> Value {
    let labels = json!({"app": name});
    let mut spec = json!({
        "replicas": replicas,
        "selector": {"matchLabels": labels},
        "template": template(&labels, "image:1"),
    });
    for (field, value) in more.as_object().unwrap() {
        spec[field] = value.clone();
    }
    json!({"metadata": {"name": name}, "spec": spec})
}

fn image(image: &str) -> Value {
    json!({"spec": {"template": {"spec": {"containers": [{"name": "main", "image": image}]}}}})
}

fn complete(deployment: &Deployment, replicas: i32) -> bool {
    let status = deployment.status.clone().unwrap_or_default();
    let all = [
        status.replicas,
        status.updated_replicas,
        status.ready_replicas,
        status.available_replicas,
    ];
    let progressing = status
        .conditions
        .unwrap_or_default()
        .into_iter()
        .find(|it| it.type_ == "Progressing");
    all.iter().all(|it| it.unwrap_or_default() == replicas)
        && status.observed_generation == deployment.metadata.generation
        && progressing.is_none_or(|it| it.reason.as_deref() == Some("NewReplicaSetAvailable"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_never_dips_and_undo_brings_back_the_old_set() {
    let cluster = Cluster::start(&["a", "b"]).await;
    let fence = json!({"strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}});
    cluster.create::<Deployment>(deployment("web", 4, fence)).await;
    cluster
        .until_one::<Deployment>("web", "complete", |it| complete(it, 4))
        .await;
    let first: BTreeSet<_> = cluster
        .list::<ReplicaSet>()
        .await
        .iter()
        .map(ReplicaSet::name_any)
        .collect();

    let watched = cluster.follow::<Pod, _>("all pods new", |pods| {
        let ready = pods.values().filter(|it| is_ready(it)).count();
        assert!(ready >= 4, "only {ready} of 4 were ready");
        let active = pods
            .values()
            .filter(|it| it.metadata.deletion_timestamp.is_none())
            .count();
        assert!(active <= 5, "{active} pods, 5 may be");
        let new = |pod: &Pod| pod.spec.as_ref().unwrap().containers[0].image.as_deref() == Some("image:2");
        (pods.len() == 4 && pods.values().all(|it| new(it) && is_ready(it))).then_some(())
    });
    let (_, ()) = tokio::join!(cluster.patch::<Deployment>("web", image("image:2")), watched);
    let web = cluster
        .until_one::<Deployment>("web", "complete", |it| complete(it, 4))
        .await;
    assert_eq!(web.annotations()["deployment.kubernetes.io/revision"], "2");
    assert_eq!(cluster.list::<ReplicaSet>().await.len(), 2);

    // What `kubectl rollout undo` does: the template of the old set.
    cluster.patch::<Deployment>("web", image("image:1")).await;
    let web = cluster
        .until_one::<Deployment>("web", "back", |it| {
            complete(it, 4) && it.annotations()["deployment.kubernetes.io/revision"] == "3"
        })
        .await;
    assert!(
        web.status
            .unwrap()
            .conditions
            .unwrap()
            .iter()
            .any(|it| it.type_ == "Available" && it.status == "True")
    );
    cluster
        .until::<ReplicaSet>("the old set grown again", |sets| {
            let size = |set: &ReplicaSet| set.status.as_ref().map(|it| it.replicas).unwrap_or_default();
            sets.len() == 2
                && sets
                    .iter()
                    .all(|(name, set)| size(set) == if first.contains(name) { 4 } else { 0 })
        })
        .await;
    let set = cluster.get::<ReplicaSet>(first.first().unwrap()).await;
    assert_eq!(set.annotations()["deployment.kubernetes.io/revision"], "3");
    assert_eq!(set.annotations()["deployment.kubernetes.io/revision-history"], "1");
    cluster
        .until::<Event>("events", |all| {
            let says = |reason: &str| all.values().any(|it| it.reason.as_deref() == Some(reason));
            says("ScalingReplicaSet") && says("SuccessfulCreate") && says("SuccessfulDelete")
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_replaced_scaled_adopted_and_released() {
    let cluster = Cluster::start(&["a"]).await;
    cluster.create::<Deployment>(deployment("web", 2, json!({}))).await;
    cluster
        .until_one::<Deployment>("web", "complete", |it| complete(it, 2))
        .await;
    let victim = cluster.list::<Pod>().await[0].name_any();
    cluster.delete::<Pod>(&victim).await;
    cluster
        .until::<Pod>("a replacement", |pods| {
            !pods.contains_key(&victim) && pods.values().filter(|it| is_ready(it)).count() == 2
        })
        .await;
    cluster
        .patch::<Deployment>("web", json!({"spec": {"replicas": 5}}))
        .await;
    cluster
        .until_one::<Deployment>("web", "grown", |it| complete(it, 5))
        .await;
    cluster
        .patch::<Deployment>("web", json!({"spec": {"replicas": 1}}))
        .await;
    cluster
        .until_one::<Deployment>("web", "shrunk", |it| complete(it, 1))
        .await;
    cluster.until::<Pod>("one pod", |pods| pods.len() == 1).await;

    // A pod whose labels are changed is nobody's any more, and is replaced.
    let free = cluster.list::<Pod>().await[0].name_any();
    cluster
        .patch::<Pod>(&free, json!({"metadata": {"labels": {"app": "other"}}}))
        .await;
    cluster
        .until::<Pod>("released and replaced", |pods| {
            pods.len() == 2 && pods[&free].owner_references().is_empty() && pods.values().all(is_ready)
        })
        .await;
    // It is adopted by whom it fits.
    let labels = json!({"app": "other"});
    let spec = json!({"replicas": 1, "selector": labels, "template": template(&labels, "image:1")});
    cluster
        .create::<ReplicationController>(json!({"metadata": {"name": "other"}, "spec": spec}))
        .await;
    cluster
        .until_one::<Pod>(&free, "adopted", |it| {
            it.owner_references().iter().any(|it| it.name == "other")
        })
        .await;
    cluster
        .until_one::<ReplicationController>("other", "counted", |it| {
            it.status.as_ref().is_some_and(|it| it.ready_replicas == Some(1))
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recreate_ends_the_old_before_the_new() {
    let cluster = Cluster::start(&["a"]).await;
    cluster
        .create::<Deployment>(deployment("web", 3, json!({"strategy": {"type": "Recreate"}})))
        .await;
    cluster
        .until_one::<Deployment>("web", "complete", |it| complete(it, 3))
        .await;
    let watched = cluster.follow::<Pod, _>("all new", |pods| {
        let images: BTreeSet<_> = pods
            .values()
            .map(|it| it.spec.as_ref().unwrap().containers[0].image.clone())
            .collect();
        assert!(images.len() <= 1, "old and new at the same time: {images:?}");
        (pods.len() == 3 && images.contains(&Some("image:2".to_owned()))).then_some(())
    });
    tokio::join!(cluster.patch::<Deployment>("web", image("image:2")), watched);
    cluster
        .until_one::<Deployment>("web", "complete", |it| complete(it, 3))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_rollout_times_out_and_a_paused_one_waits() {
    let cluster = Cluster::start(&["a"]).await;
    let more = json!({"progressDeadlineSeconds": 60, "revisionHistoryLimit": 1});
    cluster.create::<Deployment>(deployment("web", 2, more)).await;
    cluster
        .until_one::<Deployment>("web", "complete", |it| complete(it, 2))
        .await;
    cluster
        .patch::<Deployment>("web", json!({"spec": {"paused": true}}))
        .await;
    cluster.patch::<Deployment>("web", image("image:2")).await;
    cluster
        .until_one::<Deployment>("web", "noted pause", |it| {
            let status = it.status.as_ref().unwrap();
            status.observed_generation == it.metadata.generation
                && status
                    .conditions
                    .as_ref()
                    .unwrap()
                    .iter()
                    .any(|it| it.reason.as_deref() == Some("DeploymentPaused"))
        })
        .await;
    assert_eq!(cluster.list::<ReplicaSet>().await.len(), 1);
    let stuck = json!({"spec": {"paused": false, "template": {"metadata": {"annotations": {"test/fate": "wait"}}}}});
    cluster.patch::<Deployment>("web", stuck).await;
    cluster
        .until::<ReplicaSet>("a second set", |sets| sets.len() == 2)
        .await;
    cluster
        .until_one::<Deployment>("web", "progress", |it| {
            it.status.as_ref().unwrap().updated_replicas == Some(1)
        })
        .await;
    cluster.clock.advance(std::time::Duration::from_secs(61));
    let web = cluster
        .until_one::<Deployment>("web", "timed out", |it| {
            let conditions = it.status.as_ref().unwrap().conditions.as_ref().unwrap();
            conditions
                .iter()
                .any(|it| it.reason.as_deref() == Some("ProgressDeadlineExceeded"))
        })
        .await;
    assert!(web.status.unwrap().available_replicas >= Some(1));
    // A third template that works: history keeps one old set.
    let mend = json!({"spec": {"template": {"metadata": {"annotations": {"test/fate": "run"}}}}});
    cluster.patch::<Deployment>("web", mend).await;
    cluster
        .until_one::<Deployment>("web", "mended", |it| complete(it, 2))
        .await;
    cluster
        .until::<ReplicaSet>("history of one", |sets| sets.len() == 2)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_at_once_and_a_restart_in_the_middle_make_no_pod_too_many() {
    let mut cluster = Cluster::start(&["a", "b", "c"]).await;
    for number in 0..50 {
        cluster
            .create::<Deployment>(deployment(&format!("d{number}"), 3, json!({})))
            .await;
    }
    // In the middle: some pods are there, not all.
    cluster.until::<Pod>("some pods", |pods| pods.len() >= 30).await;
    cluster.stop_controllers().await;
    assert!(cluster.list::<Pod>().await.len() <= 150);
    cluster.start_controllers();
    cluster
        .follow::<Pod, _>("150 pods", |pods| {
            assert!(pods.len() <= 150, "{} pods of 150", pods.len());
            (pods.values().filter(|it| is_ready(it)).count() == 150).then_some(())
        })
        .await;
    cluster
        .until::<Deployment>("all complete", |all| {
            all.len() == 50 && all.values().all(|it| complete(it, 3))
        })
        .await;
    assert_eq!(cluster.list::<ReplicaSet>().await.len(), 50);
    assert_eq!(cluster.list::<Pod>().await.len(), 150);
}
