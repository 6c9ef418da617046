//! Entries of subresources, of other versions, and of the Scale.

use super::{config_map, deployment, json};
use crate::managed_fields::{ApplyError, ReplicasPath, Tracked, apply, from_scale, to_scale};
use serde_json::Value;

#[test]
fn subresources_have_entries_of_their_own() {
    let mut history = deployment();
    history.put("m", json!({"spec": {"replicas": 1}}));
    history.tracked = Tracked::except(&["spec", "metadata.labels"]);
    history.patch_to(
        "m",
        "status",
        json!({"spec": {"replicas": 9}, "status": {"replicas": 1}, "metadata": {"labels": {"a": "b"}}}),
    );
    let entries = history.entries();
    assert_eq!(entries.len(), 2);
    assert_eq!(entries[0]["fieldsV1"], json!({"f:spec": {"f:replicas": {}}}));
    assert_eq!(entries[1]["fieldsV1"], json!({"f:status": {"f:replicas": {}}}));
    assert_eq!(
        (entries[0].get("subresource"), &entries[1]["subresource"]),
        (None, &json!("status"))
    );
    // They cannot change the entries.
    let before = history.entries();
    history.patch_to("m", "status", json!({"metadata": {"managedFields": []}}));
    assert_eq!(history.entries(), before);
}

#[test]
fn conflicts_name_the_subresource() {
    let mut history = deployment();
    history.put("m", json!({"spec": {"replicas": 1}}));
    history.tracked = Tracked::All;
    history.patch_to("m", "status", json!({"status": {"replicas": 1}}));
    let text = history.conflicts("a", json!({"status": {"replicas": 2}}));
    assert_eq!(
        text,
        "Apply failed with 1 conflict: conflict with \"m\" with subresource \"status\" using apps/v1: .status.replicas"
    );
    let config = history.object(&json!({"status": {"replicas": 1}}));
    let applied = apply(&history.write("s", "status"), false, history.live.as_ref(), &config).unwrap();
    let entry = &applied["metadata"]["managedFields"][0];
    assert_eq!(
        (&entry["operation"], &entry["subresource"]),
        (&json!("Apply"), &json!("status"))
    );
}

#[test]
fn only_some_fields_may_be_tracked() {
    let mut history = deployment();
    history.tracked = Tracked::only(&["spec.template.spec.containers.*.resources", "metadata"]);
    let container = json!({"name": "c", "image": "i", "resources": {"limits": {"cpu": "1"}}});
    history.put("r", json!({"metadata": {"labels": {"a": "b"}}, "spec": {"replicas": 1, "template": {"spec": {"containers": [container]}}}}));
    assert_eq!(
        history.owned("r"),
        json!({
            "f:metadata": {"f:labels": {".": {}, "f:a": {}}},
            "f:spec": {"f:template": {"f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {
                ".": {},
                "f:resources": {".": {}, "f:limits": {".": {}, "f:cpu": {}}},
            }}}}},
        })
    );
}

#[test]
fn entries_of_other_versions_count_as_long_as_they_are_served() {
    let mut history = config_map();
    history.apply("a", json!({"data": {"x": "1"}}));
    let mut entries = history.entries();
    entries[0]["apiVersion"] = json!("v1beta1");
    history.patch("u", json!({"metadata": {"managedFields": entries}}));
    let config = history.object(&json!({"data": {"x": "2"}}));
    let run = |versions: &[&str], manager: &str| {
        let write = crate::managed_fields::Write {
            versions,
            ..history.write(manager, "")
        };
        apply(&write, false, history.live.as_ref(), &config)
    };
    assert!(matches!(run(&[], "b"), Err(ApplyError::Conflicts(_))));
    assert!(matches!(run(&["v1", "v1beta1"], "b"), Err(ApplyError::Conflicts(_))));
    let applied = run(&["v1"], "b").unwrap();
    assert_eq!(applied["metadata"]["managedFields"].as_array().unwrap().len(), 1);
    // The applier is the same one in every version, and moves to the one that it uses.
    let applied = run(&["v1", "v1beta1"], "a").unwrap();
    assert_eq!(applied["metadata"]["managedFields"][0]["apiVersion"], "v1");
    assert_eq!(applied["metadata"]["managedFields"].as_array().unwrap().len(), 1);
}

#[test]
fn entries_follow_a_schema_that_became_atomic() {
    let mut history = deployment();
    history.put("m", json!({"spec": {"selector": {"matchLabels": {"a": "b"}}}}));
    let mut entries = history.entries();
    entries[0]["fieldsV1"] = json!({"f:spec": {"f:selector": {"f:matchLabels": {".": {}, "f:a": {}}}}});
    history.patch("x", json!({"metadata": {"managedFields": entries}}));
    assert_eq!(history.owned("m"), json!({"f:spec": {"f:selector": {}}}));
}

const DEPLOYMENTS: ReplicasPath<'_> = ReplicasPath {
    api_version: "apps/v1",
    path: "spec.replicas",
};

#[test]
fn the_scale_shows_and_changes_who_owns_the_replicas() {
    let mut history = deployment();
    history.put("creator", json!({"spec": {"replicas": 1, "paused": true}}));
    history.apply("applier", json!({"spec": {"replicas": 1}}));
    let parent = history.get("/metadata/managedFields");
    let shown = to_scale(Some(&parent), &[DEPLOYMENTS]);
    let replicas = json!({"f:spec": {"f:replicas": {}}});
    assert_eq!(shown.len(), 2);
    assert!(
        shown
            .iter()
            .all(|entry| entry["fieldsV1"] == replicas && entry["apiVersion"] == "autoscaling/v1")
    );
    // A write that changes nothing.
    let back = from_scale(
        Some(&parent),
        Some(&Value::Array(shown.clone())),
        DEPLOYMENTS,
        &[DEPLOYMENTS],
    );
    assert_eq!(Value::Array(back), parent);
    // An autoscaler takes the count.
    let scaler = json!({"manager": "scaler", "operation": "Update", "apiVersion": "autoscaling/v1", "subresource": "scale",
        "time": "2024-01-01T00:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": replicas});
    let back = from_scale(Some(&parent), Some(&json!([scaler])), DEPLOYMENTS, &[DEPLOYMENTS]);
    assert_eq!(back.len(), 2);
    assert_eq!(
        (&back[0]["manager"], &back[0]["fieldsV1"]),
        (&json!("creator"), &json!({"f:spec": {"f:paused": {}}}))
    );
    assert_eq!(
        (&back[1]["manager"], &back[1]["apiVersion"]),
        (&json!("scaler"), &json!("apps/v1"))
    );
    assert_eq!(
        (&back[1]["subresource"], &back[1]["fieldsV1"]),
        (&json!("scale"), &replicas)
    );
    // And again, later.
    let parent = Value::Array(back);
    let mut shown = to_scale(Some(&parent), &[DEPLOYMENTS]);
    assert_eq!(shown.len(), 1);
    shown[0]["time"] = json!("2024-01-02T00:00:00Z");
    let back = from_scale(Some(&parent), Some(&Value::Array(shown)), DEPLOYMENTS, &[DEPLOYMENTS]);
    assert_eq!((back.len(), &back[1]["time"]), (2, &json!("2024-01-02T00:00:00Z")));
}
