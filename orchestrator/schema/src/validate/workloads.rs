//! Controllers of pods. Source: field documentation of `apps/v1`, `batch/v1`, `autoscaling` and `policy/v1`.

use super::{Causes, Path, entries, is_empty, items, number, same, table::Call, text};
use crate::names;
use serde_json::{Value, json};

pub(super) fn call(name: &str) -> Option<Call> {
    Some(match name {
        "deployment" => deployment,
        "replica-set" => |spec, path, causes| replicating("ReplicaSet", spec, path, causes),
        "daemon-set" => daemon_set,
        "stateful-set" => |spec, path, causes| replicating("StatefulSet", spec, path, causes),
        "replication-controller" => replication_controller,
        "job" => job,
        "job-spec" => job_spec,
        "cron-job" => cron_job,
        "autoscaler" => autoscaler,
        "metric" => metric,
        "disruption-budget" => disruption_budget,
        _ => return None,
    })
}

/// A count from 0, or a percentage.
pub(super) fn not_negative(value: &Value, path: &Path<'_>, causes: &mut Causes) {
    match value {
        Value::String(share) => causes.all_invalid(path, value, names::percent(share)),
        _ if number(value) < 0 => causes.invalid(path, value, "must be greater than or equal to 0"),
        _ => {}
    }
}

/// Whether a `LabelSelector` selects these labels.
fn selects(selector: &Value, labels: &Value) -> bool {
    let label = |key: &str| labels.get(key);
    let expression = |it: &Value| {
        let value = label(text(&it["key"]));
        let among = value.is_some_and(|value| items(&it["values"]).contains(value));
        match text(&it["operator"]) {
            "In" => among,
            "NotIn" => !among,
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    };
    entries(&selector["matchLabels"]).all(|(key, value)| label(key) == Some(value))
        && items(&selector["matchExpressions"]).iter().all(expression)
}

/// What all that keep pods running have in common.
fn replicating(kind: &str, spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    let (selector, template) = (&spec["selector"], &spec["template"]);
    let path_of_template = path.child("template");
    let meta = path_of_template.child("metadata");
    let path_of_spec = path_of_template.child("spec");
    if selector.is_object() {
        if is_empty(&selector["matchLabels"]) && is_empty(&selector["matchExpressions"]) {
            let detail = format!("empty selector is invalid for {}", kind.to_lowercase());
            causes.invalid(&path.child("selector"), selector, &detail);
        } else if !selects(selector, &template["metadata"]["labels"]) {
            let detail = "`selector` does not match template `labels`";
            causes.invalid(&meta.child("labels"), &template["metadata"]["labels"], detail);
        }
    }
    always(kind, template, &path_of_spec, causes);
}

fn always(kind: &str, template: &Value, path: &Path<'_>, causes: &mut Causes) {
    let policy = &template["spec"]["restartPolicy"];
    if !is_empty(policy) && text(policy) != "Always" {
        causes.not_supported(&path.child("restartPolicy"), policy, &["Always"]);
    }
    if !template["spec"]["activeDeadlineSeconds"].is_null() {
        let detail = format!("activeDeadlineSeconds in {kind} is not Supported");
        causes.forbidden(&path.child("activeDeadlineSeconds"), &detail);
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::String(share) => share.trim_end_matches('%').parse() == Ok(0),
        _ => number(value) == 0,
    }
}

fn over_all(value: &Value) -> bool {
    let share = text(value).strip_suffix('%').and_then(|it| it.parse::<u32>().ok());
    share.is_some_and(|it| it > 100)
}

fn deployment(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    replicating("Deployment", spec, path, causes);
    let strategy = &spec["strategy"];
    let path_of_strategy = path.child("strategy");
    let rolling = path_of_strategy.child("rollingUpdate");
    match text(&strategy["type"]) {
        "Recreate" if !strategy["rollingUpdate"].is_null() => {
            causes.forbidden(&rolling, "may not be specified when strategy `type` is 'Recreate'");
        }
        "RollingUpdate" if strategy["rollingUpdate"].is_object() => {
            let update = &strategy["rollingUpdate"];
            if is_zero(&update["maxUnavailable"]) && is_zero(&update["maxSurge"]) {
                let detail = "may not be 0 when `maxSurge` is 0";
                causes.invalid(&rolling.child("maxUnavailable"), &update["maxUnavailable"], detail);
            }
            if over_all(&update["maxUnavailable"]) {
                let detail = "must not be greater than 100%";
                causes.invalid(&rolling.child("maxUnavailable"), &update["maxUnavailable"], detail);
            }
        }
        _ => {}
    }
    let deadline = &spec["progressDeadlineSeconds"];
    if deadline
        .as_i64()
        .is_some_and(|it| it <= number(&spec["minReadySeconds"]))
    {
        causes.invalid(
            &path.child("progressDeadlineSeconds"),
            deadline,
            "must be greater than minReadySeconds",
        );
    }
}

fn daemon_set(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    replicating("DaemonSet", spec, path, causes);
    let update = &spec["updateStrategy"]["rollingUpdate"];
    if text(&spec["updateStrategy"]["type"]) != "RollingUpdate" || !update.is_object() {
        return;
    }
    let path = path.child("updateStrategy");
    let path = path.child("rollingUpdate");
    match (is_zero(&update["maxUnavailable"]), is_zero(&update["maxSurge"])) {
        (true, true) => {
            let detail = "cannot be 0 when maxSurge is 0";
            causes.invalid(&path.child("maxUnavailable"), &update["maxUnavailable"], detail);
        }
        (false, false) => {
            let detail = "may not be set when maxUnavailable is non-zero";
            causes.invalid(&path.child("maxSurge"), &update["maxSurge"], detail);
        }
        _ => {}
    }
}

fn replication_controller(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    let template = &spec["template"];
    let labels = &template["metadata"]["labels"];
    let path = path.child("template");
    if !entries(&spec["selector"]).all(|(key, value)| labels.get(key) == Some(value)) {
        let path = path.child("metadata");
        causes.invalid(
            &path.child("labels"),
            labels,
            "`selector` does not match template `labels`",
        );
    }
    always("ReplicationController", template, &path.child("spec"), causes);
}

/// The object with a volume in its template for each of its `volumeClaimTemplates`, as its pods will have.
pub(super) fn with_claimed_volumes(object: &Value) -> Value {
    let mut object = object.clone();
    let claims = items(&object["spec"]["volumeClaimTemplates"]).iter();
    let claims: Vec<Value> = claims
        .map(|it| it["metadata"]["name"].clone())
        .filter(Value::is_string)
        .collect();
    if let Some(spec) = object.pointer_mut("/spec/template/spec").and_then(Value::as_object_mut) {
        let volumes = spec.entry("volumes").or_insert(Value::Null);
        if volumes.is_null() {
            *volumes = Value::Array(Vec::new());
        }
        for name in claims {
            if let Some(volumes) = volumes.as_array_mut()
                && !volumes.iter().any(|it| it["name"] == name)
            {
                volumes.push(json!({"name": name, "emptyDir": {}}));
            }
        }
    }
    object
}

/// Source: `StatefulSetSpec`: its mutable fields.
pub(super) fn stateful_set_update(old: &Value, new: &Value, path: &Path<'_>, causes: &mut Causes) {
    const MUTABLE: [&str; 7] = [
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    ];
    let rest = |object: &Value| -> Value {
        let fields = entries(&object["spec"]).filter(|(name, _)| !MUTABLE.contains(&name.as_str()));
        let fields = fields.map(|(name, value)| (name.clone(), value.clone()));
        Value::Object(fields.collect())
    };
    if !same(&rest(old), &rest(new)) {
        let detail = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
                      'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and \
                      'minReadySeconds' are forbidden";
        causes.forbidden(&path.child("spec"), detail);
    }
}

fn job(job: &Value, path: &Path<'_>, causes: &mut Causes) {
    let spec = &job["spec"];
    let labels = &spec["template"]["metadata"]["labels"];
    if spec["selector"].is_object() && !selects(&spec["selector"], labels) {
        let path = path.child("spec");
        let path = path.child("template");
        let path = path.child("metadata");
        causes.invalid(
            &path.child("labels"),
            labels,
            "`selector` does not match template `labels`",
        );
    }
}

fn job_spec(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    let indexed = text(&spec["completionMode"]) == "Indexed";
    if indexed && spec["completions"].is_null() {
        causes.required(&path.child("completions"), "when completion mode is Indexed");
    }
    if indexed && number(&spec["parallelism"]) > 100_000 && number(&spec["completions"]) > 100_000 {
        let detail = "must be less than or equal to 100000 when completion mode is Indexed";
        causes.invalid(&path.child("parallelism"), &spec["parallelism"], detail);
    }
    if !indexed && !spec["backoffLimitPerIndex"].is_null() {
        let detail = "requires indexed completion mode";
        causes.invalid(
            &path.child("backoffLimitPerIndex"),
            &spec["backoffLimitPerIndex"],
            detail,
        );
    }
    let path_of_template = path.child("template");
    let pod = path_of_template.child("spec");
    let policy = &spec["template"]["spec"]["restartPolicy"];
    if text(policy) == "Always" {
        causes.required(&pod.child("restartPolicy"), "valid values: \"OnFailure\", \"Never\"");
    }
    if !spec["podFailurePolicy"].is_null() && text(policy) != "Never" && !is_empty(policy) {
        let detail = "only \"Never\" is supported when podFailurePolicy is specified";
        causes.invalid(&pod.child("restartPolicy"), policy, detail);
    }
}

pub(super) fn job_update(old: &Value, new: &Value, path: &Path<'_>, causes: &mut Causes) {
    let (was, is) = (&old["spec"], &new["spec"]);
    let path = path.child("spec");
    if !same(&was["completions"], &is["completions"]) {
        let indexed = text(&is["completionMode"]) == "Indexed";
        if !indexed {
            causes.invalid(&path.child("completions"), &is["completions"], "field is immutable");
        } else if is["completions"] != is["parallelism"] {
            let detail = "can only be modified in tandem with spec.parallelism";
            causes.invalid(&path.child("completions"), &is["completions"], detail);
        }
    }
    // Before the first start, whoever queues jobs may say where they run.
    let open = was["suspend"] == true && old["status"]["startTime"].is_null();
    if !same(&closed(&was["template"], open), &closed(&is["template"], open)) {
        causes.invalid(&path.child("template"), &is["template"], "field is immutable");
    }
}

/// A template without what may change while a Job is suspended. Source: KEP-2926.
fn closed(template: &Value, open: bool) -> Value {
    let mut template = template.clone();
    if !open {
        return template;
    }
    for (part, fields) in [
        ("metadata", &["annotations", "labels"] as &[&str]),
        ("spec", &["nodeSelector", "affinity", "tolerations", "schedulingGates"]),
    ] {
        if let Some(part) = template.get_mut(part).and_then(Value::as_object_mut) {
            part.retain(|name, _| !fields.contains(&name.as_str()));
        }
    }
    for list in ["containers", "initContainers"] {
        let containers = template["spec"].get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            if let Some(container) = container.as_object_mut() {
                container.remove("resources");
            }
        }
    }
    template
}

fn cron_job(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    let (schedule, zone) = (&spec["schedule"], &spec["timeZone"]);
    let path_of_schedule = path.child("schedule");
    if text(schedule).contains("TZ") {
        let detail = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        causes.invalid(&path_of_schedule, schedule, detail);
    } else if !text(schedule).is_empty()
        && let Err(reason) = is_schedule(text(schedule))
    {
        causes.invalid(&path_of_schedule, schedule, &reason);
    }
    if zone.is_string() {
        let good = !text(zone).is_empty()
            && text(zone) != "Local"
            && text(zone)
                .bytes()
                .all(|it| it.is_ascii_alphanumeric() || b"/_+-".contains(&it));
        if !good {
            let detail = if text(zone).is_empty() {
                "timeZone must be nil or non-empty string"
            } else {
                "unknown time zone"
            };
            causes.invalid(&path.child("timeZone"), zone, detail);
        }
    }
    let template = path.child("jobTemplate");
    if is_empty(&spec["jobTemplate"]["spec"]) {
        let spec = template.child("spec");
        causes.required(&spec.child("template"), "");
    }
    if spec["jobTemplate"]["spec"]["manualSelector"] == true {
        let path = template.child("spec");
        let value = &spec["jobTemplate"]["spec"]["manualSelector"];
        causes.not_supported(&path.child("manualSelector"), value, &["nil", "false"]);
    }
}

/// Five fields of numbers, names, ranges, lists and steps, or `@daily` and the like. Source: `CronJobSpec.schedule`.
fn is_schedule(text: &str) -> Result<(), String> {
    if let Some(word) = text.strip_prefix('@') {
        let known = ["yearly", "annually", "monthly", "weekly", "daily", "midnight", "hourly"];
        let every = word
            .strip_prefix("every ")
            .is_some_and(|it| !it.is_empty() && it.ends_with(['s', 'm', 'h']));
        return match known.contains(&word) || every {
            true => Ok(()),
            false => Err(format!("unrecognized descriptor: {text}")),
        };
    }
    const MONTHS: [&str; 12] = [
        "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
    ];
    const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
    let bounds: [(u32, u32, &[&str]); 5] = [
        (0, 59, &[]),
        (0, 23, &[]),
        (1, 31, &[]),
        (1, 12, &MONTHS),
        (0, 6, &DAYS),
    ];
    let fields: Vec<&str> = text.split_whitespace().collect();
    if fields.len() != bounds.len() {
        return Err(format!(
            "expected exactly 5 fields, found {}: {:?}",
            fields.len(),
            fields
        ));
    }
    for (field, (min, max, names)) in fields.iter().zip(bounds) {
        for part in field.split(',') {
            if !is_schedule_part(part, min, max, names) {
                return Err(format!("failed to parse {field:?}: must be within {min}-{max}"));
            }
        }
    }
    Ok(())
}

fn is_schedule_part(part: &str, min: u32, max: u32, names: &[&str]) -> bool {
    let number = |text: &str| {
        let name = text.to_ascii_lowercase();
        let named = names.iter().position(|it| *it == name).map(|it| it as u32 + min);
        named
            .or_else(|| text.parse().ok())
            .filter(|it| (min..=max).contains(it))
    };
    let (range, step) = part
        .split_once('/')
        .map_or((part, None), |(range, step)| (range, Some(step)));
    if step.is_some_and(|it| it.parse::<u32>().map_or(true, |it| it == 0)) {
        return false;
    }
    match range.split_once('-') {
        _ if matches!(range, "*" | "?") => true,
        Some((from, to)) => matches!((number(from), number(to)), (Some(from), Some(to)) if from <= to),
        None => number(range).is_some(),
    }
}

fn autoscaler(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    let (min, max) = (number(&spec["minReplicas"]), number(&spec["maxReplicas"]));
    let path = path.child("maxReplicas");
    if max < 1 {
        causes.invalid(&path, &spec["maxReplicas"], "must be greater than 0");
    }
    if max < min {
        causes.invalid(
            &path,
            &spec["maxReplicas"],
            "must be greater than or equal to `minReplicas`",
        );
    }
}

fn metric(metric: &Value, path: &Path<'_>, causes: &mut Causes) {
    let field = match text(&metric["type"]) {
        "Object" => "object",
        "Pods" => "pods",
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        "External" => "external",
        _ => return,
    };
    if metric[field].is_null() {
        let detail = format!("must populate information for the given metric source {field:?}");
        causes.required(&path.child(field), &detail);
    }
}

fn disruption_budget(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    let (min, max) = (&spec["minAvailable"], &spec["maxUnavailable"]);
    if !min.is_null() && !max.is_null() {
        causes.invalid(path, spec, "minAvailable and maxUnavailable cannot be both set");
    }
    for (field, value) in [("minAvailable", min), ("maxUnavailable", max)] {
        if over_all(value) {
            causes.invalid(&path.child(field), value, "must not be greater than 100%");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_schedule;

    #[test]
    fn schedules_are_known() {
        for good in [
            "* * * * *",
            "*/5 0-6 1,15 jan-mar MON-FRI",
            "0 0 1 1 ?",
            "@daily",
            "@every 1h30m",
            "1-9/2 * * * *",
        ] {
            assert!(is_schedule(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "* * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * * 13 *",
            "a * * * *",
            "*/0 * * * *",
            "@x",
            "5-1 * * * *",
            "1,,2 * * * *",
        ] {
            assert!(is_schedule(bad).is_err(), "{bad}");
        }
    }
}
