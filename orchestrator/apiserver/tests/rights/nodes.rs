//! What a kubelet may: its own node, its own pods, its lease, and what its pods need.

use crate::{credentials, support::TestServer};
use fairlead_apiserver::pki::{Identity, Profile};
use http::Method;
use jiff::Timestamp;
use serde_json::json;

const NODE: (&str, &[&str]) = ("system:node:n1", &["system:nodes"]);
const DEFAULT: &str = "/api/v1/namespaces/default";

async fn world() -> TestServer {
    let server = TestServer::start().await;
    server
        .post(
            &format!("{DEFAULT}/serviceaccounts"),
            &json!({ "metadata": { "name": "default" } }),
        )
        .await;
    for n in ["n1", "n2"] {
        let (code, answer) = server
            .post("/api/v1/nodes", &json!({ "metadata": { "name": n } }))
            .await;
        assert_eq!(code, 201, "{answer}");
        for kind in ["secrets", "configmaps"] {
            let path = format!("{DEFAULT}/{kind}");
            server
                .post(&path, &json!({ "metadata": { "name": format!("of-{n}") } }))
                .await;
        }
        let pod = json!({ "metadata": { "name": format!("p-{n}") }, "spec": { "nodeName": n,
            "containers": [{ "name": "c", "image": "i", "envFrom": [{ "configMapRef": { "name": format!("of-{n}") } }] }],
            "volumes": [{ "name": "v", "secret": { "secretName": format!("of-{n}") } }] } });
        let (code, answer) = server.post(&format!("{DEFAULT}/pods"), &pod).await;
        assert_eq!(code, 201, "{answer}");
        let lease = json!({ "metadata": { "name": n }, "spec": {} });
        let path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
        assert_eq!(server.post(path, &lease).await.0, 201);
    }
    server
}

#[tokio::test]
async fn a_node_keeps_to_itself() {
    let server = world().await;
    let node = server.as_user(NODE.0, NODE.1);
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    let ready = json!({ "status": { "conditions": [{ "type": "Ready", "status": "True" }] } });
    let merge = "application/merge-patch+json";
    for (method, path, body, allowed) in [
        (Method::GET, format!("{DEFAULT}/secrets/of-n1"), None, true),
        (Method::GET, format!("{DEFAULT}/secrets/of-n2"), None, false),
        (Method::GET, format!("{DEFAULT}/secrets/made-up"), None, false),
        (Method::GET, format!("{DEFAULT}/secrets"), None, false),
        (Method::GET, "/api/v1/secrets".to_owned(), None, false),
        (
            Method::GET,
            format!("{DEFAULT}/secrets?fieldSelector=metadata.name%3Dof-n1"),
            None,
            true,
        ),
        (
            Method::GET,
            format!("{DEFAULT}/secrets?fieldSelector=metadata.name%3Dof-n2"),
            None,
            false,
        ),
        (Method::GET, format!("{DEFAULT}/configmaps/of-n1"), None, true),
        (Method::GET, format!("{DEFAULT}/configmaps/of-n2"), None, false),
        (Method::DELETE, format!("{DEFAULT}/secrets/of-n1"), None, false),
        (
            Method::PATCH,
            format!("{DEFAULT}/secrets/of-n1"),
            Some(json!({})),
            false,
        ),
        (
            Method::PATCH,
            "/api/v1/nodes/n1/status".to_owned(),
            Some(ready.clone()),
            true,
        ),
        (
            Method::PATCH,
            "/api/v1/nodes/n2/status".to_owned(),
            Some(ready.clone()),
            false,
        ),
        (
            Method::PATCH,
            "/api/v1/nodes/n2".to_owned(),
            Some(json!({ "metadata": { "labels": { "a": "b" } } })),
            false,
        ),
        (Method::DELETE, "/api/v1/nodes/n2".to_owned(), None, false),
        (
            Method::PATCH,
            format!("{DEFAULT}/pods/p-n1/status"),
            Some(json!({ "status": { "phase": "Running" } })),
            true,
        ),
        (
            Method::PATCH,
            format!("{DEFAULT}/pods/p-n2/status"),
            Some(json!({ "status": { "phase": "Running" } })),
            false,
        ),
        (Method::DELETE, format!("{DEFAULT}/pods/p-n2"), None, false),
        (Method::DELETE, format!("{DEFAULT}/pods"), None, false),
        (Method::GET, "/api/v1/pods".to_owned(), None, false),
        (
            Method::GET,
            "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1".to_owned(),
            None,
            true,
        ),
        (
            Method::GET,
            "/api/v1/pods?fieldSelector=spec.nodeName%3Dn2".to_owned(),
            None,
            false,
        ),
        (Method::GET, format!("{leases}/n1"), None, true),
        (
            Method::PATCH,
            format!("{leases}/n1"),
            Some(json!({ "spec": { "holderIdentity": "n1" } })),
            true,
        ),
        (
            Method::PATCH,
            format!("{leases}/n2"),
            Some(json!({ "spec": { "holderIdentity": "n1" } })),
            false,
        ),
        (Method::DELETE, format!("{leases}/n2"), None, false),
        (
            Method::POST,
            "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings".to_owned(),
            Some(json!({})),
            false,
        ),
    ] {
        let media_type = if method == Method::PATCH {
            merge
        } else {
            "application/json"
        };
        let (code, answer) = node.request(method.clone(), &path, media_type, body.as_ref()).await;
        if allowed {
            assert!(code < 300, "{method} {path}: {answer}");
        } else {
            assert_eq!(code, 403, "{method} {path}: {answer}");
        }
    }
    // Two selectors are two answers: the authorizer's must be the list's.
    for query in [
        "fieldSelector=spec.nodeName%3Dn1&fieldSelector=",
        "fieldSelector=spec.nodeName%3Dn1&fieldSelector=spec.nodeName%3Dn2",
        "fieldSelector=metadata.name!%3Dx%5C,spec.nodeName%3Dn1",
        "fieldSelector=spec.nodeName!%3Dn1",
        "fieldSelector=spec.nodeName%3Dn2,spec.nodeName%3Dn1",
        "fieldSelector=spec.nodeName%3Dn2&fieldSelector=spec.nodeName%3Dn1",
    ] {
        let (code, list) = node
            .request(Method::GET, &format!("/api/v1/pods?{query}"), "application/json", None)
            .await;
        let items = list["items"].as_array().into_iter().flatten();
        let others = items.filter(|it| it["spec"]["nodeName"] != "n1").count();
        assert_eq!(others, 0, "{query}: {code}");
    }
}

#[tokio::test]
async fn a_node_s_certificate_says_which_it_is() {
    let server = world().await;
    let now = Timestamp::now().as_second();
    let secret = |n: &str| format!("{DEFAULT}/secrets/of-{n}");
    let authority = &server.running.pki.authority;
    for (profile, one, two) in [
        (Profile::kubelet("n1"), 200, 403),
        (Profile::kubelet("n2"), 403, 200),
        (Profile::user("system:node:n1", None), 403, 403),
        (Profile::user("n1", Some("system:nodes")), 403, 403),
        (Profile::kubelet(""), 403, 403),
    ] {
        let identity = Identity::issue(authority, &profile, now).unwrap();
        for (n, expected) in [("n1", one), ("n2", two)] {
            let (code, answer) = credentials::get(&server, Some(&identity), &[], &secret(n))
                .await
                .unwrap();
            assert_eq!(code, expected, "{profile:?} {n}: {answer}");
        }
    }
}
