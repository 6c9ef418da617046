//! What everybody does first: run something, reach it, take everything down.

use harness::{Cluster, Topology, cluster::IMAGE};

#[test]
fn a_deployment_is_reached_by_its_service_from_pods_and_from_the_node() {
    let topology = Topology::standard(1, 0).unwrap();
    let cluster = Cluster::start(&topology, topology.node("node-a"), &[]).unwrap();
    cluster.kubectl(&[
        "create",
        "deployment",
        "web",
        "--image",
        IMAGE,
        "--replicas=2",
        "--",
        "testbox",
        "serve",
    ]);
    cluster.kubectl(&["expose", "deployment", "web", "--port=80", "--target-port=8080"]);
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let service = cluster.get("service web");
    let address = service["spec"]["clusterIP"].as_str().unwrap();
    let url = format!("http://{address}/");
    cluster.kubectl(&["run", "client", "--image", IMAGE, "--", "testbox", "sleep", "3600"]);
    cluster.wait_ready("pod/client");
    let from_pod = cluster.kubectl(&["exec", "client", "--", "testbox", "get", &url]);
    assert!(from_pod.starts_with("web-"), "{from_pod}");
    let from_node = cluster
        .node
        .actor
        .run("curl", &["-sS", "--max-time", "5", &url], "")
        .unwrap();
    assert!(from_node.stdout.starts_with("web-"), "{from_node:?}");
}
