//! The `ClusterRoles` and bindings that every cluster has, from `defaults.txt`, and how they are kept.

use super::{
    aggregate,
    cover::uncovered,
    rbac::{CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, GROUP},
    rule::PolicyRule,
};
use crate::objects::{Objects, annotation, items, text};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::LazyLock};

/// Says that the server may bring the object up to date; `false` leaves it alone.
pub const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// The default `ClusterRoles` and `ClusterRoleBindings` by name; aggregated roles with the rules that they gather.
#[derive(Debug)]
pub struct Defaults {
    /// `ClusterRoles`.
    pub roles: BTreeMap<String, Value>,
    /// `ClusterRoleBindings`.
    pub bindings: BTreeMap<String, Value>,
}

/// One write that brings the stored roles up to date.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    /// [`CLUSTER_ROLES`] or [`CLUSTER_ROLE_BINDINGS`].
    pub prefix: &'static str,
    /// Name of the object.
    pub name: String,
    /// The whole object; `None`: delete it, for it is written anew by the next write. A binding cannot change its role.
    pub object: Option<Value>,
}

/// The defaults of this version.
pub fn defaults() -> &'static Defaults {
    static DEFAULTS: LazyLock<Defaults> = LazyLock::new(|| read(include_str!("defaults.txt")));
    &DEFAULTS
}

/// The rules of the default role `system:node`, which the node authorizer narrows.
pub fn node_rules() -> Vec<PolicyRule> {
    defaults()
        .roles
        .get("system:node")
        .map(PolicyRule::read_all)
        .unwrap_or_default()
}

/// What to write so that the stored objects grant at least the defaults. Adds what is missing, takes nothing away that an
/// administrator added, and leaves objects alone whose annotation [`AUTO_UPDATE`] is `false`.
pub fn reconcile(objects: &dyn Objects) -> Vec<Write> {
    let mut writes = Vec::new();
    for (name, role) in &defaults().roles {
        let stored = objects.get(CLUSTER_ROLES, "", name);
        let object = match stored.as_deref() {
            None => Some(role.clone()),
            Some(stored) => updated_role(stored, role),
        };
        writes.extend(object.map(|object| Write {
            prefix: CLUSTER_ROLES,
            name: name.clone(),
            object: Some(object),
        }));
    }
    for (name, binding) in &defaults().bindings {
        let write = |object| Write {
            prefix: CLUSTER_ROLE_BINDINGS,
            name: name.clone(),
            object,
        };
        match objects.get(CLUSTER_ROLE_BINDINGS, "", name).as_deref() {
            None => writes.push(write(Some(binding.clone()))),
            Some(stored) if annotation(stored, AUTO_UPDATE) == Some("false") => {}
            Some(stored) if role_ref(stored) != role_ref(binding) => {
                writes.push(write(None));
                writes.push(write(Some(binding.clone())));
            }
            Some(stored) => writes.extend(updated_binding(stored, binding).map(|it| write(Some(it)))),
        }
    }
    writes
}

fn role_ref(binding: &Value) -> (&str, &str) {
    (text(binding, "/roleRef/kind"), text(binding, "/roleRef/name"))
}

fn updated_role(stored: &Value, wanted: &Value) -> Option<Value> {
    if annotation(stored, AUTO_UPDATE) == Some("false") {
        return None;
    }
    let mut object = with_metadata(stored, wanted);
    if aggregate::is_aggregated(wanted) {
        // The rules are what the aggregation gathers, from roles that others may have added.
        let mut selectors = items(stored, "/aggregationRule/clusterRoleSelectors").to_vec();
        for selector in items(wanted, "/aggregationRule/clusterRoleSelectors") {
            if !selectors.contains(selector) {
                selectors.push(selector.clone());
            }
        }
        object["aggregationRule"] = json!({"clusterRoleSelectors": selectors});
    } else {
        let rules = PolicyRule::read_all(stored);
        let missing = uncovered(&rules, &PolicyRule::read_all(wanted));
        if !missing.is_empty() {
            let rules = items(stored, "/rules").iter().cloned();
            let missing = super::cover::compact(&missing);
            object["rules"] = rules.chain(missing.iter().map(PolicyRule::write)).collect();
        }
    }
    (object != *stored).then_some(object)
}

fn updated_binding(stored: &Value, wanted: &Value) -> Option<Value> {
    let mut object = with_metadata(stored, wanted);
    let mut subjects = items(stored, "/subjects").to_vec();
    let same = |a: &Value, b: &Value| {
        ["/kind", "/namespace", "/name"]
            .iter()
            .all(|it| text(a, it) == text(b, it))
    };
    for subject in items(wanted, "/subjects") {
        if !subjects.iter().any(|it| same(it, subject)) {
            subjects.push(subject.clone());
        }
    }
    if subjects.len() != items(stored, "/subjects").len() {
        object["subjects"] = Value::Array(subjects);
    }
    (object != *stored).then_some(object)
}

/// The stored object with the labels and annotations of the default; those that are there keep their values.
fn with_metadata(stored: &Value, wanted: &Value) -> Value {
    let mut object = stored.clone();
    for map in ["labels", "annotations"] {
        for (key, value) in crate::objects::pairs(wanted, &format!("/metadata/{map}")) {
            let present = stored
                .pointer(&format!("/metadata/{map}"))
                .and_then(|it| it.get(key))
                .is_some();
            if !present {
                object["metadata"][map][key] = json!(value);
            }
        }
    }
    object
}

fn read(text: &str) -> Defaults {
    let mut roles: BTreeMap<String, Value> = BTreeMap::new();
    let mut bindings = BTreeMap::new();
    let mut current = String::new();
    let lines = text.lines().filter(|it| !it.trim().is_empty() && !it.starts_with('#'));
    for line in lines {
        if line.starts_with(' ') {
            let rule = read_rule(line.trim()).write();
            if let Some(rules) = roles.get_mut(&current).and_then(|it| it["rules"].as_array_mut()) {
                rules.push(rule);
            }
            continue;
        }
        let mut words = line.split_whitespace();
        let (what, name) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        match what {
            "role" => {
                current = name.to_owned();
                roles.insert(current.clone(), new_role(name, words));
            }
            "controller" => {
                current = format!("system:controller:{name}");
                roles.insert(current.clone(), new_role(&current, std::iter::empty()));
                let account = format!("kube-system/{name}");
                bindings.insert(
                    current.clone(),
                    new_binding(&current, "sa", std::iter::once(account.as_str())),
                );
            }
            _ => {
                let kind = words.next().unwrap_or_default();
                bindings.insert(name.to_owned(), new_binding(name, kind, words));
            }
        }
    }
    let gathered = aggregate::updates(roles.values());
    for (name, rules) in gathered {
        if let Some(role) = roles.get_mut(&name) {
            role["rules"] = rules.iter().map(PolicyRule::write).collect();
        }
    }
    Defaults { roles, bindings }
}

fn metadata(name: &str) -> Value {
    json!({
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {AUTO_UPDATE: "true"},
    })
}

fn new_role<'a>(name: &str, words: impl Iterator<Item = &'a str>) -> Value {
    let mut role = json!({
        "apiVersion": format!("{GROUP}/v1"), "kind": "ClusterRole", "metadata": metadata(name), "rules": [],
    });
    for word in words {
        match word.split_once('=') {
            Some(("aggregates", to)) => {
                let labels = json!({aggregation_label(to): "true"});
                role["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": labels}]});
            }
            Some((_, to)) => role["metadata"]["labels"][aggregation_label(to)] = json!("true"),
            None => {}
        }
    }
    role
}

fn aggregation_label(to: &str) -> String {
    format!("{GROUP}/aggregate-to-{to}")
}

fn new_binding<'a>(role: &str, kind: &str, subjects: impl Iterator<Item = &'a str>) -> Value {
    let subject = |name: &str| match kind {
        "sa" => {
            let (namespace, name) = name.split_once('/').unwrap_or_default();
            json!({"kind": "ServiceAccount", "namespace": namespace, "name": name})
        }
        "user" => json!({"kind": "User", "apiGroup": GROUP, "name": name}),
        _ => json!({"kind": "Group", "apiGroup": GROUP, "name": name}),
    };
    let mut binding = json!({
        "apiVersion": format!("{GROUP}/v1"), "kind": "ClusterRoleBinding", "metadata": metadata(role),
        "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": role},
    });
    let subjects: Vec<Value> = subjects.map(subject).collect();
    if !subjects.is_empty() {
        binding["subjects"] = Value::Array(subjects);
    }
    binding
}

fn read_rule(line: &str) -> PolicyRule {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    if line == "events" {
        return PolicyRule {
            groups: vec![String::new(), "events.k8s.io".to_owned()],
            resources: words("events"),
            verbs: words("create patch update"),
            ..PolicyRule::default()
        };
    }
    let mut columns = line.split('|').map(str::trim);
    let mut column = || columns.next().unwrap_or_default();
    let (verbs, groups, things, named) = (column(), column(), column(), column());
    let mut verbs: Vec<String> = verbs.split_whitespace().flat_map(|it| words(expand(it))).collect();
    verbs.sort();
    if groups == "url" {
        return PolicyRule {
            paths: words(things),
            verbs,
            ..PolicyRule::default()
        };
    }
    let groups = words(groups)
        .into_iter()
        .map(|it| if it == "core" { String::new() } else { it });
    PolicyRule {
        groups: groups.collect(),
        resources: words(things),
        names: words(named),
        verbs,
        paths: Vec::new(),
    }
}

fn expand(verb: &str) -> &str {
    match verb {
        "R" => "get list watch",
        "W" => "create delete deletecollection patch update",
        "U" => "get list patch update watch",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        authn::{User, names},
        authz::{Attributes, Authorizer, rbac::Rbac},
        objects::fake::Map,
    };

    fn apply(map: &mut Map, writes: Vec<Write>) {
        for Write { prefix, name, object } in writes {
            match object {
                Some(object) => {
                    map.put(prefix, object);
                }
                None => map.remove(prefix, "", &name),
            }
        }
    }

    #[test]
    fn every_line_of_the_table_is_understood() {
        for (name, role) in &defaults().roles {
            for rule in PolicyRule::read_all(role) {
                assert!(!rule.verbs.is_empty(), "{name}");
                let verbs = rule
                    .verbs
                    .iter()
                    .all(|it| it == "*" || it.chars().all(|it| it.is_ascii_lowercase()));
                assert!(verbs, "{name} {:?}", rule.verbs);
                assert!(
                    rule.paths.iter().all(|it| it == "*" || it.starts_with('/')),
                    "{name} {:?}",
                    rule.paths
                );
                assert_eq!(
                    rule.paths.is_empty(),
                    !rule.resources.is_empty() && !rule.groups.is_empty(),
                    "{name}"
                );
            }
        }
        for (name, binding) in &defaults().bindings {
            assert!(defaults().roles.contains_key(text(binding, "/roleRef/name")), "{name}");
        }
    }

    #[test]
    fn the_usual_subjects_may_do_the_usual_things() {
        let mut map = Map::default();
        let writes = reconcile(&map);
        apply(&mut map, writes);
        map.put(
            "rbac.authorization.k8s.io/rolebindings",
            json!({
                "metadata": {"namespace": "ns", "name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "view"},
                "subjects": [{"kind": "User", "name": "vera"}],
            }),
        );
        map.put(
            "rbac.authorization.k8s.io/rolebindings",
            json!({
                "metadata": {"namespace": "ns", "name": "c"}, "roleRef": {"kind": "ClusterRole", "name": "admin"},
                "subjects": [{"kind": "User", "name": "adam"}],
            }),
        );
        let rbac = Rbac::load(&map);
        let (vera, adam) = (User::authenticated("vera", ["x"]), User::authenticated("adam", ["x"]));
        let deployer = User::service_account("kube-system", "deployment-controller", "");
        for (user, verb, group, resource, namespace, allowed) in [
            (&vera, "list", "", "pods", "ns", true),
            (&vera, "list", "", "pods", "other", false),
            (&vera, "get", "", "secrets", "ns", false),
            (&vera, "create", "", "pods", "ns", false),
            (&adam, "create", "apps", "deployments", "ns", true),
            (&adam, "get", "", "secrets", "ns", true),
            (&adam, "list", "", "pods", "ns", true),
            (&adam, "create", GROUP, "rolebindings", "ns", true),
            (&adam, "update", "", "resourcequotas", "ns", false),
            (
                &adam,
                "create",
                "authorization.k8s.io",
                "selfsubjectaccessreviews",
                "",
                true,
            ),
            (&deployer, "create", "apps", "replicasets", "any", true),
            (&deployer, "create", "", "secrets", "any", false),
        ] {
            let request = Attributes {
                namespace,
                ..Attributes::resource(user, verb, group, resource)
            };
            assert_eq!(rbac.authorize(&request).allowed(), allowed, "{request:?}");
        }
        let anonymous = User::anonymous();
        for (user, path, allowed) in [
            (&anonymous, "/healthz", true),
            (&anonymous, "/version", true),
            (&anonymous, "/api", false),
            (&anonymous, "/metrics", false),
            (&vera, "/api/v1", true),
            (&vera, "/openapi/v3", true),
            (&deployer, "/openid/v1/jwks", true),
        ] {
            let request = Attributes::path(user, "get", path);
            assert_eq!(rbac.authorize(&request).allowed(), allowed, "{} {path}", user.name);
        }
    }

    #[test]
    fn what_is_up_to_date_is_left_alone() {
        let mut map = Map::default();
        let writes = reconcile(&map);
        apply(&mut map, writes);
        assert_eq!(reconcile(&map), []);
    }

    #[test]
    fn what_was_taken_away_comes_back_and_additions_stay() {
        let mut map = Map::default();
        let writes = reconcile(&map);
        apply(&mut map, writes);
        let change = |name: &str, change: &dyn Fn(&mut Value)| {
            let mut object = Value::clone(&map.get(CLUSTER_ROLES, "", name).unwrap());
            change(&mut object);
            object
        };
        let added = json!({"verbs": ["get"], "apiGroups": ["mine"], "resources": ["things"]});
        let discovery = change("system:discovery", &|it| it["rules"] = json!([added]));
        let dns = change("system:kube-dns", &|it| {
            it["rules"] = json!([]);
            it["metadata"]["annotations"][AUTO_UPDATE] = json!("false");
        });
        map.put(CLUSTER_ROLES, discovery);
        map.put(CLUSTER_ROLES, dns);
        let mut binding = Value::clone(&map.get(CLUSTER_ROLE_BINDINGS, "", "cluster-admin").unwrap());
        binding["roleRef"]["name"] = json!("view");
        map.put(CLUSTER_ROLE_BINDINGS, binding);
        let writes = reconcile(&map);
        let names: Vec<&str> = writes.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["system:discovery", "cluster-admin", "cluster-admin"]);
        let rules = PolicyRule::read_all(writes[0].object.as_ref().unwrap());
        assert_eq!(rules[0], PolicyRule::read(&added));
        assert!(uncovered(&rules, &PolicyRule::read_all(&defaults().roles["system:discovery"])).is_empty());
        assert_eq!(writes[1].object, None);
        apply(&mut map, writes);
        assert_eq!(reconcile(&map), []);
        let masters = map.get(CLUSTER_ROLE_BINDINGS, "", "cluster-admin").unwrap();
        assert_eq!(text(&masters, "/subjects/0/name"), names::MASTERS);
    }
}
