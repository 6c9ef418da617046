//! Evictions against PodDisruptionBudgets.

use crate::{
    core::ApiServer,
    object,
    objects::Objects as _,
    selectors::LabelSelector,
    status::{Result, Status},
};
use fairlead_store::{Durability, Expect, Key, Operation, StoreError, Txn};
use serde_json::{Value, json};

const BUDGETS: &str = "policy/poddisruptionbudgets";
const TRIES: usize = 8;

/// Takes one allowed disruption from the budget of a pod. Source: `PodDisruptionBudgetStatus.disruptionsAllowed`.
///
/// # Errors
/// 429 when the budget has none; 500 when two budgets claim the pod.
pub(crate) async fn spend(server: &ApiServer, pod: &Value) -> Result<()> {
    let namespace = object::meta(pod, "namespace");
    for _ in 0..TRIES {
        let budgets: Vec<_> = server
            .list(BUDGETS, Some(namespace))
            .into_iter()
            .filter(|budget| {
                let selector = LabelSelector::from_object(&budget["spec"]["selector"]);
                !budget["spec"]["selector"].is_null() && selector.is_ok_and(|it| it.matches_object(pod))
            })
            .collect();
        let budget = match budgets.as_slice() {
            [] => return Ok(()),
            [one] => one,
            _ => {
                let message =
                    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
                return Err(Status::internal(message));
            }
        };
        let ready = pod["status"]["conditions"].as_array().into_iter().flatten();
        let ready = ready.clone().any(|it| it["type"] == "Ready" && it["status"] == "True");
        let always = budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow";
        if !ready && always {
            return Ok(());
        }
        let name = object::meta(budget, "name");
        let status = &budget["status"];
        let observed = status["observedGeneration"].as_i64().unwrap_or(0);
        if observed < budget["metadata"]["generation"].as_i64().unwrap_or(0) {
            let message = "Cannot evict pod as it would violate the pod's disruption budget.";
            let cause = format!("The disruption budget {name} is still being processed by the server.");
            return Err(Status::too_many_requests(message, 10).with_cause("DisruptionBudget", cause, ""));
        }
        let allowed = status["disruptionsAllowed"].as_i64().unwrap_or(0);
        let (current, desired) = (
            status["currentHealthy"].as_i64().unwrap_or(0),
            status["desiredHealthy"].as_i64().unwrap_or(0),
        );
        if !ready && current >= desired && desired > 0 {
            return Ok(());
        }
        if allowed <= 0 {
            let message = "Cannot evict pod as it would violate the pod's disruption budget.";
            let cause =
                format!("The disruption budget {name} needs {desired} healthy pods and has {current} currently");
            return Err(Status::too_many_requests(message, 0).with_cause("DisruptionBudget", cause, ""));
        }
        let key = Key {
            prefix: BUDGETS.into(),
            namespace: namespace.into(),
            name: name.into(),
        };
        let revision: u64 = object::meta(budget, "resourceVersion").parse().unwrap_or(0);
        let mut new = Value::clone(budget);
        object::set_at(&mut new, "status.disruptionsAllowed", json!(allowed - 1));
        object::child_mut(&mut new["status"], "disruptedPods").insert(
            object::meta(pod, "name").to_owned(),
            json!(object::time(jiff::Timestamp::now())),
        );
        object::set_meta(&mut new, "resourceVersion", None);
        let committed = server.cache.commit(Txn {
            key,
            expect: Expect::At(revision),
            operation: Operation::Put(fairlead_store::encode(&new)),
            durability: Durability::Durable,
        });
        match committed.await {
            Ok(_) => return Ok(()),
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(Status::internal(error)),
        }
    }
    Err(Status::too_many_requests(
        "the disruption budget is being changed by many; try again",
        1,
    ))
}
