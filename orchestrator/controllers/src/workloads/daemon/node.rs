//! Whether a node is one for a DaemonSet: by selector, affinity and taints, as the scheduler would judge.

use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration};
use kube::ResourceExt as _;

/// What a node means for a DaemonSet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fit {
    /// A pod belongs there.
    pub(crate) run: bool,
    /// A pod that is there may stay.
    pub(crate) stay: bool,
}

/// How a node fits pods with this spec (with the tolerations that daemon pods get).
pub(crate) fn fit(spec: &PodSpec, node: &Node) -> Fit {
    let here = spec
        .node_name
        .as_ref()
        .is_none_or(|it| it.is_empty() || *it == node.name_any());
    if !here || !selected(spec, node) {
        return Fit {
            run: false,
            stay: false,
        };
    }
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let taints = node
        .spec
        .as_ref()
        .and_then(|it| it.taints.as_deref())
        .unwrap_or_default();
    let untolerated = |taint: &&Taint| !tolerations.iter().any(|it| tolerates(it, taint));
    let mut bad = taints
        .iter()
        .filter(untolerated)
        .filter(|it| it.effect != "PreferNoSchedule");
    let stay = !bad.clone().any(|it| it.effect == "NoExecute");
    let run = bad.next().is_none();
    Fit { run, stay }
}

/// Whether a toleration is for a taint. Source: `core/v1` Toleration.
pub(crate) fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let some = |text: &Option<String>| text.as_deref().filter(|it| !it.is_empty()).map(str::to_owned);
    if some(&toleration.effect).is_some_and(|it| it != taint.effect) {
        return false;
    }
    if some(&toleration.key).is_some_and(|it| it != taint.key) {
        return false;
    }
    match toleration.operator.as_deref() {
        Some("Exists") => true,
        None | Some("" | "Equal") => some(&toleration.key).is_some() && some(&toleration.value) == some(&taint.value),
        Some(_) => false,
    }
}

fn selected(spec: &PodSpec, node: &Node) -> bool {
    let labels = node.labels();
    let exact = spec.node_selector.iter().flatten();
    if !exact.into_iter().all(|(name, value)| labels.get(name) == Some(value)) {
        return false;
    }
    let affinity = spec.affinity.as_ref().and_then(|it| it.node_affinity.as_ref());
    let required = affinity.and_then(|it| it.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|it| it.node_selector_terms.iter().any(|it| term(it, node)))
}

fn term(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    // A term of nothing selects nothing.
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let name = node.name_any();
    let field = |it: &NodeSelectorRequirement| it.key == "metadata.name" && requirement(it, Some(&name));
    let label = |it: &NodeSelectorRequirement| requirement(it, node.labels().get(&it.key).map(String::as_str));
    expressions.iter().all(label) && fields.iter().all(field)
}

fn requirement(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let among = value.is_some_and(|value| values.iter().any(|it| it == value));
    let numbers = || {
        let have: i64 = value?.parse().ok()?;
        let bound: i64 = values.first()?.parse().ok()?;
        Some((have, bound))
    };
    match requirement.operator.as_str() {
        "In" => among,
        "NotIn" => !among,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => numbers().is_some_and(|(have, bound)| have > bound),
        "Lt" => numbers().is_some_and(|(have, bound)| have < bound),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn judge(spec: Value, node: Value) -> (bool, bool) {
        let mut spec = spec;
        spec["containers"] = json!([]);
        let spec: PodSpec = serde_json::from_value(spec).unwrap();
        let node: Node = serde_json::from_value(node).unwrap();
        let fit = fit(&spec, &node);
        (fit.run, fit.stay)
    }

    #[test]
    fn nodes_are_judged_by_labels_fields_and_taints() {
        let node = json!({"metadata": {"name": "n", "labels": {"disk": "ssd", "cores": "8"}}});
        let affinity = |terms: Value| {
            let required = json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}});
            json!({"affinity": {"nodeAffinity": required}})
        };
        let one = |key: &str, operator: &str, values: Value| {
            affinity(json!([{"matchExpressions": [{"key": key, "operator": operator, "values": values}]}]))
        };
        let cases = [
            (json!({}), true),
            (json!({"nodeSelector": {"disk": "ssd"}}), true),
            (json!({"nodeSelector": {"disk": "hdd"}}), false),
            (json!({"nodeName": "other"}), false),
            (one("disk", "In", json!(["hdd", "ssd"])), true),
            (one("disk", "NotIn", json!(["ssd"])), false),
            (one("none", "NotIn", json!(["ssd"])), true),
            (one("disk", "Exists", json!([])), true),
            (one("disk", "DoesNotExist", json!([])), false),
            (one("cores", "Gt", json!(["7"])), true),
            (one("cores", "Lt", json!(["8"])), false),
            (one("disk", "Gt", json!(["7"])), false),
            (affinity(json!([{}])), false),
            (
                affinity(json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}])),
                true,
            ),
            (
                affinity(json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["m"]}]}])),
                false,
            ),
        ];
        for (spec, fits) in cases {
            assert_eq!(judge(spec.clone(), node.clone()), (fits, fits), "{spec}");
        }
    }

    #[test]
    fn taints_keep_away_or_drive_away() {
        let node = |effect: &str| json!({"metadata": {"name": "n"}, "spec": {"taints": [{"key": "k", "value": "v", "effect": effect}]}});
        let tolerating = |toleration: Value| json!({"tolerations": [toleration]});
        assert_eq!(judge(json!({}), node("NoSchedule")), (false, true));
        assert_eq!(judge(json!({}), node("NoExecute")), (false, false));
        assert_eq!(judge(json!({}), node("PreferNoSchedule")), (true, true));
        let cases = [
            (json!({"operator": "Exists"}), true),
            (json!({"key": "k", "operator": "Exists"}), true),
            (json!({"key": "k", "value": "v"}), true),
            (json!({"key": "k", "value": "w"}), false),
            (json!({"key": "k", "value": "v", "effect": "NoSchedule"}), false),
            (json!({"key": "j", "operator": "Exists"}), false),
            (json!({"value": "v"}), false),
        ];
        for (toleration, fits) in cases {
            assert_eq!(
                judge(tolerating(toleration.clone()), node("NoExecute")).0,
                fits,
                "{toleration}"
            );
        }
    }
}
