//! From client-side to server-side apply: `kubectl apply` kept its last configuration in an annotation, and what that says is
//! the same user's wish. Source: "Upgrading from client-side apply" of the Kubernetes documentation.

use super::{Write, merge::Comparison, set::FieldSet, typed::Typed};
use crate::value::{MAX_DEPTH, deeper_than};
use serde_json::{Map, Value};

/// The manager for which the annotation counts; others opted out by their name.
pub(super) const KUBECTL: &str = "kubectl";

const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Bytes of all annotations of an object. Source: apimachinery's `TotalAnnotationSizeLimitB`.
const MAX_ANNOTATION_BYTES: usize = 256 << 10;

/// The fields of the annotation that still are in the live object as it says. `None` without a usable annotation.
pub(super) fn unchanged_fields(write: &Write<'_>, live: &Value) -> Option<FieldSet> {
    let last: Value = serde_json::from_str(annotation(live)?).ok()?;
    if last.get("apiVersion").and_then(Value::as_str) != Some(write.api_version) || deeper_than(&last, MAX_DEPTH) {
        return None;
    }
    let typed = Typed::new(write.types, write.ty);
    typed.check(&last, true).ok()?;
    let changes = Comparison::of(typed, &last, live);
    let fields = typed.fields(&last);
    Some(
        fields
            .difference(&changes.modified)
            .difference(&changes.added)
            .difference(&changes.removed),
    )
}

/// Keeps the annotation of an object that has one up to date, for clients that still read it.
pub(super) fn refresh(object: &mut Value, config: &Value) {
    if annotation(object).is_none() {
        return;
    }
    let mut config = config.clone();
    if let Some(annotations) = annotations_mut(&mut config) {
        annotations.remove(ANNOTATION);
        if annotations.is_empty()
            && let Some(Value::Object(metadata)) = config.get_mut("metadata")
        {
            metadata.remove("annotations");
        }
    }
    let Some(annotations) = annotations_mut(object) else {
        return;
    };
    annotations.insert(ANNOTATION.into(), Value::String(format!("{config}\n")));
    let bytes = |(key, value): (&String, &Value)| key.len() + value.as_str().map_or(0, str::len);
    if annotations.iter().map(bytes).sum::<usize>() > MAX_ANNOTATION_BYTES {
        annotations.remove(ANNOTATION);
    }
}

fn annotation(object: &Value) -> Option<&str> {
    let text = object.get("metadata")?.get("annotations")?.get(ANNOTATION)?.as_str()?;
    (!text.is_empty()).then_some(text)
}

fn annotations_mut(object: &mut Value) -> Option<&mut Map<String, Value>> {
    object.get_mut("metadata")?.get_mut("annotations")?.as_object_mut()
}
