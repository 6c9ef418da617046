//! `ClusterRoles` that are made of others: `aggregationRule` selects them by label.

use super::rule::PolicyRule;
use crate::objects::{items, pairs, text, texts};
use serde_json::Value;
use std::collections::BTreeMap;

/// The rules that each aggregated `ClusterRole` should have and has not: what a controller has to write.
///
/// Selected roles may be aggregated themselves, so this settles before it returns; a circle of roles settles as well.
pub fn updates<'a>(roles: impl IntoIterator<Item = &'a Value>) -> BTreeMap<String, Vec<PolicyRule>> {
    let roles: BTreeMap<&str, &Value> = roles.into_iter().map(|it| (text(it, "/metadata/name"), it)).collect();
    let mut rules: BTreeMap<&str, Vec<PolicyRule>> = roles
        .iter()
        .map(|(name, role)| (*name, PolicyRule::read_all(role)))
        .collect();
    let aggregated: Vec<&str> = roles
        .iter()
        .filter(|(_, role)| is_aggregated(role))
        .map(|(name, _)| *name)
        .collect();
    // Start from nothing, or what was gathered once would keep itself alive in a circle.
    for name in &aggregated {
        rules.insert(name, Vec::new());
    }
    loop {
        let mut settled = true;
        for name in &aggregated {
            let mut gathered: Vec<PolicyRule> = Vec::new();
            for selector in items(roles[name], "/aggregationRule/clusterRoleSelectors") {
                for (other, role) in &roles {
                    if other == name || !selects(selector, role) {
                        continue;
                    }
                    for rule in &rules[other] {
                        if !gathered.contains(rule) {
                            gathered.push(rule.clone());
                        }
                    }
                }
            }
            if rules[name] != gathered {
                settled = false;
                rules.insert(name, gathered);
            }
        }
        if settled {
            break;
        }
    }
    let changed = aggregated
        .into_iter()
        .filter(|name| rules[name] != PolicyRule::read_all(roles[name]));
    changed.map(|name| (name.to_owned(), rules[name].clone())).collect()
}

/// Whether a `ClusterRole` is made of others.
pub fn is_aggregated(role: &Value) -> bool {
    role.pointer("/aggregationRule").is_some_and(|it| !it.is_null())
}

/// Whether a `LabelSelector` (meta/v1) selects an object. What it cannot understand selects nothing.
pub fn selects(selector: &Value, object: &Value) -> bool {
    let label = |key: &str| crate::objects::label(object, key);
    let equal = pairs(selector, "/matchLabels").all(|(key, value)| label(key) == Some(value));
    let expressions = items(selector, "/matchExpressions").iter().all(|it| {
        let value = label(text(it, "/key"));
        let listed = || value.is_some_and(|value| texts(it, "/values").any(|it| it == value));
        match text(it, "/operator") {
            "In" => listed(),
            "NotIn" => !listed(),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    });
    equal && expressions
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn plain(name: &str, label: &str, verb: &str) -> Value {
        json!({"metadata": {"name": name, "labels": {label: "true"}},
            "rules": [{"verbs": [verb], "apiGroups": [""], "resources": ["pods"]}]})
    }

    fn made_of(name: &str, selected: &str, label: &str) -> Value {
        json!({"metadata": {"name": name, "labels": {label: "true"}},
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {selected: "true"}}]}})
    }

    #[test]
    fn roles_gather_through_roles() {
        let roles = [
            made_of("admin", "to-admin", "x"),
            made_of("edit", "to-edit", "to-admin"),
            plain("one", "to-edit", "get"),
            plain("two", "to-admin", "list"),
            plain("three", "to-nobody", "watch"),
        ];
        let updates = updates(&roles);
        let verbs = |name: &str| -> Vec<&str> {
            updates[name]
                .iter()
                .flat_map(|it| &it.verbs)
                .map(String::as_str)
                .collect()
        };
        assert_eq!((verbs("admin"), verbs("edit")), (vec!["get", "list"], vec!["get"]));
        // What is written is not written again.
        let written = roles.map(|mut role| {
            if let Some(rules) = updates.get(text(&role, "/metadata/name")) {
                role["rules"] = rules.iter().map(PolicyRule::write).collect();
            }
            role
        });
        assert_eq!(super::updates(&written), BTreeMap::new());
    }

    #[test]
    fn a_circle_ends_and_forgets() {
        let mut a = made_of("a", "of-a", "of-b");
        a["rules"] = json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]);
        let roles = [a, made_of("b", "of-b", "of-a")];
        assert_eq!(updates(&roles), BTreeMap::from([("a".to_owned(), Vec::new())]));
    }

    #[test]
    fn selectors_with_expressions() {
        let object = json!({"metadata": {"labels": {"a": "1"}}});
        for (operator, key, values, selected) in [
            ("In", "a", json!(["1", "2"]), true),
            ("In", "b", json!(["1"]), false),
            ("NotIn", "a", json!(["2"]), true),
            ("NotIn", "b", json!(["2"]), true),
            ("Exists", "a", json!(null), true),
            ("DoesNotExist", "a", json!(null), false),
            ("Odd", "a", json!(["1"]), false),
        ] {
            let selector = json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
            assert_eq!(selects(&selector, &object), selected, "{selector}");
        }
    }
}
