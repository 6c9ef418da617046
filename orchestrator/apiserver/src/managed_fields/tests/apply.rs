//! Server-side apply.

use super::{History, config_map, deployment, json};
use crate::managed_fields::{ApplyError, Conflicts};
use serde_json::Value;

fn containers(history: &History) -> Value {
    history.get("/spec/template/spec/containers")
}

fn pod_spec(spec: Value) -> Value {
    json!({"spec": {"template": {"spec": spec}}})
}

#[test]
fn an_object_is_made_by_applying_it() {
    let mut history = deployment();
    history.apply(
        "a",
        json!({"metadata": {"labels": {"x": "y"}}, "spec": {"replicas": 2, "strategy": {}}}),
    );
    let live = history.live.clone().unwrap();
    assert_eq!(live["metadata"]["name"], "x");
    assert_eq!(live["spec"], json!({"replicas": 2, "strategy": {}}));
    assert_eq!(
        history.owned("a"),
        json!({"f:metadata": {"f:labels": {"f:x": {}}}, "f:spec": {"f:replicas": {}, "f:strategy": {}}})
    );
    let entry = &history.entries()[0];
    assert_eq!(
        (&entry["operation"], &entry["apiVersion"]),
        (&json!("Apply"), &json!("apps/v1"))
    );
}

#[test]
fn applying_the_same_again_changes_nothing() {
    let mut history = deployment();
    let config = json!({"spec": {"replicas": 2, "template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    history.apply("a", config.clone());
    // Defaults come in between.
    history.patch("a", json!({"spec": {"paused": true}}));
    let before = serde_json::to_string(&history.live).unwrap();
    history.apply("a", config.clone());
    assert_eq!(serde_json::to_string(&history.live).unwrap(), before);
    history.try_apply("a", true, &config).unwrap();
    assert_eq!(serde_json::to_string(&history.live).unwrap(), before);
}

#[test]
fn fields_of_others_are_in_conflict_until_forced() {
    let mut history = deployment();
    history.apply("a", json!({"spec": {"replicas": 1, "paused": true}}));
    let text = history.conflicts("b", json!({"spec": {"replicas": 2}}));
    assert_eq!(
        text,
        "Apply failed with 1 conflict: conflict with \"a\": .spec.replicas"
    );
    let text = history.conflicts("b", json!({"spec": {"replicas": 2, "paused": false}}));
    assert_eq!(
        text,
        "Apply failed with 2 conflicts: conflicts with \"a\":\n- .spec.paused\n- .spec.replicas"
    );
    history.try_apply("b", true, &json!({"spec": {"replicas": 2}})).unwrap();
    assert_eq!(history.get("/spec/replicas"), 2);
    assert_eq!(history.owned("a"), json!({"f:spec": {"f:paused": {}}}));
    assert_eq!(history.owned("b"), json!({"f:spec": {"f:replicas": {}}}));
    assert_eq!((history.time("a"), history.time("b")), (1, 4));
}

#[test]
fn conflicts_with_updates_name_the_version() {
    let mut history = deployment();
    history.put(
        "kubectl-edit",
        json!({"spec": {"replicas": 1, "template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}}}),
    );
    let config = json!({"spec": {"replicas": 2, "template": {"spec": {"containers": [{"name": "c", "image": "j"}]}}}});
    let error = history.try_apply("b", false, &config).unwrap_err();
    let ApplyError::Conflicts(Conflicts(conflicts)) = &error else {
        panic!("{error}")
    };
    assert_eq!(conflicts.len(), 2);
    let ApplyError::Conflicts(conflicts) = &error else {
        panic!("{error}")
    };
    let wanted = json!([
        {"reason": "FieldManagerConflict", "message": "conflict with \"kubectl-edit\" using apps/v1", "field": ".spec.replicas"},
        {"reason": "FieldManagerConflict", "message": "conflict with \"kubectl-edit\" using apps/v1",
            "field": ".spec.template.spec.containers[name=\"c\"].image"},
    ]);
    assert_eq!(Value::Array(conflicts.causes()), wanted);
}

#[test]
fn the_same_value_is_shared() {
    let mut history = config_map();
    history.apply("a", json!({"data": {"x": "1"}}));
    history.apply("b", json!({"data": {"x": "1"}}));
    assert_eq!(history.owned("a"), json!({"f:data": {"f:x": {}}}));
    assert_eq!(history.owned("b"), history.owned("a"));
    assert_eq!((history.time("a"), history.time("b")), (1, 2));
    // What one of the owners drops, stays with the other.
    history.apply("a", json!({}));
    assert_eq!(history.get("/data"), json!({"x": "1"}));
    assert_eq!(history.owned("a"), Value::Null);
    history.apply("b", json!({}));
    assert_eq!(history.get("/data"), Value::Null);
    assert_eq!(history.entries(), Vec::<Value>::new());
}

#[test]
fn what_is_no_longer_applied_goes() {
    let mut history = config_map();
    history.apply(
        "a",
        json!({"data": {"x": "1", "y": "2"}, "metadata": {"labels": {"l": "1"}}}),
    );
    history.patch("b", json!({"data": {"z": "3"}}));
    history.apply("a", json!({"data": {"x": "1"}}));
    assert_eq!(history.get("/data"), json!({"x": "1", "z": "3"}));
    assert_eq!(history.get("/metadata/labels"), Value::Null);
    assert_eq!(history.owned("a"), json!({"f:data": {"f:x": {}}}));
    history.apply("a", json!({}));
    assert_eq!(history.get("/data"), json!({"z": "3"}));
    assert_eq!(history.owned("b"), json!({"f:data": {"f:z": {}}}));
}

#[test]
fn what_others_changed_is_not_removed() {
    let mut history = deployment();
    history.apply("a", json!({"spec": {"replicas": 1}}));
    history.patch("autoscaler", json!({"spec": {"replicas": 5}}));
    history.apply("a", json!({"spec": {"paused": true}}));
    assert_eq!(history.get("/spec"), json!({"replicas": 5, "paused": true}));
    assert_eq!(history.owned("autoscaler"), json!({"f:spec": {"f:replicas": {}}}));
}

#[test]
fn items_of_keyed_lists_are_merged_and_removed() {
    let mut history = deployment();
    history.apply(
        "a",
        pod_spec(json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]})),
    );
    history.apply(
        "s",
        pod_spec(json!({"containers": [{"name": "sidecar", "image": "s"}]})),
    );
    assert_eq!(
        containers(&history),
        json!([{"name": "a", "image": "1"}, {"name": "b", "image": "1"}, {"name": "sidecar", "image": "s"}])
    );
    history.apply("a", pod_spec(json!({"containers": [{"name": "b", "image": "2"}]})));
    assert_eq!(
        containers(&history),
        json!([{"name": "b", "image": "2"}, {"name": "sidecar", "image": "s"}])
    );
    assert_eq!(
        history.owned("a").pointer("/f:spec/f:template/f:spec/f:containers"),
        Some(&json!({"k:{\"name\":\"b\"}": {".": {}, "f:image": {}, "f:name": {}}}))
    );
    // An item of which another owns a part stays, without what only the applier had.
    history.patch("i", json!({}));
    let mut object = history.live.clone().unwrap();
    object.pointer_mut("/spec/template/spec/containers/0").unwrap()["tty"] = json!(true);
    history.put_to("i", "", object);
    history.apply("a", pod_spec(json!({"containers": []})));
    assert_eq!(containers(&history), json!([{"name": "sidecar", "image": "s"}]));
}

#[test]
fn an_item_stays_while_another_applier_has_it() {
    let mut history = deployment();
    history.apply(
        "a",
        pod_spec(json!({"containers": [{"name": "c", "image": "1", "tty": true}]})),
    );
    history.apply("b", pod_spec(json!({"containers": [{"name": "c", "stdin": true}]})));
    history.apply("a", pod_spec(json!({"containers": []})));
    assert_eq!(containers(&history), json!([{"name": "c", "stdin": true}]));
}

#[test]
fn keys_may_be_left_to_their_defaults() {
    let ports = |ports: Value| pod_spec(json!({"containers": [{"name": "c", "ports": ports}]}));
    let mut history = deployment();
    history.put(
        "user",
        ports(json!([{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 80, "protocol": "UDP"}])),
    );
    history.apply("a", ports(json!([{"containerPort": 80, "name": "web"}])));
    assert_eq!(
        history.get("/spec/template/spec/containers/0/ports"),
        json!([
            {"containerPort": 80, "protocol": "TCP", "name": "web"},
            {"containerPort": 80, "protocol": "UDP"},
        ])
    );
    let port = "/f:spec/f:template/f:spec/f:containers/k:{\"name\":\"c\"}/f:ports";
    assert_eq!(
        history.owned("a").pointer(port),
        Some(&json!({"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}, "f:name": {}}}))
    );
    history.apply(
        "a",
        ports(json!([{"containerPort": 80, "name": "web", "protocol": "UDP"}])),
    );
    assert_eq!(
        history.get("/spec/template/spec/containers/0/ports/0/name"),
        Value::Null
    );
    assert_eq!(history.get("/spec/template/spec/containers/0/ports/1/name"), "web");
}

#[test]
fn order_follows_the_applied_list() {
    let list = |names: &[&str]| -> Value {
        let items: Value = names.iter().map(|name| json!({"name": name})).collect();
        pod_spec(json!({"containers": items}))
    };
    let cases: [(&[&str], &[&str], &[&str]); 7] = [
        (&["a", "b", "c"], &["b", "new"], &["a", "b", "c", "new"]),
        (&["a", "b", "c"], &["c", "a"], &["b", "c", "a"]),
        (&["a", "b"], &["new", "b"], &["a", "new", "b"]),
        (&["a", "b"], &["new", "a"], &["new", "a", "b"]),
        (&["a", "s", "b"], &["b", "a"], &["s", "b", "a"]),
        (&["s"], &["x", "y"], &["s", "x", "y"]),
        (&["a", "b"], &["b", "x", "a", "y"], &["b", "x", "a", "y"]),
    ];
    for (live, applied, wanted) in cases {
        let mut history = deployment();
        history.put("u", list(live));
        history.apply("a", list(applied));
        let got = containers(&history);
        let got: Vec<_> = got
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["name"].as_str().unwrap())
            .collect();
        assert_eq!(got, wanted, "{live:?} {applied:?}");
    }
}

#[test]
fn sets_are_merged_item_by_item() {
    let finalizers = |items: &[&str]| json!({"metadata": {"finalizers": items}});
    let mut history = config_map();
    history.apply("a", finalizers(&["x/a"]));
    history.apply("b", finalizers(&["x/b"]));
    assert_eq!(history.get("/metadata/finalizers"), json!(["x/a", "x/b"]));
    assert_eq!(
        history.owned("b"),
        json!({"f:metadata": {"f:finalizers": {"v:\"x/b\"": {}}}})
    );
    history.apply("a", json!({}));
    assert_eq!(history.get("/metadata/finalizers"), json!(["x/b"]));
    history.apply("b", json!({}));
    assert_eq!(history.get("/metadata/finalizers"), Value::Null);
}

#[test]
fn atomic_values_are_one_thing() {
    let mut history = deployment();
    history.apply("a", json!({"spec": {"selector": {"matchLabels": {"a": "1"}}}}));
    let text = history.conflicts("b", json!({"spec": {"selector": {"matchLabels": {"b": "1"}}}}));
    assert_eq!(
        text,
        "Apply failed with 1 conflict: conflict with \"a\": .spec.selector"
    );
    history.apply("a", json!({"spec": {"selector": {"matchLabels": {"b": "1"}}}}));
    assert_eq!(history.get("/spec/selector"), json!({"matchLabels": {"b": "1"}}));
    assert_eq!(history.owned("a"), json!({"f:spec": {"f:selector": {}}}));
    history.apply("a", pod_spec(json!({"tolerations": [{"key": "a"}]})));
    history.apply("a", pod_spec(json!({"tolerations": [{"key": "b"}]})));
    assert_eq!(history.get("/spec/template/spec/tolerations"), json!([{"key": "b"}]));
    assert_eq!(history.get("/spec/selector"), Value::Null);
}

#[test]
fn an_object_from_before_belongs_to_before_first_apply() {
    let mut history = config_map();
    history.live = Some(history.object(&json!({"data": {"x": "1"}})));
    let text = history.conflicts("a", json!({"data": {"x": "2"}}));
    assert_eq!(
        text,
        "Apply failed with 1 conflict: conflict with \"before-first-apply\" using v1: .data.x"
    );
    history.apply("a", json!({"data": {"y": "2"}}));
    assert_eq!(
        history.owned("before-first-apply"),
        json!({"f:data": {".": {}, "f:x": {}}})
    );
}

#[test]
fn kubectl_takes_over_from_client_side_apply() {
    let last =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": {"x": "1", "y": "1"}});
    let annotation = "kubectl.kubernetes.io/last-applied-configuration";
    let mut history = config_map();
    let annotations = json!({annotation: last.to_string()});
    history.put(
        "kubectl-client-side-apply",
        json!({"metadata": {"annotations": annotations}, "data": {"x": "1", "y": "1"}}),
    );
    // Another manager has no such privilege.
    assert!(
        history
            .conflicts("helm", json!({"data": {"x": "2"}}))
            .contains("1 conflict")
    );
    // What somebody changed since is no longer kubectl's.
    history.patch("other", json!({"data": {"y": "9"}}));
    let text = history.conflicts("kubectl", json!({"data": {"x": "2", "y": "2"}}));
    assert_eq!(
        text,
        "Apply failed with 1 conflict: conflict with \"other\" using v1: .data.y"
    );
    history.apply("kubectl", json!({"data": {"x": "2"}}));
    assert_eq!(history.get("/data"), json!({"x": "2", "y": "9"}));
    assert_eq!(history.owned("kubectl"), json!({"f:data": {"f:x": {}}}));
    // Clients that still read the annotation find the new configuration there.
    let annotations = history.get("/metadata/annotations");
    let last: Value = serde_json::from_str(annotations[annotation].as_str().unwrap()).unwrap();
    assert_eq!(last, history.object(&json!({"data": {"x": "2"}})));
    let before = history.live.clone();
    history.apply("kubectl", json!({"data": {"x": "2"}}));
    assert_eq!(history.live, before);
}

#[test]
fn a_bad_configuration_is_refused_in_upstreams_words() {
    let mut history = deployment();
    history.put("u", json!({"spec": {"replicas": 1}}));
    let typed = "failed to create typed patch object (d/x; apps/v1, Kind=Deployment): ";
    let cases = [
        (
            json!({"kind": "Pod"}),
            "invalid object type: apps/v1, Kind=Pod".to_owned(),
        ),
        (
            json!({"apiVersion": "v1"}),
            "invalid object type: /v1, Kind=Deployment".to_owned(),
        ),
        (
            json!({"apiVersion": null, "kind": null}),
            "invalid object type: /, Kind=".to_owned(),
        ),
        (
            json!({"metadata": {"managedFields": []}}),
            "metadata.managedFields must be nil".to_owned(),
        ),
        (
            json!({"spec": {"nope": 1}}),
            format!("{typed}.spec.nope: field not declared in schema"),
        ),
        (
            json!({"spec": {"replicas": "x"}}),
            format!("{typed}.spec.replicas: expected numeric (int or float), got \"x\""),
        ),
        (json!({"spec": []}), format!("{typed}.spec: expected map, got []")),
        (
            pod_spec(json!({"containers": {}})),
            format!("{typed}.spec.template.spec.containers: expected list, got {{}}"),
        ),
        (
            pod_spec(json!({"containers": [{"name": "a"}, {"name": "a"}]})),
            format!("{typed}.spec.template.spec.containers: duplicate entries for key [name=\"a\"]"),
        ),
        (
            pod_spec(json!({"containers": [{"image": "a"}]})),
            format!(
                "{typed}.spec.template.spec.containers: element 0: associative list with keys has an element that \
                     omits key field \"name\" (and doesn't have default value)"
            ),
        ),
    ];
    for (config, wanted) in cases {
        let error = history.try_apply("a", true, &config).unwrap_err();
        assert_eq!(error, ApplyError::BadRequest(wanted));
    }
    let many = history
        .try_apply("a", true, &json!({"spec": {"nope": 1, "nor": 2}}))
        .unwrap_err()
        .to_string();
    assert_eq!(
        many,
        format!(
            "{typed}errors:\n  .spec.nope: field not declared in schema\n  .spec.nor: field not declared in schema"
        )
    );
}

#[test]
fn untyped_content_is_owned_field_by_field() {
    let mut history = History::of("apps/v1", "ControllerRevision");
    history.apply("a", json!({"revision": 1, "data": {"x": {"y": 1}, "l": [1, 2]}}));
    history.apply("b", json!({"revision": 1, "data": {"x": {"z": 2}}}));
    assert_eq!(history.get("/data"), json!({"x": {"y": 1, "z": 2}, "l": [1, 2]}));
    assert!(
        history
            .conflicts("b", json!({"revision": 1, "data": {"l": [3]}}))
            .contains(".data.l")
    );
    // A value that becomes another kind of value.
    history
        .try_apply("b", true, &json!({"revision": 1, "data": {"x": "text"}}))
        .unwrap();
    assert_eq!(history.get("/data/x"), "text");
    history
        .try_apply("a", true, &json!({"revision": 1, "data": {"x": {"y": 2}}}))
        .unwrap();
    assert_eq!(history.get("/data/x"), json!({"y": 2}));
}
