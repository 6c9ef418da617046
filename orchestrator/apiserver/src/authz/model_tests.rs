//! The index against a model that is too simple to be wrong: every rule of every binding, read from the objects each time.

use super::{
    Attributes, Authorizer, Chain,
    rbac::{CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, GROUP, ROLE_BINDINGS, ROLES, Rbac},
};
use crate::{
    authn::User,
    objects::{Objects as _, fake::Map, items, text, texts},
};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::Arc;

const NAMESPACES: [&str; 2] = ["one", "two"];
const NAMES: [&str; 3] = ["a", "b", "c"];
const VERBS: [&str; 3] = ["get", "list", "delete"];
const GROUPS: [&str; 2] = ["", "apps"];
const RESOURCES: [&str; 2] = ["pods", "things"];
const SUBRESOURCES: [&str; 3] = ["", "scale", "log"];
const PATHS: [&str; 4] = ["/healthz", "/healthz/etcd", "/api", "/"];

fn users() -> Vec<User> {
    let mut all = vec![
        User::authenticated("ann", ["dev"]),
        User::authenticated("bob", ["dev", "ops"]),
        User::anonymous(),
    ];
    all.extend(NAMESPACES.map(|namespace| User::service_account(namespace, "a", "")));
    all
}

/// Written without a thought for speed, and without a word of the code that it is compared with.
fn model(world: &Map, request: &Attributes<'_>) -> bool {
    let star = |list: &Value, pointer: &str, wanted: &str| texts(list, pointer).any(|it| it == "*" || it == wanted);
    let rule_allows = |rule: &Value| {
        if !star(rule, "/verbs", request.verb) {
            return false;
        }
        if request.resource.is_empty() {
            return texts(rule, "/nonResourceURLs").any(|it| match it.strip_suffix('*') {
                Some(start) => request.path.starts_with(start),
                None => request.path == it,
            });
        }
        let full = match request.subresource {
            "" => request.resource.to_owned(),
            sub => format!("{}/{sub}", request.resource),
        };
        let any = format!("*/{}", request.subresource);
        let resource = star(rule, "/resources", &full)
            || (!request.subresource.is_empty() && texts(rule, "/resources").any(|it| it == any));
        let named =
            items(rule, "/resourceNames").is_empty() || texts(rule, "/resourceNames").any(|it| it == request.name);
        star(rule, "/apiGroups", request.group) && resource && named
    };
    let subject_is = |subject: &Value, binding_namespace: &str| {
        let name = text(subject, "/name");
        match text(subject, "/kind") {
            "User" => name == request.user.name,
            "Group" => request.user.groups.iter().any(|it| it == name),
            "ServiceAccount" => {
                let own = text(subject, "/namespace");
                let namespace = if own.is_empty() { binding_namespace } else { own };
                !namespace.is_empty() && request.user.name == format!("system:serviceaccount:{namespace}:{name}")
            }
            _ => false,
        }
    };
    for prefix in [CLUSTER_ROLE_BINDINGS, ROLE_BINDINGS] {
        for binding in world.list(prefix, None) {
            let namespace = text(&binding, "/metadata/namespace");
            let counts =
                prefix == CLUSTER_ROLE_BINDINGS || (!request.resource.is_empty() && namespace == request.namespace);
            if !counts || !items(&binding, "/subjects").iter().any(|it| subject_is(it, namespace)) {
                continue;
            }
            let name = text(&binding, "/roleRef/name");
            let role = match text(&binding, "/roleRef/kind") {
                "ClusterRole" => world.get(CLUSTER_ROLES, "", name),
                _ => world.get(ROLES, namespace, name),
            };
            if role.is_some_and(|role| items(&role, "/rules").iter().any(rule_allows)) {
                return true;
            }
        }
    }
    false
}

fn some_of(all: &'static [&'static str]) -> impl Strategy<Value = Vec<&'static str>> {
    proptest::sample::subsequence(all, 0..=all.len().min(2))
}

fn rule() -> impl Strategy<Value = Value> {
    let resources = &["*", "pods", "things", "pods/log", "*/scale", "things/scale"];
    let about_resources = (
        some_of(&["*", "get", "list", "delete"]),
        some_of(&["*", "", "apps"]),
        some_of(resources),
        some_of(&["a", "b"]),
    )
        .prop_map(|(verbs, groups, resources, names)| {
            json!({"verbs": verbs, "apiGroups": groups, "resources": resources, "resourceNames": names})
        });
    let about_paths = (
        some_of(&["*", "get"]),
        some_of(&["*", "/healthz", "/healthz/*", "/api*"]),
    )
        .prop_map(|(verbs, paths)| json!({"verbs": verbs, "nonResourceURLs": paths}));
    prop_oneof![4 => about_resources, 1 => about_paths]
}

fn subject() -> impl Strategy<Value = Value> {
    prop_oneof![
        proptest::sample::select(&["ann", "bob", "system:anonymous"])
            .prop_map(|it| json!({"kind": "User", "name": it})),
        proptest::sample::select(&["dev", "ops", "system:authenticated", "system:serviceaccounts:one"])
            .prop_map(|it| json!({"kind": "Group", "name": it})),
        proptest::sample::select(&["one", "two", ""])
            .prop_map(|it| json!({"kind": "ServiceAccount", "namespace": it, "name": "a"})),
    ]
}

/// One write or deletion of one of the four kinds.
type Step = (&'static str, &'static str, &'static str, Option<Value>);

fn step() -> impl Strategy<Value = Step> {
    let namespace = proptest::sample::select(&NAMESPACES);
    let name = proptest::sample::select(&NAMES);
    let rules = proptest::collection::vec(rule(), 0..3).prop_map(|rules| json!({"rules": rules}));
    let reference = (
        proptest::sample::select(&["ClusterRole", "Role"]),
        proptest::sample::select(&NAMES),
    );
    let binding = (reference, proptest::collection::vec(subject(), 0..3)).prop_map(|((kind, name), subjects)| {
        json!({"roleRef": {"apiGroup": GROUP, "kind": kind, "name": name}, "subjects": subjects})
    });
    let kind = proptest::sample::select(&[ROLES, CLUSTER_ROLES, ROLE_BINDINGS, CLUSTER_ROLE_BINDINGS]);
    (kind, namespace, name, rules, binding, proptest::bool::weighted(0.15)).prop_map(
        |(prefix, namespace, name, role, binding, gone)| {
            let clustered = prefix == CLUSTER_ROLES || prefix == CLUSTER_ROLE_BINDINGS;
            let namespace = if clustered { "" } else { namespace };
            let mut object = if prefix == ROLES || prefix == CLUSTER_ROLES {
                role
            } else {
                binding
            };
            object["metadata"] = json!({"namespace": namespace, "name": name});
            (prefix, namespace, name, (!gone).then_some(object))
        },
    )
}

/// Compares index and model over the whole matrix; how many requests were allowed.
fn compare(rbac: &Rbac, world: &Map) -> Result<usize, TestCaseError> {
    let mut allowed = 0;
    let mut one = |request: Attributes<'_>| {
        let (got, expected) = (rbac.authorize(&request), model(world, &request));
        prop_assert_eq!(got.allowed(), expected, "{:?} {}", request, got.reason);
        allowed += usize::from(expected);
        Ok(())
    };
    for user in &users() {
        for verb in VERBS {
            for path in PATHS {
                one(Attributes::path(user, verb, path))?;
            }
            for (group, resource) in GROUPS
                .iter()
                .flat_map(|group| RESOURCES.map(|resource| (*group, resource)))
            {
                for (subresource, namespace) in SUBRESOURCES
                    .iter()
                    .flat_map(|sub| ["", "one", "two"].map(|namespace| (*sub, namespace)))
                {
                    for name in ["", "a", "c"] {
                        let request = Attributes::resource(user, verb, group, resource);
                        one(Attributes {
                            subresource,
                            namespace,
                            name,
                            ..request
                        })?;
                    }
                }
            }
        }
    }
    Ok(allowed)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_index_decides_as_the_model_after_any_history(steps in proptest::collection::vec(step(), 1..24)) {
        let mut world = Map::default();
        let rbac = Rbac::default();
        for (prefix, namespace, name, object) in steps {
            rbac.apply(prefix, namespace, name, object.as_ref());
            match object {
                Some(object) => { world.put(prefix, object); }
                None => world.remove(prefix, namespace, name),
            }
        }
        let followed = compare(&rbac, &world)?;
        // What was followed is what would be read anew.
        prop_assert_eq!(compare(&Rbac::load(&world), &world)?, followed);
    }

    #[test]
    fn what_covers_grants_all_that_is_covered(
        owned in proptest::collection::vec(rule(), 0..4),
        wanted in proptest::collection::vec(rule(), 1..3),
    ) {
        let rules = |all: &[Value]| all.iter().map(super::rule::PolicyRule::read).collect::<Vec<_>>();
        let (owned, wanted) = (rules(&owned), rules(&wanted));
        let missing = super::cover::uncovered(&owned, &wanted);
        let user = User::anonymous();
        let grants = |rules: &[super::rule::PolicyRule], request: &Attributes<'_>| rules.iter().any(|it| it.allows(request));
        for verb in VERBS {
            for path in PATHS {
                let request = Attributes::path(&user, verb, path);
                prop_assert!(!missing.is_empty() || !grants(&wanted, &request) || grants(&owned, &request));
            }
            for (group, resource) in GROUPS.iter().flat_map(|group| RESOURCES.map(|resource| (*group, resource))) {
                for (subresource, name) in SUBRESOURCES.iter().flat_map(|sub| ["", "a", "c"].map(|name| (*sub, name))) {
                    let request = Attributes { subresource, name, ..Attributes::resource(&user, verb, group, resource) };
                    let escapes = grants(&wanted, &request) && !grants(&owned, &request);
                    prop_assert!(!escapes || !missing.is_empty(), "{:?} {:?} {:?}", owned, wanted, request);
                }
            }
        }
    }
}

#[test]
fn masters_may_everything_and_the_reason_names_the_binding() {
    let mut world = Map::default();
    world.put(
        CLUSTER_ROLES,
        json!({"metadata": {"name": "r"}, "rules": [
        {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]}),
    );
    for (prefix, namespace, subject) in [
        (CLUSTER_ROLE_BINDINGS, "", json!({"kind": "Group", "name": "ops"})),
        (ROLE_BINDINGS, "one", json!({"kind": "ServiceAccount", "name": "a"})),
    ] {
        world.put(
            prefix,
            json!({"metadata": {"namespace": namespace, "name": "b"}, "subjects": [subject],
            "roleRef": {"kind": "ClusterRole", "name": "r"}}),
        );
    }
    let chain = Chain(vec![Arc::new(Rbac::load(&world))]);
    let root = User::authenticated("root", ["system:masters"]);
    assert!(
        chain
            .authorize(&Attributes::resource(&root, "delete", "x", "y"))
            .allowed()
    );
    for (user, namespace, reason) in [
        (
            User::authenticated("o", ["ops"]),
            "",
            "RBAC: allowed by ClusterRoleBinding \"b\" of ClusterRole \"r\" to Group \"ops\"",
        ),
        (
            User::service_account("one", "a", ""),
            "one",
            "RBAC: allowed by RoleBinding \"b/one\" of ClusterRole \"r\" to ServiceAccount \"a/one\"",
        ),
        (User::service_account("two", "a", ""), "one", ""),
    ] {
        let request = Attributes {
            namespace,
            ..Attributes::resource(&user, "get", "", "pods")
        };
        assert_eq!(chain.authorize(&request).reason, reason);
    }
}
