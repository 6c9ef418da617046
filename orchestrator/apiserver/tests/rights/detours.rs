//! Ways around an authorizer: requests that say one thing to it and another to whom answers.

use crate::support::TestServer;
use http::Method;
use serde_json::{Value, json};

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const SECRETS: &str = "/api/v1/namespaces/default/secrets";

async fn may(server: &TestServer, user: &str, namespace: &str, rules: &Value) {
    let (kind, path) = match namespace {
        "" => ("ClusterRole", RBAC.to_owned()),
        namespace => ("Role", format!("{RBAC}/namespaces/{namespace}")),
    };
    let (roles, bindings) = match namespace {
        "" => ("clusterroles", "clusterrolebindings"),
        _ => ("roles", "rolebindings"),
    };
    let (code, answer) = server
        .post(
            &format!("{path}/{roles}"),
            &json!({ "metadata": { "name": user }, "rules": rules }),
        )
        .await;
    assert_eq!(code, 201, "{answer}");
    let binding = json!({ "metadata": { "name": user }, "subjects": [{ "kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io" }],
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": user } });
    let (code, answer) = server.post(&format!("{path}/{bindings}"), &binding).await;
    assert_eq!(code, 201, "{answer}");
}

/// Names of what a user is shown.
async fn shown(server: &TestServer, user: &str, groups: &[&str], path: &str) -> (u16, Vec<String>) {
    let door = server.as_user(user, groups);
    let (code, list) = door.request(Method::GET, path, "application/json", None).await;
    let items = list["items"].as_array().into_iter().flatten();
    let names = items.map(|it| it["metadata"]["name"].as_str().unwrap().to_owned());
    (code, names.collect())
}

#[tokio::test]
async fn a_right_to_one_name_shows_that_name() {
    let server = TestServer::start().await;
    for name in ["mine", "yours"] {
        let (code, _) = server.post(SECRETS, &json!({ "metadata": { "name": name } })).await;
        assert_eq!(code, 201);
    }
    let rules =
        json!([{ "verbs": ["list", "watch"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["mine"] }]);
    may(&server, "u", "default", &rules).await;
    let mine = "fieldSelector=metadata.name%3Dmine";
    for (query, code) in [
        (mine.to_owned(), 200),
        (format!("{mine}&fieldSelector="), 200),
        (format!("{mine}&fieldSelector=metadata.name%3Dyours"), 200),
        (format!("{mine}&fieldSelector=metadata.name!%3Dx"), 200),
        (format!("fieldSelector=&{mine}"), 403),
        (format!("fieldSelector=metadata.name%3Dyours&{mine}"), 403),
        (
            "fieldSelector=metadata.name%3Dmine,metadata.name%3Dyours".to_owned(),
            200,
        ),
        (
            "fieldSelector=metadata.name!%3Dx%5C,metadata.name%3Dmine".to_owned(),
            403,
        ),
        ("fieldSelector=%20metadata.name%3Dmine".to_owned(), 200),
        (String::new(), 403),
    ] {
        let (found, names) = shown(&server, "u", &[], &format!("{SECRETS}?{query}")).await;
        assert_eq!(found, code, "{query}");
        assert!(names.iter().all(|it| it == "mine"), "{query} shows {names:?}");
    }
    // The old form of a watch names the object in the path.
    let path = "/api/v1/watch/namespaces/default/secrets/mine?fieldSelector=metadata.name%3Dyours&timeoutSeconds=1";
    let door = server.as_user("u", &[]);
    let request = http::Request::builder()
        .uri(path)
        .body(http_body_util::Empty::<bytes::Bytes>::new());
    let response = tower::ServiceExt::oneshot(door, request.unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    let body = http_body_util::BodyExt::collect(response.into_body())
        .await
        .unwrap()
        .to_bytes();
    assert!(!String::from_utf8_lossy(&body).contains("yours"));
}

#[tokio::test]
async fn rights_in_a_namespace_end_with_it() {
    let server = TestServer::start().await;
    for name in ["mine", "yours"] {
        server
            .post("/api/v1/namespaces", &json!({ "metadata": { "name": name } }))
            .await;
    }
    may(
        &server,
        "u",
        "mine",
        &json!([{ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"] }]),
    )
    .await;
    let door = server.as_user("u", &[]);
    for (method, path) in [
        (Method::GET, "/api/v1/namespaces/mine/namespaces/yours"),
        (Method::DELETE, "/api/v1/namespaces/mine/namespaces/yours"),
        (Method::GET, "/api/v1/namespaces/mine/namespaces"),
        (Method::DELETE, "/api/v1/namespaces/mine/namespaces"),
        (Method::PUT, "/api/v1/namespaces/mine/namespaces/yours/finalize"),
        (Method::GET, "/api/v1/namespaces/mine/nodes"),
        (Method::GET, "/api/v1/namespaces/mine/persistentvolumes"),
        (
            Method::GET,
            "/apis/rbac.authorization.k8s.io/v1/namespaces/mine/clusterroles",
        ),
        (
            Method::GET,
            "/apis/rbac.authorization.k8s.io/v1/namespaces/mine/clusterroles/cluster-admin",
        ),
        (Method::GET, "/api/v1/namespaces/mine%2Fyours/secrets"),
        (Method::GET, "/api/v1/namespaces/mine/../yours/secrets"),
        (Method::GET, "/api/v1/namespaces/mine%2F..%2Fyours/secrets"),
        (Method::GET, "/api/v1/namespaces//secrets"),
        (Method::GET, "/api/v1/secrets"),
        (Method::GET, "/api/v1/watch/secrets"),
        (Method::GET, "/api/v1/namespaces/yours/secrets?namespace=mine"),
        (Method::GET, "/api/v1/watch/namespaces/mine/namespaces/yours"),
    ] {
        let (code, answer) = door.request(method.clone(), path, "application/json", None).await;
        assert!(matches!(code, 403..=405), "{method} {path}: {code} {answer}");
    }
    // Those of other namespaces stay, whatever the body says.
    let other = json!({ "metadata": { "name": "a", "namespace": "yours" } });
    let path = "/api/v1/namespaces/mine/configmaps";
    let (code, _) = door.request(Method::POST, path, "application/json", Some(&other)).await;
    assert_eq!(code, 400);
    assert_eq!(server.get("/api/v1/namespaces/yours").await.0, 200);
    assert_eq!(door.request(Method::GET, path, "application/json", None).await.0, 200);
    assert_eq!(
        door.request(Method::GET, "/api/v1/namespaces/mine", "application/json", None)
            .await
            .0,
        200,
        "its own namespace is inside it"
    );
}

#[tokio::test]
async fn a_reader_of_everything_runs_nothing() {
    let server = TestServer::start().await;
    let rules = json!([{ "verbs": ["get", "list", "watch"], "apiGroups": ["*"], "resources": ["*"] }]);
    may(&server, "reader", "", &rules).await;
    let pod = "/api/v1/namespaces/default/pods/p";
    let account = json!({ "metadata": { "name": "default" } });
    server
        .post("/api/v1/namespaces/default/serviceaccounts", &account)
        .await;
    let object = json!({ "metadata": { "name": "p" }, "spec": { "containers": [{ "name": "c", "image": "i" }] } });
    assert_eq!(server.post("/api/v1/namespaces/default/pods", &object).await.0, 201);
    let door = server.as_user("reader", &[]);
    for subresource in ["exec?command=id", "attach", "portforward?ports=1", "exec/", "exec/x"] {
        for method in [Method::GET, Method::POST, Method::HEAD] {
            for path in [
                format!("{pod}/{subresource}"),
                format!("/api/v1/watch/namespaces/default/pods/p/{subresource}"),
            ] {
                let (code, answer) = door.request(method.clone(), &path, "application/json", None).await;
                // The old form of a watch has no way to run anything.
                let refused = code == 403 || (path.contains("/watch/") && matches!(code, 404 | 405));
                assert!(refused, "{method} {path}: {code} {answer}");
            }
        }
    }
    for (method, path) in [
        (Method::DELETE, "/api/v1/namespaces/default/pods"),
        (Method::DELETE, pod),
        (Method::PUT, "/api/v1/namespaces/default/pods/p/status"),
        (Method::POST, "/api/v1/namespaces/default/pods/p/eviction"),
        (Method::POST, "/api/v1/namespaces/default/pods/p/binding"),
        (Method::POST, "/api/v1/namespaces/default/serviceaccounts/default/token"),
        (Method::POST, "/api/v1/namespaces/default/pods/p/proxy/x"),
        (Method::from_bytes(b"MADEUP").unwrap(), pod),
        (Method::OPTIONS, pod),
    ] {
        let (code, answer) = door
            .request(method.clone(), path, "application/json", Some(&json!({})))
            .await;
        assert_eq!(code, 403, "{method} {path}: {answer}");
    }
    assert_eq!(door.request(Method::GET, pod, "application/json", None).await.0, 200);
}
