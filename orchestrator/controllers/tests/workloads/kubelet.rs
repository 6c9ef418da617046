//! A stand-in for scheduler and kubelet: binds every pod, runs it at once, ends it at once when it is deleted.
//!
//! The annotation `test/fate` of a pod says what becomes of it: `run` (without one), `succeed`, `fail`, `wait`.

use futures::StreamExt as _;
use k8s_openapi::{
    api::core::v1::{Node, Pod},
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// Runs until it is dropped.
pub(crate) struct Kubelet(JoinHandle<()>);

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Kubelet {
    pub(crate) fn start(client: Client) -> Self {
        Self(tokio::spawn(run(client)))
    }
}

async fn run(client: Client) {
    let pods = watcher(Api::<Pod>::all(client.clone()), watcher::Config::default()).default_backoff();
    let mut pods = std::pin::pin!(pods.applied_objects());
    let mut turn = 0;
    while let Some(event) = pods.next().await {
        let Ok(pod) = event else { continue };
        turn += 1;
        step(&client, &pod, turn).await;
    }
}

/// One step of a pod's life. A step that fails was overtaken: the next event is about what overtook it.
async fn step(client: &Client, pod: &Pod, turn: usize) {
    let pods = Api::<Pod>::namespaced(client.clone(), &pod.namespace().unwrap());
    let name = pod.name_any();
    let spec = pod.spec.as_ref().unwrap();
    let phase = pod
        .status
        .as_ref()
        .and_then(|it| it.phase.as_deref())
        .unwrap_or("Pending");
    if pod.metadata.deletion_timestamp.is_some() {
        if pod.finalizers().is_empty() || phase == "Running" {
            if phase == "Running" && !pod.finalizers().is_empty() {
                let failed = json!({"status": {"phase": "Failed"}});
                let _ = pods
                    .patch_status(&name, &PatchParams::default(), &Patch::Strategic(failed))
                    .await;
            }
            let _ = pods.delete(&name, &DeleteParams::default().grace_period(0)).await;
        }
        return;
    }
    if spec.node_name.is_none() {
        let fixed = spec.affinity.as_ref().and_then(|it| {
            let terms = &it
                .node_affinity
                .as_ref()?
                .required_during_scheduling_ignored_during_execution
                .as_ref()?;
            let fields = terms.node_selector_terms.first()?.match_fields.as_ref()?;
            fields.first()?.values.as_ref()?.first().cloned()
        });
        let node = match fixed {
            Some(node) => node,
            None => {
                let nodes = Api::<Node>::all(client.clone())
                    .list(&Default::default())
                    .await
                    .unwrap()
                    .items;
                if nodes.is_empty() {
                    return;
                }
                nodes[turn % nodes.len()].name_any()
            }
        };
        let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": {"kind": "Node", "name": node}});
        let _: Result<Value, _> = pods
            .create_subresource("binding", &name, &PostParams::default(), &binding)
            .await;
        return;
    }
    if phase == "Pending" {
        let now = Timestamp::now();
        let (phase, ready) = match pod.annotations().get("test/fate").map(String::as_str) {
            Some("succeed") => ("Succeeded", "False"),
            Some("fail") => ("Failed", "False"),
            Some("wait") => return,
            _ => ("Running", "True"),
        };
        let exit_code = i32::from(phase == "Failed");
        let state = if phase == "Running" {
            json!({"running": {"startedAt": now}})
        } else {
            json!({"terminated": {"exitCode": exit_code, "finishedAt": now, "startedAt": now}})
        };
        let status = json!({"status": {
            "phase": phase,
            "startTime": now,
            "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": now}],
            "containerStatuses": [{
                "name": "main", "image": "i", "imageID": "i", "ready": ready == "True", "restartCount": 0, "state": state,
            }],
        }});
        let _ = pods
            .patch_status(&name, &PatchParams::default(), &Patch::Strategic(status))
            .await;
    }
}
