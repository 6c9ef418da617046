//! Access, quotas, admission, certificates, flow control.

use super::{Function, Row, condition, items, joined, selector, text, text_of};
use jiff::SignedDuration;
use serde_json::Value;

pub(super) fn function(name: &str) -> Option<Function> {
    Some(match name {
        "role-ref" => |row| {
            let role = &row.object["roleRef"];
            format!("{}/{}", text(&role["kind"]), text(&role["name"])).into()
        },
        "subjects" => subjects,
        "quota" => quota,
        "param-kind" => |row| {
            let kind = &row.object["spec"]["paramKind"];
            if kind.is_object() {
                format!("{}/{}", text(&kind["apiVersion"]), text(&kind["kind"])).into()
            } else {
                "<unset>".into()
            }
        },
        "param-ref" => param_ref,
        "csr-duration" => |row| match row.object["spec"]["expirationSeconds"].as_i64() {
            Some(seconds) => super::human_duration(SignedDuration::from_secs(seconds)).into(),
            None => "<none>".into(),
        },
        "csr-condition" => csr_condition,
        "flow-schema-dangling" => |row| condition(row.object, "Dangling").unwrap_or("?").into(),
        _ => return None,
    })
}

fn subjects(row: &Row<'_>) -> Value {
    let of_kind = items(&row.object["subjects"]).filter(|it| text(&it["kind"]) == row.word());
    let name = |it: &Value| match row.word() {
        "ServiceAccount" => format!("{}/{}", text(&it["namespace"]), text(&it["name"])),
        _ => text(&it["name"]).to_owned(),
    };
    joined(of_kind.map(name), ", ").into()
}

/// `cpu: 1/2, memory: 1Gi/4Gi`: of what is limited, or of the rest.
fn quota(row: &Row<'_>) -> Value {
    let status = &row.object["status"];
    let mut hard: Vec<(&String, &Value)> = status["hard"].as_object().into_iter().flatten().collect();
    hard.sort_unstable_by_key(|(name, _)| *name);
    let of_limits = row.word() == "limits";
    let shown = hard
        .into_iter()
        .filter(|(name, _)| name.starts_with("limits.") == of_limits);
    let one = |(name, hard): (&String, &Value)| {
        let used = &status["used"][name.as_str()];
        let used = if used.is_null() { "0".into() } else { text_of(used) };
        format!("{name}: {used}/{}", text_of(hard))
    };
    joined(shown.map(one), ", ").into()
}

fn param_ref(row: &Row<'_>) -> Value {
    let param = &row.object["spec"]["paramRef"];
    let (namespace, name) = (text(&param["namespace"]), text(&param["name"]));
    match () {
        () if !param.is_object() => "<unset>".into(),
        () if name.is_empty() => selector(&param["selector"]).into(),
        () if namespace.is_empty() => format!("*/{name}").into(),
        () => format!("{namespace}/{name}").into(),
    }
}

/// `Approved,Issued`.
fn csr_condition(row: &Row<'_>) -> Value {
    let has = |ty: &str| items(&row.object["status"]["conditions"]).any(|it| text(&it["type"]) == ty);
    let decision = match () {
        () if has("Denied") => "Denied",
        () if has("Approved") => "Approved",
        () => "Pending",
    };
    let failed = if has("Failed") { ",Failed" } else { "" };
    let issued = if text(&row.object["status"]["certificate"]).is_empty() {
        ""
    } else {
        ",Issued"
    };
    format!("{decision}{failed}{issued}").into()
}
