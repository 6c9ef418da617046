//! Writes through a controller's client, with errors that name the object.

use super::{Cache, Cached, Key, Written};
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    core::NamespaceResourceScope,
};
use serde::Serialize;
use std::sync::Arc;

/// Why work on a key did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The API server refused or did not answer; the work is repeated with growing delays.
    #[error("cannot {what}: {source}")]
    Api {
        /// Verb, kind and name.
        what: String,
        /// What the client said.
        #[source]
        source: Box<kube::Error>,
    },
    /// Something else; also repeated.
    #[error("{0}")]
    Other(String),
}

impl Fault {
    /// A request that failed: `create pod a/b`.
    pub fn api(what: impl Into<String>, source: kube::Error) -> Self {
        Self::Api {
            what: what.into(),
            source: Box::new(source),
        }
    }

    fn status(&self) -> Option<&kube::core::Status> {
        match self {
            Self::Api { source, .. } => match &**source {
                kube::Error::Api(status) => Some(status),
                _ => None,
            },
            Self::Other(_) => None,
        }
    }

    /// The HTTP code that the API server answered, if it did.
    #[must_use]
    pub fn code(&self) -> Option<u16> {
        self.status().map(|it| it.code)
    }

    /// The object does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.status().is_some_and(kube::core::Status::is_not_found)
    }

    /// Somebody else wrote the object meanwhile.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.status().is_some_and(kube::core::Status::is_conflict)
    }

    /// An object of this name exists.
    #[must_use]
    pub fn is_already_exists(&self) -> bool {
        self.status().is_some_and(kube::core::Status::is_already_exists)
    }

    /// Nothing can be created here any more: the namespace is being deleted.
    #[must_use]
    pub fn is_namespace_terminating(&self) -> bool {
        let causes = self.status().and_then(|it| it.details.as_ref()).map(|it| &it.causes);
        causes.is_some_and(|it| it.iter().any(|cause| cause.reason == "NamespaceTerminating"))
    }

    /// The server's own words, without our context: what events quote.
    #[must_use]
    pub fn message(&self) -> String {
        self.status().map_or_else(|| self.to_string(), |it| it.message.clone())
    }
}

/// `metadata.resourceVersion` as the number that it is.
pub fn revision<K: Resource>(object: &K) -> Option<u64> {
    object.meta().resource_version.as_deref()?.parse().ok()
}

/// Writes namespaced objects as one controller, and notes what its caches have still to see.
#[derive(Clone)]
pub struct Writer {
    client: Client,
    written: Written,
}

impl Writer {
    /// A writer with this client.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self {
            client,
            written: Written::new(),
        }
    }

    /// What was written and not seen yet: for [`super::Controller::after`].
    #[must_use]
    pub fn written(&self) -> &Written {
        &self.written
    }

    /// The client that it writes with.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    fn api<K: Namespaced>(&self, namespace: &str) -> Api<K> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Reads an object past the cache.
    ///
    /// # Errors
    /// As the API server answers, also if there is none.
    pub async fn read<K: Namespaced>(&self, namespace: &str, name: &str) -> Result<K, Fault> {
        let read = self.api::<K>(namespace).get(name).await;
        read.map_err(|error| Fault::api(what::<K>("get", namespace, name), error))
    }

    /// Creates an object for `key`.
    ///
    /// # Errors
    /// As the API server answers.
    pub async fn create<K: Namespaced + Serialize>(
        &self,
        key: &Key,
        cache: &Arc<Cache<K>>,
        object: &K,
    ) -> Result<K, Fault> {
        let namespace = object.meta().namespace.as_deref().unwrap_or_default();
        let answer = self.api::<K>(namespace).create(&PostParams::default(), object).await;
        let answer = answer.map_err(|error| {
            let meta = object.meta();
            let name = meta.name.as_deref().or(meta.generate_name.as_deref());
            Fault::api(what::<K>("create", namespace, name.unwrap_or_default()), error)
        })?;
        self.written.note(key, cache, &answer);
        Ok(answer)
    }

    /// Deletes exactly this object (by uid) for `key`. That it is gone already is no error.
    ///
    /// # Errors
    /// As the API server answers.
    pub async fn delete<K: Namespaced>(
        &self,
        key: &Key,
        cache: &Arc<Cache<K>>,
        object: &K,
        options: DeleteParams,
    ) -> Result<(), Fault> {
        let target = Key::of(object);
        let options = options.preconditions(Preconditions {
            uid: object.meta().uid.clone(),
            resource_version: None,
        });
        let deleted = self.api::<K>(&target.namespace).delete(&target.name, &options).await;
        match deleted.map_err(|error| Fault::api(what::<K>("delete", &target.namespace, &target.name), error)) {
            Ok(_) => {}
            // A conflict is no such proof: the object may only have been written meanwhile.
            Err(fault) if fault.is_not_found() => {}
            Err(fault) => return Err(fault),
        }
        self.written.note_deleted(key, cache, object);
        Ok(())
    }

    /// Replaces an object for `key`; it must not have changed since it was read.
    ///
    /// # Errors
    /// As the API server answers; a conflict if somebody else wrote it.
    pub async fn replace<K: Namespaced + Serialize>(
        &self,
        key: &Key,
        cache: &Arc<Cache<K>>,
        object: &K,
    ) -> Result<K, Fault> {
        let target = Key::of(object);
        let api = self.api::<K>(&target.namespace);
        let answer = api.replace(&target.name, &PostParams::default(), object).await;
        let answer = answer.map_err(|error| Fault::api(what::<K>("update", &target.namespace, &target.name), error))?;
        self.written.note(key, cache, &answer);
        Ok(answer)
    }

    /// Replaces an object's status for `key`; it must not have changed since it was read.
    ///
    /// # Errors
    /// As the API server answers; a conflict if somebody else wrote it.
    pub async fn replace_status<K: Namespaced + Serialize>(
        &self,
        key: &Key,
        cache: &Arc<Cache<K>>,
        object: &K,
    ) -> Result<K, Fault> {
        let target = Key::of(object);
        let api = self.api::<K>(&target.namespace);
        let answer = api.replace_status(&target.name, &PostParams::default(), object).await;
        let answer = answer.map_err(|error| {
            Fault::api(
                what::<K>("update the status of", &target.namespace, &target.name),
                error,
            )
        })?;
        self.written.note(key, cache, &answer);
        Ok(answer)
    }

    /// A strategic merge patch for `key`.
    ///
    /// # Errors
    /// As the API server answers.
    pub async fn patch<K: Namespaced>(
        &self,
        key: &Key,
        cache: &Arc<Cache<K>>,
        target: &Key,
        patch: &serde_json::Value,
    ) -> Result<K, Fault> {
        let api = self.api::<K>(&target.namespace);
        let answer = api
            .patch(&target.name, &PatchParams::default(), &Patch::Strategic(patch))
            .await;
        let answer = answer.map_err(|error| Fault::api(what::<K>("patch", &target.namespace, &target.name), error))?;
        self.written.note(key, cache, &answer);
        Ok(answer)
    }
}

/// A kind whose objects have namespaces.
pub trait Namespaced: Cached + Resource<Scope = NamespaceResourceScope> {}
impl<K> Namespaced for K where K: Cached + Resource<Scope = NamespaceResourceScope> {}

fn what<K: Resource<DynamicType = ()>>(verb: &str, namespace: &str, name: &str) -> String {
    format!("{verb} {} {}", K::kind(&()), Key::new(namespace, name))
}
