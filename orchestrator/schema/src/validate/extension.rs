//! Webhooks, admission policies, CRDs. Source: field documentation of `admissionregistration/v1` and `apiextensions/v1`.

use super::{Causes, Path, is_empty, items, same, table::Call, text};
use crate::{jsonpath::JsonPath, names};
use serde_json::Value;

pub(super) fn call(name: &str) -> Option<Call> {
    Some(match name {
        "webhook" => |webhook, path, causes| {
            let name = &webhook["name"];
            let path = path.child("name");
            let complaints = names::dns1123_subdomain(text(name));
            if is_empty(name) {
            } else if !complaints.is_empty() {
                causes.all_invalid(&path, name, complaints);
            } else if text(name).split('.').count() < 3 {
                let detail = "should be a domain with at least three segments separated by dots";
                causes.invalid(&path, name, detail);
            }
        },
        "client-config" => client_config,
        "validating-policy" => |spec, path, causes| {
            if is_empty(&spec["validations"]) && is_empty(&spec["auditAnnotations"]) {
                let detail = "validations or auditAnnotations must contain at least one item";
                causes.required(&path.child("validations"), detail);
            }
        },
        "crd" => crd,
        "crd-names" => crd_names,
        "crd-version" => |version, path, causes| {
            if version["schema"]["openAPIV3Schema"].is_null() {
                let path = path.child("schema");
                causes.required(&path.child("openAPIV3Schema"), "schemas are required");
            }
        },
        "json-path" => |value, path, causes| json_path(&value["jsonPath"], &path.child("jsonPath"), causes),
        "scale-paths" => scale_paths,
        _ => return None,
    })
}

fn client_config(config: &Value, path: &Path<'_>, causes: &mut Causes) {
    let (url, service) = (&config["url"], &config["service"]);
    if url.is_null() == service.is_null() {
        causes.required(path, "exactly one of url or service is required");
    }
    if let Some(url) = url.as_str() {
        let path = path.child("url");
        let Some(rest) = url.strip_prefix("https://") else {
            let scheme = url.split(':').next().unwrap_or_default();
            let detail = format!("'https' is the only allowed URL scheme; got {scheme:?}");
            return causes.invalid(&path, &url.into(), &detail);
        };
        if rest.is_empty() || rest.starts_with(['/', ':']) {
            causes.invalid(&path, &url.into(), "host must be specified");
        }
        for (mark, what) in [('#', "fragments"), ('?', "query parameters"), ('@', "user information")] {
            if rest.contains(mark) {
                causes.invalid(&path, &url.into(), &format!("{what} are not permitted in the URL"));
            }
        }
    }
}

fn crd(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    let group = &spec["group"];
    if !is_empty(group) && !text(group).contains('.') {
        let path = path.child("group");
        causes.invalid(&path, group, "should be a domain with at least one dot");
    }
    let stored = items(&spec["versions"])
        .iter()
        .filter(|it| it["storage"] == true)
        .count();
    if stored != 1 {
        let detail = "must have exactly one version marked as storage version";
        causes.invalid(&path.child("versions"), &spec["versions"], detail);
    }
    if spec["preserveUnknownFields"] == true {
        let detail = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in \
                      spec.versions[*].schema instead";
        causes.invalid(&path.child("preserveUnknownFields"), &true.into(), detail);
    }
    let conversion = &spec["conversion"];
    let path = path.child("conversion");
    match text(&conversion["strategy"]) {
        "Webhook" if conversion["webhook"].is_null() => {
            causes.required(&path.child("webhook"), "required when strategy is set to Webhook");
        }
        "None" if !conversion["webhook"].is_null() => {
            causes.forbidden(
                &path.child("webhook"),
                "should not be set when strategy is not set to Webhook",
            );
        }
        _ => {}
    }
}

fn crd_names(names_of: &Value, path: &Path<'_>, causes: &mut Causes) {
    for field in ["plural", "singular"] {
        let name = &names_of[field];
        if !is_empty(name) {
            causes.all_invalid(&path.child(field), name, names::dns1035_label(text(name)));
        }
    }
    for field in ["kind", "listKind"] {
        let name = &names_of[field];
        if !is_empty(name) {
            let complaints = names::dns1035_label(&text(name).to_ascii_lowercase());
            let complaints = complaints
                .iter()
                .map(|it| format!("may have mixed case, but should otherwise match: {it}"));
            causes.all_invalid(&path.child(field), name, complaints.collect());
        }
    }
    for field in ["shortNames", "categories"] {
        for (index, name) in items(&names_of[field]).iter().enumerate() {
            let path = path.child(field);
            causes.all_invalid(&path.index(index), name, names::dns1035_label(text(name)));
        }
    }
    if !is_empty(&names_of["kind"]) && names_of["kind"] == names_of["listKind"] {
        let detail = "kind and listKind may not be the same";
        causes.invalid(&path.child("listKind"), &names_of["listKind"], detail);
    }
}

fn json_path(value: &Value, path: &Path<'_>, causes: &mut Causes) {
    let written = text(value);
    if written.is_empty() {
        return;
    }
    if !written.starts_with('.') {
        causes.invalid(path, value, "must be a simple json path starting with .");
    } else if let Err(error) = JsonPath::parse(written) {
        causes.invalid(path, value, &error.to_string());
    }
}

fn scale_paths(scale: &Value, path: &Path<'_>, causes: &mut Causes) {
    for (field, prefixes) in [
        ("specReplicasPath", &[".spec."] as &[&str]),
        ("statusReplicasPath", &[".status."]),
        ("labelSelectorPath", &[".spec.", ".status."]),
    ] {
        let value = &scale[field];
        let written = text(value);
        if written.is_empty() {
            continue;
        }
        let path = path.child(field);
        let simple = JsonPath::parse(written).is_ok_and(|it| it.is_simple());
        if !simple || !prefixes.iter().any(|it| written.starts_with(it)) {
            let detail = format!("should be a json path under {}", prefixes.join(" or "));
            causes.invalid(&path, value, &detail);
        }
    }
}

/// What objects are stored under does not change once they can be stored.
pub(super) fn crd_update(old: &Value, new: &Value, path: &Path<'_>, causes: &mut Causes) {
    let (was, is) = (&old["spec"], &new["spec"]);
    let path = path.child("spec");
    let established = items(&old["status"]["conditions"])
        .iter()
        .any(|it| text(&it["type"]) == "Established" && text(&it["status"]) == "True");
    let path_of_names = path.child("names");
    for (path, was, is) in [
        (path.child("group"), &was["group"], &is["group"]),
        (
            path_of_names.child("plural"),
            &was["names"]["plural"],
            &is["names"]["plural"],
        ),
    ] {
        if !same(was, is) {
            causes.invalid(&path, is, "field is immutable");
        }
    }
    if established {
        for (path, was, is) in [
            (path.child("scope"), &was["scope"], &is["scope"]),
            (path_of_names.child("kind"), &was["names"]["kind"], &is["names"]["kind"]),
        ] {
            if !same(was, is) {
                causes.invalid(&path, is, "field is immutable");
            }
        }
    }
    let status = path_of_status();
    let stored = status.child("storedVersions");
    for (index, version) in items(&new["status"]["storedVersions"]).iter().enumerate() {
        if !items(&is["versions"]).iter().any(|it| it["name"] == *version) {
            let detail = "missing from spec.versions; v1 was previously a storage version, and must remain in \
                          spec.versions until a storage migration ensures no data remains persisted in it and removes it \
                          from status.storedVersions";
            let detail = detail.replacen("v1", text(version), 1);
            causes.invalid(&stored.index(index), version, &detail);
        }
    }
}

fn path_of_status() -> Path<'static> {
    Path::Field(&Path::Root, "status")
}
