//! [`Registry::builtin`]: the rows of `kinds.toml` as [`Resource`]s.

use crate::{
    columns,
    resource::{Registry, Resource, Scale, Scope, SelectableField, Storage, Subresource},
    types::Types,
};
use serde::Deserialize;
use std::{collections::BTreeMap, sync::Arc};

const KINDS: &str = include_str!("../kinds.toml");

/// What a resource can do unless its row says otherwise, in the order of discovery.
pub const ALL_VERBS: [&str; 8] = [
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];

const SUBRESOURCE_VERBS: [&str; 3] = ["get", "patch", "update"];

/// Why the tables could not be read; a fault of the build, never of a user.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The text is not what the table's format asks for.
    #[error("{table}: {source}")]
    Syntax {
        /// Name of the file.
        table: &'static str,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A row says something that cannot be.
    #[error("{table}: {row}: {reason}")]
    Row {
        /// Name of the file.
        table: &'static str,
        /// Which row.
        row: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// One row as written. The comment at the head of `kinds.toml` explains the fields.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    kind: String,
    #[serde(default)]
    short: Vec<String>,
    #[serde(default)]
    categories: Vec<String>,
    #[serde(default)]
    cluster: bool,
    verbs: Option<Vec<String>>,
    #[serde(default, rename = "virtual")]
    made_up: bool,
    #[serde(default)]
    status: bool,
    scale: Option<[String; 3]>,
    #[serde(default)]
    sub: Vec<SubRow>,
    #[serde(default)]
    generation: bool,
    #[serde(default)]
    immutable: Vec<String>,
    #[serde(default)]
    selectable: Vec<SelectableRow>,
    #[serde(default)]
    hooks: Vec<String>,
    stored_as: Option<String>,
    #[serde(default)]
    relaxed: bool,
    ttl_s: Option<u32>,
    deprecated: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SubRow {
    name: String,
    kind: Option<String>,
    verbs: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SelectableRow {
    name: String,
    path: Option<String>,
    #[serde(default)]
    default: String,
}

impl Registry {
    /// Every built-in resource, the preferred version of a group first.
    ///
    /// # Panics
    /// Never with the tables that are compiled in: a test reads them with the same code.
    pub fn builtin() -> Self {
        from_tables(&Types::builtin()).expect("the embedded tables are correct")
    }

    /// The resource as which objects of `resource` are stored: itself, but for those that share the storage of another
    /// (`events.k8s.io/v1` Events are stored as those of the core, `autoscaling/v1` as `v2`). `None` for what is not
    /// stored.
    pub fn stored(&self, resource: &Resource) -> Option<&Arc<Resource>> {
        let storage = resource.storage.as_ref()?;
        let (group, plural) = storage.prefix.split_once('/')?;
        let group = if group == CORE { "" } else { group };
        self.resource(group, &storage.version, plural)
    }
}

/// The core group in storage prefixes.
const CORE: &str = "core";

fn from_tables(types: &Arc<Types>) -> Result<Registry, TableError> {
    let mut columns = columns::builtin()?;
    let rows: BTreeMap<String, BTreeMap<String, Row>> = toml::from_str(KINDS).map_err(|source| TableError::Syntax {
        table: "kinds.toml",
        source: Box::new(source),
    })?;
    let mut registry = Registry::default();
    // A new version goes behind the known ones, so the preferred must come first.
    let mut versions: Vec<(&str, &str)> = rows.keys().map(|it| split_api_version(it)).collect();
    versions.sort_by(|a, b| a.0.cmp(b.0).then_with(|| priority(b.1).cmp(&priority(a.1))));
    for (group, version) in versions {
        let api_version = join_api_version(group, version);
        for (plural, row) in &rows[&api_version] {
            let mut resource = resource(types, group, version, plural, row)?;
            let own = columns.remove(&(api_version.clone(), plural.clone()));
            resource.columns = own.unwrap_or_else(columns::of_any_kind);
            registry.insert(Arc::new(resource));
        }
    }
    if let Some((api_version, plural)) = columns.keys().next() {
        return Err(TableError::Row {
            table: "columns.toml",
            row: format!("{api_version} {plural}"),
            reason: "there is no such resource in kinds.toml".into(),
        });
    }
    Ok(registry)
}

fn resource(types: &Arc<Types>, group: &str, version: &str, plural: &str, row: &Row) -> Result<Resource, TableError> {
    let wrong = |reason: String| TableError::Row {
        table: "kinds.toml",
        row: format!("{} {plural}", join_api_version(group, version)),
        reason,
    };
    let ty = type_name(group, version, &row.kind);
    let ty = types
        .named(&ty)
        .ok_or_else(|| wrong(format!("there is no type {ty}")))?;
    let verbs: Vec<Arc<str>> = match &row.verbs {
        Some(verbs) => verbs.iter().map(|it| it.as_str().into()).collect(),
        None => ALL_VERBS.iter().map(|it| Arc::from(*it)).collect(),
    };
    let own_kind = |name: &str, verbs: &[&str]| Subresource {
        name: name.into(),
        group: group.into(),
        version: version.into(),
        kind: row.kind.as_str().into(),
        verbs: verbs.iter().map(|it| Arc::from(*it)).collect(),
        scale: None,
    };
    let mut subresources = Vec::new();
    for sub in &row.sub {
        let verbs: Vec<&str> = sub.verbs.iter().map(String::as_str).collect();
        let mut subresource = own_kind(&sub.name, &verbs);
        if let Some(kind) = &sub.kind {
            let (api_version, kind) = kind
                .split_once(' ')
                .ok_or_else(|| wrong(format!("{kind:?} is not `<apiVersion> <Kind>`")))?;
            let (group, version) = split_api_version(api_version);
            (subresource.group, subresource.version, subresource.kind) = (group.into(), version.into(), kind.into());
        }
        subresources.push(subresource);
    }
    if row.status {
        subresources.push(own_kind("status", &SUBRESOURCE_VERBS));
    }
    if let Some([spec, status, selector]) = &row.scale {
        subresources.push(Subresource {
            group: "autoscaling".into(),
            version: "v1".into(),
            kind: "Scale".into(),
            scale: Some(Scale {
                spec_replicas: spec.as_str().into(),
                status_replicas: status.as_str().into(),
                selector: (!selector.is_empty()).then(|| selector.as_str().into()),
            }),
            ..own_kind("scale", &SUBRESOURCE_VERBS)
        });
    }
    subresources.sort_by(|a, b| a.name.cmp(&b.name));
    let stored = !row.made_up && row.verbs.as_ref().is_none_or(|verbs| *verbs != ["create"]);
    let storage = match &row.stored_as {
        Some(other) => {
            let (api_version, plural) = other
                .split_once(' ')
                .ok_or_else(|| wrong(format!("{other:?} is not `<apiVersion> <plural>`")))?;
            let (group, version) = split_api_version(api_version);
            Some((group, version, plural))
        }
        None => stored.then_some((group, version, plural)),
    };
    Ok(Resource {
        own_list_kind: None,
        group: group.into(),
        version: version.into(),
        kind: row.kind.as_str().into(),
        plural: plural.into(),
        singular: row.kind.to_ascii_lowercase().into(),
        short_names: row.short.iter().map(|it| it.as_str().into()).collect(),
        categories: row.categories.iter().map(|it| it.as_str().into()).collect(),
        scope: if row.cluster { Scope::Cluster } else { Scope::Namespaced },
        verbs,
        subresources,
        types: Arc::clone(types),
        ty,
        storage: storage.map(|(group, version, plural)| Storage {
            prefix: storage_prefix(group, plural).into(),
            version: version.into(),
            relaxed: row.relaxed,
            ttl_s: row.ttl_s,
        }),
        selectable: row.selectable.iter().map(selectable).collect(),
        generation: row.generation,
        immutable: row.immutable.iter().map(|it| it.as_str().into()).collect(),
        hooks: row.hooks.iter().map(|it| it.as_str().into()).collect(),
        columns: Vec::new(),
        custom: None,
        custom_schema: None,
        deprecation: row.deprecated.as_deref().map(Arc::from),
    })
}

fn selectable(row: &SelectableRow) -> SelectableField {
    SelectableField {
        name: row.name.as_str().into(),
        path: row.path.as_deref().unwrap_or(&row.name).into(),
        default: row.default.as_str().into(),
    }
}

/// `<group>/<plural>`, the group of the core being `core`.
pub fn storage_prefix(group: &str, plural: &str) -> String {
    format!("{}/{plural}", if group.is_empty() { CORE } else { group })
}

/// `("apps", "v1")` of `apps/v1`, `("", "v1")` of `v1`.
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.rsplit_once('/').unwrap_or(("", api_version))
}

/// The reverse of [`split_api_version`].
pub fn join_api_version(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.into()
    } else {
        format!("{group}/{version}")
    }
}

/// Full name of a built-in kind's type, as `io.k8s.api.apps.v1.Deployment`.
pub fn type_name(group: &str, version: &str, kind: &str) -> String {
    match group {
        "" => format!("io.k8s.api.core.{version}.{kind}"),
        "apiextensions.k8s.io" => format!("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.{version}.{kind}"),
        "apiregistration.k8s.io" => format!("io.k8s.kube-aggregator.pkg.apis.apiregistration.{version}.{kind}"),
        _ => {
            let package = group.split('.').next().unwrap_or(group);
            format!("io.k8s.api.{package}.{version}.{kind}")
        }
    }
}

/// Orders versions: of two, the greater is preferred. `v2` > `v1` > `v2beta1` > `v1beta2` > `v1alpha1` > anything else,
/// which goes by name, the first in the alphabet preferred. Source: "Version priority" of the CRD documentation.
pub fn priority(version: &str) -> impl Ord + use<> {
    let parsed = || -> Option<(u8, u64, u64)> {
        let rest = version.strip_prefix('v')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let major = rest[..digits].parse().ok()?;
        let stage = &rest[digits..];
        if stage.is_empty() {
            return Some((3, major, 0));
        }
        if let Some(minor) = stage.strip_prefix("beta") {
            return Some((2, major, minor.parse().ok()?));
        }
        Some((1, major, stage.strip_prefix("alpha")?.parse().ok()?))
    };
    (parsed(), std::cmp::Reverse(version.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Type;

    /// Every generally available kind of which upstream keeps wire fixtures, by `apiVersion`.
    const FIXTURES: &[(&str, &str)] = &[
        (
            "v1",
            "Binding ComponentStatus ConfigMap Endpoints Event LimitRange Namespace Node PersistentVolume \
             PersistentVolumeClaim Pod PodTemplate ReplicationController ResourceQuota Secret Service ServiceAccount",
        ),
        (
            "admissionregistration.k8s.io/v1",
            "MutatingAdmissionPolicy MutatingAdmissionPolicyBinding MutatingWebhookConfiguration \
             ValidatingAdmissionPolicy ValidatingAdmissionPolicyBinding ValidatingWebhookConfiguration",
        ),
        ("apiextensions.k8s.io/v1", "CustomResourceDefinition"),
        ("apiregistration.k8s.io/v1", "APIService"),
        (
            "apps/v1",
            "ControllerRevision DaemonSet Deployment ReplicaSet StatefulSet",
        ),
        ("authentication.k8s.io/v1", "SelfSubjectReview TokenReview"),
        (
            "authorization.k8s.io/v1",
            "LocalSubjectAccessReview SelfSubjectAccessReview SelfSubjectRulesReview SubjectAccessReview",
        ),
        ("autoscaling/v1", "HorizontalPodAutoscaler"),
        ("autoscaling/v2", "HorizontalPodAutoscaler"),
        ("batch/v1", "CronJob Job"),
        ("certificates.k8s.io/v1", "CertificateSigningRequest"),
        ("coordination.k8s.io/v1", "Lease"),
        ("discovery.k8s.io/v1", "EndpointSlice"),
        ("events.k8s.io/v1", "Event"),
        (
            "flowcontrol.apiserver.k8s.io/v1",
            "FlowSchema PriorityLevelConfiguration",
        ),
        (
            "networking.k8s.io/v1",
            "IPAddress Ingress IngressClass NetworkPolicy ServiceCIDR",
        ),
        ("node.k8s.io/v1", "RuntimeClass"),
        ("policy/v1", "PodDisruptionBudget"),
        (
            "rbac.authorization.k8s.io/v1",
            "ClusterRole ClusterRoleBinding Role RoleBinding",
        ),
        (
            "resource.k8s.io/v1",
            "DeviceClass ResourceClaim ResourceClaimTemplate ResourceSlice",
        ),
        ("scheduling.k8s.io/v1", "PriorityClass"),
        (
            "storage.k8s.io/v1",
            "CSIDriver CSINode CSIStorageCapacity StorageClass VolumeAttachment VolumeAttributesClass",
        ),
    ];

    #[test]
    fn every_kind_has_a_row_and_every_row_is_a_kind() {
        let registry = Registry::builtin();
        let mut have: Vec<String> = registry
            .resources()
            .map(|it| format!("{} {}", it.api_version(), it.kind))
            .collect();
        let kinds = |(api_version, kinds): &(&str, &str)| -> Vec<String> {
            kinds
                .split_whitespace()
                .map(|kind| format!("{api_version} {kind}"))
                .collect()
        };
        let mut want: Vec<String> = FIXTURES.iter().flat_map(kinds).collect();
        have.sort();
        want.sort();
        assert_eq!(have, want);
    }

    /// What can be listed has a list's type.
    #[test]
    fn every_type_that_can_be_listed_has_a_row() {
        let (types, registry) = (Types::builtin(), Registry::builtin());
        let of_resources = |name: &str| !name.starts_with("io.k8s.apimachinery.");
        for (_, id) in types.names().filter(|(name, _)| of_resources(name)) {
            let Type::Object(object) = types.get(id) else {
                continue;
            };
            for kind in &object.group_version_kinds {
                let list = format!("{}List", kind.kind);
                let listed = types.kind(&kind.group, &kind.version, &list).is_some();
                let general = !kind.version.contains("alpha") && !kind.version.contains("beta");
                if listed && general {
                    let row = registry.kind(&kind.group, &kind.version, &kind.kind);
                    assert!(row.is_some_and(|it| it.ty == id), "{kind:?}");
                }
            }
        }
        for resource in registry
            .resources()
            .filter(|it| it.verbs.iter().any(|verb| &**verb == "list"))
        {
            let list = format!("{}List", resource.kind);
            assert!(
                types.kind(&resource.group, &resource.version, &list).is_some(),
                "{list}"
            );
            assert_eq!(
                types.kind(&resource.group, &resource.version, &resource.kind),
                Some(resource.ty),
                "{list}"
            );
        }
    }

    #[test]
    fn paths_of_rows_are_in_the_types() {
        let registry = Registry::builtin();
        for resource in registry.resources() {
            let name = resource.qualified();
            let has = |resource: &Resource, path: &str| resource.types.at(resource.ty, path.split('.')).is_some();
            for path in &resource.immutable {
                assert!(has(resource, path), "{name}: {path}");
            }
            let stored = registry.stored(resource).unwrap_or(resource);
            for field in &resource.selectable {
                assert!(
                    field.path.split('|').all(|path| has(stored, path)),
                    "{name}: {}",
                    field.path
                );
            }
            for scale in resource.subresources.iter().filter_map(|it| it.scale.as_ref()) {
                let paths = [
                    Some(&scale.spec_replicas),
                    Some(&scale.status_replicas),
                    scale.selector.as_ref(),
                ];
                assert!(paths.into_iter().flatten().all(|path| has(resource, path)), "{name}");
            }
            for subresource in &resource.subresources {
                let kind = (&subresource.group, &subresource.version, &subresource.kind);
                let options = kind.2.ends_with("Options");
                assert!(
                    options || resource.types.kind(kind.0, kind.1, kind.2).is_some(),
                    "{name}: {kind:?}"
                );
            }
        }
    }

    #[test]
    fn rows_are_consistent() {
        let registry = Registry::builtin();
        for resource in registry.resources() {
            let name = format!("{} {}", resource.api_version(), resource.plural);
            assert!(resource.verbs.is_sorted(), "{name}: verbs in the order of discovery");
            assert!(resource.subresources.is_sorted_by_key(|it| &it.name), "{name}");
            assert_eq!(
                resource.storage.is_some(),
                resource.verbs.iter().any(|it| &**it == "watch"),
                "{name}"
            );
            assert_eq!(
                registry.stored(resource).is_some(),
                resource.storage.is_some(),
                "{name}"
            );
            if let Some(stored) = registry.stored(resource) {
                assert_eq!(
                    stored.selectable.len(),
                    resource.selectable.len(),
                    "{name}: one index serves both"
                );
                for (a, b) in stored.selectable.iter().zip(&resource.selectable) {
                    assert_eq!((&a.path, &a.default), (&b.path, &b.default), "{name}");
                }
            }
        }
    }

    #[test]
    fn the_preferred_version_is_first() {
        let registry = Registry::builtin();
        let versions = |group: &str| -> Vec<String> {
            registry.groups[group]
                .versions
                .iter()
                .map(|it| it.name.to_string())
                .collect()
        };
        assert_eq!(versions("autoscaling"), ["v2", "v1"]);
        let mut versions = [
            "foo10",
            "v1alpha1",
            "v2",
            "v1",
            "v11alpha2",
            "foo1",
            "v3beta1",
            "v12",
            "v10beta3",
            "v11beta2",
        ];
        versions.sort_by_key(|it| std::cmp::Reverse(priority(it)));
        let want = [
            "v12",
            "v2",
            "v1",
            "v11beta2",
            "v10beta3",
            "v3beta1",
            "v11alpha2",
            "v1alpha1",
            "foo1",
            "foo10",
        ];
        assert_eq!(versions, want);
    }

    #[test]
    fn special_rows_say_what_is_special() {
        let registry = Registry::builtin();
        let pods = registry.resource("", "v1", "pods").unwrap();
        let eviction = pods.subresource("eviction").unwrap();
        assert_eq!(
            (&*eviction.group, &*eviction.version, &*eviction.kind),
            ("policy", "v1", "Eviction")
        );
        let scale = registry
            .resource("apps", "v1", "deployments")
            .unwrap()
            .subresource("scale")
            .unwrap();
        assert_eq!((&*scale.group, &*scale.kind), ("autoscaling", "Scale"));
        assert_eq!(&*scale.scale.as_ref().unwrap().spec_replicas, "spec.replicas");
        let events = registry.resource("events.k8s.io", "v1", "events").unwrap();
        assert_eq!(&*events.storage.as_ref().unwrap().prefix, "core/events");
        assert_eq!(registry.stored(events).unwrap().api_version(), "v1");
    }

    #[test]
    fn types_are_named_as_upstream_names_them() {
        assert_eq!(type_name("", "v1", "Pod"), "io.k8s.api.core.v1.Pod");
        assert_eq!(
            type_name("rbac.authorization.k8s.io", "v1", "Role"),
            "io.k8s.api.rbac.v1.Role"
        );
    }
}
