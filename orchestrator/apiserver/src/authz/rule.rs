//! [`PolicyRule`]: one rule of a role, and what it matches.

use super::Attributes;
use crate::objects::texts;
use serde_json::{Map, Value, json};

/// `PolicyRule` of rbac.authorization.k8s.io/v1.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyRule {
    /// `*`: all.
    pub groups: Vec<String>,
    /// `*`: all; `*/scale`: a subresource of all.
    pub resources: Vec<String>,
    /// A trailing `*` matches the rest.
    pub paths: Vec<String>,
    /// Empty: all.
    pub names: Vec<String>,
    /// `*`: all.
    pub verbs: Vec<String>,
}

impl PolicyRule {
    /// Reads a rule; what is not as it should be is as if it were not there, which only grants less.
    pub fn read(rule: &Value) -> Self {
        let list = |pointer| texts(rule, pointer).map(str::to_owned).collect();
        Self {
            groups: list("/apiGroups"),
            resources: list("/resources"),
            paths: list("/nonResourceURLs"),
            names: list("/resourceNames"),
            verbs: list("/verbs"),
        }
    }

    /// The rules of a Role or `ClusterRole`.
    pub fn read_all(role: &Value) -> Vec<Self> {
        crate::objects::items(role, "/rules").iter().map(Self::read).collect()
    }

    /// As in the API; empty lists left out.
    pub fn write(&self) -> Value {
        let mut rule = Map::new();
        for (key, list) in [
            ("apiGroups", &self.groups),
            ("nonResourceURLs", &self.paths),
            ("resourceNames", &self.names),
            ("resources", &self.resources),
            ("verbs", &self.verbs),
        ] {
            if !list.is_empty() || key == "verbs" {
                rule.insert(key.to_owned(), json!(list));
            }
        }
        Value::Object(rule)
    }

    /// Whether the rule allows a request.
    pub fn allows(&self, request: &Attributes<'_>) -> bool {
        if !has(&self.verbs, request.verb) {
            return false;
        }
        if request.is_resource() {
            has(&self.groups, request.group)
                && self
                    .resources
                    .iter()
                    .any(|it| is_resource(it, request.resource, request.subresource))
                && (self.names.is_empty() || self.names.iter().any(|it| it == request.name))
        } else {
            self.paths.iter().any(|it| is_path(it, request.path))
        }
    }
}

/// A list that may hold `*`.
fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|it| it == "*" || it == wanted)
}

/// `pods`, `pods/log`, `*`, `*/scale`.
fn is_resource(rule: &str, resource: &str, subresource: &str) -> bool {
    if rule == "*" {
        return true;
    }
    if subresource.is_empty() {
        return rule == resource;
    }
    rule.rsplit_once('/')
        .is_some_and(|(main, sub)| sub == subresource && (main == "*" || main == resource))
}

/// Exact, or up to a trailing `*`.
pub(super) fn is_path(rule: &str, path: &str) -> bool {
    rule == path || (rule.ends_with('*') && path.starts_with(rule.trim_end_matches('*')))
}

/// A rule about resources, as `SelfSubjectRulesReview` lists it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourceRule {
    /// As in [`PolicyRule`].
    pub verbs: Vec<String>,
    /// As in [`PolicyRule`].
    pub groups: Vec<String>,
    /// As in [`PolicyRule`].
    pub resources: Vec<String>,
    /// As in [`PolicyRule`].
    pub names: Vec<String>,
}

/// A rule about paths, as `SelfSubjectRulesReview` lists it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NonResourceRule {
    /// As in [`PolicyRule`].
    pub verbs: Vec<String>,
    /// As in [`PolicyRule`].
    pub paths: Vec<String>,
}

fn star() -> Vec<String> {
    vec!["*".to_owned()]
}

impl ResourceRule {
    /// `*` everywhere.
    pub fn everything() -> Self {
        Self {
            verbs: star(),
            groups: star(),
            resources: star(),
            names: Vec::new(),
        }
    }

    /// As in `status.resourceRules`.
    pub fn write(&self) -> Value {
        let mut rule = json!({"verbs": self.verbs, "apiGroups": self.groups, "resources": self.resources});
        if !self.names.is_empty() {
            rule["resourceNames"] = json!(self.names);
        }
        rule
    }
}

impl NonResourceRule {
    /// `*` everywhere.
    pub fn everything() -> Self {
        Self {
            verbs: star(),
            paths: star(),
        }
    }

    /// As in `status.nonResourceRules`.
    pub fn write(&self) -> Value {
        json!({"verbs": self.verbs, "nonResourceURLs": self.paths})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authn::User;

    #[test]
    fn resources_match_with_their_subresource() {
        for (rule, resource, subresource, matches) in [
            ("pods", "pods", "", true),
            ("pods", "pods", "log", false),
            ("pods/log", "pods", "log", true),
            ("pods/log", "pods", "", false),
            ("*/scale", "deployments", "scale", true),
            ("*/scale", "deployments", "", false),
            ("*/*", "deployments", "scale", false),
            ("*", "deployments", "scale", true),
            ("pods/*", "pods", "log", false),
        ] {
            assert_eq!(
                is_resource(rule, resource, subresource),
                matches,
                "{rule} {resource}/{subresource}"
            );
        }
    }

    #[test]
    fn paths_match_up_to_a_star_at_the_end() {
        for (rule, path, matches) in [
            ("*", "/x", true),
            ("/healthz", "/healthz", true),
            ("/healthz", "/healthz/etcd", false),
            ("/healthz*", "/healthz/etcd", true),
            ("/healthz/*", "/healthz", false),
            ("/*/x", "/a/x", false),
        ] {
            assert_eq!(is_path(rule, path), matches, "{rule} {path}");
        }
    }

    #[test]
    fn a_rule_with_names_allows_no_request_without() {
        let user = User::anonymous();
        let rule = PolicyRule::read(&json!({
            "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a"], "verbs": ["*"]
        }));
        let request = Attributes::resource(&user, "get", "", "secrets");
        assert!(!rule.allows(&request));
        assert!(rule.allows(&Attributes { name: "a", ..request }));
        assert!(!rule.allows(&Attributes { name: "b", ..request }));
    }

    #[test]
    fn odd_rules_grant_nothing() {
        let user = User::anonymous();
        for rule in [
            json!(null),
            json!({"verbs": "*"}),
            json!({"verbs": ["*"], "apiGroups": null, "resources": [1]}),
        ] {
            let request = Attributes::resource(&user, "get", "", "secrets");
            assert!(!PolicyRule::read(&rule).allows(&request), "{rule}");
        }
    }
}
