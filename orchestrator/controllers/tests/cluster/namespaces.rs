//! Namespaces: what each has from the start, and that nothing is left of one that is deleted.

use crate::world::{World, patch, patch_status, seen};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, ResourceQuota, ServiceAccount};
use kube::{Api, api::DeleteParams};
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_namespace_has_an_account_and_the_certificate() {
    let world = World::with(|config, _| config.cluster.root_ca_pem = "PEM".to_owned()).await;
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        seen(world.within::<ServiceAccount>(name), "the account", |all| {
            all.contains_key("default")
        })
        .await;
    }
    world.namespace("shop").await;
    let maps: Api<ConfigMap> = world.within("shop");
    let right = |it: &ConfigMap| {
        it.data
            .as_ref()
            .is_some_and(|it| it.len() == 1 && it["ca.crt"] == "PEM")
    };
    let has = |all: &std::collections::BTreeMap<String, ConfigMap>| all.get("kube-root-ca.crt").is_some_and(right);
    seen(maps.clone(), "the certificate", has).await;
    patch(
        &maps,
        "kube-root-ca.crt",
        json!({ "data": { "ca.crt": "other", "more": "x" } }),
    )
    .await;
    seen(maps.clone(), "the right certificate again", has).await;
    maps.delete("kube-root-ca.crt", &DeleteParams::default()).await.unwrap();
    seen(maps, "the certificate again", has).await;
    let accounts: Api<ServiceAccount> = world.within("shop");
    let old = accounts.get("default").await.unwrap().metadata.uid;
    accounts.delete("default", &DeleteParams::default()).await.unwrap();
    seen(accounts, "another account", |all| {
        all.get("default").is_some_and(|it| it.metadata.uid != old)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_namespace_leaves_nothing() {
    let mut world = World::start().await;
    world.namespace("shop").await;
    let meta = |name: &str| json!({ "name": name, "namespace": "shop" });
    world
        .create(json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": meta("c"), "data": { "a": "b" } }))
        .await;
    world
        .create(json!({ "apiVersion": "v1", "kind": "Secret", "metadata": meta("s") }))
        .await;
    world
        .create(json!({ "apiVersion": "v1", "kind": "Service", "metadata": meta("web"), "spec": { "selector": { "a": "b" }, "ports": [{ "port": 80 }] } }))
        .await;
    world
        .create(json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": meta("rs"),
            "spec": {
                "replicas": 0, "selector": { "matchLabels": { "a": "b" } },
                "template": { "metadata": { "labels": { "a": "b" } }, "spec": { "containers": [{ "name": "c", "image": "i" }] } },
            },
        }))
        .await;
    let mut held = meta("held");
    held["finalizers"] = json!(["example.com/hold"]);
    world
        .create(json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": held }))
        .await;
    // A pod on a node, which its kubelet alone may end.
    world
        .create(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": meta("p"),
            "spec": { "nodeName": "n1", "containers": [{ "name": "c", "image": "i" }] },
            "status": { "phase": "Running" },
        }))
        .await;
    // The node has to be there, or the pod would count as garbage.
    world
        .create(json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" } }))
        .await;
    let namespaces: Api<Namespace> = world.all();
    namespaces.delete("shop", &DeleteParams::default()).await.unwrap();
    let condition = |it: &Namespace, kind: &str| {
        let all = it.status.as_ref().and_then(|it| it.conditions.as_ref());
        all.into_iter()
            .flatten()
            .find(|it| it.type_ == kind)
            .map(|it| (it.status.clone(), it.message.clone().unwrap_or_default()))
    };
    seen(namespaces.clone(), "the pod remains", |all| {
        condition(&all["shop"], "NamespaceContentRemaining")
            .is_some_and(|it| it.0 == "True" && it.1.contains("pods. has 1"))
    })
    .await;
    // What the pod may use stays as long as the pod does.
    assert!(world.within::<ConfigMap>("shop").get_opt("c").await.unwrap().is_some());
    world.restart().await;
    let pods: Api<Pod> = world.within("shop");
    patch_status(&pods, "p", json!({ "status": { "phase": "Failed" } })).await;
    pods.delete("p", &DeleteParams::default().grace_period(0))
        .await
        .unwrap();
    seen(namespaces.clone(), "one is held", |all| {
        condition(&all["shop"], "NamespaceFinalizersRemaining")
            .is_some_and(|it| it.0 == "True" && it.1.contains("example.com/hold"))
    })
    .await;
    let maps: Api<ConfigMap> = world.within("shop");
    patch(&maps, "held", json!({ "metadata": { "finalizers": null } })).await;
    seen(namespaces, "no namespace", |all| !all.contains_key("shop")).await;
    // Nothing of it is left in any resource.
    let client = world.client();
    for group in ["v1", "apps/v1", "discovery.k8s.io/v1", "events.k8s.io/v1"] {
        let list = match group {
            "v1" => client.list_core_api_resources(group).await.unwrap(),
            _ => client.list_api_group_resources(group).await.unwrap(),
        };
        for resource in list
            .resources
            .iter()
            .filter(|it| it.namespaced && it.verbs.iter().any(|it| it == "list"))
        {
            let (group, version) = group.rsplit_once('/').unwrap_or(("", group));
            let kind = kube::core::GroupVersionKind::gvk(group, version, &resource.kind);
            let api: Api<kube::core::DynamicObject> = Api::namespaced_with(
                client.clone(),
                "shop",
                &kube::core::ApiResource::from_gvk_with_plural(&kind, &resource.name),
            );
            let left = api.list(&kube::api::ListParams::default()).await.unwrap();
            assert!(left.items.is_empty(), "{}: {:?}", resource.name, left.items);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quotas_show_what_is_used() {
    let mut world = World::start().await;
    world.namespace("shop").await;
    let meta = |name: &str| json!({ "name": name, "namespace": "shop" });
    world
        .create(json!({
            "apiVersion": "v1", "kind": "ResourceQuota", "metadata": meta("q"),
            "spec": { "hard": { "pods": "5", "requests.cpu": "2", "configmaps": "10", "count/leases.coordination.k8s.io": "3" } },
        }))
        .await;
    let quotas: Api<ResourceQuota> = world.within("shop");
    let is = |it: Option<&ResourceQuota>, wanted: &serde_json::Value| {
        let used = it.and_then(|it| it.status.as_ref()).and_then(|it| it.used.as_ref());
        used.is_some_and(|it| json!(it) == *wanted)
    };
    let none = json!({ "pods": "0", "requests.cpu": "0", "configmaps": "0", "count/leases.coordination.k8s.io": "0" });
    seen(quotas.clone(), "nothing is used", |all| is(all.get("q"), &none)).await;
    world
        .create(json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": meta("a") }))
        .await;
    world
        .create(json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta("l"), "spec": {} }))
        .await;
    world
        .create(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": meta("p"),
            "spec": { "containers": [{ "name": "c", "image": "i", "resources": { "requests": { "cpu": "250m" } } }] },
        }))
        .await;
    let some =
        json!({ "pods": "1", "requests.cpu": "250m", "configmaps": "1", "count/leases.coordination.k8s.io": "1" });
    seen(quotas.clone(), "something is used", |all| is(all.get("q"), &some)).await;
    world.restart().await;
    world
        .within::<ConfigMap>("shop")
        .delete("a", &DeleteParams::default())
        .await
        .unwrap();
    let pods: Api<Pod> = world.within("shop");
    patch_status(&pods, "p", json!({ "status": { "phase": "Succeeded" } })).await;
    let less = json!({ "pods": "0", "requests.cpu": "0", "configmaps": "0", "count/leases.coordination.k8s.io": "1" });
    seen(quotas, "less is used", |all| is(all.get("q"), &less)).await;
}
