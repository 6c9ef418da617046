//! Addresses of Services of type LoadBalancer.

use crate::world::{World, patch, patch_status, seen};
use fairlead_controllers::cluster::AddressPool;
use k8s_openapi::api::core::v1::{Event, Service};
use kube::{Api, api::DeleteParams};
use serde_json::json;
use std::collections::BTreeMap;

async fn service(world: &World, name: &str) {
    world
        .create(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "default" },
            "spec": { "type": "LoadBalancer", "ipFamilyPolicy": "PreferDualStack", "ports": [{ "port": 80 }] },
        }))
        .await;
}

fn shown(service: Option<&Service>) -> Vec<String> {
    let balancer = service
        .and_then(|it| it.status.as_ref())
        .and_then(|it| it.load_balancer.clone());
    let all = balancer.and_then(|it| it.ingress).unwrap_or_default();
    assert!(all.iter().all(|it| it.ip_mode.as_deref() == Some("VIP")));
    all.into_iter().filter_map(|it| it.ip).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_come_from_the_pool_and_go_back() {
    let mut world = World::with(|config, _| {
        let ranges = ["192.0.2.0/30", "2001:db8::/120"].map(|it| it.parse().unwrap());
        config.cluster.load_balancers = AddressPool::Ranges(ranges.to_vec());
    })
    .await;
    let services: Api<Service> = world.within("default");
    for name in ["a", "b"] {
        service(&world, name).await;
    }
    let both = |all: &BTreeMap<String, Service>| ["a", "b"].iter().all(|it| shown(all.get(*it)).len() == 2);
    let all = seen(services.clone(), "addresses", both).await;
    assert_ne!(shown(all.get("a")), shown(all.get("b")));
    let held = all["a"].metadata.finalizers.clone().unwrap_or_default();
    assert_eq!(held, ["service.kubernetes.io/load-balancer-cleanup"]);
    let of_a = shown(all.get("a"));
    world.restart().await;
    // The IPv4 range has two addresses.
    service(&world, "c").await;
    let events: Api<Event> = world.within("default");
    seen(events, "it is said", |all| {
        all.values()
            .any(|it| it.reason.as_deref() == Some("SyncLoadBalancerFailed"))
    })
    .await;
    services.delete("a", &DeleteParams::default()).await.unwrap();
    seen(services.clone(), "c has what a had", |all| {
        !all.contains_key("a") && shown(all.get("c"))[..] == of_a[..]
    })
    .await;
    // Two show the same, which a mended store may bring: one is given something else.
    world.pause().await;
    let all = services.get("b").await.unwrap();
    let stolen =
        json!({ "status": { "loadBalancer": { "ingress": [{ "ip": shown(Some(&all))[0], "ipMode": "VIP" }] } } });
    patch_status(&services, "c", stolen).await;
    world.resume();
    let all = seen(services.clone(), "different again", |all| {
        shown(all.get("c")).len() == 2 && shown(all.get("b")).len() == 2
    })
    .await;
    assert!(shown(all.get("c")).iter().all(|it| !shown(all.get("b")).contains(it)));
    // No longer a load balancer: nothing is shown, nothing is held.
    let plain = json!({ "type": "ClusterIP", "externalTrafficPolicy": null, "allocateLoadBalancerNodePorts": null });
    patch(&services, "b", json!({ "spec": plain })).await;
    seen(services, "released", |all| {
        shown(all.get("b")).is_empty() && all["b"].metadata.finalizers.as_ref().is_none_or(Vec::is_empty)
    })
    .await;
}
