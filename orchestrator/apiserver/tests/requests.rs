//! Requests through the router: what a client may count on, verb by verb.

#[path = "support/mod.rs"]
mod support;

use serde_json::{Value, json};
use support::TestServer;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str, data: &Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": data })
}

fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_life_of_an_object() {
    let server = TestServer::start().await;
    let (code, made) = server.post(MAPS, &map("a", &json!({ "x": "1" }))).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(made["metadata"]["namespace"], "default");
    assert!(made["metadata"]["uid"].is_string() && made["metadata"]["creationTimestamp"].is_string());
    assert_eq!(made["metadata"]["managedFields"][0]["operation"], "Update");
    let (code, status) = server.post(MAPS, &map("a", &json!({}))).await;
    assert_eq!((code, &status["reason"]), (409, &json!("AlreadyExists")));
    let path = format!("{MAPS}/a");
    let (code, got) = server.get(&path).await;
    assert_eq!((code, &got), (200, &made));
    // An unconditional update.
    let (code, changed) = server.put(&path, &map("a", &json!({ "x": "2" }))).await;
    assert_eq!(code, 200, "{changed}");
    assert!(version(&changed) > version(&made));
    assert_eq!(changed["metadata"]["uid"], made["metadata"]["uid"]);
    // One against an old version.
    let (code, status) = server.put(&path, &made).await;
    assert_eq!((code, &status["reason"]), (409, &json!("Conflict")), "{status}");
    // One that changes nothing.
    let (code, same) = server.put(&path, &changed).await;
    assert_eq!((code, same), (200, changed.clone()));
    let wrong = json!({ "preconditions": { "uid": "other" } });
    assert_eq!(server.delete(&path, Some(&wrong)).await.0, 409);
    let (code, status) = server.delete(&path, None).await;
    assert_eq!((code, &status["status"]), (200, &json!("Success")), "{status}");
    assert_eq!(status["details"]["uid"], made["metadata"]["uid"]);
    let (code, status) = server.get(&path).await;
    assert_eq!((code, &status["reason"]), (404, &json!("NotFound")));
    assert_eq!(status["message"], "configmaps \"a\" not found");
}

#[tokio::test]
async fn generated_names_and_dry_runs() {
    let server = TestServer::start().await;
    let object = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "generateName": "a-" } });
    let (code, made) = server.post(MAPS, &object).await;
    assert_eq!(code, 201);
    let name = made["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("a-") && name.len() == 7, "{name}");
    let (code, dry) = server
        .post(&format!("{MAPS}?dryRun=All"), &map("dry", &json!({})))
        .await;
    assert_eq!((code, &dry["metadata"]["name"]), (201, &json!("dry")));
    assert_eq!(server.get(&format!("{MAPS}/dry")).await.0, 404);
    let path = format!("{MAPS}/{name}");
    assert_eq!(server.delete(&format!("{path}?dryRun=All"), None).await.0, 200);
    assert_eq!(server.get(&path).await.0, 200);
}

#[tokio::test]
async fn every_patch_of_a_map() {
    let server = TestServer::start().await;
    server.post(MAPS, &map("a", &json!({ "x": "1", "y": "1" }))).await;
    let path = format!("{MAPS}/a");
    let (code, it) = server
        .patch(&path, "merge-patch+json", &json!({ "data": { "x": null, "z": "2" } }))
        .await;
    assert_eq!((code, &it["data"]), (200, &json!({ "y": "1", "z": "2" })));
    let patch = json!([{ "op": "test", "path": "/data/y", "value": "1" }, { "op": "remove", "path": "/data/y" }]);
    let (code, it) = server.patch(&path, "json-patch+json", &patch).await;
    assert_eq!((code, &it["data"]), (200, &json!({ "z": "2" })));
    let (code, it) = server.patch(&path, "json-patch+json", &patch).await;
    assert_eq!(code, 422, "{it}");
    let (code, it) = server
        .patch(&path, "strategic-merge-patch+json", &json!({ "data": { "s": "3" } }))
        .await;
    assert_eq!((code, &it["data"]), (200, &json!({ "z": "2", "s": "3" })));
    assert_eq!(server.patch(&path, "strange+json", &json!({})).await.0, 415);
    assert_eq!(
        server
            .patch(&format!("{MAPS}/none"), "merge-patch+json", &json!({}))
            .await
            .0,
        404
    );
    let apply = format!("{path}?fieldManager=me");
    let config = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a" }, "data": { "z": "9" } });
    let (code, it) = server.patch(&apply, "apply-patch+yaml", &config).await;
    assert_eq!((code, &it["reason"]), (409, &json!("Conflict")), "{it}");
    assert_eq!(it["details"]["causes"][0]["field"], ".data.z");
    let (code, it) = server
        .patch(&format!("{apply}&force=true"), "apply-patch+yaml", &config)
        .await;
    assert_eq!((code, &it["data"]["z"]), (200, &json!("9")), "{it}");
    // Applying again changes nothing, not even a time.
    let (_, again) = server.patch(&apply, "apply-patch+yaml", &config).await;
    assert_eq!(again, it);
    let (code, made) = server
        .patch(
            &format!("{MAPS}/new?fieldManager=me"),
            "apply-patch+yaml",
            &map("new", &json!({})),
        )
        .await;
    assert_eq!(code, 201, "{made}");
}

#[tokio::test]
async fn pages_are_one_consistent_list() {
    let server = TestServer::start().await;
    for n in 0..7 {
        server.post(MAPS, &map(&format!("m{n}"), &json!({}))).await;
    }
    let (code, first) = server.get(&format!("{MAPS}?limit=3")).await;
    assert_eq!((code, first["items"].as_array().unwrap().len()), (200, 3));
    assert_eq!(first["metadata"]["remainingItemCount"], 4);
    server.delete(&format!("{MAPS}/m5"), None).await;
    server.post(MAPS, &map("m55", &json!({}))).await;
    let token = first["metadata"]["continue"].as_str().unwrap();
    let (code, second) = server.get(&format!("{MAPS}?limit=3&continue={token}")).await;
    assert_eq!(code, 200, "{second}");
    let names: Vec<_> = second["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["metadata"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["m3", "m4", "m5"]);
    assert_eq!(
        second["metadata"]["resourceVersion"],
        first["metadata"]["resourceVersion"]
    );
    assert_eq!(server.get(&format!("{MAPS}?continue=rubbish")).await.0, 400);
}

#[tokio::test]
async fn finalizers_hold_what_is_deleted() {
    let server = TestServer::start().await;
    let mut object = map("a", &json!({}));
    object["metadata"]["finalizers"] = json!(["example.com/hold"]);
    server.post(MAPS, &object).await;
    let path = format!("{MAPS}/a");
    let (code, held) = server.delete(&path, None).await;
    assert_eq!(code, 200);
    assert!(held["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(server.get(&path).await.0, 200);
    let (code, _) = server
        .patch(
            &path,
            "merge-patch+json",
            &json!({ "metadata": { "finalizers": null } }),
        )
        .await;
    assert_eq!(code, 200);
    assert_eq!(server.get(&path).await.0, 404);
    // In the foreground a finalizer says so, and the collector takes it away.
    server.post(MAPS, &map("b", &json!({}))).await;
    let path = format!("{MAPS}/b");
    let (_, held) = server
        .delete(&path, Some(&json!({ "propagationPolicy": "Foreground" })))
        .await;
    assert_eq!(held["metadata"]["finalizers"], json!(["foregroundDeletion"]));
}

#[tokio::test]
async fn deployments_scale_and_count_generations() {
    let server = TestServer::start().await;
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "web" },
        "spec": {
            "replicas": 0, "selector": { "matchLabels": { "app": "web" } },
            "template": {
                "metadata": { "labels": { "app": "web" } },
                "spec": { "containers": [{ "name": "web", "image": "web:1" }] },
            },
        },
        "status": { "replicas": 7 },
    });
    let (code, made) = server.post(path, &deployment).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(
        (&made["spec"]["replicas"], &made["metadata"]["generation"]),
        (&json!(0), &json!(1))
    );
    assert!(
        made["status"]["replicas"].is_null(),
        "a client cannot set the status of a new object"
    );
    assert_eq!(made["spec"]["template"]["spec"]["restartPolicy"], "Always");
    let one = format!("{path}/web");
    let (code, scale) = server
        .patch(
            &format!("{one}/scale"),
            "merge-patch+json",
            &json!({ "spec": { "replicas": 3 } }),
        )
        .await;
    assert_eq!(
        (code, &scale["kind"], &scale["spec"]["replicas"]),
        (200, &json!("Scale"), &json!(3)),
        "{scale}"
    );
    let (_, changed) = server.get(&one).await;
    assert_eq!(
        (&changed["spec"]["replicas"], &changed["metadata"]["generation"]),
        (&json!(3), &json!(2))
    );
    // Status changes count no generation, and leave the spec alone.
    let patch = json!({ "status": { "replicas": 3 }, "spec": { "replicas": 9 } });
    let (code, it) = server.patch(&format!("{one}/status"), "merge-patch+json", &patch).await;
    assert_eq!(code, 200, "{it}");
    assert_eq!(
        (
            &it["spec"]["replicas"],
            &it["status"]["replicas"],
            &it["metadata"]["generation"]
        ),
        (&json!(3), &json!(3), &json!(2))
    );
}

#[tokio::test]
async fn services_get_addresses_and_give_them_back() {
    let server = TestServer::start().await;
    let path = "/api/v1/namespaces/default/services";
    let service = |name: &str| {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
            "spec": { "type": "NodePort", "clusterIP": "10.96.0.10", "ports": [{ "port": 80, "nodePort": 30080 }] },
        })
    };
    let (code, made) = server.post(path, &service("a")).await;
    assert_eq!(
        (code, &made["spec"]["clusterIPs"]),
        (201, &json!(["10.96.0.10"])),
        "{made}"
    );
    let (code, status) = server.post(path, &service("b")).await;
    assert_eq!(code, 422, "{status}");
    // A failed create keeps nothing, a deletion gives back.
    server.delete(&format!("{path}/a"), None).await;
    let (code, made) = server.post(path, &service("b")).await;
    assert_eq!(code, 201, "{made}");
    let (_, kubernetes) = server.get(&format!("{path}/kubernetes")).await;
    assert_eq!(kubernetes["spec"]["clusterIP"], "10.96.0.1");
}

#[tokio::test]
async fn who_may_not_is_told_so() {
    let server = TestServer::start().await;
    let nobody = server.as_user("jane", &["dev"]);
    let (code, status) = nobody.request(http::Method::GET, MAPS, "application/json", None).await;
    assert_eq!(code, 403);
    let message = "configmaps is forbidden: User \"jane\" cannot list resource \"configmaps\" in API group \"\" in the namespace \"default\"";
    assert_eq!(status["message"], message);
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": { "name": "jane" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view" },
        "subjects": [{ "kind": "User", "name": "jane", "apiGroup": "rbac.authorization.k8s.io" }],
    });
    let (code, it) = server
        .post(
            "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings",
            &role,
        )
        .await;
    assert_eq!(code, 201, "{it}");
    assert_eq!(
        nobody
            .request(http::Method::GET, MAPS, "application/json", None)
            .await
            .0,
        200
    );
    assert_eq!(
        nobody
            .request(
                http::Method::POST,
                MAPS,
                "application/json",
                Some(&map("x", &json!({})))
            )
            .await
            .0,
        403
    );
}

#[tokio::test]
async fn a_namespace_goes_when_its_content_is_said_to_be_gone() {
    let server = TestServer::start().await;
    let path = "/api/v1/namespaces";
    let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "n" } });
    let (code, made) = server.post(path, &namespace).await;
    assert_eq!((code, &made["status"]["phase"]), (201, &json!("Active")), "{made}");
    assert_eq!(made["metadata"]["labels"]["kubernetes.io/metadata.name"], "n");
    let (code, ending) = server.delete(&format!("{path}/n"), None).await;
    assert_eq!(
        (code, &ending["status"]["phase"]),
        (200, &json!("Terminating")),
        "{ending}"
    );
    let (code, status) = server
        .post("/api/v1/namespaces/n/configmaps", &map("late", &json!({})))
        .await;
    assert_eq!((code, &status["reason"]), (403, &json!("Forbidden")), "{status}");
    let mut last = ending.clone();
    last["spec"]["finalizers"] = json!([]);
    let (code, it) = server.put(&format!("{path}/n/finalize"), &last).await;
    assert_eq!(code, 200, "{it}");
    assert_eq!(server.get(&format!("{path}/n")).await.0, 404);
}

#[tokio::test]
async fn pods_wait_for_their_grace_when_they_have_a_node() {
    let server = TestServer::start().await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default" } });
    server.post(accounts, &account).await;
    let path = "/api/v1/namespaces/default/pods";
    let pod = |name: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
            "spec": { "containers": [{ "name": "c", "image": "i" }] }, "status": { "phase": "Running" },
        })
    };
    let (code, made) = server.post(path, &pod("a")).await;
    assert_eq!((code, &made["status"]["phase"]), (201, &json!("Pending")), "{made}");
    assert_eq!(made["status"]["qosClass"], "BestEffort");
    let binding = json!({ "apiVersion": "v1", "kind": "Binding", "metadata": { "name": "a" }, "target": { "kind": "Node", "name": "n" } });
    let (code, bound) = server.post(&format!("{path}/a/binding"), &binding).await;
    assert_eq!(code, 201, "{bound}");
    assert_eq!(server.post(&format!("{path}/a/binding"), &binding).await.0, 409);
    let (_, bound) = server.get(&format!("{path}/a")).await;
    assert_eq!(bound["spec"]["nodeName"], "n");
    assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");
    let (code, ending) = server.delete(&format!("{path}/a"), None).await;
    assert_eq!(
        (code, &ending["metadata"]["deletionGracePeriodSeconds"]),
        (200, &json!(30)),
        "{ending}"
    );
    let (code, _) = server
        .delete(&format!("{path}/a"), Some(&json!({ "gracePeriodSeconds": 0 })))
        .await;
    assert_eq!(code, 200);
    assert_eq!(server.get(&format!("{path}/a")).await.0, 404);
    // Without a node there is nobody to wait for.
    server.post(path, &pod("b")).await;
    server.delete(&format!("{path}/b"), None).await;
    assert_eq!(server.get(&format!("{path}/b")).await.0, 404);
}

#[tokio::test]
async fn tokens_are_made_and_reviewed() {
    let server = TestServer::start().await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "robot" } });
    server.post(accounts, &account).await;
    let request = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {} });
    let (code, made) = server.post(&format!("{accounts}/robot/token"), &request).await;
    assert_eq!(code, 201, "{made}");
    let token = made["status"]["token"].as_str().unwrap();
    let review = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": { "token": token } });
    let (code, it) = server
        .post("/apis/authentication.k8s.io/v1/tokenreviews", &review)
        .await;
    assert_eq!(
        (code, &it["status"]["user"]["username"]),
        (201, &json!("system:serviceaccount:default:robot")),
        "{it}"
    );
    server.delete(&format!("{accounts}/robot"), None).await;
    let (_, it) = server
        .post("/apis/authentication.k8s.io/v1/tokenreviews", &review)
        .await;
    assert!(it["status"]["authenticated"] != true, "{it}");
}

#[tokio::test]
async fn aggregated_roles_gather_new_rules() {
    let server = TestServer::start().await;
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": { "name": "shop-view", "labels": { "rbac.authorization.k8s.io/aggregate-to-view": "true" } },
        "rules": [{ "apiGroups": ["shop.example.com"], "resources": ["orders"], "verbs": ["get"] }],
    });
    let (_, before) = server.get(roles).await;
    let from: u64 = before["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    let mut changes = server
        .running
        .server
        .cache
        .watch("rbac.authorization.k8s.io/clusterroles", from)
        .unwrap();
    assert_eq!(server.post(roles, &role).await.0, 201);
    // The roles view, edit and admin follow, one gathering the other.
    let mut waiting = vec!["admin", "edit", "view"];
    while !waiting.is_empty() {
        for change in changes.next().await.unwrap() {
            let Some(entry) = change.now else { continue };
            let text = String::from_utf8_lossy(&entry.json).into_owned();
            waiting.retain(|name| **name != *entry.key.name || !text.contains("shop.example.com"));
        }
    }
}

#[tokio::test]
async fn selectable_fields_of_custom_resources_are_known_after_a_restart() {
    let backend = std::sync::Arc::new(fairlead_store::testing::EtcdDouble::new());
    let server = TestServer::over(backend.clone(), Default::default()).await;
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "boats.example.com" },
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": { "plural": "boats", "kind": "Boat" },
            "versions": [{
                "name": "v1", "served": true, "storage": true, "selectableFields": [{ "jsonPath": ".spec.colour" }],
                "schema": { "openAPIV3Schema": { "type": "object", "properties": {
                    "spec": { "type": "object", "properties": { "colour": { "type": "string" } } },
                } } },
            }],
        },
    });
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let (code, made) = server.post(definitions, &definition).await;
    assert_eq!(code, 201, "{made}");
    let from: u64 = made["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    let prefix = "apiextensions.k8s.io/customresourcedefinitions";
    let mut changes = server.running.server.cache.watch(prefix, from).unwrap();
    while !changes.next().await.unwrap().iter().any(|it| {
        it.now
            .as_ref()
            .is_some_and(|it| String::from_utf8_lossy(&it.json).contains("Established"))
    }) {}
    let boats = "/apis/example.com/v1/namespaces/default/boats";
    for (name, colour) in [("a", "red"), ("b", "blue")] {
        let boat = json!({
            "apiVersion": "example.com/v1", "kind": "Boat", "metadata": { "name": name }, "spec": { "colour": colour },
        });
        let (code, it) = server.post(boats, &boat).await;
        assert_eq!(code, 201, "{it}");
    }
    let again = TestServer::over(backend, Default::default()).await;
    for server in [&server, &again] {
        let (code, red) = server.get(&format!("{boats}?fieldSelector=spec.colour%3Dred")).await;
        assert_eq!((code, red["items"].as_array().unwrap().len()), (200, 1), "{red}");
    }
}

#[tokio::test]
async fn the_store_is_a_component() {
    let server = TestServer::start().await;
    let (code, list) = server.get("/api/v1/componentstatuses").await;
    assert_eq!(
        (code, &list["items"][0]["conditions"][0]["status"]),
        (200, &json!("True")),
        "{list}"
    );
    assert_eq!(server.get("/api/v1/componentstatuses/etcd-0").await.0, 200);
    assert_eq!(server.get("/api/v1/componentstatuses/etcd-1").await.0, 404);
}

#[tokio::test]
async fn what_cannot_be_understood_is_not_read_as_nothing() {
    let server = TestServer::start().await;
    assert_eq!(
        server.post(&format!("{MAPS}/mine"), &map("evil", &json!({}))).await.0,
        405
    );
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "web" },
        "spec": {
            "replicas": 3, "selector": { "matchLabels": { "app": "web" } },
            "template": {
                "metadata": { "labels": { "app": "web" } },
                "spec": { "containers": [{ "name": "web", "image": "web:1" }] },
            },
        },
    });
    assert_eq!(server.post(path, &deployment).await.0, 201);
    let one = format!("{path}/web");
    let words = json!({ "spec": { "replicas": "5" } });
    let (code, it) = server.patch(&format!("{one}/scale"), "merge-patch+json", &words).await;
    assert_eq!(code, 400, "{it}");
    assert_eq!(server.get(&one).await.1["spec"]["replicas"], 3);
    let number = json!({ "preconditions": { "resourceVersion": 1 } });
    assert_eq!(server.delete(&one, Some(&number)).await.0, 400);
    let other = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p" } });
    assert_eq!(server.delete(&one, Some(&other)).await.0, 400);
    assert_eq!(server.get(&one).await.0, 200);
}

#[tokio::test]
async fn a_service_that_its_last_finalizer_let_go_leaves_its_port() {
    let server = TestServer::start().await;
    let path = "/api/v1/namespaces/default/services";
    let service = |name: &str| {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "finalizers": ["example.com/f"] },
            "spec": { "type": "NodePort", "ports": [{ "port": 80, "nodePort": 30080 }] },
        })
    };
    assert_eq!(server.post(path, &service("a")).await.0, 201);
    server.delete(&format!("{path}/a"), None).await;
    assert_eq!(server.post(path, &service("b")).await.0, 422, "still held");
    let patch = json!({ "metadata": { "finalizers": null } });
    assert_eq!(
        server.patch(&format!("{path}/a"), "merge-patch+json", &patch).await.0,
        200
    );
    let (code, it) = server.post(path, &service("b")).await;
    assert_eq!(code, 201, "{it}");
}

#[tokio::test]
async fn proxies_do_not_lead_back_into_the_host() {
    let server = TestServer::start().await;
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "s" },
        "spec": { "ports": [{ "port": 80 }] },
    });
    server.post("/api/v1/namespaces/default/services", &service).await;
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": { "name": "s", "labels": { "kubernetes.io/service-name": "s" } }, "addressType": "IPv4",
        "endpoints": [{ "addresses": ["127.0.0.1"] }], "ports": [{ "name": "", "port": server.running.address.port() }],
    });
    server
        .post("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", &slice)
        .await;
    let (code, it) = server
        .get("/api/v1/namespaces/default/services/https:s:/proxy/api/v1/secrets")
        .await;
    assert!(code >= 400, "{it}");
    assert!(it["items"].is_null(), "{it}");
}

#[tokio::test]
async fn a_node_gets_no_token_that_is_bound_to_nothing() {
    let server = TestServer::start().await;
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default" } });
    server
        .post("/api/v1/namespaces/default/serviceaccounts", &account)
        .await;
    let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n" } });
    server.post("/api/v1/nodes", &node).await;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p" },
        "spec": { "nodeName": "n", "containers": [{ "name": "c", "image": "i" }] },
    });
    let (code, pod) = server.post("/api/v1/namespaces/default/pods", &pod).await;
    assert_eq!(code, 201, "{pod}");
    let kubelet = server.as_user("system:node:n", &["system:nodes"]);
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let mut request = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {} });
    let (code, it) = kubelet
        .request(http::Method::POST, path, "application/json", Some(&request))
        .await;
    assert_eq!(code, 403, "{it}");
    request["spec"]["boundObjectRef"] =
        json!({ "apiVersion": "v1", "kind": "Pod", "name": "p", "uid": pod["metadata"]["uid"] });
    let (code, it) = kubelet
        .request(http::Method::POST, path, "application/json", Some(&request))
        .await;
    assert_eq!(code, 201, "{it}");
}

#[tokio::test(flavor = "multi_thread")]
async fn patches_without_a_version_never_conflict_with_each_other() {
    let server = TestServer::start().await;
    let path = "/api/v1/namespaces/default/configmaps";
    let made = server.post(path, &json!({"metadata": {"name": "busy"}})).await;
    assert_eq!(made.0, 201);
    let path = format!("{path}/busy");
    let patches = (0..8).map(|writer| {
        let (server, path) = (&server, &path);
        async move {
            for number in 0..20 {
                let patch = json!({"data": {format!("{writer}-{number}"): "x"}});
                let kind = if writer % 2 == 0 {
                    "merge-patch+json"
                } else {
                    "strategic-merge-patch+json"
                };
                let (code, answer) = server.patch(path, kind, &patch).await;
                assert_eq!(code, 200, "{answer}");
            }
        }
    });
    futures::future::join_all(patches).await;
    let (_, object) = server.get(&path).await;
    assert_eq!(object["data"].as_object().unwrap().len(), 160);
    // One that names the version that it means is refused when that is over.
    let patch = json!({"metadata": {"resourceVersion": "1"}, "data": {"a": "b"}});
    assert_eq!(server.patch(&path, "merge-patch+json", &patch).await.0, 409);
}
