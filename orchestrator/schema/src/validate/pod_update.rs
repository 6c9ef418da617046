//! What of a pod may change once it is there, and through which subresource.

use super::{Causes, FORBIDDEN, Path, items, number, same, text};
use serde_json::{Map, Value};

const MAIN: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
                    `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to \
                    existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was \
                    previously negative)";

/// The pod itself.
pub(super) fn pod(old: &Value, new: &Value, path: &Path<'_>, causes: &mut Causes) {
    let (was, is) = (&old["spec"], &new["spec"]);
    let path = path.child("spec");
    for list in ["containers", "initContainers"] {
        if items(&was[list]).len() != items(&is[list]).len() {
            causes.forbidden(&path.child(list), "pod updates may not add or remove containers");
            return;
        }
    }
    deadline(was, is, &path, causes);
    let gated = !items(&was["schedulingGates"]).is_empty();
    let mut allowed = is.clone();
    if let (Value::Object(allowed), Value::Object(was)) = (&mut allowed, was) {
        keep(allowed, was, "activeDeadlineSeconds");
        if number(&was.get("terminationGracePeriodSeconds").cloned().unwrap_or_default()) < 0
            && number(&is["terminationGracePeriodSeconds"]) == 1
        {
            keep(allowed, was, "terminationGracePeriodSeconds");
        }
        let before = was.get("tolerations").map(items).unwrap_or_default();
        if before.iter().all(|it| items(&is["tolerations"]).contains(it)) {
            keep(allowed, was, "tolerations");
        }
        let gates = was.get("schedulingGates").map(items).unwrap_or_default();
        if items(&is["schedulingGates"]).iter().all(|it| gates.contains(it)) {
            keep(allowed, was, "schedulingGates");
        }
        if gated {
            let selector = was.get("nodeSelector").unwrap_or(&Value::Null);
            if super::entries(selector).all(|(key, value)| is["nodeSelector"].get(key) == Some(value)) {
                keep(allowed, was, "nodeSelector");
            }
        }
    }
    for list in ["containers", "initContainers"] {
        keep_in_containers(&mut allowed, was, list, "image");
    }
    if !same(was, &allowed) {
        causes.add(
            "spec".into(),
            FORBIDDEN,
            format!("Forbidden: {MAIN}\n{}", difference(was, &allowed)),
        );
    }
}

/// Through a subresource.
pub(super) fn subresource(name: &str, old: &Value, new: &Value, causes: &mut Causes) {
    let (was, is) = (&old["spec"], &new["spec"]);
    let mut allowed = is.clone();
    let message = match name {
        "ephemeralcontainers" => {
            let (before, after) = (items(&was["ephemeralContainers"]), items(&is["ephemeralContainers"]));
            let path = Path::Root.child("spec");
            let path = path.child("ephemeralContainers");
            for container in before {
                let now = after.iter().find(|it| it["name"] == container["name"]);
                let detail = match now {
                    None => "existing ephemeral containers may not be removed",
                    Some(now) if !same(container, now) => "existing ephemeral containers may not be changed",
                    Some(_) => continue,
                };
                causes.forbidden(&path, &format!("{detail}: {:?}", text(&container["name"])));
            }
            if let (Value::Object(allowed), Value::Object(was)) = (&mut allowed, was) {
                keep(allowed, was, "ephemeralContainers");
            }
            "only ephemeral containers may be changed"
        }
        "resize" => {
            for list in ["containers", "initContainers"] {
                keep_in_containers(&mut allowed, was, list, "resources");
            }
            if let (Value::Object(allowed), Value::Object(was)) = (&mut allowed, was) {
                keep(allowed, was, "resources");
            }
            "only cpu and memory resources are mutable"
        }
        _ => return,
    };
    if !same(was, &allowed) {
        causes.add("spec".into(), FORBIDDEN, format!("Forbidden: {message}"));
    }
}

fn deadline(was: &Value, is: &Value, path: &Path<'_>, causes: &mut Causes) {
    let (before, after) = (&was["activeDeadlineSeconds"], &is["activeDeadlineSeconds"]);
    let path = path.child("activeDeadlineSeconds");
    match (before.as_i64(), after.as_i64()) {
        (Some(_), None) => causes.invalid(
            &path,
            &"".into(),
            "must not update from a positive integer to nil value",
        ),
        (Some(before), Some(now)) if now > before => {
            causes.invalid(&path, after, "must be less than or equal to previous value");
        }
        _ => {}
    }
}

/// Takes a field back to what it was.
fn keep(allowed: &mut Map<String, Value>, was: &Map<String, Value>, field: &str) {
    match was.get(field) {
        Some(value) => {
            allowed.insert(field.into(), value.clone());
        }
        None => {
            allowed.remove(field);
        }
    }
}

fn keep_in_containers(allowed: &mut Value, was: &Value, list: &str, field: &str) {
    let Some(containers) = allowed.get_mut(list).and_then(Value::as_array_mut) else {
        return;
    };
    for (container, was) in containers.iter_mut().zip(items(&was[list])) {
        if let (Value::Object(container), Value::Object(was)) = (container, was) {
            keep(container, was, field);
        }
    }
}

/// The fields that differ, one per line.
fn difference(was: &Value, is: &Value) -> String {
    const MOST: usize = 8;
    let names = super::entries(was).chain(super::entries(is)).map(|(name, _)| name);
    let mut names: Vec<&String> = names.filter(|it| !same(&was[it.as_str()], &is[it.as_str()])).collect();
    names.sort();
    names.dedup();
    let lines = names.iter().take(MOST).map(|it| {
        format!(
            "  {it}: {} -> {}\n",
            super::shown(&was[it.as_str()]),
            super::shown(&is[it.as_str()])
        )
    });
    lines.collect()
}
