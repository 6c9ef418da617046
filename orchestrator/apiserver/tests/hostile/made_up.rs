//! Requests put together from pieces that were bad before, in any order: answers are never 5xx, and no fault is met.

use crate::{
    requests::{MAPS, send},
    support::TestServer,
};
use http::Method;
use proptest::{prelude::*, test_runner::TestRunner};

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
