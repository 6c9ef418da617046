//! Pods and their templates. Source: field documentation of `core/v1.PodSpec` and what is inside.

use super::{Causes, Path, entries, is_empty, items, number, table::Call, text};
use crate::names;
use serde_json::Value;
use std::collections::{HashMap, HashSet};

pub(super) fn call(name: &str) -> Option<Call> {
    Some(match name {
        "pod" => pod,
        "template" => template,
        "pod-spec" => pod_spec,
        "container" => container,
        "ephemeral-container" => ephemeral_container,
        "env-var" => env_var,
        "env-var-source" => |value, path, causes| {
            let sources = [
                "fieldRef",
                "resourceFieldRef",
                "configMapKeyRef",
                "secretKeyRef",
                "fileKeyRef",
            ];
            match there(value, &sources) {
                0 => causes.invalid(
                    path,
                    &"".into(),
                    "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
                ),
                1 => {}
                _ => causes.invalid(path, &"".into(), "may not have more than one field specified at a time"),
            }
        },
        "env-from" => |value, path, causes| match there(value, &["configMapRef", "secretRef"]) {
            0 => causes.invalid(path, &"".into(), "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => causes.invalid(path, &"".into(), "may not have more than one field specified at a time"),
        },
        "volume-mount" => volume_mount,
        "probe" => |value, path, causes| one_handler(value, &["exec", "grpc", "httpGet", "tcpSocket"], path, causes),
        "lifecycle-handler" => {
            |value, path, causes| one_handler(value, &["exec", "httpGet", "sleep", "tcpSocket"], path, causes)
        }
        "action-port" => |value, path, causes| port(&value["port"], &path.child("port"), causes),
        "toleration" => toleration,
        "node-requirement" => node_requirement,
        "selector-requirement" => selector_requirement,
        "volume" => volume,
        "relative-path" => |value, path, causes| relative_path(&value["path"], &path.child("path"), causes),
        "host-path" => |value, path, causes| no_way_up(&value["path"], &path.child("path"), causes),
        "security-context" => security_context,
        "localhost-profile" => |value, path, causes| {
            let profile = &value["localhostProfile"];
            let path = path.child("localhostProfile");
            match (text(&value["type"]) == "Localhost", is_empty(profile)) {
                (true, true) => causes.required(&path, "must be set when type is Localhost"),
                (false, false) => causes.invalid(&path, profile, "can only be set when type is Localhost"),
                _ => {}
            }
        },
        _ => return None,
    })
}

/// How many of these fields are there.
fn there(value: &Value, names: &[&str]) -> usize {
    names.iter().filter(|name| !value[**name].is_null()).count()
}

fn pod(pod: &Value, path: &Path<'_>, causes: &mut Causes) {
    let spec = &pod["spec"];
    let path = path.child("spec");
    if items(&spec["ephemeralContainers"]).is_empty() {
        return;
    }
    // They come through their subresource; validation of updates guards the rest.
    let path = path.child("ephemeralContainers");
    let taken: HashSet<&str> = containers(spec)
        .map(|(_, _, container)| text(&container["name"]))
        .collect();
    let mut seen = HashSet::new();
    for (index, container) in items(&spec["ephemeralContainers"]).iter().enumerate() {
        let name = text(&container["name"]);
        if !name.is_empty() && (taken.contains(name) || !seen.insert(name)) {
            causes.duplicate(&path.index(index).child("name"), &container["name"]);
        }
        let target = &container["targetContainerName"];
        if !is_empty(target) && !taken.contains(text(target)) {
            causes.not_found(&path.index(index).child("targetContainerName"), target);
        }
    }
}

fn template(template: &Value, path: &Path<'_>, causes: &mut Causes) {
    let path_of_meta = path.child("metadata");
    super::meta::labels(&template["metadata"]["labels"], &path_of_meta.child("labels"), causes);
    let spec = &template["spec"];
    if is_empty(spec) {
        causes.required(&path.child("spec").child("containers"), "");
    }
    if !items(&spec["ephemeralContainers"]).is_empty() {
        let path = path.child("spec");
        causes.forbidden(
            &path.child("ephemeralContainers"),
            "ephemeral containers not allowed in pod template",
        );
    }
}

/// Init containers and containers: field, index, container.
fn containers(spec: &Value) -> impl Iterator<Item = (&'static str, usize, &Value)> {
    ["initContainers", "containers"].into_iter().flat_map(|field| {
        let all = items(&spec[field]).iter().enumerate();
        all.map(move |(index, container)| (field, index, container))
    })
}

fn pod_spec(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    names_differ(spec, path, causes);
    host_ports(spec, path, causes);
    mounts_have_volumes(spec, path, causes);
    for (index, container) in items(&spec["initContainers"]).iter().enumerate() {
        let path = path.child("initContainers");
        let path = path.index(index);
        if text(&container["restartPolicy"]) != "Always" {
            for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
                if !container[field].is_null() {
                    let detail = "may not be set for init containers without restartPolicy=Always";
                    causes.forbidden(&path.child(field), detail);
                }
            }
        }
    }
    if text(&spec["dnsPolicy"]) == "None" && items(&spec["dnsConfig"]["nameservers"]).is_empty() {
        let path = path.child("dnsConfig");
        let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        causes.required(&path.child("nameservers"), detail);
    }
    let nameservers = items(&spec["dnsConfig"]["nameservers"]).len();
    if nameservers > 3 {
        let path = path.child("dnsConfig");
        causes.too_many(&path.child("nameservers"), nameservers, 3);
    }
}

fn names_differ(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    let mut seen = HashSet::new();
    for (field, index, container) in containers(spec) {
        let name = &container["name"];
        if !text(name).is_empty() && !seen.insert(text(name)) {
            causes.duplicate(&path.child(field).index(index).child("name"), name);
        }
    }
}

/// A pod's host ports differ, and in the host's network they are the containers'.
fn host_ports(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    let host_network = spec["hostNetwork"] == true;
    let mut seen = HashSet::new();
    for (index, container) in items(&spec["containers"]).iter().enumerate() {
        let path = path.child("containers");
        let path = path.index(index);
        let path = path.child("ports");
        for (index, port) in items(&container["ports"]).iter().enumerate() {
            let path = path.index(index);
            let host_port = number(&port["hostPort"]);
            if host_port == 0 {
                continue;
            }
            if host_network && host_port != number(&port["containerPort"]) {
                let detail = "must match `containerPort` when `hostNetwork` is true";
                causes.invalid(&path.child("hostPort"), &port["hostPort"], detail);
            }
            let claim = format!("{}/{}/{host_port}", text(&port["protocol"]), text(&port["hostIP"]));
            if !seen.insert(claim.clone()) {
                causes.duplicate(&path.child("hostPort"), &claim.into());
            }
        }
    }
}

fn mounts_have_volumes(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    let volumes: HashMap<&str, &Value> = items(&spec["volumes"])
        .iter()
        .map(|it| (text(&it["name"]), it))
        .collect();
    let ephemeral = items(&spec["ephemeralContainers"]).iter().enumerate();
    let ephemeral = ephemeral.map(|(index, container)| ("ephemeralContainers", index, container));
    for (field, index, container) in containers(spec).chain(ephemeral) {
        let path = path.child(field);
        let path = path.index(index);
        let mut places = HashSet::new();
        for (list, place) in [("volumeMounts", "mountPath"), ("volumeDevices", "devicePath")] {
            let path = path.child(list);
            for (index, mount) in items(&container[list]).iter().enumerate() {
                let path = path.index(index);
                let name = &mount["name"];
                if !text(name).is_empty() && !volumes.contains_key(text(name)) {
                    causes.not_found(&path.child("name"), name);
                }
                if !text(&mount[place]).is_empty() && !places.insert(text(&mount[place])) {
                    causes.invalid(&path.child(place), &mount[place], "must be unique");
                }
            }
        }
    }
}

fn container(container: &Value, path: &Path<'_>, causes: &mut Causes) {
    let image = text(&container["image"]);
    if image != image.trim() {
        causes.invalid(
            &path.child("image"),
            &container["image"],
            "must not have leading or trailing whitespace",
        );
    }
    for probe in ["livenessProbe", "startupProbe"] {
        if container[probe]["successThreshold"].as_i64().is_some_and(|it| it != 1) {
            let path = path.child(probe);
            causes.invalid(
                &path.child("successThreshold"),
                &container[probe]["successThreshold"],
                "must be 1",
            );
        }
    }
}

fn ephemeral_container(container: &Value, path: &Path<'_>, causes: &mut Causes) {
    for field in ["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle"] {
        if !is_empty(&container[field]) {
            causes.forbidden(&path.child(field), "cannot be set for an Ephemeral Container");
        }
    }
    if there(&container["resources"], &["limits", "requests"]) > 0 {
        causes.forbidden(&path.child("resources"), "cannot be set for an Ephemeral Container");
    }
}

fn env_var(variable: &Value, path: &Path<'_>, causes: &mut Causes) {
    let name = &variable["name"];
    if !text(name).is_empty() {
        causes.all_invalid(&path.child("name"), name, names::environment_name(text(name)));
    }
    if !is_empty(&variable["value"]) && !is_empty(&variable["valueFrom"]) {
        causes.invalid(
            &path.child("valueFrom"),
            &"".into(),
            "may not be specified when `value` is not empty",
        );
    }
}

fn volume_mount(mount: &Value, path: &Path<'_>, causes: &mut Causes) {
    relative_path(&mount["subPath"], &path.child("subPath"), causes);
    relative_path(&mount["subPathExpr"], &path.child("subPathExpr"), causes);
    if !is_empty(&mount["subPath"]) && !is_empty(&mount["subPathExpr"]) {
        let detail = "subPathExpr and subPath are mutually exclusive";
        causes.invalid(&path.child("subPathExpr"), &mount["subPathExpr"], detail);
    }
}

fn relative_path(value: &Value, path: &Path<'_>, causes: &mut Causes) {
    if text(value).starts_with('/') {
        causes.invalid(path, value, "must be a relative path");
    }
    no_way_up(value, path, causes);
}

fn no_way_up(value: &Value, path: &Path<'_>, causes: &mut Causes) {
    if text(value).split('/').any(|it| it == "..") {
        causes.invalid(path, value, "must not contain '..'");
    }
}

fn one_handler(value: &Value, kinds: &[&str], path: &Path<'_>, causes: &mut Causes) {
    let mut found = kinds.iter().filter(|it| !value[**it].is_null());
    if found.next().is_none() {
        causes.required(path, "must specify a handler type");
    }
    for kind in found {
        causes.forbidden(&path.child(kind), "may not specify more than 1 handler type");
    }
}

/// A number of a port or its name.
pub(super) fn port(value: &Value, path: &Path<'_>, causes: &mut Causes) {
    match value {
        Value::String(name) if !name.is_empty() => causes.all_invalid(path, value, names::port_name(name)),
        Value::Number(_) if !(1..=65535).contains(&number(value)) => {
            causes.invalid(path, value, "must be between 1 and 65535, inclusive");
        }
        _ => {}
    }
}

fn toleration(toleration: &Value, path: &Path<'_>, causes: &mut Causes) {
    let (key, operator) = (text(&toleration["key"]), text(&toleration["operator"]));
    if key.is_empty() && operator != "Exists" {
        let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
        causes.invalid(&path.child("operator"), &operator.into(), detail);
    }
    if operator == "Exists" && !is_empty(&toleration["value"]) {
        let detail = "value must be empty when `operator` is 'Exists'";
        causes.invalid(&path.child("operator"), &toleration["value"], detail);
    }
    if operator != "Exists" {
        causes.all_invalid(
            &path.child("value"),
            &toleration["value"],
            names::label_value(text(&toleration["value"])),
        );
    }
    if !toleration["tolerationSeconds"].is_null() && text(&toleration["effect"]) != "NoExecute" {
        let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        causes.invalid(&path.child("effect"), &toleration["effect"], detail);
    }
}

fn node_requirement(requirement: &Value, path: &Path<'_>, causes: &mut Causes) {
    let values = items(&requirement["values"]).len();
    let path_of_values = path.child("values");
    match text(&requirement["operator"]) {
        "In" | "NotIn" if values == 0 => {
            causes.required(&path_of_values, "must be specified when `operator` is 'In' or 'NotIn'");
        }
        "Exists" | "DoesNotExist" if values > 0 => {
            causes.forbidden(
                &path_of_values,
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            );
        }
        "Gt" | "Lt" if values != 1 => {
            causes.required(
                &path_of_values,
                "must be specified single value when `operator` is 'Lt' or 'Gt'",
            );
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        _ => causes.invalid(
            &path.child("operator"),
            &requirement["operator"],
            "not a valid selector operator",
        ),
    }
}

fn selector_requirement(requirement: &Value, path: &Path<'_>, causes: &mut Causes) {
    let values = items(&requirement["values"]);
    let path_of_values = path.child("values");
    match text(&requirement["operator"]) {
        "In" | "NotIn" if values.is_empty() => {
            causes.required(&path_of_values, "must be specified when `operator` is 'In' or 'NotIn'");
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            causes.forbidden(
                &path_of_values,
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            );
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        _ => causes.invalid(
            &path.child("operator"),
            &requirement["operator"],
            "not a valid selector operator",
        ),
    }
    for (index, value) in values.iter().enumerate() {
        causes.all_invalid(&path_of_values.index(index), value, names::label_value(text(value)));
    }
}

fn volume(volume: &Value, path: &Path<'_>, causes: &mut Causes) {
    let mut sources = entries(volume).filter(|(name, value)| *name != "name" && !value.is_null());
    if sources.next().is_none() {
        causes.required(path, "must specify a volume type");
    }
    for (source, _) in sources {
        causes.forbidden(&path.child(source), "may not specify more than 1 volume type");
    }
}

fn security_context(context: &Value, path: &Path<'_>, causes: &mut Causes) {
    if context["allowPrivilegeEscalation"] == false {
        if context["privileged"] == true {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            causes.invalid(path, context, detail);
        }
        let added = items(&context["capabilities"]["add"]);
        if added.iter().any(|it| text(it) == "CAP_SYS_ADMIN") {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            causes.invalid(path, context, detail);
        }
    }
}
