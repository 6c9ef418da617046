//! Deployments under load: nobody who asks through the Service notices what is done to its pods.

use crate::{client, one_node, rolled_out, server, text};
use harness::Cluster;
use serde_json::Value;

#[test]
fn a_deployment_is_changed_in_every_way_without_a_failed_request() {
    let topology = one_node();
    let cluster = Cluster::start(&topology, topology.node("node-a"), &[]).unwrap();
    server(&cluster, "web", 3);
    client(&cluster);
    // In the background of the pod, until it is told to end.
    let load = "testbox load http://web/ --seconds 600 --clients 2 --pause 5 > /tmp/load 2>&1 & echo $! > /tmp/pid";
    cluster.kubectl(&["exec", "client", "--", "sh", "-c", load]);

    cluster.kubectl(&["scale", "deployment", "web", "--replicas=4"]);
    rolled_out(&cluster, "web");
    let pods = cluster.get("pods -l app=web");
    assert_eq!(pods["items"].as_array().unwrap().len(), 4);

    let gone = text(&pods, "/items/0/metadata/name").to_owned();
    cluster.kubectl(&["delete", "pod", &gone]);
    cluster
        .until("a deleted pod is replaced", || {
            let pods = cluster.get("pods -l app=web");
            let ready = pods["items"].as_array().unwrap().iter().filter(|pod| {
                let conditions = pod["status"]["conditions"].as_array();
                conditions.is_some_and(|it| it.iter().any(|it| it["type"] == "Ready" && it["status"] == "True"))
            });
            let names: Vec<&str> = ready.map(|it| text(it, "/metadata/name")).collect();
            Ok((names.len() == 4 && !names.contains(&gone.as_str())).then_some(()))
        })
        .unwrap();

    cluster.kubectl(&["set", "env", "deployment/web", "VERSION=2"]);
    rolled_out(&cluster, "web");
    let version = |cluster: &Cluster<'_>| {
        let path = "{.spec.template.spec.containers[0].env[0].value}";
        cluster.kubectl(&["get", "deployment", "web", "-o", &format!("jsonpath={path}")])
    };
    assert_eq!(version(&cluster), "2");
    cluster.kubectl(&["rollout", "undo", "deployment/web"]);
    rolled_out(&cluster, "web");
    assert_eq!(version(&cluster), "");
    let history = cluster.kubectl(&["rollout", "history", "deployment/web"]);
    assert!(history.lines().any(|line| line.starts_with('3')), "{history}");

    let end = "kill $(cat /tmp/pid); until [ -s /tmp/load ]; do sleep 0.1; done; cat /tmp/load";
    let counted = cluster.kubectl(&["exec", "client", "--", "sh", "-c", end]);
    let counted: Value = serde_json::from_str(&counted).unwrap_or_else(|error| panic!("{error}: {counted}"));
    assert_eq!(counted["failed"], 0, "{counted}");
    assert!(counted["ok"].as_u64().unwrap() > 100, "{counted}");
    // Before, between and after: at least the pods of three generations have answered.
    assert!(counted["by"].as_object().unwrap().len() >= 9, "{counted}");
}
