//! Jobs: the selector that tells their pods from all others.

use crate::object;
use serde_json::{Value, json};

/// Labels of a job's pods. Source: `JobSpec.manualSelector`; the unprefixed ones are older and still set.
pub(super) fn prepare_create(new: &mut Value) {
    if new["spec"]["manualSelector"] == json!(true) {
        return;
    }
    let (uid, name) = (
        object::meta(new, "uid").to_owned(),
        object::meta(new, "name").to_owned(),
    );
    object::child_mut(new, "spec");
    let template = object::child_mut(&mut new["spec"], "template");
    let mut template_value = Value::Object(std::mem::take(template));
    for (label, value) in [
        ("batch.kubernetes.io/controller-uid", &uid),
        ("controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
        ("job-name", &name),
    ] {
        object::child_mut(&mut template_value, "metadata");
        object::child_mut(&mut template_value["metadata"], "labels").insert(label.to_owned(), json!(value));
    }
    new["spec"]["template"] = template_value;
    let labels = object::child_mut(&mut new["spec"], "selector");
    let mut selector = Value::Object(std::mem::take(labels));
    object::child_mut(&mut selector, "matchLabels").insert("batch.kubernetes.io/controller-uid".to_owned(), json!(uid));
    new["spec"]["selector"] = selector;
}
