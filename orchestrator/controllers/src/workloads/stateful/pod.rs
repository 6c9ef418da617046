//! The pod of a StatefulSet at an ordinal, and the claims that belong to it.

use crate::{frame::reference, workloads::pods};
use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume},
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{Resource as _, ResourceExt as _};

/// The label with the name of the revision that a pod was made from.
pub(crate) const REVISION: &str = "controller-revision-hash";
const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// The ordinal of a pod, if its name is one of this set's.
pub(crate) fn ordinal(set: &str, pod: &str) -> Option<i32> {
    let number = pod.strip_prefix(set)?.strip_prefix('-')?;
    // `web-01` is no pod of `web`.
    let plain = number == "0" || !number.starts_with(['0', '+', '-']);
    number.parse().ok().filter(|_| plain)
}

/// The name of the pod at an ordinal.
pub(crate) fn name(set: &str, ordinal: i32) -> String {
    format!("{set}-{ordinal}")
}

/// The name of a claim: `<template>-<pod>`.
pub(crate) fn claim_name(template: &PersistentVolumeClaim, pod: &str) -> String {
    format!("{}-{pod}", template.name_any())
}

fn claim_templates(set: &StatefulSet) -> &[PersistentVolumeClaim] {
    let templates = set.spec.as_ref().and_then(|it| it.volume_claim_templates.as_deref());
    templates.unwrap_or_default()
}

/// A pod from this template, at this ordinal, marked with this revision.
pub(crate) fn new(set: &StatefulSet, template: &PodTemplateSpec, revision: &str, ordinal: i32) -> Pod {
    let namespace = set.namespace().unwrap_or_default();
    let mut pod = pods::from_template(template, &namespace, reference(set));
    let name = name(&set.name_any(), ordinal);
    pod.metadata.name = Some(name.clone());
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(REVISION.to_owned(), revision.to_owned());
    identify(set, &mut pod);
    let service = set.spec.as_ref().and_then(|it| it.service_name.clone());
    if let Some(spec) = &mut pod.spec {
        spec.hostname = Some(name);
        spec.subdomain = service.filter(|it| !it.is_empty());
    }
    pod
}

/// Gives a pod the labels and volumes of its ordinal.
pub(crate) fn identify(set: &StatefulSet, pod: &mut Pod) {
    let name = pod.name_any();
    let index = ordinal(&set.name_any(), &name).unwrap_or_default();
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(POD_NAME.to_owned(), name.clone());
    labels.insert(POD_INDEX.to_owned(), index.to_string());
    let templates = claim_templates(set);
    if templates.is_empty() {
        return;
    }
    let volumes = pod.spec.get_or_insert_default().volumes.get_or_insert_default();
    volumes.retain(|it| !templates.iter().any(|template| template.name_any() == it.name));
    volumes.extend(templates.iter().map(|template| Volume {
        name: template.name_any(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: claim_name(template, &name),
            read_only: None,
        }),
        ..Volume::default()
    }));
}

/// Whether a pod's labels say who it is.
pub(crate) fn is_identified(set: &StatefulSet, pod: &Pod) -> bool {
    let name = pod.name_any();
    let index = ordinal(&set.name_any(), &name).unwrap_or_default().to_string();
    pods::label(&pod.metadata, POD_NAME) == Some(&name) && pods::label(&pod.metadata, POD_INDEX) == Some(&index)
}

/// The claims of a pod, as they are made.
pub(crate) fn claims(set: &StatefulSet, pod: &Pod) -> Vec<PersistentVolumeClaim> {
    let selected = set.spec.as_ref().and_then(|it| it.selector.match_labels.clone());
    let make = |template: &PersistentVolumeClaim| {
        let mut claim = template.clone();
        claim.metadata.name = Some(claim_name(template, &pod.name_any()));
        claim.metadata.namespace = set.namespace();
        claim.status = None;
        // The set's labels, so that its claims can be found.
        claim
            .metadata
            .labels
            .get_or_insert_default()
            .extend(selected.clone().unwrap_or_default());
        claim
    };
    claim_templates(set).iter().map(make).collect()
}

fn deletes(
    set: &StatefulSet,
    when: fn(&k8s_openapi::api::apps::v1::StatefulSetPersistentVolumeClaimRetentionPolicy) -> &Option<String>,
) -> bool {
    let policy = set
        .spec
        .as_ref()
        .and_then(|it| it.persistent_volume_claim_retention_policy.as_ref());
    policy.and_then(|it| when(it).as_deref()) == Some("Delete")
}

/// The owners that a claim should have, so that the garbage collector acts as the retention policy says: the set if
/// claims go with it, a pod that is scaled away if claims go with that. Owners of others stay.
/// Source: KEP-1847.
pub(crate) fn claim_owners(
    set: &StatefulSet,
    pod: &Pod,
    condemned: bool,
    claim: &PersistentVolumeClaim,
) -> Vec<OwnerReference> {
    let mut owners = claim.metadata.owner_references.clone().unwrap_or_default();
    let mut own = |uid: Option<String>, owner: OwnerReference, wanted: bool| {
        let owner = OwnerReference {
            // Not its controller: a claim outlives what it is made for.
            controller: None,
            block_owner_deletion: None,
            ..owner
        };
        let there = owners.iter().any(|it| Some(&it.uid) == uid.as_ref());
        // One of the same name with another uid is long gone.
        owners.retain(|it| {
            let same = it.kind == owner.kind && it.name == owner.name;
            !same || (wanted && Some(&it.uid) == uid.as_ref())
        });
        if wanted && !there && uid.is_some() {
            owners.push(owner);
        }
    };
    let scaled = deletes(set, |it| &it.when_scaled) && condemned;
    own(pod.uid(), reference(pod), scaled);
    own(
        set.meta().uid.clone(),
        reference(set),
        deletes(set, |it| &it.when_deleted) && !scaled,
    );
    owners
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn set(policy: Value) -> StatefulSet {
        let spec = json!({
            "selector": {"matchLabels": {"app": "db"}},
            "serviceName": "db",
            "template": {"spec": {"containers": []}},
            "volumeClaimTemplates": [{"metadata": {"name": "data", "labels": {"a": "b"}}, "spec": {}}],
            "persistentVolumeClaimRetentionPolicy": policy,
        });
        let meta = json!({"name": "web", "namespace": "n", "uid": "set"});
        serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap()
    }

    #[test]
    fn names_have_ordinals() {
        let cases = [
            ("web-0", Some(0)),
            ("web-12", Some(12)),
            ("web-01", None),
            ("web-x", None),
            ("we-1", None),
            ("web-+1", None),
        ];
        for (pod, expected) in cases {
            assert_eq!(ordinal("web", pod), expected, "{pod}");
        }
        assert_eq!(ordinal("web", "web-a-1"), None);
    }

    #[test]
    fn a_pod_has_its_name_in_all_places() {
        let set = set(json!({}));
        let template = set.spec.clone().unwrap().template;
        let pod = new(&set, &template, "web-abc", 3);
        assert!(is_identified(&set, &pod));
        let spec = pod.spec.clone().unwrap();
        assert_eq!(
            (spec.hostname.as_deref(), spec.subdomain.as_deref()),
            (Some("web-3"), Some("db"))
        );
        assert_eq!(pods::label(&pod.metadata, POD_INDEX), Some("3"));
        let volumes = spec.volumes.unwrap();
        assert_eq!(
            volumes[0].persistent_volume_claim.as_ref().unwrap().claim_name,
            "data-web-3"
        );
        let claims = claims(&set, &pod);
        assert_eq!(claims[0].name_any(), "data-web-3");
        assert_eq!(claims[0].labels().len(), 2);
    }

    #[test]
    fn claims_are_owned_as_the_policy_says() {
        let owners = |policy: Value, condemned: bool, before: Value| {
            let mut pod = Pod::default();
            pod.metadata.name = Some("web-0".to_owned());
            pod.metadata.uid = Some("pod".to_owned());
            let mut claim = PersistentVolumeClaim::default();
            claim.metadata.owner_references = serde_json::from_value(before).unwrap();
            let owners = claim_owners(&set(policy), &pod, condemned, &claim);
            owners.into_iter().map(|it| it.uid).collect::<Vec<_>>()
        };
        let other = json!({"apiVersion": "v1", "kind": "X", "name": "x", "uid": "other"});
        let gone = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "gone"});
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "name": "web-0", "uid": "pod"});
        let keep = json!({"whenDeleted": "Retain", "whenScaled": "Retain"});
        let both = json!({"whenDeleted": "Delete", "whenScaled": "Delete"});
        assert_eq!(owners(keep.clone(), true, json!([other])), ["other"]);
        assert_eq!(owners(keep, false, json!([gone, pod])), [""; 0]);
        assert_eq!(owners(both.clone(), false, json!([other, pod])), ["other", "set"]);
        assert_eq!(owners(both, true, json!([gone])), ["pod"]);
    }
}
