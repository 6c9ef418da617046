//! Three machines: a server with a node of its own, and two that join by token.

use crate::{client, in_client, server, text};
use harness::{Cluster, Topology};

#[test]
fn nodes_join_by_token_and_pods_reach_each_other_across_them() {
    let topology = Topology::standard(3, 0).unwrap();
    let cluster = Cluster::start(&topology, topology.node("node-a"), &[]).unwrap();
    let token = cluster.token();
    let wrong = format!("fairlead.{}{}", "0".repeat(64), &token[token.find('.').unwrap() + 65..]);
    let refused = cluster.try_join(&topology, topology.node("node-b"), &wrong);
    let refused = format!("{:#}", refused.expect_err("a server with another CA is not believed"));
    assert!(refused.contains("is not the one that --token is for"), "{refused}");
    for name in ["node-b", "node-c"] {
        cluster.try_join(&topology, topology.node(name), &token).unwrap();
    }
    let nodes = cluster.kubectl(&["get", "nodes", "--no-headers"]);
    assert_eq!(nodes.matches(" Ready ").count(), 3, "{nodes}");

    client(&cluster);
    server(&cluster, "web", 6);
    let pods = cluster.get("pods -l app=web");
    let on = |node: &str| {
        let pods = pods["items"].as_array().unwrap().iter();
        pods.filter(|it| text(it, "/spec/nodeName") == node).count()
    };
    assert!(
        ["node-a", "node-b", "node-c"].iter().all(|it| on(it) >= 1),
        "spread over all nodes"
    );
    for pod in pods["items"].as_array().unwrap() {
        let url = format!("http://{}:8080/", text(pod, "/status/podIP"));
        assert_eq!(
            in_client(&cluster, &["get", &url]),
            text(pod, "/metadata/name"),
            "straight to a pod"
        );
    }
    let counted = in_client(&cluster, &["load", "http://web/", "--seconds", "2"]);
    let counted: serde_json::Value = serde_json::from_str(&counted).unwrap();
    assert_eq!(
        (&counted["failed"], counted["by"].as_object().unwrap().len()),
        (&0.into(), 6),
        "{counted}"
    );
    // Names and streams work in pods of every node.
    for node in ["node-b", "node-c"] {
        let pod = pods["items"]
            .as_array()
            .unwrap()
            .iter()
            .find(|it| text(it, "/spec/nodeName") == node)
            .unwrap();
        let name = text(pod, "/metadata/name");
        let answer = cluster.kubectl(&["exec", name, "--", "testbox", "get", "http://web.default/"]);
        assert!(answer.starts_with("web-"), "{node}: {answer}");
    }
}
