//! One bad request at a time, through the router.

use crate::support::TestServer;
use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};
use tower::ServiceExt as _;

pub(crate) const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const REVISIONS: &str = "/apis/apps/v1/namespaces/default/controllerrevisions";
const MAX_BODY: usize = 3 * 1024 * 1024;

/// One answer.
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// Sends bytes as they are. A refusal must be a `Status` that repeats the code.
pub(crate) async fn send(
    server: &TestServer,
    method: Method,
    path: &str,
    media_type: &str,
    body: impl Into<Bytes>,
) -> Option<Answer> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", media_type)
        .body(Full::new(body.into()));
    // What no URI can hold never reaches the server.
    let response = server.admin().oneshot(request.ok()?).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let answer = Answer {
        code: parts.status.as_u16(),
        headers: parts.headers,
        body,
    };
    if answer.code >= 400 {
        let status = answer.json();
        assert_eq!(status["kind"], "Status", "{path}: {}", answer.code);
        assert_eq!(status["code"], answer.code, "{path}");
        assert!(!status["message"].as_str().unwrap().is_empty(), "{path}");
    }
    assert_eq!(server.running.server.metrics.faults(), 0, "{path} met a fault");
    Some(answer)
}

async fn code(server: &TestServer, method: Method, path: &str, media_type: &str, body: impl Into<Bytes>) -> u16 {
    send(server, method, path, media_type, body).await.unwrap().code
}

fn nested(depth: usize) -> Value {
    (0..depth).fold(json!(1), |inner, _| json!({ "a": inner }))
}

#[tokio::test]
async fn bodies_that_are_none() {
    let server = TestServer::start().await;
    let (json, yaml, proto) = (
        "application/json",
        "application/yaml",
        "application/vnd.kubernetes.protobuf",
    );
    let mut bomb = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\nx0: &x0 [a,a,a,a,a,a,a,a,a]\n".to_owned();
    for level in 1..12 {
        let before = format!("*x{}", level - 1);
        bomb.push_str(&format!("x{level}: &x{level} [{}]\n", vec![before; 9].join(",")));
    }
    let mut messages = vec![0x0a, 0];
    for _ in 0..10_000 {
        let mut outer = vec![0x0a];
        let mut length = messages.len();
        while length > 127 {
            outer.push((length & 127) as u8 | 128);
            length >>= 7;
        }
        outer.push(length as u8);
        messages.splice(0..0, outer);
        if messages.len() > 40_000 {
            break;
        }
    }
    let cases: Vec<(&str, Vec<u8>, u16)> = vec![
        (json, b"[".repeat(100_000), 400),
        (json, b"{\"a\":".repeat(100_000), 400),
        (json, b"{".to_vec(), 400),
        (json, b"null".to_vec(), 400),
        (json, b"[]".to_vec(), 400),
        (json, b"\"\xff\xfe\"".to_vec(), 400),
        (json, b"{\"metadata\":{\"name\":\"\xff\"}}".to_vec(), 400),
        (json, br#"{"metadata":{"name":"\ud800"}}"#.to_vec(), 400),
        (json, br#"{"metadata":{"name":"a"},"data":{"x":1e999}}"#.to_vec(), 400),
        (json, br#"{"metadata":[]}"#.to_vec(), 400),
        (json, br#"{"metadata":{"labels":[1]}}"#.to_vec(), 400),
        (json, br#"{"metadata":{"labels":{"a":{"b":1}}}}"#.to_vec(), 400),
        (json, Vec::new(), 400),
        (yaml, b"a: ".repeat(50_000), 400),
        (yaml, b"- ".repeat(100_000), 400),
        (yaml, b"{".repeat(100_000), 400),
        (yaml, bomb.into_bytes(), 400),
        (yaml, b"a: *nobody\n".to_vec(), 400),
        (yaml, b"\xff".to_vec(), 400),
        (yaml, b"a: 1\n---\nb: 1\n".to_vec(), 400),
        (proto, b"k8s\0".to_vec(), 400),
        (proto, b"k8s".to_vec(), 400),
        (proto, [b"k8s\0".to_vec(), vec![0xff; 1000]].concat(), 400),
        (proto, [b"k8s\0".to_vec(), messages].concat(), 400),
        ("application/cbor", b"x".to_vec(), 415),
        ("text/\u{1}", b"x".to_vec(), 415),
        (json, vec![b' '; MAX_BODY + 1], 413),
        (json, vec![b' '; MAX_BODY], 400),
    ];
    for (media_type, body, expected) in cases {
        if http::HeaderValue::from_str(media_type).is_err() {
            continue;
        }
        let start = String::from_utf8_lossy(&body[..body.len().min(40)]).into_owned();
        let found = code(&server, Method::POST, MAPS, media_type, body).await;
        assert_eq!(found, expected, "{media_type} {start}");
    }
}

#[tokio::test]
async fn bodies_at_the_limit() {
    let server = TestServer::start().await;
    let of = |length: usize| {
        let frame = json!({ "metadata": { "name": "a" }, "data": { "x": "" } }).to_string();
        let filling = "x".repeat(length - frame.len());
        json!({ "metadata": { "name": "a" }, "data": { "x": filling } }).to_string()
    };
    // Larger than a ConfigMap may be, and no larger than a body may be.
    assert_eq!(
        code(&server, Method::POST, MAPS, "application/json", of(MAX_BODY)).await,
        422
    );
    assert_eq!(
        code(&server, Method::POST, MAPS, "application/json", of(MAX_BODY + 1)).await,
        413
    );
}

#[tokio::test]
async fn long_lists() {
    let server = TestServer::start().await;
    let labels: serde_json::Map<_, _> = (0..40_000).map(|n| (format!("l{n}"), json!("v"))).collect();
    let entry = json!({ "manager": "m", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1",
        "fieldsV1": {"f:data": {}} });
    let finalizers: Vec<_> = (0..20_000).map(|n| format!("example.com/f{n}")).collect();
    for (name, metadata) in [
        ("labels", json!({ "labels": labels })),
        ("annotations", json!({ "annotations": labels })),
        ("finalizers", json!({ "finalizers": finalizers })),
        ("managed", json!({ "managedFields": vec![entry; 10_000] })),
    ] {
        let mut object = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata });
        object["metadata"]["name"] = json!(name);
        let answer = send(&server, Method::POST, MAPS, "application/json", object.to_string())
            .await
            .unwrap();
        assert!(matches!(answer.code, 201 | 400 | 422), "{name}: {}", answer.code);
    }
    // Unknown fields are told of, in headers that a client can take.
    let mut object = json!({ "metadata": { "name": "unknown" } });
    for n in 0..50_000 {
        object[format!("unknown{n}")] = json!(1);
    }
    object["y".repeat(500_000)] = json!(1);
    let answer = send(&server, Method::POST, MAPS, "application/json", object.to_string())
        .await
        .unwrap();
    assert_eq!(answer.code, 201);
    let warnings: Vec<usize> = answer
        .headers
        .get_all("warning")
        .iter()
        .map(http::HeaderValue::len)
        .collect();
    assert!(warnings.len() > 10 && warnings.iter().sum::<usize>() < 16 * 1024);
    // A long name around many that are there twice: paths must not multiply it.
    let twice = "\"a\":1,".repeat(200_000);
    let body = format!(
        r#"{{"metadata":{{"name":"x"}},"{}":{{{twice}"b":1}}}}"#,
        "z".repeat(1_000_000)
    );
    for validation in ["Warn", "Strict", "Ignore"] {
        let path = format!("{MAPS}?fieldValidation={validation}&dryRun=All");
        let answer = send(&server, Method::POST, &path, "application/json", body.clone())
            .await
            .unwrap();
        assert!(answer.body.len() < 300_000, "{} of {validation}", answer.body.len());
    }
}

#[tokio::test]
async fn what_is_stored_can_be_read() {
    let server = TestServer::start().await;
    for depth in [100, 117, 118, 119, 120, 121, 122, 124, 125, 126, 127, 128] {
        let object = json!({ "apiVersion": "apps/v1", "kind": "ControllerRevision", "revision": 1,
            "metadata": { "name": format!("d{depth}") }, "data": nested(depth) });
        let made = code(&server, Method::POST, REVISIONS, "application/json", object.to_string()).await;
        assert!(matches!(made, 201 | 400), "{depth}: {made}");
    }
    let deeper = json!([{ "op": "add", "path": format!("/data{}", "/a".repeat(90)), "value": nested(60) }]);
    let path = format!("{REVISIONS}/d100");
    for _ in 0..3 {
        send(
            &server,
            Method::PATCH,
            &path,
            "application/json-patch+json",
            deeper.to_string(),
        )
        .await;
    }
    let request = Request::builder()
        .uri(REVISIONS)
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
        .body(Full::new(Bytes::new()))
        .unwrap();
    assert_eq!(server.admin().oneshot(request).await.unwrap().status(), 200);
    assert_eq!(server.get(REVISIONS).await.0, 200);
}

#[tokio::test]
async fn patches_that_explode() {
    let server = TestServer::start().await;
    let object = json!({ "metadata": { "name": "a" }, "data": { "x": "y".repeat(1000) } });
    assert_eq!(server.post(MAPS, &object).await.0, 201);
    let path = format!("{MAPS}/a");
    let many = vec![json!({ "op": "test", "path": "/data/x", "value": 1 }); 10_001];
    let doubling: Vec<_> = (0..40)
        .map(|n| json!({ "op": "copy", "from": "/data", "path": format!("/data/c{n}") }))
        .collect();
    for (kind, patch, expected) in [
        ("json-patch+json", json!(many), 413),
        ("json-patch+json", json!(doubling), 422),
        (
            "json-patch+json",
            json!([{ "op": "copy", "from": "", "path": "/data/x" }]),
            400,
        ),
        ("json-patch+json", json!({}), 400),
        (
            "json-patch+json",
            json!([{ "op": "move", "from": "/data", "path": "/data/x" }]),
            422,
        ),
        ("json-patch+json", json!([{ "op": "remove", "path": "" }]), 422),
        (
            "json-patch+json",
            json!([{ "op": "add", "path": "/data/-1/~2", "value": 1 }]),
            422,
        ),
        ("merge-patch+json", json!([]), 400),
        ("strategic-merge-patch+json", json!({ "$patch": "nonsense" }), 400),
        (
            "strategic-merge-patch+json",
            json!({ "metadata": { "$retainKeys": 1 } }),
            400,
        ),
        ("apply-patch+yaml", json!({}), 422),
    ] {
        let kind = format!("application/{kind}");
        let found = code(&server, Method::PATCH, &path, &kind, patch.to_string()).await;
        let text: String = patch.to_string().chars().take(80).collect();
        assert!(
            found == expected || (matches!(found, 400 | 413 | 422) && expected != 413),
            "{kind} {text}: {found}, not {expected}"
        );
    }
    let (_, still) = server.get(&path).await;
    assert_eq!(still["data"], object["data"]);
}

#[tokio::test]
async fn parameters_that_overflow() {
    let server = TestServer::start().await;
    let (huge, one_more) = (u64::MAX, i64::MAX as u64 + 1);
    let long = "a in (b,b,b,b),".repeat(3_000);
    let token = |text: &str| base64::Engine::encode(&base64::prelude::BASE64_URL_SAFE_NO_PAD, text);
    let token_of = |revision: i128, start: &str| {
        token(&json!({ "v": "meta.k8s.io/v1", "rv": revision as i64, "start": start }).to_string())
    };
    for (query, expected) in [
        (format!("limit={}", i64::MAX), 200),
        (format!("limit={one_more}"), 400),
        ("limit=-1".to_owned(), 400),
        (format!("resourceVersion={huge}"), 504),
        (format!("resourceVersion={huge}0"), 400),
        ("resourceVersion=-1".to_owned(), 400),
        (format!("resourceVersion={huge}&resourceVersionMatch=Exact"), 504),
        (format!("timeoutSeconds={huge}"), 200),
        (format!("labelSelector={}x", long.replace(' ', "%20")), 200),
        (format!("labelSelector={}", "(".repeat(10_000)), 400),
        (format!("labelSelector={}", "!".repeat(10_000)), 400),
        (format!("labelSelector=a%3E{huge}"), 400),
        (format!("fieldSelector={}", "metadata.name%3Dx,".repeat(3_000)), 200),
        ("fieldSelector=spec.secret%3Dx".to_owned(), 400),
        (format!("fieldSelector={}", "%5C".repeat(10_000)), 400),
        (format!("continue={}", "A".repeat(30_000)), 400),
        (format!("continue={}", token("[1]")), 400),
        (format!("continue={}", token_of(0, "//////")), 400),
        (format!("continue={}", token_of(-1, "//////")), 200),
        (format!("continue={}", token_of(-1, "../../a/b")), 200),
        (format!("continue={}", token_of(-2, "a/b")), 400),
        (format!("continue={}", token_of(i64::MAX.into(), "a/b")), 504),
    ] {
        let path = format!("{MAPS}?{query}");
        let answer = send(&server, Method::GET, &path, "application/json", "").await.unwrap();
        let start: String = query.chars().take(80).collect();
        assert_eq!(answer.code, expected, "{start}: {}", answer.json()["message"]);
    }
    // The longest watch is still one.
    let path = format!("{MAPS}?watch=1&timeoutSeconds={huge}");
    let request = Request::builder().uri(path).body(Full::new(Bytes::new())).unwrap();
    assert_eq!(server.admin().oneshot(request).await.unwrap().status(), 200);
    assert_eq!(server.running.server.metrics.faults(), 0);
}

#[tokio::test]
async fn graces_that_no_calendar_holds() {
    let server = TestServer::start().await;
    let pods = "/api/v1/namespaces/default/pods";
    for (name, body) in [
        ("a", json!({ "gracePeriodSeconds": i64::MAX })),
        ("b", json!({ "gracePeriodSeconds": -1 })),
        ("c", json!({ "gracePeriodSeconds": 253_402_207_200_i64 })),
        ("d", json!({})),
    ] {
        let account = json!({ "metadata": { "name": "default" } });
        server
            .post("/api/v1/namespaces/default/serviceaccounts", &account)
            .await;
        let pod = json!({ "metadata": { "name": name }, "spec": { "nodeName": "n", "terminationGracePeriodSeconds": i64::MAX,
            "containers": [{ "name": "c", "image": "i" }] } });
        let (code, made) = server.post(pods, &pod).await;
        assert_eq!(code, 201, "{made}");
        let path = format!("{pods}/{name}");
        let answer = send(&server, Method::DELETE, &path, "application/json", body.to_string())
            .await
            .unwrap();
        assert!(answer.code < 500, "{name}: {}", answer.json());
    }
    let request = json!({ "spec": { "expirationSeconds": i64::MAX } });
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let (code, answer) = server.post(path, &request).await;
    assert!(code < 500, "{answer}");
    assert_eq!(server.running.server.metrics.faults(), 0);
}

#[tokio::test]
async fn names_that_are_paths() {
    let server = TestServer::start().await;
    let (_, before) = server.get(MAPS).await;
    let before = before["items"].as_array().unwrap().len();
    let long = "a".repeat(10_000);
    for name in [
        "a%2Fb",
        "..",
        "%2e%2e",
        "%2e",
        "%25",
        "%00",
        "%zz",
        "a%",
        "%ff",
        "%e2%82%ac",
        "a%20b",
        "A",
        "a%0d%0ab",
        &long,
        "a%3Fb",
        "-a",
        "a.",
        "%5C",
    ] {
        let path = format!("{MAPS}/{name}");
        let found = code(&server, Method::GET, &path, "application/json", "").await;
        assert!(matches!(found, 400 | 404), "{name}: {found}");
        let apply = format!("{path}?fieldManager=m");
        let body = json!({ "apiVersion": "v1", "kind": "ConfigMap" }).to_string();
        let found = code(&server, Method::PATCH, &apply, "application/apply-patch+yaml", body).await;
        assert!(matches!(found, 400 | 404 | 422), "{name}: {found}");
        let other = format!("/api/v1/namespaces/{name}/configmaps");
        let body = json!({ "metadata": { "name": "a" } }).to_string();
        let found = code(&server, Method::POST, &other, "application/json", body).await;
        assert!(matches!(found, 400 | 404 | 422), "{name}: {found}");
        for path in [
            format!("/apis/{name}"),
            format!("/apis/{name}/v1/things"),
            format!("/api/v1/{name}"),
            format!("{MAPS}/a/{name}"),
            format!("/openapi/v3/{name}"),
        ] {
            let found = code(&server, Method::GET, &path, "application/json", "").await;
            assert!(matches!(found, 400 | 404), "{path}: {found}");
        }
    }
    let (_, after) = server.get(MAPS).await;
    assert_eq!(after["items"].as_array().unwrap().len(), before);
    let text = server.running.server.metrics.text();
    assert!(
        !text.contains(&long) && !text.contains("things"),
        "made-up names must not become series"
    );
}
