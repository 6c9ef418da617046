//! No secret, token or key in what the server writes: logs at their loudest, `Debug` output, metrics.

use crate::{credentials, support::TestServer};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use fairlead_apiserver::pki::{Identity, Profile};
use jiff::Timestamp;
use serde_json::json;
use std::{
    fmt::Write as _,
    path::Path,
    sync::{Arc, Mutex},
};
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};

/// Everything that is logged, at every level, by anybody.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<String>>);

impl Visit for Log {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = write!(self.0.lock().unwrap(), " {field}={value:?}");
    }
}

impl Subscriber for Log {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        span.record(&mut self.clone());
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, values: &Record<'_>) {
        values.record(&mut self.clone());
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let _ = write!(self.0.lock().unwrap(), "\n{}", event.metadata().target());
        event.record(&mut self.clone());
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// Lines of all private keys below a directory.
fn private_lines(directory: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            private_lines(&path, found);
            continue;
        }
        let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
        let private = text.split("-----BEGIN ").filter(|it| it.contains("PRIVATE KEY-----"));
        for line in private
            .flat_map(str::lines)
            .filter(|it| it.len() >= 32 && !it.contains("-----"))
        {
            found.push(line.to_owned());
        }
    }
}

#[tokio::test]
async fn nothing_secret_is_written() {
    let log = Log::default();
    // Of this thread, which is the only one of the test's runtime.
    let guard = tracing::subscriber::set_default(log.clone());
    let server = TestServer::start().await;
    let default = "/api/v1/namespaces/default";
    let value = "correct-horse-battery-staple-4711";
    let encoded = BASE64_STANDARD.encode(value);
    let secret = json!({ "metadata": { "name": "s" }, "data": { "password": encoded } });
    assert_eq!(server.post(&format!("{default}/secrets"), &secret).await.0, 201);
    let merge = json!({ "stringData": { "other": value } });
    assert_eq!(
        server
            .patch(&format!("{default}/secrets/s"), "merge-patch+json", &merge)
            .await
            .0,
        200
    );
    let bad = json!({ "metadata": { "name": "S" }, "data": { "password": encoded }, "stringData": { "a": value } });
    assert_eq!(server.post(&format!("{default}/secrets"), &bad).await.0, 422);
    server
        .post(
            &format!("{default}/serviceaccounts"),
            &json!({ "metadata": { "name": "sa" } }),
        )
        .await;
    let (code, answer) = server
        .post(&format!("{default}/serviceaccounts/sa/token"), &json!({ "spec": {} }))
        .await;
    assert_eq!(code, 201, "{answer}");
    let token = answer["status"]["token"].as_str().unwrap().to_owned();
    let bearer = format!("Bearer {token}");
    let wrong = format!("Bearer {}x", token);
    for (header, expected) in [(&bearer, 403), (&wrong, 401)] {
        for path in [
            "secrets/s",
            "pods/p/exec?command=id",
            "secrets?watch=1&timeoutSeconds=1",
        ] {
            let found = credentials::get(
                &server,
                None,
                &[("authorization", header)],
                &format!("{default}/{path}"),
            )
            .await;
            assert_eq!(found.unwrap().0, expected, "{path}");
        }
    }
    let review = json!({ "spec": { "token": token } });
    assert_eq!(
        server
            .post("/apis/authentication.k8s.io/v1/tokenreviews", &review)
            .await
            .0,
        201
    );
    let admin = Identity::issue(
        &server.running.pki.authority,
        &Profile::admin(),
        Timestamp::now().as_second(),
    )
    .unwrap();
    let read = credentials::get(&server, Some(&admin), &[], &format!("{default}/secrets/s"))
        .await
        .unwrap();
    assert_eq!(read.1["data"]["password"], encoded);
    let kubeconfig = server.running.admin_kubeconfig(&server.url).unwrap();
    let debug = format!(
        "{:?} {:?} {:?} {:?}",
        server.running.server.authenticator, server.running.pki.authority, admin, server.running.server.settings
    );
    let metrics = server.running.server.metrics.text();
    drop(guard);

    let mut secrets = vec![value.to_owned(), encoded, token.clone()];
    secrets.extend(token.split('.').skip(1).map(str::to_owned));
    private_lines(server.directory.path(), &mut secrets);
    let key = kubeconfig
        .lines()
        .find_map(|line| line.trim().strip_prefix("client-key-data:"))
        .unwrap();
    let key = String::from_utf8(BASE64_STANDARD.decode(key.trim().trim_matches('"')).unwrap()).unwrap();
    secrets.extend(
        key.lines()
            .filter(|it| it.len() >= 32 && !it.contains("-----"))
            .map(str::to_owned),
    );
    assert!(secrets.len() > 8, "keys are looked for where they are");
    let log = log.0.lock().unwrap().clone();
    assert!(log.len() > 100, "something was logged: {log}");
    for (what, text) in [("log", &log), ("debug", &debug), ("metrics", &metrics)] {
        for secret in &secrets {
            assert!(!text.contains(secret.as_str()), "the {what} shows {secret}");
        }
    }
}
