//! What pods ask for.

use crate::making::pod;
use serde_json::{Value, json};

fn container(name: &str, cpu: &str) -> Value {
    json!({ "name": name, "resources": { "requests": { "cpu": cpu, "memory": "1Mi" } } })
}

fn sidecar(name: &str, cpu: &str) -> Value {
    let mut it = container(name, cpu);
    it["restartPolicy"] = json!("Always");
    it
}

#[test]
fn containers_are_added_up_as_they_run() {
    for (why, spec, cpu) in [
        (
            "a sum",
            json!({ "containers": [container("a", "1"), container("b", "500m")] }),
            1500,
        ),
        (
            "an init container needs more than all that run later",
            json!({ "containers": [container("a", "1")], "initContainers": [container("i", "3"), container("j", "2")] }),
            3000,
        ),
        (
            "sidecars run with the rest",
            json!({ "containers": [container("a", "1")], "initContainers": [sidecar("s", "2")] }),
            3000,
        ),
        (
            "an init container runs beside the sidecars before it, not beside those after it",
            json!({ "containers": [container("a", "1")],
                "initContainers": [sidecar("s", "1"), container("i", "4"), sidecar("t", "1")] }),
            5000,
        ),
        (
            "and a sidecar beside what was started before it",
            json!({ "containers": [container("a", "100m")],
                "initContainers": [container("i", "1"), sidecar("s", "1"), sidecar("t", "1")] }),
            2100,
        ),
        (
            "overhead",
            json!({ "containers": [container("a", "1")], "overhead": { "cpu": "250m" } }),
            1250,
        ),
        (
            "an amount of the pod replaces that of its containers",
            json!({ "containers": [container("a", "1")], "resources": { "requests": { "cpu": "3" } },
                "overhead": { "cpu": "250m" } }),
            3250,
        ),
    ] {
        let pod = pod("p", json!({}), spec);
        assert_eq!(pod.faults, Vec::<String>::new());
        assert_eq!(pod.resources.requests.cpu, cpu, "{why}");
    }
}

#[test]
fn what_is_not_asked_for_counts_in_scores_only() {
    let pod = pod(
        "p",
        json!({}),
        json!({ "containers": [{ "name": "a" }, container("b", "1")] }),
    );
    assert_eq!(pod.resources.requests.cpu, 1000);
    assert_eq!(pod.resources.usual, (1100, (200 << 20) + (1 << 20)));
}

#[test]
fn a_container_that_is_resized_counts_for_the_larger() {
    let object = json!({
        "metadata": { "name": "p" },
        "spec": { "containers": [container("a", "1")], "nodeName": "n" },
        "status": { "containerStatuses": [{ "name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 0,
            "allocatedResources": { "cpu": "3" } }] },
    });
    let pod = fairlead_scheduler::pod::PodInfo::read(&serde_json::from_value(object).unwrap());
    assert_eq!(pod.resources.requests.cpu, 3000);
}

#[test]
fn what_cannot_be_read_is_named() {
    let affinity = |operator: &str, values: &[&str]| {
        let terms = json!([{ "matchExpressions": [{ "key": "k", "operator": operator, "values": values }] }]);
        json!({ "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution":
            { "nodeSelectorTerms": terms } } } })
    };
    for (spec, words) in [
        (
            json!({ "containers": [container("a", "lots")] }),
            "requests[cpu]: \"lots\" is no amount",
        ),
        (json!({ "containers": [container("a", "-1")] }), "is no amount"),
        (affinity("Gt", &["x"]), "needs one whole number"),
        (affinity("Gt", &["1", "2"]), "needs one whole number"),
        (affinity("In", &[]), "needs values"),
        (affinity("Exists", &["x"]), "must have no values"),
        (affinity("Like", &["x"]), "\"Like\" is no operator"),
        (
            json!({ "topologySpreadConstraints": [{ "maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "Perhaps" }] }),
            "\"Perhaps\" is neither",
        ),
        (
            json!({ "topologySpreadConstraints": [{ "maxSkew": 0, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule" }] }),
            "needs a maxSkew",
        ),
        (
            json!({ "containers": [{ "name": "a", "ports": [{ "containerPort": 1, "hostPort": 70000 }] }] }),
            "70000 is no port",
        ),
    ] {
        let pod = pod("p", json!({}), spec.clone());
        assert!(
            pod.faults.iter().any(|it| it.contains(words)),
            "{spec}: {:?}",
            pod.faults
        );
    }
}
