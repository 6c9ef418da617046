//! What they may do: attributes of a request in, [`Decision`] out.
//!
//! [`Chain`] asks, in this order: is it `system:masters`, the [`node`] authorizer, [`rbac`]. The first that has an opinion
//! decides; nobody's opinion means no.

pub mod aggregate;
pub mod cover;
pub mod defaults;
pub mod escalation;
pub mod node;
pub mod rbac;
pub mod review;
pub mod rule;

#[cfg(test)]
mod model_tests;

use crate::{authn::User, authn::names, status::Status};
use rule::{NonResourceRule, ResourceRule};
use std::sync::Arc;

/// One request, as far as authorization looks at it.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    /// Who asks.
    pub user: &'a User,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, or one of the special ones; for paths
    /// the HTTP method in lower case.
    pub verb: &'a str,
    /// API group; empty: core.
    pub group: &'a str,
    /// API version.
    pub version: &'a str,
    /// Plural; empty for a path.
    pub resource: &'a str,
    /// As `status`; empty: none.
    pub subresource: &'a str,
    /// Empty: cluster scope, or all namespaces.
    pub namespace: &'a str,
    /// Empty where the request names no object: `list`, `create`.
    pub name: &'a str,
    /// The path, for a request that is about no resource.
    pub path: &'a str,
    /// Field selector of a `list`, `watch` or `deletecollection`.
    pub fields: &'a [FieldRequirement],
}

/// One requirement of a field selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldRequirement {
    /// As `spec.nodeName`.
    pub field: String,
    /// Equal, or not.
    pub equals: bool,
    /// Compared with.
    pub value: String,
}

impl<'a> Attributes<'a> {
    /// A request about a resource; set the rest by struct update.
    pub fn resource(user: &'a User, verb: &'a str, group: &'a str, resource: &'a str) -> Self {
        Self {
            group,
            resource,
            ..Self::path(user, verb, "")
        }
    }

    /// A request about a path.
    pub fn path(user: &'a User, verb: &'a str, path: &'a str) -> Self {
        Self {
            user,
            verb,
            group: "",
            version: "",
            resource: "",
            subresource: "",
            namespace: "",
            name: "",
            path,
            fields: &[],
        }
    }

    /// Whether it is about a resource.
    pub fn is_resource(&self) -> bool {
        !self.resource.is_empty()
    }
}

/// What an authorizer thinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opinion {
    /// Yes; nobody else is asked.
    Allow,
    /// No; nobody else is asked.
    Deny,
    /// Ask the next.
    None,
}

/// An opinion and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The opinion.
    pub opinion: Opinion,
    /// For people; may be empty.
    pub reason: String,
}

impl Decision {
    /// Yes.
    pub fn allow(reason: impl Into<String>) -> Self {
        Self {
            opinion: Opinion::Allow,
            reason: reason.into(),
        }
    }

    /// Ask the next.
    pub fn none(reason: impl Into<String>) -> Self {
        Self {
            opinion: Opinion::None,
            reason: reason.into(),
        }
    }

    /// Whether the request may go on.
    pub fn allowed(&self) -> bool {
        self.opinion == Opinion::Allow
    }
}

/// Rules of a user in a namespace, as far as they can be listed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RulesOf {
    /// About resources.
    pub resources: Vec<ResourceRule>,
    /// About paths.
    pub paths: Vec<NonResourceRule>,
    /// There may be more that cannot be listed.
    pub incomplete: bool,
    /// Why.
    pub errors: Vec<String>,
}

/// Decides about requests. Must be fast: it is asked for every one.
pub trait Authorizer: Send + Sync {
    /// What it thinks.
    fn authorize(&self, request: &Attributes<'_>) -> Decision;

    /// What a user may do in a namespace.
    fn rules_of(&self, user: &User, namespace: &str) -> RulesOf;
}

/// The authorizers of a server, in order.
#[derive(Clone)]
pub struct Chain(pub Vec<Arc<dyn Authorizer>>);

impl Authorizer for Chain {
    fn authorize(&self, request: &Attributes<'_>) -> Decision {
        if request.user.in_group(names::MASTERS) {
            return Decision::allow("");
        }
        let mut reasons = Vec::new();
        for authorizer in &self.0 {
            let decision = authorizer.authorize(request);
            if decision.opinion != Opinion::None {
                return decision;
            }
            if !decision.reason.is_empty() {
                reasons.push(decision.reason);
            }
        }
        Decision::none(reasons.join("\n"))
    }

    fn rules_of(&self, user: &User, namespace: &str) -> RulesOf {
        let mut all = RulesOf::default();
        if user.in_group(names::MASTERS) {
            all.resources.push(ResourceRule::everything());
            all.paths.push(NonResourceRule::everything());
        }
        for authorizer in &self.0 {
            let some = authorizer.rules_of(user, namespace);
            all.resources.extend(some.resources);
            all.paths.extend(some.paths);
            all.incomplete |= some.incomplete;
            all.errors.extend(some.errors);
        }
        all
    }
}

/// The 403 of a request that nobody allowed, worded as upstream words it.
pub fn forbidden(request: &Attributes<'_>, reason: &str) -> Status {
    // Upstream escapes what comes from outside, so that no browser takes the answer for a page.
    let sentence = sentence(request)
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    let why = if reason.is_empty() {
        sentence
    } else {
        format!("{sentence}: {reason}")
    };
    Status::forbidden((request.group, request.resource), request.name, why)
}

fn sentence(request: &Attributes<'_>) -> String {
    let Attributes {
        user,
        verb,
        group,
        resource,
        subresource,
        namespace,
        path,
        ..
    } = *request;
    let user = &user.name;
    if !request.is_resource() {
        return format!("User {user:?} cannot {verb} path {path:?}");
    }
    let slash = if subresource.is_empty() { "" } else { "/" };
    let what = format!("{resource}{slash}{subresource}");
    let scope = if namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {namespace:?}")
    };
    format!("User {user:?} cannot {verb} resource {what:?} in API group {group:?} {scope}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_reads_as_upstream() {
        let user = User::authenticated("x", ["dev"]);
        let list = Attributes {
            namespace: "default",
            ..Attributes::resource(&user, "list", "", "pods")
        };
        let said = "pods is forbidden: User \"x\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\"";
        assert_eq!(forbidden(&list, "").message, said);
        let scale = Attributes {
            subresource: "scale",
            name: "web",
            ..Attributes::resource(&user, "get", "apps", "deployments")
        };
        assert_eq!(
            forbidden(&scale, "because").message,
            "deployments.apps \"web\" is forbidden: User \"x\" cannot get resource \"deployments/scale\" in API group \
             \"apps\" at the cluster scope: because"
        );
        let path = Attributes::path(&user, "get", "/a<b");
        assert_eq!(
            forbidden(&path, "").message,
            "forbidden: User \"x\" cannot get path \"/a&lt;b\""
        );
        assert_eq!(forbidden(&path, "").to_json()["code"], 403);
    }
}
