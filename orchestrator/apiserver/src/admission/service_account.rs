//! `ServiceAccount`: every pod runs as one, and finds its token, the CA and its namespace in a mounted folder.

use super::{Operation, Plugin, Request};
use crate::{
    authz::node::MIRROR_POD,
    objects::{annotation, items, text},
    status::Status,
};
use serde_json::{Value, json};

pub(super) struct ServiceAccount;

/// Where programs look for their token.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Names of the volume; a random part follows, so that it is nobody else's.
const VOLUME_PREFIX: &str = "kube-api-access-";
/// `0644` in the decimal form that JSON has.
const FILE_MODE: u32 = 0o644;
/// An hour and seven seconds: the odd number marks tokens that the kubelet renews.
const TOKEN_LIFE_S: u32 = 3607;

impl Plugin for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    fn mutate(&self, request: &Request<'_>, pod: &mut Value) -> Result<(), Status> {
        if !request.creates("", "pods") {
            return Ok(());
        }
        if annotation(pod, MIRROR_POD).is_some() {
            return mirror(request, pod);
        }
        let namespace = request.attributes.namespace;
        if text(pod, "/spec/serviceAccountName").is_empty() {
            // The old field still counts where the new one is not set.
            let old = text(pod, "/spec/serviceAccount");
            let name = if old.is_empty() {
                "default".to_owned()
            } else {
                old.to_owned()
            };
            pod["spec"]["serviceAccountName"] = json!(name);
        }
        let name = text(pod, "/spec/serviceAccountName").to_owned();
        pod["spec"]["serviceAccount"] = json!(name);
        let Some(account) = request.objects.get("core/serviceaccounts", namespace, &name) else {
            return Err(request.forbidden(format!(
                "error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"
            )));
        };
        let wish = |object: &Value, pointer| object.pointer(pointer).and_then(Value::as_bool);
        let mount = wish(pod, "/spec/automountServiceAccountToken")
            .or_else(|| wish(&account, "/automountServiceAccountToken"))
            .unwrap_or(true);
        if mount {
            mount_token(pod);
        }
        if items(pod, "/spec/imagePullSecrets").is_empty() && !items(&account, "/imagePullSecrets").is_empty() {
            pod["spec"]["imagePullSecrets"] = account["imagePullSecrets"].clone();
        }
        Ok(())
    }

    fn validate(&self, request: &Request<'_>, pod: Option<&Value>) -> Result<(), Status> {
        let ephemeral = request.attributes.is("", "pods", "ephemeralcontainers");
        if request.attributes.operation == Operation::Delete || !ephemeral {
            return Ok(());
        }
        // A debugging container is the account's too, but must not gain the mount of a token that the pod refused.
        let volumes = |pod: &Value| items(pod, "/spec/volumes").len();
        match (pod, request.old) {
            (Some(pod), Some(old)) if volumes(pod) != volumes(old) => {
                Err(request.forbidden("ephemeral containers may not add volumes"))
            }
            _ => Ok(()),
        }
    }
}

/// Pods that a node shows us are run already: they may not use what the API hands out.
fn mirror(request: &Request<'_>, pod: &Value) -> Result<(), Status> {
    if !text(pod, "/spec/serviceAccountName").is_empty() {
        return Err(request.forbidden("a mirror pod may not reference service accounts"));
    }
    if !crate::authz::node::secret_names(pod).is_empty() {
        return Err(request.forbidden("a mirror pod may not reference secrets"));
    }
    for volume in items(pod, "/spec/volumes") {
        let mut sources = items(volume, "/projected/sources").iter();
        if sources.any(|it| it.get("serviceAccountToken").is_some_and(|it| !it.is_null())) {
            return Err(request.forbidden("a mirror pod may not use ServiceAccountToken volume projections"));
        }
    }
    Ok(())
}

fn mount_token(pod: &mut Value) {
    let own = items(pod, "/spec/volumes").iter().map(|it| text(it, "/name"));
    let known = own
        .into_iter()
        .find(|it| it.starts_with(VOLUME_PREFIX))
        .map(str::to_owned);
    let name = known
        .clone()
        .unwrap_or_else(|| format!("{VOLUME_PREFIX}{}", random_suffix()));
    let mut used = false;
    for list in ["initContainers", "containers"] {
        let containers = pod.pointer_mut(&format!("/spec/{list}")).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten().filter(|it| it.is_object()) {
            // Who mounts something there has said what it wants.
            if items(container, "/volumeMounts")
                .iter()
                .any(|it| text(it, "/mountPath") == MOUNT_PATH)
            {
                continue;
            }
            used = true;
            let mount = json!({"name": name, "readOnly": true, "mountPath": MOUNT_PATH});
            push(container, "volumeMounts", mount);
        }
    }
    if used && known.is_none() {
        push(&mut pod["spec"], "volumes", volume(&name));
    }
}

fn volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": FILE_MODE, "sources": [
        {"serviceAccountToken": {"expirationSeconds": TOKEN_LIFE_S, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [
            {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
        ]}},
    ]}})
}

/// Appends to an array that may not be there yet; anything else that is there instead is left for validation to name.
pub(super) fn push(object: &mut Value, field: &str, item: Value) {
    match object.get_mut(field) {
        Some(Value::Array(list)) => list.push(item),
        None | Some(Value::Null) => object[field] = json!([item]),
        Some(_) => {}
    }
}

/// Five of the characters that generated names have: no vowels, nothing that looks like another.
fn random_suffix() -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let random = uuid::Uuid::new_v4().into_bytes();
    random[..5]
        .iter()
        .map(|it| char::from(LETTERS[usize::from(*it) % LETTERS.len()]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{admission::fixture::Case, objects::fake::Map};

    fn world() -> Map {
        let mut world = Map::default();
        world.put(
            "core/serviceaccounts",
            json!({"metadata": {"namespace": "ns", "name": "default"}}),
        );
        world.put(
            "core/serviceaccounts",
            json!({"metadata": {"namespace": "ns", "name": "quiet"},
            "automountServiceAccountToken": false, "imagePullSecrets": [{"name": "pull"}]}),
        );
        world
    }

    #[allow(clippy::needless_pass_by_value)] // literals read better by value
    fn pod(spec: Value) -> Value {
        json!({"metadata": {"namespace": "ns", "name": "p"}, "spec": spec})
    }

    #[test]
    fn a_pod_gets_an_account_and_its_token() {
        let world = world();
        let spec = json!({"containers": [{"name": "a"}, {"name": "b", "volumeMounts": [{"name": "own",
            "mountPath": MOUNT_PATH}]}], "initContainers": [{"name": "i"}]});
        let (pod, _) = Case::create(&world, "pods", pod(spec)).run(&ServiceAccount).unwrap();
        let spec = &pod["spec"];
        assert_eq!(
            (&spec["serviceAccountName"], &spec["serviceAccount"]),
            (&json!("default"), &json!("default"))
        );
        let name = text(&pod, "/spec/volumes/0/name");
        assert!(
            name.starts_with(VOLUME_PREFIX) && name.len() == VOLUME_PREFIX.len() + 5,
            "{name}"
        );
        let mount = json!([{"name": name, "readOnly": true, "mountPath": MOUNT_PATH}]);
        assert_eq!(spec["containers"][0]["volumeMounts"], mount);
        assert_eq!(spec["initContainers"][0]["volumeMounts"], mount);
        assert_eq!(spec["containers"][1]["volumeMounts"][0]["name"], "own");
        assert_eq!(
            spec["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"]["expirationSeconds"],
            3607
        );
        assert_eq!(spec["volumes"][0]["projected"]["defaultMode"], 420);
    }

    #[test]
    fn the_pod_decides_before_the_account() {
        let world = world();
        for (account, wish, mounted) in [
            ("quiet", json!(null), false),
            ("quiet", json!(true), true),
            ("default", json!(null), true),
            ("default", json!(false), false),
        ] {
            let spec = json!({"serviceAccountName": account, "automountServiceAccountToken": wish,
                "containers": [{"name": "a"}]});
            let (pod, _) = Case::create(&world, "pods", pod(spec)).run(&ServiceAccount).unwrap();
            assert_eq!(!items(&pod, "/spec/volumes").is_empty(), mounted, "{account} {wish}");
            let pulls = items(&pod, "/spec/imagePullSecrets").len();
            assert_eq!(pulls, usize::from(account == "quiet"));
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let world = world();
        let refused = Case::create(&world, "pods", pod(json!({"serviceAccountName": "gone"}))).run(&ServiceAccount);
        assert_eq!(
            refused.unwrap_err().message,
            "pods \"p\" is forbidden: error looking up service account ns/gone: serviceaccount \"gone\" not found"
        );
        let mut mirror = pod(json!({"serviceAccountName": "default"}));
        mirror["metadata"]["annotations"] = json!({MIRROR_POD: "x"});
        assert!(
            Case::create(&world, "pods", mirror.clone())
                .run(&ServiceAccount)
                .is_err()
        );
        mirror["spec"] = json!({"containers": [{"name": "a"}]});
        let (same, _) = Case::create(&world, "pods", mirror.clone())
            .run(&ServiceAccount)
            .unwrap();
        assert_eq!(same, mirror);
        mirror["spec"] = json!({"volumes": [{"secret": {"secretName": "s"}}]});
        assert!(Case::create(&world, "pods", mirror).run(&ServiceAccount).is_err());
    }

    #[test]
    fn a_copied_pod_keeps_its_volume() {
        let world = world();
        let spec = json!({"containers": [{"name": "a"}], "volumes": [{"name": "kube-api-access-abcde"}]});
        let (pod, _) = Case::create(&world, "pods", pod(spec)).run(&ServiceAccount).unwrap();
        assert_eq!(items(&pod, "/spec/volumes").len(), 1);
        assert_eq!(
            text(&pod, "/spec/containers/0/volumeMounts/0/name"),
            "kube-api-access-abcde"
        );
    }
}
