//! CertificateSigningRequests: who asks is what the server saw, not what the request says.

use crate::handlers::{
    Call,
    write::{Part, restore},
};
use serde_json::{Value, json};

pub(super) fn prepare_create(call: &Call, new: &mut Value) {
    let user = &call.user;
    if let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut) {
        for name in ["username", "uid", "groups", "extra"] {
            spec.remove(name);
        }
        spec.insert("username".to_owned(), json!(user.name));
        if !user.uid.is_empty() {
            spec.insert("uid".to_owned(), json!(user.uid));
        }
        if !user.groups.is_empty() {
            spec.insert("groups".to_owned(), json!(user.groups));
        }
        if !user.extra.is_empty() {
            spec.insert("extra".to_owned(), json!(user.extra));
        }
    }
    restore(&Value::Null, new, "status");
}

/// The status itself changes through `status` (the certificate) and `approval` (Approved and Denied) only.
pub(super) fn prepare_update(old: &Value, new: &mut Value, part: Part<'_>) {
    match part {
        Part::Main => {
            restore(old, new, "spec");
            restore(old, new, "status");
        }
        Part::Status => {
            let decided = |object: &Value| -> Vec<Value> {
                let all = object["status"]["conditions"].as_array().into_iter().flatten();
                all.filter(|it| matches!(it["type"].as_str(), Some("Approved" | "Denied")))
                    .cloned()
                    .collect()
            };
            let others = new["status"]["conditions"].as_array().into_iter().flatten();
            let others = others
                .filter(|it| !matches!(it["type"].as_str(), Some("Approved" | "Denied")))
                .cloned();
            let all: Vec<Value> = decided(old).into_iter().chain(others.collect::<Vec<_>>()).collect();
            if !all.is_empty() {
                crate::object::set_at(new, "status.conditions", Value::Array(all));
            }
        }
        Part::Other(_) => {
            let conditions = new["status"]["conditions"].clone();
            restore(old, new, "spec");
            restore(old, new, "status");
            if !conditions.is_null() {
                crate::object::set_at(new, "status.conditions", conditions);
            }
        }
    }
}
