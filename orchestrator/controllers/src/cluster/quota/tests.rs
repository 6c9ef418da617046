//! What objects cost, and how amounts are written.

use super::{
    amount::Amount,
    cost::{Content, counted, used},
};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, Service};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::Arc;

#[test]
fn amounts_are_written_as_the_api_writes_them() {
    let table = [
        ("500m", "500m"),
        ("1000m", "1"),
        ("0.5", "500m"),
        ("1.5Gi", "1536Mi"),
        ("1024Ki", "1Mi"),
        ("1000Ki", "1000Ki"),
        ("512Ki", "512Ki"),
        ("1e3", "1e3"),
        ("12e-3", "12e-3"),
        ("0", "0"),
        ("-5", "-5"),
        ("1000000", "1M"),
        ("0.1n", "1n"),
        ("1Ei", "1Ei"),
        ("12", "12"),
        ("+3k", "3k"),
    ];
    for (text, wanted) in table {
        assert_eq!(
            Amount::parse(text).map(|it| it.to_string()).as_deref(),
            Some(wanted),
            "{text}"
        );
    }
    for odd in [
        "",
        "m",
        "1.2.3",
        "1x",
        "e",
        "1e",
        "- 1",
        "99999999999999999999999999999999999999Ei",
    ] {
        assert_eq!(Amount::parse(odd), None, "{odd}");
    }
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,12}") {
        let _ = Amount::parse(&text);
    }

    #[test]
    fn what_is_written_is_read_again(number in 0u64..1 << 50, suffix in prop::sample::select(vec!["", "m", "n", "k", "Ki", "Mi", "G"])) {
        let amount = Amount::parse(&format!("{number}{suffix}")).unwrap();
        let again = Amount::parse(&amount.to_string()).unwrap();
        prop_assert_eq!(amount.to_string(), again.to_string());
    }
}

#[allow(clippy::needless_pass_by_value, reason = "cases are written where they are used")]
fn pod(spec: Value, phase: &str) -> Arc<Pod> {
    Arc::new(serde_json::from_value(json!({ "metadata": {}, "spec": spec, "status": { "phase": phase } })).unwrap())
}

fn container(requests: &[(&str, &str)], more: &[(&str, &str)]) -> Value {
    let requests: serde_json::Map<String, Value> = requests.iter().map(|it| (it.0.to_owned(), json!(it.1))).collect();
    let mut container = json!({ "name": "c", "resources": { "requests": requests, "limits": requests } });
    for (name, value) in more {
        container[*name] = json!(value);
    }
    container
}

fn quota(hard: &[&str], scopes: &[&str]) -> ResourceQuota {
    let hard: serde_json::Map<String, Value> = hard.iter().map(|it| ((*it).to_owned(), json!("10"))).collect();
    serde_json::from_value(json!({ "metadata": {}, "spec": { "hard": hard, "scopes": scopes } })).unwrap()
}

fn found(quota: &ResourceQuota, content: &Content) -> Value {
    json!(used(quota, content, |(group, plural)| if group.is_empty() {
        plural.len()
    } else {
        2
    }))
}

#[test]
fn pods_cost_their_peak() {
    let two = container(&[("cpu", "250m"), ("memory", "64Mi")], &[]);
    let init = container(&[("cpu", "1")], &[]);
    let sidecar = container(&[("cpu", "100m")], &[("restartPolicy", "Always")]);
    let content = Content {
        pods: vec![
            pod(
                json!({ "containers": [two, two], "initContainers": [sidecar, init] }),
                "Running",
            ),
            pod(
                json!({ "containers": [two], "overhead": { "cpu": "50m", "memory": "1Mi" } }),
                "Pending",
            ),
            pod(json!({ "containers": [two] }), "Succeeded"),
        ],
        ..Content::default()
    };
    let hard = [
        "pods",
        "count/pods",
        "cpu",
        "requests.cpu",
        "limits.memory",
        "requests.example.com/gpu",
    ];
    let wanted = json!({
        "pods": "2", "count/pods": "3", "cpu": "1400m", "requests.cpu": "1400m", "limits.memory": "193Mi", "requests.example.com/gpu": "0",
    });
    assert_eq!(found(&quota(&hard, &[]), &content), wanted);
}

#[test]
fn scopes_choose_pods() {
    let content = Content {
        pods: vec![
            pod(json!({ "containers": [{ "name": "c" }] }), "Running"),
            pod(
                json!({ "containers": [container(&[("cpu", "1")], &[])], "activeDeadlineSeconds": 5 }),
                "Running",
            ),
            pod(json!({ "containers": [container(&[("cpu", "1")], &[])] }), "Running"),
        ],
        ..Content::default()
    };
    let table = [
        (&[][..], "3"),
        (&["BestEffort"], "1"),
        (&["NotBestEffort"], "2"),
        (&["Terminating"], "1"),
        (&["NotBestEffort", "NotTerminating"], "1"),
        (&["Unheard"], "0"),
    ];
    for (scopes, wanted) in table {
        assert_eq!(
            found(&quota(&["pods"], scopes), &content),
            json!({ "pods": wanted }),
            "{scopes:?}"
        );
    }
}

#[test]
fn services_claims_and_counts() {
    let service = |spec: Value| -> Arc<Service> {
        Arc::new(serde_json::from_value(json!({ "metadata": {}, "spec": spec })).unwrap())
    };
    let claim: PersistentVolumeClaim = serde_json::from_value(json!({
        "metadata": {}, "spec": { "storageClassName": "fast", "resources": { "requests": { "storage": "5Gi" } } },
    }))
    .unwrap();
    let content = Content {
        services: vec![
            service(json!({ "type": "ClusterIP", "ports": [{ "port": 1 }] })),
            service(json!({ "type": "NodePort", "ports": [{ "port": 1 }, { "port": 2 }] })),
            service(json!({ "type": "LoadBalancer", "ports": [{ "port": 1 }] })),
        ],
        claims: vec![Arc::new(claim)],
        ..Content::default()
    };
    let hard = [
        "services",
        "services.nodeports",
        "services.loadbalancers",
        "requests.storage",
        "fast.storageclass.storage.k8s.io/requests.storage",
        "secrets",
        "count/deployments.apps",
    ];
    let wanted = json!({
        "services": "3", "services.nodeports": "3", "services.loadbalancers": "1", "requests.storage": "5Gi",
        "fast.storageclass.storage.k8s.io/requests.storage": "5Gi", "secrets": "7", "count/deployments.apps": "2",
    });
    assert_eq!(found(&quota(&hard, &[]), &content), wanted);
    assert_eq!(counted("count/pods"), None);
    assert_eq!(
        counted("count/widgets.example.com"),
        Some(("example.com".to_owned(), "widgets".to_owned()))
    );
}
