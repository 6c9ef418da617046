//! Entries that clients made up.

use super::{config_map, json};
use crate::managed_fields::{ApplyError, apply, check, keep_times, update};
use crate::value::MAX_DEPTH;
use serde_json::Value;

fn entry(changes: Value) -> Value {
    let mut entry = json!({"manager": "m", "operation": "Update", "apiVersion": "v1", "time": "2024-01-01T00:00:00Z",
        "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {"f:x": {}}}});
    json_patch::merge(&mut entry, &changes);
    entry
}

#[test]
fn bad_entries_are_told_apart() {
    let cases = [
        (json!({"operation": "Create"}), "operation must be `Apply` or `Update`"),
        (json!({"operation": null}), "operation must be `Apply` or `Update`"),
        (json!({"apiVersion": ""}), "apiVersion must not be empty"),
        (
            json!({"fieldsType": null}),
            "missing fieldsType in managed fields entry 0",
        ),
        (
            json!({"fieldsType": "V2"}),
            "invalid fieldsType \"V2\" in managed fields entry 0",
        ),
        (
            json!({"fieldsV1": {"nope": {}}}),
            "error decoding set in managed fields entry 0: missing colon: nope",
        ),
        (
            json!({"manager": 1}),
            "manager must be a string in managed fields entry 0",
        ),
        (json!({"time": "yesterday"}), "invalid time \"yesterday\""),
    ];
    for (changes, wanted) in cases {
        let object = json!({"metadata": {"managedFields": [entry(changes)]}});
        let error = check(&object).unwrap_err();
        assert!(error.starts_with(wanted), "{error}");
    }
    assert_eq!(
        check(&json!({"metadata": {"managedFields": [entry(json!({}))]}})),
        Ok(())
    );
    assert_eq!(check(&json!({"metadata": {"managedFields": null}})), Ok(()));
    assert_eq!(check(&json!({})), Ok(()));
    assert_eq!(check(&json!([1])), Ok(()));
}

#[test]
fn a_stored_object_with_bad_entries_can_be_updated_but_not_applied_to() {
    let mut history = config_map();
    let bad = json!({"data": {"x": "1"}, "metadata": {"managedFields": [entry(json!({"operation": "x"}))]}});
    let live = history.object(&bad);
    history.live = Some(live.clone());
    let config = history.object(&json!({"data": {"x": "2"}}));
    let error = apply(&history.write("a", ""), true, Some(&live), &config).unwrap_err();
    let wanted = "failed to decode managed fields: operation must be `Apply` or `Update`";
    assert_eq!(error, ApplyError::BadRequest(wanted.into()));
    history.patch("u", json!({"data": {"x": "3"}}));
    assert!(history.entries().is_empty());
}

#[test]
fn objects_without_metadata_or_of_no_kind_are_borne() {
    let history = config_map();
    for object in [
        json!(null),
        json!(1),
        json!([]),
        json!({"metadata": 1}),
        json!({"metadata": {"managedFields": {}}}),
    ] {
        let mut new = object.clone();
        update(&history.write("a", ""), None, &mut new);
        let mut new = object.clone();
        update(&history.write("a", ""), Some(&object), &mut new);
        keep_times(&object, &mut new);
        let config = history.object(&json!({"data": {"x": "1"}}));
        let _ = apply(&history.write("a", ""), true, Some(&object), &config);
        assert!(apply(&history.write("a", ""), true, None, &object).is_err());
    }
}

#[test]
fn depth_is_bounded() {
    let history = config_map();
    let deep = (0..=MAX_DEPTH).fold(json!(1), |inner, _| json!({"a": inner}));
    let config = history.object(&json!({"data": deep}));
    let error = apply(&history.write("a", ""), true, None, &config).unwrap_err();
    assert!(error.to_string().contains("max depth"), "{error}");
    let mut new = config.clone();
    update(&history.write("a", ""), None, &mut new);
    assert_eq!(new, config);
}

#[test]
fn times_are_kept_only_where_nothing_else_changed() {
    let old = json!({"data": 1, "metadata": {"managedFields": [entry(json!({})), entry(json!({"manager": "n"}))]}});
    let later = entry(json!({"time": "2025-01-01T00:00:00Z"}));
    // A changed time changes the order too.
    let newer = json!({"data": 1, "metadata": {"managedFields": [entry(json!({"manager": "n"})), later]}});
    let mut new = newer.clone();
    keep_times(&old, &mut new);
    assert_eq!(new, old);
    let mut new = newer.clone();
    new["data"] = json!(2);
    let before = new.clone();
    keep_times(&old, &mut new);
    assert_eq!(new, before);
    let mut new = newer;
    new["metadata"]["managedFields"][0]["fieldsV1"] = json!({});
    let before = new.clone();
    keep_times(&old, &mut new);
    assert_eq!(new, before);
}
