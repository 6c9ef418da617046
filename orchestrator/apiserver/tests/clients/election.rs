//! Candidates who write themselves into a Lease with kube-rs: one at a time leads.

use crate::support::TestServer;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, ResourceExt as _,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;

/// Takes the lease as it was seen; `false` where somebody was faster.
async fn claim(leases: &Api<Lease>, seen: &Lease, who: &str) -> bool {
    let turns = seen.spec.as_ref().and_then(|spec| spec.lease_transitions).unwrap_or(0);
    let patch = json!({
        "metadata": { "resourceVersion": seen.resource_version() },
        "spec": { "holderIdentity": who, "leaseTransitions": turns + 1, "renewTime": MicroTime(Timestamp::now()) },
    });
    match leases
        .patch("leader", &PatchParams::default(), &Patch::Merge(&patch))
        .await
    {
        Ok(lease) => {
            assert_eq!(lease.spec.unwrap().holder_identity.as_deref(), Some(who));
            true
        }
        Err(kube::Error::Api(status)) => {
            assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"), "{status:?}");
            false
        }
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_many_candidates_leads() {
    let server = TestServer::start().await;
    let leases: Api<Lease> = Api::namespaced(server.client().await, "kube-system");
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some("leader".to_owned()),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            lease_duration_seconds: Some(15),
            acquire_time: Some(MicroTime(Timestamp::now())),
            ..LeaseSpec::default()
        }),
    };
    let mut seen = leases.create(&PostParams::default(), &lease).await.unwrap();
    for turn in 1..=3 {
        let names: Vec<String> = (0..5).map(|n| format!("candidate-{n}")).collect();
        let claims = names.iter().map(|who| claim(&leases, &seen, who));
        let won = futures::future::join_all(claims).await;
        assert_eq!(won.iter().filter(|it| **it).count(), 1, "{won:?}");
        let leader = won.iter().position(|it| *it).unwrap();
        seen = leases.get("leader").await.unwrap();
        let spec = seen.spec.as_ref().unwrap();
        assert_eq!(spec.holder_identity.as_deref(), Some(&*names[leader]));
        assert_eq!(spec.lease_transitions, Some(turn));
    }
}
