#![allow(
    clippy::needless_pass_by_value,
    reason = "`json!` at every call reads best as a value"
)]

use super::*;
use proptest::prelude::*;
use serde_json::json;
use std::sync::Arc;

fn types() -> Arc<Types> {
    Types::builtin()
}

fn patch_as(kind: &str, object: Value, patch: Value) -> Result<Value, PatchError> {
    let types = types();
    let api_version = if kind == "Deployment" { "apps/v1" } else { "v1" };
    let ty = types.kind_of(api_version, kind).unwrap();
    strategic_merge_patch(&types, ty, &object, &patch)
}

/// A pod's spec, patched.
fn pod(object: Value, patch: Value) -> Value {
    let patched = patch_as("Pod", json!({"spec": object}), json!({"spec": patch})).unwrap();
    patched["spec"].clone()
}

fn pod_error(object: Value, patch: Value) -> String {
    let error = patch_as("Pod", json!({"spec": object}), json!({"spec": patch})).unwrap_err();
    assert_eq!(error.code(), 400, "{error}");
    error.to_string()
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array()
        .unwrap()
        .iter()
        .map(|item| item["name"].as_str().unwrap())
        .collect()
}

fn containers(names: &[&str]) -> Value {
    names
        .iter()
        .map(|name| json!({"name": name, "image": format!("{name}:1")}))
        .collect()
}

#[test]
fn fields_are_merged_and_nulls_delete() {
    let object = json!({"nodeName": "a", "hostNetwork": true, "nodeSelector": {"x": "1", "y": "2"}});
    let patch = json!({"nodeName": "b", "hostNetwork": null, "hostPID": null, "nodeSelector": {"x": null, "z": "3"}});
    assert_eq!(
        pod(object, patch),
        json!({"nodeName": "b", "nodeSelector": {"y": "2", "z": "3"}})
    );
}

#[test]
fn new_values_enter_without_nulls() {
    let patch = json!({"securityContext": {"runAsUser": null, "fsGroup": 1}, "nodeSelector": null});
    assert_eq!(pod(json!({}), patch), json!({"securityContext": {"fsGroup": 1}}));
    // A value of another kind is replaced.
    assert_eq!(
        pod(json!({"nodeName": {"a": 1}}), json!({"nodeName": "x"})),
        json!({"nodeName": "x"})
    );
}

#[test]
fn lists_with_a_merge_key_are_merged_by_it() {
    let object = json!({"containers": containers(&["a", "b"])});
    let patched = pod(
        object,
        json!({"containers": [{"name": "b", "image": "new"}, {"name": "c"}]}),
    );
    assert_eq!(
        patched,
        json!({"containers": [{"name": "a", "image": "a:1"}, {"name": "b", "image": "new"}, {"name": "c"}]})
    );
}

#[test]
fn lists_without_a_strategy_are_replaced() {
    let object = json!({"containers": [{"name": "a", "args": ["x", "y"]}], "tolerations": [{"key": "a"}]});
    let patch = json!({"containers": [{"name": "a", "args": ["z"]}], "tolerations": [{"key": "b", "value": null}]});
    let wanted = json!({"containers": [{"name": "a", "args": ["z"]}], "tolerations": [{"key": "b"}]});
    assert_eq!(pod(object, patch), wanted);
}

#[test]
fn merge_keys_may_be_numbers() {
    let object = json!({"spec": {"ports": [{"port": 80, "name": "a"}, {"port": 81}]}});
    let patch = json!({"spec": {"ports": [{"port": 80, "name": "b"}, {"port": 82}]}});
    // The order of the patch goes first, and nothing says where 81 belongs beside 82.
    let wanted = json!({"spec": {"ports": [{"port": 80, "name": "b"}, {"port": 82}, {"port": 81}]}});
    let patched = patch_as("Service", object, patch).unwrap();
    assert_eq!(patched, wanted);
}

#[test]
fn items_are_deleted_by_their_merge_key() {
    let object = json!({"containers": containers(&["a", "b", "a"])});
    let patched = pod(
        object.clone(),
        json!({"containers": [{"$patch": "delete", "name": "a"}]}),
    );
    assert_eq!(names(&patched["containers"]), ["b"]);
    let both = json!({"containers": [{"$patch": "delete", "name": "a"}, {"name": "c"}]});
    assert_eq!(names(&pod(object.clone(), both)["containers"]), ["c", "b"]);
    // Nothing there to delete is fine.
    let patched = pod(object, json!({"containers": [{"$patch": "delete", "name": "x"}]}));
    assert_eq!(names(&patched["containers"]), ["a", "a", "b"]);
    assert_eq!(
        pod(json!({}), json!({"containers": [{"$patch": "delete", "name": "x"}]})),
        json!({"containers": []})
    );
}

#[test]
fn a_merged_list_can_be_replaced() {
    let object = json!({"containers": containers(&["a", "b"])});
    let patched = pod(
        object.clone(),
        json!({"containers": [{"name": "c", "image": null}, {"$patch": "replace"}]}),
    );
    assert_eq!(patched, json!({"containers": [{"name": "c"}]}));
    assert_eq!(
        pod(object, json!({"containers": [{"$patch": "replace"}]})),
        json!({"containers": []})
    );
}

#[test]
fn objects_can_be_replaced_and_emptied() {
    let object = json!({"securityContext": {"runAsUser": 1, "fsGroup": 2}});
    let replace = json!({"securityContext": {"$patch": "replace", "runAsGroup": 3, "fsGroup": null}});
    assert_eq!(
        pod(object.clone(), replace),
        json!({"securityContext": {"runAsGroup": 3}})
    );
    let delete = json!({"securityContext": {"$patch": "delete"}});
    assert_eq!(pod(object, delete.clone()), json!({"securityContext": {}}));
    assert_eq!(pod(json!({}), delete), json!({}));
}

#[test]
fn retain_keys_drops_what_is_not_listed() {
    let object = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
    let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
    assert_eq!(
        patch_as("Deployment", object, patch),
        Ok(json!({"spec": {"strategy": {"type": "Recreate"}}}))
    );
    let object = json!({"volumes": [{"name": "v", "emptyDir": {}}]});
    let patch = json!({"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/"}}]});
    assert_eq!(
        pod(object, patch),
        json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]})
    );
    for bad in [
        json!({"$retainKeys": "a"}),
        json!({"$retainKeys": ["a"], "nodeName": "x"}),
    ] {
        assert_eq!(pod_error(json!({}), bad), "invalid patch format of retainKeys");
    }
}

fn finalizers(object: &[&str], patch: Value) -> Value {
    let patched = patch_as(
        "Pod",
        json!({"metadata": {"finalizers": object}}),
        json!({"metadata": patch}),
    )
    .unwrap();
    patched["metadata"]["finalizers"].clone()
}

#[test]
fn merged_lists_of_scalars_are_sets() {
    assert_eq!(
        finalizers(&["a", "b"], json!({"finalizers": ["c", "a", "c"]})),
        json!(["c", "a", "b"])
    );
    assert_eq!(finalizers(&["a", "a"], json!({"finalizers": ["b"]})), json!(["b", "a"]));
    assert_eq!(finalizers(&[], json!({"finalizers": []})), json!([]));
}

#[test]
fn scalars_are_deleted_through_the_parallel_list() {
    let patch = json!({"$deleteFromPrimitiveList/finalizers": ["a", "x"], "finalizers": ["c"]});
    assert_eq!(finalizers(&["a", "b"], patch), json!(["c", "b"]));
    let only = json!({"$deleteFromPrimitiveList/finalizers": ["a"]});
    assert_eq!(finalizers(&["a", "b", "a"], only.clone()), json!(["b"]));
    assert_eq!(patch_as("Pod", json!({}), only), Ok(json!({})));
    let bad = patch_as(
        "Pod",
        json!({"metadata": {}}),
        json!({"metadata": {"$deleteFromPrimitiveList": []}}),
    )
    .unwrap_err();
    assert_eq!(bad.to_string(), "invalid patch format of primitive list");
}

#[test]
fn set_element_order_orders_scalars() {
    let patch = json!({"$setElementOrder/finalizers": ["c", "a", "b"], "finalizers": ["c"]});
    assert_eq!(finalizers(&["a", "b"], patch), json!(["c", "a", "b"]));
    // What only the server has keeps its place before the next known item.
    let patch = json!({"$setElementOrder/finalizers": ["b", "a"]});
    assert_eq!(finalizers(&["a", "s", "b"], patch), json!(["s", "b", "a"]));
    let patch = json!({"$setElementOrder/finalizers": ["a", "b"], "$deleteFromPrimitiveList/finalizers": ["c"]});
    assert_eq!(finalizers(&["c", "b", "a"], patch), json!(["a", "b"]));
    assert_eq!(
        patch_as(
            "Pod",
            json!({}),
            json!({"metadata": {"$setElementOrder/finalizers": ["a"]}})
        ),
        Ok(json!({"metadata": {}}))
    );
}

#[test]
fn set_element_order_orders_objects() {
    let order = |names: &[&str]| -> Value { names.iter().map(|name| json!({"name": name})).collect() };
    let object = json!({"containers": containers(&["a", "server", "b"])});
    let patch = json!({
        "$setElementOrder/containers": order(&["new", "b", "a"]),
        "containers": [{"name": "new"}, {"name": "a", "image": "x"}],
    });
    let patched = pod(object.clone(), patch);
    assert_eq!(names(&patched["containers"]), ["new", "server", "b", "a"]);
    assert_eq!(patched["containers"][3], json!({"name": "a", "image": "x"}));
    let patch = json!({
        "$setElementOrder/containers": order(&["b"]),
        "containers": [{"$patch": "delete", "name": "a"}],
    });
    assert_eq!(names(&pod(object.clone(), patch)["containers"]), ["server", "b"]);
    // The list is new.
    let patch = json!({"$setElementOrder/containers": order(&["b", "a"]), "containers": containers(&["b", "a"])});
    assert_eq!(names(&pod(json!({}), patch)["containers"]), ["b", "a"]);
    // The patch's list says one order and the directive another.
    let patch = json!({"$setElementOrder/containers": order(&["b", "a"]), "containers": containers(&["a", "b"])});
    assert!(pod_error(object.clone(), patch).starts_with("The order in patch list:\n[map[image:a:1 name:a]"));
    assert_eq!(
        pod_error(object, json!({"$setElementOrder/containers": "x"})),
        "expected a []interface {}, but received a string"
    );
    let bad = json!({"$setElementOrder": []});
    assert_eq!(
        pod_error(json!({}), bad),
        "invalid patch format of setElementOrder list"
    );
}

#[test]
fn kubectl_apply_of_a_changed_deployment() {
    let container = json!({"name": "web", "image": "web:1", "imagePullPolicy": "Always", "env": [
        {"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
    ]});
    let object = json!({"spec": {"replicas": 1, "template": {"spec": {"containers": [container]}}}});
    let patch = json!({"metadata": {"annotations": {"x": "y"}}, "spec": {"template": {"spec": {
        "$setElementOrder/containers": [{"name": "web"}],
        "containers": [{"name": "web", "image": "web:2", "$setElementOrder/env": [{"name": "B"}, {"name": "A"}],
            "env": [{"name": "B", "value": "2", "valueFrom": null}]}],
    }}}});
    let container = json!({"name": "web", "image": "web:2", "imagePullPolicy": "Always",
        "env": [{"name": "B", "value": "2"}, {"name": "A", "value": "1"}]});
    let wanted = json!({"metadata": {"annotations": {"x": "y"}},
        "spec": {"replicas": 1, "template": {"spec": {"containers": [container]}}}});
    assert_eq!(patch_as("Deployment", object, patch), Ok(wanted));
}

#[test]
fn malformed_patches_are_refused_in_upstreams_words() {
    let object = json!({"containers": containers(&["a"]), "securityContext": {"fsGroup": 1}});
    let cases = [
        (
            json!({"containers": [{"image": "x"}]}),
            "map: map[image:x] does not contain declared merge key: name",
        ),
        (
            json!({"containers": [{"$patch": "delete"}]}),
            "map: map[$patch:delete] does not contain declared merge key: name",
        ),
        (
            json!({"containers": [{"$patch": "merge"}]}),
            "merging lists cannot yet be specified in the patch",
        ),
        (
            json!({"containers": [{"$patch": "x"}]}),
            "unknown patch type: x in map: map[$patch:x]",
        ),
        (
            json!({"securityContext": {"$patch": "x"}}),
            "unknown patch type: x in map: map[$patch:x]",
        ),
        (
            json!({"containers": ["x"]}),
            "list element types are not identical: [[map[image:a:1 name:a]] [x]]",
        ),
    ];
    for (patch, wanted) in cases {
        assert_eq!(pod_error(object.clone(), patch), wanted);
    }
    let error = patch_as("Pod", json!({"spec": {"nope": {}}}), json!({"spec": {"nope": {}}})).unwrap_err();
    assert_eq!(
        error.to_string(),
        "unable to find api field in struct PodSpec for the json field \"nope\""
    );
    assert_eq!(
        patch_as("Pod", json!({}), json!([])).unwrap_err().to_string(),
        "invalid JSON document"
    );
    let lists = patch_as(
        "Pod",
        json!({"spec": {"containers": [[]]}}),
        json!({"spec": {"containers": [[]]}}),
    );
    assert_eq!(lists.unwrap_err().code(), 422);
}

#[test]
fn what_has_no_schema_is_merged_by_field() {
    let types = types();
    let ty = types.kind_of("apps/v1", "ControllerRevision").unwrap();
    let object = json!({"data": {"a": {"b": 1}, "l": [1]}});
    let patched = strategic_merge_patch(&types, ty, &object, &json!({"data": {"a": {"c": 2}, "l": [2]}}));
    assert_eq!(patched, Ok(json!({"data": {"a": {"b": 1, "c": 2}, "l": [2]}})));
}

fn json_values() -> impl Strategy<Value = Value> {
    let name = prop_oneof![
        "(spec|containers|name|image|metadata|finalizers|volumes|emptyDir|env|ports|nodeSelector|securityContext)",
        r"\$(patch|retainKeys|setElementOrder/(containers|finalizers|env)|deleteFromPrimitiveList/finalizers)",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (0..3i64).prop_map(Value::from),
        "(a|b|delete|replace|merge)".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((name.clone(), inner), 0..5)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_patch_panics_or_leaves_directives(object in json_values(), patch in json_values()) {
        let plain = |value: &Value| clean(value.clone()).unwrap_or_default();
        if let Ok(patched) = patch_as("Pod", plain(&object), patch) {
            prop_assert!(!patched.to_string().contains("\"$"), "{}", patched);
            prop_assert!(!patched.as_object().unwrap().values().any(Value::is_null));
        }
    }

    #[test]
    fn a_patch_without_directives_is_idempotent(
        old in prop::collection::vec(prop::sample::select(vec!["a", "b", "c", "d"]), 0..5),
        new in prop::collection::vec(prop::sample::select(vec!["a", "b", "c", "d"]), 0..5),
    ) {
        let patch = json!({"containers": containers(&new), "tolerations": [{"key": "a"}], "nodeSelector": {"a": "b"}});
        let once = pod(json!({"containers": containers(&old)}), patch.clone());
        prop_assert_eq!(pod(once.clone(), patch), once.clone());
        let names = names(&once["containers"]);
        prop_assert!(old.iter().chain(&new).all(|name| names.contains(name)));
    }

    #[test]
    fn without_lists_it_is_a_merge_patch(object in json_values(), patch in json_values()) {
        fn without_lists(value: &Value) -> Value {
            match value {
                Value::Object(fields) => fields
                    .iter()
                    .filter(|(name, value)| !name.starts_with('$') && !value.is_array())
                    .map(|(name, value)| (name.clone(), without_lists(value)))
                    .collect(),
                other => other.clone(),
            }
        }
        let (object, patch) = (clean(without_lists(&object)).unwrap_or_default(), without_lists(&patch));
        if let (Ok(strategic), Ok(merged)) =
            (patch_as("Pod", object.clone(), patch.clone()), crate::patch::merge_patch(&object, &patch))
        {
            prop_assert_eq!(strategic, merged);
        }
    }
}
