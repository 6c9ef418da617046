//! Jobs, sets, nodes that are emptied, users that may little, namespaces that go.

use crate::{client, one_node, text};
use harness::{Cluster, cluster::IMAGE};

const SETS: &str = r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: everywhere}
spec:
  selector: {matchLabels: {app: everywhere}}
  template:
    metadata: {labels: {app: everywhere}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: main, image: "fairlead.dev/testbox:1"}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: ordered}
spec:
  serviceName: ordered
  replicas: 3
  selector: {matchLabels: {app: ordered}}
  template:
    metadata: {labels: {app: ordered}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: main, image: "fairlead.dev/testbox:1"}]}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: often}
spec:
  schedule: "* * * * *"
  jobTemplate:
    spec:
      template:
        spec: {restartPolicy: Never, containers: [{name: main, image: "fairlead.dev/testbox:1", command: [testbox, print, tick]}]}
"#;

#[test]
fn jobs_and_sets_do_what_they_say() {
    let topology = one_node();
    let cluster = Cluster::start(&topology, topology.node("node-a"), &[]).unwrap();
    cluster.kubectl_with(&["apply", "-f", "-"], SETS);
    cluster.kubectl(&[
        "create", "job", "once", "--image", IMAGE, "--", "testbox", "print", "once",
    ]);
    cluster.kubectl(&["wait", "--for=condition=complete", "job/once", "--timeout=60s"]);
    assert_eq!(cluster.kubectl(&["logs", "job/once"]), "once");
    // A minute is long: the schedule's own job is made by hand, as one does.
    cluster.kubectl(&["create", "job", "now", "--from=cronjob/often"]);
    cluster.kubectl(&["wait", "--for=condition=complete", "job/now", "--timeout=60s"]);
    cluster.kubectl(&["rollout", "status", "daemonset/everywhere", "--timeout=60s"]);
    cluster.kubectl(&["rollout", "status", "statefulset/ordered", "--timeout=60s"]);
    let names = cluster.kubectl(&["get", "pods", "-l", "app=ordered", "-o", "name"]);
    assert_eq!(names, "pod/ordered-0\npod/ordered-1\npod/ordered-2");
    cluster.kubectl(&["scale", "statefulset", "ordered", "--replicas=1"]);
    cluster
        .until("the highest go first", || {
            let names = cluster.kubectl(&["get", "pods", "-l", "app=ordered", "-o", "name"]);
            assert!(names.contains("ordered-0"), "{names}");
            Ok((names == "pod/ordered-0").then_some(()))
        })
        .unwrap();
}

#[test]
fn nodes_are_cordoned_and_drained_and_users_kept_within_their_rights() {
    let topology = one_node();
    let cluster = Cluster::start(&topology, topology.node("node-a"), &[]).unwrap();
    client(&cluster);
    cluster.kubectl(&["create", "deployment", "web", "--image", IMAGE]);
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);

    // A user who may list pods, and nothing else.
    cluster.kubectl(&["create", "role", "lister", "--verb=list", "--resource=pods"]);
    cluster.kubectl(&["create", "rolebinding", "lister", "--role=lister", "--user=jane"]);
    cluster.kubectl(&["--as", "jane", "get", "pods"]);
    for refused in [
        &["--as", "jane", "get", "secrets"][..],
        &["--as", "jane", "delete", "pod", "client"],
        &["--as", "jane", "exec", "client", "--", "true"],
        &["--as", "jane", "get", "pods", "-n", "kube-system"],
    ] {
        let output = cluster.try_kubectl(refused, "").unwrap();
        assert!(
            output.code != Some(0) && output.stderr.contains("forbidden"),
            "{refused:?}: {output:?}"
        );
    }

    // Taints keep pods away; tolerations bring them back.
    cluster.kubectl(&["taint", "node", "node-a", "for=others:NoSchedule"]);
    cluster.kubectl(&["run", "stranger", "--image", IMAGE]);
    cluster
        .until("a reason why nothing fits", || {
            let pod = cluster.get("pod stranger");
            let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let scheduled = conditions.iter().find(|it| it["type"] == "PodScheduled");
            Ok(scheduled
                .filter(|it| text(it, "/message").contains("untolerated taint"))
                .map(|_| ()))
        })
        .unwrap();
    cluster.kubectl(&["taint", "node", "node-a", "for-"]);
    cluster.wait_ready("pod/stranger");

    // Drained: what a controller owns goes, and waits until the node is open again.
    cluster.kubectl(&[
        "drain",
        "node-a",
        "--force",
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        "--timeout=60s",
    ]);
    let left = cluster.kubectl(&["get", "pods", "--field-selector", "spec.nodeName=node-a", "-o", "name"]);
    assert_eq!(left, "");
    cluster.kubectl(&["uncordon", "node-a"]);
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);

    // A namespace goes with all that is in it.
    cluster.kubectl(&["create", "namespace", "brief"]);
    cluster.kubectl(&[
        "-n",
        "brief",
        "create",
        "deployment",
        "web",
        "--image",
        IMAGE,
        "--replicas=2",
    ]);
    cluster.kubectl(&["-n", "brief", "create", "configmap", "x", "--from-literal=a=b"]);
    cluster.kubectl(&["-n", "brief", "rollout", "status", "deployment/web", "--timeout=60s"]);
    cluster.kubectl(&["delete", "namespace", "brief", "--timeout=60s"]);
    assert_eq!(
        cluster.kubectl(&["get", "all,configmaps", "-n", "brief", "-o", "name"]),
        ""
    );
}
