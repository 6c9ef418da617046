//! [`object`]: one built-in object in another version of its kind, for the kinds of which two versions are served.

use crate::resource::Resource;
use serde_json::{Map, Value, json};

/// Old and new names of an Event's fields. Source: `events/v1.Event`, which lists what it replaces.
const EVENT: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// Where version 1 of an autoscaler keeps what it has no fields for: annotation, path in version 2. The metrics are kept
/// as version 2 writes them.
const KEPT: [(&str, &str, &str); 4] = [
    ("autoscaling.alpha.kubernetes.io/metrics", "spec", "metrics"),
    ("autoscaling.alpha.kubernetes.io/behavior", "spec", "behavior"),
    (
        "autoscaling.alpha.kubernetes.io/current-metrics",
        "status",
        "currentMetrics",
    ),
    ("autoscaling.alpha.kubernetes.io/conditions", "status", "conditions"),
];

/// Turns an object of `from` into one of `to` in place. `false`, and nothing changed, when these are not two versions of
/// one kind that this code knows; an object that is one of `to` already stays as it is.
pub fn object(from: &Resource, to: &Resource, object: &mut Value) -> bool {
    let Some(fields) = object.as_object_mut() else {
        return false;
    };
    let names = |it: &Resource| (it.api_version(), it.kind.to_string());
    let ((from, kind), (to, other)) = (names(from), names(to));
    if kind != other {
        return false;
    }
    match (from.as_str(), to.as_str(), kind.as_str()) {
        (from, to, _) if from == to => return true,
        ("v1", "events.k8s.io/v1", "Event") => EVENT.iter().for_each(|(old, new)| rename(fields, old, new)),
        ("events.k8s.io/v1", "v1", "Event") => EVENT.iter().for_each(|(old, new)| rename(fields, new, old)),
        ("autoscaling/v1", "autoscaling/v2", "HorizontalPodAutoscaler") => to_v2(fields),
        ("autoscaling/v2", "autoscaling/v1", "HorizontalPodAutoscaler") => to_v1(fields),
        _ => return false,
    }
    fields.insert("apiVersion".into(), to.into());
    true
}

fn rename(fields: &mut Map<String, Value>, from: &str, to: &str) {
    if let Some(value) = fields.remove(from) {
        fields.insert(to.into(), value);
    }
}

fn part<'a>(fields: &'a mut Map<String, Value>, name: &str) -> Option<&'a mut Map<String, Value>> {
    fields.get_mut(name)?.as_object_mut()
}

/// As [`part`], made when it is not there.
fn make<'a>(fields: &'a mut Map<String, Value>, name: &str) -> Option<&'a mut Map<String, Value>> {
    let value = fields.entry(name).or_insert(Value::Null);
    if value.is_null() {
        *value = json!({});
    }
    value.as_object_mut()
}

fn is_cpu(metric: &Value) -> bool {
    metric["type"] == "Resource"
        && metric["resource"]["name"] == "cpu"
        && (metric["resource"]["target"]["averageUtilization"].is_i64()
            || metric["resource"]["current"]["averageUtilization"].is_i64())
}

fn to_v2(fields: &mut Map<String, Value>) {
    for (annotation, outer, inner) in KEPT {
        let annotations = part(fields, "metadata").and_then(|it| part(it, "annotations"));
        let kept = annotations.and_then(|it| it.remove(annotation));
        let kept = kept.and_then(|it| serde_json::from_str::<Value>(it.as_str()?).ok());
        if let (Some(kept), Some(outer)) = (kept, make(fields, outer)) {
            outer.insert(inner.into(), kept);
        }
    }
    drop_empty_annotations(fields);
    for (outer, from, list, field) in [
        ("spec", "targetCPUUtilizationPercentage", "metrics", "target"),
        ("status", "currentCPUUtilizationPercentage", "currentMetrics", "current"),
    ] {
        let Some(outer) = part(fields, outer) else {
            continue;
        };
        let Some(share) = outer.remove(from).filter(|it| !it.is_null()) else {
            continue;
        };
        let mut value = json!({"averageUtilization": share});
        if field == "target" {
            value["type"] = "Utilization".into();
        }
        let metric = json!({"type": "Resource", "resource": {"name": "cpu", field: value}});
        match outer.entry(list).or_insert_with(|| json!([])) {
            Value::Array(metrics) => metrics.insert(0, metric),
            other => *other = json!([metric]),
        }
    }
}

fn to_v1(fields: &mut Map<String, Value>) {
    for (outer, to, list, field) in [
        ("spec", "targetCPUUtilizationPercentage", "metrics", "target"),
        ("status", "currentCPUUtilizationPercentage", "currentMetrics", "current"),
    ] {
        let Some(outer) = part(fields, outer) else {
            continue;
        };
        let Some(metrics) = outer.get_mut(list).and_then(Value::as_array_mut) else {
            continue;
        };
        if metrics.first().is_some_and(is_cpu) {
            let metric = metrics.remove(0);
            if metrics.is_empty() {
                outer.remove(list);
            }
            outer.insert(to.into(), metric["resource"][field]["averageUtilization"].clone());
        }
    }
    for (annotation, outer, inner) in KEPT {
        let kept = part(fields, outer)
            .and_then(|it| it.remove(inner))
            .filter(|it| !it.is_null());
        let annotations = kept
            .as_ref()
            .and_then(|_| make(fields, "metadata"))
            .and_then(|it| make(it, "annotations"));
        if let (Some(kept), Some(annotations)) = (kept, annotations) {
            annotations.insert(annotation.into(), kept.to_string().into());
        }
    }
}

fn drop_empty_annotations(fields: &mut Map<String, Value>) {
    if let Some(metadata) = part(fields, "metadata")
        && metadata
            .get("annotations")
            .and_then(Value::as_object)
            .is_some_and(Map::is_empty)
    {
        metadata.remove("annotations");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{resource::Registry, samples};
    use proptest::prelude::*;

    fn converted(from: (&str, &str), to: (&str, &str), plural: &str, value: &Value) -> Value {
        let registry = Registry::builtin();
        let resource = |it: (&str, &str)| registry.resource(it.0, it.1, plural).unwrap().clone();
        let mut value = value.clone();
        assert!(object(&resource(from), &resource(to), &mut value));
        value
    }

    #[test]
    fn events_change_names() {
        let old = json!({"apiVersion": "v1", "kind": "Event", "message": "m", "involvedObject": {"kind": "Pod"},
            "count": 2, "reportingComponent": "c", "reason": "r"});
        let new = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "note": "m", "regarding": {"kind": "Pod"},
            "deprecatedCount": 2, "reportingController": "c", "reason": "r"});
        let (core, events) = (("", "v1"), ("events.k8s.io", "v1"));
        assert_eq!(converted(core, events, "events", &old), new);
        assert_eq!(converted(events, core, "events", &new), old);
    }

    #[test]
    fn autoscalers_keep_everything() {
        let new = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "a"},
            "spec": {"maxReplicas": 3, "behavior": {"scaleUp": {}}, "metrics": [
                {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}},
                {"type": "Pods", "pods": {"metric": {"name": "m"}}},
            ]},
            "status": {"currentMetrics": [
                {"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 5}}}]}});
        let (v1, v2) = (("autoscaling", "v1"), ("autoscaling", "v2"));
        let old = converted(v2, v1, "horizontalpodautoscalers", &new);
        assert_eq!(old["apiVersion"], "autoscaling/v1");
        assert_eq!(
            old["spec"],
            json!({"maxReplicas": 3, "targetCPUUtilizationPercentage": 80})
        );
        assert_eq!(old["status"], json!({"currentCPUUtilizationPercentage": 5}));
        assert_eq!(converted(v1, v2, "horizontalpodautoscalers", &old), new);
    }

    #[test]
    fn strangers_are_not_converted() {
        let registry = Registry::builtin();
        let resource = |group: &str, plural: &str| registry.resource(group, "v1", plural).unwrap().clone();
        let mut pod = json!({"kind": "Pod"});
        assert!(!object(&resource("", "pods"), &resource("", "nodes"), &mut pod));
        assert_eq!(pod, json!({"kind": "Pod"}));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_object_is_converted(junk in prop::collection::vec(samples::any_json(), 1..6), mut seed in any::<u64>()) {
            let registry = Registry::builtin();
            for from in registry.resources() {
                let stored = registry.stored(from).unwrap_or(from);
                let mut value = samples::full(&from.types, from.ty, 8, &mut seed);
                samples::mutilate(&mut value, &junk, &mut seed);
                if value.is_object() {
                    prop_assert!(object(from, stored, &mut value), "{} is stored", from.qualified());
                    prop_assert!(object(stored, from, &mut value), "{} is read", from.qualified());
                }
            }
        }
    }
}
