//! [`ObjectRef`]: which objects a pod names, and where.

use crate::pod::{self, ContainerRef};
use k8s_openapi::api::core::v1::{Container, Pod, Volume};
use std::{collections::BTreeSet, fmt};

/// An object that a pod names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectRef {
    /// A ConfigMap.
    ConfigMap {
        /// Its namespace: the pod's.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// A Secret.
    Secret {
        /// Its namespace: the pod's.
        namespace: String,
        /// Its name.
        name: String,
    },
}

impl ObjectRef {
    fn config_map(namespace: &str, name: &str) -> Self {
        Self::ConfigMap {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    fn secret(namespace: &str, name: &str) -> Self {
        Self::Secret {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    /// All that a pod names: in the variables of its containers, its volumes, its `imagePullSecrets`.
    pub fn of_pod(pod: &Pod) -> BTreeSet<Self> {
        let namespace = pod::namespace(pod);
        let mut out = BTreeSet::new();
        for container in ContainerRef::all(pod) {
            out.extend(
                container
                    .spec(pod)
                    .into_iter()
                    .flat_map(|it| Self::of_env(namespace, &it)),
            );
        }
        let spec = pod.spec.as_ref();
        for volume in spec.iter().flat_map(|it| it.volumes.iter().flatten()) {
            out.extend(Self::of_volume(namespace, volume));
        }
        let pull = spec.iter().flat_map(|it| it.image_pull_secrets.iter().flatten());
        out.extend(pull.map(|it| Self::secret(namespace, &it.name)));
        // Upstream takes an empty name too; there is no such object.
        out.retain(|it| !it.name().is_empty());
        out
    }

    /// What a container's `env` and `envFrom` name.
    pub fn of_env(namespace: &str, container: &Container) -> BTreeSet<Self> {
        let mut out = BTreeSet::new();
        for source in container.env_from.iter().flatten() {
            out.extend(
                source
                    .config_map_ref
                    .iter()
                    .map(|it| Self::config_map(namespace, &it.name)),
            );
            out.extend(source.secret_ref.iter().map(|it| Self::secret(namespace, &it.name)));
        }
        for source in container.env.iter().flatten().filter_map(|it| it.value_from.as_ref()) {
            out.extend(
                source
                    .config_map_key_ref
                    .iter()
                    .map(|it| Self::config_map(namespace, &it.name)),
            );
            out.extend(source.secret_key_ref.iter().map(|it| Self::secret(namespace, &it.name)));
        }
        out
    }

    /// What a volume names.
    pub fn of_volume(namespace: &str, volume: &Volume) -> BTreeSet<Self> {
        let mut out = BTreeSet::new();
        out.extend(volume.config_map.iter().map(|it| Self::config_map(namespace, &it.name)));
        let secret = volume.secret.as_ref().and_then(|it| it.secret_name.as_deref());
        out.extend(secret.map(|it| Self::secret(namespace, it)));
        for source in volume.projected.iter().flat_map(|it| it.sources.iter().flatten()) {
            out.extend(source.config_map.iter().map(|it| Self::config_map(namespace, &it.name)));
            out.extend(source.secret.iter().map(|it| Self::secret(namespace, &it.name)));
        }
        out
    }

    /// The object's name.
    pub fn name(&self) -> &str {
        match self {
            Self::ConfigMap { name, .. } | Self::Secret { name, .. } => name,
        }
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConfigMap { namespace, name } => write!(f, "configmap {namespace}/{name}"),
            Self::Secret { namespace, name } => write!(f, "secret {namespace}/{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod_of;
    use serde_json::json;

    #[test]
    fn a_pod_holds_all_that_it_names() {
        let pod = pod_of(json!({
            "imagePullSecrets": [{"name": "pull"}, {"name": ""}],
            "initContainers": [{"name": "i", "envFrom": [{"configMapRef": {"name": "a"}}, {"secretRef": {"name": "b"}}]}],
            "containers": [{"name": "c", "env": [
                {"name": "X", "valueFrom": {"configMapKeyRef": {"name": "d", "key": "k"}}},
                {"name": "Y", "valueFrom": {"secretKeyRef": {"name": "e", "key": "k"}}},
            ]}],
            "ephemeralContainers": [{"name": "f", "envFrom": [{"configMapRef": {"name": "g"}}]}],
            "volumes": [
                {"name": "v1", "configMap": {"name": "a"}},
                {"name": "v2", "secret": {"secretName": "h"}},
                {"name": "v3", "projected": {"sources": [{"configMap": {"name": "i"}}, {"secret": {"name": "j"}},
                    {"serviceAccountToken": {"path": "token"}}]}},
                {"name": "v4", "emptyDir": {}},
            ],
        }));
        let all: Vec<_> = ObjectRef::of_pod(&pod).iter().map(ToString::to_string).collect();
        let want = [
            "configmap shop/a",
            "configmap shop/d",
            "configmap shop/g",
            "configmap shop/i",
            "secret shop/b",
            "secret shop/e",
            "secret shop/h",
            "secret shop/j",
            "secret shop/pull",
        ];
        assert_eq!(all, want);
        assert!(ObjectRef::of_pod(&Pod::default()).is_empty());
    }
}
