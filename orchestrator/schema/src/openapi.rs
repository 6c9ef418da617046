//! OpenAPI documents, made from the table of resources and their types when somebody asks: the index of version 3, one
//! document per group and version, and the single document of version 2. They hold what clients read (schemas with
//! `x-kubernetes-…`, one path per resource with its verbs), not every sentence of upstream's.

mod custom;
mod paths;
mod protobuf;
mod schemas;

use crate::{
    builtin,
    docs::Docs,
    resource::{Registry, Resource},
    types::Types,
};
use schemas::{Dialect, Schemas};
use serde_json::{Map, Value, json};
use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

/// A document as it is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// JSON, or protobuf where that was asked for.
    pub body: Vec<u8>,
    /// Sixteen hexadecimal digits that change whenever the document does: its ETag, and `hash` in the index.
    pub hash: String,
}

/// Gives the schema of a custom resource as its CustomResourceDefinition has it (`openAPIV3Schema`); `None` for one
/// without, and for resources that are no custom ones.
pub type CustomSchema<'a> = &'a dyn Fn(&Resource) -> Option<Value>;

/// Builds documents and keeps the last of each.
#[derive(Debug, Default)]
pub struct OpenApi {
    built: Mutex<HashMap<String, Arc<Document>>>,
}

impl OpenApi {
    /// The index, `/openapi/v3`. Builds no document: hashes are taken from what documents are made of.
    pub fn index(&self, registry: &Registry, custom: CustomSchema<'_>) -> Arc<Document> {
        let mut paths = Map::new();
        for (group, version) in group_versions(registry) {
            let path = path(group, version);
            let hash = hash_of(&resources(registry, group, version), custom);
            let url = format!("/openapi/v3/{path}?hash={hash}");
            paths.insert(path, json!({ "serverRelativeURL": url }));
        }
        let body = json!({ "paths": paths }).to_string().into_bytes();
        let mut hasher = DefaultHasher::new();
        body.hash(&mut hasher);
        Arc::new(Document {
            hash: format!("{:016x}", hasher.finish()),
            body,
        })
    }

    /// The document of a group and version, `/openapi/v3/apis/apps/v1` or `/openapi/v3/api/v1`; `None` where no resource
    /// has them.
    pub fn group_version(
        &self,
        registry: &Registry,
        group: &str,
        version: &str,
        custom: CustomSchema<'_>,
    ) -> Option<Arc<Document>> {
        let resources = resources(registry, group, version);
        if resources.is_empty() {
            return None;
        }
        let hash = hash_of(&resources, custom);
        Some(self.kept(path(group, version), hash, || {
            document(Dialect::V3, &resources, custom).to_string().into_bytes()
        }))
    }

    /// The document of version 2, `/openapi/v2`, as JSON.
    pub fn v2(&self, registry: &Registry, custom: CustomSchema<'_>) -> Arc<Document> {
        let resources: Vec<&Resource> = registry.resources().map(AsRef::as_ref).collect();
        let hash = hash_of(&resources, custom);
        self.kept("v2".to_owned(), hash, || {
            document(Dialect::V2, &resources, custom).to_string().into_bytes()
        })
    }

    /// The schemas of the document of version 2 as protobuf, `openapi.v2.Document` of gnostic.
    pub fn v2_protobuf(&self, registry: &Registry, custom: CustomSchema<'_>) -> Arc<Document> {
        let resources: Vec<&Resource> = registry.resources().map(AsRef::as_ref).collect();
        let hash = hash_of(&resources, custom);
        self.kept("v2 protobuf".to_owned(), hash, || {
            protobuf::document(&document(Dialect::V2, &resources, custom))
        })
    }

    fn kept(&self, key: String, hash: String, build: impl FnOnce() -> Vec<u8>) -> Arc<Document> {
        // A panic elsewhere leaves whole documents behind, so a poisoned lock is as good as another.
        let lock = || self.built.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lock().get(&key).filter(|known| known.hash == hash) {
            return Arc::clone(known);
        }
        let body = build();
        let document = Arc::new(Document { body, hash });
        lock().insert(key, Arc::clone(&document));
        document
    }
}

/// Groups and versions, in the order of the registry.
fn group_versions(registry: &Registry) -> impl Iterator<Item = (&str, &str)> {
    registry.groups.iter().flat_map(|(group, versions)| {
        let versions = versions.versions.iter().filter(|version| !version.resources.is_empty());
        versions.map(move |version| (&**group, &*version.name))
    })
}

fn resources<'r>(registry: &'r Registry, group: &str, version: &str) -> Vec<&'r Resource> {
    let group = registry.groups.get(group);
    let versions = group.into_iter().flat_map(|group| &group.versions);
    let found = versions
        .filter(|it| &*it.name == version)
        .flat_map(|it| it.resources.values());
    found.map(AsRef::as_ref).collect()
}

/// `api/v1` or `apis/apps/v1`.
fn path(group: &str, version: &str) -> String {
    if group.is_empty() {
        format!("api/{version}")
    } else {
        format!("apis/{group}/{version}")
    }
}

/// From all that goes into a document.
fn hash_of(resources: &[&Resource], custom: CustomSchema<'_>) -> String {
    static BUILT_IN: LazyLock<u64> = LazyLock::new(|| {
        let mut hasher = DefaultHasher::new();
        builtin::fingerprint().hash(&mut hasher);
        Docs::fingerprint().hash(&mut hasher);
        env!("CARGO_PKG_VERSION").hash(&mut hasher);
        hasher.finish()
    });
    let mut hasher = DefaultHasher::new();
    BUILT_IN.hash(&mut hasher);
    for resource in resources {
        (&resource.group, &resource.version, &resource.kind, &resource.plural).hash(&mut hasher);
        (resource.scope == crate::Scope::Namespaced, &resource.verbs).hash(&mut hasher);
        for sub in &resource.subresources {
            (&sub.name, &sub.group, &sub.version, &sub.kind, &sub.verbs).hash(&mut hasher);
        }
        if resource.custom.is_some()
            && let Some(schema) = custom(resource)
        {
            schema.to_string().hash(&mut hasher);
        }
    }
    format!("{:016x}", hasher.finish())
}

fn document(dialect: Dialect, resources: &[&Resource], custom: CustomSchema<'_>) -> Value {
    let docs = Docs::load();
    let types = Types::builtin();
    let mut schemas = Schemas::new(&types, &docs, dialect);
    let mut definitions = Map::new();
    let mut paths = Map::new();
    for resource in resources {
        let name = if resource.custom.is_some() {
            custom::define(&mut schemas, &mut definitions, resource, custom(resource))
        } else {
            let kind = |kind: &str| types.kind(&resource.group, &resource.version, kind);
            if let Some(list) = kind(&format!("{}List", resource.kind)) {
                schemas.want(list);
            }
            kind(&resource.kind).and_then(|id| schemas.want(id)).unwrap_or_default()
        };
        paths::add(&mut schemas, &mut paths, resource, &name);
    }
    definitions.extend(schemas.finish());
    let info = json!({"title": "Kubernetes", "version": "v1.36"});
    match dialect {
        Dialect::V3 => {
            json!({"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": definitions}})
        }
        Dialect::V2 => json!({"swagger": "2.0", "info": info, "paths": paths, "definitions": definitions}),
    }
}
