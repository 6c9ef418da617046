//! Who controls what (`metadata.ownerReferences` with `controller: true`), adoption and release.

use super::{Cache, Fault, Key, Namespaced, Writer};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, core::Selector, core::SelectorExt as _};
use serde_json::json;
use std::sync::Arc;

/// The reference to an object's controller.
pub fn controller_of<K: Resource>(object: &K) -> Option<&OwnerReference> {
    let references = object.meta().owner_references.as_deref().unwrap_or_default();
    references.iter().find(|it| it.controller == Some(true))
}

/// The key of an object's controller, if that is of kind `O`.
pub fn owner_key<O: Resource<DynamicType = ()>, K: Resource>(object: &K) -> Option<Key> {
    let reference = controller_of(object)?;
    let group = reference.api_version.rsplit_once('/').map_or("", |(group, _)| group);
    let matches = reference.kind == O::kind(&()) && group == O::group(&());
    let namespace = object.meta().namespace.as_deref().unwrap_or_default();
    matches.then(|| Key::new(namespace, &reference.name))
}

/// A controller's reference to `owner`, for what it makes.
pub fn reference<O: Resource<DynamicType = ()>>(owner: &O) -> OwnerReference {
    OwnerReference {
        api_version: O::api_version(&()).into_owned(),
        kind: O::kind(&()).into_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// What an owner does about an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is the owner's.
    Mine,
    /// It is nobody's and the owner's selector selects it.
    Adopt,
    /// It is the owner's and the selector does not select it any more.
    Release,
    /// It is none of the owner's business.
    Other,
}

/// What `owner` does about an object, by its selector. `fits` is a condition beyond the selector.
pub fn judge<O: Resource, K: Resource>(owner: &O, selector: &Selector, object: &K, fits: bool) -> Claim {
    let labels = object.meta().labels.clone().unwrap_or_default();
    let selected = fits && selector.matches(&labels);
    let deleting = |meta: &kube::core::ObjectMeta| meta.deletion_timestamp.is_some();
    match controller_of(object) {
        Some(reference) if Some(&reference.uid) != owner.meta().uid.as_ref() => Claim::Other,
        Some(_) if selected => Claim::Mine,
        Some(_) if deleting(owner.meta()) => Claim::Other,
        Some(_) => Claim::Release,
        None if !selected || deleting(owner.meta()) || deleting(object.meta()) => Claim::Other,
        None => Claim::Adopt,
    }
}

/// All objects of kind `K` that `owner` controls, after it adopted and released what it must.
///
/// Before the first adoption the owner is read past the cache: one that is gone or going adopts nothing.
///
/// # Errors
/// A patch that failed. An object that is gone meanwhile is no error.
pub async fn claim<O, K>(
    writer: &Writer,
    key: &Key,
    owner: &O,
    selector: &Selector,
    cache: &Arc<Cache<K>>,
    fits: impl Fn(&K) -> bool,
) -> Result<Vec<Arc<K>>, Fault>
where
    O: Namespaced,
    K: Namespaced,
{
    let uid = owner.meta().uid.as_deref().unwrap_or_default();
    let mut mine = Vec::new();
    let mut may_adopt = None;
    for object in cache
        .controlled_by(uid)
        .into_iter()
        .chain(cache.orphans(&key.namespace))
    {
        match judge(owner, selector, &*object, fits(&object)) {
            Claim::Mine => mine.push(object),
            Claim::Other => {}
            Claim::Release => release(writer, key, uid, cache, &object).await?,
            Claim::Adopt => {
                if may_adopt.is_none() {
                    may_adopt = Some(is_alive(writer, owner).await?);
                }
                if may_adopt == Some(true)
                    && let Some(adopted) = adopt(writer, key, owner, cache, &object).await?
                {
                    mine.push(Arc::new(adopted));
                }
            }
        }
    }
    Ok(mine)
}

async fn is_alive<O: Namespaced>(writer: &Writer, owner: &O) -> Result<bool, Fault> {
    let key = Key::of(owner);
    match writer.read::<O>(&key.namespace, &key.name).await {
        Ok(now) => Ok(now.meta().uid == owner.meta().uid && now.meta().deletion_timestamp.is_none()),
        Err(fault) if fault.is_not_found() => Ok(false),
        Err(fault) => Err(fault),
    }
}

async fn adopt<O: Namespaced, K: Namespaced>(
    writer: &Writer,
    key: &Key,
    owner: &O,
    cache: &Arc<Cache<K>>,
    object: &K,
) -> Result<Option<K>, Fault> {
    let patch = json!({"metadata": {"uid": object.meta().uid, "ownerReferences": [reference(owner)]}});
    ignore_gone(writer.patch(key, cache, &Key::of(object), &patch).await)
}

async fn release<K: Namespaced>(
    writer: &Writer,
    key: &Key,
    owner_uid: &str,
    cache: &Arc<Cache<K>>,
    object: &K,
) -> Result<(), Fault> {
    let gone = json!({"$patch": "delete", "uid": owner_uid});
    let patch = json!({"metadata": {"uid": object.meta().uid, "ownerReferences": [gone]}});
    ignore_gone(writer.patch(key, cache, &Key::of(object), &patch).await).map(|_| ())
}

/// A patch of an object that is gone (404), or that it is too late for (422). Another one of its name is a conflict, for
/// which the whole key is tried again.
fn ignore_gone<K>(patched: Result<K, Fault>) -> Result<Option<K>, Fault> {
    match patched {
        Ok(object) => Ok(Some(object)),
        Err(fault) if matches!(fault.code(), Some(404 | 422)) => Ok(None),
        Err(fault) => Err(fault),
    }
}
