//! `DefaultStorageClass`, `StorageObjectInUseProtection`, `PersistentVolumeClaimResize`.

use super::{Operation, Plugin, Request, quantity::Quantity, service_account::push};
use crate::{
    objects::{Objects, annotation, flag, text, texts},
    status::Status,
};
use serde_json::{Value, json};
use std::sync::Arc;

pub(super) struct DefaultStorageClass;

impl Plugin for DefaultStorageClass {
    fn name(&self) -> &'static str {
        "DefaultStorageClass"
    }

    fn mutate(&self, request: &Request<'_>, claim: &mut Value) -> Result<(), Status> {
        if !request.creates("", "persistentvolumeclaims") || !claim["spec"].is_object() {
            return Ok(());
        }
        // An empty name is a choice: no class.
        let chosen = !claim["spec"]["storageClassName"].is_null()
            || annotation(claim, "volume.beta.kubernetes.io/storage-class").is_some();
        if !chosen && let Some(class) = default_class(request.objects) {
            claim["spec"]["storageClassName"] = class["metadata"]["name"].clone();
        }
        Ok(())
    }
}

fn default_class(objects: &dyn Objects) -> Option<Arc<Value>> {
    let marks = [
        "storageclass.kubernetes.io/is-default-class",
        "storageclass.beta.kubernetes.io/is-default-class",
    ];
    let is_default = |it: &Value| marks.iter().any(|mark| annotation(it, mark) == Some("true"));
    newest(
        objects
            .list("storage.k8s.io/storageclasses", None)
            .into_iter()
            .filter(|it| is_default(it)),
    )
}

/// The newest of several defaults, or the first by name where they are of one age.
pub(super) fn newest(all: impl Iterator<Item = Arc<Value>>) -> Option<Arc<Value>> {
    let age = |it: &Value| {
        let name = text(it, "/metadata/name").to_owned();
        (
            text(it, "/metadata/creationTimestamp").to_owned(),
            std::cmp::Reverse(name),
        )
    };
    all.max_by_key(|it| age(it))
}

pub(super) struct StorageObjectInUseProtection;

impl Plugin for StorageObjectInUseProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    fn mutate(&self, request: &Request<'_>, object: &mut Value) -> Result<(), Status> {
        let finalizer = if request.creates("", "persistentvolumes") {
            "kubernetes.io/pv-protection"
        } else if request.creates("", "persistentvolumeclaims") {
            "kubernetes.io/pvc-protection"
        } else {
            return Ok(());
        };
        if !texts(object, "/metadata/finalizers").any(|it| it == finalizer) && object["metadata"].is_object() {
            push(&mut object["metadata"], "finalizers", json!(finalizer));
        }
        Ok(())
    }
}

pub(super) struct ClaimResize;

impl Plugin for ClaimResize {
    fn name(&self) -> &'static str {
        "PersistentVolumeClaimResize"
    }

    fn validate(&self, request: &Request<'_>, claim: Option<&Value>) -> Result<(), Status> {
        let update = request.attributes.operation == Operation::Update;
        let (Some(claim), Some(old)) = (claim, request.old) else {
            return Ok(());
        };
        if !update || !request.attributes.is("", "persistentvolumeclaims", "") {
            return Ok(());
        }
        let size = |it: &Value| Quantity::parse(text(it, "/spec/resources/requests/storage"));
        let (Some(new), Some(before)) = (size(claim), size(old)) else {
            return Ok(());
        };
        if new.cmp_value(&before).is_le() {
            return Ok(());
        }
        if text(old, "/status/phase") != "Bound" {
            return Err(request.forbidden("Only bound persistent volume claims can be expanded"));
        }
        let class = text(claim, "/spec/storageClassName");
        let class = request.objects.get("storage.k8s.io/storageclasses", "", class);
        if !class.is_some_and(|it| flag(&it, "/allowVolumeExpansion")) {
            return Err(request.forbidden(
                "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must \
                 support resize",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{admission::fixture::Case, objects::fake::Map};

    fn class(name: &str, made: &str, default: &str) -> Value {
        json!({"metadata": {"name": name, "creationTimestamp": made, "annotations":
            {"storageclass.kubernetes.io/is-default-class": default}}, "allowVolumeExpansion": name == "grows"})
    }

    #[allow(clippy::needless_pass_by_value)] // literals read better by value
    fn claim(spec: Value) -> Value {
        json!({"metadata": {"namespace": "ns", "name": "c"}, "spec": spec})
    }

    #[test]
    fn the_newest_default_class_is_filled_in() {
        let mut world = Map::default();
        let run = |world: &Map, spec| {
            let (claim, _) = Case::create(world, "persistentvolumeclaims", claim(spec))
                .run(&DefaultStorageClass)
                .unwrap();
            claim["spec"]["storageClassName"].clone()
        };
        assert_eq!(run(&world, json!({})), json!(null));
        world.put(
            "storage.k8s.io/storageclasses",
            class("old", "2020-01-01T00:00:00Z", "true"),
        );
        world.put(
            "storage.k8s.io/storageclasses",
            class("new", "2021-01-01T00:00:00Z", "true"),
        );
        world.put(
            "storage.k8s.io/storageclasses",
            class("also", "2021-01-01T00:00:00Z", "true"),
        );
        world.put(
            "storage.k8s.io/storageclasses",
            class("none", "2022-01-01T00:00:00Z", "false"),
        );
        assert_eq!(run(&world, json!({})), json!("also"));
        assert_eq!(run(&world, json!({"storageClassName": ""})), json!(""));
        assert_eq!(run(&world, json!({"storageClassName": "own"})), json!("own"));
    }

    #[test]
    fn volumes_and_claims_are_protected() {
        let world = Map::default();
        for (resource, finalizer) in [
            ("persistentvolumes", json!(["kubernetes.io/pv-protection"])),
            ("persistentvolumeclaims", json!(["kubernetes.io/pvc-protection"])),
            ("pods", json!(null)),
        ] {
            let (object, _) = Case::create(&world, resource, claim(json!({})))
                .run(&StorageObjectInUseProtection)
                .unwrap();
            assert_eq!(object["metadata"]["finalizers"], finalizer);
        }
    }

    #[test]
    fn claims_grow_where_their_class_lets_them() {
        let mut world = Map::default();
        world.put("storage.k8s.io/storageclasses", class("grows", "", "false"));
        world.put("storage.k8s.io/storageclasses", class("stays", "", "false"));
        let sized = |class: &str, size: &str, phase: &str| {
            let mut claim = claim(json!({"storageClassName": class, "resources": {"requests": {"storage": size}}}));
            claim["status"] = json!({"phase": phase});
            claim
        };
        for (class, phase, size, allowed) in [
            ("grows", "Bound", "2Gi", true),
            ("grows", "Pending", "2Gi", false),
            ("stays", "Bound", "2Gi", false),
            ("gone", "Bound", "2Gi", false),
            ("stays", "Bound", "1024Mi", true),
        ] {
            let case = Case {
                operation: Operation::Update,
                old: Some(sized(class, "1Gi", phase)),
                ..Case::create(&world, "persistentvolumeclaims", sized(class, size, phase))
            };
            assert_eq!(case.run(&ClaimResize).is_ok(), allowed, "{class} {phase} {size}");
        }
    }
}
