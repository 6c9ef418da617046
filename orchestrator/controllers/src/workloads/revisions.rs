//! Former templates of DaemonSets and StatefulSets, kept as ControllerRevisions: what `kubectl rollout undo` reads.

use super::hash;
use crate::frame::{Cache, Fault, Key, Namespaced, Writer, claim, controller_of, reference};
use k8s_openapi::{
    api::{apps::v1::ControllerRevision, core::v1::PodTemplateSpec},
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, runtime::RawExtension},
};
use kube::{Resource, ResourceExt as _, api::DeleteParams, core::Selector};
use serde_json::{Value, json};
use std::{collections::BTreeSet, sync::Arc};

/// What a revision holds: a strategic merge patch that puts the template in place.
pub(crate) fn patch_of(template: &PodTemplateSpec) -> Value {
    // Types of the API always serialise.
    let mut template = serde_json::to_value(template).unwrap_or_default();
    template["$patch"] = json!("replace");
    json!({"spec": {"template": template}})
}

/// The template that a revision holds.
pub(crate) fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0.pointer("/spec/template")?.clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

/// A label with the revision's hash, and the hash.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HashLabel(pub(crate) &'static str);

/// A revision of this template, still without a number.
pub(crate) fn fresh<O: Resource<DynamicType = ()>>(
    owner: &O,
    template: &PodTemplateSpec,
    label: HashLabel,
    collisions: Option<i32>,
) -> ControllerRevision {
    let data = patch_of(template);
    let hash = hash::of(&data, collisions);
    let labels = template.metadata.as_ref().and_then(|it| it.labels.clone());
    let mut labels = labels.unwrap_or_default();
    labels.insert(label.0.to_owned(), hash.clone());
    let meta = owner.meta();
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", meta.name.as_deref().unwrap_or_default())),
            namespace: meta.namespace.clone(),
            labels: Some(labels),
            annotations: meta.annotations.clone(),
            owner_references: Some(vec![reference(owner)]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(data)),
        revision: 0,
    }
}

/// How the current template's revision comes to be.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Decision {
    /// It is there and the newest.
    Keep(Arc<ControllerRevision>),
    /// It is there and gets a higher number: somebody went back to it.
    Raise(Arc<ControllerRevision>, i64),
    /// It is new.
    Create(i64),
}

/// What to do for a fresh revision, by those that there are.
pub(crate) fn decide(known: &[Arc<ControllerRevision>], fresh: &ControllerRevision) -> Decision {
    let newest = known.iter().map(|it| it.revision).max().unwrap_or_default();
    let equal = known.iter().filter(|it| it.data == fresh.data);
    match equal.max_by_key(|it| it.revision) {
        Some(it) if it.revision == newest => Decision::Keep(Arc::clone(it)),
        Some(it) => Decision::Raise(Arc::clone(it), newest + 1),
        None => Decision::Create(newest + 1),
    }
}

/// Revisions to delete: beyond `limit`, those that nothing uses, oldest first.
pub(crate) fn surplus(
    known: &[Arc<ControllerRevision>],
    limit: usize,
    in_use: impl Fn(&ControllerRevision) -> bool,
) -> Vec<Arc<ControllerRevision>> {
    let mut free: Vec<_> = known.iter().filter(|it| !in_use(it)).cloned().collect();
    free.sort_by_key(|it| it.revision);
    let surplus = free.len().saturating_sub(limit);
    free.truncate(surplus);
    free
}

/// Why there is no revision of the current template yet.
pub(crate) enum Missing {
    /// Another object has the name: the next is tried with a higher number of collisions.
    Collision(Fault),
    Fault(Fault),
}

impl From<Fault> for Missing {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// An owner's revisions.
pub(crate) struct History {
    /// All, without the new one if it was just made.
    pub(crate) known: Vec<Arc<ControllerRevision>>,
    /// Of the current template.
    pub(crate) update: Arc<ControllerRevision>,
}

/// Reads an owner's revisions and makes the one of its current template, or raises its number.
pub(crate) async fn sync<O: Namespaced>(
    writer: &Writer,
    key: &Key,
    owner: &O,
    selector: &Selector,
    cache: &Arc<Cache<ControllerRevision>>,
    fresh: ControllerRevision,
) -> Result<History, Missing> {
    let known = claim(writer, key, owner, selector, cache, |_| true).await?;
    let update = match decide(&known, &fresh) {
        Decision::Keep(there) => there,
        Decision::Raise(there, revision) => {
            let raised = ControllerRevision {
                revision,
                ..(*there).clone()
            };
            Arc::new(writer.replace(key, cache, &raised).await?)
        }
        Decision::Create(revision) => {
            let fresh = ControllerRevision { revision, ..fresh };
            match writer.create(key, cache, &fresh).await {
                Ok(created) => Arc::new(created),
                Err(fault) if fault.is_already_exists() => {
                    let there = writer
                        .read::<ControllerRevision>(&key.namespace, &fresh.name_any())
                        .await?;
                    let ours = controller_of(&there).map(|it| &it.uid) == owner.meta().uid.as_ref();
                    if !ours || there.data != fresh.data {
                        return Err(Missing::Collision(fault));
                    }
                    Arc::new(there)
                }
                Err(fault) => return Err(fault.into()),
            }
        }
    };
    Ok(History { known, update })
}

/// Deletes what history has no room for. `in_use` are names.
pub(crate) async fn truncate(
    writer: &Writer,
    key: &Key,
    cache: &Arc<Cache<ControllerRevision>>,
    history: &History,
    limit: Option<i32>,
    in_use: &BTreeSet<String>,
) -> Result<(), Fault> {
    let limit = usize::try_from(limit.unwrap_or(10)).unwrap_or_default();
    let used = |it: &ControllerRevision| in_use.contains(&it.name_any()) || it.name_any() == history.update.name_any();
    for revision in surplus(&history.known, limit, used) {
        writer.delete(key, cache, &*revision, DeleteParams::default()).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(name: &str, number: i64, data: &str) -> Arc<ControllerRevision> {
        Arc::new(ControllerRevision {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                ..ObjectMeta::default()
            },
            data: Some(RawExtension(json!(data))),
            revision: number,
        })
    }

    #[test]
    fn going_back_raises_and_history_keeps_what_is_used() {
        let known = [revision("a", 1, "A"), revision("b", 2, "B"), revision("c", 3, "C")];
        assert_eq!(decide(&known, &revision("", 0, "C")), Decision::Keep(known[2].clone()));
        assert_eq!(
            decide(&known, &revision("", 0, "A")),
            Decision::Raise(known[0].clone(), 4)
        );
        assert_eq!(decide(&known, &revision("", 0, "D")), Decision::Create(4));
        assert_eq!(decide(&[], &revision("", 0, "D")), Decision::Create(1));
        assert_eq!(surplus(&known, 1, |it| it.name_any() == "a"), [known[1].clone()]);
        assert_eq!(surplus(&known, 3, |_| false), []);
    }

    #[test]
    fn a_revision_gives_its_template_back() {
        let template: PodTemplateSpec =
            serde_json::from_value(json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}})).unwrap();
        let owner = k8s_openapi::api::apps::v1::DaemonSet::default();
        let fresh = fresh(&owner, &template, HashLabel("hash"), None);
        assert_eq!(template_of(&fresh), Some(template));
        assert_eq!(fresh.labels().len(), 2);
    }
}
