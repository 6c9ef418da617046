//! `NodeRestriction`: what a node writes is about itself and its own pods.

use super::{Operation, Plugin, Request};
use crate::{
    authz::node::{MIRROR_POD, NODE_LEASES, config_map_names, node_of, secret_names},
    objects::{annotation, items, pairs, text},
    status::Status,
};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

pub(super) struct NodeRestriction;

impl Plugin for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    fn validate(&self, request: &Request<'_>, object: Option<&Value>) -> Result<(), Status> {
        let attributes = request.attributes;
        let Some(node) = node_of(attributes.user) else {
            return Ok(());
        };
        if node.is_empty() {
            let user = &attributes.user.name;
            return Err(request.forbidden(format!("could not determine node from user {user:?}")));
        }
        let refused = match (&*attributes.resource.group, &*attributes.resource.plural) {
            ("", "pods") => pod(request, node, object),
            ("", "nodes") => own_node(request, node, object),
            ("", "persistentvolumeclaims") => claim(request, node, object),
            ("", "serviceaccounts") => token(request, node, object),
            ("coordination.k8s.io", "leases") if attributes.namespace != NODE_LEASES => Err(format!(
                "can only access leases in the {NODE_LEASES:?} system namespace"
            )),
            ("coordination.k8s.io", "leases") if attributes.name != node => {
                Err("can only access node lease with the same name as the requesting node".to_owned())
            }
            ("storage.k8s.io", "csinodes") if attributes.name != node => {
                Err("can only access CSINode with the same name as the requesting node".to_owned())
            }
            ("resource.k8s.io", "resourceslices") => {
                let both = [object, request.old];
                if both.into_iter().flatten().all(|it| text(it, "/spec/nodeName") == node) {
                    Ok(())
                } else {
                    Err("can only access ResourceSlice with the same NodeName as the requesting node".to_owned())
                }
            }
            _ => Ok(()),
        };
        refused.map_err(|why| request.forbidden(why))
    }
}

fn pod(request: &Request<'_>, node: &str, object: Option<&Value>) -> Result<(), String> {
    let on_node = |pod: Option<&Value>| pod.is_some_and(|it| text(it, "/spec/nodeName") == node);
    match (request.attributes.subresource, request.attributes.operation) {
        ("", Operation::Create) => mirror_pod(request, node, object.unwrap_or(&Value::Null)),
        ("", Operation::Delete) if on_node(request.old) => Ok(()),
        ("", Operation::Delete) => Err(format!(
            "node {node:?} can only delete pods with spec.nodeName set to itself"
        )),
        ("status", Operation::Update) if !on_node(request.old) => Err(format!(
            "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
        )),
        ("status", Operation::Update) => {
            let labels = |it: Option<&Value>| it.and_then(|it| it.pointer("/metadata/labels").cloned());
            if labels(object) != labels(request.old) {
                return Err(format!("node {node:?} cannot update labels through pod status"));
            }
            let claims = |it: Option<&Value>| it.and_then(|it| it.pointer("/status/resourceClaimStatuses").cloned());
            if claims(object) != claims(request.old) {
                return Err(format!("node {node:?} cannot update resource claim statuses"));
            }
            Ok(())
        }
        ("eviction", Operation::Create) => {
            let pod = request
                .objects
                .get("core/pods", request.attributes.namespace, request.attributes.name);
            if on_node(pod.as_deref()) {
                return Ok(());
            }
            Err(format!(
                "node {node} can only evict pods with spec.nodeName set to itself"
            ))
        }
        ("" | "status" | "eviction", operation) => Err(format!(
            "unexpected operation {:?}, node {node:?} can only create and delete mirror pods",
            operation.name()
        )),
        (other, _) => Err(format!(
            "unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"
        )),
    }
}

fn mirror_pod(request: &Request<'_>, node: &str, pod: &Value) -> Result<(), String> {
    if annotation(pod, MIRROR_POD).is_none() {
        return Err(format!(
            "pod does not have {MIRROR_POD:?} annotation, node {node:?} can only create mirror pods"
        ));
    }
    if text(pod, "/spec/nodeName") != node {
        return Err(format!(
            "node {node:?} can only create pods with spec.nodeName set to itself"
        ));
    }
    let [owner] = items(pod, "/metadata/ownerReferences") else {
        return Err(format!(
            "node {node:?} can only create pods with a single owner reference set to itself"
        ));
    };
    if (text(owner, "/apiVersion"), text(owner, "/kind"), text(owner, "/name")) != ("v1", "Node", node) {
        return Err(format!(
            "node {node:?} can only create pods with an owner reference set to itself"
        ));
    }
    if owner["controller"] != true {
        return Err(format!(
            "node {node:?} can only create pods with a controller owner reference set to itself"
        ));
    }
    if owner["blockOwnerDeletion"] == true {
        return Err(format!(
            "node {node:?} must not set blockOwnerDeletion on an owner reference"
        ));
    }
    let stored = request.objects.get("core/nodes", "", node);
    let uid = stored
        .as_deref()
        .map(|it| text(it, "/metadata/uid"))
        .unwrap_or_default();
    if uid.is_empty() || text(owner, "/uid") != uid {
        return Err(format!(
            "node {node} UID mismatch: expected {uid} got {}",
            text(owner, "/uid")
        ));
    }
    let refers = |what: &str| Err(format!("node {node:?} can not create pods that reference {what}"));
    if !text(pod, "/spec/serviceAccountName").is_empty() {
        return refers("a service account");
    }
    if !secret_names(pod).is_empty() {
        return refers("secrets");
    }
    if !config_map_names(pod).is_empty() {
        return refers("configmaps");
    }
    if !items(pod, "/spec/resourceClaims").is_empty() {
        return refers("resourceclaims");
    }
    for volume in items(pod, "/spec/volumes") {
        if volume.get("persistentVolumeClaim").is_some_and(|it| !it.is_null()) {
            return refers("persistentvolumeclaims");
        }
        for source in items(volume, "/projected/sources") {
            for (field, what) in [
                ("clusterTrustBundle", "clustertrustbundles"),
                ("serviceAccountToken", "a service account"),
            ] {
                if source.get(field).is_some_and(|it| !it.is_null()) {
                    return refers(what);
                }
            }
        }
    }
    Ok(())
}

fn own_node(request: &Request<'_>, node: &str, object: Option<&Value>) -> Result<(), String> {
    let name = request.attributes.name;
    if name != node {
        return Err(format!("node {node:?} is not allowed to modify node {name:?}"));
    }
    let Some(object) = object else { return Ok(()) };
    let old = request.old.unwrap_or(&Value::Null);
    let created = request.attributes.operation == Operation::Create;
    if !created && object.pointer("/spec/taints") != old.pointer("/spec/taints") {
        return Err(format!("node {node:?} is not allowed to modify taints"));
    }
    let source = |it: &Value| it.pointer("/spec/configSource").filter(|it| !it.is_null()).cloned();
    if source(object).is_some() && source(object) != source(old) {
        return Err(format!(
            "node {node:?} is not allowed to update configSource to a new non-nil configSource"
        ));
    }
    let forbidden: Vec<&str> = changed_labels(object, old)
        .into_iter()
        .filter(|it| !may_label(it))
        .collect();
    match (forbidden.as_slice(), created) {
        ([], _) => Ok(()),
        (some, true) => Err(format!(
            "node {node:?} is not allowed to set the following labels: {}",
            some.join(", ")
        )),
        (some, false) => Err(format!("is not allowed to modify labels: {}", some.join(", "))),
    }
}

fn changed_labels<'a>(a: &'a Value, b: &'a Value) -> BTreeSet<&'a str> {
    let labels = |it| -> BTreeMap<&'a str, &'a str> { pairs(it, "/metadata/labels").collect() };
    let (a, b) = (labels(a), labels(b));
    a.keys()
        .chain(b.keys())
        .filter(|it| a.get(*it) != b.get(*it))
        .copied()
        .collect()
}

/// Labels of the API's own domains that kubelets set about themselves.
const KUBELET_LABELS: [&str; 10] = [
    "kubernetes.io/hostname",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "beta.kubernetes.io/arch",
];

/// Whether a node may set a label on itself: not what steers workloads to it.
fn may_label(label: &str) -> bool {
    let domain = label.split_once('/').map_or("", |(domain, _)| domain);
    let within = |parent: &str| {
        domain
            .strip_suffix(parent)
            .is_some_and(|it| it.is_empty() || it.ends_with('.'))
    };
    if within("node-restriction.kubernetes.io") {
        return false;
    }
    if !within("kubernetes.io") && !within("k8s.io") {
        return true;
    }
    KUBELET_LABELS.contains(&label)
        || label == "beta.kubernetes.io/os"
        || within("kubelet.kubernetes.io")
        || within("node.kubernetes.io")
}

fn claim(request: &Request<'_>, node: &str, object: Option<&Value>) -> Result<(), String> {
    if request.attributes.subresource != "status" {
        return Err("may only update PVC status".to_owned());
    }
    let bare = |claim: Option<&Value>| {
        let mut claim = claim.cloned().unwrap_or_default();
        if let Some(status) = claim.pointer_mut("/status").and_then(Value::as_object_mut) {
            status.retain(|field, _| {
                !matches!(
                    field.as_str(),
                    "capacity" | "conditions" | "allocatedResources" | "allocatedResourceStatuses"
                )
            });
        }
        if let Some(metadata) = claim.pointer_mut("/metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
            metadata.remove("resourceVersion");
        }
        claim
    };
    if bare(object) == bare(request.old) {
        return Ok(());
    }
    Err(format!(
        "node {node:?} is not allowed to update fields other than status.capacity and status.conditions"
    ))
}

fn token(request: &Request<'_>, node: &str, object: Option<&Value>) -> Result<(), String> {
    let attributes = request.attributes;
    if attributes.subresource != "token" || attributes.operation != Operation::Create {
        return Ok(());
    }
    let reference = object
        .and_then(|it| it.pointer("/spec/boundObjectRef"))
        .unwrap_or(&Value::Null);
    let name = text(reference, "/name");
    if (text(reference, "/apiVersion"), text(reference, "/kind")) != ("v1", "Pod") || name.is_empty() {
        return Err("node requested token not bound to a pod".to_owned());
    }
    let uid = text(reference, "/uid");
    if uid.is_empty() {
        return Err("node requested token with a pod binding without a uid".to_owned());
    }
    let pod = request.objects.get("core/pods", attributes.namespace, name);
    let Some(pod) = pod else {
        return Err(format!("pod {name:?} not found"));
    };
    if text(&pod, "/metadata/uid") != uid {
        return Err(format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been \
             deleted and then recreated"
        ));
    }
    if text(&pod, "/spec/nodeName") != node {
        return Err("node requested token bound to a pod scheduled on a different node".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        admission::fixture::Case,
        authn::{User, names},
        objects::{Objects as _, fake::Map},
    };
    use serde_json::json;

    fn world() -> Map {
        let mut world = Map::default();
        world.put("core/nodes", json!({"metadata": {"name": "a", "uid": "node-1"}}));
        for (name, node) in [("mine", "a"), ("other", "b")] {
            world.put(
                "core/pods",
                json!({"metadata": {"namespace": "ns", "name": name, "uid": name},
                "spec": {"nodeName": node}}),
            );
        }
        world
    }

    fn node() -> User {
        User::authenticated("system:node:a", [names::NODES])
    }

    fn mirror(change: &dyn Fn(&mut Value)) -> Value {
        let mut pod = json!({"metadata": {"namespace": "ns", "name": "m", "annotations": {MIRROR_POD: "x"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "a", "uid": "node-1", "controller": true}]},
            "spec": {"nodeName": "a"}});
        change(&mut pod);
        pod
    }

    #[test]
    fn nodes_make_mirror_pods_of_their_own_only() {
        let world = world();
        type Change<'a> = &'a dyn Fn(&mut Value);
        let changes: [(Change<'_>, bool); 9] = [
            (&|_| {}, true),
            (&|it| it["metadata"]["annotations"] = json!({}), false),
            (&|it| it["spec"]["nodeName"] = json!("b"), false),
            (&|it| it["metadata"]["ownerReferences"] = json!([]), false),
            (
                &|it| it["metadata"]["ownerReferences"][0]["uid"] = json!("node-2"),
                false,
            ),
            (
                &|it| it["metadata"]["ownerReferences"][0]["controller"] = json!(false),
                false,
            ),
            (&|it| it["spec"]["serviceAccountName"] = json!("sa"), false),
            (
                &|it| it["spec"]["volumes"] = json!([{"secret": {"secretName": "s"}}]),
                false,
            ),
            (
                &|it| it["spec"]["volumes"] = json!([{"persistentVolumeClaim": {"claimName": "c"}}]),
                false,
            ),
        ];
        for (at, (change, allowed)) in changes.into_iter().enumerate() {
            let case = Case {
                user: node(),
                ..Case::create(&world, "pods", mirror(change))
            };
            assert_eq!(case.run(&NodeRestriction).is_ok(), allowed, "change {at}");
        }
    }

    #[test]
    fn nodes_touch_only_their_own() {
        let world = world();
        let pod = |name: &str| Value::clone(&world.get("core/pods", "ns", name).unwrap());
        let labelled = |label: &str| json!({"metadata": {"name": "a", "labels": {label: "x"}}});
        let plain = json!({"metadata": {"name": "a"}});
        let token = |pod: &str, uid: &str| {
            json!({"metadata": {"namespace": "ns", "name": "sa"}, "spec":
            {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid}}})
        };
        let lease = |namespace: &str, name: &str| json!({"metadata": {"namespace": namespace, "name": name}});
        let (create, update, delete) = (Operation::Create, Operation::Update, Operation::Delete);
        for (operation, resource, subresource, old, object, allowed) in [
            (delete, "pods", "", Some(pod("mine")), None, true),
            (delete, "pods", "", Some(pod("other")), None, false),
            (update, "pods", "status", Some(pod("mine")), Some(pod("mine")), true),
            (update, "pods", "status", Some(pod("other")), Some(pod("other")), false),
            (update, "pods", "", Some(pod("mine")), Some(pod("mine")), false),
            (create, "pods", "exec", None, Some(pod("mine")), false),
            (create, "pods", "eviction", None, Some(pod("mine")), true),
            (create, "pods", "eviction", None, Some(pod("other")), false),
            (
                create,
                "nodes",
                "",
                None,
                Some(labelled("topology.kubernetes.io/zone")),
                true,
            ),
            (create, "nodes", "", None, Some(labelled("example.com/x")), true),
            (
                create,
                "nodes",
                "",
                None,
                Some(labelled("node-restriction.kubernetes.io/x")),
                false,
            ),
            (
                create,
                "nodes",
                "",
                None,
                Some(labelled("x.node-restriction.kubernetes.io/x")),
                false,
            ),
            (
                create,
                "nodes",
                "",
                None,
                Some(labelled("node-role.kubernetes.io/control-plane")),
                false,
            ),
            (
                update,
                "nodes",
                "",
                Some(plain.clone()),
                Some(labelled("kubernetes.io/hostname")),
                true,
            ),
            (
                update,
                "nodes",
                "",
                Some(labelled("node-restriction.kubernetes.io/x")),
                Some(plain.clone()),
                false,
            ),
            (
                update,
                "nodes",
                "",
                Some(plain.clone()),
                Some(json!({"metadata": {"name": "a"}, "spec": {"taints":
                [{"key": "k"}]}})),
                false,
            ),
            (
                update,
                "nodes",
                "status",
                Some(json!({"metadata": {"name": "b"}})),
                Some(json!({"metadata": {"name": "b"}})),
                false,
            ),
            (
                create,
                "serviceaccounts",
                "token",
                None,
                Some(token("mine", "mine")),
                true,
            ),
            (
                create,
                "serviceaccounts",
                "token",
                None,
                Some(token("mine", "stale")),
                false,
            ),
            (create, "serviceaccounts", "token", None, Some(token("mine", "")), false),
            (
                create,
                "serviceaccounts",
                "token",
                None,
                Some(token("other", "other")),
                false,
            ),
            (create, "leases", "", None, Some(lease(NODE_LEASES, "a")), true),
            (create, "leases", "", None, Some(lease(NODE_LEASES, "b")), false),
            (create, "leases", "", None, Some(lease("kube-system", "a")), false),
            (
                create,
                "csinodes",
                "",
                None,
                Some(json!({"metadata": {"name": "b"}})),
                false,
            ),
            (create, "configmaps", "", None, Some(lease("ns", "x")), true),
        ] {
            let shown = format!("{operation:?} {resource}/{subresource} {object:?}");
            let case = |user| Case {
                operation,
                subresource,
                user,
                old: old.clone(),
                object: object.clone(),
                ..Case::create(&world, resource, Value::Null)
            };
            assert_eq!(case(node()).run(&NodeRestriction).is_ok(), allowed, "{shown}");
            assert!(
                case(User::authenticated("bob", ["x"])).run(&NodeRestriction).is_ok(),
                "{shown}"
            );
        }
    }
}
