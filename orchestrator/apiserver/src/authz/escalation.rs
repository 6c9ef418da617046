//! Nobody makes a role, or binds one, that grants more than they have, unless the verb `escalate` or `bind` says so.

use super::{
    Attributes, Authorizer, RulesOf,
    cover::{compact, quoted, show, uncovered},
    rbac::{GROUP, Rbac, RoleRef},
    rule::PolicyRule,
};
use crate::{
    authn::{User, names},
    objects::text,
    status::Status,
};
use serde_json::Value;
use std::collections::BTreeSet;

/// Checks a write of one of the four RBAC resources: `old` is `None` for a create. Other resources pass.
///
/// # Errors
/// 403 naming the rights that are missing; 404 for a binding to a role that does not exist.
pub fn check(
    authorizer: &dyn Authorizer,
    rbac: &Rbac,
    user: &User,
    resource: &str,
    object: &Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    if user.in_group(names::MASTERS) || old.is_some_and(|old| only_collected(object, old)) {
        return Ok(());
    }
    match resource {
        "roles" | "clusterroles" => role(authorizer, rbac, user, resource, object, old),
        "rolebindings" | "clusterrolebindings" => binding(authorizer, rbac, user, resource, object),
        _ => Ok(()),
    }
}

fn role(
    authorizer: &dyn Authorizer,
    rbac: &Rbac,
    user: &User,
    resource: &str,
    object: &Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    let (namespace, name) = (text(object, "/metadata/namespace"), text(object, "/metadata/name"));
    let request = Attributes {
        namespace,
        name,
        ..Attributes::resource(user, "escalate", GROUP, resource)
    };
    if authorizer.authorize(&request).allowed() {
        return Ok(());
    }
    let aggregates = |role: &Value| role.pointer("/aggregationRule").is_some_and(|it| !it.is_null());
    let refuse = |why| Err(Status::forbidden((GROUP, resource), name, why));
    if resource == "clusterroles" && (aggregates(object) || old.is_some_and(aggregates)) {
        // It may come to hold anything that others label for it, so only who has everything may say so.
        if let Err(why) = confirm(authorizer, rbac, user, namespace, &everything()) {
            let why = format!("must have cluster-admin privileges to use aggregationRule: {why}");
            return refuse(why);
        }
    }
    confirm(authorizer, rbac, user, namespace, &PolicyRule::read_all(object)).or_else(refuse)
}

fn binding(
    authorizer: &dyn Authorizer,
    rbac: &Rbac,
    user: &User,
    resource: &str,
    object: &Value,
) -> Result<(), Status> {
    let (namespace, name) = (text(object, "/metadata/namespace"), text(object, "/metadata/name"));
    // What refers to nothing grants nothing; validation says what is wrong with it.
    let Some(role) = RoleRef::read(object) else {
        return Ok(());
    };
    let bind = Attributes {
        namespace,
        name: &role.name,
        ..Attributes::resource(user, "bind", GROUP, role.resource())
    };
    if authorizer.authorize(&bind).allowed() {
        return Ok(());
    }
    let Some(rules) = rbac.role(&role, namespace) else {
        return Err(Status::not_found((GROUP, role.resource()), &role.name));
    };
    confirm(authorizer, rbac, user, namespace, &rules).map_err(|why| Status::forbidden((GROUP, resource), name, why))
}

/// Whether the user has all these rights in the namespace; the sentence that says which are missing.
fn confirm(
    authorizer: &dyn Authorizer,
    rbac: &Rbac,
    user: &User,
    namespace: &str,
    wanted: &[PolicyRule],
) -> Result<(), String> {
    let (mut owned, missing_roles) = rbac.rules(user, namespace);
    // Rights from other authorizers count as well, as far as they can be listed.
    let RulesOf { resources, paths, .. } = authorizer.rules_of(user, namespace);
    owned.extend(resources.into_iter().map(|it| PolicyRule {
        groups: it.groups,
        resources: it.resources,
        names: it.names,
        verbs: it.verbs,
        paths: Vec::new(),
    }));
    owned.extend(paths.into_iter().map(|it| PolicyRule {
        verbs: it.verbs,
        paths: it.paths,
        ..PolicyRule::default()
    }));
    let missing = uncovered(&owned, wanted);
    if missing.is_empty() {
        return Ok(());
    }
    let lines: BTreeSet<String> = compact(&missing).iter().map(show).collect();
    let lines: Vec<String> = lines.into_iter().collect();
    let mut why = format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        quoted(&user.groups),
        lines.join("\n")
    );
    if !missing_roles.is_empty() {
        why.push_str(&format!("; resolution errors: [{}]", missing_roles.join(", ")));
    }
    Err(why)
}

fn everything() -> [PolicyRule; 2] {
    let star = || vec!["*".to_owned()];
    [
        PolicyRule {
            groups: star(),
            resources: star(),
            verbs: star(),
            ..PolicyRule::default()
        },
        PolicyRule {
            paths: star(),
            verbs: star(),
            ..PolicyRule::default()
        },
    ]
}

/// Whether an update changes only owners and finalizers: the garbage collector must be able to without having the rights.
fn only_collected(object: &Value, old: &Value) -> bool {
    let bare = |object: &Value| {
        let mut object = object.clone();
        if let Some(metadata) = object.pointer_mut("/metadata").and_then(Value::as_object_mut) {
            for field in [
                "ownerReferences",
                "finalizers",
                "managedFields",
                "resourceVersion",
                "generation",
            ] {
                metadata.remove(field);
            }
        }
        object
    };
    bare(object) == bare(old)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        authz::{
            Chain,
            rbac::{CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES},
        },
        objects::fake::Map,
    };
    use serde_json::json;
    use std::sync::Arc;

    fn world() -> (Arc<Rbac>, Chain) {
        let mut map = Map::default();
        for (name, rules) in [
            (
                "reader",
                json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]),
            ),
            (
                "writer",
                json!([{"verbs": ["*"], "apiGroups": [""], "resources": ["pods"]}]),
            ),
            (
                "binder",
                json!([{"verbs": ["bind"], "apiGroups": [GROUP], "resources": ["clusterroles"],
                "resourceNames": ["writer"]}]),
            ),
            (
                "escalator",
                json!([{"verbs": ["escalate"], "apiGroups": [GROUP], "resources": ["clusterroles"]}]),
            ),
        ] {
            map.put(CLUSTER_ROLES, json!({"metadata": {"name": name}, "rules": rules}));
        }
        for (user, role) in [
            ("ann", "reader"),
            ("bea", "binder"),
            ("eve", "escalator"),
            ("may", "gone"),
        ] {
            map.put(
                CLUSTER_ROLE_BINDINGS,
                json!({
                    "metadata": {"name": user}, "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": role},
                    "subjects": [{"kind": "User", "name": user}],
                }),
            );
        }
        let rbac = Arc::new(Rbac::load(&map));
        let chain = Chain(vec![Arc::clone(&rbac) as Arc<dyn Authorizer>]);
        (rbac, chain)
    }

    fn new_role(verb: &str) -> Value {
        json!({"metadata": {"name": "new"}, "rules": [{"verbs": [verb], "apiGroups": [""], "resources": ["pods"]}]})
    }

    fn new_binding(role: &str) -> Value {
        json!({"metadata": {"name": "new"}, "roleRef": {"kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "User", "name": "me"}]})
    }

    #[test]
    fn nobody_grants_what_they_do_not_have() {
        let (rbac, chain) = world();
        for (user, resource, object, code) in [
            ("ann", "clusterroles", new_role("get"), None),
            ("ann", "clusterroles", new_role("list"), Some(403)),
            ("ann", "clusterrolebindings", new_binding("reader"), None),
            ("ann", "clusterrolebindings", new_binding("writer"), Some(403)),
            ("ann", "clusterrolebindings", new_binding("gone"), Some(404)),
            ("bea", "clusterrolebindings", new_binding("writer"), None),
            ("bea", "clusterrolebindings", new_binding("reader"), Some(403)),
            ("bea", "clusterroles", new_role("get"), Some(403)),
            ("eve", "clusterroles", new_role("list"), None),
            ("eve", "clusterrolebindings", new_binding("reader"), Some(403)),
            ("ann", "configmaps", new_role("list"), None),
        ] {
            let user = User::authenticated(user, ["dev"]);
            let result = check(&chain, &rbac, &user, resource, &object, None);
            assert_eq!(
                result.as_ref().err().map(|it| it.code),
                code,
                "{} {resource} {object}",
                user.name
            );
        }
    }

    #[test]
    fn the_refusal_names_what_is_missing() {
        let (rbac, chain) = world();
        let user = User::authenticated("may", ["dev"]);
        let refused = check(&chain, &rbac, &user, "clusterroles", &new_role("list"), None).unwrap_err();
        assert_eq!(
            refused.message,
            "clusterroles.rbac.authorization.k8s.io \"new\" is forbidden: user \"may\" (groups=[\"dev\" \
             \"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n\
             {APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"list\"]}; resolution errors: \
             [clusterrole.rbac.authorization.k8s.io \"gone\" not found]"
        );
    }

    #[test]
    fn masters_may_and_so_may_the_garbage_collector() {
        let (rbac, chain) = world();
        let root = User::authenticated("root", [names::MASTERS]);
        assert!(check(&chain, &rbac, &root, "clusterroles", &new_role("*"), None).is_ok());
        let nobody = User::authenticated("gc", ["dev"]);
        let old = new_role("*");
        let mut new = old.clone();
        new["metadata"]["ownerReferences"] = json!([{"name": "x"}]);
        assert!(check(&chain, &rbac, &nobody, "clusterroles", &new, Some(&old)).is_ok());
        new["metadata"]["labels"] = json!({"rbac.authorization.k8s.io/aggregate-to-admin": "true"});
        assert!(check(&chain, &rbac, &nobody, "clusterroles", &new, Some(&old)).is_err());
    }

    #[test]
    fn only_who_has_everything_aggregates() {
        let (rbac, chain) = world();
        let ann = User::authenticated("ann", ["dev"]);
        let role = json!({"metadata": {"name": "new"}, "aggregationRule": {"clusterRoleSelectors": []}, "rules": []});
        let refused = check(&chain, &rbac, &ann, "clusterroles", &role, None).unwrap_err();
        assert!(
            refused
                .message
                .contains("must have cluster-admin privileges to use aggregationRule"),
            "{refused}"
        );
        // Taking the rule away again would keep what it gathered.
        let plain = new_role("get");
        assert!(check(&chain, &rbac, &ann, "clusterroles", &plain, Some(&role)).is_err());
    }
}
