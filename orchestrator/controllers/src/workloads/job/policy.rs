//! `spec.podFailurePolicy` and `spec.successPolicy`.

use super::{indexes::Indexes, pod};
use crate::workloads::pods;
use k8s_openapi::api::{
    batch::v1::{Job, PodFailurePolicyRule, SuccessPolicy},
    core::v1::Pod,
};
use kube::ResourceExt as _;

/// What a failed pod means for its Job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// One more failure.
    Count,
    /// No failure at all.
    Ignore,
    /// Its index has failed for good.
    FailIndex,
    /// The Job has failed; why.
    FailJob(String),
}

/// The verdict of the first rule that fits a failed pod.
pub(crate) fn judge(job: &Job, pod: &Pod) -> Verdict {
    let policy = job.spec.as_ref().and_then(|it| it.pod_failure_policy.as_ref());
    // A pod that only terminates has no end that could be judged yet.
    if pods::phase(pod) != "Failed" {
        return Verdict::Count;
    }
    for (position, rule) in policy.into_iter().flat_map(|it| &it.rules).enumerate() {
        let Some(found) = fits(rule, pod) else { continue };
        return match rule.action.as_str() {
            "Ignore" => Verdict::Ignore,
            "FailIndex" => Verdict::FailIndex,
            "FailJob" => Verdict::FailJob(format!("{found} matching FailJob rule at index {position}")),
            _ => Verdict::Count,
        };
    }
    Verdict::Count
}

fn fits(rule: &PodFailurePolicyRule, failed: &Pod) -> Option<String> {
    let about = format!("pod {}/{}", failed.namespace().unwrap_or_default(), failed.name_any());
    if let Some(codes) = &rule.on_exit_codes {
        let named = |name: &str| codes.container_name.as_deref().is_none_or(|it| it == name);
        return pod::containers(failed).filter(|it| named(&it.name)).find_map(|it| {
            let code = it.state.as_ref()?.terminated.as_ref()?.exit_code;
            let listed = codes.values.contains(&code);
            // Success is never a reason.
            let fits = code != 0 && if codes.operator == "NotIn" { !listed } else { listed };
            fits.then(|| format!("Container {} for {about} failed with exit code {code}", it.name))
        });
    }
    let patterns = rule.on_pod_conditions.as_deref().unwrap_or_default();
    patterns.iter().find_map(|pattern| {
        let wanted = pattern.status.as_deref().unwrap_or("True");
        let found = pods::condition(failed, &pattern.type_).filter(|it| it.status == wanted)?;
        Some(format!("P{} has condition {}", &about[1..], found.type_))
    })
}

/// Which rule of a success policy these indexes fulfil, in words.
pub(crate) fn succeeded(policy: &SuccessPolicy, done: &Indexes, completions: u32) -> Option<String> {
    policy.rules.iter().enumerate().find_map(|(position, rule)| {
        let wanted = rule
            .succeeded_indexes
            .as_deref()
            .map(|it| Indexes::parse(it, completions));
        let have = match &wanted {
            Some(wanted) => wanted.iter().filter(|it| done.contains(*it)).count(),
            None => done.len(),
        };
        let enough = match (rule.succeeded_count, &wanted) {
            (Some(count), _) => usize::try_from(count).is_ok_and(|count| have >= count),
            (None, Some(wanted)) => have == wanted.len(),
            (None, None) => false,
        };
        enough.then(|| format!("Matched rules at index {position}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn failed(code: i32, condition: &str) -> Pod {
        let state = json!({"terminated": {"exitCode": code}});
        let container =
            json!({"name": "main", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state});
        let conditions = json!([{"type": condition, "status": "True"}]);
        let status = json!({"phase": "Failed", "containerStatuses": [container], "conditions": conditions});
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"}, "status": status})).unwrap()
    }

    fn job(rules: Value) -> Job {
        let spec = json!({"template": {"spec": {"containers": []}}, "podFailurePolicy": {"rules": rules}});
        serde_json::from_value(json!({"metadata": {"name": "j"}, "spec": spec})).unwrap()
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let job = job(json!([
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": {"containerName": "main", "operator": "In", "values": [42]}},
            {"action": "FailJob", "onExitCodes": {"containerName": "other", "operator": "NotIn", "values": [9]}},
            {"action": "FailIndex", "onExitCodes": {"operator": "NotIn", "values": [1]}},
        ]));
        assert_eq!(judge(&job, &failed(42, "DisruptionTarget")), Verdict::Ignore);
        let message = "Container main for pod n/p failed with exit code 42 matching FailJob rule at index 1";
        assert_eq!(judge(&job, &failed(42, "Other")), Verdict::FailJob(message.to_owned()));
        assert_eq!(judge(&job, &failed(1, "Other")), Verdict::Count);
        assert_eq!(judge(&job, &failed(2, "Other")), Verdict::FailIndex);
        let mut running = failed(42, "Other");
        running.status.as_mut().unwrap().phase = Some("Running".to_owned());
        assert_eq!(judge(&job, &running), Verdict::Count);
    }

    #[test]
    fn success_by_indexes_or_count() {
        let policy = |rules: Value| serde_json::from_value::<SuccessPolicy>(json!({"rules": rules})).unwrap();
        let done = Indexes::parse("0,2-3", 10);
        let cases = [
            (json!([{"succeededIndexes": "0,2"}]), true),
            (json!([{"succeededIndexes": "0,1"}]), false),
            (json!([{"succeededIndexes": "0,1", "succeededCount": 1}]), true),
            (json!([{"succeededCount": 4}, {"succeededCount": 3}]), true),
            (json!([{"succeededCount": 4}]), false),
        ];
        for (rules, expected) in cases {
            assert_eq!(
                succeeded(&policy(rules.clone()), &done, 10).is_some(),
                expected,
                "{rules}"
            );
        }
    }
}
