//! Defaults that depend on more than a field's absence. Each is idempotent and leaves alone what has the wrong type.

use super::{Call, is_empty};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};

type Fields = Map<String, Value>;

/// The function that a rule calls.
pub(super) fn named(name: &str) -> Option<Call> {
    Some(match name {
        "image-pull-policy" => |container| pull_policy(container, "image", "imagePullPolicy"),
        "volume-pull-policy" => |source| pull_policy(source, "reference", "pullPolicy"),
        "volume-source" => volume_source,
        "pod" => pod,
        "replication-controller" => replication_controller,
        "template-labels" => |object| {
            template_labels(object);
        },
        "secret" => secret,
        "namespace" => namespace,
        "node" => node,
        "limit-range-item" => limit_range_item,
        "target-port" => target_port,
        "policy-types" => policy_types,
        "names" => names,
        _ => return None,
    })
}

fn text<'a>(fields: &'a Fields, name: &str) -> &'a str {
    fields.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn is_absent(fields: &Fields, name: &str) -> bool {
    fields.get(name).is_none_or(is_empty)
}

fn object<'a>(fields: &'a mut Fields, name: &str) -> Option<&'a mut Fields> {
    fields.get_mut(name)?.as_object_mut()
}

/// The object of this name, made when it is not there.
fn make<'a>(fields: &'a mut Fields, name: &str) -> Option<&'a mut Fields> {
    let value = fields.entry(name).or_insert(Value::Null);
    if value.is_null() {
        *value = json!({});
    }
    value.as_object_mut()
}

/// `Always` for what is or means `latest`, since that moves. Source: `Container.imagePullPolicy`.
fn pull_policy(fields: &mut Fields, image: &str, policy: &str) {
    if !is_absent(fields, policy) || fields.get(policy).is_some_and(|it| !it.is_null() && !it.is_string()) {
        return;
    }
    let image = text(fields, image);
    let last = image.rsplit('/').next().unwrap_or(image);
    let (name, digest) = last
        .split_once('@')
        .map_or((last, None), |(name, digest)| (name, Some(digest)));
    let always = match name.split_once(':') {
        Some((_, tag)) => tag == "latest",
        None => digest.is_none() && !name.is_empty(),
    };
    fields.insert(policy.into(), if always { "Always" } else { "IfNotPresent" }.into());
}

/// A volume of nothing is an `emptyDir`. Source: `Volume`'s embedded source.
fn volume_source(volume: &mut Fields) {
    if volume.iter().all(|(name, value)| name == "name" || value.is_null()) {
        volume.insert("emptyDir".into(), json!({}));
    }
}

fn pod(pod: &mut Fields) {
    let Some(spec) = object(pod, "spec") else {
        return;
    };
    let host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in ["initContainers", "containers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(container) = container.as_object_mut() else {
                continue;
            };
            if let Some(resources) = object(container, "resources") {
                requests_from_limits(resources);
            }
            if host_network {
                host_ports(container);
            }
        }
    }
}

/// What is limited and not requested is requested as it is limited. Source: `ResourceRequirements.requests`.
fn requests_from_limits(resources: &mut Fields) {
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else {
        return;
    };
    if limits.is_empty() {
        return;
    }
    if let Some(requests) = make(resources, "requests") {
        for (name, limit) in limits {
            requests.entry(name).or_insert(limit);
        }
    }
}

/// In the host's network a container's ports are the host's. Source: `ContainerPort.hostPort`.
fn host_ports(container: &mut Fields) {
    for port in container
        .get_mut("ports")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        let Some(port) = port.as_object_mut() else {
            continue;
        };
        let unset = port
            .get("hostPort")
            .is_none_or(|it| it.is_null() || it.as_i64() == Some(0));
        if let (true, Some(number)) = (unset, port.get("containerPort").cloned()) {
            port.insert("hostPort".into(), number);
        }
    }
}

/// Labels of the object are those of its template, when it has none. Returns the template's.
fn template_labels(fields: &mut Fields) -> Option<Value> {
    let labels = fields.get("spec")?.pointer("/template/metadata/labels")?;
    if labels.as_object().is_none_or(Map::is_empty) {
        return None;
    }
    let labels = labels.clone();
    let metadata = make(fields, "metadata")?;
    if is_absent(metadata, "labels") {
        metadata.insert("labels".into(), labels.clone());
    }
    Some(labels)
}

fn replication_controller(fields: &mut Fields) {
    let Some(labels) = template_labels(fields) else {
        return;
    };
    if let Some(spec) = object(fields, "spec")
        && is_absent(spec, "selector")
    {
        spec.insert("selector".into(), labels);
    }
}

/// `stringData` is for writing only: it goes into `data`, over what is there. Source: `Secret.stringData`.
fn secret(secret: &mut Fields) {
    match secret.remove("stringData") {
        Some(Value::Object(plain)) if !plain.is_empty() => {
            let Some(data) = make(secret, "data") else {
                return;
            };
            for (name, value) in plain {
                let encoded = value.as_str().map(|it| Value::String(STANDARD.encode(it)));
                // What is no text is refused by the check of types, which names it under this name.
                data.insert(name, encoded.unwrap_or(value));
            }
        }
        Some(Value::Object(_) | Value::Null) | None => {}
        Some(other) => {
            secret.insert("stringData".into(), other);
        }
    }
}

/// Every namespace can be selected by its name. Source: `kubernetes.io/metadata.name`, KEP-2161.
fn namespace(namespace: &mut Fields) {
    let Some(metadata) = object(namespace, "metadata") else {
        return;
    };
    let name = text(metadata, "name").to_owned();
    if name.is_empty() {
        return;
    }
    if let Some(labels) = make(metadata, "labels") {
        labels.insert("kubernetes.io/metadata.name".into(), name.into());
    }
}

/// All of a node can be used unless it says otherwise. Source: `NodeStatus.allocatable`.
fn node(node: &mut Fields) {
    if let Some(status) = object(node, "status")
        && is_absent(status, "allocatable")
        && let Some(capacity) = status.get("capacity").filter(|it| !is_empty(it)).cloned()
    {
        status.insert("allocatable".into(), capacity);
    }
}

/// Source: `LimitRangeItem`: the default limit is the greatest that is allowed, the default request is the default limit,
/// or the least that is allowed.
fn limit_range_item(item: &mut Fields) {
    for (to, from) in [
        ("default", "max"),
        ("defaultRequest", "default"),
        ("defaultRequest", "min"),
    ] {
        let Some(from) = item.get(from).and_then(Value::as_object).cloned() else {
            continue;
        };
        if from.is_empty() {
            continue;
        }
        if let Some(to) = make(item, to) {
            for (name, value) in from {
                to.entry(name).or_insert(value);
            }
        }
    }
}

/// Source: `ServicePort.targetPort`.
fn target_port(port: &mut Fields) {
    let unset = match port.get("targetPort") {
        None | Some(Value::Null) => true,
        Some(Value::String(name)) => name.is_empty(),
        Some(number) => number.as_i64() == Some(0),
    };
    if let (true, Some(number)) = (unset, port.get("port").cloned()) {
        port.insert("targetPort".into(), number);
    }
}

/// Source: `NetworkPolicySpec.policyTypes`.
fn policy_types(spec: &mut Fields) {
    if is_absent(spec, "policyTypes") {
        let egress = !is_absent(spec, "egress");
        let types = if egress {
            json!(["Ingress", "Egress"])
        } else {
            json!(["Ingress"])
        };
        spec.insert("policyTypes".into(), types);
    }
}

/// Source: `CustomResourceDefinitionNames.singular` and `.listKind`.
fn names(names: &mut Fields) {
    let kind = text(names, "kind").to_owned();
    if is_absent(names, "singular") {
        names.insert("singular".into(), kind.to_ascii_lowercase().into());
    }
    if is_absent(names, "listKind") {
        names.insert("listKind".into(), format!("{kind}List").into());
    }
}
