//! Certificates of kubelets, budgets of pods, and pods that nobody ends.

use crate::world::{World, patch_status, seen};
use fairlead_controllers::cluster::AuthorityPem;
use k8s_openapi::{
    ByteString,
    api::{
        apps::v1::ReplicaSet,
        certificates::v1::CertificateSigningRequest,
        core::v1::{Pod, Secret},
        policy::v1::PodDisruptionBudget,
    },
};
use kube::{
    Api,
    api::{DeleteParams, EvictParams, PostParams},
};
use serde_json::json;
use std::time::Duration;

fn request(name: &str, signer: &str, usage: &str, sans: &[&str]) -> CertificateSigningRequest {
    let mut params = rcgen::CertificateParams::new(sans.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>()).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "system:node:n1");
    params
        .distinguished_name
        .push(rcgen::DnType::OrganizationName, "system:nodes");
    let key = rcgen::KeyPair::generate().unwrap();
    let pem = params.serialize_request(&key).unwrap().pem().unwrap();
    let mut request: CertificateSigningRequest = serde_json::from_value(json!({
        "metadata": { "name": name }, "spec": { "signerName": signer, "usages": ["digital signature", usage], "request": "" },
    }))
    .unwrap();
    request.spec.request = ByteString(pem.into_bytes());
    request
}

fn certificate(request: &CertificateSigningRequest) -> Option<String> {
    let bytes = request.status.as_ref()?.certificate.as_ref()?;
    Some(String::from_utf8(bytes.0.clone()).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_get_their_certificates() {
    let mut authority = String::new();
    let world = World::with(|config, pki| {
        let read = |name: &str| std::fs::read_to_string(pki.join(name)).unwrap();
        authority = read("ca.crt");
        config.cluster.authority = Some(AuthorityPem {
            certificate: authority.clone(),
            key: read("ca.key"),
        });
    })
    .await;
    world
        .create(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" },
            "status": { "addresses": [{ "type": "InternalIP", "address": "192.168.0.1" }] },
        }))
        .await;
    world
        .create(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": { "name": "self" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient" },
            "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:nodes" }],
        }))
        .await;
    let node = world.client_of("system:node:n1", &["system:nodes"]);
    let asked: Api<CertificateSigningRequest> = Api::all(node);
    const CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
    const SERVING: &str = "kubernetes.io/kubelet-serving";
    for request in [
        request("client", CLIENT, "client auth", &[]),
        request("serving", SERVING, "server auth", &["n1", "192.168.0.1"]),
        request("foreign", SERVING, "server auth", &["n1", "192.168.0.2"]),
    ] {
        asked.create(&PostParams::default(), &request).await.unwrap();
    }
    let requests: Api<CertificateSigningRequest> = world.all();
    let all = seen(requests.clone(), "certificates", |all| {
        ["client", "serving"]
            .iter()
            .all(|it| all.get(*it).is_some_and(|it| certificate(it).is_some()))
    })
    .await;
    let pem = certificate(&all["serving"]).unwrap();
    let (_, parsed) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
    let parsed = parsed.parse_x509().unwrap();
    let (_, authority) = x509_parser::pem::parse_x509_pem(authority.as_bytes()).unwrap();
    let authority = authority.parse_x509().unwrap();
    parsed.verify_signature(Some(authority.public_key())).unwrap();
    assert!(certificate(&all["foreign"]).is_none());
    // Its node has the address after all.
    let nodes: Api<k8s_openapi::api::core::v1::Node> = world.all();
    patch_status(
        &nodes,
        "n1",
        json!({ "status": { "addresses": [{ "type": "InternalIP", "address": "192.168.0.2" }] } }),
    )
    .await;
    seen(requests.clone(), "the third", |all| {
        certificate(&all["foreign"]).is_some()
    })
    .await;
    world.clock().advance(Duration::from_secs(3700));
    seen(requests, "all are over", std::collections::BTreeMap::is_empty).await;
}

async fn pod(world: &World, name: &str, owner: Option<&kube::core::DynamicObject>, node: Option<&str>, phase: &str) {
    let owners: Vec<_> = owner
        .iter()
        .map(|it| json!({ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": it.metadata.name, "uid": it.metadata.uid, "controller": true }))
        .collect();
    world
        .create(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "namespace": "default", "labels": { "app": "web" }, "ownerReferences": owners },
            "spec": { "nodeName": node, "containers": [{ "name": "c", "image": "i" }] },
            "status": { "phase": phase, "conditions": [{ "type": "Ready", "status": "True" }] },
        }))
        .await;
}

async fn account(world: &World) {
    let accounts = world.within::<k8s_openapi::api::core::v1::ServiceAccount>("default");
    seen(accounts, "the account", |all| all.contains_key("default")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn budgets_say_how_many_may_go() {
    let world = World::start().await;
    account(&world).await;
    world
        .create(json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" } }))
        .await;
    for number in 0..3 {
        pod(&world, &format!("p{number}"), None, Some("n1"), "Running").await;
    }
    world
        .create(json!({
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": { "name": "b", "namespace": "default" },
            "spec": { "minAvailable": 2, "selector": { "matchLabels": { "app": "web" } } },
        }))
        .await;
    let budgets: Api<PodDisruptionBudget> = world.within("default");
    let allowed = |it: Option<&PodDisruptionBudget>| {
        let status = it.and_then(|it| it.status.clone()).unwrap_or_default();
        (status.disruptions_allowed, status.current_healthy, status.expected_pods)
    };
    seen(budgets.clone(), "one may go", |all| {
        allowed(all.get("b")) == (Some(1), Some(3), Some(3))
    })
    .await;
    let pods: Api<Pod> = world.within("default");
    pods.evict("p0", &EvictParams::default()).await.unwrap();
    let refused = pods.evict("p1", &EvictParams::default()).await;
    assert!(
        matches!(&refused, Err(kube::Error::Api(it)) if it.code == 429),
        "{refused:?}"
    );
    seen(budgets.clone(), "none may go", |all| {
        let status = all["b"].status.clone().unwrap_or_default();
        allowed(all.get("b")) == (Some(0), Some(2), Some(3)) && status.disrupted_pods.is_none()
    })
    .await;
    // Ended by its kubelet, and another is there.
    pods.delete("p0", &DeleteParams::default().grace_period(0))
        .await
        .unwrap();
    pod(&world, "p3", None, Some("n1"), "Running").await;
    seen(budgets, "one may go again", |all| {
        allowed(all.get("b")) == (Some(1), Some(3), Some(3))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn budgets_count_what_controllers_want() {
    let mut world = World::start().await;
    account(&world).await;
    // Its own controller would make pods: it stands still meanwhile.
    world.pause().await;
    let set = world
        .create(json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": { "name": "rs", "namespace": "default" },
            "spec": {
                "replicas": 4, "selector": { "matchLabels": { "app": "web" } },
                "template": { "metadata": { "labels": { "app": "web" } }, "spec": { "containers": [{ "name": "c", "image": "i" }] } },
            },
        }))
        .await;
    world
        .create(json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" } }))
        .await;
    for number in 0..4 {
        pod(&world, &format!("p{number}"), Some(&set), Some("n1"), "Running").await;
    }
    world
        .create(json!({
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": { "name": "b", "namespace": "default" },
            "spec": { "maxUnavailable": "50%", "selector": { "matchLabels": { "app": "web" } } },
        }))
        .await;
    world.resume();
    let status = |it: Option<&PodDisruptionBudget>| {
        let status = it.and_then(|it| it.status.clone()).unwrap_or_default();
        (status.expected_pods, status.desired_healthy, status.disruptions_allowed)
    };
    let budgets: Api<PodDisruptionBudget> = world.within("default");
    seen(budgets, "half of four", |all| {
        status(all.get("b")) == (Some(4), Some(2), Some(2))
    })
    .await;
    let sets: Api<ReplicaSet> = world.within("default");
    assert_eq!(sets.get("rs").await.unwrap().spec.unwrap().replicas, Some(4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_nobody_ends_are_ended() {
    let world = World::with(|config, _| config.cluster.terminated_pods = 2).await;
    account(&world).await;
    for name in ["n1", "n2"] {
        world
            .create(json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } }))
            .await;
    }
    pod(&world, "of-n1", None, Some("n1"), "Running").await;
    pod(&world, "of-n2", None, Some("n2"), "Running").await;
    pod(&world, "held", None, None, "Pending").await;
    let pods: Api<Pod> = world.within("default");
    crate::world::patch(
        &pods,
        "held",
        json!({ "metadata": { "finalizers": ["example.com/hold"] } }),
    )
    .await;
    pods.delete("held", &DeleteParams::default()).await.unwrap();
    crate::world::patch(&pods, "held", json!({ "metadata": { "finalizers": null } })).await;
    seen(pods.clone(), "never bound, gone", |all| !all.contains_key("held")).await;
    let nodes: Api<k8s_openapi::api::core::v1::Node> = world.all();
    nodes.delete("n1", &DeleteParams::default()).await.unwrap();
    // Whether it has noticed already or not: the quarantine is over only after both.
    for _ in 0..2 {
        world.clock().advance(Duration::from_secs(41));
        let nodes = world.all::<k8s_openapi::api::core::v1::Node>();
        seen(nodes, "one node", |all| all.len() == 1).await;
    }
    for number in 0..5 {
        pod(&world, &format!("ended{number}"), None, Some("n2"), "Succeeded").await;
    }
    world.clock().advance(Duration::from_secs(60));
    let all = seen(pods, "two of the ended stay", |all| {
        !all.contains_key("of-n1") && all.keys().filter(|it| it.starts_with("ended")).count() == 2
    })
    .await;
    assert!(all.contains_key("of-n2"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_deleted_when_they_expire() {
    let world = World::start().await;
    for (name, seconds) in [("bootstrap-token-aaaaaa", 100), ("bootstrap-token-bbbbbb", 1000)] {
        let at = world.clock().now() + jiff::SignedDuration::from_secs(seconds);
        world
            .create(json!({
                "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
                "metadata": { "name": name, "namespace": "kube-system" },
                "stringData": { "token-id": &name[16..], "token-secret": "0123456789abcdef", "expiration": at.to_string() },
            }))
            .await;
    }
    let secrets: Api<Secret> = world.within("kube-system");
    world.clock().advance(Duration::from_secs(200));
    let all = seen(secrets.clone(), "one is over", |all| {
        !all.contains_key("bootstrap-token-aaaaaa")
    })
    .await;
    assert!(all.contains_key("bootstrap-token-bbbbbb"));
    world.clock().advance(Duration::from_secs(1000));
    seen(secrets, "both are over", |all| {
        !all.contains_key("bootstrap-token-bbbbbb")
    })
    .await;
}
