//! Writes other than apply.

use super::{config_map, deployment, json};
use crate::managed_fields::{ANCIENT, MAX_UPDATE_MANAGERS, Tracked};
use serde_json::Value;

/// What `kubectl create deployment` makes, with defaults.
fn web() -> Value {
    json!({
        "metadata": {"labels": {"app": "web"}},
        "spec": {
            "replicas": 1,
            "revisionHistoryLimit": 10,
            "selector": {"matchLabels": {"app": "web"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {
                    "containers": [{
                        "name": "web", "image": "web:1", "resources": {},
                        "ports": [{"containerPort": 80, "protocol": "TCP"}],
                        "livenessProbe": {"httpGet": {"path": "/", "port": 80}},
                    }],
                    "restartPolicy": "Always",
                    "securityContext": {},
                    "tolerations": [{"key": "a"}],
                    "volumes": [{"name": "v", "emptyDir": {}}],
                },
            },
        },
        "status": {},
    })
}

#[test]
fn a_create_owns_everything_but_identity() {
    let mut history = deployment();
    history.put("kubectl-create", web());
    let wanted = json!({
        "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
        "f:spec": {
            "f:replicas": {},
            "f:revisionHistoryLimit": {},
            "f:selector": {},
            "f:strategy": {
                "f:rollingUpdate": {".": {}, "f:maxSurge": {}, "f:maxUnavailable": {}},
                "f:type": {},
            },
            "f:template": {
                "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
                "f:spec": {
                    "f:containers": {"k:{\"name\":\"web\"}": {
                        ".": {}, "f:name": {}, "f:image": {}, "f:resources": {},
                        "f:ports": {".": {}, "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {
                            ".": {}, "f:containerPort": {}, "f:protocol": {},
                        }},
                        "f:livenessProbe": {".": {}, "f:httpGet": {".": {}, "f:path": {}, "f:port": {}}},
                    }},
                    "f:restartPolicy": {},
                    "f:securityContext": {},
                    "f:tolerations": {},
                    "f:volumes": {".": {}, "k:{\"name\":\"v\"}": {".": {}, "f:emptyDir": {}, "f:name": {}}},
                },
            },
        },
    });
    assert_eq!(history.owned("kubectl-create"), wanted);
    let entry = &history.entries()[0];
    assert_eq!(entry["operation"], "Update");
    assert_eq!(entry["apiVersion"], "apps/v1");
    assert_eq!(entry["fieldsType"], "FieldsV1");
    assert_eq!(entry["time"], "2023-11-14T22:13:21Z");
    assert_eq!(entry.get("subresource"), None);
}

#[test]
fn who_changes_a_field_owns_it() {
    let mut history = deployment();
    history.put("a", web());
    history.patch(
        "b",
        json!({"spec": {"replicas": 3}, "metadata": {"labels": {"x": "y"}}}),
    );
    assert_eq!(
        history.owned("b"),
        json!({"f:metadata": {"f:labels": {"f:x": {}}}, "f:spec": {"f:replicas": {}}})
    );
    assert_eq!(history.owned("a").pointer("/f:spec/f:replicas"), None);
    assert!(history.owned("a").pointer("/f:spec/f:selector").is_some());
    assert_eq!((history.time("a"), history.time("b")), (1, 2));
    // An atomic list belongs to whoever changed anything in it.
    history.patch(
        "b",
        json!({"spec": {"template": {"spec": {"tolerations": [{"key": "b"}]}}}}),
    );
    assert!(
        history
            .owned("b")
            .pointer("/f:spec/f:template/f:spec/f:tolerations")
            .is_some()
    );
    assert_eq!(
        history.owned("a").pointer("/f:spec/f:template/f:spec/f:tolerations"),
        None
    );
    assert_eq!(history.time("b"), 3);
}

#[test]
fn a_write_that_changes_nothing_leaves_no_trace() {
    let mut history = deployment();
    history.put("a", web());
    let before = history.live.clone();
    history.patch("a", json!({}));
    history.patch("b", json!({}));
    history.patch("b", json!({"spec": {"replicas": 1.0}}));
    assert_eq!(history.live.clone().unwrap()["metadata"], before.unwrap()["metadata"]);
}

#[test]
fn what_is_removed_has_no_owner() {
    let mut history = config_map();
    history.put("a", json!({"data": {"x": "1", "y": "2"}}));
    history.patch("b", json!({"data": {"x": null}}));
    assert_eq!(history.owned("a"), json!({"f:data": {".": {}, "f:y": {}}}));
    assert_eq!(history.owned("b"), Value::Null);
    assert_eq!(history.time("a"), 1);
    history.patch("b", json!({"data": null}));
    assert_eq!(history.entries(), Vec::<Value>::new());
}

#[test]
fn list_items_are_owned_by_their_keys() {
    let mut history = deployment();
    history.put("a", web());
    let mut object = history.live.clone().unwrap();
    let containers = object
        .pointer_mut("/spec/template/spec/containers")
        .unwrap()
        .as_array_mut()
        .unwrap();
    containers.insert(0, json!({"name": "sidecar", "image": "s"}));
    containers[1]["image"] = json!("web:2");
    history.put_to("b", "", object);
    assert_eq!(
        history.owned("b").pointer("/f:spec/f:template/f:spec/f:containers"),
        Some(&json!({
            "k:{\"name\":\"sidecar\"}": {".": {}, "f:image": {}, "f:name": {}},
            "k:{\"name\":\"web\"}": {"f:image": {}},
        }))
    );
    // A changed order changes nobody's ownership.
    let before = history.entries();
    let mut object = history.live.clone().unwrap();
    object
        .pointer_mut("/spec/template/spec/containers")
        .unwrap()
        .as_array_mut()
        .unwrap()
        .reverse();
    history.put_to("c", "", object);
    assert_eq!(history.entries(), before);
}

#[test]
fn twins_in_a_list_are_owned_together() {
    let mut history = deployment();
    let spec = |env: Value| json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "env": env}]}}}});
    history.put("a", spec(json!([{"name": "A", "value": "1"}])));
    history.put(
        "b",
        spec(json!([{"name": "A", "value": "1"}, {"name": "A", "value": "2"}])),
    );
    let env = "/f:spec/f:template/f:spec/f:containers/k:{\"name\":\"c\"}/f:env/k:{\"name\":\"A\"}";
    assert_eq!(history.owned("b").pointer(env), Some(&json!({})));
    assert_eq!(history.owned("a").pointer(env), None);
    history.put(
        "c",
        spec(json!([{"name": "A", "value": "1"}, {"name": "A", "value": "3"}])),
    );
    assert_eq!(history.owned("c").pointer(env), Some(&json!({})));
    history.put("d", spec(json!([{"name": "A", "value": "3"}])));
    assert_eq!(
        history.owned("d").pointer(env),
        Some(&json!({".": {}, "f:name": {}, "f:value": {}}))
    );
}

#[test]
fn clients_that_drop_the_entries_do_not_lose_them() {
    let mut history = config_map();
    history.put("a", json!({"data": {"x": "1"}}));
    history.put("b", json!({"data": {"x": "1", "y": "2"}}));
    assert_eq!(history.owned("a"), json!({"f:data": {".": {}, "f:x": {}}}));
    assert_eq!(history.owned("b"), json!({"f:data": {"f:y": {}}}));
    // Nor do those that send what nobody can read.
    for bad in [
        json!([{"manager": "x"}]),
        json!("x"),
        json!([{"operation": "Apply", "apiVersion": "v1", "fieldsType": "F"}]),
    ] {
        history.patch("b", json!({"metadata": {"managedFields": bad}}));
        assert_eq!(history.entries().len(), 2);
    }
}

#[test]
fn entries_can_be_reset_and_are_then_gone_until_the_next_apply() {
    for reset in [json!([]), json!([{}])] {
        let mut history = config_map();
        history.put("a", json!({"data": {"x": "1"}}));
        history.patch("a", json!({"metadata": {"managedFields": reset}}));
        assert_eq!(history.entries(), Vec::<Value>::new());
        history.patch("b", json!({"data": {"y": "2"}}));
        assert_eq!(history.entries(), Vec::<Value>::new());
        history.apply("c", json!({"data": {"z": "3"}}));
        assert_eq!(
            history.owned("before-first-apply"),
            json!({"f:data": {".": {}, "f:x": {}, "f:y": {}}})
        );
        assert_eq!(history.owned("c"), json!({"f:data": {"f:z": {}}}));
    }
}

#[test]
fn entries_can_be_edited() {
    // How kubectl moves an object from client-side to server-side apply.
    let mut history = config_map();
    history.put("kubectl-client-side-apply", json!({"data": {"x": "1"}}));
    let mut entries = history.entries();
    entries[0]["operation"] = json!("Apply");
    entries[0]["manager"] = json!("kubectl");
    history.patch(
        "kubectl-client-side-apply",
        json!({"metadata": {"managedFields": entries.clone()}}),
    );
    assert_eq!(history.entries(), entries);
    history.apply("kubectl", json!({"data": {"y": "2"}}));
    assert_eq!(history.get("/data"), json!({"y": "2"}));
}

#[test]
fn there_are_only_so_many_update_managers() {
    let mut history = config_map();
    history.put("m0", json!({"data": {"k0": "v"}}));
    for at in 1..15 {
        let (manager, key) = (format!("m{at}"), format!("k{at}"));
        history.patch(&manager, json!({"data": {key: "v"}}));
    }
    assert_eq!(history.entries().len(), MAX_UPDATE_MANAGERS);
    let ancient = json!({"f:data": {".": {}, "f:k0": {}, "f:k1": {}, "f:k2": {}, "f:k3": {}, "f:k4": {}, "f:k5": {}}});
    assert_eq!(history.owned(ANCIENT), ancient);
    // When the newest of them wrote.
    assert_eq!(history.time(ANCIENT), 6);
    assert_eq!(history.owned("m6"), json!({"f:data": {"f:k6": {}}}));
    // Appliers are not counted.
    history.apply("applier", json!({"data": {"a": "v"}}));
    assert_eq!(history.entries().len(), MAX_UPDATE_MANAGERS + 1);
    assert_eq!(history.entries()[0]["manager"], "applier");
}

#[test]
fn an_empty_manager_is_unknown() {
    let mut history = config_map();
    history.put("", json!({"data": {"x": "1"}}));
    assert_eq!(history.entries()[0]["manager"], "unknown");
}

#[test]
fn an_object_that_the_type_cannot_name_is_not_tracked() {
    let mut history = deployment();
    history.put(
        "a",
        json!({"spec": {"template": {"spec": {"containers": [{"image": "x"}]}}}}),
    );
    assert_eq!(history.entries(), Vec::<Value>::new());
    assert_eq!(history.get("/spec/template/spec/containers"), json!([{"image": "x"}]));
}

#[test]
fn the_main_resource_does_not_own_status() {
    let mut history = deployment();
    history.put("a", json!({"spec": {"replicas": 1}, "status": {"replicas": 1}}));
    assert_eq!(history.owned("a"), json!({"f:spec": {"f:replicas": {}}}));
    history.tracked = Tracked::All;
    history.put("a", json!({"spec": {"replicas": 1}, "status": {"replicas": 2}}));
    assert_eq!(history.owned("a").pointer("/f:status/f:replicas"), Some(&json!({})));
}
