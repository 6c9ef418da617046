//! Pods on a real container runtime, told by a real API server.

mod support;

use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;
use support::{Cluster, WAIT, container, holds, isolated, phase, sh, waiting};

#[test]
fn a_pod_runs_and_goes() {
    isolated("a_pod_runs_and_goes", |directory| async {
        let cluster = Cluster::start(directory).await;
        cluster.create("web", json!({"containers": [sh("app", WAIT)]})).await;
        let pod = cluster.until_running("web").await;
        let status = pod.status.as_ref().unwrap();
        assert!(status.pod_ip.as_deref().is_some_and(|it| it.starts_with("10.88.")));
        assert_eq!(status.host_ip.as_deref(), Some("192.168.0.1"));
        assert_eq!(status.qos_class.as_deref(), Some("BestEffort"));
        for condition in ["PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready"] {
            assert!(holds(&pod, condition), "{condition}: {status:#?}");
        }
        let app = container(&pod, "app").unwrap();
        assert!(app.ready && app.started == Some(true));
        assert_eq!(app.restart_count, 0);
        assert!(app.container_id.as_deref().unwrap().starts_with("containerd://"));
        cluster.until_event("web", "Started", "Container started").await;
        let reasons: Vec<_> = cluster.events("web").await.into_iter().map(|it| it.0).collect();
        assert_eq!(reasons, ["Pulled", "Created", "Started"]);
        cluster.delete("web").await;
        cluster.until_event("web", "Killing", "Stopping container app").await;
        let runtime = cluster.containerd.client();
        assert!(runtime.sandboxes(None).await.unwrap().is_empty());
        assert!(runtime.containers(None).await.unwrap().is_empty());
        cluster.end().await;
    });
}

#[test]
fn containers_restart_as_their_policy_says() {
    isolated("containers_restart_as_their_policy_says", |directory| async {
        let cluster = Cluster::start(directory).await;
        // Fails at once: started again at once, then waited for.
        cluster
            .create(
                "crash",
                json!({"containers": [sh("app", "echo bad luck >/dev/termination-log; exit 3")]}),
            )
            .await;
        cluster
            .create(
                "once",
                json!({"restartPolicy": "Never", "containers": [sh("bad", "exit 3"), sh("good", "exit 0")]}),
            )
            .await;
        cluster
            .create(
                "job",
                json!({"restartPolicy": "OnFailure", "containers": [sh("app", "exit 0")]}),
            )
            .await;
        // Its shell lives on for a while: that memory was wanting is told apart from the end.
        let mut big = sh("app", "dd if=/dev/zero of=/dev/null bs=60M count=1; sleep 1; exit 9");
        big["resources"] = json!({"limits": {"memory": "16Mi"}});
        cluster
            .create("big", json!({"restartPolicy": "Never", "containers": [big]}))
            .await;
        let pod = cluster
            .until("crash", "in back-off", |it| {
                waiting(it, "app") == Some("CrashLoopBackOff")
            })
            .await;
        let app = container(&pod, "app").unwrap();
        assert_eq!(app.restart_count, 1);
        let last = app.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
        assert_eq!(
            (last.exit_code, last.reason.as_deref(), last.message.as_deref()),
            (3, Some("Error"), Some("bad luck\n"))
        );
        assert_eq!(phase(&pod), "Running");
        assert!(!holds(&pod, "Ready"));
        let message = app
            .state
            .as_ref()
            .unwrap()
            .waiting
            .as_ref()
            .unwrap()
            .message
            .clone()
            .unwrap();
        assert!(
            message.starts_with("back-off 10s restarting failed container=app pod=crash_default("),
            "{message}"
        );
        cluster
            .until_event(
                "crash",
                "BackOff",
                "Back-off restarting failed container app in pod crash_default(",
            )
            .await;
        let pod = cluster.until("once", "failed", |it| phase(it) == "Failed").await;
        assert_eq!(container(&pod, "bad").unwrap().restart_count, 0);
        let pod = cluster.until("job", "done", |it| phase(it) == "Succeeded").await;
        let conditions = pod.status.clone().unwrap().conditions.unwrap();
        let ready = conditions.iter().find(|it| it.type_ == "Ready").unwrap();
        assert_eq!(
            (&*ready.status, ready.reason.as_deref()),
            ("False", Some("PodCompleted"))
        );
        let pod = cluster.until("big", "failed", |it| phase(it) == "Failed").await;
        let ended = container(&pod, "app")
            .unwrap()
            .state
            .clone()
            .unwrap()
            .terminated
            .unwrap();
        assert_eq!((ended.exit_code, ended.reason.as_deref()), (9, Some("OOMKilled")));
        cluster.end().await;
    });
}

#[test]
fn init_containers_and_sidecars_come_first() {
    isolated("init_containers_and_sidecars_come_first", |directory| async {
        let cluster = Cluster::start(directory).await;
        let mount = json!([{"name": "shared", "mountPath": "/shared"}]);
        let with_mount = |mut it: serde_json::Value| {
            it["volumeMounts"] = mount.clone();
            it
        };
        let mut sidecar = with_mount(sh(
            "side",
            "echo side >>/shared/order; trap 'exit 0' TERM; while true; do sleep 3600 & wait $!; done",
        ));
        sidecar["restartPolicy"] = json!("Always");
        sidecar["startupProbe"] = json!({"exec": {"command": ["grep", "side", "/shared/order"]}, "periodSeconds": 1});
        let spec = json!({
            "restartPolicy": "Never",
            "volumes": [{"name": "shared", "emptyDir": {}}],
            "initContainers": [
                with_mount(sh("first", "echo first >>/shared/order")),
                sidecar,
                with_mount(sh("second", "echo second >>/shared/order")),
            ],
            "containers": [with_mount(sh("app", "cat /shared/order >/dev/termination-log"))],
        });
        cluster.create("web", spec).await;
        let pod = cluster.until("web", "done", |it| phase(it) == "Succeeded").await;
        let ended = container(&pod, "app")
            .unwrap()
            .state
            .clone()
            .unwrap()
            .terminated
            .unwrap();
        assert_eq!(ended.message.as_deref(), Some("first\nside\nsecond\n"));
        let failing = json!({"restartPolicy": "Never", "initContainers": [sh("init", "exit 1")], "containers": [sh("app", WAIT)]});
        cluster.create("failing", failing).await;
        let pod = cluster.until("failing", "failed", |it| phase(it) == "Failed").await;
        assert_eq!(waiting(&pod, "app"), Some("PodInitializing"));
        let again = json!({"initContainers": [sh("init", "exit 1")], "containers": [sh("app", WAIT)]});
        cluster.create("again", again).await;
        let pod = cluster
            .until("again", "in back-off", |it| {
                waiting(it, "init") == Some("CrashLoopBackOff")
            })
            .await;
        assert_eq!(phase(&pod), "Pending");
        cluster.end().await;
    });
}

#[test]
fn pods_end_gracefully() {
    isolated("pods_end_gracefully", |directory| async {
        let cluster = Cluster::start(directory).await;
        // Its last words tell that it was asked, and after its hook.
        let mut app = sh(
            "app",
            "trap 'cat /tmp/hook >/dev/termination-log; exit 7' TERM; while true; do sleep 3600 & wait $!; done",
        );
        app["lifecycle"] = json!({"preStop": {"exec": {"command": ["sh", "-c", "echo hook ran >/tmp/hook"]}}});
        cluster
            .create("web", json!({"terminationGracePeriodSeconds": 30, "containers": [app]}))
            .await;
        cluster.until_running("web").await;
        // Someone else holds the object, so that its last status can be seen.
        let finalizer = json!({"metadata": {"finalizers": ["fairlead.test/hold"]}});
        cluster
            .pods()
            .patch("web", &PatchParams::default(), &Patch::Merge(finalizer))
            .await
            .unwrap();
        cluster.pods().delete("web", &DeleteParams::default()).await.unwrap();
        let pod = cluster
            .until("web", "ended", |it| {
                container(it, "app").is_some_and(|it| it.state.as_ref().unwrap().terminated.is_some())
            })
            .await;
        let ended = container(&pod, "app")
            .unwrap()
            .state
            .clone()
            .unwrap()
            .terminated
            .unwrap();
        assert_eq!((ended.exit_code, ended.message.as_deref()), (7, Some("hook ran\n")));
        let release = json!({"metadata": {"finalizers": null}});
        cluster
            .pods()
            .patch("web", &PatchParams::default(), &Patch::Merge(release))
            .await
            .unwrap();
        cluster.until_gone("web").await;
        // One that does not listen is killed, and at once when its grace is taken back.
        cluster
            .create("deaf", json!({"terminationGracePeriodSeconds": 600, "containers": [sh("app", "trap '' TERM; while true; do sleep 1; done")]}))
            .await;
        cluster.until_running("deaf").await;
        cluster.pods().delete("deaf", &DeleteParams::default()).await.unwrap();
        cluster.until_event("deaf", "Killing", "Stopping container app").await;
        cluster
            .pods()
            .delete("deaf", &DeleteParams::default().grace_period(1))
            .await
            .unwrap();
        cluster.until_gone("deaf").await;
        cluster.end().await;
    });
}

#[test]
fn static_pods_are_shown_by_mirrors() {
    isolated("static_pods_are_shown_by_mirrors", |directory| async {
        let cluster = Cluster::start(directory).await;
        let manifest = |script: &str| {
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "etcd"},
                "spec": {"terminationGracePeriodSeconds": 1, "containers": [sh("app", script)]}})
        };
        let file = cluster.manifests().join("etcd.yaml");
        std::fs::write(&file, manifest(WAIT).to_string()).unwrap();
        let mirror = cluster.until_running("etcd-n1").await;
        assert!(holds(&mirror, "Ready"));
        let uid = mirror.metadata.uid.clone();
        // A mirror that is deleted comes back; what it shows runs on.
        let id = container(&mirror, "app").unwrap().container_id.clone();
        cluster
            .pods()
            .delete("etcd-n1", &DeleteParams::default())
            .await
            .unwrap();
        let mirror = cluster
            .until("etcd-n1", "back", |it| it.metadata.uid != uid && phase(it) == "Running")
            .await;
        assert_eq!(container(&mirror, "app").unwrap().container_id, id);
        // Another manifest is another pod.
        std::fs::write(&file, manifest(&format!("echo; {WAIT}")).to_string()).unwrap();
        let uid = mirror.metadata.uid.clone();
        let mirror = cluster
            .until("etcd-n1", "replaced", |it| {
                it.metadata.uid != uid && phase(it) == "Running"
            })
            .await;
        assert_ne!(container(&mirror, "app").unwrap().container_id, id);
        std::fs::remove_file(&file).unwrap();
        cluster.until_gone("etcd-n1").await;
        let runtime = cluster.containerd.client();
        while !runtime.sandboxes(None).await.unwrap().is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        cluster.end().await;
    });
}

#[test]
fn a_new_kubelet_adopts_what_runs() {
    isolated("a_new_kubelet_adopts_what_runs", |directory| async {
        let mut cluster = Cluster::start(directory).await;
        for name in ["stays", "goes", "ends"] {
            cluster
                .create(name, json!({"restartPolicy": "Never", "containers": [sh("app", WAIT)]}))
                .await;
        }
        let before = cluster.until_running("stays").await;
        cluster.until_running("goes").await;
        let ends = cluster.until_running("ends").await;
        cluster.stop_kubelet().await;
        let runtime = cluster.containerd.client();
        assert_eq!(runtime.containers(None).await.unwrap().len(), 3, "they run on");
        // Meanwhile one is deleted for good, and one ends by itself.
        cluster
            .pods()
            .delete("goes", &DeleteParams::default().grace_period(0))
            .await
            .unwrap();
        cluster.until_gone("goes").await;
        let id = container(&ends, "app").unwrap().container_id.clone().unwrap();
        let id = id.strip_prefix("containerd://").unwrap();
        runtime
            .stop_container(id, std::time::Duration::from_secs(10))
            .await
            .unwrap();
        cluster.start_kubelet();
        let pod = cluster.until("ends", "done", |it| phase(it) == "Succeeded").await;
        assert_eq!(container(&pod, "app").unwrap().restart_count, 0);
        while runtime.sandboxes(None).await.unwrap().len() != 2 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        let after = cluster.until_running("stays").await;
        let (before, after) = (before.status.unwrap(), after.status.unwrap());
        assert_eq!(before.container_statuses, after.container_statuses);
        assert_eq!(before.conditions, after.conditions);
        assert_eq!(before.pod_ip, after.pod_ip);
        cluster.end().await;
    });
}
