//! `DefaultTolerationSeconds` and `TaintNodesByCondition`: five minutes of patience with nodes, none with new ones.

use super::{Operation, Plugin, Request, service_account::push};
use crate::{
    objects::{items, text},
    status::Status,
};
use serde_json::{Value, json};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// How long a pod stays bound to a node that is gone, seconds.
const PATIENCE_S: u32 = 300;

pub(super) struct DefaultTolerationSeconds;

impl Plugin for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    fn mutate(&self, request: &Request<'_>, pod: &mut Value) -> Result<(), Status> {
        if !request.attributes.is("", "pods", "") || !pod["spec"].is_object() {
            return Ok(());
        }
        for key in [NOT_READY, UNREACHABLE] {
            let tolerated = items(pod, "/spec/tolerations").iter().any(|it| {
                let (own, effect) = (text(it, "/key"), text(it, "/effect"));
                (own == key || own.is_empty()) && (effect == "NoExecute" || effect.is_empty())
            });
            if !tolerated {
                let added =
                    json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": PATIENCE_S});
                push(&mut pod["spec"], "tolerations", added);
            }
        }
        Ok(())
    }
}

pub(super) struct TaintNodesByCondition;

impl Plugin for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    fn mutate(&self, request: &Request<'_>, node: &mut Value) -> Result<(), Status> {
        if request.attributes.operation != Operation::Create || !request.attributes.is("", "nodes", "") {
            return Ok(());
        }
        let same = |it: &Value| text(it, "/key") == NOT_READY && text(it, "/effect") == "NoSchedule";
        if !items(node, "/spec/taints").iter().any(same) && node.is_object() {
            if !node["spec"].is_object() {
                node["spec"] = json!({});
            }
            push(
                &mut node["spec"],
                "taints",
                json!({"key": NOT_READY, "effect": "NoSchedule"}),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{admission::fixture::Case, objects::fake::Map};

    #[test]
    fn pods_wait_five_minutes_unless_they_say_otherwise() {
        let world = Map::default();
        for (tolerations, keys) in [
            (json!(null), vec![NOT_READY, UNREACHABLE]),
            (
                json!([{"key": NOT_READY, "operator": "Exists", "effect": "NoExecute"}]),
                vec![NOT_READY, UNREACHABLE],
            ),
            (
                json!([{"key": NOT_READY, "operator": "Exists", "effect": "NoSchedule"}]),
                vec![NOT_READY, NOT_READY, UNREACHABLE],
            ),
            (json!([{"operator": "Exists"}]), vec![""]),
        ] {
            let pod = json!({"metadata": {"namespace": "ns", "name": "p"}, "spec": {"tolerations": tolerations}});
            let (pod, _) = Case::create(&world, "pods", pod)
                .run(&DefaultTolerationSeconds)
                .unwrap();
            let found: Vec<&str> = items(&pod, "/spec/tolerations")
                .iter()
                .map(|it| text(it, "/key"))
                .collect();
            assert_eq!(found, keys, "{tolerations}");
        }
    }

    #[test]
    fn new_nodes_are_not_ready() {
        let world = Map::default();
        for node in [
            json!({"metadata": {"name": "n"}}),
            json!({"metadata": {"name": "n"}, "spec": {"taints": [
            {"key": NOT_READY, "effect": "NoSchedule"}]}}),
        ] {
            let (node, _) = Case::create(&world, "nodes", node).run(&TaintNodesByCondition).unwrap();
            assert_eq!(
                node["spec"]["taints"],
                json!([{"key": NOT_READY, "effect": "NoSchedule"}])
            );
        }
    }
}
