//! Workloads: jobs, autoscalers, and who controls what.

use super::{Function, Row, condition, human_duration, items, shortened, text, text_of};
use jiff::Timestamp;
use serde_json::Value;

pub(super) fn function(name: &str) -> Option<Function> {
    Some(match name {
        "job-status" => job_status,
        "job-completions" => job_completions,
        "job-duration" => job_duration,
        "hpa-reference" => |row| {
            let target = &row.object["spec"]["scaleTargetRef"];
            format!("{}/{}", text(&target["kind"]), text(&target["name"])).into()
        },
        "hpa-targets" => hpa_targets,
        "controller" => controller,
        _ => return None,
    })
}

fn job_status(row: &Row<'_>) -> Value {
    let is = |ty: &str| condition(row.object, ty) == Some("True");
    match () {
        () if is("Complete") => "Complete",
        () if is("Failed") => "Failed",
        () if row.is_deleted() => "Terminating",
        () if is("Suspended") => "Suspended",
        () if is("FailureTarget") => "FailureTarget",
        () if is("SuccessCriteriaMet") => "SuccessCriteriaMet",
        () => "Running",
    }
    .into()
}

fn job_completions(row: &Row<'_>) -> Value {
    let succeeded = row.object["status"]["succeeded"].as_i64().unwrap_or(0);
    let spec = &row.object["spec"];
    let parallelism = spec["parallelism"].as_i64().unwrap_or(0);
    match spec["completions"].as_i64() {
        Some(completions) => format!("{succeeded}/{completions}"),
        None if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        None => format!("{succeeded}/1"),
    }
    .into()
}

fn job_duration(row: &Row<'_>) -> Value {
    let time = |name: &str| text(&row.object["status"][name]).parse::<Timestamp>().ok();
    let Some(start) = time("startTime") else {
        return "".into();
    };
    human_duration(time("completionTime").unwrap_or(row.now).duration_since(start)).into()
}

/// `cpu: 20%/80%`: what is, and what is wished, of each metric.
fn hpa_targets(row: &Row<'_>) -> Value {
    let (spec, status) = (&row.object["spec"], &row.object["status"]);
    let percent = |value: &Value, or: &str| value.as_i64().map_or(or.to_owned(), |it| format!("{it}%"));
    if !spec["targetCPUUtilizationPercentage"].is_null() {
        let now = percent(&status["currentCPUUtilizationPercentage"], "<unknown>");
        return format!(
            "cpu: {now}/{}",
            percent(&spec["targetCPUUtilizationPercentage"], "<auto>")
        )
        .into();
    }
    let quantity = |value: &Value, or: &str| if value.is_null() { or.to_owned() } else { text_of(value) };
    let target = |(index, metric): (usize, &Value)| {
        let (field, named) = match text(&metric["type"]) {
            "External" => ("external", false),
            "Pods" => ("pods", false),
            "Object" => ("object", false),
            "Resource" => ("resource", true),
            "ContainerResource" => ("containerResource", true),
            _ => return "<unknown type>".to_owned(),
        };
        let wish = &metric[field]["target"];
        let is = &status["currentMetrics"][index][field]["current"];
        let average = !wish["averageValue"].is_null();
        if named {
            let ratio = if average {
                format!(
                    "{}/{}",
                    quantity(&is["averageValue"], "<unknown>"),
                    quantity(&wish["averageValue"], "")
                )
            } else {
                let now = percent(&is["averageUtilization"], "<unknown>");
                format!("{now}/{}", percent(&wish["averageUtilization"], "<auto>"))
            };
            return format!("{}: {ratio}", text(&metric[field]["name"]));
        }
        let value = if average { "averageValue" } else { "value" };
        let ratio = format!("{}/{}", quantity(&is[value], "<unknown>"), quantity(&wish[value], ""));
        if average && field != "pods" {
            format!("{ratio} (avg)")
        } else {
            ratio
        }
    };
    let targets: Vec<String> = items(&spec["metrics"]).enumerate().map(target).collect();
    if targets.is_empty() {
        "<none>".into()
    } else {
        shortened(&targets, 2, ", ").into()
    }
}

/// `deployment.apps/web`.
fn controller(row: &Row<'_>) -> Value {
    let owners = &row.object["metadata"]["ownerReferences"];
    let Some(owner) = items(owners).find(|it| it["controller"] == true) else {
        return "<none>".into();
    };
    let (group, _) = crate::kinds::split_api_version(text(&owner["apiVersion"]));
    let kind = text(&owner["kind"]).to_ascii_lowercase();
    let dot = if group.is_empty() { "" } else { "." };
    format!("{kind}{dot}{group}/{}", text(&owner["name"])).into()
}
