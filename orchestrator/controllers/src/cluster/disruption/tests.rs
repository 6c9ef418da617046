//! Status of budgets: a table of what is wanted, and what may go.

use super::plan::{Wanted, disrupted, needs_scale, selector, selects, status, wanted};
use jiff::Timestamp;
use k8s_openapi::api::{core::v1::Pod, policy::v1::PodDisruptionBudget};
use serde_json::{Value, json};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

#[allow(clippy::needless_pass_by_value, reason = "cases are written where they are used")]
fn budget(spec: Value) -> PodDisruptionBudget {
    serde_json::from_value(json!({ "metadata": { "name": "b", "generation": 3 }, "spec": spec })).unwrap()
}

fn pod(name: &str, ready: bool) -> Pod {
    let status = if ready { "True" } else { "False" };
    serde_json::from_value(json!({
        "metadata": { "name": name, "labels": { "app": "web" } }, "status": { "conditions": [{ "type": "Ready", "status": status }] },
    }))
    .unwrap()
}

/// Spec -> what is wanted of 5 pods whose controllers want 7.
#[test]
fn what_is_wanted() {
    let table = [
        (json!({ "minAvailable": 2 }), Ok((5, 2)), false),
        (json!({ "minAvailable": "50%" }), Ok((7, 4)), true),
        (json!({ "maxUnavailable": 2 }), Ok((7, 5)), true),
        (json!({ "maxUnavailable": "30%" }), Ok((7, 4)), true),
        (json!({ "maxUnavailable": 9 }), Ok((7, 0)), true),
        (json!({}), Ok((5, 0)), false),
        (json!({ "minAvailable": "some" }), Err(()), true),
    ];
    for (spec, result, scale) in table {
        let budget = budget(spec.clone());
        let found = wanted(&budget, 5, 7).map(|it| (it.expected, it.desired)).map_err(drop);
        assert_eq!((found, needs_scale(&budget)), (result, scale), "{spec}");
    }
}

#[test]
fn selectors_of_nothing_and_of_all() {
    let of = |spec| selector(&budget(spec)).unwrap();
    assert!(of(json!({})).is_none());
    assert!(selects(&of(json!({ "selector": {} })).unwrap(), &pod("p", true)));
    assert!(!selects(
        &of(json!({ "selector": { "matchLabels": { "app": "db" } } })).unwrap(),
        &pod("p", true)
    ));
    let odd = json!({ "selector": { "matchExpressions": [{ "key": "a", "operator": "Near" }] } });
    assert!(selector(&budget(odd)).is_err());
}

#[test]
fn evictions_count_until_they_are_seen_or_over() {
    let mut budget = budget(json!({ "minAvailable": 1 }));
    budget.status = serde_json::from_value(json!({
        "disruptedPods": { "gone": at(0), "a": at(0), "b": at(100), "c": at(90) },
    }))
    .unwrap();
    let mut terminating = pod("c", true);
    terminating.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(100)));
    let pods = [pod("a", true), pod("b", true), terminating, pod("d", true)];
    let pods: Vec<&Pod> = pods.iter().collect();
    let (kept, over, again) = disrupted(&budget, &pods, at(120));
    assert_eq!(
        (kept.keys().map(String::as_str).collect::<Vec<_>>(), over, again),
        (vec!["b"], vec!["a".to_owned()], Some(at(220)))
    );
    let found = status(
        &budget,
        &pods,
        &Ok(Wanted {
            expected: 4,
            desired: 1,
        }),
        kept,
        at(120),
    );
    // a and d: b was granted, c is going.
    assert_eq!((found.current_healthy, found.disruptions_allowed), (Some(2), Some(1)));
    assert_eq!(found.observed_generation, Some(3));
    let condition = &found.conditions.as_ref().unwrap()[0];
    assert_eq!(
        (condition.status.as_str(), condition.reason.as_str()),
        ("True", "SufficientPods")
    );
    budget.status = Some(found);
    let failed = status(
        &budget,
        &pods,
        &Err("why".to_owned()),
        std::collections::BTreeMap::new(),
        at(130),
    );
    let condition = &failed.conditions.as_ref().unwrap()[0];
    assert_eq!(
        (failed.disruptions_allowed, condition.reason.as_str()),
        (Some(0), "SyncFailed")
    );
    assert_eq!(condition.last_transition_time.0, at(130));
}

#[test]
fn nothing_may_go_where_nothing_is_expected() {
    let budget = budget(json!({ "maxUnavailable": 5 }));
    let found = status(
        &budget,
        &[],
        &Ok(Wanted {
            expected: 0,
            desired: 0,
        }),
        std::collections::BTreeMap::new(),
        at(0),
    );
    assert_eq!(found.disruptions_allowed, Some(0));
    assert_eq!(found.conditions.unwrap()[0].reason, "InsufficientPods");
}
