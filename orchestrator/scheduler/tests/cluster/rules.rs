//! What decides where a pod goes, and what people are told when it goes nowhere.

use crate::support::{Cluster, asks};
use kube::api::{Patch, PatchParams};
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_is_bound_and_people_are_told() {
    let mut cluster = Cluster::start().await;
    cluster.node("a", json!({})).await;
    assert_eq!(cluster.place("web", json!({})).await, "a");
    cluster
        .told("web", "Scheduled", "Successfully assigned default/web to a")
        .await;
    let pod = cluster.pods().get("web").await.unwrap();
    let conditions = pod.status.unwrap().conditions.unwrap();
    let scheduled = conditions.iter().find(|it| it.type_ == "PodScheduled").unwrap();
    assert_eq!(scheduled.status, "True");
    assert_eq!((cluster.metrics.scheduled(), cluster.metrics.malformed()), (1, 0));
    let mut registry = prometheus_client::registry::Registry::default();
    cluster.metrics.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    assert!(
        text.contains("scheduler_schedule_attempts_total{result=\"scheduled\"} 1"),
        "{text}"
    );
    cluster.stop_scheduler().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reasons_are_counted_by_node() {
    let cluster = Cluster::start().await;
    let message = {
        cluster.pod("early", json!({})).await;
        cluster.refused("early", "").await
    };
    assert_eq!(message, "no nodes available to schedule pods");
    let tainted = json!({ "spec": { "taints": [{ "key": "k", "effect": "NoSchedule" }] } });
    for name in ["a", "b", "c"] {
        cluster.node(name, tainted.clone()).await;
    }
    cluster.node("d", json!({ "spec": { "unschedulable": true } })).await;
    for name in ["e", "f"] {
        cluster.node(name, json!({})).await;
    }
    cluster.placed("early").await;
    cluster.heard_of("f").await;
    cluster.pod("big", asks(json!({ "cpu": "5", "memory": "9Gi" }))).await;
    let expected = "0/6 nodes are available: 1 node(s) were unschedulable, 2 Insufficient cpu, 2 Insufficient memory, \
                    3 node(s) had untolerated taint(s). preemption: 0/6 nodes are available: \
                    6 Preemption is not helpful for scheduling.";
    assert_eq!(cluster.refused("big", "").await, expected);
    cluster.told("big", "FailedScheduling", expected).await;
    let selects = json!({ "nodeSelector": { "disk": "ssd" } });
    cluster.pod("picky", selects).await;
    let message = cluster.refused("picky", "").await;
    assert!(
        message.contains("2 node(s) didn't match Pod's node affinity/selector"),
        "{message}"
    );
    // Somebody else's pod is not ours to judge, nor to place.
    cluster.pod("foreign", json!({ "schedulerName": "other" })).await;
    cluster.place("own", json!({})).await;
    let foreign = cluster.pods().get("foreign").await.unwrap();
    assert_eq!(foreign.spec.unwrap().node_name, None);
    assert!(cluster.metrics.unschedulable() >= 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_selected() {
    let cluster = Cluster::start().await;
    let labels = |zone: &str, size: &str| json!({ "metadata": { "labels": { "zone": zone, "size": size } } });
    cluster.node("a", labels("x", "1")).await;
    cluster.node("b", labels("x", "5")).await;
    cluster.node("c", labels("y", "9")).await;
    let required = |terms: serde_json::Value| {
        let required = json!({ "nodeSelectorTerms": terms });
        json!({ "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": required } } })
    };
    let expression = |key: &str, operator: &str, values: &[&str]| {
        let it = json!({ "key": key, "operator": operator, "values": values });
        required(json!([{ "matchExpressions": [it] }]))
    };
    for (at, (spec, node)) in [
        (json!({ "nodeSelector": { "zone": "y" } }), "c"),
        (expression("size", "Gt", &["5"]), "c"),
        (expression("size", "Lt", &["5"]), "a"),
        (expression("zone", "NotIn", &["x"]), "c"),
        (expression("zone", "In", &["y", "z"]), "c"),
        (
            required(json!([{ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["b"] }] }])),
            "b",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(cluster.place(&format!("p{at}"), spec).await, node, "{at}");
    }
    let preferred = json!([{ "weight": 100, "preference":
        { "matchExpressions": [{ "key": "zone", "operator": "Exists" }, { "key": "size", "operator": "In", "values": ["5"] }] } }]);
    let affinity = json!({ "nodeAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": preferred } });
    assert_eq!(cluster.place("drawn", json!({ "affinity": affinity })).await, "b");
    let nowhere = json!([{ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["gone"] }] }]);
    cluster.pod("lost", required(nowhere)).await;
    let message = cluster.refused("lost", "").await;
    assert!(
        message.starts_with("0/3 nodes are available: 3 node(s) didn't satisfy plugin(s) [NodeAffinity]."),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn taints_are_tolerated_or_not() {
    let cluster = Cluster::start().await;
    let taint = |effect: &str| json!({ "spec": { "taints": [{ "key": "k", "value": "v", "effect": effect }] } });
    cluster.node("soft", taint("PreferNoSchedule")).await;
    cluster.node("hard", taint("NoExecute")).await;
    cluster.node("plain", json!({})).await;
    cluster.heard_of("plain").await;
    for n in 0..4 {
        assert_eq!(cluster.place(&format!("p{n}"), json!({})).await, "plain");
    }
    let tolerates = json!({ "tolerations": [{ "key": "k", "operator": "Equal", "value": "v", "effect": "NoExecute" }],
        "nodeSelector": { "kubernetes.io/hostname": "hard" } });
    assert_eq!(cluster.place("tolerant", tolerates).await, "hard");
    let cordon = json!({ "spec": { "unschedulable": true } });
    cluster
        .nodes()
        .patch("plain", &PatchParams::default(), &Patch::Merge(&cordon))
        .await
        .unwrap();
    // The scheduler hears of nodes and pods by different watches: ask until it has heard.
    let mut n = 0;
    while cluster.place(&format!("q{n}"), json!({})).await == "plain" {
        n += 1;
    }
    assert_eq!(cluster.place("last", json!({})).await, "soft");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_and_resources_are_had_once() {
    let cluster = Cluster::start().await;
    let gpus = json!({ "status": { "allocatable": { "example.com/gpu": "2" } } });
    cluster.node("a", gpus).await;
    cluster.node("b", json!({})).await;
    let port = |address: &str| {
        let port = json!({ "containerPort": 80, "hostPort": 8080, "hostIP": address });
        json!({ "containers": [{ "name": "c", "image": "example.com/c:1", "ports": [port] }] })
    };
    let first = cluster.place("p0", port("192.168.0.1")).await;
    let second = cluster.place("p1", port("0.0.0.0")).await;
    assert_ne!(first, second);
    // Another address of the node that has one of its own.
    assert_eq!(cluster.place("p2", port("192.168.0.2")).await, first);
    cluster.pod("p3", port("")).await;
    let message = cluster.refused("p3", "").await;
    let expected = "0/2 nodes are available: 2 node(s) didn't have free ports for the requested pod ports. \
                    preemption: 0/2 nodes are available: 2 No preemption victims found for incoming pod.";
    assert_eq!(message, expected);
    let gpu = |count: &str| {
        let amounts = json!({ "example.com/gpu": count });
        json!({ "containers": [{ "name": "c", "image": "example.com/c:1",
            "resources": { "requests": amounts, "limits": amounts } }] })
    };
    assert_eq!(cluster.place("g0", gpu("2")).await, "a");
    cluster.pod("g1", gpu("1")).await;
    let message = cluster.refused("g1", "").await;
    assert!(
        message.starts_with("0/2 nodes are available: 2 Insufficient example.com/gpu."),
        "{message}"
    );
    cluster
        .node("tiny", json!({ "status": { "allocatable": { "pods": "1" } } }))
        .await;
    let to_tiny = json!({ "nodeSelector": { "kubernetes.io/hostname": "tiny" } });
    assert_eq!(cluster.place("t0", to_tiny.clone()).await, "tiny");
    cluster.pod("t1", to_tiny).await;
    cluster.refused("t1", "1 Too many pods").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_attract_and_repel() {
    let cluster = Cluster::start().await;
    let zone = |zone: &str| json!({ "metadata": { "labels": { "zone": zone } } });
    for (name, value) in [("a", "x"), ("b", "x"), ("c", "y")] {
        cluster.node(name, zone(value)).await;
    }
    cluster.namespace("other", json!({ "team": "t" })).await;
    let term = |app: &str, key: &str| json!({ "labelSelector": { "matchLabels": { "app": app } }, "topologyKey": key });
    let required = |kind: &str, term: serde_json::Value| json!({ "affinity": { kind: { "requiredDuringSchedulingIgnoredDuringExecution": [term] } } });
    let on = |name: &str| json!({ "nodeSelector": { "kubernetes.io/hostname": name } });
    cluster.labelled("db", json!({ "app": "db" }), on("c")).await;
    assert_eq!(cluster.placed("db").await, "c");
    assert_eq!(
        cluster.place("near", required("podAffinity", term("db", "zone"))).await,
        "c"
    );
    for n in 0..2 {
        let node = cluster
            .place(&format!("far{n}"), required("podAntiAffinity", term("db", "zone")))
            .await;
        assert_ne!(node, "c");
    }
    // The first of pods that want to be together.
    let together = required("podAffinity", term("ring", "kubernetes.io/hostname"));
    cluster
        .labelled("ring0", json!({ "app": "ring" }), together.clone())
        .await;
    let home = cluster.placed("ring0").await;
    cluster
        .labelled("ring1", json!({ "app": "ring" }), together.clone())
        .await;
    assert_eq!(cluster.placed("ring1").await, home);
    // Nobody like it, and it is none itself.
    cluster
        .pod("lonely", required("podAffinity", term("nobody", "zone")))
        .await;
    let message = cluster.refused("lonely", "").await;
    assert!(
        message.starts_with("0/3 nodes are available: 3 node(s) didn't match pod affinity rules."),
        "{message}"
    );
    // One per host, in both directions.
    let alone = required("podAntiAffinity", term("one", "kubernetes.io/hostname"));
    let mut homes = std::collections::BTreeSet::new();
    for n in 0..3 {
        cluster
            .labelled(&format!("one{n}"), json!({ "app": "one" }), alone.clone())
            .await;
        homes.insert(cluster.placed(&format!("one{n}")).await);
    }
    assert_eq!(homes.len(), 3);
    cluster.labelled("one3", json!({ "app": "one" }), json!({})).await;
    let message = cluster.refused("one3", "").await;
    assert!(
        message.contains("3 node(s) didn't satisfy existing pods anti-affinity rules."),
        "{message}"
    );
    cluster.pod("one4", alone).await;
    cluster
        .refused("one4", "3 node(s) didn't match pod anti-affinity rules")
        .await;
    // Across namespaces, by their labels.
    cluster
        .pod_in("other", "there", json!({ "app": "guest" }), on("b"))
        .await;
    let mut by_namespace = term("guest", "kubernetes.io/hostname");
    by_namespace["namespaceSelector"] = json!({ "matchLabels": { "team": "t" } });
    assert_eq!(cluster.place("host", required("podAffinity", by_namespace)).await, "b");
    // Preferred.
    let weighted = json!([{ "weight": 100, "podAffinityTerm": term("db", "kubernetes.io/hostname") }]);
    let preferred =
        |kind: &str| json!({ "affinity": { kind: { "preferredDuringSchedulingIgnoredDuringExecution": weighted } } });
    assert_eq!(cluster.place("drawn", preferred("podAffinity")).await, "c");
    assert_ne!(cluster.place("driven", preferred("podAntiAffinity")).await, "c");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_spread() {
    let cluster = Cluster::start().await;
    let zone = |zone: &str| json!({ "metadata": { "labels": { "zone": zone } } });
    for (name, value) in [("a", "x"), ("b", "x"), ("c", "y")] {
        cluster.node(name, zone(value)).await;
    }
    cluster.heard_of("c").await;
    let spread = |key: &str, more: serde_json::Value| {
        let mut constraint = json!({ "maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": { "matchLabels": { "app": "s" } } });
        crate::support::merge(&mut constraint, more);
        json!({ "topologySpreadConstraints": [constraint] })
    };
    let labels = json!({ "app": "s" });
    let mut homes = std::collections::BTreeMap::<String, usize>::new();
    for n in 0..6 {
        let name = format!("s{n}");
        cluster.labelled(&name, labels.clone(), spread("zone", json!({}))).await;
        *homes.entry(cluster.placed(&name).await).or_default() += 1;
    }
    assert_eq!(homes["c"], 3, "{homes:?}");
    cluster
        .labelled("few", labels.clone(), spread("zone", json!({ "minDomains": 3 })))
        .await;
    let message = cluster.refused("few", "").await;
    assert!(
        message.contains("3 node(s) didn't match pod topology spread constraints."),
        "{message}"
    );
    cluster
        .labelled("bare", labels.clone(), spread("rack", json!({})))
        .await;
    cluster.refused("bare", "(missing required label)").await;
    // By revision: other revisions do not count.
    let by_revision = spread("kubernetes.io/hostname", json!({ "matchLabelKeys": ["rev"] }));
    let mut homes = std::collections::BTreeSet::new();
    for n in 0..3 {
        let name = format!("r{n}");
        cluster
            .labelled(&name, json!({ "app": "s", "rev": "2" }), by_revision.clone())
            .await;
        homes.insert(cluster.placed(&name).await);
    }
    assert_eq!(homes.len(), 3);
    // Rather than must: what does not fit goes somewhere nevertheless.
    let rather = spread(
        "kubernetes.io/hostname",
        json!({ "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": { "matchLabels": { "app": "soft" } } }),
    );
    let mut homes = std::collections::BTreeSet::new();
    for n in 0..3 {
        let name = format!("soft{n}");
        cluster.labelled(&name, json!({ "app": "soft" }), rather.clone()).await;
        homes.insert(cluster.placed(&name).await);
    }
    assert_eq!(homes.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_cannot_be_meant_hurts_only_itself() {
    let cluster = Cluster::start().await;
    cluster.node("a", json!({})).await;
    let bad = json!({ "nodeSelectorTerms": [{ "matchExpressions": [{ "key": "k", "operator": "Gt", "values": ["many"] }] }] });
    let spec = json!({ "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": bad } } });
    let pod = serde_json::from_value(crate::support::pod("bad", json!({}), spec)).unwrap();
    // An API server may refuse such a pod; then there is nothing to judge.
    if cluster.pods().create(&Default::default(), &pod).await.is_ok() {
        let message = cluster.refused("bad", "").await;
        assert!(message.contains("needs one whole number"), "{message}");
    }
    assert_eq!(cluster.place("good", json!({})).await, "a");
}
