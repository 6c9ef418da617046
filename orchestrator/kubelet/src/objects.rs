//! [`Objects`]: each ConfigMap, Secret and Service that the pods of this node refer to.
//!
//! A node may read only those that its pods name (node authorizer), so each one is watched by itself, from when the first
//! pod that names it comes until the last one is gone.

mod cached;
#[cfg(test)]
pub(crate) mod fake;
mod refs;

pub use cached::Cached;
pub use refs::ObjectRef;

use crate::{
    pod::{self, ContainerRef},
    podspec::{Cause, EnvObjects, Invalid},
};
use futures::future::BoxFuture;
use k8s_openapi::api::{
    authentication::v1::TokenRequest,
    core::v1::{ConfigMap, Pod, Secret, Service},
};
use std::{collections::BTreeSet, sync::Arc};
use tokio::sync::broadcast;

/// An object that could not be read; nothing is known of whether it exists.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot read {object}: {cause}")]
pub struct Unreadable {
    /// As `secret shop/db`.
    pub object: String,
    /// What the API server or the connection said.
    pub cause: String,
}

/// Where the objects that pods refer to come from.
pub trait Objects: Send + Sync + 'static {
    /// A ConfigMap, `None` if there is none. From memory while a pod holds it, else asked for.
    fn config_map<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Arc<ConfigMap>>, Unreadable>>;

    /// A Secret, `None` if there is none. From memory while a pod holds it, else asked for.
    fn secret<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Arc<Secret>>, Unreadable>>;

    /// The Services of a namespace, and `default/kubernetes`.
    fn services<'a>(&'a self, namespace: &'a str) -> BoxFuture<'a, Result<Vec<Arc<Service>>, Unreadable>>;

    /// A token of a service account.
    fn token<'a>(
        &'a self,
        namespace: &'a str,
        account: &'a str,
        request: &'a TokenRequest,
    ) -> BoxFuture<'a, Result<TokenRequest, Unreadable>>;

    /// From now on the pod with this uid needs exactly these.
    fn hold(&self, uid: &str, objects: BTreeSet<ObjectRef>);

    /// The pod needs nothing any more.
    fn release(&self, uid: &str);

    /// Objects held that appeared, changed, went, or could be read again. Who falls behind must look at all.
    fn changes(&self) -> broadcast::Receiver<ObjectRef>;
}

/// All that the variables of one container come from.
///
/// # Errors
/// [`Cause::Unavailable`] if an object cannot be read; what does not exist is no error here.
pub async fn env_objects(objects: &dyn Objects, pod: &Pod, container: &ContainerRef) -> Result<EnvObjects, Invalid> {
    let namespace = pod::namespace(pod);
    let unavailable = |field: &'static str| {
        move |it: Unreadable| Invalid::new(pod, Some(&container.name), field, Cause::Unavailable(it.to_string()))
    };
    let mut out = EnvObjects::default();
    let Some(spec) = container.spec(pod) else {
        return Ok(out);
    };
    for object in ObjectRef::of_env(namespace, &spec) {
        match object {
            ObjectRef::ConfigMap { namespace, name } => {
                let found = objects
                    .config_map(&namespace, &name)
                    .await
                    .map_err(unavailable("env"))?;
                out.config_maps.insert(name, found);
            }
            ObjectRef::Secret { namespace, name } => {
                let found = objects.secret(&namespace, &name).await.map_err(unavailable("env"))?;
                out.secrets.insert(name, found);
            }
        }
    }
    out.services = objects
        .services(namespace)
        .await
        .map_err(unavailable("enableServiceLinks"))?;
    Ok(out)
}
