//! Does one set of rules grant all that another grants? Nobody may hand out more than they have.

use super::rule::{PolicyRule, is_path};
use std::collections::BTreeMap;

/// What `wanted` grants and `owned` does not, in the smallest pieces: one verb on one resource, name or path each.
///
/// Piece by piece, so that several owned rules together may cover one wanted rule.
pub fn uncovered(owned: &[PolicyRule], wanted: &[PolicyRule]) -> Vec<PolicyRule> {
    let pieces = wanted.iter().flat_map(pieces);
    pieces
        .filter(|piece| !owned.iter().any(|it| covers(it, piece)))
        .collect()
}

/// One verb, on one resource of one group and at most one name, or on one path.
fn pieces(rule: &PolicyRule) -> Vec<PolicyRule> {
    let mut all = Vec::new();
    for verb in &rule.verbs {
        for group in &rule.groups {
            for resource in &rule.resources {
                let piece = PolicyRule {
                    groups: vec![group.clone()],
                    resources: vec![resource.clone()],
                    verbs: vec![verb.clone()],
                    ..PolicyRule::default()
                };
                if rule.names.is_empty() {
                    all.push(piece);
                    continue;
                }
                all.extend(rule.names.iter().map(|name| PolicyRule {
                    names: vec![name.clone()],
                    ..piece.clone()
                }));
            }
        }
        all.extend(rule.paths.iter().map(|path| PolicyRule {
            paths: vec![path.clone()],
            verbs: vec![verb.clone()],
            ..PolicyRule::default()
        }));
    }
    all
}

fn covers(owner: &PolicyRule, piece: &PolicyRule) -> bool {
    let all = |owned: &[String], wanted: &[String]| {
        owned.iter().any(|it| it == "*") || wanted.iter().all(|it| owned.contains(it))
    };
    let resource = |wanted: &String| {
        let any = |it: &String| match it.strip_prefix("*/") {
            Some(sub) => it == wanted || wanted.split_once('/').is_some_and(|(_, own)| own == sub),
            None => it == "*" || it == wanted,
        };
        owner.resources.iter().any(any)
    };
    let path = |wanted: &String| owner.paths.iter().any(|it| is_path(it, wanted));
    let name = match (owner.names.is_empty(), piece.names.is_empty()) {
        (true, _) => true,
        // Some names are less than all.
        (false, true) => piece.resources.is_empty(),
        (false, false) => all(&owner.names, &piece.names),
    };
    all(&owner.verbs, &piece.verbs)
        && all(&owner.groups, &piece.groups)
        && piece.resources.iter().all(resource)
        && piece.paths.iter().all(path)
        && name
}

/// Pieces put together again where only the verb differs, sorted: for messages.
pub fn compact(pieces: &[PolicyRule]) -> Vec<PolicyRule> {
    let mut together: BTreeMap<PolicyRule, Vec<String>> = BTreeMap::new();
    for piece in pieces {
        let without = PolicyRule {
            verbs: Vec::new(),
            ..piece.clone()
        };
        let verbs = together.entry(without).or_default();
        for verb in &piece.verbs {
            if !verbs.contains(verb) {
                verbs.push(verb.clone());
            }
        }
    }
    together
        .into_iter()
        .map(|(rule, verbs)| PolicyRule { verbs, ..rule })
        .collect()
}

/// `{APIGroups:[""], Resources:["pods"], Verbs:["get"]}`: how messages show a rule.
pub fn show(rule: &PolicyRule) -> String {
    let parts = [
        ("APIGroups", &rule.groups),
        ("Resources", &rule.resources),
        ("NonResourceURLs", &rule.paths),
        ("ResourceNames", &rule.names),
        ("Verbs", &rule.verbs),
    ];
    let parts = parts.into_iter().filter(|(_, list)| !list.is_empty());
    let parts: Vec<String> = parts.map(|(name, list)| format!("{name}:{}", quoted(list))).collect();
    format!("{{{}}}", parts.join(", "))
}

/// `["a" "b"]`.
pub(super) fn quoted(list: &[String]) -> String {
    let list: Vec<String> = list.iter().map(|it| format!("{it:?}")).collect();
    format!("[{}]", list.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(verbs: &str, groups: &str, resources: &str, names: &str, paths: &str) -> PolicyRule {
        let list = |text: &str| text.split_terminator(' ').map(str::to_owned).collect();
        let groups: Vec<String> = list(groups);
        let groups = groups
            .into_iter()
            .map(|it| if it == "core" { String::new() } else { it })
            .collect();
        PolicyRule {
            verbs: list(verbs),
            groups,
            resources: list(resources),
            names: list(names),
            paths: list(paths),
        }
    }

    #[test]
    fn rules_cover_together_what_none_covers_alone() {
        let owned = [
            rule("get", "core", "pods", "", ""),
            rule("list", "core", "pods secrets", "", ""),
        ];
        assert!(uncovered(&owned, &[rule("get list", "core", "pods", "", "")]).is_empty());
        let missing = uncovered(&owned, &[rule("get list", "core", "pods secrets", "", "")]);
        assert_eq!(missing, [rule("get", "core", "secrets", "", "")]);
    }

    #[test]
    fn what_covers_what() {
        for (owned, wanted, covered) in [
            (rule("*", "*", "*", "", ""), rule("get", "core", "pods", "a", ""), true),
            (rule("*", "*", "*", "", ""), rule("get", "", "", "", "/x"), false),
            (
                rule("get", "core", "secrets", "a b", ""),
                rule("get", "core", "secrets", "a", ""),
                true,
            ),
            (
                rule("get", "core", "secrets", "a", ""),
                rule("get", "core", "secrets", "", ""),
                false,
            ),
            (
                rule("get", "core", "secrets", "a", ""),
                rule("get", "core", "secrets", "a c", ""),
                false,
            ),
            (
                rule("get", "core", "secrets", "", ""),
                rule("*", "core", "secrets", "", ""),
                false,
            ),
            (
                rule("get", "apps", "*", "", ""),
                rule("get", "core", "pods", "", ""),
                false,
            ),
            (
                rule("get", "*", "*/scale", "", ""),
                rule("get", "apps", "deployments/scale", "", ""),
                true,
            ),
            (
                rule("get", "*", "*/scale", "", ""),
                rule("get", "apps", "deployments", "", ""),
                false,
            ),
            (
                rule("get", "*", "deployments/scale", "", ""),
                rule("get", "apps", "*/scale", "", ""),
                false,
            ),
            (
                rule("get", "", "", "", "/a/*"),
                rule("get", "", "", "", "/a/b /a/c*"),
                true,
            ),
            (rule("get", "", "", "", "/a/b"), rule("get", "", "", "", "/a/*"), false),
            (rule("get", "", "", "", "*"), rule("get", "", "", "", "/a/*"), true),
        ] {
            let missing = uncovered(std::slice::from_ref(&owned), std::slice::from_ref(&wanted));
            assert_eq!(missing.is_empty(), covered, "{} over {}", show(&owned), show(&wanted));
        }
    }

    #[test]
    fn rules_are_shown_as_upstream_shows_them() {
        let pieces = pieces(&rule("get list", "core", "pods", "a", ""));
        let shown: Vec<String> = compact(&pieces).iter().map(show).collect();
        assert_eq!(
            shown,
            [r#"{APIGroups:[""], Resources:["pods"], ResourceNames:["a"], Verbs:["get" "list"]}"#]
        );
    }
}
