//! Pods on a real container runtime, told by a real API server.

mod support;

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
