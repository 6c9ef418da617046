//! `RuntimeClass`: what running under another runtime costs, and where it can be.

use super::{Plugin, Request, quantity::Quantity, service_account::push};
use crate::{
    objects::{items, pairs, text},
    status::Status,
};
use serde_json::{Value, json};

pub(super) struct RuntimeClass;

impl Plugin for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    fn mutate(&self, request: &Request<'_>, pod: &mut Value) -> Result<(), Status> {
        if !request.creates("", "pods") {
            return Ok(());
        }
        let name = text(pod, "/spec/runtimeClassName").to_owned();
        let own = pod
            .pointer("/spec/overhead")
            .filter(|it| it.as_object().is_some_and(|it| !it.is_empty()))
            .cloned();
        let unasked = "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";
        if name.is_empty() {
            return if own.is_some() {
                Err(request.forbidden(unasked))
            } else {
                Ok(())
            };
        }
        let Some(class) = request.objects.get("node.k8s.io/runtimeclasses", "", &name) else {
            return Err(request.forbidden(format!("pod rejected: RuntimeClass {name:?} not found")));
        };
        match (class.pointer("/overhead/podFixed"), own) {
            (None | Some(Value::Null), Some(_)) => return Err(request.forbidden(unasked)),
            (Some(fixed), Some(own)) if !same_amounts(fixed, &own) => {
                return Err(
                    request.forbidden("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead")
                );
            }
            (Some(fixed), None) if fixed.is_object() => pod["spec"]["overhead"] = fixed.clone(),
            _ => {}
        }
        for (key, value) in pairs(&class, "/scheduling/nodeSelector") {
            let own = pod
                .pointer("/spec/nodeSelector")
                .and_then(|it| it.get(key))
                .and_then(Value::as_str);
            if let Some(own) = own.filter(|it| *it != value) {
                return Err(request.forbidden(format!(
                    "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {value}; pod.spec.nodeSelector[{key}] = {own}"
                )));
            }
            pod["spec"]["nodeSelector"][key] = json!(value);
        }
        for toleration in items(&class, "/scheduling/tolerations") {
            if !items(pod, "/spec/tolerations").contains(toleration) {
                push(&mut pod["spec"], "tolerations", toleration.clone());
            }
        }
        Ok(())
    }
}

fn same_amounts(a: &Value, b: &Value) -> bool {
    let amounts = |it: &Value| -> Vec<(String, Option<i128>)> {
        let all = pairs(it, "").map(|(key, it)| (key.to_owned(), Quantity::parse(it).map(|it| it.nanos())));
        let mut all: Vec<_> = all.collect();
        all.sort();
        all
    };
    amounts(a) == amounts(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{admission::fixture::Case, objects::fake::Map};

    #[test]
    fn the_class_adds_its_costs_and_places() {
        let mut world = Map::default();
        world.put(
            "node.k8s.io/runtimeclasses",
            json!({"metadata": {"name": "vm"}, "overhead": {"podFixed":
            {"memory": "1Gi"}}, "scheduling": {"nodeSelector": {"vm": "yes"}, "tolerations": [{"key": "vm"}]}}),
        );
        world.put("node.k8s.io/runtimeclasses", json!({"metadata": {"name": "plain"}}));
        let filled = json!({"runtimeClassName": "vm", "overhead": {"memory": "1Gi"}, "nodeSelector": {"vm": "yes"},
            "tolerations": [{"key": "vm"}]});
        for (spec, outcome) in [
            (json!({}), Ok(json!({}))),
            (json!({"runtimeClassName": "vm"}), Ok(filled.clone())),
            (filled.clone(), Ok(filled)),
            (
                json!({"runtimeClassName": "plain"}),
                Ok(json!({"runtimeClassName": "plain"})),
            ),
            (
                json!({"runtimeClassName": "gone"}),
                Err("pod rejected: RuntimeClass \"gone\" not found"),
            ),
            (json!({"overhead": {"memory": "1Gi"}}), Err("without corresponding")),
            (
                json!({"runtimeClassName": "plain", "overhead": {"memory": "1Gi"}}),
                Err("without corresponding"),
            ),
            (
                json!({"runtimeClassName": "vm", "overhead": {"memory": "2Gi"}}),
                Err("doesn't match"),
            ),
            (
                json!({"runtimeClassName": "vm", "nodeSelector": {"vm": "no"}}),
                Err("conflict"),
            ),
        ] {
            let pod = json!({"metadata": {"namespace": "ns", "name": "p"}, "spec": spec});
            match (Case::create(&world, "pods", pod).run(&RuntimeClass), outcome) {
                (Ok((pod, _)), Ok(expected)) => assert_eq!(pod["spec"], expected),
                (Err(refused), Err(part)) => assert!(refused.message.contains(part), "{refused}"),
                (result, _) => panic!("{spec}: {result:?}"),
            }
        }
    }
}
