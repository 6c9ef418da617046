//! What is stored and what is served: one JSON object each, the served one with `metadata.resourceVersion`.

use crate::Revision;
use bytes::Bytes;
use serde_json::{Map, Value};

/// Begins the metadata of a stored object. The first place where this is found is the real one: inside a JSON string the
/// quotes would be escaped, and before the metadata there are only strings.
const METADATA: &[u8] = br#""metadata":{"#;

/// Writes an object for [`crate::Operation::Put`]: `apiVersion`, `kind` and `metadata` first, without spaces and without
/// `metadata.resourceVersion`, so that the revision can be put in without reading the rest.
pub fn encode(value: &Value) -> Bytes {
    let empty = Map::new();
    let object = value.as_object().unwrap_or(&empty);
    let mut out = Vec::with_capacity(1024);
    out.push(b'{');
    for name in ["apiVersion", "kind"] {
        if let Some(Value::String(text)) = object.get(name) {
            member(&mut out, name, &Value::String(text.clone()));
            out.push(b',');
        }
    }
    out.extend_from_slice(METADATA);
    let mut separate = false;
    for (name, value) in object.get("metadata").and_then(Value::as_object).unwrap_or(&empty) {
        if name != "resourceVersion" {
            if separate {
                out.push(b',');
            }
            member(&mut out, name, value);
            separate = true;
        }
    }
    out.push(b'}');
    for (name, value) in object {
        let written = name == "metadata" || (value.is_string() && (name == "apiVersion" || name == "kind"));
        if !written {
            out.push(b',');
            member(&mut out, name, value);
        }
    }
    out.push(b'}');
    out.shrink_to_fit();
    Bytes::from(out)
}

fn member(out: &mut Vec<u8>, name: &str, value: &Value) {
    // Writing a `Value` into memory cannot fail: its keys are strings and a Vec takes every byte.
    let written = serde_json::to_writer(&mut *out, name).and_then(|()| {
        out.push(b':');
        serde_json::to_writer(&mut *out, value)
    });
    debug_assert!(written.is_ok());
}

/// The stored object with `metadata.resourceVersion` in it. What is not written as [`encode`] does is written anew; what is
/// not a JSON object is served as it is.
pub fn with_revision(stored: &Bytes, revision: Revision) -> Bytes {
    if let Some(served) = splice(stored, revision) {
        return served;
    }
    match serde_json::from_slice::<Value>(stored) {
        Ok(value) if value.is_object() => {
            let encoded = encode(&value);
            splice_at(&encoded, find(&encoded, METADATA), revision).unwrap_or(encoded)
        }
        _ => stored.clone(),
    }
}

/// Replaces the revision in what [`with_revision`] made.
pub(crate) fn replace_revision(served: &Bytes, from: Revision, to: Revision) -> Bytes {
    let member = format!(r#""resourceVersion":"{from}""#);
    let at = find(served, METADATA).map(|at| at + METADATA.len());
    match at.filter(|at| served[*at..].starts_with(member.as_bytes())) {
        Some(at) => {
            let new = format!(r#""resourceVersion":"{to}""#);
            let mut out = Vec::with_capacity(served.len() + 8);
            out.extend_from_slice(&served[..at]);
            out.extend_from_slice(new.as_bytes());
            out.extend_from_slice(&served[at + member.len()..]);
            out.into()
        }
        None => served.clone(),
    }
}

fn splice(stored: &[u8], revision: Revision) -> Option<Bytes> {
    let at = find(stored, METADATA);
    // An object or a list before it: not written by `encode`, and perhaps not the object's own metadata.
    let foreign = at.is_some_and(|at| stored[..at].windows(2).any(|it| it == b":{" || it == b":["));
    splice_at(stored, at.filter(|_| !foreign), revision)
}

fn splice_at(stored: &[u8], metadata: Option<usize>, revision: Revision) -> Option<Bytes> {
    let (head, tail) = stored.split_at(metadata? + METADATA.len());
    let separator = if tail.first()? == &b'}' { "" } else { "," };
    let member = format!(r#""resourceVersion":"{revision}"{separator}"#);
    let mut out = Vec::with_capacity(stored.len() + member.len());
    out.extend_from_slice(head);
    out.extend_from_slice(member.as_bytes());
    out.extend_from_slice(tail);
    Some(Bytes::from(out))
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|it| it == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn served(stored: &'static str) -> String {
        String::from_utf8(with_revision(&Bytes::from_static(stored.as_bytes()), 7).to_vec()).unwrap()
    }

    #[test]
    fn metadata_comes_third_and_takes_the_revision_first() {
        let stored = encode(&json!({
            "data": {"metadata": {"a": 1}}, "metadata": {"name": "x", "resourceVersion": "3"}, "kind": "ConfigMap",
            "apiVersion": "v1",
        }));
        let head = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"#;
        assert!(stored.starts_with(head.as_bytes()));
        let served = with_revision(&stored, 12);
        assert!(served.starts_with(format!(r#"{head}"resourceVersion":"12","name":"x"}}"#).as_bytes()));
        let object: Value = serde_json::from_slice(&served).unwrap();
        assert_eq!(object["data"], json!({"metadata": {"a": 1}}));
    }

    #[test]
    fn names_that_look_like_metadata_do_not_mislead() {
        let object = json!({"apiVersion": "\"metadata\":{", "kind": "K", "metadata": {"name": "\"metadata\":{"}});
        let served: Value = serde_json::from_slice(&with_revision(&encode(&object), 9)).unwrap();
        assert_eq!(served["metadata"]["resourceVersion"], "9");
        assert_eq!(served["apiVersion"], object["apiVersion"]);
    }

    #[test]
    fn odd_objects_are_served_too() {
        assert_eq!(served(r#"{"metadata":{}}"#), r#"{"metadata":{"resourceVersion":"7"}}"#);
        assert_eq!(
            served(r#"{ "metadata" : { "name" : "a" } }"#),
            r#"{"metadata":{"resourceVersion":"7","name":"a"}}"#
        );
        assert_eq!(
            served(r#"{"kind":"A"}"#),
            r#"{"kind":"A","metadata":{"resourceVersion":"7"}}"#
        );
        assert_eq!(
            served(r#"{"a":{"metadata":{}}}"#),
            r#"{"metadata":{"resourceVersion":"7"},"a":{"metadata":{}}}"#
        );
        assert_eq!(
            served(r#"{"kind":":{","metadata":{}}"#),
            r#"{"kind":":{","metadata":{"resourceVersion":"7"}}"#
        );
        assert_eq!(served("[1]"), "[1]");
        assert_eq!(served("{"), "{");
        let encoded = encode(&json!({"apiVersion": {"metadata": {}}, "metadata": 3}));
        assert_eq!(&encoded[..], br#"{"metadata":{},"apiVersion":{"metadata":{}}}"#);
        assert_eq!(&encode(&Value::Null)[..], br#"{"metadata":{}}"#);
    }
}
