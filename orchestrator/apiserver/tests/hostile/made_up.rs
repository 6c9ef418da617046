//! Requests put together from pieces that were bad before, in any order: answers are never 5xx, and no fault is met.

use crate::{
    properties,
    requests::{MAPS, send},
    support::TestServer,
};
use http::Method;
use proptest::{prelude::*, test_runner::TestRunner};
use rand::{SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

const PIECES: [&str; 28] = [
    "api",
    "v1",
    "apis",
    "apps",
    "watch",
    "namespaces",
    "default",
    "pods",
    "configmaps",
    "secrets",
    "deployments",
    "a",
    "status",
    "scale",
    "log",
    "proxy",
    "exec",
    "token",
    "eviction",
    "binding",
    "finalize",
    "%2e%2e",
    "%2F",
    "%00",
    "",
    "openapi",
    "v3",
    "version",
];
const QUERIES: [&str; 22] = [
    "watch=1&timeoutSeconds=1",
    "limit=1",
    "limit=x",
    "continue=e30",
    "labelSelector=a%3Db",
    "labelSelector=%28",
    "fieldSelector=metadata.name%3Da",
    "fieldSelector=%5C",
    "resourceVersion=0",
    "resourceVersion=1",
    "resourceVersionMatch=Exact",
    "resourceVersionMatch=NotOlderThan",
    "sendInitialEvents=true",
    "allowWatchBookmarks=1",
    "dryRun=All",
    "dryRun=x",
    "fieldManager=m",
    "force=1",
    "fieldValidation=Strict",
    "propagationPolicy=Orphan",
    "gracePeriodSeconds=9",
    "%zz",
];
const BODIES: [&str; 14] = [
    "",
    "{}",
    "[]",
    "null",
    "1",
    "\"x\"",
    r#"{"metadata":{"name":"a"}}"#,
    r#"{"metadata":null,"spec":[]}"#,
    r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"containers":[{"name":"c","image":"i"}]}}"#,
    r#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"a"},"spec":{"replicas":-1,"selector":{},"template":{}}}"#,
    r#"[{"op":"add","path":"/metadata/labels","value":{"a":1}}]"#,
    r#"[{"op":"replace","path":"","value":7}]"#,
    r#"{"metadata":{"$patch":"delete"},"data":{"$retainKeys":["a"]}}"#,
    "a: &a [*a]",
];
const TYPES: [&str; 8] = [
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
    "x",
];

#[test]
fn any_request_is_answered() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let server = runtime.block_on(TestServer::start());
    let made = runtime.block_on(server.post(
        MAPS,
        &serde_json::json!({ "metadata": { "name": "a" }, "data": { "x": "1" } }),
    ));
    assert_eq!(made.0, 201);
    let strategy = (
        proptest::sample::select(vec![
            "GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "MADEUP",
        ]),
        prop_oneof![
            Just(vec!["api", "v1"]),
            Just(vec!["api", "v1", "namespaces", "default"]),
            Just(vec!["apis", "apps", "v1", "namespaces", "default"]),
            Just(vec![]),
        ],
        proptest::collection::vec(proptest::sample::select(&PIECES[..]), 0..5),
        proptest::collection::vec(proptest::sample::select(&QUERIES[..]), 0..4),
        proptest::sample::select(&TYPES[..]),
        proptest::sample::select(&BODIES[..]),
    );
    let mut runner = TestRunner::new(ProptestConfig {
        cases: std::env::var("HOSTILE_CASES").map_or(1_500, |it| it.parse().unwrap()),
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let outcome = runner.run(&strategy, |(method, start, rest, query, media_type, body)| {
        let path: Vec<_> = start.into_iter().chain(rest).collect();
        let uri = format!("/{}?{}", path.join("/"), query.join("&"));
        let method: Method = method.parse().unwrap();
        let watches = uri.contains("watch");
        let answer = runtime.block_on(async {
            let answer = send(&server, method.clone(), &uri, media_type, body);
            if watches {
                // A watch goes on; that it began is enough.
                tokio::time::timeout(std::time::Duration::from_millis(20), answer)
                    .await
                    .unwrap_or(None)
            } else {
                answer.await
            }
        });
        // 502 and 503: what a proxy asks for is not there. 504: nor is a revision.
        let fine = answer.is_none_or(|it| it.code < 500 || matches!(it.code, 502..=504));
        prop_assert!(fine, "{method} {uri} {media_type} {body}");
        prop_assert_eq!(
            server.running.server.metrics.faults(),
            0,
            "{} {} {} {}",
            method,
            uri,
            media_type,
            body
        );
        Ok(())
    });
    outcome.unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn objects_of_every_kind(seed: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        let all = properties::resources();
        for _ in 0..20 {
            let resource = all.choose(&mut random).unwrap();
            properties::object(resource, properties::made_up(resource, &mut random));
        }
    }

    #[test]
    fn bodies(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "[a-z{}\\[\\]:,\"&*\n -]{0,60}") {
        properties::body(&bytes);
        properties::body(text.as_bytes());
    }

    #[test]
    fn texts(text in "[ -~]{0,60}", selector in "[ab!=<>(), \\\\in.%]{0,30}", path in "[{}.\\[\\]@?(a=='\":,*$0-9-]{0,40}", any in ".{0,40}") {
        for text in [&text, &selector, &path, &any] {
            properties::selectors(text);
            properties::request(text);
            properties::json_path(text);
        }
    }
}

/// Objects of every kind through all that a write goes through: admission, hooks, ownership, each kind of patch.
#[tokio::test]
async fn writes_of_every_kind() {
    let seed = std::env::var("HOSTILE_SEED").map_or_else(|_| rand::random(), |it| it.parse().unwrap());
    println!("HOSTILE_SEED={seed}");
    let rounds = std::env::var("HOSTILE_ROUNDS").map_or(3, |it| it.parse().unwrap());
    let mut random = StdRng::seed_from_u64(seed);
    let server = TestServer::start().await;
    for round in 0..rounds {
        for resource in properties::resources() {
            let place = match resource.scope {
                fairlead_schema::Scope::Namespaced => "namespaces/default/",
                fairlead_schema::Scope::Cluster => "",
            };
            let start = if resource.group.is_empty() {
                "api".to_owned()
            } else {
                format!("apis/{}", resource.group)
            };
            let all = format!("/{start}/{}/{place}{}", resource.version, resource.plural);
            let one = format!("{all}/made-up");
            let mut requests = vec![
                (Method::POST, all.clone(), "application/json", ""),
                (Method::PUT, one.clone(), "application/json", ""),
                (Method::PATCH, one.clone(), "application/merge-patch+json", ""),
                (Method::PATCH, one.clone(), "application/strategic-merge-patch+json", ""),
                (
                    Method::PATCH,
                    one.clone(),
                    "application/apply-patch+yaml",
                    "?fieldManager=m&force=true",
                ),
                (Method::DELETE, one.clone(), "application/json", ""),
            ];
            for subresource in &resource.subresources {
                let path = format!("{one}/{}", subresource.name);
                requests.push((Method::POST, path.clone(), "application/json", ""));
                requests.push((Method::PUT, path.clone(), "application/json", ""));
                requests.push((Method::PATCH, path, "application/merge-patch+json", ""));
            }
            for (method, path, media_type, query) in requests {
                let object = properties::made_up(&resource, &mut random).to_string();
                let path = format!("{path}{query}");
                let answer = send(&server, method.clone(), &path, media_type, object.clone())
                    .await
                    .unwrap();
                let fine = answer.code < 500 || matches!(answer.code, 502..=504);
                assert!(
                    fine,
                    "seed {seed}, round {round}: {method} {path} {object}: {}",
                    answer.json()
                );
            }
        }
    }
    // What got in can be shown.
    for resource in properties::resources()
        .iter()
        .filter(|it| it.verbs.iter().any(|verb| &**verb == "list"))
    {
        let start = if resource.group.is_empty() {
            "api".to_owned()
        } else {
            format!("apis/{}", resource.group)
        };
        let path = format!("/{start}/{}/{}", resource.version, resource.plural);
        let request = http::Request::builder()
            .uri(&path)
            .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
            .body(http_body_util::Empty::<bytes::Bytes>::new())
            .unwrap();
        let response = tower::ServiceExt::oneshot(server.admin(), request).await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
    }
    assert_eq!(server.running.server.metrics.faults(), 0);
}
