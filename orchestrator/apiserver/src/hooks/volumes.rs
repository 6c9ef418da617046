//! PersistentVolumes and their claims: first status.

use serde_json::{Value, json};

pub(super) fn prepare_create(new: &mut Value) {
    new["status"] = json!({ "phase": "Pending" });
}
