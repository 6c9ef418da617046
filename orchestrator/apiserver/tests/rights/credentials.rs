//! Real connections with good and bad credentials.

use crate::support::TestServer;
use bytes::Bytes;
use fairlead_apiserver::{
    authn::tokens::{self, Bound, Reference},
    pki::{Authority, Identity, Profile},
};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::ServerName},
};

/// One GET over TLS; `None` when the connection was refused.
pub(crate) async fn get(
    server: &TestServer,
    identity: Option<&Identity>,
    headers: &[(&str, &str)],
    path: &str,
) -> Option<(u16, Value)> {
    let mut roots = RootCertStore::empty();
    roots.add(server.running.pki.authority.der().clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match identity {
        Some(identity) => {
            let (certificate, key) = identity.der().unwrap();
            config.with_client_auth_cert(vec![certificate], key).unwrap()
        }
        None => config.with_no_client_auth(),
    };
    let socket = TcpStream::connect(server.running.address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await.ok()?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    let connection = tokio::spawn(connection);
    let mut request = http::Request::builder().uri(path).header("host", "localhost");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    // TLS 1.3 tells of a refused certificate with the first answer.
    let response = sender
        .send_request(request.body(Full::new(Bytes::new())).unwrap())
        .await
        .ok()?;
    let code = response.status().as_u16();
    let body = response.into_body().collect().await.ok()?.to_bytes();
    connection.abort();
    Some((code, serde_json::from_slice(&body).unwrap_or_default()))
}

fn now() -> i64 {
    Timestamp::now().as_second()
}

const REVIEW: &str = "/apis/authentication.k8s.io/v1";
const SECRETS: &str = "/api/v1/namespaces/default/secrets";

#[tokio::test]
async fn anonymous_clients_see_health_and_version() {
    let server = TestServer::start().await;
    for (path, expected) in [
        ("/healthz", 200),
        ("/livez", 200),
        ("/readyz", 200),
        ("/version", 200),
        ("/version/", 200),
        ("/healthz/ping", 403),
        ("/livez/ping", 403),
        ("//healthz", 403),
        ("/healthz//", 403),
        ("/healthz/../metrics", 403),
        ("/metrics", 403),
        ("/", 403),
        ("/api", 403),
        ("/apis", 403),
        ("/api/v1", 403),
        (REVIEW, 403),
        ("/openapi/v2", 403),
        ("/openapi/v3", 403),
        ("/openid/v1/jwks", 403),
        ("/.well-known/openid-configuration", 403),
        ("/api/v1/nodes", 403),
        (SECRETS, 403),
        ("/made/up", 403),
    ] {
        let (code, answer) = get(&server, None, &[], path).await.unwrap();
        assert_eq!(code, expected, "{path}: {answer}");
    }
    for header in [
        ("authorization", "Bearer x"),
        ("authorization", "Bearer a.b.c"),
        ("authorization", "Bearer \u{e9}"),
        ("authorization", "Basic YTpi"),
        ("authorization", "Bearer"),
        ("impersonate-user", "kubernetes-admin"),
        ("impersonate-group", "system:masters"),
        ("x-remote-user", "kubernetes-admin"),
        ("x-remote-group", "system:masters"),
    ] {
        let (code, answer) = get(&server, None, &[header], SECRETS).await.unwrap();
        assert!(matches!(code, 400 | 401 | 403), "{header:?}: {answer}");
    }
}

#[tokio::test]
async fn certificates_of_others() {
    let server = TestServer::start().await;
    let ours = &server.running.pki.authority;
    let elsewhere = tempfile::tempdir().unwrap();
    let other = Authority::open(elsewhere.path(), now()).unwrap();
    let path = "/api/v1/namespaces";
    let admin = Identity::issue(ours, &Profile::admin(), now()).unwrap();
    assert_eq!(get(&server, Some(&admin), &[], path).await.unwrap().0, 200);
    for (what, identity) in [
        ("another authority", Identity::issue(&other, &Profile::admin(), now())),
        (
            "expired",
            Identity::issue(ours, &Profile::admin(), now() - 2 * 365 * 24 * 3600),
        ),
        (
            "not yet",
            Identity::issue(ours, &Profile::admin(), now() + 30 * 24 * 3600),
        ),
        (
            "for servers",
            Identity::issue(
                ours,
                &Profile {
                    client: false,
                    server: true,
                    ..Profile::admin()
                },
                now(),
            ),
        ),
    ] {
        let answer = get(&server, Some(&identity.unwrap()), &[], path).await;
        assert!(
            answer.as_ref().is_none_or(|(code, _)| *code == 401),
            "{what}: {answer:?}"
        );
    }
    let user = Identity::issue(ours, &Profile::user("u", None), now()).unwrap();
    assert_eq!(get(&server, Some(&user), &[], path).await.unwrap().0, 403);
    assert_eq!(get(&server, Some(&user), &[], "/api").await.unwrap().0, 200);
    // A bad token is not healed by a good certificate's absence, nor the other way round.
    let bearer = ("authorization", "Bearer x");
    let both = get(&server, Some(&admin), &[bearer], path).await.unwrap();
    assert!(matches!(both.0, 200 | 401), "{both:?}");
}

/// Whose token it is, as the server says.
async fn accepted(server: &TestServer, token: &str) -> bool {
    let bearer = format!("Bearer {token}");
    let (code, answer) = get(server, None, &[("authorization", &bearer)], "/api").await.unwrap();
    assert!(matches!(code, 200 | 401), "{code} {answer}");
    code == 200
}

#[tokio::test]
async fn tokens_and_what_they_are_bound_to() {
    let server = TestServer::start().await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let pods = "/api/v1/namespaces/default/pods";
    server.post(accounts, &json!({ "metadata": { "name": "sa" } })).await;
    let pod = json!({ "metadata": { "name": "p" }, "spec": { "serviceAccountName": "sa", "containers": [{ "name": "c", "image": "i" }] } });
    let (code, made) = server.post(pods, &pod).await;
    assert_eq!(code, 201, "{made}");
    let (code, _) = server.post(SECRETS, &json!({ "metadata": { "name": "s" } })).await;
    assert_eq!(code, 201);
    let ask = async |spec: Value| {
        let (code, answer) = server
            .post(&format!("{accounts}/sa/token"), &json!({ "spec": spec }))
            .await;
        assert_eq!(code, 201, "{answer}");
        answer["status"]["token"].as_str().unwrap().to_owned()
    };
    let bound =
        |kind: &str, name: &str| json!({ "boundObjectRef": { "apiVersion": "v1", "kind": kind, "name": name } });
    let plain = ask(json!({})).await;
    let of_pod = ask(bound("Pod", "p")).await;
    let of_secret = ask(bound("Secret", "s")).await;
    let of_others = ask(json!({ "audiences": ["vault"] })).await;
    for token in [&plain, &of_pod, &of_secret] {
        assert!(accepted(&server, token).await);
    }
    assert!(!accepted(&server, &of_others).await, "a token for others");
    // One letter elsewhere, another part's end, none at all.
    for (at, letter) in [
        (plain.len() - 10, "A"),
        (plain.len() - 10, "B"),
        (10, "x"),
        (plain.len() / 2, "_"),
    ] {
        let mut forged = plain.clone();
        forged.replace_range(at..=at, letter);
        assert!(forged == plain || !accepted(&server, &forged).await, "{at}");
    }
    let unsigned = plain.rsplit_once('.').unwrap().0.to_owned() + ".";
    assert!(!accepted(&server, &unsigned).await);
    let none = base64::Engine::encode(&base64::prelude::BASE64_URL_SAFE_NO_PAD, r#"{"alg":"none"}"#);
    let claims = plain.split('.').nth(1).unwrap();
    assert!(!accepted(&server, &format!("{none}.{claims}.")).await);
    // Expired, and not yet good.
    let keys = &server.running.server.authenticator.keys;
    let (_, account) = server.get(&format!("{accounts}/sa")).await;
    let whose = || Bound {
        namespace: "default".to_owned(),
        serviceaccount: Reference {
            name: "sa".to_owned(),
            uid: account["metadata"]["uid"].as_str().unwrap().to_owned(),
        },
        ..Bound::default()
    };
    let audiences = server.running.server.authenticator.audiences.clone();
    for (life, at, good) in [
        (600, now(), true),
        (600, now() - 601, false),
        (600, now() + 3600, false),
    ] {
        let issued = tokens::issue(keys, whose(), audiences.clone(), life, at).unwrap();
        assert_eq!(accepted(&server, &issued.token).await, good, "{life} {at}");
    }
    // What they are bound to goes.
    let at_once = json!({ "gracePeriodSeconds": 0 });
    assert_eq!(server.delete(&format!("{pods}/p"), Some(&at_once)).await.0, 200);
    assert!(!accepted(&server, &of_pod).await, "its pod is gone");
    assert_eq!(server.delete(&format!("{SECRETS}/s"), None).await.0, 200);
    assert!(!accepted(&server, &of_secret).await, "its secret is gone");
    assert!(accepted(&server, &plain).await);
    assert_eq!(server.delete(&format!("{accounts}/sa"), None).await.0, 200);
    assert!(!accepted(&server, &plain).await, "its account is gone");
    server.post(accounts, &json!({ "metadata": { "name": "sa" } })).await;
    assert!(
        !accepted(&server, &plain).await,
        "a new account of the same name is another"
    );
}
