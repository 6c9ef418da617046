//! Owners and dependents of every kind: in the background, in the foreground, orphaned, over restarts.

use crate::world::{World, patch, seen};
use k8s_openapi::{
    api::core::v1::{ConfigMap, Event},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api,
    api::{DeleteParams, PropagationPolicy},
    core::DynamicObject,
    runtime::wait::{await_condition, conditions},
};
use serde_json::{Value, json};

const SPACE: &str = "default";

fn owned(object: &DynamicObject) -> Value {
    let types = object.types.as_ref().unwrap();
    json!({
        "apiVersion": types.api_version, "kind": types.kind, "name": object.metadata.name, "uid": object.metadata.uid,
        "blockOwnerDeletion": true,
    })
}

async fn map(world: &World, namespace: &str, name: &str, owners: &[Value]) -> DynamicObject {
    world
        .create(json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": name, "namespace": namespace, "ownerReferences": owners },
        }))
        .await
}

/// A chain of maps: each owned by the one before, the first by `root`.
async fn chain(world: &World, prefix: &str, root: Option<&DynamicObject>, length: usize) -> Vec<DynamicObject> {
    let mut chain: Vec<DynamicObject> = Vec::new();
    for number in 0..length {
        let owner = chain.last().or(root).map(owned);
        let owners: Vec<Value> = owner.into_iter().collect();
        chain.push(map(world, SPACE, &format!("{prefix}{number}"), &owners).await);
    }
    chain
}

async fn delete(world: &World, name: &str, policy: PropagationPolicy) {
    let options = DeleteParams {
        propagation_policy: Some(policy),
        ..DeleteParams::default()
    };
    world.within::<ConfigMap>(SPACE).delete(name, &options).await.unwrap();
}

async fn gone(world: &World, prefix: &str) {
    seen(world.within::<ConfigMap>(SPACE), &format!("no {prefix}*"), |all| {
        !all.keys().any(|it| it.starts_with(prefix))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deep_chain_goes_in_the_background() {
    let world = World::start().await;
    chain(&world, "link", None, 25).await;
    chain(&world, "other", None, 3).await;
    delete(&world, "link0", PropagationPolicy::Background).await;
    gone(&world, "link").await;
    let left = seen(world.within::<ConfigMap>(SPACE), "the rest", |_| true).await;
    assert_eq!(left.keys().filter(|it| it.starts_with("other")).count(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deep_chain_goes_in_the_foreground_last_first() {
    let world = World::start().await;
    chain(&world, "link", None, 12).await;
    let api: Api<ConfigMap> = world.within(SPACE);
    // The last one is held, so nobody above it may go.
    patch(
        &api,
        "link11",
        json!({ "metadata": { "finalizers": ["example.com/hold"] } }),
    )
    .await;
    delete(&world, "link0", PropagationPolicy::Foreground).await;
    let all = seen(api.clone(), "the last is being deleted", |all| {
        all.get("link11")
            .is_some_and(|it| it.metadata.deletion_timestamp.is_some())
    })
    .await;
    assert_eq!(all.keys().filter(|it| it.starts_with("link")).count(), 12);
    patch(&api, "link11", json!({ "metadata": { "finalizers": null } })).await;
    gone(&world, "link").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orphans_forget_their_owner_and_stay() {
    let world = World::start().await;
    let chain = chain(&world, "link", None, 2).await;
    for number in 0..10 {
        map(&world, SPACE, &format!("child{number}"), &[owned(&chain[1])]).await;
    }
    delete(&world, "link1", PropagationPolicy::Orphan).await;
    let all = seen(world.within::<ConfigMap>(SPACE), "freed", |all| {
        !all.contains_key("link1")
    })
    .await;
    let children: Vec<_> = all.iter().filter(|it| it.0.starts_with("child")).collect();
    assert_eq!(children.len(), 10);
    assert!(
        children
            .iter()
            .all(|it| it.1.metadata.owner_references.as_ref().is_none_or(Vec::is_empty))
    );
    delete(&world, "link0", PropagationPolicy::Background).await;
    let all = seen(world.within::<ConfigMap>(SPACE), "only they stay", |all| {
        !all.contains_key("link0")
    })
    .await;
    assert_eq!(all.keys().filter(|it| it.starts_with("child")).count(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_owner_that_stays_is_enough() {
    let world = World::start().await;
    let owners = [chain(&world, "a", None, 1).await, chain(&world, "b", None, 1).await].concat();
    map(&world, SPACE, "child", &[owned(&owners[0]), owned(&owners[1])]).await;
    delete(&world, "a0", PropagationPolicy::Foreground).await;
    let all = seen(world.within::<ConfigMap>(SPACE), "the first owner is gone", |all| {
        !all.contains_key("a0")
    })
    .await;
    let left = all["child"].metadata.owner_references.as_ref().unwrap();
    assert_eq!((left.len(), left[0].name.as_str()), (1, "b0"));
    delete(&world, "b0", PropagationPolicy::Background).await;
    gone(&world, "child").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_circle_does_not_wait_for_itself() {
    let world = World::start().await;
    let chain = chain(&world, "link", None, 3).await;
    let api: Api<ConfigMap> = world.within(SPACE);
    patch(
        &api,
        "link0",
        json!({ "metadata": { "ownerReferences": [owned(&chain[2])] } }),
    )
    .await;
    delete(&world, "link0", PropagationPolicy::Foreground).await;
    gone(&world, "link").await;
}

async fn widget(world: &World, name: &str) -> DynamicObject {
    world
        .create(json!({ "apiVersion": "example.com/v1", "kind": "Widget", "metadata": { "name": name, "namespace": SPACE } }))
        .await
}

async fn define_widgets(world: &World) {
    world
        .create(json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": { "name": "widgets.example.com" },
            "spec": {
                "group": "example.com", "scope": "Namespaced", "names": { "plural": "widgets", "kind": "Widget" },
                "versions": [{
                    "name": "v1", "served": true, "storage": true,
                    "schema": { "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } },
                }],
            },
        }))
        .await;
    let api: Api<CustomResourceDefinition> = world.all();
    await_condition(api, "widgets.example.com", conditions::is_crd_established())
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kinds_that_come_later_own_too() {
    let mut world = World::start().await;
    define_widgets(&world).await;
    let widget = widget(&world, "w").await;
    chain(&world, "part", Some(&widget), 3).await;
    let api = world.api_of(&widget);
    let options = DeleteParams::foreground();
    api.delete("w", &options).await.unwrap();
    gone(&world, "part").await;
    seen(api.clone(), "no widget", |all| !all.contains_key("w")).await;
    // The definition goes, and with it what its objects own; also over a restart.
    let widget = self::widget(&world, "v").await;
    chain(&world, "piece", Some(&widget), 3).await;
    world.pause().await;
    api.delete("v", &DeleteParams::background()).await.unwrap();
    world.resume();
    gone(&world, "piece").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_absent_or_distant_owner_has_goes() {
    let world = World::start().await;
    world.namespace("far").await;
    let distant = map(&world, "far", "owner", &[]).await;
    let near = map(&world, SPACE, "near", &[]).await;
    let mut wrong_uid = owned(&near);
    wrong_uid["uid"] = json!("00000000-0000-0000-0000-000000000000");
    map(&world, SPACE, "child-of-another", &[wrong_uid]).await;
    map(&world, SPACE, "child-of-distant", &[owned(&distant)]).await;
    gone(&world, "child").await;
    seen(world.within::<Event>(SPACE), "it is said", |all| {
        all.values()
            .any(|it| it.reason.as_deref() == Some("OwnerRefInvalidNamespace"))
    })
    .await;
    assert!(
        world
            .within::<ConfigMap>(SPACE)
            .get_opt("near")
            .await
            .unwrap()
            .is_some()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_in_the_middle_loses_nothing() {
    let mut world = World::start().await;
    for root in 0..4 {
        let head = chain(&world, &format!("r{root}-"), None, 6).await;
        for leaf in 0..5 {
            map(&world, SPACE, &format!("r{root}-leaf{leaf}"), &[owned(&head[5])]).await;
        }
    }
    delete(&world, "r0-0", PropagationPolicy::Foreground).await;
    delete(&world, "r1-0", PropagationPolicy::Background).await;
    world.restart().await;
    delete(&world, "r2-0", PropagationPolicy::Foreground).await;
    world.pause().await;
    delete(&world, "r3-5", PropagationPolicy::Orphan).await;
    world.resume();
    for prefix in ["r0-", "r1-", "r2-"] {
        gone(&world, prefix).await;
    }
    let all = seen(world.within::<ConfigMap>(SPACE), "freed", |all| {
        !all.contains_key("r3-5")
    })
    .await;
    assert_eq!(all.keys().filter(|it| it.starts_with("r3-leaf")).count(), 5);
}
