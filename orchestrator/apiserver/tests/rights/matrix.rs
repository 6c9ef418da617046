//! Every kind of rule against every kind of request, through the router: what a few lines of model allow is allowed.

use crate::support::TestServer;
use fairlead_apiserver::{Inside, authz::aggregate};
use http::Method;
use serde_json::{Value, json};
use std::sync::Arc;

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

/// One request, and what it must be to the authorizer.
struct Case {
    method: Method,
    path: &'static str,
    verb: &'static str,
    group: &'static str,
    /// `resource` or `resource/subresource`; empty for other paths.
    resource: &'static str,
    namespace: &'static str,
    name: &'static str,
}

fn cases() -> Vec<Case> {
    let table: [(
        &str,
        &'static str,
        &'static str,
        &'static str,
        &'static str,
        &'static str,
        &'static str,
    ); 41] = [
        ("GET", "/api/v1/pods", "list", "", "pods", "", ""),
        ("GET", "/api/v1/namespaces/one/pods", "list", "", "pods", "one", ""),
        ("GET", "/api/v1/namespaces/two/pods", "list", "", "pods", "two", ""),
        ("GET", "/api/v1/namespaces/one/pods/a", "get", "", "pods", "one", "a"),
        ("HEAD", "/api/v1/namespaces/one/pods/a", "get", "", "pods", "one", "a"),
        ("GET", "/api/v1/namespaces/one/pods/b", "get", "", "pods", "one", "b"),
        ("GET", "/api/v1/namespaces/two/pods/a", "get", "", "pods", "two", "a"),
        (
            "GET",
            "/api/v1/namespaces/one/pods?fieldSelector=metadata.name%3Da",
            "list",
            "",
            "pods",
            "one",
            "a",
        ),
        ("POST", "/api/v1/namespaces/one/pods", "create", "", "pods", "one", ""),
        ("PUT", "/api/v1/namespaces/one/pods/a", "update", "", "pods", "one", "a"),
        (
            "PATCH",
            "/api/v1/namespaces/one/pods/a",
            "patch",
            "",
            "pods",
            "one",
            "a",
        ),
        (
            "DELETE",
            "/api/v1/namespaces/one/pods/a",
            "delete",
            "",
            "pods",
            "one",
            "a",
        ),
        (
            "DELETE",
            "/api/v1/namespaces/one/pods",
            "deletecollection",
            "",
            "pods",
            "one",
            "",
        ),
        (
            "GET",
            "/api/v1/namespaces/one/pods/a/log",
            "get",
            "",
            "pods/log",
            "one",
            "a",
        ),
        (
            "GET",
            "/api/v1/namespaces/one/pods/a/status",
            "get",
            "",
            "pods/status",
            "one",
            "a",
        ),
        (
            "PUT",
            "/api/v1/namespaces/one/pods/a/status",
            "update",
            "",
            "pods/status",
            "one",
            "a",
        ),
        (
            "GET",
            "/api/v1/namespaces/one/pods/a/exec",
            "get+create",
            "",
            "pods/exec",
            "one",
            "a",
        ),
        (
            "POST",
            "/api/v1/namespaces/one/pods/a/exec",
            "create",
            "",
            "pods/exec",
            "one",
            "a",
        ),
        (
            "GET",
            "/api/v1/namespaces/one/pods/a/attach",
            "get+create",
            "",
            "pods/attach",
            "one",
            "a",
        ),
        (
            "GET",
            "/api/v1/namespaces/one/pods/a/portforward",
            "get+create",
            "",
            "pods/portforward",
            "one",
            "a",
        ),
        (
            "GET",
            "/api/v1/namespaces/one/pods/a/proxy/x",
            "get",
            "",
            "pods/proxy",
            "one",
            "a",
        ),
        (
            "POST",
            "/api/v1/namespaces/one/pods/a/proxy/x",
            "create",
            "",
            "pods/proxy",
            "one",
            "a",
        ),
        (
            "POST",
            "/api/v1/namespaces/one/pods/a/eviction",
            "create",
            "",
            "pods/eviction",
            "one",
            "a",
        ),
        (
            "POST",
            "/api/v1/namespaces/one/pods/a/binding",
            "create",
            "",
            "pods/binding",
            "one",
            "a",
        ),
        (
            "GET",
            "/api/v1/namespaces/one/secrets/a",
            "get",
            "",
            "secrets",
            "one",
            "a",
        ),
        (
            "POST",
            "/api/v1/namespaces/one/serviceaccounts/a/token",
            "create",
            "",
            "serviceaccounts/token",
            "one",
            "a",
        ),
        ("GET", "/api/v1/nodes", "list", "", "nodes", "", ""),
        ("GET", "/api/v1/nodes/a", "get", "", "nodes", "", "a"),
        ("GET", "/api/v1/nodes/a/proxy/x", "get", "", "nodes/proxy", "", "a"),
        ("GET", "/api/v1/namespaces", "list", "", "namespaces", "", ""),
        ("GET", "/api/v1/namespaces/one", "get", "", "namespaces", "one", "one"),
        (
            "DELETE",
            "/api/v1/namespaces/two",
            "delete",
            "",
            "namespaces",
            "two",
            "two",
        ),
        (
            "PUT",
            "/api/v1/namespaces/one/finalize",
            "update",
            "",
            "namespaces/finalize",
            "one",
            "one",
        ),
        (
            "GET",
            "/apis/apps/v1/deployments",
            "list",
            "apps",
            "deployments",
            "",
            "",
        ),
        (
            "GET",
            "/apis/apps/v1/namespaces/one/deployments/a",
            "get",
            "apps",
            "deployments",
            "one",
            "a",
        ),
        (
            "GET",
            "/apis/apps/v1/namespaces/one/deployments/a/scale",
            "get",
            "apps",
            "deployments/scale",
            "one",
            "a",
        ),
        (
            "PATCH",
            "/apis/apps/v1/namespaces/one/deployments/a/scale",
            "patch",
            "apps",
            "deployments/scale",
            "one",
            "a",
        ),
        ("GET", "/metrics", "get", "", "", "", ""),
        ("GET", "/openapi/v3/api/v1", "get", "", "", "", ""),
        ("POST", "/metrics", "post", "", "", "", ""),
        ("GET", "/livez/ping", "get", "", "", "", ""),
    ];
    let cases = table
        .into_iter()
        .map(|(method, path, verb, group, resource, namespace, name)| Case {
            method: method.parse().unwrap(),
            path,
            verb,
            group,
            resource,
            namespace,
            name,
        });
    cases.collect()
}

fn rules() -> Vec<Value> {
    let mut rules = Vec::new();
    for verbs in [
        json!(["get"]),
        json!(["list", "watch"]),
        json!(["create"]),
        json!(["get", "create"]),
        json!(["delete"]),
        json!(["deletecollection"]),
        json!(["update", "patch"]),
        json!(["*"]),
    ] {
        for (groups, resources) in [
            (json!([""]), json!(["pods"])),
            (json!([""]), json!(["pods/*"])),
            (json!([""]), json!(["pods/exec", "pods/log"])),
            (json!([""]), json!(["*/proxy", "*/status"])),
            (json!(["*"]), json!(["*"])),
            (json!(["apps"]), json!(["*"])),
            (json!(["apps"]), json!(["*/scale"])),
            (json!([""]), json!(["nodes", "namespaces", "secrets"])),
        ] {
            for names in [json!([]), json!(["a"])] {
                rules.push(
                    json!({ "verbs": verbs, "apiGroups": groups, "resources": resources, "resourceNames": names }),
                );
            }
        }
        for urls in [json!(["*"]), json!(["/metrics"]), json!(["/openapi/*", "/livez/*"])] {
            rules.push(json!({ "verbs": verbs, "nonResourceURLs": urls }));
        }
    }
    rules
}

fn has(list: &Value, wanted: &[&str]) -> bool {
    list.as_array()
        .into_iter()
        .flatten()
        .any(|it| wanted.iter().any(|wanted| it == wanted))
}

/// The model. `namespace`: where the rule is bound; empty: everywhere.
fn allows(rule: &Value, namespace: &str, case: &Case) -> bool {
    let verbs = case.verb.split('+').all(|verb| has(&rule["verbs"], &["*", verb]));
    if case.resource.is_empty() {
        let path = case.path.split('?').next().unwrap();
        let urls = rule["nonResourceURLs"].as_array().into_iter().flatten();
        let mut urls = urls.filter_map(Value::as_str);
        let url = urls.any(|url| url == path || url.strip_suffix('*').is_some_and(|start| path.starts_with(start)));
        return namespace.is_empty() && verbs && url;
    }
    let any_subresource = case
        .resource
        .split_once('/')
        .map_or(String::new(), |(_, sub)| format!("*/{sub}"));
    let names = rule["resourceNames"].as_array().is_none_or(Vec::is_empty);
    verbs
        && (namespace.is_empty() || namespace == case.namespace)
        && has(&rule["apiGroups"], &["*", case.group])
        && has(&rule["resources"], &["*", case.resource, &any_subresource])
        && (names || has(&rule["resourceNames"], &[case.name]))
}

async fn grant(server: &TestServer, user: &str, rule: &Value, namespace: &str) {
    let place = if namespace.is_empty() {
        String::new()
    } else {
        format!("/namespaces/{namespace}")
    };
    let kind = if namespace.is_empty() {
        ("ClusterRole", "clusterrole")
    } else {
        ("Role", "role")
    };
    let role = json!({ "metadata": { "name": user }, "rules": [rule] });
    let binding = json!({ "metadata": { "name": user }, "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": kind.0, "name": user },
        "subjects": [{ "kind": "Group", "name": format!("group-{user}"), "apiGroup": "rbac.authorization.k8s.io" }] });
    for (resource, object) in [("s", role), ("bindings", binding)] {
        let (code, answer) = server
            .post(&format!("{RBAC}{place}/{}{resource}", kind.1), &object)
            .await;
        assert_eq!(code, 201, "{answer}");
    }
}

async fn ask(door: &Inside, case: &Case) -> (u16, Value) {
    let separator = if case.path.contains('?') { '&' } else { '?' };
    let path = format!("{}{separator}dryRun=All", case.path);
    let media_type = if case.method == Method::PATCH {
        "application/merge-patch+json"
    } else {
        "application/json"
    };
    let body = (!matches!(case.method, Method::GET | Method::HEAD | Method::DELETE)).then(|| json!({}));
    door.request(case.method.clone(), &path, media_type, body.as_ref())
        .await
}

#[tokio::test]
async fn rules_and_requests() {
    let server = TestServer::start().await;
    for name in ["one", "two"] {
        server
            .post("/api/v1/namespaces", &json!({ "metadata": { "name": name } }))
            .await;
    }
    let cases = cases();
    let mut granted = 0;
    for (number, rule) in rules().into_iter().enumerate() {
        for namespace in ["", "one"] {
            // Every other rule for the cluster, every other for a namespace: names and groups vary with both.
            let url = rule["nonResourceURLs"].is_array();
            if (url || (number / 2 + number) % 2 == 0) != namespace.is_empty() {
                continue;
            }
            let user = format!("u{number}{namespace}");
            grant(&server, &user, &rule, namespace).await;
            let group = format!("group-{user}");
            let door = server.as_user(&user, &[&group]);
            for case in &cases {
                let (code, answer) = ask(&door, case).await;
                let expected = allows(&rule, namespace, case);
                granted += usize::from(expected);
                let what = format!(
                    "{} {} by {rule} in {namespace:?}: {code} {answer}",
                    case.method, case.path
                );
                assert_eq!(code != 403, expected || case.path == "/openapi/v3/api/v1", "{what}");
                if code == 403 && case.method != Method::HEAD {
                    assert_eq!(answer["reason"], "Forbidden", "{what}");
                }
            }
        }
    }
    assert!(granted > 200, "{granted} of the matrix are allowed");
    assert_eq!(server.running.server.metrics.faults(), 0);
}

#[tokio::test]
async fn another_s_shoes() {
    let server = TestServer::start().await;
    grant(
        &server,
        "imp",
        &json!({ "verbs": ["impersonate"], "apiGroups": [""], "resources": ["users"], "resourceNames": ["bob"] }),
        "",
    )
    .await;
    grant(
        &server,
        "bob",
        &json!({ "verbs": ["get"], "apiGroups": [""], "resources": ["nodes"] }),
        "",
    )
    .await;
    let grouped = json!({ "verbs": ["get"], "apiGroups": [""], "resources": ["nodes"] });
    let binding = json!({ "metadata": { "name": "bob-himself" }, "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "bob" },
        "subjects": [{ "kind": "User", "name": "bob", "apiGroup": "rbac.authorization.k8s.io" }] });
    assert_eq!(
        server.post(&format!("{RBAC}/clusterrolebindings"), &binding).await.0,
        201,
        "{grouped}"
    );
    for (headers, expected) in [
        (vec![("impersonate-user", "bob")], 404),
        (vec![], 403),
        (vec![("impersonate-user", "alice")], 403),
        (vec![("impersonate-user", "bob"), ("impersonate-user", "alice")], 404),
        (vec![("impersonate-user", "alice"), ("impersonate-user", "bob")], 403),
        (
            vec![("impersonate-user", "bob"), ("impersonate-group", "system:masters")],
            403,
        ),
        (vec![("impersonate-group", "system:masters")], 400),
        (vec![("impersonate-uid", "1")], 400),
        (vec![("impersonate-user", "bob"), ("impersonate-uid", "1")], 403),
        (vec![("impersonate-user", "bob"), ("impersonate-extra-x", "1")], 403),
        (vec![("impersonate-user", "system:serviceaccount:kube-system:x")], 403),
        (vec![("impersonate-user", "")], 403),
    ] {
        let mut request = http::Request::builder().uri("/api/v1/nodes/a");
        for (name, value) in &headers {
            request = request.header(*name, *value);
        }
        let request = request.body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap();
        let door = server.as_user("imp", &["group-imp", "system:authenticated"]);
        let response = tower::ServiceExt::oneshot(door, request).await.unwrap();
        assert_eq!(response.status(), expected, "{headers:?}");
    }
}

/// A right that comes and goes while requests run: each answer is one of before or after, and the one after the binding's
/// deletion was acknowledged is always no.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn bindings_that_change_while_requests_run() {
    let server = Arc::new(TestServer::start().await);
    let rule = json!({ "verbs": ["get"], "apiGroups": [""], "resources": ["nodes"] });
    grant(&server, "u", &rule, "").await;
    let (_, binding) = server.get(&format!("{RBAC}/clusterrolebindings/u")).await;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let askers: Vec<_> = (0..4)
        .map(|_| {
            let (server, stop) = (Arc::clone(&server), Arc::clone(&stop));
            tokio::spawn(async move {
                let door = server.as_user("u", &["group-u"]);
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let (code, _) = door
                        .request(Method::GET, "/api/v1/nodes/a", "application/json", None)
                        .await;
                    assert!(matches!(code, 403 | 404), "{code}");
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    let door = server.as_user("u", &["group-u"]);
    let ask = || door.request(Method::GET, "/api/v1/nodes/a", "application/json", None);
    for _ in 0..100 {
        let path = format!("{RBAC}/clusterrolebindings");
        assert_eq!(server.delete(&format!("{path}/u"), None).await.0, 200);
        assert_eq!(ask().await.0, 403, "the right is gone with the answer");
        let again =
            json!({ "metadata": { "name": "u" }, "roleRef": binding["roleRef"], "subjects": binding["subjects"] });
        assert_eq!(server.post(&path, &again).await.0, 201);
        assert_eq!(ask().await.0, 404, "the right is there with the answer");
    }
    // An aggregated role grants what its controller wrote into it, from the answer on; what it selects grants nothing by
    // itself.
    let mut sum = json!({ "metadata": { "name": "sum" }, "aggregationRule": { "clusterRoleSelectors": [{ "matchLabels": { "to": "sum" } }] } });
    assert_eq!(server.post(&format!("{RBAC}/clusterroles"), &sum).await.0, 201);
    let binding = json!({ "metadata": { "name": "sum" }, "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "sum" },
        "subjects": [{ "kind": "User", "name": "s", "apiGroup": "rbac.authorization.k8s.io" }] });
    assert_eq!(
        server.post(&format!("{RBAC}/clusterrolebindings"), &binding).await.0,
        201
    );
    let other = server.as_user("s", &[]);
    let ask = || other.request(Method::GET, "/api/v1/nodes/a", "application/json", None);
    assert_eq!(ask().await.0, 403);
    let part = json!({ "metadata": { "name": "part", "labels": { "to": "sum" } }, "rules": [rule] });
    assert_eq!(server.post(&format!("{RBAC}/clusterroles"), &part).await.0, 201);
    let stored = server.get(&format!("{RBAC}/clusterroles")).await.1["items"]
        .as_array()
        .unwrap()
        .clone();
    for (name, rules) in aggregate::updates(stored.iter()) {
        assert_eq!(
            (name.as_str(), rules.len()),
            ("sum", 1),
            "the defaults are gathered already"
        );
    }
    sum["rules"] = json!([rule]);
    assert_eq!(server.put(&format!("{RBAC}/clusterroles/sum"), &sum).await.0, 200);
    assert_eq!(ask().await.0, 404);
    sum["rules"] = json!([]);
    assert_eq!(server.put(&format!("{RBAC}/clusterroles/sum"), &sum).await.0, 200);
    assert_eq!(ask().await.0, 403);
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for asker in askers {
        asker.await.unwrap();
    }
}
