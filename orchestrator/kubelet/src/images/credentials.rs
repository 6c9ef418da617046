//! Credentials for registries from Secrets: types `kubernetes.io/dockerconfigjson` and `kubernetes.io/dockercfg`.

use super::reference::Reference;
use crate::cri::v1::AuthConfig;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::api::core::v1::Secret;
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
    #[serde(default)]
    identitytoken: String,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

/// What these Secrets hold for this image, the most exact match first. What cannot be read is told in the second part
/// and does not hurt the rest.
pub fn find(secrets: &[Secret], image: &Reference) -> (Vec<AuthConfig>, Vec<String>) {
    let mut found = Vec::new();
    let mut faults = Vec::new();
    for secret in secrets {
        let name = secret.metadata.name.as_deref().unwrap_or_default();
        match entries(secret) {
            Ok(entries) => {
                for (place, entry) in entries {
                    let Some(exactness) = matches(&place, image) else {
                        continue;
                    };
                    match auth(&place, entry) {
                        Some(auth) => found.push((exactness, auth)),
                        None => faults.push(format!("Secret {name}: {place}: auth is no base64 of user:password")),
                    }
                }
            }
            Err(fault) => faults.push(format!("Secret {name}: {fault}")),
        }
    }
    found.sort_by_key(|(exactness, _)| std::cmp::Reverse(*exactness));
    (found.into_iter().map(|(_, auth)| auth).collect(), faults)
}

fn entries(secret: &Secret) -> Result<BTreeMap<String, Entry>, String> {
    let data = |key: &str| secret.data.as_ref().and_then(|it| it.get(key)).map(|it| &*it.0);
    let read = |error: serde_json::Error| format!("not what a docker configuration is: {error}");
    match secret.type_.as_deref() {
        Some("kubernetes.io/dockerconfigjson") => {
            let bytes = data(".dockerconfigjson").ok_or("the key .dockerconfigjson is missing")?;
            serde_json::from_slice::<File>(bytes).map(|it| it.auths).map_err(read)
        }
        Some("kubernetes.io/dockercfg") => {
            let bytes = data(".dockercfg").ok_or("the key .dockercfg is missing")?;
            serde_json::from_slice(bytes).map_err(read)
        }
        other => Err(format!(
            "type {} holds no credentials of a registry",
            other.unwrap_or("Opaque")
        )),
    }
}

fn auth(place: &str, entry: Entry) -> Option<AuthConfig> {
    let mut auth = AuthConfig {
        username: entry.username,
        password: entry.password,
        identity_token: entry.identitytoken,
        server_address: place.to_owned(),
        ..AuthConfig::default()
    };
    if !entry.auth.is_empty() {
        let text = String::from_utf8(STANDARD.decode(entry.auth.trim()).ok()?).ok()?;
        let (username, password) = text.split_once(':')?;
        auth.username = username.to_owned();
        auth.password = password.trim_end_matches('\0').to_owned();
    }
    // The address is for people; given to the runtime it would have to be equal to the registry's.
    auth.server_address = String::new();
    Some(auth)
}

/// How exactly a place fits the image: `None` not at all. A place is a registry, with globs in its labels, and
/// perhaps a path, with or without a scheme.
fn matches(place: &str, image: &Reference) -> Option<usize> {
    let place = place.split_once("://").map_or(place, |(_, rest)| rest);
    let (host, path) = place.split_once('/').unwrap_or((place, ""));
    let host = match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    };
    // The default entry of docker is https://index.docker.io/v1/.
    let path = path.trim_matches('/');
    let path = match path {
        "v1" | "v2" => "",
        path => path,
    };
    let (host, port) = split_port(host);
    let (image_host, image_port) = split_port(&image.registry);
    let want: Vec<_> = host.split('.').collect();
    let have: Vec<_> = image_host.split('.').collect();
    let labels = want.len() == have.len() && want.iter().zip(&have).all(|(glob, text)| glob_matches(glob, text));
    let below = image.path == path || image.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'));
    (labels && port == image_port && (path.is_empty() || below)).then_some(place.len())
}

fn split_port(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    }
}

/// `*` stands for any characters of one label.
fn glob_matches(glob: &str, text: &str) -> bool {
    match glob.split_once('*') {
        None => glob == text,
        Some((before, after)) => {
            let Some(rest) = text.strip_prefix(before) else {
                return false;
            };
            (0..=rest.len())
                .filter(|at| rest.is_char_boundary(*at))
                .any(|at| glob_matches(after, &rest[at..]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;
    use serde_json::json;

    fn secret(type_: &str, key: &str, value: &serde_json::Value) -> Secret {
        Secret {
            type_: Some(type_.to_owned()),
            data: Some([(key.to_owned(), ByteString(serde_json::to_vec(value).unwrap()))].into()),
            ..Secret::default()
        }
    }

    fn users(places: &[&str], image: &str) -> Vec<String> {
        let auths: serde_json::Map<_, _> = places
            .iter()
            .map(|it| ((*it).to_owned(), json!({"username": it, "password": "p"})))
            .collect();
        let secret = secret(
            "kubernetes.io/dockerconfigjson",
            ".dockerconfigjson",
            &json!({ "auths": auths }),
        );
        let (found, faults) = find(&[secret], &Reference::parse(image).unwrap());
        assert!(faults.is_empty(), "{faults:?}");
        found.into_iter().map(|it| it.username).collect()
    }

    #[test]
    fn places_fit_by_registry_and_path_the_most_exact_first() {
        assert_eq!(
            users(&["r.io", "r.io/team", "r.io/other"], "r.io/team/app"),
            ["r.io/team", "r.io"]
        );
        assert_eq!(users(&["*.r.io", "r.io"], "a.r.io/app"), ["*.r.io"]);
        assert_eq!(
            users(&["127.0.0.1:5000", "127.0.0.1"], "127.0.0.1:5000/a"),
            ["127.0.0.1:5000"]
        );
        assert_eq!(
            users(&["https://index.docker.io/v1/"], "busybox"),
            ["https://index.docker.io/v1/"]
        );
        assert_eq!(users(&["r.io/team"], "r.io/teammate/app"), Vec::<String>::new());
    }

    #[test]
    fn both_forms_of_secrets_are_read_and_bad_ones_told() {
        let encoded = STANDARD.encode("ann:pa:ss");
        let old = secret(
            "kubernetes.io/dockercfg",
            ".dockercfg",
            &json!({"r.io": {"auth": encoded}, "r.io/x": {"auth": "%"}}),
        );
        let opaque = secret("Opaque", "k", &json!({}));
        let broken = secret("kubernetes.io/dockerconfigjson", ".dockerconfigjson", &json!([1]));
        let (found, faults) = find(&[opaque, broken, old], &Reference::parse("r.io/x").unwrap());
        assert_eq!((&*found[0].username, &*found[0].password), ("ann", "pa:ss"));
        assert_eq!(found.len(), 1);
        assert_eq!(faults.len(), 3);
    }
}
