//! Whether a pod may run on this node: what the scheduler decided is checked again, because it may have decided on
//! what is past, and because others may bind pods too.

use super::capacity::Capacity;
use crate::pod;
use fairlead_schema::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, NodeSelectorRequirement, NodeSelectorTerm, Pod};
use std::collections::BTreeMap;

/// Decides; `others` are the pods that run here already. The error is reason and message of the pod's status.
///
/// # Errors
/// The pod must not run here.
pub fn admit(
    pod: &Pod,
    name: &str,
    labels: &BTreeMap<String, String>,
    capacity: &Capacity,
    others: &[&Pod],
) -> Result<(), (String, String)> {
    if !selected(pod, name, labels) {
        return Err((
            "NodeAffinity".to_owned(),
            "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"
                .to_owned(),
        ));
    }
    let wanted = host_ports(pod);
    if others
        .iter()
        .any(|it| host_ports(it).iter().any(|it| wanted.contains(it)))
    {
        return Err((
            "NodePorts".to_owned(),
            "Pod was rejected: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"
                .to_owned(),
        ));
    }
    fits(pod, capacity, others)
}

fn fits(pod: &Pod, capacity: &Capacity, others: &[&Pod]) -> Result<(), (String, String)> {
    let lacks = |resource: &str, wanted: i128, used: i128, all: i128| {
        let message = format!(
            "Pod was rejected: Node didn't have enough resource: {resource}, requested: {wanted}, used: {used}, capacity: {all}"
        );
        Err((format!("OutOf{resource}"), message))
    };
    let pods = i128::from(capacity.pods);
    let running = i128::try_from(others.len()).unwrap_or(i128::MAX);
    if running >= pods {
        return lacks("pods", 1, running, pods);
    }
    let all = capacity.amounts();
    for resource in ["cpu", "memory", "ephemeral-storage"] {
        // Of CPU thousandths count, of the rest whole bytes.
        let unit = |it: Quantity| i128::from(if resource == "cpu" { it.millis() } else { it.whole() });
        let wanted = request(pod, resource, unit);
        if wanted == 0 {
            continue;
        }
        let used = others.iter().map(|it| request(it, resource, unit)).sum::<i128>();
        let capacity = all.get(resource).and_then(|it| Quantity::parse(it)).map_or(0, unit);
        if used + wanted > capacity {
            return lacks(resource, wanted, used, capacity);
        }
    }
    Ok(())
}

/// What a pod asks for as a whole: the containers and sidecars together, or the largest init container with the
/// sidecars before it, plus the overhead. Source: KEP-753.
fn request(pod: &Pod, resource: &str, unit: impl Fn(Quantity) -> i128 + Copy) -> i128 {
    let Some(spec) = &pod.spec else { return 0 };
    if let Some(it) = pod::pod_level(spec) {
        let amount = it
            .requests
            .as_ref()
            .or(it.limits.as_ref())
            .and_then(|it| it.get(resource));
        if let Some(amount) = amount.and_then(|it| Quantity::parse(&it.0)) {
            return unit(amount);
        }
    }
    let of = |container: &Container| {
        let resources = container.resources.as_ref();
        let amount = resources.and_then(|it| {
            let request = it.requests.as_ref().and_then(|it| it.get(resource));
            request.or_else(|| it.limits.as_ref()?.get(resource))
        });
        amount.and_then(|it| Quantity::parse(&it.0)).map_or(0, unit)
    };
    let mut sidecars = 0;
    let mut largest = 0;
    for init in spec.init_containers.iter().flatten() {
        if pod::is_sidecar(init) {
            sidecars += of(init);
            largest = largest.max(sidecars);
        } else {
            largest = largest.max(sidecars + of(init));
        }
    }
    let apps: i128 = spec.containers.iter().map(of).sum();
    let overhead = spec.overhead.as_ref().and_then(|it| it.get(resource));
    let overhead = overhead.and_then(|it| Quantity::parse(&it.0)).map_or(0, unit);
    (apps + sidecars).max(largest) + overhead
}

fn host_ports(pod: &Pod) -> Vec<(i32, String, String)> {
    let containers = pod.spec.iter().flat_map(|it| &it.containers);
    let sidecars = pod.spec.iter().flat_map(|it| it.init_containers.iter().flatten());
    let ports = containers.chain(sidecars).flat_map(|it| it.ports.iter().flatten());
    ports
        .filter_map(|it| {
            let port = it.host_port.filter(|it| *it > 0)?;
            let protocol = it.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            Some((port, protocol, it.host_ip.clone().unwrap_or_default()))
        })
        .collect()
}

fn selected(pod: &Pod, name: &str, labels: &BTreeMap<String, String>) -> bool {
    let Some(spec) = &pod.spec else { return true };
    let mut selector = spec.node_selector.iter().flatten();
    if !selector.all(|(key, value)| labels.get(key) == Some(value)) {
        return false;
    }
    let affinity = spec.affinity.as_ref().and_then(|it| it.node_affinity.as_ref());
    let required = affinity.and_then(|it| it.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|it| {
        it.node_selector_terms
            .iter()
            .any(|term| term_matches(term, name, labels))
    })
}

fn term_matches(term: &NodeSelectorTerm, name: &str, labels: &BTreeMap<String, String>) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    // An empty term matches nothing.
    !(expressions.is_empty() && fields.is_empty())
        && expressions
            .iter()
            .all(|it| matches(it, labels.get(&it.key).map(String::as_str)))
        && fields
            .iter()
            .all(|it| it.key == "metadata.name" && matches(it, Some(name)))
}

fn matches(it: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = it.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|value| values.iter().any(|it| it == value));
    let number = |text: Option<&str>| text.and_then(|it| it.parse::<i64>().ok());
    let bound = number(values.first().map(String::as_str));
    match it.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => number(value).zip(bound).is_some_and(|(have, bound)| have > bound),
        "Lt" => number(value).zip(bound).is_some_and(|(have, bound)| have < bound),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod_of;
    use serde_json::{Value, json};

    fn node() -> Capacity {
        Capacity {
            cpus: 2,
            memory_bytes: 1 << 30,
            storage_bytes: 1 << 30,
            pods: 3,
        }
    }

    fn asking(cpu: &str) -> Value {
        json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": cpu}}}]})
    }

    fn verdict(spec: Value, others: &[Value]) -> String {
        let others: Vec<Pod> = others.iter().cloned().map(pod_of).collect();
        let others: Vec<&Pod> = others.iter().collect();
        let labels = BTreeMap::from([
            ("disk".to_owned(), "ssd".to_owned()),
            ("cores".to_owned(), "8".to_owned()),
        ]);
        match admit(&pod_of(spec), "n1", &labels, &node(), &others) {
            Ok(()) => "fits".to_owned(),
            Err((reason, _)) => reason,
        }
    }

    #[test]
    fn pods_are_refused_for_what_the_node_lacks() {
        assert_eq!(verdict(asking("2"), &[]), "fits");
        assert_eq!(verdict(asking("1500m"), &[asking("500m")]), "fits");
        assert_eq!(verdict(asking("1501m"), &[asking("500m")]), "OutOfcpu");
        assert_eq!(
            verdict(asking("0"), &[asking("0"), asking("0"), asking("0")]),
            "OutOfpods"
        );
        let memory = json!({"containers": [{"name": "a", "resources": {"limits": {"memory": "2Gi"}}}]});
        assert_eq!(verdict(memory, &[]), "OutOfmemory");
        let init = json!({"initContainers": [{"name": "i", "resources": {"requests": {"cpu": "3"}}}], "containers": [{"name": "a"}]});
        assert_eq!(verdict(init, &[]), "OutOfcpu");
        let port = json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "hostPort": 80}]}]});
        assert_eq!(verdict(port.clone(), &[]), "fits");
        assert_eq!(verdict(port.clone(), &[port]), "NodePorts");
    }

    #[test]
    fn selectors_and_affinity_are_honoured() {
        let with = |key: &str, value: Value| {
            let mut spec = json!({"containers": [{"name": "a"}]});
            spec[key] = value;
            verdict(spec, &[])
        };
        assert_eq!(with("nodeSelector", json!({"disk": "ssd"})), "fits");
        assert_eq!(with("nodeSelector", json!({"disk": "tape"})), "NodeAffinity");
        for (term, fits) in [
            (
                json!({"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}),
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "disk", "operator": "NotIn", "values": ["ssd"]}]}),
                false,
            ),
            (
                json!({"matchExpressions": [{"key": "none", "operator": "DoesNotExist"}]}),
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "cores", "operator": "Gt", "values": ["7"]}]}),
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "cores", "operator": "Lt", "values": ["8"]}]}),
                false,
            ),
            (
                json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}),
                true,
            ),
            (json!({}), false),
        ] {
            let terms = json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}});
            let got = with("affinity", json!({ "nodeAffinity": terms }));
            assert_eq!(got == "fits", fits, "{term}");
        }
    }
}
