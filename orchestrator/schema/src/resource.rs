//! [`Resource`]: one row of the kinds table. [`Registry`]: all rows, built in and from CRDs.

use crate::{
    custom::CustomSchema,
    types::{TypeId, Types},
};
use std::{collections::BTreeMap, sync::Arc};

/// One resource of one API version: what routes, discovery, OpenAPI, RBAC verbs, selectors and storage need to know.
#[derive(Clone, Debug)]
pub struct Resource {
    /// Empty for the core group.
    pub group: Arc<str>,
    /// As `v1`.
    pub version: Arc<str>,
    /// As `Pod`.
    pub kind: Arc<str>,
    /// As `pods`; the name in paths and in RBAC rules.
    pub plural: Arc<str>,
    /// As `pod`.
    pub singular: Arc<str>,
    /// As `po`.
    pub short_names: Vec<Arc<str>>,
    /// As `all`.
    pub categories: Vec<Arc<str>>,
    /// Whether objects live in namespaces.
    pub scope: Scope,
    /// In the order of discovery; `["create"]` alone for what is never stored.
    pub verbs: Vec<Arc<str>>,
    /// `status`, `scale` and the special ones.
    pub subresources: Vec<Subresource>,
    /// Types of the objects.
    pub types: Arc<Types>,
    /// The kind's type in `types`.
    pub ty: TypeId,
    /// How objects are stored; `None` for what is answered and forgotten (reviews).
    pub storage: Option<Storage>,
    /// Fields that field selectors may name, besides `metadata.name` and `metadata.namespace`.
    pub selectable: Vec<SelectableField>,
    /// `metadata.generation` counts changes of everything but metadata and status.
    pub generation: bool,
    /// Paths that may not change after creation.
    pub immutable: Vec<Arc<str>>,
    /// Names of code for what data cannot say; the API server knows them.
    pub hooks: Vec<Arc<str>>,
    /// Columns of `kubectl get`.
    pub columns: Vec<Column>,
    /// `kind` of a list, where it is not the kind with `List` behind it (CRDs may name it).
    pub own_list_kind: Option<Arc<str>>,
    /// `Some` for a resource that a CustomResourceDefinition brought.
    pub custom: Option<Arc<str>>,
    /// What that definition says about the objects of this version.
    pub custom_schema: Option<Arc<dyn CustomSchema>>,
    /// Warned about on every request, as `policy/v1beta1 PodSecurityPolicy is deprecated …`.
    pub deprecation: Option<Arc<str>>,
}

/// Where objects live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// In a namespace.
    Namespaced,
    /// In the cluster.
    Cluster,
}

/// One subresource, as `pods/log`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subresource {
    /// As `status`.
    pub name: Arc<str>,
    /// Group of the kind that it takes and gives; with `version` and `kind`.
    pub group: Arc<str>,
    /// Version of that kind.
    pub version: Arc<str>,
    /// That kind, as `Scale`.
    pub kind: Arc<str>,
    /// As `get`, `patch`, `update`; `create` for those that one posts to.
    pub verbs: Vec<Arc<str>>,
    /// Paths of replicas in the object, for `scale`: spec, status, and the label selector.
    pub scale: Option<Scale>,
}

/// Where `scale` finds its numbers. Paths as `spec.replicas`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scale {
    /// The wish.
    pub spec_replicas: Arc<str>,
    /// The fact.
    pub status_replicas: Arc<str>,
    /// A label selector, as text or as `LabelSelector`; `None` where the kind has none.
    pub selector: Option<Arc<str>>,
}

/// How a resource is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    /// `<group>/<plural>`, the group of the core being `core`. Versions of one kind share it.
    pub prefix: Arc<str>,
    /// Version in which it is stored.
    pub version: Arc<str>,
    /// Written within a second instead of at once: Leases and Events, which a crash may forget.
    pub relaxed: bool,
    /// Seconds that an object lives, as Events do; `None`: until deleted.
    pub ttl_s: Option<u32>,
}

/// One field for field selectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelectableField {
    /// Name in the selector, as `spec.nodeName`.
    pub name: Arc<str>,
    /// Where it is in the object, where that differs.
    pub path: Arc<str>,
    /// Value of an absent field.
    pub default: Arc<str>,
}

/// One column of a Table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// As `Ready`.
    pub name: Arc<str>,
    /// `string`, `integer`, `number`, `boolean`, `date`.
    pub ty: Arc<str>,
    /// As `name` for the first column.
    pub format: Arc<str>,
    /// Shown by `kubectl get` without `-o wide` when 0.
    pub priority: i32,
    /// For `kubectl explain`-like listings.
    pub description: Arc<str>,
    /// JSONPath of the cell, or `fn:NAME` for one of the table's functions.
    pub source: Arc<str>,
}

/// All resources there are. Immutable: a new CRD makes a new one.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    /// By group, then version, then plural. `""` is the core group.
    pub groups: BTreeMap<Arc<str>, Group>,
    /// Grows with every change; part of discovery's ETag.
    pub epoch: u64,
}

/// One API group.
#[derive(Clone, Debug, Default)]
pub struct Group {
    /// Versions, the preferred first.
    pub versions: Vec<Version>,
}

/// One version of a group.
#[derive(Clone, Debug)]
pub struct Version {
    /// As `v1`.
    pub name: Arc<str>,
    /// By plural.
    pub resources: BTreeMap<Arc<str>, Arc<Resource>>,
}

impl Registry {
    /// The resource that a path names.
    pub fn resource(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        let versions = &self.groups.get(group)?.versions;
        versions.iter().find(|it| &*it.name == version)?.resources.get(plural)
    }

    /// The resource of a kind.
    pub fn kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<Resource>> {
        let versions = &self.groups.get(group)?.versions;
        let version = versions.iter().find(|it| &*it.name == version)?;
        version.resources.values().find(|it| &*it.kind == kind)
    }

    /// Every resource, in the order of group, version and name.
    pub fn resources(&self) -> impl Iterator<Item = &Arc<Resource>> {
        let versions = self.groups.values().flat_map(|group| &group.versions);
        versions.flat_map(|version| version.resources.values())
    }

    /// Adds a resource or replaces the one of its name; a new version goes behind the known ones.
    pub fn insert(&mut self, resource: Arc<Resource>) {
        let group = self.groups.entry(Arc::clone(&resource.group)).or_default();
        let at = group.versions.iter().position(|it| it.name == resource.version);
        let at = at.unwrap_or_else(|| {
            group.versions.push(Version {
                name: Arc::clone(&resource.version),
                resources: BTreeMap::new(),
            });
            group.versions.len() - 1
        });
        group.versions[at]
            .resources
            .insert(Arc::clone(&resource.plural), resource);
    }
}

impl Storage {
    /// The version in which it is stored, as in `apiVersion`.
    pub fn api_version(&self) -> String {
        match self.prefix.split('/').next() {
            None | Some("core") => self.version.to_string(),
            Some(group) => format!("{group}/{}", self.version),
        }
    }
}

impl Resource {
    /// `kind` of a list of these.
    pub fn list_kind(&self) -> String {
        self.own_list_kind
            .as_ref()
            .map_or_else(|| format!("{}List", self.kind), ToString::to_string)
    }

    /// `v1` or `apps/v1`, as in `apiVersion`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_string()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `pods`, or `deployments.apps`: how errors name it.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_string()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// The subresource of this name.
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|it| &*it.name == name)
    }

    /// Whether a piece of code applies.
    pub fn has_hook(&self, name: &str) -> bool {
        self.hooks.iter().any(|it| &**it == name)
    }
}
