//! Tokens asked for, verified, outlived and forged.

use super::*;
use crate::{
    authn::{Authenticator, Credentials, oidc},
    authz::review,
    objects::fake::Map,
};

const NOW: i64 = 1_800_000_000;
const HERE: &str = "https://kubernetes.default.svc.cluster.local";

fn ring(directory: &std::path::Path) -> KeyRing {
    KeyRing::open(directory, HERE).unwrap()
}

fn object(namespace: &str, name: &str, uid: &str) -> Value {
    json!({"metadata": {"namespace": namespace, "name": name, "uid": uid}})
}

fn world() -> Map {
    let mut map = Map::default();
    map.put("core/serviceaccounts", object("ns", "sa", "sa-1"));
    map.put("core/secrets", object("ns", "s", "secret-1"));
    map.put("core/nodes", json!({"metadata": {"name": "n", "uid": "node-1"}}));
    let mut pod = object("ns", "p", "pod-1");
    pod["spec"] = json!({"serviceAccountName": "sa", "nodeName": "n"});
    map.put("core/pods", pod);
    map
}

#[allow(clippy::needless_pass_by_value)] // literals read better by value
fn ask(spec: Value) -> Value {
    json!({"kind": "TokenRequest", "spec": spec})
}

fn here() -> Vec<String> {
    vec![HERE.to_owned()]
}

#[test]
fn requests_are_answered_or_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (keys, map) = (ring(directory.path()), world());
    let bound = |kind: &str, name: &str, uid: &str| {
        ask(json!({"boundObjectRef": {"apiVersion": "v1", "kind": kind, "name": name, "uid": uid}}))
    };
    for (spec, account, code) in [
        (ask(json!({})), "sa", None),
        (ask(json!({"expirationSeconds": null, "audiences": null})), "sa", None),
        (ask(json!({"expirationSeconds": 600})), "sa", None),
        (ask(json!({"expirationSeconds": 599})), "sa", Some(422)),
        (ask(json!({"expirationSeconds": MAX_LIFE_S + 1})), "sa", Some(422)),
        (ask(json!({})), "gone", Some(404)),
        (bound("Pod", "p", ""), "sa", None),
        (bound("Pod", "p", "pod-1"), "sa", None),
        (bound("Pod", "p", "pod-2"), "sa", Some(409)),
        (bound("Pod", "gone", ""), "sa", Some(404)),
        (bound("Secret", "s", "secret-1"), "sa", None),
        (bound("Node", "n", "node-1"), "sa", None),
        (bound("ConfigMap", "s", ""), "sa", Some(400)),
        (json!({"metadata": {"uid": "other"}, "spec": {}}), "sa", Some(409)),
    ] {
        let answer = request(&keys, &spec, "ns", account, &here(), &map, NOW);
        assert_eq!(answer.err().map(|it| it.code), code, "{spec}");
    }
    let mut map = map;
    map.put("core/serviceaccounts", object("ns", "other", "sa-2"));
    let refused = request(&keys, &bound("Pod", "p", ""), "ns", "other", &here(), &map, NOW).unwrap_err();
    assert_eq!(refused.code, 400);
}

#[test]
fn the_token_says_what_upstream_says() {
    let directory = tempfile::tempdir().unwrap();
    let (keys, map) = (ring(directory.path()), world());
    let spec = json!({"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p"}, "expirationSeconds": 3607});
    let (answer, issued) = request(&keys, &ask(spec), "ns", "sa", &here(), &map, NOW).unwrap();
    assert_eq!(answer["status"]["expirationTimestamp"], "2027-01-15T09:00:07Z");
    assert_eq!(answer["status"]["token"], json!(issued.token));
    let claims = serde_json::to_value(&issued.claims).unwrap();
    assert_eq!(claims["sub"], "system:serviceaccount:ns:sa");
    assert_eq!(
        (&claims["iat"], &claims["nbf"], &claims["exp"]),
        (&json!(NOW), &json!(NOW), &json!(NOW + 3607))
    );
    assert_eq!(
        claims["kubernetes.io"],
        json!({
            "namespace": "ns", "serviceaccount": {"name": "sa", "uid": "sa-1"}, "pod": {"name": "p", "uid": "pod-1"},
            "node": {"name": "n", "uid": "node-1"},
        })
    );
    let user = verify(&keys, &issued.token, &here(), &map, NOW).unwrap().user;
    assert_eq!(user.name, "system:serviceaccount:ns:sa");
    assert_eq!(user.uid, "sa-1");
    assert_eq!(
        user.groups,
        [
            "system:serviceaccounts",
            "system:serviceaccounts:ns",
            "system:authenticated"
        ]
    );
    assert_eq!(user.extra["authentication.kubernetes.io/pod-name"], ["p"]);
    assert_eq!(user.extra["authentication.kubernetes.io/node-uid"], ["node-1"]);
}

#[test]
fn tokens_end_with_their_time_audience_and_objects() {
    let directory = tempfile::tempdir().unwrap();
    let (keys, map) = (ring(directory.path()), world());
    let spec = json!({"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p"}});
    let (_, pod) = request(&keys, &ask(spec), "ns", "sa", &here(), &map, NOW).unwrap();
    let spec = json!({"boundObjectRef": {"apiVersion": "v1", "kind": "Secret", "name": "s"}});
    let (_, secret) = request(&keys, &ask(spec), "ns", "sa", &here(), &map, NOW).unwrap();
    let spec = json!({"boundObjectRef": {"apiVersion": "v1", "kind": "Node", "name": "n"}});
    let (_, node) = request(&keys, &ask(spec), "ns", "sa", &here(), &map, NOW).unwrap();
    let good = |issued: &Issued, map: &Map, at| verify(&keys, &issued.token, &here(), map, at).map(|_| ());
    assert_eq!(good(&pod, &map, NOW), Ok(()));
    assert_eq!(good(&pod, &map, NOW + DEFAULT_LIFE_S), Err(TokenError::Expired));
    assert_eq!(good(&pod, &map, NOW - LEEWAY_S), Ok(()));
    assert_eq!(good(&pod, &map, NOW - LEEWAY_S - 1), Err(TokenError::NotYet));
    let elsewhere = verify(&keys, &pod.token, &["vault".to_owned()], &map, NOW);
    assert!(matches!(elsewhere, Err(TokenError::Audience { .. })), "{elsewhere:?}");
    let revoked = |kind, name: &str| {
        Err(TokenError::Revoked {
            kind,
            name: name.to_owned(),
        })
    };
    for (prefix, namespace, name, issued, error) in [
        ("core/pods", "ns", "p", &pod, revoked("pod", "p")),
        ("core/secrets", "ns", "s", &secret, revoked("secret", "s")),
        ("core/nodes", "", "n", &node, revoked("node", "n")),
        (
            "core/serviceaccounts",
            "ns",
            "sa",
            &pod,
            revoked("service account", "sa"),
        ),
    ] {
        let mut without = map.clone();
        without.remove(prefix, namespace, name);
        assert_eq!(good(issued, &without, NOW), error);
        without.put(
            prefix,
            json!({"metadata": {"namespace": namespace, "name": name, "uid": "another"}}),
        );
        assert_eq!(good(issued, &without, NOW), error);
    }
    // A pod that is stopping keeps its token until its time is up.
    let mut stopping = map.clone();
    let mut object = Value::clone(&map.get("core/pods", "ns", "p").unwrap());
    object["metadata"]["deletionTimestamp"] = json!(timestamp(NOW + 30));
    stopping.put("core/pods", object);
    assert_eq!(good(&pod, &stopping, NOW), Ok(()));
    assert_eq!(good(&pod, &stopping, NOW + 30 + LEEWAY_S + 1), revoked("pod", "p"));
    // The node of a pod's token is only told, not required.
    let mut nodeless = map.clone();
    nodeless.remove("core/nodes", "", "n");
    assert_eq!(good(&pod, &nodeless, NOW), Ok(()));
}

#[test]
fn only_our_own_signatures_count() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (keys, others, map) = (ring(one.path()), ring(two.path()), world());
    let (_, issued) = request(&others, &ask(json!({})), "ns", "sa", &here(), &map, NOW).unwrap();
    let refused = |token: &str| verify(&keys, token, &here(), &map, NOW).unwrap_err();
    assert_eq!(refused(&issued.token), TokenError::Signature);
    let (_, own) = request(&keys, &ask(json!({})), "ns", "sa", &here(), &map, NOW).unwrap();
    let parts: Vec<&str> = own.token.split('.').collect();
    let mut claims = own.claims.clone();
    claims.exp += 1;
    let encode = |it: &[u8]| {
        use base64::Engine as _;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(it)
    };
    let forged = encode(&serde_json::to_vec(&claims).unwrap());
    assert_eq!(
        refused(&format!("{}.{forged}.{}", parts[0], parts[2])),
        TokenError::Signature
    );
    // Nobody talks us into another algorithm.
    for algorithm in ["none", "HS256", "RS256"] {
        let header = json!({"alg": algorithm, "kid": keys.ids()[0]});
        let header = encode(&serde_json::to_vec(&header).unwrap());
        let error = refused(&format!("{header}.{}.{}", parts[1], parts[2]));
        assert!(
            matches!(error, TokenError::Signature | TokenError::Malformed),
            "{algorithm}: {error}"
        );
    }
    for garbage in ["", "a", "a.b", "a.b.c", "..", &"x".repeat(MAX_TOKEN_BYTES + 1)] {
        assert!(
            matches!(refused(garbage), TokenError::Malformed | TokenError::Signature),
            "{garbage:.20}"
        );
    }
}

#[test]
fn old_keys_verify_after_a_rotation_and_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let (keys, map) = (ring(directory.path()), world());
    let (_, old) = request(&keys, &ask(json!({})), "ns", "sa", &here(), &map, NOW).unwrap();
    let keys = keys.rotate().unwrap();
    let (_, new) = request(&keys, &ask(json!({})), "ns", "sa", &here(), &map, NOW).unwrap();
    let restarted = ring(directory.path());
    assert_eq!(restarted.ids(), keys.ids());
    for token in [&old.token, &new.token] {
        for keys in [&keys, &restarted] {
            // Twice: the second time it is remembered.
            assert!(verify(keys, token, &here(), &map, NOW).is_ok());
            assert!(verify(keys, token, &here(), &map, NOW).is_ok());
            assert_eq!(
                verify(keys, token, &here(), &map, NOW + MAX_LIFE_S),
                Err(TokenError::Expired)
            );
        }
    }
    let documents = (oidc::jwks(&keys), oidc::configuration(&keys, "https://api:6443/"));
    assert_eq!(documents.0["keys"].as_array().map(Vec::len), Some(2));
    assert_eq!(documents.1["jwks_uri"], "https://api:6443/openid/v1/jwks");
}

#[test]
fn nothing_shows_a_token_or_a_key() {
    let directory = tempfile::tempdir().unwrap();
    let (keys, map) = (ring(directory.path()), world());
    let (_, issued) = request(&keys, &ask(json!({})), "ns", "sa", &here(), &map, NOW).unwrap();
    verify(&keys, &issued.token, &here(), &map, NOW).unwrap();
    let pem = std::fs::read_to_string(directory.path().join("signing.key")).unwrap();
    let secret = pem.lines().nth(1).unwrap();
    let signature = issued.token.rsplit('.').next().unwrap();
    let header = format!("Bearer {}", issued.token);
    let credentials = Credentials {
        certificate: None,
        authorization: Some(&header),
    };
    let authenticator = Authenticator {
        keys: Arc::new(keys),
        audiences: here(),
        anonymous: true,
    };
    let error = authenticator
        .authenticate(credentials, &map, NOW + MAX_LIFE_S)
        .unwrap_err();
    for shown in [
        format!("{issued:?}"),
        format!("{authenticator:?}"),
        format!("{credentials:?}"),
        format!("{error:?}"),
    ] {
        assert!(!shown.contains(secret) && !shown.contains(signature), "{shown}");
    }
}

#[test]
fn wrong_credentials_are_never_anonymous() {
    let directory = tempfile::tempdir().unwrap();
    let (keys, map) = (ring(directory.path()), world());
    let (_, issued) = request(&keys, &ask(json!({})), "ns", "sa", &here(), &map, NOW).unwrap();
    let mut authenticator = Authenticator {
        keys: Arc::new(keys),
        audiences: here(),
        anonymous: true,
    };
    let good = format!("Bearer {}", issued.token);
    let who = |authenticator: &Authenticator, certificate, authorization| {
        let credentials = Credentials {
            certificate,
            authorization,
        };
        authenticator
            .authenticate(credentials, &map, NOW)
            .map(|it| it.name)
            .map_err(|it| it.code)
    };
    assert_eq!(who(&authenticator, None, None), Ok("system:anonymous".to_owned()));
    assert_eq!(
        who(&authenticator, None, Some(&good)),
        Ok("system:serviceaccount:ns:sa".to_owned())
    );
    assert_eq!(who(&authenticator, None, Some("Bearer x")), Err(401));
    assert_eq!(who(&authenticator, None, Some("Basic x")), Err(401));
    assert_eq!(who(&authenticator, Some(b"x"), None), Err(401));
    assert_eq!(
        who(&authenticator, Some(b"x"), Some(&good)),
        Ok("system:serviceaccount:ns:sa".to_owned())
    );
    authenticator.anonymous = false;
    assert_eq!(who(&authenticator, None, None), Err(401));
}

#[test]
fn token_reviews_answer_for_their_audience() {
    let directory = tempfile::tempdir().unwrap();
    let (keys, map) = (ring(directory.path()), world());
    let spec = ask(json!({"audiences": ["vault", "other"]}));
    let (_, issued) = request(&keys, &spec, "ns", "sa", &here(), &map, NOW).unwrap();
    let authenticator = Authenticator {
        keys: Arc::new(keys),
        audiences: here(),
        anonymous: true,
    };
    let answer = |audiences: Value| {
        let body = json!({"spec": {"token": issued.token, "audiences": audiences}});
        review::token(&body, &authenticator, &map, NOW).unwrap()["status"].clone()
    };
    let status = answer(json!(["x", "vault"]));
    assert_eq!(
        (&status["authenticated"], &status["audiences"]),
        (&json!(true), &json!(["vault"]))
    );
    assert_eq!(status["user"]["username"], "system:serviceaccount:ns:sa");
    let status = answer(json!([]));
    assert_eq!(status.get("authenticated"), None);
    assert!(
        status["error"].as_str().is_some_and(|it| it.contains("audiences")),
        "{status}"
    );
    assert_eq!(
        review::token(&json!({"spec": {}}), &authenticator, &map, NOW)
            .unwrap_err()
            .code,
        400
    );
}
