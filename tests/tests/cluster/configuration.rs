//! What pods are told, and how they are watched: variables, files, probes, limits.

use crate::{one_node, text};
use harness::Cluster;
use serde_json::Value;

const PODS: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: green, greeting: hello}
---
apiVersion: v1
kind: Secret
metadata: {name: hidden}
stringData: {word: sesame}
---
apiVersion: v1
kind: Pod
metadata: {name: told, labels: {a: b}}
spec:
  containers:
  - name: main
    image: fairlead.dev/testbox:1
    command: [testbox, sleep, "3600"]
    env:
    - {name: COLOUR, valueFrom: {configMapKeyRef: {name: settings, key: colour}}}
    - {name: WORD, valueFrom: {secretKeyRef: {name: hidden, key: word}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: BOTH, value: "$(COLOUR)-$(WORD)"}
    envFrom: [{configMapRef: {name: settings}, prefix: C_}]
    volumeMounts:
    - {name: settings, mountPath: /etc/settings}
    - {name: hidden, mountPath: /etc/hidden}
    - {name: self, mountPath: /etc/self}
    - {name: scratch, mountPath: /scratch}
  volumes:
  - {name: settings, configMap: {name: settings}}
  - {name: hidden, secret: {secretName: hidden, defaultMode: 0400}}
  - {name: self, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
  - {name: scratch, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
"#;

#[test]
fn objects_reach_pods_as_variables_and_files_and_files_follow() {
    let topology = one_node();
    let cluster = Cluster::start(&topology, topology.node("node-a"), &[]).unwrap();
    cluster.kubectl_with(&["apply", "-f", "-"], PODS);
    cluster.wait_ready("pod/told");
    let sh = |script: &str| cluster.kubectl(&["exec", "told", "--", "sh", "-c", script]);
    assert_eq!(
        sh("echo $COLOUR $WORD $NODE $BOTH $C_greeting"),
        "green sesame node-a green-sesame hello"
    );
    assert_eq!(
        sh("cat /etc/settings/colour /etc/hidden/word /etc/self/labels"),
        "greensesamea=\"b\""
    );
    assert_eq!(sh("stat -Lc %a /etc/hidden/word"), "400");
    assert!(
        sh("df -k /scratch | tail -1").contains("1024"),
        "a limit of one mebibyte"
    );
    let token = sh("cat /var/run/secrets/kubernetes.io/serviceaccount/namespace");
    assert_eq!(token, "default");
    let api = "curl -sS --max-time 5 --cacert /var/run/secrets/kubernetes.io/serviceaccount/ca.crt -H \"Authorization: \
               Bearer $(cat /var/run/secrets/kubernetes.io/serviceaccount/token)\" -o /dev/null -w '%{http_code}' \
               https://kubernetes.default.svc/version";
    assert_eq!(
        sh(api),
        "200",
        "the API server by its service name, with the pod's own token and certificate"
    );

    cluster.kubectl(&["patch", "configmap", "settings", "-p", r#"{"data":{"colour":"blue"}}"#]);
    cluster.kubectl(&["label", "pod", "told", "a=c", "--overwrite"]);
    cluster
        .until("files follow their objects", || {
            let now = sh("cat /etc/settings/colour /etc/self/labels");
            Ok((now == "bluea=\"c\"").then_some(()))
        })
        .unwrap();
    assert_eq!(sh("echo $COLOUR"), "green", "variables of a running process do not");
}

const WATCHED: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: watched}
spec:
  containers:
  - name: main
    image: fairlead.dev/testbox:1
    readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1, failureThreshold: 1}
    livenessProbe: {exec: {command: [sh, -c, "! test -e /tmp/dead"]}, periodSeconds: 1, failureThreshold: 2}
    startupProbe: {tcpSocket: {port: 8080}, periodSeconds: 1, failureThreshold: 30}
  terminationGracePeriodSeconds: 1
---
apiVersion: v1
kind: Pod
metadata: {name: never}
spec:
  restartPolicy: Never
  initContainers:
  - {name: breaks, image: "fairlead.dev/testbox:1", command: [testbox, exit, "3"]}
  containers:
  - {name: main, image: "fairlead.dev/testbox:1"}
---
apiVersion: v1
kind: Pod
metadata: {name: greedy}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: fairlead.dev/testbox:1
    command: [testbox, eat, "500"]
    resources: {limits: {memory: 32Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: missing}
spec:
  containers:
  - {name: main, image: "fairlead.dev/nothing:1", imagePullPolicy: Never}
---
apiVersion: v1
kind: Pod
metadata: {name: beside}
spec:
  initContainers:
  - {name: sidecar, image: "fairlead.dev/testbox:1", restartPolicy: Always}
  - {name: first, image: "fairlead.dev/testbox:1", command: [testbox, print, done]}
  containers:
  - {name: main, image: "fairlead.dev/testbox:1", command: [testbox, sleep, "3600"]}
"#;

#[test]
fn probes_limits_and_init_containers_act_as_documented() {
    let topology = one_node();
    let cluster = Cluster::start(&topology, topology.node("node-a"), &[]).unwrap();
    cluster.kubectl_with(&["apply", "-f", "-"], WATCHED);
    cluster.wait_ready("pod/watched");
    let ready = |pod: &Value| {
        let conditions = pod["status"]["conditions"].as_array().unwrap();
        conditions
            .iter()
            .any(|it| it["type"] == "Ready" && it["status"] == "True")
    };
    let until = |what: &str, name: &str, found: &dyn Fn(&Value) -> bool| {
        let look = || {
            let pod = cluster.get(&format!("pod {name}"));
            Ok(found(&pod).then_some(pod))
        };
        cluster.until(what, look).unwrap()
    };
    cluster.kubectl(&["exec", "watched", "--", "touch", "/tmp/unready"]);
    until("a pod that is not ready", "watched", &|pod| !ready(pod));
    cluster.kubectl(&["exec", "watched", "--", "rm", "/tmp/unready"]);
    until("a pod that is ready again", "watched", &ready);
    cluster.kubectl(&["exec", "watched", "--", "touch", "/tmp/dead"]);
    let restarted = until("a restart after failed liveness", "watched", &|pod| {
        pod["status"]["containerStatuses"][0]["restartCount"] == 1 && ready(pod)
    });
    assert_eq!(restarted["status"]["phase"], "Running");
    let events = cluster.kubectl(&["get", "events", "--field-selector", "involvedObject.name=watched"]);
    assert!(events.contains("Unhealthy") && events.contains("Killing"), "{events}");

    let never = until("a pod whose init container fails", "never", &|pod| {
        pod["status"]["phase"] == "Failed"
    });
    assert_eq!(
        never["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"],
        3
    );
    assert_eq!(
        text(&never, "/status/containerStatuses/0/state/waiting/reason"),
        "PodInitializing"
    );
    assert!(cluster.kubectl(&["get", "pod", "never"]).contains("Init:Error"));

    let greedy = until("a pod that took too much", "greedy", &|pod| {
        pod["status"]["phase"] == "Failed"
    });
    let ended = &greedy["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(
        (&ended["reason"], &ended["exitCode"]),
        (&"OOMKilled".into(), &137.into())
    );

    until("an image that is not there", "missing", &|pod| {
        text(pod, "/status/containerStatuses/0/state/waiting/reason") == "ErrImageNeverPull"
    });
    let beside = until("a sidecar before the rest", "beside", &ready);
    assert_eq!(beside["status"]["initContainerStatuses"][0]["ready"], true);
    assert_eq!(
        beside["status"]["initContainerStatuses"][1]["state"]["terminated"]["reason"],
        "Completed"
    );
}
