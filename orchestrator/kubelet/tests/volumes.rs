//! Volumes, variables, rights and cgroups as containers on a real runtime see them.

mod support;

use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{ConfigMap, Pod, Secret},
};
use kube::{
    Api, Resource,
    api::{Patch, PatchParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{fmt::Debug, fs, path::PathBuf};
use support::{Cluster, TOOLS, WAIT, container, isolated, phase, sh, waiting};

async fn create<K>(cluster: &Cluster, name: &str, mut object: Value)
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize,
{
    object["metadata"] = json!({"name": name});
    let api: Api<K> = Api::namespaced(cluster.admin.clone(), "default");
    let object = serde_json::from_value(object).unwrap();
    api.create(&PostParams::default(), &object).await.unwrap();
}

/// The last words of a container that has ended.
fn words(pod: &Pod, name: &str) -> String {
    let state = container(pod, name).and_then(|it| it.state.clone()).unwrap_or_default();
    state.terminated.and_then(|it| it.message).unwrap_or_default()
}

/// Runs to its end and returns its last words.
async fn told(cluster: &Cluster, name: &str, spec: Value) -> String {
    cluster.create(name, spec).await;
    let pod = cluster
        .until(name, "at its end", |it| ["Succeeded", "Failed"].contains(&phase(it)))
        .await;
    assert_eq!(phase(&pod), "Succeeded", "{}", words(&pod, "app"));
    words(&pod, "app")
}

/// What is mounted below the kubelet's directory.
fn mounts(cluster: &Cluster) -> Vec<String> {
    let root = cluster.directory.join("kubelet").display().to_string();
    let info = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let places = info.lines().filter_map(|it| it.split(' ').nth(4));
    places.filter(|it| it.starts_with(&root)).map(str::to_owned).collect()
}

/// The pod's cgroups, wherever they are.
fn cgroups(cluster: &Cluster, pod: &Pod) -> Vec<PathBuf> {
    let uid = pod.metadata.uid.as_deref().unwrap();
    let root = cluster.config().cgroup_root;
    let below = format!("{}/kubepods/burstable/pod{uid}", root.trim_start_matches('/'));
    let tops = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|it| it.path());
    let all = tops.chain(["/sys/fs/cgroup".into()]).map(|it| it.join(&below));
    all.filter(|it| it.exists()).collect()
}

#[test]
fn a_container_sees_what_its_pod_says() {
    isolated("a_container_sees_what_its_pod_says", |directory| async {
        let cluster = Cluster::start(directory).await;
        create::<ConfigMap>(&cluster, "conf", json!({"data": {"color": "red"}})).await;
        create::<Secret>(&cluster, "sec", json!({"stringData": {"pass": "word"}})).await;
        fs::write(cluster.directory.join("of-node"), "node").unwrap();
        let script = "exec >/dev/termination-log 2>&1; id -u; id -G; stat -c '%g %a' /disk /memory; \
            touch /disk/x && stat -c '%u %g' /disk/x; cat /conf/color /secret/pass /down/name /host; echo; \
            stat -Lc '%u %g %a' /token/token; test -s /token/token && echo token; \
            echo $COLOR $ALL_color $PASS $NAME $LIMIT $BOTH; grep -c web /etc/hosts; echo x >/conf/color; echo x >/y; true";
        let said = told(&cluster, "web", json!({
            "restartPolicy": "Never",
            "securityContext": {"runAsUser": 1000, "fsGroup": 2000, "supplementalGroups": [3000]},
            "containers": [{
                "name": "app", "image": TOOLS, "imagePullPolicy": "Never", "command": ["/bin/sh", "-c", "$(SCRIPT)"],
                "securityContext": {"readOnlyRootFilesystem": true},
                "resources": {"limits": {"cpu": "200m"}},
                "envFrom": [{"prefix": "ALL_", "configMapRef": {"name": "conf"}}],
                "env": [
                    {"name": "SCRIPT", "value": script},
                    {"name": "COLOR", "valueFrom": {"configMapKeyRef": {"name": "conf", "key": "color"}}},
                    {"name": "PASS", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "pass"}}},
                    {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    {"name": "LIMIT", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}},
                    {"name": "BOTH", "value": "$(COLOR)-$(NAME)-$$(NAME)"},
                ],
                "volumeMounts": [
                    {"name": "disk", "mountPath": "/disk"}, {"name": "memory", "mountPath": "/memory"},
                    {"name": "conf", "mountPath": "/conf"}, {"name": "sec", "mountPath": "/secret"},
                    {"name": "down", "mountPath": "/down"}, {"name": "token", "mountPath": "/token"},
                    {"name": "host", "mountPath": "/host", "readOnly": true},
                ],
            }],
            "volumes": [
                {"name": "disk", "emptyDir": {}}, {"name": "memory", "emptyDir": {"medium": "Memory"}},
                {"name": "conf", "configMap": {"name": "conf"}}, {"name": "sec", "secret": {"secretName": "sec"}},
                {"name": "down", "downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
                {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
                {"name": "host", "hostPath": {"path": cluster.directory.join("of-node"), "type": "File"}},
            ],
        }))
        .await;
        let lines: Vec<_> = said.lines().collect();
        let want = [
            "1000",
            "1000 2000 3000",
            "2000 2777",
            "2000 2777",
            "1000 2000",
            "redwordwebnode",
            "1000 2000 640",
            "token",
            "red red word web 200 red-web-$(NAME)",
            "1",
        ];
        assert_eq!(lines[..want.len()], want, "{said}");
        assert!(
            lines[want.len()..]
                .iter()
                .all(|it| it.contains("Read-only file system")),
            "{said}"
        );
        assert_eq!(lines.len(), want.len() + 2, "{said}");
        cluster.end().await;
    });
}

#[test]
fn files_follow_their_objects_and_mounts_of_files_do_not() {
    isolated(
        "files_follow_their_objects_and_mounts_of_files_do_not",
        |directory| async {
            let cluster = Cluster::start(directory).await;
            create::<ConfigMap>(&cluster, "conf", json!({"data": {"color": "red"}})).await;
            let script = "while test $(cat /conf/color) = red; do sleep 0.1; done; \
            while ! grep -q 2 /down/labels; do sleep 0.1; done; cat /conf/color /fixed >/dev/termination-log";
            let mut app = sh("app", script);
            app["volumeMounts"] = json!([{"name": "conf", "mountPath": "/conf"}, {"name": "down", "mountPath": "/down"},
            {"name": "conf", "mountPath": "/fixed", "subPath": "color"}]);
            let labels = json!({"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}});
            let volumes = json!([{"name": "conf", "configMap": {"name": "conf"}}, {"name": "down", "downwardAPI": {"items": [labels]}}]);
            cluster
                .create(
                    "web",
                    json!({"restartPolicy": "Never", "containers": [app], "volumes": volumes}),
                )
                .await;
            cluster.until_running("web").await;
            let maps: Api<ConfigMap> = Api::namespaced(cluster.admin.clone(), "default");
            let change = Patch::Merge(json!({"data": {"color": "blue"}}));
            maps.patch("conf", &PatchParams::default(), &change).await.unwrap();
            let change = Patch::Merge(json!({"metadata": {"labels": {"version": "2"}}}));
            cluster
                .pods()
                .patch("web", &PatchParams::default(), &change)
                .await
                .unwrap();
            let pod = cluster.until("web", "done", |it| phase(it) == "Succeeded").await;
            assert_eq!(words(&pod, "app"), "bluered");
            cluster.end().await;
        },
    );
}

#[test]
fn a_pod_waits_for_objects_that_are_missing() {
    isolated("a_pod_waits_for_objects_that_are_missing", |directory| async {
        let cluster = Cluster::start(directory).await;
        let mut env = sh("app", "echo -n $COLOR >/dev/termination-log");
        env["env"] = json!([{"name": "COLOR", "valueFrom": {"configMapKeyRef": {"name": "env", "key": "color"}}}]);
        cluster
            .create("env", json!({"restartPolicy": "Never", "containers": [env]}))
            .await;
        let mut volume = sh("app", "cat /conf/color >/dev/termination-log");
        volume["volumeMounts"] = json!([{"name": "conf", "mountPath": "/conf"}]);
        let volumes = json!([{"name": "conf", "configMap": {"name": "volume"}}]);
        cluster
            .create(
                "volume",
                json!({"restartPolicy": "Never", "containers": [volume], "volumes": volumes}),
            )
            .await;
        let reason = "CreateContainerConfigError";
        let pod = cluster
            .until("env", "waiting", |it| waiting(it, "app") == Some(reason))
            .await;
        let state = container(&pod, "app").unwrap().state.clone().unwrap();
        assert_eq!(
            state.waiting.unwrap().message.as_deref(),
            Some("configmap \"env\" not found")
        );
        let text = "MountVolume.SetUp failed for volume \"conf\" : configmap \"volume\" not found";
        cluster.until_event("volume", "FailedMount", text).await;
        for name in ["env", "volume"] {
            create::<ConfigMap>(&cluster, name, json!({"data": {"color": "red"}})).await;
        }
        for name in ["env", "volume"] {
            let pod = cluster.until(name, "done", |it| phase(it) == "Succeeded").await;
            assert_eq!(words(&pod, "app"), "red");
        }
        cluster.end().await;
    });
}

#[test]
fn a_restarted_kubelet_finds_all_that_pods_have_and_nothing_is_left_of_those_that_go() {
    let name = "a_restarted_kubelet_finds_all_that_pods_have_and_nothing_is_left_of_those_that_go";
    isolated(name, |directory| async {
        let mut cluster = Cluster::start(directory).await;
        let mut app = sh("app", &format!("echo kept >/memory/x; {WAIT}"));
        app["volumeMounts"] = json!([{"name": "memory", "mountPath": "/memory"}, {"name": "memory", "mountPath": "/sub", "subPath": "a/b"}]);
        app["resources"] = json!({"requests": {"cpu": "500m"}, "limits": {"memory": "64Mi"}});
        let volumes = json!([{"name": "memory", "emptyDir": {"medium": "Memory"}}]);
        let spec = json!({"containers": [app], "volumes": volumes});
        for name in ["stays", "goes"] {
            cluster.create(name, spec.clone()).await;
            cluster.until_running(name).await;
        }
        let goes = cluster.pods().get("goes").await.unwrap();
        let stays = cluster.pods().get("stays").await.unwrap();
        let limited = cgroups(&cluster, &stays);
        assert!(!limited.is_empty());
        if let Some(memory) = limited.iter().find(|it| it.starts_with("/sys/fs/cgroup/memory")) {
            let limit = fs::read_to_string(memory.join("memory.limit_in_bytes")).unwrap();
            assert_eq!(limit.trim(), (64 << 20).to_string());
            let containers = fs::read_dir(memory).unwrap().flatten().filter(|it| it.path().is_dir());
            assert_eq!(containers.count(), 2, "the sandbox and the container are below the pod");
        }
        let before = mounts(&cluster);
        assert_eq!(before.len(), 4);
        cluster.stop_kubelet().await;
        cluster.start_kubelet();
        cluster.node_ready().await;
        assert_eq!(mounts(&cluster), before);
        cluster.delete("goes").await;
        assert!(cgroups(&cluster, &goes).is_empty());
        assert_eq!(mounts(&cluster).len(), 2);
        let uid = stays.metadata.uid.as_deref().unwrap();
        let kept = cluster
            .directory
            .join(format!("kubelet/pods/{uid}/volumes/kubernetes.io~empty-dir/memory/x"));
        assert_eq!(fs::read_to_string(kept).unwrap(), "kept\n");
        assert_eq!(
            container(&cluster.pods().get("stays").await.unwrap(), "app")
                .unwrap()
                .restart_count,
            0
        );
        cluster.delete("stays").await;
        assert!(cgroups(&cluster, &stays).is_empty());
        assert_eq!(mounts(&cluster), [""; 0]);
        assert_eq!(fs::read_dir(cluster.directory.join("kubelet/pods")).unwrap().count(), 0);
        cluster.end().await;
    });
}
