//! Roles, bindings, signing requests. Source: field documentation of `rbac/v1` and `certificates/v1`.

use super::{Causes, Path, is_empty, items, table::Call, text};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;

const GROUP: &str = "rbac.authorization.k8s.io";

pub(super) fn call(name: &str) -> Option<Call> {
    Some(match name {
        "role" => |role, path, causes| {
            for (index, rule) in items(&role["rules"]).iter().enumerate() {
                if !is_empty(&rule["nonResourceURLs"]) {
                    let path = path.child("rules");
                    let path = path.index(index);
                    let detail = "namespaced rules cannot apply to non-resource URLs";
                    causes.invalid(&path.child("nonResourceURLs"), &rule["nonResourceURLs"], detail);
                }
            }
        },
        "policy-rule" => policy_rule,
        "role-binding" => |binding, path, causes| {
            role_kind(binding, &["ClusterRole", "Role"], path, causes);
            subjects_have_namespaces(binding, path, causes);
        },
        "cluster-role-binding" => |binding, path, causes| {
            role_kind(binding, &["ClusterRole"], path, causes);
            subjects_have_namespaces(binding, path, causes);
        },
        "subject" => subject,
        "signing-request" => signing_request,
        _ => return None,
    })
}

fn policy_rule(rule: &Value, path: &Path<'_>, causes: &mut Causes) {
    if is_empty(&rule["verbs"]) {
        causes.required(&path.child("verbs"), "verbs must contain at least one value");
    }
    if !is_empty(&rule["nonResourceURLs"]) {
        let resources = ["apiGroups", "resources", "resourceNames"]
            .iter()
            .any(|it| !is_empty(&rule[*it]));
        if resources {
            let detail = "rules cannot apply to both regular resources and non-resource URLs";
            causes.invalid(&path.child("nonResourceURLs"), &rule["nonResourceURLs"], detail);
        }
        return;
    }
    if is_empty(&rule["apiGroups"]) {
        causes.required(
            &path.child("apiGroups"),
            "resource rules must supply at least one api group",
        );
    }
    if is_empty(&rule["resources"]) {
        causes.required(
            &path.child("resources"),
            "resource rules must supply at least one resource",
        );
    }
}

fn role_kind(binding: &Value, kinds: &[&str], path: &Path<'_>, causes: &mut Causes) {
    let kind = &binding["roleRef"]["kind"];
    if !binding["roleRef"].is_null() && !kinds.contains(&text(kind)) {
        let path = path.child("roleRef");
        causes.not_supported(&path.child("kind"), kind, kinds);
    }
}

fn subjects_have_namespaces(binding: &Value, path: &Path<'_>, causes: &mut Causes) {
    for (index, subject) in items(&binding["subjects"]).iter().enumerate() {
        if text(&subject["kind"]) == "ServiceAccount" && is_empty(&subject["namespace"]) {
            let path = path.child("subjects");
            let path = path.index(index);
            causes.required(&path.child("namespace"), "");
        }
    }
}

fn subject(subject: &Value, path: &Path<'_>, causes: &mut Causes) {
    let group = &subject["apiGroup"];
    let path_of_group = path.child("apiGroup");
    match text(&subject["kind"]) {
        "ServiceAccount" => {
            if !is_empty(group) {
                causes.not_supported(&path_of_group, group, &[""]);
            }
            let name = &subject["name"];
            if !is_empty(name) {
                causes.all_invalid(&path.child("name"), name, crate::names::dns1123_subdomain(text(name)));
            }
        }
        "User" | "Group" if text(group) != GROUP => causes.not_supported(&path_of_group, group, &[GROUP]),
        "" => causes.not_supported(&path.child("kind"), &"".into(), &["ServiceAccount", "User", "Group"]),
        _ => {}
    }
}

fn signing_request(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    let request = text(&spec["request"]);
    let pem = STANDARD.decode(request).unwrap_or_default();
    let is_pem = String::from_utf8_lossy(&pem).contains("-----BEGIN CERTIFICATE REQUEST-----");
    if !request.is_empty() && !is_pem {
        let detail = "PEM block type must be CERTIFICATE REQUEST";
        causes.invalid(&path.child("request"), &"<certificate request>".into(), detail);
    }
    let signer = &spec["signerName"];
    if !is_empty(signer) {
        let (domain, rest) = text(signer).split_once('/').unwrap_or(("", text(signer)));
        let path = path.child("signerName");
        if domain.is_empty() || rest.is_empty() {
            causes.invalid(
                &path,
                signer,
                "must be a fully qualified domain and path of the form 'example.com/signer-name'",
            );
        } else {
            causes.all_invalid(&path, signer, crate::names::dns1123_subdomain(domain));
        }
    }
}
