//! Versions of one kind: what is stored in another version than the one that a request names.
//!
//! CRDs with strategy `None` differ in `apiVersion` alone. Of the built-in kinds two differ in shape: Events
//! (`v1` and `events.k8s.io/v1`) and HorizontalPodAutoscalers (`autoscaling/v1` and `v2`).

use crate::object;
use fairlead_schema::Resource;
use serde_json::{Value, json};

/// Whether stored text can be served as it is.
pub(crate) fn is_stored_version(resource: &Resource) -> bool {
    let storage = resource.storage.as_ref();
    storage.is_none_or(|storage| storage.version == resource.version && storage.api_version() == resource.api_version())
}

/// From the stored version to the requested one.
pub(crate) fn from_storage(resource: &Resource, value: &mut Value) {
    if is_stored_version(resource) {
        return;
    }
    value["apiVersion"] = json!(resource.api_version());
    match (&*resource.group, &*resource.kind) {
        ("events.k8s.io", "Event") => rename_all(value, &EVENT_FIELDS, false),
        ("autoscaling", "HorizontalPodAutoscaler") => autoscaler_to_v1(value),
        _ => {}
    }
}

/// From the requested version to the stored one.
pub(crate) fn to_storage(resource: &Resource, value: &mut Value) {
    let Some(storage) = resource.storage.as_ref().filter(|_| !is_stored_version(resource)) else {
        return;
    };
    value["apiVersion"] = json!(storage.api_version());
    match (&*resource.group, &*resource.kind) {
        ("events.k8s.io", "Event") => rename_all(value, &EVENT_FIELDS, true),
        ("autoscaling", "HorizontalPodAutoscaler") => autoscaler_from_v1(value),
        _ => {}
    }
}

/// Fields of `core/v1 Event` and what `events.k8s.io/v1` calls them.
const EVENT_FIELDS: [(&str, &str); 8] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
    ("reportingInstance", "reportingInstance"),
];

fn rename_all(value: &mut Value, names: &[(&str, &str)], back: bool) {
    let Some(fields) = value.as_object_mut() else { return };
    for (core, new) in names {
        let (from, to) = if back { (new, core) } else { (core, new) };
        if let Some(field) = fields.remove(*from) {
            fields.insert((*to).to_owned(), field);
        }
    }
}

/// Where `autoscaling/v1` keeps what it has no fields for, so that writing it back loses nothing.
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";

fn is_cpu_utilization(metric: &Value) -> bool {
    metric["type"] == "Resource"
        && metric["resource"]["name"] == "cpu"
        && metric["resource"]["target"]["type"] == "Utilization"
}

fn autoscaler_to_v1(value: &mut Value) {
    let metrics = value
        .get_mut("spec")
        .and_then(Value::as_object_mut)
        .and_then(|spec| spec.remove("metrics"));
    let metrics = metrics.as_ref().and_then(Value::as_array).cloned().unwrap_or_default();
    let (cpu, others): (Vec<_>, Vec<_>) = metrics.into_iter().partition(is_cpu_utilization);
    if let Some(cpu) = cpu.first() {
        value["spec"]["targetCPUUtilizationPercentage"] = cpu["resource"]["target"]["averageUtilization"].clone();
    }
    if !others.is_empty() {
        annotate(value, METRICS, &Value::Array(others));
    }
    if let Some(behavior) = value
        .get_mut("spec")
        .and_then(Value::as_object_mut)
        .and_then(|spec| spec.remove("behavior"))
    {
        annotate(value, BEHAVIOR, &behavior);
    }
    if let Some(status) = value.get_mut("status").and_then(Value::as_object_mut) {
        let current = status.remove("currentMetrics").unwrap_or_default();
        let conditions = status.remove("conditions");
        let cpu = current
            .as_array()
            .into_iter()
            .flatten()
            .find(|it| it["type"] == "Resource" && it["resource"]["name"] == "cpu");
        let percent = cpu
            .and_then(|it| it["resource"]["current"].get("averageUtilization"))
            .cloned();
        if let Some(percent) = percent.filter(|it| !it.is_null()) {
            status.insert("currentCPUUtilizationPercentage".to_owned(), percent);
        }
        for (name, kept) in [
            (CONDITIONS, conditions),
            (CURRENT, Some(current).filter(|it| !it.is_null())),
        ] {
            if let Some(kept) = kept {
                annotate(value, name, &kept);
            }
        }
    }
}

fn autoscaler_from_v1(value: &mut Value) {
    let percent = value
        .get_mut("spec")
        .and_then(Value::as_object_mut)
        .and_then(|spec| spec.remove("targetCPUUtilizationPercentage"));
    let mut metrics = take_annotation(value, METRICS)
        .and_then(|it| it.as_array().cloned())
        .unwrap_or_default();
    if let Some(percent) = percent.filter(|it| !it.is_null()) {
        let target = json!({ "type": "Utilization", "averageUtilization": percent });
        metrics.insert(
            0,
            json!({ "type": "Resource", "resource": { "name": "cpu", "target": target } }),
        );
    }
    if !metrics.is_empty() {
        object::set_at(value, "spec.metrics", Value::Array(metrics));
    }
    if let Some(behavior) = take_annotation(value, BEHAVIOR) {
        object::set_at(value, "spec.behavior", behavior);
    }
    let (conditions, current) = (take_annotation(value, CONDITIONS), take_annotation(value, CURRENT));
    if let Some(status) = value.get_mut("status").and_then(Value::as_object_mut) {
        let percent = status.remove("currentCPUUtilizationPercentage");
        if let Some(conditions) = conditions {
            status.insert("conditions".to_owned(), conditions);
        }
        let of_percent = || {
            let current = json!({ "averageUtilization": percent, "averageValue": "0" });
            let metric = json!({ "type": "Resource", "resource": { "name": "cpu", "current": current } });
            percent.as_ref().map(|_| json!([metric]))
        };
        if let Some(current) = current.or_else(of_percent) {
            status.insert("currentMetrics".to_owned(), current);
        }
    }
}

fn annotate(value: &mut Value, name: &str, content: &Value) {
    object::meta_mut(value);
    object::child_mut(&mut value["metadata"], "annotations").insert(name.to_owned(), json!(content.to_string()));
}

fn take_annotation(value: &mut Value, name: &str) -> Option<Value> {
    let annotations = value.get_mut("metadata")?.get_mut("annotations")?.as_object_mut()?;
    let text = annotations.remove(name)?;
    if annotations.is_empty() {
        object::set_meta(value, "annotations", None);
    }
    serde_json::from_str(text.as_str()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn autoscalers_survive_the_old_version() {
        let new = json!({
            "metadata": { "name": "a" },
            "spec": {
                "minReplicas": 1, "maxReplicas": 3, "behavior": { "scaleDown": { "selectPolicy": "Min" } },
                "metrics": [
                    { "type": "Resource", "resource": { "name": "cpu", "target": { "type": "Utilization", "averageUtilization": 80 } } },
                    { "type": "Resource", "resource": { "name": "memory", "target": { "type": "AverageValue", "averageValue": "1Gi" } } },
                ],
            },
            "status": {
                "conditions": [{ "type": "AbleToScale", "status": "True" }],
                "currentMetrics": [{ "type": "Resource", "resource": { "name": "cpu", "current": { "averageUtilization": 7, "averageValue": "1" } } }],
            },
        });
        let mut value = new.clone();
        autoscaler_to_v1(&mut value);
        assert_eq!(value["spec"]["targetCPUUtilizationPercentage"], 80);
        assert!(value["spec"].get("metrics").is_none());
        autoscaler_from_v1(&mut value);
        assert_eq!(value, new);
    }

    #[test]
    fn events_are_renamed_both_ways() {
        let core = json!({ "involvedObject": { "name": "p" }, "message": "m", "count": 2, "reason": "R" });
        let mut value = core.clone();
        rename_all(&mut value, &EVENT_FIELDS, false);
        assert_eq!(
            value,
            json!({ "regarding": { "name": "p" }, "note": "m", "deprecatedCount": 2, "reason": "R" })
        );
        rename_all(&mut value, &EVENT_FIELDS, true);
        assert_eq!(value, core);
    }
}
