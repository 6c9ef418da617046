//! What pods and volumes refer to.

use super::{Kind, Named, Target};
use crate::objects::{items, text};
use serde_json::Value;
use std::collections::BTreeSet;

/// All that a pod refers to, of what nodes may not read otherwise.
pub(super) fn pod_targets(pod: &Value, namespace: &str, pod_name: &str) -> BTreeSet<Target> {
    let mut targets = BTreeSet::new();
    let mut add = |kind, name: &str| {
        if !name.is_empty() {
            targets.insert((kind, Box::from(namespace), Box::from(name)));
        }
    };
    add(Kind::ServiceAccount, text(pod, "/spec/serviceAccountName"));
    for secret in secret_names(pod) {
        add(Kind::Secret, secret);
    }
    for config_map in config_map_names(pod) {
        add(Kind::ConfigMap, config_map);
    }
    for volume in items(pod, "/spec/volumes") {
        add(Kind::Claim, text(volume, "/persistentVolumeClaim/claimName"));
        if volume.get("ephemeral").is_some_and(|it| !it.is_null()) {
            add(Kind::Claim, &format!("{pod_name}-{}", text(volume, "/name")));
        }
    }
    for claim in items(pod, "/spec/resourceClaims") {
        add(Kind::ResourceClaim, text(claim, "/resourceClaimName"));
    }
    for claim in items(pod, "/status/resourceClaimStatuses") {
        add(Kind::ResourceClaim, text(claim, "/resourceClaimName"));
    }
    targets
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    let lists = ["/spec/initContainers", "/spec/containers", "/spec/ephemeralContainers"];
    lists.into_iter().flat_map(|it| items(pod, it))
}

/// Names of the secrets that a pod refers to: pulls, environment, volumes of every kind.
pub(crate) fn secret_names(pod: &Value) -> Vec<&str> {
    let mut names: Vec<&str> = items(pod, "/spec/imagePullSecrets")
        .iter()
        .map(|it| text(it, "/name"))
        .collect();
    for container in containers(pod) {
        names.extend(
            items(container, "/envFrom")
                .iter()
                .map(|it| text(it, "/secretRef/name")),
        );
        names.extend(
            items(container, "/env")
                .iter()
                .map(|it| text(it, "/valueFrom/secretKeyRef/name")),
        );
    }
    for volume in items(pod, "/spec/volumes") {
        names.push(text(volume, "/secret/secretName"));
        names.extend(
            items(volume, "/projected/sources")
                .iter()
                .map(|it| text(it, "/secret/name")),
        );
        names.push(text(volume, "/csi/nodePublishSecretRef/name"));
        names.push(text(volume, "/azureFile/secretName"));
        for kind in ["cephfs", "flexVolume", "rbd", "scaleIO", "iscsi", "storageos"] {
            names.push(text(volume, &format!("/{kind}/secretRef/name")));
        }
    }
    names.retain(|it| !it.is_empty());
    names
}

/// Names of the config maps that a pod refers to.
pub(crate) fn config_map_names(pod: &Value) -> Vec<&str> {
    let mut names = Vec::new();
    for container in containers(pod) {
        names.extend(
            items(container, "/envFrom")
                .iter()
                .map(|it| text(it, "/configMapRef/name")),
        );
        names.extend(
            items(container, "/env")
                .iter()
                .map(|it| text(it, "/valueFrom/configMapKeyRef/name")),
        );
    }
    for volume in items(pod, "/spec/volumes") {
        names.push(text(volume, "/configMap/name"));
        names.extend(
            items(volume, "/projected/sources")
                .iter()
                .map(|it| text(it, "/configMap/name")),
        );
    }
    names.retain(|it| !it.is_empty());
    names
}

/// Secrets that a volume's driver needs on the node; those without a namespace are in the claim's.
pub(super) fn volume_secrets(volume: &Value, claim_namespace: &str) -> Vec<Named> {
    let mut secrets = Vec::new();
    let mut add = |reference: &Value| {
        let name = text(reference, "/name");
        let own = text(reference, "/namespace");
        let namespace = if own.is_empty() { claim_namespace } else { own };
        if !name.is_empty() {
            secrets.push((Box::from(namespace), Box::from(name)));
        }
    };
    let csi = ["nodePublishSecretRef", "nodeStageSecretRef", "nodeExpandSecretRef"];
    let paths = csi.iter().map(|it| format!("/spec/csi/{it}"));
    let others = ["cephfs", "flexVolume", "rbd", "scaleIO", "iscsi", "storageos"];
    for path in paths.chain(others.iter().map(|it| format!("/spec/{it}/secretRef"))) {
        if let Some(reference) = volume.pointer(&path) {
            add(reference);
        }
    }
    secrets
}
