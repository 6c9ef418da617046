//! Pods: first status, quality of service, grace.

use crate::{
    handlers::write::{Part, restore},
    object,
};
use serde_json::{Value, json};

/// Seconds that a pod has after SIGTERM when nobody says. Source: `PodSpec.terminationGracePeriodSeconds`.
const GRACE_S: u64 = 30;

pub(super) fn prepare_create(new: &mut Value) {
    let class = quality_of_service(new);
    new["status"] = json!({ "phase": "Pending", "qosClass": class });
}

pub(super) fn prepare_update(old: &Value, new: &mut Value, part: Part<'_>) {
    match part {
        // The class follows from the spec and is no agent's to say.
        Part::Status => {
            if let Some(class) = old["status"].get("qosClass") {
                object::set_at(new, "status.qosClass", class.clone());
            }
        }
        Part::Other("ephemeralcontainers") => {
            let added = new["spec"].get("ephemeralContainers").cloned();
            only(old, new);
            if let Some(added) = added {
                object::set_at(new, "spec.ephemeralContainers", added);
            }
        }
        Part::Other("resize") => {
            let asked = new["spec"].clone();
            only(old, new);
            for list in ["containers", "initContainers"] {
                let asked = asked[list].as_array().cloned().unwrap_or_default();
                let Some(containers) = new["spec"].get_mut(list).and_then(Value::as_array_mut) else {
                    continue;
                };
                for container in containers {
                    let Some(wanted) = asked.iter().find(|it| it["name"] == container["name"]) else {
                        continue;
                    };
                    for field in ["resources", "resizePolicy"] {
                        restore(wanted, container, field);
                    }
                }
            }
        }
        _ => {}
    }
}

/// The old object, with the owners of fields that the request brings.
fn only(old: &Value, new: &mut Value) {
    let owners = new["metadata"].get("managedFields").cloned();
    new.clone_from(old);
    object::set_meta(new, "managedFields", owners);
}

/// `Guaranteed`, `Burstable` or `BestEffort`. Source: `PodStatus.qosClass`: guaranteed when every container limits CPU and
/// memory and requests just that.
fn quality_of_service(pod: &Value) -> &'static str {
    let lists = ["containers", "initContainers"];
    let containers = lists
        .iter()
        .flat_map(|list| pod["spec"][*list].as_array().into_iter().flatten());
    let (mut any, mut guaranteed) = (false, true);
    let set =
        |value: &Value| value.as_str().is_some_and(|text| !is_zero(text)) || value.as_f64().is_some_and(|it| it > 0.0);
    for container in containers {
        for resource in ["cpu", "memory"] {
            let limit = &container["resources"]["limits"][resource];
            let request = &container["resources"]["requests"][resource];
            any |= set(limit) || set(request);
            guaranteed &= set(limit) && (request.is_null() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

fn is_zero(quantity: &str) -> bool {
    let digits = quantity.chars().filter(char::is_ascii_digit);
    digits.clone().count() > 0 && digits.into_iter().all(|it| it == '0')
}

pub(super) fn grace_period(pod: &Value, asked: Option<u64>) -> u64 {
    let unscheduled = pod["spec"]["nodeName"].as_str().is_none_or(str::is_empty);
    let ended = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if unscheduled || ended {
        return 0;
    }
    let own = || pod["spec"]["terminationGracePeriodSeconds"].as_u64();
    asked.or_else(own).unwrap_or(GRACE_S)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes() {
        let pod = |resources: Value| json!({ "spec": { "containers": [{ "resources": resources }] } });
        for (resources, class) in [
            (json!({}), "BestEffort"),
            (json!({ "requests": { "cpu": "0" } }), "BestEffort"),
            (json!({ "requests": { "cpu": "10m" } }), "Burstable"),
            (json!({ "limits": { "cpu": "1", "memory": "1Gi" } }), "Guaranteed"),
            (
                json!({ "limits": { "cpu": "1", "memory": "1Gi" }, "requests": { "cpu": "1" } }),
                "Guaranteed",
            ),
            (
                json!({ "limits": { "cpu": "1", "memory": "1Gi" }, "requests": { "cpu": "500m" } }),
                "Burstable",
            ),
            (json!({ "limits": { "cpu": "1" } }), "Burstable"),
        ] {
            assert_eq!(quality_of_service(&pod(resources.clone())), class, "{resources}");
        }
    }

    #[test]
    fn grace() {
        let running = json!({ "spec": { "nodeName": "n", "terminationGracePeriodSeconds": 5 }, "status": { "phase": "Running" } });
        assert_eq!(grace_period(&running, None), 5);
        assert_eq!(grace_period(&running, Some(0)), 0);
        let pending = json!({ "spec": { "terminationGracePeriodSeconds": 5 } });
        assert_eq!(grace_period(&pending, Some(9)), 0);
        let ended = json!({ "spec": { "nodeName": "n" }, "status": { "phase": "Failed" } });
        assert_eq!(grace_period(&ended, None), 0);
    }
}
