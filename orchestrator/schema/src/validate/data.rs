//! Config maps and secrets. Source: field documentation of `core/v1`.

use super::{Causes, Path, entries, same, table::Call, text};
use crate::names;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;

/// All values together, in bytes. Source: `core/v1.MaxSecretSize`.
const MOST: usize = 1024 * 1024;

pub(super) fn call(name: &str) -> Option<Call> {
    Some(match name {
        "config-map" => config_map,
        "secret" => secret,
        _ => return None,
    })
}

fn keys(data: &Value, path: &Path<'_>, causes: &mut Causes) {
    for (key, _) in entries(data) {
        causes.all_invalid(&path.key(key), &key.as_str().into(), names::config_key(key));
    }
}

fn decoded(value: &Value) -> usize {
    text(value).len() / 4 * 3
}

fn config_map(map: &Value, path: &Path<'_>, causes: &mut Causes) {
    let (data, binary) = (path.child("data"), path.child("binaryData"));
    keys(&map["data"], &data, causes);
    keys(&map["binaryData"], &binary, causes);
    for (key, _) in entries(&map["binaryData"]) {
        if map["data"].get(key).is_some() {
            causes.invalid(
                &data.key(key),
                &key.as_str().into(),
                "duplicate of key present in binaryData",
            );
        }
    }
    let plain: usize = entries(&map["data"]).map(|(_, value)| text(value).len()).sum();
    let binary: usize = entries(&map["binaryData"]).map(|(_, value)| decoded(value)).sum();
    if plain + binary > MOST {
        causes.too_long(&Path::Root, MOST);
    }
}

fn secret(secret: &Value, path: &Path<'_>, causes: &mut Causes) {
    let data = path.child("data");
    keys(&secret["data"], &data, causes);
    let all: usize = entries(&secret["data"]).map(|(_, value)| decoded(value)).sum();
    if all > MOST {
        causes.too_long(&data, MOST);
    }
    let has = |key: &str| secret["data"].get(key).is_some();
    let mut require = |keys: &[&str]| {
        for key in keys.iter().filter(|key| !has(key)) {
            causes.required(&data.key(key), "");
        }
    };
    match text(&secret["type"]) {
        "kubernetes.io/service-account-token" => {
            let annotation = "kubernetes.io/service-account.name";
            if super::is_empty(&secret["metadata"]["annotations"][annotation]) {
                let path = path.child("metadata");
                let path = path.child("annotations");
                causes.required(&path.key(annotation), "");
            }
        }
        "kubernetes.io/tls" => require(&["tls.crt", "tls.key"]),
        "kubernetes.io/ssh-auth" => require(&["ssh-privatekey"]),
        "kubernetes.io/dockercfg" => json(secret, ".dockercfg", &data, causes),
        "kubernetes.io/dockerconfigjson" => json(secret, ".dockerconfigjson", &data, causes),
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => require(&["username", "password"]),
        _ => {}
    }
}

fn json(secret: &Value, key: &str, path: &Path<'_>, causes: &mut Causes) {
    let path = path.key(key);
    let Some(value) = secret["data"].get(key) else {
        return causes.required(&path, "");
    };
    let is_json = STANDARD
        .decode(text(value))
        .is_ok_and(|it| serde_json::from_slice::<serde_json::Map<String, Value>>(&it).is_ok());
    if !is_json {
        causes.invalid(&path, &"<secret contents redacted>".into(), "must be a JSON object");
    }
}

/// What says that it is immutable stays as it is, and says so.
pub(super) fn update(old: &Value, new: &Value, path: &Path<'_>, causes: &mut Causes) {
    if old["immutable"] != true {
        return;
    }
    for field in ["immutable", "data", "binaryData"] {
        if !same(&old[field], &new[field]) {
            causes.forbidden(&path.child(field), "field is immutable when `immutable` is set");
        }
    }
}
