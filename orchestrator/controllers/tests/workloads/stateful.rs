//! StatefulSets.

use crate::cluster::{Cluster, is_ready, template};
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{PersistentVolumeClaim, Pod},
};
use kube::ResourceExt as _;
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn stateful_set(replicas: i32, more: Value) -> Value {
    let labels = json!({"app": "db"});
    let mut spec = json!({
        "replicas": replicas,
        "serviceName": "db",
        "selector": {"matchLabels": labels},
        "template": template(&labels, "image:1"),
    });
    for (field, value) in more.as_object().unwrap() {
        spec[field] = value.clone();
    }
    json!({"metadata": {"name": "db"}, "spec": spec})
}

fn image(pod: &Pod) -> &str {
    pod.spec.as_ref().unwrap().containers[0].image.as_deref().unwrap()
}

fn to(image: &str) -> Value {
    json!({"spec": {"template": {"spec": {"containers": [{"name": "main", "image": image}]}}}})
}

fn names(pods: &BTreeMap<String, Pod>) -> Vec<&str> {
    pods.keys().map(String::as_str).collect()
}

/// Every pod that there is has ready predecessors.
fn assert_order(pods: &BTreeMap<String, Pod>) {
    let count = pods.len();
    let expected: Vec<_> = (0..count).map(|it| format!("db-{it}")).collect();
    assert_eq!(names(pods), expected);
    for pod in pods.values().take(count.saturating_sub(1)) {
        assert!(is_ready(pod), "{} is followed before it is ready", pod.name_any());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_come_and_go_in_order_with_their_claims() {
    let cluster = Cluster::start(&["a"]).await;
    let claims = json!([{
        "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }]);
    let policy = json!({"whenDeleted": "Retain", "whenScaled": "Delete"});
    let more = json!({"volumeClaimTemplates": claims, "persistentVolumeClaimRetentionPolicy": policy});
    let come = cluster.follow::<Pod, _>("three in order", |pods| {
        assert_order(pods);
        (pods.len() == 3 && pods.values().all(is_ready)).then(|| pods.clone())
    });
    let (_, pods) = tokio::join!(cluster.create::<StatefulSet>(stateful_set(3, more)), come);
    let last = &pods["db-2"];
    assert_eq!(last.labels()["apps.kubernetes.io/pod-index"], "2");
    assert_eq!(last.spec.as_ref().unwrap().hostname.as_deref(), Some("db-2"));
    assert_eq!(cluster.list::<PersistentVolumeClaim>().await.len(), 3);
    cluster
        .until_one::<StatefulSet>("db", "counted", |it| {
            let status = it.status.clone().unwrap_or_default();
            status.available_replicas == Some(3) && status.current_replicas == Some(3)
        })
        .await;
    let go = cluster.follow::<Pod, _>("one left", |pods| {
        let live: BTreeMap<_, _> = pods
            .clone()
            .into_iter()
            .filter(|(_, it)| it.metadata.deletion_timestamp.is_none())
            .collect();
        assert_order(&live);
        (pods.len() == 1).then_some(())
    });
    tokio::join!(cluster.patch::<StatefulSet>("db", json!({"spec": {"replicas": 1}})), go);
    // The garbage collector would take them: they belong to the pods that were scaled away.
    let owner = |claim: &PersistentVolumeClaim| claim.owner_references().first().map(|it| it.name.clone());
    let claims = cluster.list::<PersistentVolumeClaim>().await;
    let owners: BTreeMap<_, _> = claims.iter().map(|it| (it.name_any(), owner(it))).collect();
    let expected = [
        ("data-db-0", None),
        ("data-db-1", Some("db-1")),
        ("data-db-2", Some("db-2")),
    ];
    assert_eq!(
        owners,
        expected
            .map(|(claim, pod)| (claim.to_owned(), pod.map(str::to_owned)))
            .into()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_comes_from_the_top_down_to_the_partition() {
    let cluster = Cluster::start(&["a"]).await;
    let partition = |partition: i32| json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": partition}}});
    let mut more = partition(2);
    more["ordinals"] = json!({"start": 5});
    cluster.create::<StatefulSet>(stateful_set(4, more)).await;
    cluster
        .until::<Pod>("four", |pods| pods.values().filter(|it| is_ready(it)).count() == 4)
        .await;
    let update = cluster.follow::<Pod, _>("two updated", |pods| {
        assert!(pods.values().filter(|it| is_ready(it)).count() >= 3);
        let images: Vec<_> = pods.values().map(image).collect();
        (pods.len() == 4 && pods.values().all(is_ready) && images == ["image:1", "image:1", "image:2", "image:2"])
            .then_some(())
    });
    tokio::join!(cluster.patch::<StatefulSet>("db", to("image:2")), update);
    // A pod below the partition comes back as it was.
    cluster.delete::<Pod>("db-5").await;
    cluster
        .until::<Pod>("as it was", |pods| {
            pods.len() == 4 && pods.values().all(is_ready) && image(&pods["db-5"]) == "image:1"
        })
        .await;
    cluster.patch::<StatefulSet>("db", json!({"spec": partition(0)})).await;
    cluster
        .until::<Pod>("all updated", |pods| {
            pods.len() == 4 && pods.values().all(|it| is_ready(it) && image(it) == "image:2")
        })
        .await;
    let set = cluster
        .until_one::<StatefulSet>("db", "settled", |it| {
            let status = it.status.clone().unwrap_or_default();
            status.current_revision == status.update_revision && status.current_replicas == Some(4)
        })
        .await;
    assert_eq!(set.status.unwrap().updated_replicas, Some(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_pods_do_not_wait_and_failed_ones_are_made_again() {
    let cluster = Cluster::start(&["a"]).await;
    let mut set = stateful_set(3, json!({"podManagementPolicy": "Parallel"}));
    set["spec"]["template"]["metadata"]["annotations"] = json!({"test/fate": "wait"});
    cluster.create::<StatefulSet>(set).await;
    let bound = |pod: &Pod| pod.spec.as_ref().unwrap().node_name.is_some();
    cluster
        .until::<Pod>("three that wait", |pods| pods.len() == 3 && pods.values().all(bound))
        .await;
    let before = cluster.get::<Pod>("db-1").await.uid();
    let failed = json!({"status": {"phase": "Failed"}});
    let pods = cluster.api::<Pod>();
    let failed = kube::api::Patch::Strategic(failed);
    pods.patch_status("db-1", &Default::default(), &failed).await.unwrap();
    cluster
        .until::<Pod>("made again", |pods| pods.len() == 3 && pods["db-1"].uid() != before)
        .await;
}
