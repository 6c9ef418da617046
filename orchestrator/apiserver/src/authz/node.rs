//! Which objects a node may read: its own, and those that its pods need. Everything else is the business of RBAC.

mod references;

pub(crate) use references::{config_map_names, secret_names};

use super::{Attributes, Authorizer, Decision, RulesOf, defaults::node_rules, rule::PolicyRule};
use crate::{
    authn::{User, names},
    objects::{Objects, annotation, text},
};
use references::{pod_targets, volume_secrets};
use serde_json::Value;
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{PoisonError, RwLock},
};

/// Marks a pod that the node made up itself: it must not gain the node anything.
pub(crate) const MIRROR_POD: &str = "kubernetes.io/config.mirror";
/// Where the leases of nodes are.
pub(crate) const NODE_LEASES: &str = "kube-node-lease";

/// What the graph is made of: the prefixes to watch.
pub const PREFIXES: [&str; 4] = [
    "core/pods",
    "core/persistentvolumes",
    "storage.k8s.io/volumeattachments",
    "resource.k8s.io/resourceslices",
];

/// The node that a user is: `Some("")` for a node that does not say which.
pub fn node_of(user: &User) -> Option<&str> {
    let name = user.name.strip_prefix(names::NODE_PREFIX)?;
    user.in_group(names::NODES).then_some(name)
}

/// Authorizer for nodes. Lookups cost hash lookups; a pod's change costs its own references.
#[derive(Debug)]
pub struct NodeAuthorizer {
    graph: RwLock<Graph>,
    rules: Vec<PolicyRule>,
}

/// What kind of object, where upstream's graph has a vertex type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Kind {
    Secret,
    ConfigMap,
    Claim,
    Volume,
    ServiceAccount,
    ResourceClaim,
    Pod,
    Attachment,
    Slice,
}

type Target = (Kind, Box<str>, Box<str>);
/// Prefix, namespace and name.
type HolderKey = (Box<str>, Box<str>, Box<str>);
/// Namespace and name.
type Named = (Box<str>, Box<str>);

#[derive(Debug, Default)]
struct Graph {
    /// By prefix, namespace and name of the object that holds the references.
    holders: HashMap<HolderKey, Holder>,
    /// How many of a node's objects need a target.
    needed: HashMap<Target, HashMap<Box<str>, usize>>,
    /// The claim that a volume is bound to: who needs the claim needs the volume.
    claim_of_volume: HashMap<Box<str>, Named>,
    /// Volumes that need a secret.
    volumes_of_secret: HashMap<Named, HashSet<Box<str>>>,
}

/// References of one object.
#[derive(Debug)]
struct Holder {
    node: Box<str>,
    targets: BTreeSet<Target>,
}

impl Default for NodeAuthorizer {
    fn default() -> Self {
        Self {
            graph: RwLock::default(),
            rules: node_rules(),
        }
    }
}

impl NodeAuthorizer {
    /// An authorizer that knows of no pods yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// An authorizer that knows what is stored now.
    pub fn load(objects: &dyn Objects) -> Self {
        let authorizer = Self::default();
        authorizer.reload(objects);
        authorizer
    }

    /// Reads everything again.
    pub fn reload(&self, objects: &dyn Objects) {
        *self.graph.write().unwrap_or_else(PoisonError::into_inner) = Graph::default();
        for prefix in PREFIXES {
            for object in objects.list(prefix, None) {
                let (namespace, name) = (text(&object, "/metadata/namespace"), text(&object, "/metadata/name"));
                self.apply(prefix, namespace, name, Some(&object));
            }
        }
    }

    /// Takes in one change; `None`: deleted. Other prefixes than [`PREFIXES`] are ignored.
    pub fn apply(&self, prefix: &str, namespace: &str, name: &str, object: Option<&Value>) {
        if !PREFIXES.contains(&prefix) {
            return;
        }
        let mut graph = self.graph.write().unwrap_or_else(PoisonError::into_inner);
        if prefix == "core/persistentvolumes" {
            graph.set_volume(name, object);
        } else {
            let holder = object.and_then(|it| Holder::read(prefix, namespace, name, it));
            graph.set_holder((prefix.into(), namespace.into(), name.into()), holder);
        }
    }

    fn related(&self, node: &str, kind: Kind, request: &Attributes<'_>) -> Decision {
        let name = asked_name(request);
        if name.is_empty() {
            return Decision::none("No Object name found");
        }
        let graph = self.graph.read().unwrap_or_else(PoisonError::into_inner);
        if graph.needs(node, kind, request.namespace, name) {
            return Decision::allow("");
        }
        Decision::none(format!("no relationship found between node '{node}' and this object"))
    }

    fn get(&self, node: &str, kind: Kind, request: &Attributes<'_>) -> Decision {
        match (request.verb, request.subresource) {
            ("get", "") => self.related(node, kind, request),
            ("get", _) => Decision::none("cannot get subresource"),
            _ => Decision::none("can only get individual resources of this type"),
        }
    }

    fn read(&self, node: &str, kind: Kind, request: &Attributes<'_>) -> Decision {
        if !matches!(request.verb, "get" | "list" | "watch") {
            return Decision::none("can only read resources of this type");
        }
        if !request.subresource.is_empty() {
            return Decision::none("cannot read subresource");
        }
        if request.namespace.is_empty() {
            return Decision::none("can only read namespaced object of this type");
        }
        self.related(node, kind, request)
    }

    fn pod(&self, node: &str, request: &Attributes<'_>) -> Decision {
        match (request.subresource, request.verb) {
            ("", "get") => self.get(node, Kind::Pod, request),
            ("", "list" | "watch") if selects(request, "spec.nodeName", node) => Decision::allow(""),
            ("", "list" | "watch") if !asked_name(request).is_empty() => self.related(node, Kind::Pod, request),
            ("", "list" | "watch") => Decision::none("can only list/watch pods with spec.nodeName field selector"),
            // Admission holds these to the node's own pods.
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => Decision::allow(""),
            _ => Decision::none(""),
        }
    }

    fn statically(&self, request: &Attributes<'_>) -> Decision {
        if self.rules.iter().any(|it| it.allows(request)) {
            Decision::allow("")
        } else {
            Decision::none("")
        }
    }
}

impl Authorizer for NodeAuthorizer {
    fn authorize(&self, request: &Attributes<'_>) -> Decision {
        let Some(node) = node_of(request.user) else {
            return Decision::none("");
        };
        if node.is_empty() {
            return Decision::none(format!("unknown node for user {:?}", request.user.name));
        }
        match (request.group, request.resource) {
            _ if !request.is_resource() => self.statically(request),
            ("", "secrets") => self.read(node, Kind::Secret, request),
            ("", "configmaps") => self.read(node, Kind::ConfigMap, request),
            ("", "persistentvolumeclaims") if request.subresource == "status" => match request.verb {
                "update" | "patch" => self.related(node, Kind::Claim, request),
                _ => Decision::none("can only get/update/patch this type"),
            },
            ("", "persistentvolumeclaims") => self.get(node, Kind::Claim, request),
            ("", "persistentvolumes") => self.get(node, Kind::Volume, request),
            ("resource.k8s.io", "resourceclaims") => self.get(node, Kind::ResourceClaim, request),
            ("storage.k8s.io", "volumeattachments") => self.get(node, Kind::Attachment, request),
            ("", "serviceaccounts") => match (request.verb, request.subresource) {
                ("create", "token") if !request.name.is_empty() => self.related(node, Kind::ServiceAccount, request),
                ("create", _) if request.subresource != "token" => {
                    Decision::none("can only create token subresource of serviceaccount")
                }
                _ => Decision::none("can only create tokens for individual service accounts"),
            },
            ("coordination.k8s.io", "leases") => lease(node, request),
            ("storage.k8s.io", "csinodes") => csi_node(node, request),
            ("resource.k8s.io", "resourceslices") => match (request.subresource, request.verb) {
                ("", "create") => Decision::allow(""),
                ("", "get" | "update" | "patch" | "delete") => self.related(node, Kind::Slice, request),
                ("", "list" | "watch" | "deletecollection") if selects(request, "spec.nodeName", node) => {
                    Decision::allow("")
                }
                _ => Decision::none(
                    "can only list/watch/deletecollection resourceslices with spec.nodeName field selector",
                ),
            },
            ("", "nodes") => own_node(node, request),
            ("", "pods") => self.pod(node, request),
            _ => self.statically(request),
        }
    }

    fn rules_of(&self, user: &User, _namespace: &str) -> RulesOf {
        let mut rules = RulesOf::default();
        if node_of(user).is_some() {
            rules.incomplete = true;
            rules
                .errors
                .push("node authorizer does not support user rule resolution".to_owned());
        }
        rules
    }
}

fn own_node(node: &str, request: &Attributes<'_>) -> Decision {
    match (request.subresource, request.verb) {
        // Admission holds these to the node's own object.
        ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Decision::allow(""),
        ("", "get" | "list" | "watch") => match asked_name(request) {
            "" => Decision::none(format!("node '{node}' cannot read all nodes, only its own Node object")),
            name if name == node => Decision::allow(""),
            name => Decision::none(format!("node '{node}' cannot read '{name}', only its own Node object")),
        },
        _ => Decision::none(""),
    }
}

fn lease(node: &str, request: &Attributes<'_>) -> Decision {
    if !matches!(request.verb, "get" | "create" | "update" | "patch" | "delete") {
        return Decision::none("can only get, create, update, patch, or delete a node lease");
    }
    if request.namespace != NODE_LEASES {
        return Decision::none(format!(
            "can only access leases in the {NODE_LEASES:?} system namespace"
        ));
    }
    // A create has no name yet; admission looks at it.
    if request.verb != "create" && request.name != node {
        return Decision::none("can only access node lease with the same name as the requesting node");
    }
    Decision::allow("")
}

fn csi_node(node: &str, request: &Attributes<'_>) -> Decision {
    if !matches!(request.verb, "get" | "create" | "update" | "patch" | "delete") {
        return Decision::none("can only get, create, update, patch, or delete a CSINode");
    }
    if !request.subresource.is_empty() {
        return Decision::none("cannot authorize CSINode subresources");
    }
    if request.verb != "create" && request.name != node {
        return Decision::none("can only access CSINode with the same name as the requesting node");
    }
    Decision::allow("")
}

fn selects(request: &Attributes<'_>, field: &str, value: &str) -> bool {
    request
        .fields
        .iter()
        .any(|it| it.equals && it.field == field && it.value == value)
}

/// The name in the path, or the one that a field selector holds the request to.
fn asked_name<'a>(request: &Attributes<'a>) -> &'a str {
    if !request.name.is_empty() {
        return request.name;
    }
    let named = request
        .fields
        .iter()
        .find(|it| it.equals && it.field == "metadata.name");
    named.map_or("", |it| it.value.as_str())
}

impl Graph {
    fn set_holder(&mut self, key: HolderKey, holder: Option<Holder>) {
        let before = match holder {
            Some(holder) => {
                for target in &holder.targets {
                    let nodes = self.needed.entry(target.clone()).or_default();
                    *nodes.entry(holder.node.clone()).or_default() += 1;
                }
                self.holders.insert(key, holder)
            }
            None => self.holders.remove(&key),
        };
        let Some(before) = before else { return };
        for target in &before.targets {
            let Some(nodes) = self.needed.get_mut(target) else {
                continue;
            };
            if let Some(count) = nodes.get_mut(&before.node) {
                *count -= 1;
                if *count == 0 {
                    nodes.remove(&before.node);
                }
            }
            if nodes.is_empty() {
                self.needed.remove(target);
            }
        }
    }

    fn set_volume(&mut self, name: &str, volume: Option<&Value>) {
        self.claim_of_volume.remove(name);
        self.volumes_of_secret.retain(|_, volumes| {
            volumes.remove(name);
            !volumes.is_empty()
        });
        let Some(volume) = volume else { return };
        let claim = text(volume, "/spec/claimRef/name");
        if claim.is_empty() {
            return;
        }
        let namespace = text(volume, "/spec/claimRef/namespace");
        self.claim_of_volume
            .insert(name.into(), (namespace.into(), claim.into()));
        for (secret_namespace, secret) in volume_secrets(volume, namespace) {
            self.volumes_of_secret
                .entry((secret_namespace, secret))
                .or_default()
                .insert(name.into());
        }
    }

    fn needs(&self, node: &str, kind: Kind, namespace: &str, name: &str) -> bool {
        let target = (kind, Box::from(namespace), Box::from(name));
        if self.needed.get(&target).is_some_and(|it| it.contains_key(node)) {
            return true;
        }
        match kind {
            Kind::Volume => self
                .claim_of_volume
                .get(name)
                .is_some_and(|(namespace, claim)| self.needs(node, Kind::Claim, namespace, claim)),
            Kind::Secret => {
                let volumes = self.volumes_of_secret.get(&(target.1, target.2));
                volumes.is_some_and(|it| it.iter().any(|volume| self.needs(node, Kind::Volume, "", volume)))
            }
            _ => false,
        }
    }
}

impl Holder {
    fn read(prefix: &str, namespace: &str, name: &str, object: &Value) -> Option<Self> {
        let (node, targets) = match prefix {
            "core/pods" => {
                if annotation(object, MIRROR_POD).is_some() {
                    return None;
                }
                let mut targets = pod_targets(object, namespace, name);
                targets.insert((Kind::Pod, namespace.into(), name.into()));
                (text(object, "/spec/nodeName"), targets)
            }
            "storage.k8s.io/volumeattachments" => {
                let target = (Kind::Attachment, "".into(), name.into());
                (text(object, "/spec/nodeName"), BTreeSet::from([target]))
            }
            _ => {
                let target = (Kind::Slice, "".into(), name.into());
                (text(object, "/spec/nodeName"), BTreeSet::from([target]))
            }
        };
        (!node.is_empty()).then(|| Self {
            node: node.into(),
            targets,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{authz::FieldRequirement, objects::fake::Map};
    use serde_json::json;

    fn node(name: &str) -> User {
        User::authenticated(format!("system:node:{name}"), [names::NODES])
    }

    fn world() -> Map {
        let mut map = Map::default();
        map.put(
            "core/pods",
            json!({"metadata": {"namespace": "ns", "name": "p"}, "spec": {
                "nodeName": "a", "serviceAccountName": "sa", "imagePullSecrets": [{"name": "pull"}],
                "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "env"}}}],
                    "envFrom": [{"configMapRef": {"name": "conf"}}]}],
                "initContainers": [{"envFrom": [{"secretRef": {"name": "init"}}]}],
                "volumes": [{"name": "v", "secret": {"secretName": "vol"}}, {"name": "c",
                    "persistentVolumeClaim": {"claimName": "claim"}}, {"name": "e", "ephemeral": {}},
                    {"name": "q", "projected": {"sources": [{"secret": {"name": "projected"}}]}}],
            }}),
        );
        map.put(
            "core/pods",
            json!({"metadata": {"namespace": "ns", "name": "mirror",
            "annotations": {MIRROR_POD: "x"}}, "spec": {"nodeName": "b",
            "volumes": [{"name": "v", "secret": {"secretName": "vol"}}]}}),
        );
        map.put(
            "core/persistentvolumes",
            json!({"metadata": {"name": "pv"}, "spec": {
            "claimRef": {"namespace": "ns", "name": "claim"},
            "csi": {"nodePublishSecretRef": {"namespace": "sys", "name": "driver"}}}}),
        );
        map
    }

    #[test]
    fn a_node_reads_what_its_pods_need_and_nothing_else() {
        let authorizer = NodeAuthorizer::load(&world());
        let (a, b) = (node("a"), node("b"));
        for (resource, namespace, name, needed) in [
            ("secrets", "ns", "pull", true),
            ("secrets", "ns", "env", true),
            ("secrets", "ns", "init", true),
            ("secrets", "ns", "vol", true),
            ("secrets", "ns", "projected", true),
            ("secrets", "sys", "driver", true),
            ("secrets", "ns", "other", false),
            ("secrets", "other", "vol", false),
            ("configmaps", "ns", "conf", true),
            ("configmaps", "ns", "vol", false),
            ("persistentvolumeclaims", "ns", "claim", true),
            ("persistentvolumeclaims", "ns", "p-e", true),
            ("persistentvolumes", "", "pv", true),
            ("persistentvolumes", "", "other", false),
            ("pods", "ns", "p", true),
            ("nodes", "", "b", false),
        ] {
            for (user, expected) in [(&a, needed), (&b, resource == "nodes" && name == "b")] {
                let request = Attributes {
                    namespace,
                    name,
                    ..Attributes::resource(user, "get", "", resource)
                };
                assert_eq!(
                    authorizer.authorize(&request).allowed(),
                    expected,
                    "{} {resource} {name}",
                    user.name
                );
            }
            let write = Attributes {
                namespace,
                name,
                ..Attributes::resource(&a, "update", "", resource)
            };
            assert_eq!(
                authorizer.authorize(&write).allowed(),
                resource == "nodes",
                "{resource}"
            );
        }
        let token = |user| Attributes {
            namespace: "ns",
            name: "sa",
            subresource: "token",
            ..Attributes::resource(user, "create", "", "serviceaccounts")
        };
        assert!(authorizer.authorize(&token(&a)).allowed());
        assert!(!authorizer.authorize(&token(&b)).allowed());
    }

    #[test]
    fn lists_are_held_to_the_node() {
        let authorizer = NodeAuthorizer::load(&world());
        let a = node("a");
        let own = [FieldRequirement {
            field: "spec.nodeName".into(),
            equals: true,
            value: "a".into(),
        }];
        let others = [FieldRequirement {
            field: "spec.nodeName".into(),
            equals: true,
            value: "b".into(),
        }];
        let name = [FieldRequirement {
            field: "metadata.name".into(),
            equals: true,
            value: "a".into(),
        }];
        for (group, resource, verb, fields, allowed) in [
            ("", "pods", "list", &own[..], true),
            ("", "pods", "watch", &others[..], false),
            ("", "pods", "list", &[][..], false),
            ("", "nodes", "list", &name[..], true),
            ("", "nodes", "list", &[][..], false),
            ("", "secrets", "list", &[][..], false),
            ("", "services", "list", &[][..], true),
            ("", "services", "delete", &[][..], false),
            ("coordination.k8s.io", "leases", "list", &[][..], false),
            ("node.k8s.io", "runtimeclasses", "watch", &[][..], true),
        ] {
            let request = Attributes {
                fields,
                ..Attributes::resource(&a, verb, group, resource)
            };
            assert_eq!(
                authorizer.authorize(&request).allowed(),
                allowed,
                "{verb} {resource} {fields:?}"
            );
        }
    }

    #[test]
    fn what_a_pod_needed_is_gone_with_it() {
        let authorizer = NodeAuthorizer::load(&world());
        let a = node("a");
        let secret = Attributes {
            namespace: "ns",
            name: "vol",
            ..Attributes::resource(&a, "get", "", "secrets")
        };
        assert!(authorizer.authorize(&secret).allowed());
        let second = json!({"spec": {"nodeName": "a", "volumes": [{"secret": {"secretName": "vol"}}]}});
        authorizer.apply("core/pods", "ns", "second", Some(&second));
        authorizer.apply("core/pods", "ns", "p", None);
        assert!(authorizer.authorize(&secret).allowed());
        authorizer.apply("core/pods", "ns", "second", None);
        assert!(!authorizer.authorize(&secret).allowed());
        let driver = Attributes {
            namespace: "sys",
            name: "driver",
            ..Attributes::resource(&a, "get", "", "secrets")
        };
        assert!(!authorizer.authorize(&driver).allowed());
        assert!(authorizer.graph.read().unwrap().needed.is_empty());
    }

    #[test]
    fn only_nodes_are_nodes() {
        assert_eq!(node_of(&node("a")), Some("a"));
        assert_eq!(node_of(&User::authenticated("system:node:a", ["x"])), None);
        assert_eq!(node_of(&User::authenticated("bob", [names::NODES])), None);
        let nameless = node("");
        let authorizer = NodeAuthorizer::load(&Map::default());
        let request = Attributes::resource(&nameless, "list", "", "services");
        assert!(!authorizer.authorize(&request).allowed());
    }
}
