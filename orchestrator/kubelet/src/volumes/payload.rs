//! `Wanted`: the files of configMap, secret, projected and downwardAPI volumes, from the objects that they name.

use super::atomic::{File, Payload};
use crate::{
    pod,
    podspec::{Cause, Facts, common_user, downward, fs_group},
};
use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret, ServiceAccountTokenProjection, Volume, VolumeProjection,
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Permissions where the pod says none. Source: `defaultMode`.
const MODE: i32 = 0o644;

/// Which token a volume wants; those with the same answers share one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TokenKey {
    /// Whom it is for; empty is the API server.
    pub(crate) audience: String,
    /// How long it is good for, in seconds.
    pub(crate) seconds: i64,
}

impl TokenKey {
    fn of(source: &ServiceAccountTokenProjection) -> Self {
        Self {
            audience: source.audience.clone().unwrap_or_default(),
            seconds: source.expiration_seconds.unwrap_or(3600),
        }
    }
}

/// All tokens that a volume wants.
pub(crate) fn tokens(volume: &Volume) -> impl Iterator<Item = TokenKey> {
    let sources = volume.projected.iter().flat_map(|it| it.sources.iter().flatten());
    sources
        .filter_map(|it| it.service_account_token.as_ref())
        .map(TokenKey::of)
}

/// Objects that the volumes of a pod are made from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sources {
    /// Each ConfigMap by name, `None` if there is none; or why it cannot be read.
    pub(crate) config_maps: BTreeMap<String, Result<Option<Arc<ConfigMap>>, String>>,
    /// Secrets likewise.
    pub(crate) secrets: BTreeMap<String, Result<Option<Arc<Secret>>, String>>,
    /// Tokens likewise.
    pub(crate) tokens: BTreeMap<TokenKey, Result<String, String>>,
}

/// The files of a volume; `None` if it is of another kind.
///
/// # Errors
/// An object or a key that must exist and does not, an object that cannot be read, a field that has no value.
pub(crate) fn payload(pod: &Pod, volume: &Volume, facts: &Facts, sources: &Sources) -> Result<Option<Payload>, Cause> {
    let mut files = Files {
        pod,
        facts,
        sources,
        out: BTreeMap::new(),
    };
    if let Some(it) = &volume.config_map {
        files.config_map(
            &it.name,
            it.items.as_deref(),
            it.default_mode.unwrap_or(MODE),
            it.optional,
        )?;
    } else if let Some(it) = &volume.secret {
        let name = it.secret_name.as_deref().unwrap_or_default();
        files.secret(name, it.items.as_deref(), it.default_mode.unwrap_or(MODE), it.optional)?;
    } else if let Some(it) = &volume.downward_api {
        files.downward(it.items.as_deref().unwrap_or_default(), it.default_mode.unwrap_or(MODE))?;
    } else if let Some(it) = &volume.projected {
        for source in it.sources.iter().flatten() {
            files.projection(source, it.default_mode.unwrap_or(MODE))?;
        }
    } else {
        return Ok(None);
    }
    let gid = fs_group(pod).and_then(|it| u32::try_from(it).ok());
    Ok(Some(Payload { files: files.out, gid }))
}

struct Files<'a> {
    pod: &'a Pod,
    facts: &'a Facts,
    sources: &'a Sources,
    out: BTreeMap<PathBuf, File>,
}

impl Files<'_> {
    fn put(&mut self, path: &str, data: Vec<u8>, mode: i32) {
        let mode = u32::try_from(mode).unwrap_or(MODE as u32) & 0o777;
        self.out
            .insert(Path::new(path).to_owned(), File { data, mode, uid: None });
    }

    fn projection(&mut self, source: &VolumeProjection, mode: i32) -> Result<(), Cause> {
        if let Some(it) = &source.config_map {
            self.config_map(&it.name, it.items.as_deref(), mode, it.optional)
        } else if let Some(it) = &source.secret {
            self.secret(&it.name, it.items.as_deref(), mode, it.optional)
        } else if let Some(it) = &source.downward_api {
            self.downward(it.items.as_deref().unwrap_or_default(), mode)
        } else if let Some(it) = &source.service_account_token {
            self.token(it, mode)
        } else if source
            .cluster_trust_bundle
            .as_ref()
            .is_some_and(|it| it.optional == Some(true))
        {
            Ok(())
        } else {
            let kind = match (&source.cluster_trust_bundle, &source.pod_certificate) {
                (Some(_), _) => "clusterTrustBundle",
                (None, Some(_)) => "podCertificate",
                (None, None) => "unknown",
            };
            Err(Cause::Unsupported(format!(
                "{kind} sources of projected volumes are not supported by this kubelet"
            )))
        }
    }

    fn config_map(
        &mut self,
        name: &str,
        items: Option<&[KeyToPath]>,
        mode: i32,
        optional: Option<bool>,
    ) -> Result<(), Cause> {
        let Some(found) = found(self.sources.config_maps.get(name), "configmap", name, optional)? else {
            return Ok(());
        };
        let text = found
            .data
            .iter()
            .flatten()
            .map(|(key, value)| (key.as_str(), value.as_bytes()));
        let binary = found
            .binary_data
            .iter()
            .flatten()
            .map(|(key, value)| (key.as_str(), value.0.as_slice()));
        self.keys(
            &text.chain(binary).collect(),
            items,
            mode,
            optional,
            "configmap references non-existent config key",
        )
    }

    fn secret(
        &mut self,
        name: &str,
        items: Option<&[KeyToPath]>,
        mode: i32,
        optional: Option<bool>,
    ) -> Result<(), Cause> {
        let Some(found) = found(self.sources.secrets.get(name), "secret", name, optional)? else {
            return Ok(());
        };
        let data = found
            .data
            .iter()
            .flatten()
            .map(|(key, value)| (key.as_str(), value.0.as_slice()));
        self.keys(
            &data.collect(),
            items,
            mode,
            optional,
            "references non-existent secret key",
        )
    }

    fn keys(
        &mut self,
        data: &BTreeMap<&str, &[u8]>,
        items: Option<&[KeyToPath]>,
        mode: i32,
        optional: Option<bool>,
        missing: &str,
    ) -> Result<(), Cause> {
        let Some(items) = items.filter(|it| !it.is_empty()) else {
            data.iter().for_each(|(key, value)| self.put(key, value.to_vec(), mode));
            return Ok(());
        };
        for item in items {
            match data.get(item.key.as_str()) {
                Some(value) => self.put(&item.path, value.to_vec(), item.mode.unwrap_or(mode)),
                None if optional == Some(true) => {}
                None => return Err(Cause::Malformed(format!("{missing}: {}", item.key))),
            }
        }
        Ok(())
    }

    fn downward(&mut self, items: &[DownwardAPIVolumeFile], mode: i32) -> Result<(), Cause> {
        for item in items {
            let text = match (&item.field_ref, &item.resource_field_ref) {
                (Some(it), _) => downward::file(self.pod, &it.field_path, self.facts)?,
                (None, Some(it)) => downward::resource(self.pod, None, it, self.facts)?,
                (None, None) => return Err(Cause::Malformed(format!("{}: no field is named", item.path))),
            };
            self.put(&item.path, text.into_bytes(), item.mode.unwrap_or(mode));
        }
        Ok(())
    }

    /// Only who needs it may read a token: the pod's group, or the one user of all its containers.
    fn token(&mut self, source: &ServiceAccountTokenProjection, mode: i32) -> Result<(), Cause> {
        let key = TokenKey::of(source);
        let token = match self.sources.tokens.get(&key) {
            Some(Ok(token)) => token.clone(),
            Some(Err(error)) => return Err(Cause::Unavailable(error.clone())),
            None => return Err(Cause::Unavailable("no token was asked for".to_owned())),
        };
        let user = common_user(self.pod).and_then(|it| u32::try_from(it).ok());
        let narrow = user.is_some() || fs_group(self.pod).is_some();
        let mode = if narrow {
            0o600
        } else {
            u32::try_from(mode).unwrap_or(MODE as u32) & 0o777
        };
        self.out.insert(
            Path::new(&source.path).to_owned(),
            File {
                data: token.into_bytes(),
                mode,
                uid: user,
            },
        );
        Ok(())
    }
}

fn found<'a, T>(
    found: Option<&'a Result<Option<Arc<T>>, String>>,
    kind: &'static str,
    name: &str,
    optional: Option<bool>,
) -> Result<Option<&'a T>, Cause> {
    match found {
        Some(Err(error)) => Err(Cause::Unavailable(error.clone())),
        Some(Ok(Some(it))) => Ok(Some(it)),
        Some(Ok(None)) | None if optional == Some(true) => Ok(None),
        Some(Ok(None)) | None => Err(Cause::Missing {
            kind,
            name: name.to_owned(),
        }),
    }
}

/// The service account of a pod.
pub(crate) fn account(pod: &Pod) -> &str {
    let account = pod.spec.as_ref().and_then(|it| it.service_account_name.as_deref());
    account.filter(|it| !it.is_empty()).unwrap_or("default")
}

/// What asks for a token that dies with the pod. Source: `TokenRequest.spec.boundObjectRef`.
pub(crate) fn token_request(pod: &Pod, key: &TokenKey) -> k8s_openapi::api::authentication::v1::TokenRequest {
    use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
    let audiences = if key.audience.is_empty() {
        Vec::new()
    } else {
        vec![key.audience.clone()]
    };
    TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: Some(audiences),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some(pod::name(pod).to_owned()),
                uid: Some(pod::uid(pod).to_owned()),
            }),
            expiration_seconds: Some(key.seconds),
        }),
        ..TokenRequest::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod_of;
    use serde_json::{Value, json};

    fn sources() -> Sources {
        let map = json!({"data": {"a": "1", "b": "2"}, "binaryData": {"bin": "/w=="}});
        let secret = json!({"data": {"pass": "c2VjcmV0"}});
        let token = TokenKey {
            audience: String::new(),
            seconds: 3600,
        };
        Sources {
            config_maps: BTreeMap::from([
                (
                    "conf".to_owned(),
                    Ok(Some(Arc::new(serde_json::from_value(map).unwrap()))),
                ),
                ("gone".to_owned(), Ok(None)),
                (
                    "away".to_owned(),
                    Err("cannot read configmap shop/away: refused".to_owned()),
                ),
            ]),
            secrets: BTreeMap::from([(
                "sec".to_owned(),
                Ok(Some(Arc::new(serde_json::from_value(secret).unwrap()))),
            )]),
            tokens: BTreeMap::from([(token, Ok("t0k3n".to_owned()))]),
        }
    }

    fn files_of(pod: &Pod, volume: Value) -> Result<Vec<(String, String, u32)>, String> {
        let volume: Volume = serde_json::from_value(volume).unwrap();
        let it = payload(pod, &volume, &Facts::default(), &sources())
            .map_err(|it| it.to_string())?
            .unwrap();
        let one = |(path, file): (PathBuf, File)| {
            (
                path.display().to_string(),
                String::from_utf8_lossy(&file.data).into_owned(),
                file.mode,
            )
        };
        Ok(it.files.into_iter().map(one).collect())
    }

    fn files(volume: Value) -> Result<Vec<(String, String, u32)>, String> {
        let mut pod = pod_of(json!({"containers": [{"name": "app"}]}));
        pod.metadata.labels = Some([("app".to_owned(), "web".to_owned())].into());
        files_of(&pod, volume)
    }

    fn file(path: &str, data: &str, mode: u32) -> (String, String, u32) {
        (path.to_owned(), data.to_owned(), mode)
    }

    #[test]
    fn keys_become_files() {
        let all = vec![
            file("a", "1", 0o644),
            file("b", "2", 0o644),
            file("bin", "\u{fffd}", 0o644),
        ];
        assert_eq!(files(json!({"name": "v", "configMap": {"name": "conf"}})), Ok(all));
        let some = json!({"name": "v", "configMap": {"name": "conf", "defaultMode": 0o400,
            "items": [{"key": "b", "path": "x/y"}, {"key": "a", "path": "a", "mode": 0o755}]}});
        assert_eq!(files(some), Ok(vec![file("a", "1", 0o755), file("x/y", "2", 0o400)]));
        let secret = json!({"name": "v", "secret": {"secretName": "sec"}});
        assert_eq!(files(secret), Ok(vec![file("pass", "secret", 0o644)]));
        let downward = json!({"name": "v", "downwardAPI": {"items": [
            {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
            {"path": "cpu", "resourceFieldRef": {"containerName": "app", "resource": "requests.cpu"}, "mode": 0o600}]}});
        assert_eq!(
            files(downward),
            Ok(vec![file("cpu", "0", 0o600), file("labels", "app=\"web\"", 0o644)])
        );
    }

    #[test]
    fn what_is_missing_is_told_unless_it_is_optional() {
        for (source, want) in [
            (json!({"configMap": {"name": "gone"}}), "configmap \"gone\" not found"),
            (json!({"configMap": {"name": "other"}}), "configmap \"other\" not found"),
            (
                json!({"configMap": {"name": "away"}}),
                "cannot read configmap shop/away: refused",
            ),
            (
                json!({"configMap": {"name": "away", "optional": true}}),
                "cannot read configmap shop/away: refused",
            ),
            (json!({"secret": {"secretName": "other"}}), "secret \"other\" not found"),
            (
                json!({"configMap": {"name": "conf", "items": [{"key": "z", "path": "z"}]}}),
                "configmap references non-existent config key: z",
            ),
            (
                json!({"secret": {"secretName": "sec", "items": [{"key": "z", "path": "z"}]}}),
                "references non-existent secret key: z",
            ),
            (
                json!({"projected": {"sources": [{"clusterTrustBundle": {"path": "x"}}]}}),
                "clusterTrustBundle sources of projected volumes are not supported by this kubelet",
            ),
        ] {
            let mut volume = source;
            volume["name"] = json!("v");
            assert_eq!(files(volume), Err(want.to_owned()));
        }
        for source in [
            json!({"configMap": {"name": "gone", "optional": true}}),
            json!({"secret": {"secretName": "other", "optional": true}}),
            json!({"secret": {"secretName": "sec", "optional": true, "items": [{"key": "z", "path": "z"}]}}),
            json!({"projected": {"sources": [{"secret": {"name": "other", "optional": true}},
                {"clusterTrustBundle": {"path": "x", "optional": true}}]}}),
        ] {
            let mut volume = source;
            volume["name"] = json!("v");
            assert_eq!(files(volume), Ok(vec![]));
        }
    }

    #[test]
    fn tokens_are_for_those_who_need_them() {
        let volume = json!({"name": "v", "projected": {"defaultMode": 0o644, "sources": [
            {"serviceAccountToken": {"path": "token"}}, {"configMap": {"name": "conf", "items": [{"key": "a", "path": "ca"}]}},
            {"downwardAPI": {"items": [{"path": "ns", "fieldRef": {"fieldPath": "metadata.namespace"}}]}}]}});
        let token = |spec: Value| {
            let pod = pod_of(spec);
            let it = payload(
                &pod,
                &serde_json::from_value(volume.clone()).unwrap(),
                &Facts::default(),
                &sources(),
            );
            let it = it.unwrap().unwrap();
            assert_eq!(it.files.len(), 3);
            let file = it.files.get(Path::new("token")).unwrap().clone();
            (file.mode, file.uid, it.gid)
        };
        assert_eq!(token(json!({"containers": [{"name": "a"}]})), (0o644, None, None));
        let user = json!({"containers": [{"name": "a"}], "securityContext": {"runAsUser": 7}});
        assert_eq!(token(user), (0o600, Some(7), None));
        let group = json!({"containers": [{"name": "a"}], "securityContext": {"fsGroup": 8}});
        assert_eq!(token(group), (0o600, None, Some(8)));
        assert_eq!(tokens(&serde_json::from_value(volume).unwrap()).count(), 1);
    }

    #[test]
    fn a_token_is_bound_to_the_pod() {
        let pod = pod_of(json!({"containers": [], "serviceAccountName": ""}));
        let it = token_request(
            &pod,
            &TokenKey {
                audience: "vault".into(),
                seconds: 600,
            },
        );
        let spec = it.spec.unwrap();
        assert_eq!(
            (spec.audiences, spec.expiration_seconds),
            (Some(vec!["vault".into()]), Some(600))
        );
        assert_eq!(spec.bound_object_ref.unwrap().uid.as_deref(), Some(pod::uid(&pod)));
        assert_eq!(account(&pod), "default");
    }
}
