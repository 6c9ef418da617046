//! The node's lease: the sign of life that the node controller waits for.

use super::Node;
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::Node as NodeObject,
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference},
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// How often it is renewed: a quarter of [`DURATION_S`].
const RENEW: Duration = Duration::from_secs(10);

/// Seconds that a lease holds: upstream's `nodeLeaseDurationSeconds`.
const DURATION_S: i32 = 40;

/// Where leases of nodes are.
const NAMESPACE: &str = "kube-node-lease";

/// First wait after a failure; doubled up to 7 s, as upstream.
const RETRY: Duration = Duration::from_millis(200);

/// Renews the lease until `stop`.
pub async fn keep_lease(node: Arc<Node>, stop: CancellationToken) {
    let mut timer = tokio::time::interval(RENEW);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = timer.tick() => {}
        }
        let mut wait = RETRY;
        while let Err(error) = renew(&node).await {
            tracing::warn!(error = %error, "the node's lease could not be renewed; it will be tried again");
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            wait = (wait * 2).min(Duration::from_secs(7));
        }
    }
}

async fn renew(node: &Node) -> kube::Result<()> {
    let api: Api<Lease> = Api::namespaced(node.client.clone(), NAMESPACE);
    let name = &node.config.node_name;
    let body = json!({"spec": {
        "holderIdentity": name,
        "leaseDurationSeconds": DURATION_S,
        "renewTime": MicroTime(Timestamp::now()),
    }});
    match api.patch(name, &PatchParams::default(), &Patch::Merge(body)).await {
        Ok(_) => return Ok(()),
        Err(kube::Error::Api(error)) if error.code == 404 => {}
        Err(error) => return Err(error),
    }
    let nodes: Api<NodeObject> = Api::all(node.client.clone());
    let owner = nodes.get_opt(name).await?.and_then(|it| {
        Some(OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: name.clone(),
            uid: it.metadata.uid?,
            ..OwnerReference::default()
        })
    });
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(NAMESPACE.to_owned()),
            owner_references: owner.map(|it| vec![it]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.clone()),
            lease_duration_seconds: Some(DURATION_S),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..LeaseSpec::default()
        }),
    };
    match api.create(&PostParams::default(), &lease).await {
        // Made by an attempt whose answer was lost.
        Err(kube::Error::Api(error)) if error.code == 409 => Ok(()),
        other => other.map(drop),
    }
}
