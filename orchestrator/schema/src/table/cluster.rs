//! Nodes, components, API services, devices.

use super::{Function, Row, condition, items, joined, joined_or, text, text_or};
use serde_json::Value;
use std::collections::BTreeSet;

pub(super) fn function(name: &str) -> Option<Function> {
    Some(match name {
        "node-status" => node_status,
        "node-roles" => node_roles,
        "node-address" => |row| {
            let of_type = |it: &&Value| text(&it["type"]) == row.word();
            let found = items(&row.object["status"]["addresses"]).find(of_type);
            found.map_or("<none>", |it| text_or(&it["address"], "<none>")).into()
        },
        "component-status" => |row| match component(row, "status") {
            "True" => "Healthy".into(),
            "False" => "Unhealthy".into(),
            _ => "Unknown".into(),
        },
        "component-message" => |row| component(row, "message").into(),
        "component-error" => |row| component(row, "error").into(),
        "api-service" => |row| {
            let service = &row.object["spec"]["service"];
            if service.is_object() {
                format!("{}/{}", text(&service["namespace"]), text(&service["name"])).into()
            } else {
                "Local".into()
            }
        },
        "api-service-available" => api_service_available,
        "resource-claim-state" => resource_claim_state,
        "resource-slice-node" => |row| text(&row.object["spec"]["nodeName"]).into(),
        _ => return None,
    })
}

fn node_status(row: &Row<'_>) -> Value {
    let ready = match condition(row.object, "Ready") {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    let closed = row.object["spec"]["unschedulable"] == true;
    format!("{ready}{}", if closed { ",SchedulingDisabled" } else { "" }).into()
}

/// What stands behind `node-role.kubernetes.io/`, and the value of `kubernetes.io/role`.
fn node_roles(row: &Row<'_>) -> Value {
    let labels = row.object["metadata"]["labels"].as_object().into_iter().flatten();
    let role = |(key, value): (&'_ String, &'_ Value)| match key.strip_prefix("node-role.kubernetes.io/") {
        Some(role) => role.to_owned(),
        None if key == "kubernetes.io/role" => text(value).to_owned(),
        None => String::new(),
    };
    let roles: BTreeSet<String> = labels.map(role).filter(|it| !it.is_empty()).collect();
    joined_or(roles, ",", "<none>").into()
}

fn component<'a>(row: &Row<'a>, field: &str) -> &'a str {
    let healthy = items(&row.object["conditions"]).find(|it| text(&it["type"]) == "Healthy");
    healthy.map_or("", |it| text(&it[field]))
}

fn api_service_available(row: &Row<'_>) -> Value {
    let available = items(&row.object["status"]["conditions"]).find(|it| text(&it["type"]) == "Available");
    let Some(available) = available else {
        return "Unknown".into();
    };
    match text(&available["status"]) {
        "True" => "True".into(),
        status => format!("{status} ({})", text(&available["reason"])).into(),
    }
}

fn resource_claim_state(row: &Row<'_>) -> Value {
    let status = &row.object["status"];
    let mut states = Vec::new();
    if row.is_deleted() {
        states.push("deleted");
    }
    if status["allocation"].is_object() {
        states.push("allocated");
        if items(&status["reservedFor"]).next().is_some() {
            states.push("reserved");
        }
    } else if states.is_empty() {
        states.push("pending");
    }
    joined(states, ",").into()
}
