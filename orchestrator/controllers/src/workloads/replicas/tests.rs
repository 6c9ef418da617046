//! Whatever happens to its pods, a set ends with the number that it should have.

use super::plan::{Action, Desired, plan, tally};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use proptest::prelude::*;
use serde_json::json;
use std::{collections::BTreeMap, sync::Arc};

const NOW: Timestamp = Timestamp::constant(1_000_000, 0);

fn pod(number: usize, phase: &str, ready: bool, terminating: bool) -> Arc<Pod> {
    let at = "1970-01-10T00:00:00Z";
    let name = format!("p{number}");
    let meta = json!({
        "name": name, "uid": name, "labels": {"app": "a"}, "creationTimestamp": at,
        "deletionTimestamp": terminating.then_some(at),
    });
    let ready = if ready { "True" } else { "False" };
    let conditions = json!([{"type": "Ready", "status": ready, "lastTransitionTime": at}]);
    let status = json!({"phase": phase, "conditions": conditions});
    let spec = json!({"nodeName": "n", "containers": []});
    Arc::new(serde_json::from_value::<Pod>(json!({"metadata": meta, "spec": spec, "status": status})).unwrap())
}

fn desired(replicas: usize, min_ready_s: i32) -> Desired {
    Desired {
        replicas,
        min_ready_s,
        labels: BTreeMap::from([("app".to_owned(), "a".to_owned())]),
        deleting: false,
    }
}

#[test]
fn counts_are_those_of_active_pods() {
    let pods = [
        pod(0, "Running", true, false),
        pod(1, "Running", true, true),
        pod(2, "Pending", false, false),
        pod(3, "Failed", false, false),
    ];
    let counts = tally(&desired(2, 0), &pods, NOW);
    let numbers = (
        counts.replicas,
        counts.fully_labeled,
        counts.ready,
        counts.available,
        counts.terminating,
    );
    assert_eq!(numbers, (2, 2, 1, 1, 1));
    // Ready since 1970-01-10, which is 222400 seconds ago.
    assert_eq!(tally(&desired(2, 222_400), &pods, NOW).available, 1);
    assert_eq!(tally(&desired(2, 222_401), &pods, NOW).available, 0);
    let next = super::plan::next(&desired(2, 222_410), &pods, NOW);
    assert_eq!(next, Some(std::time::Duration::from_secs(10)));
}

#[test]
fn a_deleted_set_does_nothing() {
    let gone = Desired {
        deleting: true,
        ..desired(3, 0)
    };
    assert_eq!(plan(&gone, &[], &[], NOW), []);
    assert_eq!(plan(&desired(700, 0), &[], &[], NOW), [Action::Create(500)]);
}

proptest! {
    #[test]
    fn one_run_makes_the_number_right(
        replicas in 0usize..12,
        fates in prop::collection::vec((0usize..4, any::<bool>(), any::<bool>()), 0..20),
    ) {
        let phases = ["Pending", "Running", "Failed", "Succeeded"];
        let pods: Vec<_> = fates.iter().enumerate()
            .map(|(number, (phase, ready, terminating))| pod(number, phases[*phase], *ready && *phase == 1, *terminating))
            .collect();
        let active = |pods: &[Arc<Pod>]| pods.iter().filter(|it| crate::workloads::pods::is_active(it)).count();
        let ready = |pods: &[Arc<Pod>]| pods.iter()
            .filter(|it| crate::workloads::pods::is_active(it) && crate::workloads::pods::is_ready(it)).count();
        let mut after = pods.clone();
        let mut next = 100;
        for action in plan(&desired(replicas, 0), &pods, &pods, NOW) {
            match action {
                Action::Create(number) => for _ in 0..number {
                    after.push(pod(next, "Pending", false, false));
                    next += 1;
                },
                Action::Delete(gone) => {
                    prop_assert!(crate::workloads::pods::is_active(&gone));
                    after.retain(|it| it.metadata.uid != gone.metadata.uid);
                }
            }
        }
        prop_assert_eq!(active(&after), replicas);
        // Nothing that serves goes before what does not.
        prop_assert_eq!(ready(&after), ready(&pods).min(replicas));
        prop_assert_eq!(plan(&desired(replicas, 0), &after, &after, NOW), vec![]);
    }
}
