//! `LimitRanger`: defaults and bounds of a namespace for what containers, pods and claims ask for.

use super::{Operation, Plugin, Request, quantity::Quantity};
use crate::{
    objects::{items, pairs, text},
    status::Status,
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};

pub(super) struct LimitRanger;

/// Amounts by resource name.
pub(super) type Amounts = BTreeMap<String, Quantity>;

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

impl Plugin for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    fn mutate(&self, request: &Request<'_>, pod: &mut Value) -> Result<(), Status> {
        if request.creates("", "pods") && pod["spec"].is_object() {
            for range in ranges(request) {
                fill_in(pod, &range);
            }
        }
        Ok(())
    }

    fn validate(&self, request: &Request<'_>, object: Option<&Value>) -> Result<(), Status> {
        let Some(object) = object else { return Ok(()) };
        // Containers cannot change what they ask for afterwards, except by `resize`.
        let resizes = request.attributes.is("", "pods", "resize");
        let pods = request.creates("", "pods") || resizes;
        let claims = request.attributes.is("", "persistentvolumeclaims", "")
            && request.attributes.operation != Operation::Delete;
        if !pods && !claims {
            return Ok(());
        }
        for range in ranges(request) {
            let mut faults = Vec::new();
            for limit in items(&range, "/spec/limits") {
                match text(limit, "/type") {
                    "Container" if pods => {
                        for container in ["/spec/containers", "/spec/initContainers"]
                            .iter()
                            .flat_map(|it| items(object, it))
                        {
                            let asked = Asked::of(container);
                            asked.check(limit, &mut faults);
                        }
                    }
                    "Pod" if pods => Asked::of_pod(object).check(limit, &mut faults),
                    "PersistentVolumeClaim" if claims => {
                        let requests = amounts(object, "/spec/resources/requests");
                        // A claim has no limit; both bounds are of the request.
                        Asked {
                            limits: requests.clone(),
                            requests,
                        }
                        .check_claim(limit, &mut faults);
                    }
                    _ => {}
                }
            }
            match faults.as_slice() {
                [] => {}
                [one] => return Err(request.forbidden(one)),
                many => return Err(request.forbidden(format!("[{}]", many.join(", ")))),
            }
        }
        Ok(())
    }
}

fn ranges(request: &Request<'_>) -> Vec<Arc<Value>> {
    request
        .objects
        .list("core/limitranges", Some(request.attributes.namespace))
}

/// Amounts at a JSON pointer; what is none is left for validation to name.
pub(super) fn amounts(object: &Value, pointer: &str) -> Amounts {
    // Numbers are allowed where texts are usual.
    let members = object.pointer(pointer).and_then(Value::as_object).into_iter().flatten();
    let read = |it: &Value| match it {
        Value::String(text) => Quantity::parse(text),
        Value::Number(number) => Quantity::parse(&number.to_string()),
        _ => None,
    };
    members
        .filter_map(|(name, it)| Some((name.clone(), read(it)?)))
        .collect()
}

/// Requests and limits.
struct Asked {
    requests: Amounts,
    limits: Amounts,
}

impl Asked {
    fn of(container: &Value) -> Self {
        Self {
            requests: amounts(container, "/resources/requests"),
            limits: amounts(container, "/resources/limits"),
        }
    }

    fn of_pod(pod: &Value) -> Self {
        Self {
            requests: pod_amounts(pod, "requests"),
            limits: pod_amounts(pod, "limits"),
        }
    }

    fn check(&self, limit: &Value, faults: &mut Vec<String>) {
        let kind = text(limit, "/type");
        for (name, bound) in amounts(limit, "/min") {
            let intro = format!("minimum {name} usage per {kind} is {bound}");
            match (self.requests.get(&name), self.limits.get(&name)) {
                (None, _) => faults.push(format!("{intro}.  No request is specified")),
                (Some(it), _) if it.cmp_value(&bound).is_lt() => faults.push(format!("{intro}, but request is {it}")),
                (_, Some(it)) if it.cmp_value(&bound).is_lt() => faults.push(format!("{intro}, but limit is {it}")),
                _ => {}
            }
        }
        for (name, bound) in amounts(limit, "/max") {
            let intro = format!("maximum {name} usage per {kind} is {bound}");
            match (self.requests.get(&name), self.limits.get(&name)) {
                (_, None) => faults.push(format!("{intro}.  No limit is specified")),
                (_, Some(it)) if it.cmp_value(&bound).is_gt() => faults.push(format!("{intro}, but limit is {it}")),
                (Some(it), _) if it.cmp_value(&bound).is_gt() => faults.push(format!("{intro}, but request is {it}")),
                _ => {}
            }
        }
        for (name, bound) in amounts(limit, "/maxLimitRequestRatio") {
            let intro = format!("{name} max limit to request ratio per {kind} is {bound}");
            let some = |it: Option<&Quantity>| it.copied().filter(|it| !it.is_zero());
            match (some(self.requests.get(&name)), some(self.limits.get(&name))) {
                (None, _) => faults.push(format!("{intro}, but no request is specified or request is 0")),
                (_, None) => faults.push(format!("{intro}, but no limit is specified or limit is 0")),
                (Some(request), Some(limit)) => {
                    let ratio = limit.value() / request.value();
                    if ratio > bound.value() {
                        faults.push(format!("{intro}, but provided ratio is {ratio:.6}"));
                    }
                }
            }
        }
    }

    fn check_claim(&self, limit: &Value, faults: &mut Vec<String>) {
        for (name, bound) in amounts(limit, "/min") {
            let intro = format!("minimum {name} usage per PersistentVolumeClaim is {bound}");
            match self.requests.get(&name) {
                None => faults.push(format!("{intro}.  No request is specified")),
                Some(it) if it.cmp_value(&bound).is_lt() => faults.push(format!("{intro}, but request is {it}")),
                Some(_) => {}
            }
        }
        for (name, bound) in amounts(limit, "/max") {
            let intro = format!("maximum {name} usage per PersistentVolumeClaim is {bound}");
            match self.requests.get(&name) {
                None => faults.push(format!("{intro}.  No request is specified")),
                Some(it) if it.cmp_value(&bound).is_gt() => faults.push(format!("{intro}, but request is {it}")),
                Some(_) => {}
            }
        }
    }
}

/// What a pod asks for in all: containers run together, init containers one after the other, except those that stay
/// (`restartPolicy: Always`). What the pod itself asks for goes before. `kind`: `requests` or `limits`.
pub(super) fn pod_amounts(pod: &Value, kind: &str) -> Amounts {
    let at = format!("/resources/{kind}");
    let mut total = Amounts::new();
    for container in items(pod, "/spec/containers") {
        add(&mut total, &amounts(container, &at));
    }
    let (mut staying, mut peak) = (Amounts::new(), Amounts::new());
    for container in items(pod, "/spec/initContainers") {
        let own = amounts(container, &at);
        let mut at_once = staying.clone();
        add(&mut at_once, &own);
        if text(container, "/restartPolicy") == "Always" {
            add(&mut staying, &own);
            add(&mut total, &own);
        }
        for (name, it) in at_once {
            let slot = peak.entry(name).or_insert(Quantity::ZERO);
            *slot = slot.max(it);
        }
    }
    for (name, it) in peak {
        let slot = total.entry(name).or_insert(Quantity::ZERO);
        *slot = slot.max(it);
    }
    total.extend(amounts(pod, &format!("/spec/resources/{kind}")));
    total
}

pub(super) fn add(total: &mut Amounts, more: &Amounts) {
    for (name, it) in more {
        let slot = total.entry(name.clone()).or_insert(Quantity::ZERO);
        *slot = slot.plus(*it);
    }
}

/// Defaults for containers that do not say, and the annotation that tells which.
fn fill_in(pod: &mut Value, range: &Value) {
    let (mut limits, mut requests): (BTreeMap<String, String>, BTreeMap<String, String>) = Default::default();
    for limit in items(range, "/spec/limits")
        .iter()
        .filter(|it| text(it, "/type") == "Container")
    {
        let own = |pointer| pairs(limit, pointer).map(|(name, amount)| (name.to_owned(), amount.to_owned()));
        // What a range does not say follows from what it does: the most is the default, the default is asked for, and at
        // least the least.
        let mut default: BTreeMap<String, String> = own("/max").collect();
        default.extend(own("/default"));
        let mut request: BTreeMap<String, String> = own("/min").collect();
        request.extend(default.clone());
        request.extend(own("/defaultRequest"));
        limits.extend(default);
        requests.extend(request);
    }
    let mut told = Vec::new();
    for (list, word) in [("containers", "container"), ("initContainers", "init container")] {
        let containers = pod.pointer_mut(&format!("/spec/{list}")).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten().filter(|it| it.is_object()) {
            for (field, defaults, what) in [("requests", &requests, "request"), ("limits", &limits, "limit")] {
                let set = set_missing(container, field, defaults);
                if !set.is_empty() {
                    told.push(format!(
                        "{} {what} for {word} {}",
                        set.join(", "),
                        text(container, "/name")
                    ));
                }
            }
        }
    }
    if !told.is_empty() {
        pod["metadata"]["annotations"][ANNOTATION] = json!(format!("LimitRanger plugin set: {}", told.join("; ")));
    }
}

fn set_missing(container: &mut Value, field: &str, defaults: &BTreeMap<String, String>) -> Vec<String> {
    let mut set = Vec::new();
    let shaped = |it: Option<&Value>| it.is_none_or(|it| it.is_object() || it.is_null());
    if !shaped(container.get("resources")) || !shaped(container.pointer(&format!("/resources/{field}"))) {
        return set;
    }
    for (name, amount) in defaults {
        if container
            .pointer(&format!("/resources/{field}"))
            .and_then(|it| it.get(name))
            .is_none()
        {
            container["resources"][field][name] = json!(amount);
            set.push(name.clone());
        }
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{admission::fixture::Case, objects::fake::Map};

    #[allow(clippy::needless_pass_by_value)] // literals read better by value
    fn world(limits: Value) -> Map {
        let mut world = Map::default();
        world.put(
            "core/limitranges",
            json!({"metadata": {"namespace": "ns", "name": "l"}, "spec": {"limits": limits}}),
        );
        world
    }

    #[allow(clippy::needless_pass_by_value)] // literals read better by value
    fn pod(containers: Value) -> Value {
        json!({"metadata": {"namespace": "ns", "name": "p"}, "spec": {"containers": containers}})
    }

    #[test]
    fn containers_get_what_they_did_not_say() {
        let world = world(json!([{"type": "Container", "default": {"cpu": "1", "memory": "1Gi"},
            "defaultRequest": {"cpu": "500m"}}]));
        let given = pod(json!([{"name": "a"}, {"name": "b", "resources": {"limits": {"cpu": "2"}}}]));
        let (pod, _) = Case::create(&world, "pods", given).run(&LimitRanger).unwrap();
        let containers = &pod["spec"]["containers"];
        assert_eq!(
            containers[0]["resources"],
            json!({"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}})
        );
        assert_eq!(
            containers[1]["resources"]["limits"],
            json!({"cpu": "2", "memory": "1Gi"})
        );
        assert_eq!(
            annotation(&pod),
            "LimitRanger plugin set: cpu, memory request for container a; cpu, memory limit for container a; cpu, memory \
             request for container b; memory limit for container b"
        );
    }

    fn annotation(pod: &Value) -> &str {
        crate::objects::annotation(pod, ANNOTATION).unwrap_or_default()
    }

    #[test]
    fn bounds_hold() {
        let bounds = |kind: &str, bound: &str, amount: &str| json!([{"type": kind, bound: {"cpu": amount}}]);
        let one = |requests: &str, limits: &str| {
            let list = |it: &str| if it.is_empty() { json!({}) } else { json!({"cpu": it}) };
            json!({"name": "a", "resources": {"requests": list(requests), "limits": list(limits)}})
        };
        for (limits, containers, message) in [
            (bounds("Container", "min", "1"), json!([one("1", "")]), ""),
            (bounds("Container", "min", "1"), json!([one("", "")]), ""),
            (
                bounds("Pod", "min", "1"),
                json!([one("", "")]),
                "minimum cpu usage per Pod is 1.  No request is specified",
            ),
            (
                bounds("Container", "min", "1"),
                json!([one("500m", "")]),
                "minimum cpu usage per Container is 1, but request is 500m",
            ),
            (bounds("Container", "max", "1"), json!([one("", "1000m")]), ""),
            (
                bounds("Container", "max", "1"),
                json!([one("", "2")]),
                "maximum cpu usage per Container is 1, but limit is 2",
            ),
            (bounds("Container", "max", "1"), json!([one("", "")]), ""),
            (
                bounds("Pod", "max", "1"),
                json!([one("", "")]),
                "maximum cpu usage per Pod is 1.  No limit is specified",
            ),
            (
                bounds("Pod", "max", "1"),
                json!([one("", "600m"), one("", "600m")]),
                "maximum cpu usage per Pod is 1, but limit is 1200m",
            ),
            (
                bounds("Container", "maxLimitRequestRatio", "2"),
                json!([one("1", "2")]),
                "",
            ),
            (
                bounds("Container", "maxLimitRequestRatio", "2"),
                json!([one("1", "3")]),
                "cpu max limit to request ratio per Container is 2, but provided ratio is 3.000000",
            ),
            (
                bounds("Container", "maxLimitRequestRatio", "2"),
                json!([one("", "3")]),
                "cpu max limit to request ratio per Container is 2, but no request is specified or request is 0",
            ),
            (
                bounds("Container", "max", "1"),
                json!([one("", "2"), one("", "3")]),
                "[maximum cpu usage per Container is 1, but limit is 2, maximum cpu usage per Container is 1, but limit is 3]",
            ),
        ] {
            let result = Case::create(&world(limits.clone()), "pods", pod(containers)).run(&LimitRanger);
            let said = result
                .err()
                .map(|it| it.message.replace("pods \"p\" is forbidden: ", ""))
                .unwrap_or_default();
            assert_eq!(said, message, "{limits}");
        }
    }

    #[test]
    fn claims_are_bounded_by_their_request() {
        let world =
            world(json!([{"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}, "max": {"storage": "2Gi"}}]));
        for (size, message) in [
            ("1Gi", ""),
            (
                "2049Mi",
                "maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 2049Mi",
            ),
            (
                "1Mi",
                "minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 1Mi",
            ),
        ] {
            let claim = json!({"metadata": {"namespace": "ns", "name": "p"}, "spec": {"resources": {"requests":
                {"storage": size}}}});
            let result = Case::create(&world, "persistentvolumeclaims", claim).run(&LimitRanger);
            let said = result.err().map(|it| it.message).unwrap_or_default();
            assert!(
                said.ends_with(message) && said.is_empty() == message.is_empty(),
                "{said}"
            );
        }
    }

    #[test]
    fn init_containers_count_at_their_peak() {
        let pod = json!({"spec": {
            "containers": [{"resources": {"requests": {"cpu": "1"}}}, {"resources": {"requests": {"cpu": "1"}}}],
            "initContainers": [
                {"restartPolicy": "Always", "resources": {"requests": {"cpu": "500m"}}},
                {"resources": {"requests": {"cpu": "4", "memory": "1Gi"}}}],
        }});
        let total = pod_amounts(&pod, "requests");
        assert_eq!(
            (total["cpu"].to_string(), total["memory"].to_string()),
            ("4500m".to_owned(), "1Gi".to_owned())
        );
    }
}
