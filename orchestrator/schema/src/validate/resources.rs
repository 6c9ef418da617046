//! Amounts and limits of them, nodes, events, priorities.

use super::{Causes, Path, entries, is_empty, items, number, same, shown, table::Call, text};
use crate::{names, quantity::Quantity};
use serde_json::Value;
use std::cmp::Ordering;

/// Priorities above are the system's. Source: `scheduling.HighestUserDefinablePriority`.
const HIGHEST_PRIORITY: i64 = 1_000_000_000;

pub(super) fn call(name: &str) -> Option<Call> {
    Some(match name {
        "resource-requirements" => requirements,
        "limit-range-item" => limit_range_item,
        "quota" => quota,
        "taint" => |taint, path, causes| {
            let value = &taint["value"];
            causes.all_invalid(&path.child("value"), value, names::label_value(text(value)));
        },
        "event" => |event, path, causes| {
            let (of, at) = (
                text(&event["involvedObject"]["namespace"]),
                text(&event["metadata"]["namespace"]),
            );
            if of != at && !(of.is_empty() && at == "default") {
                let path = path.child("involvedObject");
                causes.invalid(&path.child("namespace"), &of.into(), "does not match event.namespace");
            }
        },
        "priority-class" => |class, path, causes| {
            let name = text(&class["metadata"]["name"]);
            if name.starts_with("system-") {
                if !matches!(name, "system-cluster-critical" | "system-node-critical") {
                    let path = path.child("metadata");
                    let detail = "priority class names with 'system-' prefix are reserved for system use only";
                    causes.forbidden(&path.child("name"), detail);
                }
            } else if number(&class["value"]) > HIGHEST_PRIORITY {
                let detail = format!("maximum allowed value of a user defined priority is {HIGHEST_PRIORITY}");
                causes.forbidden(&path.child("value"), &detail);
            }
        },
        _ => return None,
    })
}

fn not_negative(amounts: &Value, path: &Path<'_>, causes: &mut Causes) {
    for (name, amount) in entries(amounts) {
        if Quantity::of(amount).is_some_and(|it| it.sign() == Ordering::Less) {
            causes.invalid(&path.key(name), amount, "must be greater than or equal to 0");
        }
    }
}

fn resource_name(name: &str, path: &Path<'_>, causes: &mut Causes) {
    let complaints = names::qualified_name(name);
    if !complaints.is_empty() {
        causes.all_invalid(path, &name.into(), complaints);
    } else if !name.contains('/')
        && !matches!(name, "cpu" | "memory" | "storage" | "ephemeral-storage")
        && !name.starts_with("hugepages-")
    {
        causes.invalid(
            path,
            &name.into(),
            "must be a standard resource type or fully qualified",
        );
    }
}

/// Whether the node can give more of it than it has.
fn is_overcommittable(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "storage" | "ephemeral-storage")
}

fn requirements(resources: &Value, path: &Path<'_>, causes: &mut Causes) {
    let (limits, requests) = (&resources["limits"], &resources["requests"]);
    for (field, amounts) in [("limits", limits), ("requests", requests)] {
        let path = path.child(field);
        not_negative(amounts, &path, causes);
        for (name, _) in entries(amounts) {
            resource_name(name, &path.key(name), causes);
        }
    }
    let path = path.child("requests");
    for (name, request) in entries(requests) {
        let limit = &limits[name.as_str()];
        match (Quantity::of(request), Quantity::of(limit)) {
            (Some(request_amount), Some(limit_amount)) if request_amount > limit_amount => {
                let limit = shown(limit).trim_matches('"').to_owned();
                let detail = format!("must be less than or equal to {name} limit of {limit}");
                causes.invalid(&path.key(name), request, &detail);
            }
            (Some(request_amount), Some(limit_amount))
                if !is_overcommittable(name) && request_amount != limit_amount =>
            {
                let limit = shown(limit).trim_matches('"').to_owned();
                let detail = format!("must be equal to {name} limit of {limit}");
                causes.invalid(&path.key(name), request, &detail);
            }
            (Some(_), None) if !is_overcommittable(name) => {
                causes.required(&path.key(name), "Limit must be set for non overcommitable resources");
            }
            _ => {}
        }
    }
}

/// Each bound lies within the next: `min`, `defaultRequest`, `default`, `max`.
fn limit_range_item(item: &Value, path: &Path<'_>, causes: &mut Causes) {
    let bounds = ["min", "defaultRequest", "default", "max"];
    for field in bounds.iter().chain(&["maxLimitRequestRatio"]) {
        not_negative(&item[*field], &path.child(field), causes);
    }
    for (low, lower) in bounds.iter().enumerate() {
        for upper in &bounds[low + 1..] {
            for (name, value) in entries(&item[*lower]) {
                let limit = &item[*upper][name.as_str()];
                if let (Some(value_amount), Some(limit_amount)) = (Quantity::of(value), Quantity::of(limit))
                    && value_amount > limit_amount
                {
                    let path = path.child(lower);
                    let (value_text, limit) = (text_of(value), text_of(limit));
                    let detail = format!("{lower} value {value_text} is greater than {upper} value {limit}");
                    causes.invalid(&path.key(name), value, &detail);
                }
            }
        }
    }
    if text(&item["type"]) == "Pod" {
        for field in ["default", "defaultRequest"] {
            if !is_empty(&item[field]) {
                causes.forbidden(&path.child(field), "may not be specified when `type` is 'Pod'");
            }
        }
    }
}

fn text_of(value: &Value) -> String {
    shown(value).trim_matches('"').to_owned()
}

fn quota(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    let path = path.child("hard");
    not_negative(&spec["hard"], &path, causes);
    for (name, amount) in entries(&spec["hard"]) {
        causes.all_invalid(&path.key(name), &name.as_str().into(), names::qualified_name(name));
        let counted = name.starts_with("count/") || matches!(&**name, "pods" | "services" | "secrets" | "configmaps");
        if counted && Quantity::of(amount).is_some_and(|it| !it.is_whole()) {
            causes.invalid(&path.key(name), amount, "must be an integer");
        }
    }
}

pub(super) fn quota_update(old: &Value, new: &Value, path: &Path<'_>, causes: &mut Causes) {
    let path = path.child("spec");
    if !same(&old["spec"]["scopes"], &new["spec"]["scopes"]) {
        causes.invalid(&path.child("scopes"), &new["spec"]["scopes"], "field is immutable");
    }
}

/// Where a node's pods and its machine are does not change.
pub(super) fn node_update(old: &Value, new: &Value, path: &Path<'_>, causes: &mut Causes) {
    let (was, is) = (&old["spec"], &new["spec"]);
    let path = path.child("spec");
    if !items(&was["podCIDRs"]).is_empty() && !same(&was["podCIDRs"], &is["podCIDRs"]) {
        causes.forbidden(
            &path.child("podCIDRs"),
            "node updates may not change podCIDR except from \"\" to valid",
        );
    }
    if !is_empty(&was["providerID"]) && !same(&was["providerID"], &is["providerID"]) {
        causes.forbidden(
            &path.child("providerID"),
            "node updates may not change providerID except from \"\" to valid",
        );
    }
}
