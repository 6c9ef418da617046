//! Whether a container that ended is started again.

use k8s_openapi::api::core::v1::{Container, ContainerRestartRule, Pod};

/// When something is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Whenever it ends.
    Always,
    /// When it ends with another code than 0.
    OnFailure,
    /// Never.
    Never,
}

impl Policy {
    /// `Pod.spec.restartPolicy`.
    pub fn of_pod(pod: &Pod) -> Self {
        let text = pod.spec.as_ref().and_then(|it| it.restart_policy.as_deref());
        Self::read(text).unwrap_or(Self::Always)
    }

    fn read(text: Option<&str>) -> Option<Self> {
        match text? {
            "Always" => Some(Self::Always),
            "OnFailure" => Some(Self::OnFailure),
            "Never" => Some(Self::Never),
            _ => None,
        }
    }

    fn wants(self, exit_code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => exit_code != 0,
            Self::Never => false,
        }
    }
}

/// An init container that runs beside the others: `restartPolicy: Always` (KEP-753).
pub fn is_sidecar(init_container: &Container) -> bool {
    init_container.restart_policy.as_deref() == Some("Always")
}

/// Whether an app container that ended with this code starts again: rules of the container first, then its policy,
/// then the pod's (KEP-5307).
pub fn restarts(pod: &Pod, container: &Container, exit_code: i32) -> bool {
    let rules = container.restart_policy_rules.iter().flatten();
    if matches(rules, exit_code) {
        return true;
    }
    Policy::read(container.restart_policy.as_deref())
        .unwrap_or(Policy::of_pod(pod))
        .wants(exit_code)
}

/// Whether an init container that ended with this code starts again. One that succeeded never does, and the pod's
/// Always means `OnFailure` here.
pub fn init_restarts(pod: &Pod, container: &Container, exit_code: i32) -> bool {
    exit_code != 0 && restarts(pod, container, exit_code)
}

fn matches<'a>(mut rules: impl Iterator<Item = &'a ContainerRestartRule>, exit_code: i32) -> bool {
    rules.any(|rule| {
        let Some(codes) = &rule.exit_codes else { return false };
        let listed = codes.values.iter().flatten().any(|it| *it == exit_code);
        match codes.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn case(pod_policy: &str, container: &serde_json::Value, code: i32) -> bool {
        let pod: Pod =
            serde_json::from_value(json!({"spec": {"containers": [], "restartPolicy": pod_policy}})).unwrap();
        let mut named = json!({"name": "c"});
        named
            .as_object_mut()
            .unwrap()
            .extend(container.as_object().unwrap().clone());
        restarts(&pod, &serde_json::from_value(named).unwrap(), code)
    }

    #[test]
    fn rules_come_before_the_containers_policy_and_that_before_the_pods() {
        let rule = |operator: &str| json!({"restartPolicy": "Never", "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": operator, "values": [42]}}]});
        let table = [
            ("Always", json!({}), 0, true),
            ("OnFailure", json!({}), 0, false),
            ("OnFailure", json!({}), 1, true),
            ("Never", json!({}), 1, false),
            ("Never", json!({"restartPolicy": "Always"}), 0, true),
            ("Always", json!({"restartPolicy": "Never"}), 1, false),
            ("Always", json!({"restartPolicy": "OnFailure"}), 0, false),
            ("Always", rule("In"), 42, true),
            ("Always", rule("In"), 1, false),
            ("Always", rule("NotIn"), 42, false),
            ("Always", rule("NotIn"), 1, true),
        ];
        for (policy, container, code, expected) in table {
            assert_eq!(
                case(policy, &container, code),
                expected,
                "{policy} {container} {code}"
            );
        }
    }
}
